/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session_capture.c - the active side's epochs: when to capture, what to send, what to release
 *
 * Owns: struct session_pipe. One capture at a time; an arena slot is busy from SA_CAPTURE until the
 * caller has encoded it (SE_SLOT_FREE). An epoch may take several slots: during the full sync
 * because all of RAM is more than a slot, later because the guest dirtied more than fits.
 */
#include "session_private.h"

void session_pipe_reset(struct session *s)
{
    s->pipe = (struct session_pipe){
        .executing = 1,
        .epoch_start_ns = s->now_ns,
        .next_ns = s->now_ns,
    };
}

static bool free_slot(const struct session *s, unsigned *ret_slot)
{
    for (unsigned i = 0; i < s->config.nr_slots; i++) {
        if (!(s->pipe.slots_busy & (1u << i))) {
            *ret_slot = i;
            return true;
        }
    }
    return false;
}

static void capture(struct session *s, unsigned slot, bool precopy, bool append)
{
    struct session_action *a = session_act(s, SA_CAPTURE);

    a->epoch = s->pipe.executing;
    a->slot = slot;
    a->precopy = precopy;
    a->append = append;
    s->pipe.capturing = true;
    s->pipe.slot = slot;
    s->pipe.slots_busy |= 1u << slot;
    if (!precopy) {
        s->pipe.output_waits_next = false;
    }
}

/* The time at which PROTECTED wants the next capture to begin. */
static int64_t protected_due(const struct session *s)
{
    const struct session_pipe *p = &s->pipe;
    int64_t due = p->epoch_start_ns + s->config.epoch_max_ns;

    if (p->final_part || p->final_now)
        return s->now_ns;
    if (p->output_waits)
        due = p->next_ns;
    return due > p->next_ns ? due : p->next_ns;
}

int64_t session_pipe_due(const struct session *s)
{
    unsigned slot;

    if (s->state != ST_PROTECTED || s->pipe.capturing)
        return NEVER;
    if (!s->pipe.precopied && !free_slot(s, &slot))
        return NEVER; /* SE_SLOT_FREE will come */
    if (!s->pipe.final_part && s->pipe.sent - s->pipe.acked >= s->config.inflight_max)
        return NEVER; /* SE_ACK will come */
    return protected_due(s);
}

static void pump_protected(struct session *s)
{
    struct session_pipe *p = &s->pipe;
    bool precopy;

    if (session_pipe_due(s) > s->now_ns)
        return;
    if (p->precopied) {
        capture(s, p->slot, false, true);
        return;
    }
    precopy = !p->output_waits && !p->final_part && !p->final_now &&
              p->last_pages > s->config.precopy_pages;
    unsigned slot = 0;
    if (free_slot(s, &slot))
        capture(s, slot, precopy, false);
}

static void pump_syncing(struct session *s)
{
    unsigned slot;

    if (s->wait_start)
        return;
    if (s->pipe.entering) {
        /* Output is held from here until epoch 1 is acked: so not while a backlog waits to be sent. */
        if (!s->pipe.slots_busy)
            session_enter(s);
    } else if (free_slot(s, &slot)) {
        capture(s, slot, true, false);
    }
}

static void pump_entering(struct session *s)
{
    unsigned slot;

    if (!session_gave_up_alone(s) || s->pipe.sent || !free_slot(s, &slot))
        return;
    capture(s, slot, false, false);
}

void session_pipe_pump(struct session *s)
{
    if (s->pipe.capturing || !s->started)
        return;
    if (s->state == ST_PROTECTED)
        pump_protected(s);
    else if (s->state == ST_SYNCING)
        pump_syncing(s);
    else if (s->state == ST_ENTERING)
        pump_entering(s);
}

bool session_gave_up_alone(const struct session *s)
{
    return s->state == ST_ENTERING && !s->wait_save && !s->wait_output;
}

/* The full sync has converged: give up "alone" (file, then output), then take the last part. */
void session_enter(struct session *s)
{
    session_move(s, ST_ENTERING, "full sync converged");
    s->pipe.waits_since_ns = s->now_ns;
    if (MUTANT(ALONE_NOT_GIVEN_UP))
        return;
    session_save(s, ROLE_ACTIVE_PROTECTING);
    session_output(s, s->config.unsafe_release ? OUTPUT_PASS : OUTPUT_HOLD);
}

static void send_slot(struct session *s, const struct session_event *e, bool last)
{
    struct session_action *a = session_act(s, SA_SEND_SLOT);

    a->epoch = s->pipe.executing;
    a->slot = e->capture.slot;
    a->first = !s->pipe.begun;
    a->last = last;
    a->full = s->pipe.executing == 1;
    s->pipe.begun = true;
    s->last_tx_ns = s->now_ns;
}

static void sync_round(struct session *s, const struct session_event *e)
{
    struct session_pipe *p = &s->pipe;

    send_slot(s, e, false);
    if (!p->round_pages)
        p->round_pages = e->capture.pages + e->capture.remaining;
    p->round_sent += e->capture.pages;
    /*
     * A slot that filled up: the round goes on in the next one, but not for ever: a guest may dirty more than a
     * slot while one is copied.
     */
    if (!e->capture.complete && p->round_sent < p->round_pages)
        return;
    p->rounds++;
    p->entering = (e->capture.complete && p->round_pages <= s->config.sync_pages) ||
                  p->rounds >= s->config.sync_rounds_max;
    p->round_pages = p->round_sent = 0;
}

static void epoch_ended(struct session *s, const struct session_event *e)
{
    struct session_pipe *p = &s->pipe;
    int64_t pause_ns = e->capture.pause_ns > 0 ? e->capture.pause_ns : 0;
    int64_t share = s->config.pause_permille;

    send_slot(s, e, true);
    if (p->sent == p->acked)
        p->waits_since_ns = s->now_ns;
    p->sent = p->executing++;
    p->last_pages = e->capture.pages;
    p->begun = p->final_part = p->final_now = p->precopied = false;
    p->output_waits = p->output_waits_next;
    p->output_waits_next = false;
    p->epoch_start_ns = s->now_ns;
    p->next_ns = s->now_ns + pause_ns * (1000 - share) / share;
    if (MUTANT(RELEASE_BEFORE_ACK))
        session_act(s, SA_RELEASE)->epoch = p->sent;
}

void session_on_captured(struct session *s, const struct session_event *e)
{
    struct session_pipe *p = &s->pipe;
    bool ours = s->started && p->capturing && e->capture.slot == p->slot &&
                e->capture.epoch == p->executing;

    if (!ours)
        return; /* of a checkpoint session that was stopped meanwhile */
    p->capturing = false;
    if (s->state == ST_SYNCING) {
        sync_round(s, e);
    } else if (e->capture.precopy) {
        p->final_now = true;
        p->precopied = e->capture.complete;
        if (!e->capture.complete)
            send_slot(s, e, false);
    } else if (!e->capture.complete) {
        p->final_part = true;
        p->precopied = false;
        send_slot(s, e, false);
    } else {
        epoch_ended(s, e);
    }
}

void session_on_slot_free(struct session *s, const struct session_event *e)
{
    if (e->slot < s->config.nr_slots)
        s->pipe.slots_busy &= ~(1u << e->slot);
}

void session_on_output_waits(struct session *s)
{
    s->pipe.output_waits = true;
    if (s->pipe.capturing)
        s->pipe.output_waits_next = true;
}

void session_on_ack(struct session *s, const struct session_event *e)
{
    struct session_pipe *p = &s->pipe;

    if (s->state != ST_ENTERING && s->state != ST_PROTECTED)
        return; /* alone again: nothing waits for it */
    if (e->epoch != p->acked + 1 || e->epoch > p->sent) {
        session_lose_peer(s, "the standby acked an epoch that it cannot have");
        return;
    }
    p->acked = e->epoch;
    p->waits_since_ns = s->now_ns;
    if (s->state == ST_ENTERING)
        session_move(s, ST_PROTECTED, "the standby holds epoch 1");
    p->released = e->epoch;
    session_act(s, SA_RELEASE)->epoch = e->epoch;
}
