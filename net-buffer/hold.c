/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * hold.c - policy of held guest output: when to capture early, freeze and thaw
 *
 * Theory of operation. The filter tells little and tells it late (an eventfd without content, and
 * counters in shared memory), so everything here tolerates a missing, late or repeated observation
 * in the safe direction: output is thought to wait longer, never shorter, and an unknown epoch is
 * taken as the running one. Freezing happens at the limit, thawing at half of it, so that a guest
 * at the edge does not flutter. Nothing here trusts the counters to be sane: they are hostile
 * numbers that only ever get compared.
 */
#include "hold.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

static struct hold_epoch *waiting_at(struct hold *h, unsigned i)
{
    return &h->waiting[(h->head + i) % HOLD_EPOCHS_MAX];
}

static const struct hold_epoch *oldest(const struct hold *h)
{
    return h->nr_waiting ? &h->waiting[h->head] : NULL;
}

static const struct hold_epoch *newest(const struct hold *h)
{
    return h->nr_waiting ? &h->waiting[(h->head + h->nr_waiting - 1) % HOLD_EPOCHS_MAX] : NULL;
}

/* The oldest epoch that waits for its release, NULL when none does. */
static const struct hold_epoch *oldest_unreleased(const struct hold *h)
{
    const struct hold_epoch *e;
    unsigned i;

    for (i = 0; i < h->nr_waiting; i++) {
        e = &h->waiting[(h->head + i) % HOLD_EPOCHS_MAX];
        if (e->epoch > h->released_epoch)
            return e;
    }
    return NULL;
}

/* A time that went backwards counts as no time at all. */
static uint64_t since(uint64_t then_ns, uint64_t now_ns)
{
    return now_ns > then_ns ? now_ns - then_ns : 0;
}

static void push(struct hold *h, uint64_t epoch, uint64_t now_ns)
{
    const struct hold_epoch *last = newest(h);

    if (epoch <= h->released_epoch || (last && last->epoch >= epoch))
        return;
    if (h->nr_waiting == HOLD_EPOCHS_MAX) {
        /* Keep the older time: the reported hold time is then too long, not too short. */
        waiting_at(h, HOLD_EPOCHS_MAX - 1)->epoch = epoch;
        h->merged++;
        return;
    }
    *waiting_at(h, h->nr_waiting) = (struct hold_epoch){.epoch = epoch, .first_ns = now_ns};
    h->nr_waiting++;
}

int hold_check_limits(const struct hold_limits *limits)
{
    if (!limits->max_bytes || limits->max_bytes > UINT64_MAX / 2)
        return -EINVAL;
    if (!limits->max_packets || limits->max_packets > UINT64_MAX / 2)
        return -EINVAL;
    return 0;
}

int hold_init(struct hold *h, const struct hold_limits *limits)
{
    int err = hold_check_limits(limits);

    if (err)
        return err;
    memset(h, 0, sizeof(*h));
    h->limits = *limits;
    return 0;
}

void hold_restart(struct hold *h, uint64_t now_ns)
{
    const struct hold_epoch *first = oldest_unreleased(h);
    uint64_t first_ns = first ? first->first_ns : now_ns;

    h->head = 0;
    h->nr_waiting = 0;
    h->released_epoch = 0;
    h->released_ns = 0;
    h->captured_packets = 0;
    h->running_epoch = 1;
    if (h->packets)
        push(h, 1, first_ns);
}

void hold_wakeup(struct hold *h, uint64_t epoch, uint64_t now_ns)
{
    if (epoch < h->running_epoch)
        return;
    h->running_epoch = epoch;
    push(h, epoch, now_ns);
}

void hold_observed(struct hold *h, uint64_t packets, uint64_t bytes, uint64_t now_ns)
{
    h->packets = packets;
    h->bytes = bytes;
    if (packets > h->captured_packets)
        push(h, h->running_epoch, now_ns);
}

void hold_captured(struct hold *h, uint64_t epoch, uint64_t packets, uint64_t bytes,
                   uint64_t now_ns)
{
    if (epoch < h->running_epoch)
        return;
    h->running_epoch = epoch;
    hold_observed(h, packets, bytes, now_ns);
    h->captured_packets = packets;
    h->running_epoch = epoch == UINT64_MAX ? epoch : epoch + 1;
}

void hold_released(struct hold *h, uint64_t epoch, uint64_t packets, uint64_t bytes,
                   uint64_t now_ns)
{
    if (epoch > h->released_epoch) {
        h->released_epoch = epoch;
        h->released_ns = now_ns;
    }
    h->captured_packets -= packets < h->captured_packets ? packets : h->captured_packets;
    h->packets -= packets < h->packets ? packets : h->packets;
    h->bytes -= bytes < h->bytes ? bytes : h->bytes;
}

bool hold_next_time(struct hold *h, uint64_t *ret_epoch, uint64_t *ret_held_ns)
{
    const struct hold_epoch *first = oldest(h);

    if (!first || first->epoch > h->released_epoch)
        return false;
    *ret_epoch = first->epoch;
    *ret_held_ns = since(first->first_ns, h->released_ns);
    h->head = (h->head + 1) % HOLD_EPOCHS_MAX;
    h->nr_waiting--;
    return true;
}

void hold_frozen(struct hold *h, uint64_t now_ns)
{
    if (h->frozen)
        return;
    h->frozen = true;
    h->freezes++;
    h->frozen_since_ns = now_ns;
}

void hold_thawed(struct hold *h, uint64_t now_ns)
{
    if (!h->frozen)
        return;
    h->frozen = false;
    h->frozen_ns += since(h->frozen_since_ns, now_ns);
}

static enum hold_reason limit_reached(const struct hold *h, uint64_t now_ns, unsigned divisor)
{
    const struct hold_epoch *first = oldest_unreleased(h);

    if (h->bytes >= (h->limits.max_bytes + divisor - 1) / divisor)
        return HOLD_REASON_BYTES;
    if (h->packets >= (h->limits.max_packets + divisor - 1) / divisor)
        return HOLD_REASON_PACKETS;
    if (h->limits.max_hold_ns && first && since(first->first_ns, now_ns) >= h->limits.max_hold_ns)
        return HOLD_REASON_TIME;
    return HOLD_REASON_NONE;
}

enum hold_verdict hold_decide(const struct hold *h, uint64_t now_ns, enum hold_reason *ret_reason)
{
    enum hold_reason limit = limit_reached(h, now_ns, h->frozen ? 2 : 1);
    const struct hold_epoch *last = newest(h);
    bool uncaptured =
        last && last->epoch > h->released_epoch && last->epoch >= h->running_epoch;
    enum hold_reason reason = HOLD_REASON_NONE;
    enum hold_verdict verdict = HOLD_NOTHING;

    if (limit && !h->frozen) {
        verdict = HOLD_FREEZE;
        reason = limit;
    } else if (!limit && h->frozen) {
        verdict = HOLD_THAW;
        reason = HOLD_REASON_ROOM;
    } else if (uncaptured) {
        verdict = HOLD_CAPTURE_EARLY;
        reason = HOLD_REASON_OUTPUT_WAITS;
    }
    if (ret_reason)
        *ret_reason = reason;
    return verdict;
}

bool hold_deadline(const struct hold *h, uint64_t *ret_at_ns)
{
    const struct hold_epoch *first = oldest_unreleased(h);

    if (!h->limits.max_hold_ns || !first || h->frozen)
        return false;
    *ret_at_ns = first->first_ns > UINT64_MAX - h->limits.max_hold_ns
                     ? UINT64_MAX
                     : first->first_ns + h->limits.max_hold_ns;
    return true;
}

uint64_t hold_frozen_total_ns(const struct hold *h, uint64_t now_ns)
{
    return h->frozen_ns + (h->frozen ? since(h->frozen_since_ns, now_ns) : 0);
}

const char *hold_verdict_name(enum hold_verdict verdict)
{
    static const char *const names[HOLD_VERDICT_NUM] = {
        [HOLD_NOTHING] = "nothing",
        [HOLD_CAPTURE_EARLY] = "capture-early",
        [HOLD_FREEZE] = "freeze",
        [HOLD_THAW] = "thaw",
    };

    return (unsigned)verdict < HOLD_VERDICT_NUM ? names[verdict] : "?";
}

const char *hold_reason_name(enum hold_reason reason)
{
    static const char *const names[HOLD_REASON_NUM] = {
        [HOLD_REASON_NONE] = "none",
        [HOLD_REASON_OUTPUT_WAITS] = "output-waits",
        [HOLD_REASON_BYTES] = "bytes",
        [HOLD_REASON_PACKETS] = "packets",
        [HOLD_REASON_TIME] = "time",
        [HOLD_REASON_ROOM] = "room",
    };

    return (unsigned)reason < HOLD_REASON_NUM ? names[reason] : "?";
}
