/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * scenario.c - directed plots: a fault at exactly this moment, then that one
 *
 * A table, not code: each step waits for a moment (a state entered, an action carried out, an event taken),
 * then does its fault at once or a little later. After the last step all is healed and must come back.
 */
#include "sim.h"

#include <string.h>

#define STEPS_MAX 8
#define STEP_DEADLINE (120 * SEC)

enum when { AT_ONCE, STATE, ACTION, EVENT };

struct step {
    enum when when;
    unsigned side;       /* whose moment */
    int value;           /* state, action or event */
    int64_t delay;
    enum fault fault;
    unsigned on;         /* to whom */
    int64_t length;
};

struct scenario {
    const char *name;
    struct step step[STEPS_MAX];
    unsigned nr;
    uint64_t failovers, refusals, frozen, repeated; /* at least */
    bool lost_ok;        /* two faults at once: the guest may be gone, but nothing may be wrong */
    bool no_failover;    /* the guest must have stayed where it was */
};

enum { A, B };

/* clang-format off */
static const struct scenario scenarios[] = {
    { "active-host-dies", .nr = 1, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 3 * SEC, F_HOST_LOSS, A, 20 * SEC } } },
    { "active-qemu-dies", .nr = 1, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 3 * SEC, F_QEMU_DEATH, A, 0 } } },
    { "active-polluxd-crashes", .nr = 1, .step = {
        { STATE, A, ST_PROTECTED, 3 * SEC, F_DAEMON_CRASH, A, 50 * MS } } },
    { "standby-dies", .nr = 1, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 3 * SEC, F_HOST_LOSS, B, 20 * SEC } } },
    { "failover-and-back", .nr = 2, .failovers = 2, .step = {
        { STATE, A, ST_PROTECTED, 3 * SEC, F_HOST_LOSS, A, 5 * SEC },
        { STATE, B, ST_PROTECTED, 3 * SEC, F_HOST_LOSS, B, 5 * SEC } } },
    { "link-lost-while-entering", .nr = 1, .no_failover = true, .step = {
        { STATE, A, ST_ENTERING, 0, F_LINK_RESET, A, 0 } } },
    { "link-lost-while-entering-arbiter-cut", .nr = 2, .step = {
        { STATE, A, ST_ENTERING, 0, F_ARBITER_CUT, A, 2 * SEC }, { AT_ONCE, A, 0, 0, F_LINK_RESET, A, 0 } } },
    { "link-lost-after-hold-before-last-part", .nr = 1, .no_failover = true, .step = {
        { ACTION, A, SA_OUTPUT, 0, F_LINK_RESET, A, 0 } } },
    { "both-ask-at-once", .nr = 1, .refusals = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_LINK_RESET, A, 0 } } },
    { "partition-both-ask", .nr = 1, .refusals = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_PARTITION, A, 10 * SEC } } },
    { "partition-one-way", .nr = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ONE_WAY, A, 10 * SEC } } },
    { "ask-lost", .nr = 2, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, B, 3 * SEC }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, A, 20 * SEC } } },
    { "answer-lost-then-repeated", .nr = 2, .failovers = 1, .repeated = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_LOSE_ANSWER, A, 0 }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, A, 20 * SEC } } },
    { "active-answer-lost-then-repeated", .nr = 2, .repeated = 1, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_LOSE_ANSWER, A, 0 }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, B, 20 * SEC } } },
    { "arbiter-restarts", .nr = 2, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_DOWN, A, 3 * SEC }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, A, 30 * SEC } } },
    { "nobody-answers-freeze", .nr = 2, .frozen = 1, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_DOWN, A, 15 * SEC }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, B, 10 * SEC } } },
    { "crash-between-grant-and-save", .nr = 2, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_HOST_LOSS, B, 10 * SEC },
        { EVENT, A, SE_ARBITER, 0, F_DAEMON_CRASH, A, 100 * MS } } },
    { "crash-between-save-and-hold", .nr = 1, .no_failover = true, .step = {
        { ACTION, A, SA_SAVE, 0, F_NUM, A, 0 } } },
    { "crash-while-entering", .nr = 1, .step = {
        { STATE, A, ST_ENTERING, 3 * MS, F_DAEMON_CRASH, A, 100 * MS } } },
    { "crash-after-ask", .nr = 2, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_LINK_RESET, A, 0 },
        { ACTION, A, SA_ASK, 500 * US, F_DAEMON_CRASH, A, 100 * MS } } },
    { "crash-first-claim", .nr = 1, .step = {
        { ACTION, A, SA_ASK, 1 * MS, F_DAEMON_CRASH, A, 100 * MS } } },
    { "link-lost-while-entering-slow-file-then-crash", .nr = 3, .no_failover = true, .step = {
        { STATE, A, ST_SYNCING, 0, F_SAVER_SLOW, A, 10 * SEC },
        { STATE, A, ST_ENTERING, 0, F_LINK_RESET, A, 0 },
        { STATE, A, ST_ALONE, 0, F_DAEMON_CRASH, A, 100 * MS } } },
    { "standby-crashes-right-after-ack", .nr = 1, .no_failover = true, .step = {
        { ACTION, B, SA_SEND_ACK, 0, F_DAEMON_CRASH, B, 100 * MS } } },
    { "standby-crashes-before-first-ack", .nr = 1, .no_failover = true, .step = {
        { EVENT, B, SE_RX_BEGIN, 0, F_DAEMON_CRASH, B, 100 * MS } } },
    { "active-dies-right-after-first-ack", .nr = 1, .failovers = 1, .step = {
        { ACTION, B, SA_SEND_ACK, 0, F_HOST_LOSS, A, 20 * SEC } } },
    { "active-dies-right-after-release", .nr = 2, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 1 * SEC, F_BUSY, A, 10 * SEC }, { ACTION, A, SA_RELEASE, 0, F_HOST_LOSS, A, 20 * SEC } } },
    { "active-dies-while-syncing", .nr = 1, .lost_ok = true, .step = {
        { STATE, A, ST_SYNCING, 1 * MS, F_HOST_LOSS, A, 20 * SEC } } },
    { "silent-then-not-while-asking", .nr = 4, .failovers = 1, .refusals = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_BUSY, A, 5 * SEC }, { AT_ONCE, A, 0, 300 * MS, F_LOSE_ANSWER, B, 0 },
        { AT_ONCE, A, 0, 0, F_ARBITER_CUT, A, 10 * SEC }, { AT_ONCE, A, 0, 0, F_ONE_WAY, B, 130 * MS } } },
    { "old-active-returns", .nr = 2, .failovers = 1, .refusals = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, A, 8 * SEC }, { AT_ONCE, A, 0, 0, F_PARTITION, A, 6 * SEC } } },
    { "old-active-polluxd-returns", .nr = 2, .failovers = 1, .refusals = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, A, 12 * SEC }, { AT_ONCE, A, 0, 0, F_DAEMON_CRASH, A, 10 * SEC } } },
    { "active-host-stands-still", .nr = 1, .failovers = 1, .refusals = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_HOST_PAUSE, A, 15 * SEC } } },
    { "standby-stands-still", .nr = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_HOST_PAUSE, B, 15 * SEC } } },
    { "clock-jumps", .nr = 2, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_CLOCK_JUMP, B, 10 * SEC }, { AT_ONCE, A, 0, 2 * SEC, F_CLOCK_JUMP, A, 10 * SEC } } },
    { "capture-fails", .nr = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_CAPTURE_FAILS, A, 0 } } },
    { "last-part-fails-while-entering", .nr = 1, .no_failover = true, .step = {
        { STATE, A, ST_ENTERING, 0, F_CAPTURE_FAILS, A, 0 } } },
    { "save-fails-while-entering", .nr = 1, .no_failover = true, .step = {
        { STATE, A, ST_SYNCING, 0, F_SAVER_FAILS, A, 4 * SEC } } },
    { "standby-save-fails", .nr = 1, .no_failover = true, .step = {
        { STATE, B, ST_STANDBY_SYNCING, 0, F_SAVER_FAILS, B, 4 * SEC } } },
    { "save-fails-after-grant-then-crash", .nr = 4, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_SAVER_FAILS, A, 60 * SEC }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, B, 30 * SEC },
        { STATE, A, ST_ALONE, 2 * SEC, F_DAEMON_CRASH, A, 100 * MS }, { STATE, A, ST_ALONE, 2 * SEC, F_DAEMON_CRASH, A, 100 * MS } } },
    { "output-fills-up", .nr = 2, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_QMP_SLOW, B, 3 * SEC }, { AT_ONCE, A, 0, 0, F_BURST, A, 2 * SEC } } },
    { "output-fills-up-while-claiming", .nr = 4, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_DOWN, A, 3 * SEC }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, B, 8 * SEC },
        { AT_ONCE, A, 0, 0, F_BURST, A, 5 * SEC }, { STATE, A, ST_ALONE, 0, F_BUSY, A, 1 * SEC } } },
    { "qmp-connection-ends", .nr = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_QMP_LOST, A, 0 } } },
    { "qmp-connection-ends-without-standby", .nr = 3, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_HOST_LOSS, B, 15 * SEC }, { STATE, A, ST_ALONE, 1 * SEC, F_QMP_LOST, A, 0 },
        { STATE, A, ST_ALONE, 1 * SEC, F_BUSY, A, 0 } } },
    { "output-full-while-polluxd-is-away", .nr = 3, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, B, 12 * SEC }, { AT_ONCE, A, 0, 0, F_BURST, A, 5 * SEC },
        { AT_ONCE, A, 0, 0, F_DAEMON_CRASH, A, 8 * SEC } } },
    { "standby-qemu-slow", .nr = 2, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_QMP_SLOW, B, 5 * SEC }, { AT_ONCE, A, 0, 0, F_BUSY, A, 5 * SEC } } },
    { "switch-over-by-operator", .nr = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_PROMOTE_ASK, B, 0 } } },
    { "unpair-while-protected", .nr = 1, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_UNPAIR, A, 0 } } },
    { "unpair-while-arbiter-is-down", .nr = 2, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_DOWN, A, 3 * SEC }, { AT_ONCE, A, 0, 0, F_UNPAIR, A, 0 } } },
    { "polluxd-told-to-end-while-protected", .nr = 1, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_SHUTDOWN, A, 0 } } },
    { "polluxd-told-to-end-arbiter-down", .nr = 2, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_DOWN, A, 8 * SEC }, { AT_ONCE, A, 0, 0, F_SHUTDOWN, A, 0 } } },
    { "standby-told-to-end", .nr = 1, .no_failover = true, .step = {
        { STATE, B, ST_STANDBY_READY, 2 * SEC, F_SHUTDOWN, B, 0 } } },
    { "guest-shuts-down", .nr = 1, .lost_ok = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_GUEST_ENDS, A, 0 } } },
    { "dead-active-boots-again", .nr = 1, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_COLD_BOOT, A, 0 } } },
    { "dead-active-boots-again-standby-slow", .nr = 2, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, B, 3 * SEC }, { AT_ONCE, A, 0, 0, F_COLD_BOOT, A, 0 } } },
    { "host-reboots-and-guest-boots-before-standby-asks", .nr = 4, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, B, 20 * SEC }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, A, 1 * SEC },
        { AT_ONCE, A, 0, 1100 * MS, F_COLD_BOOT, A, 0 }, { AT_ONCE, A, 0, 0, F_BUSY, A, 0 } } },
    { "operator-forces-standby", .nr = 3, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_DOWN, B, 30 * SEC }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, A, 60 * SEC },
        { STATE, B, ST_STANDBY_ASKING, 1 * SEC, F_FORCE, B, 0 } } },
    { "operator-forces-standby-and-the-active-was-granted", .nr = 3, .failovers = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, B, 10 * SEC }, { AT_ONCE, A, 0, 0, F_PARTITION, A, 15 * SEC },
        { STATE, B, ST_STANDBY_ASKING, 1 * SEC, F_FORCE, B, 0 } } },
    { "granted-standby-is-lost-operator-forces-the-outdated-copy", .nr = 4, .refusals = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, A, 1 * SEC }, { AT_ONCE, A, 0, 0, F_PROMOTE_ASK, B, 0 },
        { STATE, B, ST_PROMOTING, 1 * MS, F_HOST_LOSS, B, 20 * SEC }, { STATE, A, ST_OUTDATED, 1 * SEC, F_FORCE, A, 0 } } },
    { "active-qemu-hangs", .nr = 1, .failovers = 1, .refusals = 1, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_QEMU_HANGS, A, 20 * SEC } } },
    { "active-qemu-hangs-for-a-moment", .nr = 1, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_QEMU_HANGS, A, 2 * SEC } } },
    { "active-qemu-hangs-and-the-standby-is-lost", .nr = 2, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_HOST_LOSS, B, 20 * SEC }, { AT_ONCE, A, 0, 0, F_QEMU_HANGS, A, 8 * SEC } } },
    { "standby-asks-in-vain-while-the-active-goes-on", .nr = 2, .no_failover = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, B, 30 * SEC }, { AT_ONCE, A, 0, 0, F_LINK_RESET, A, 0 } } },
    { "granted-standby-dies", .nr = 3, .lost_ok = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, A, 5 * SEC }, { AT_ONCE, A, 0, 0, F_PROMOTE_ASK, B, 0 }, { STATE, B, ST_PROMOTING, 1 * MS, F_QEMU_DEATH, B, 0 } } },
    { "load-fails", .nr = 2, .lost_ok = true, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_LOAD_FAILS, B, 0 }, { AT_ONCE, A, 0, 0, F_HOST_LOSS, A, 20 * SEC } } },
    { "stale-answer-for-a-former-ask", .nr = 3, .step = {
        { STATE, A, ST_PROTECTED, 2 * SEC, F_ARBITER_CUT, B, 30 * SEC }, { AT_ONCE, A, 0, 0, F_LINK_RESET, A, 0 },
        { STATE, B, ST_STANDBY_ASKING, 1 * MS, F_REPLACE_QEMU, B, 0 } } },
};
/* clang-format on */

const struct scenario *scenario_at(unsigned i)
{
    return i < sizeof(scenarios) / sizeof(scenarios[0]) ? &scenarios[i] : NULL;
}

const char *scenario_name(const struct scenario *s)
{
    return s->name;
}

static void next(struct world *w)
{
    const struct scenario *s = w->scenario;

    w->step++;
    w->step_since = w->now;
    w->step_armed = w->step < s->nr;
    if (w->step_armed && s->step[w->step].when == AT_ONCE) {
        w->step_armed = false;
        world_at(w, w->now + s->step[w->step].delay, H_SCENARIO, 0, w->step, 0);
    }
}

void scenario_fire(struct world *w, uint64_t n)
{
    const struct step *step = &w->scenario->step[n];

    if (n != w->step)
        return;
    if (step->fault != F_NUM)
        fault_do(w, step->fault, step->on, step->length);
    else
        fault_do(w, F_DAEMON_CRASH, step->on, step->length);
    next(w);
}

static void moment(struct world *w, enum when when, unsigned side, int value)
{
    const struct step *step = &w->scenario->step[w->step];

    if (!w->step_armed || step->when != when || step->side != side || step->value != value)
        return;
    w->step_armed = false;
    if (step->delay)
        world_at(w, w->now + step->delay, H_SCENARIO, 0, w->step, 0);
    else
        scenario_fire(w, w->step);
}

void scenario_event(struct world *w, const struct side *d, const struct session_event *e)
{
    moment(w, EVENT, d->id, (int)e->type);
}

void scenario_action(struct world *w, const struct side *d, const struct session_action *a)
{
    if (a->type == SA_MOVED)
        moment(w, STATE, d->id, (int)a->to);
    else
        moment(w, ACTION, d->id, (int)a->type);
}

static void expect(struct world *w, const char *what, uint64_t before, uint64_t wanted, enum count c)
{
    if (w->count[c] - before < wanted)
        world_fail(w, "%s: only %llu of %llu %s", w->scenario->name, (unsigned long long)(w->count[c] - before),
                   (unsigned long long)wanted, what);
}

bool scenario_run(struct world *w, const struct scenario *s, uint64_t seed)
{
    uint64_t before[N_NUM];
    int64_t healed = 0;

    world_begin(w, seed, 0);
    memcpy(before, w->count, sizeof(before));
    session_config_default(&w->config);
    w->config.heartbeat_ns = 20 * MS; /* the plots know these times */
    w->config.peer_timeout_ns = 100 * MS;
    w->config.hold_freeze_ns = 5 * SEC;
    w->config.precopy_pages = 3;
    w->config.sync_pages = 3;
    w->out_gap = 30 * MS;
    w->ask_timeout = 500 * MS;
    w->latency = 200 * US;
    w->jitter = 100 * US;
    w->scenario = s;
    w->step = UINT32_MAX;
    next(w);
    while (world_turn(w)) {
        if (!healed && w->step >= s->nr && w->now - w->step_since > 40 * SEC) {
            healed = w->now;
            fault_heal(w);
        }
        if (healed && w->now - healed > 60 * SEC)
            break;
        if (w->step < s->nr && w->now - w->step_since > STEP_DEADLINE)
            world_fail(w, "%s: the moment of step %u never came", s->name, w->step);
    }
    if (!w->failed && w->now - healed < 60 * SEC && !s->lost_ok)
        world_fail(w, "%s: the guest is lost: a is %s (%s), b is %s (%s)", s->name, session_state_name(w->side[0].state),
                   w->side[0].s.reason, session_state_name(w->side[1].state), w->side[1].s.reason);
    if (!w->failed && healed && w->now - healed >= 60 * SEC && !w->guest_ended)
        oracle_settled(w);
    expect(w, "failovers", before[N_FAILOVERS], s->failovers, N_FAILOVERS);
    expect(w, "refusals", before[N_REFUSALS], s->refusals, N_REFUSALS);
    expect(w, "freezes", before[N_FROZEN], s->frozen, N_FROZEN);
    expect(w, "repeated grants", before[N_REPEATED_GRANTS], s->repeated, N_REPEATED_GRANTS);
    if (s->no_failover && w->count[N_FAILOVERS] != before[N_FAILOVERS])
        world_fail(w, "%s: a failover that nobody needed", s->name);
    return !w->failed;
}
