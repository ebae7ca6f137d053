/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fault.c - what goes wrong, at random; and the people and supervisors who mend it
 *
 * Owns: the schedule of a random world: a stretch with faults, then all is healed and must come back, again and
 * again. A guest that is lost because two things broke at once ends the world; lost by one fault it is a failure.
 */
#include "sim.h"

#include <string.h>

#define SETTLE (60 * SEC)

const char *const fault_name[F_NUM] = {
    [F_DAEMON_CRASH] = "polluxd crashes", [F_CRASH_AT_ACTION] = "polluxd crashes between two actions",
    [F_HOST_LOSS] = "the host loses power", [F_QEMU_DEATH] = "QEMU dies", [F_LINK_RESET] = "the link is reset",
    [F_PARTITION] = "partition", [F_ONE_WAY] = "partition one way", [F_SPIKE] = "latency spike",
    [F_ARBITER_CUT] = "cut from the arbiter", [F_ARBITER_DOWN] = "the arbiter is down", [F_LOSE_ANSWER] = "answers get lost",
    [F_DAEMON_PAUSE] = "polluxd is stopped for a while", [F_HOST_PAUSE] = "the host stands still",
    [F_SAVER_SLOW] = "the state file is slow", [F_SAVER_FAILS] = "the state file fails", [F_CAPTURE_FAILS] = "a capture fails",
    [F_START_FAILS] = "checkpoint-start fails", [F_LOAD_FAILS] = "checkpoint-load fails", [F_BURST] = "burst of output",
    [F_BUSY] = "busy guest", [F_QMP_SLOW] = "QEMU is slow", [F_CLOCK_JUMP] = "the clock jumps", [F_UNPAIR] = "unpair",
    [F_SHUTDOWN] = "polluxd is told to end", [F_PROMOTE] = "promote", [F_GUEST_ENDS] = "the guest shuts down",
    [F_COLD_BOOT] = "QEMU is restarted and boots", [F_REPLACE_QEMU] = "QEMU is replaced by a fresh one", [F_HEAL] = "all is healed",
    [F_QMP_LOST] = "the QMP connection ends", [F_PROMOTE_ASK] = "promote --force while ready", [F_FORCE] = "promote --force",
    [F_QEMU_HANGS] = "QEMU hangs",
};

struct weight {
    enum fault fault;
    unsigned weight;
    int64_t lo, hi; /* how long */
};

static const struct weight weights[] = {
    { F_DAEMON_CRASH, 10, 20 * MS, 5 * SEC }, { F_CRASH_AT_ACTION, 14, 20 * MS, 2 * SEC },
    { F_HOST_LOSS, 8, 2 * SEC, 40 * SEC },    { F_QEMU_DEATH, 8, 0, 0 },
    { F_LINK_RESET, 8, 0, 0 },                { F_PARTITION, 10, 5 * MS, 20 * SEC },
    { F_ONE_WAY, 6, 5 * MS, 10 * SEC },       { F_SPIKE, 6, 50 * MS, 5 * SEC },
    { F_ARBITER_CUT, 10, 50 * MS, 20 * SEC }, { F_ARBITER_DOWN, 5, 50 * MS, 20 * SEC },
    { F_LOSE_ANSWER, 8, 0, 0 },               { F_DAEMON_PAUSE, 8, 5 * MS, 5 * SEC },
    { F_HOST_PAUSE, 6, 5 * MS, 20 * SEC },    { F_SAVER_SLOW, 6, 100 * MS, 10 * SEC },
    { F_SAVER_FAILS, 4, 100 * MS, 10 * SEC }, { F_CAPTURE_FAILS, 5, 0, 0 },
    { F_START_FAILS, 3, 0, 0 },               { F_LOAD_FAILS, 1, 0, 0 },
    { F_BURST, 12, 50 * MS, 1 * SEC },        { F_BUSY, 10, 1 * SEC, 10 * SEC },
    { F_QMP_SLOW, 6, 100 * MS, 3 * SEC },     { F_CLOCK_JUMP, 4, 20 * MS, 10 * SEC },
    { F_UNPAIR, 3, 0, 0 },                    { F_SHUTDOWN, 4, 0, 0 },
    { F_PROMOTE_ASK, 4, 0, 0 },               { F_PROMOTE, 1, 0, 0 },
    { F_GUEST_ENDS, 1, 0, 0 },                { F_QMP_LOST, 3, 0, 0 },
    { F_QEMU_HANGS, 4, 100 * MS, 30 * SEC },
};

static void until(int64_t *t, int64_t at)
{
    if (*t < at)
        *t = at;
}

static void daemon_crash(struct world *w, struct side *d, int64_t length)
{
    if (!d->daemon_up)
        return;
    oracle_hard_fault(w);
    w->crashes[d->state]++;
    w->count[N_DAEMON_CRASHES]++;
    side_crash(w, d, false);
    world_at(w, w->now + (length ? length : rng_range(&w->rng, 20 * MS, 3 * SEC)), H_DAEMON_START, d->id, 0, 0);
}

static void host_loss(struct world *w, struct side *d, int64_t length)
{
    if (!d->host_up)
        return;
    oracle_hard_fault(w);
    w->deaths[d->state]++;
    w->count[N_HOST_LOSSES]++;
    if (d->q.alive)
        qemu_kill(w, d, true);
    side_crash(w, d, true);
    net_lose(w, d);
    d->host_up = false;
    d->host_paused = d->daemon_paused = d->start_qemu_at = 0;
    world_at(w, w->now + length, H_HOST_START, d->id, 0, 0);
    side_update(w, d);
}

static void qemu_death(struct world *w, struct side *d)
{
    if (!d->q.alive)
        return;
    oracle_hard_fault(w);
    w->deaths[d->state]++;
    w->count[N_QEMU_DEATHS]++;
    qemu_kill(w, d, false);
}

static void operator_says(struct world *w, struct side *d, enum session_event_type type, bool flag)
{
    if (!d->daemon_up || side_awake(d) > w->now)
        return;
    w->count[N_OPERATOR]++;
    side_post(w, d, &(struct session_event){ .type = type, .flag = flag });
}

/* QEMU is restarted by somebody who knows nothing of us: the guest boots, its memory is gone. */
static void cold_boot(struct world *w, struct side *d)
{
    if (!d->host_up)
        return;
    oracle_hard_fault(w);
    w->count[N_COLD_BOOTS]++;
    if (d->q.alive)
        qemu_kill(w, d, false);
    qemu_boot(w, d, false, oracle_node(w, 0));
    d->q.stranger = true;
}

static void pause_side(struct world *w, struct side *d, int64_t *which, int64_t length)
{
    w->count[N_PAUSES]++;
    until(which, w->now + length);
    side_update(w, d);
    net_update(w);
    world_at(w, *which, H_WAKE, d->id, 0, 0);
}

static void network(struct world *w, enum fault f, unsigned side, int64_t length)
{
    if (f == F_LINK_RESET) {
        w->count[N_LINK_RESETS]++;
        net_reset(w);
    } else if (f == F_SPIKE) {
        w->spike = rng_log(&w->rng, 5 * MS, 400 * MS);
        until(&w->spike_until, w->now + length);
    } else {
        w->count[N_PARTITIONS]++;
        until(&w->cut_until[side], w->now + length);
        if (f == F_PARTITION)
            until(&w->cut_until[1 - side], w->now + length);
    }
}

static void witness(struct world *w, enum fault f, struct side *d, int64_t length)
{
    w->count[N_ARBITER_CUTS]++;
    if (f == F_LOSE_ANSWER) {
        w->lose_answers += 1 + (unsigned)rng_below(&w->rng, 3);
    } else if (f == F_ARBITER_DOWN) {
        w->arbiter.up = false;
        world_at(w, w->now + length, H_ARBITER_UP, 0, 0, 0);
    } else {
        until(&d->arbiter_cut, w->now + length);
        if (!w->scenario && rng_permille(&w->rng, 300))
            until(&other(w, d)->arbiter_cut, w->now + length);
    }
}

void fault_busy(struct world *w, int64_t length)
{
    until(&w->busy_until, w->now + length);
    for (unsigned i = 0; i < 2; i++) {
        until(&w->side[i].q.out_at, w->now);
        if (w->side[i].q.out_at > w->now + 20 * MS)
            w->side[i].q.out_at = w->now + (int64_t)rng_below(&w->rng, 20 * MS);
        qemu_update(w, &w->side[i]);
    }
}

void fault_do(struct world *w, enum fault f, unsigned side, int64_t length)
{
    struct side *d = &w->side[side];
    bool active = d->state == ST_PROTECTED || d->state == ST_ALONE || d->state == ST_SYNCING || d->state == ST_ENTERING;

    w->count[N_FAULTS]++;
    world_trace(w, TRACE_WORLD, side, 0, (uint64_t)length / 1000, 0, fault_name[f]);
    switch (f) {
    case F_DAEMON_CRASH: daemon_crash(w, d, length); break;
    case F_CRASH_AT_ACTION: d->crash_in = d->daemon_up ? 1 + (unsigned)rng_below(&w->rng, 60) : 0; break;
    case F_HOST_LOSS: host_loss(w, d, length); break;
    case F_QEMU_DEATH: qemu_death(w, d); break;
    case F_LINK_RESET:
    case F_PARTITION:
    case F_ONE_WAY:
    case F_SPIKE: network(w, f, side, length); break;
    case F_ARBITER_CUT:
    case F_ARBITER_DOWN:
    case F_LOSE_ANSWER: witness(w, f, d, length); break;
    case F_DAEMON_PAUSE: pause_side(w, d, &d->daemon_paused, length); break;
    case F_HOST_PAUSE: pause_side(w, d, &d->host_paused, length); break;
    case F_SAVER_SLOW: until(&d->saver_slow_until, w->now + length); break;
    case F_SAVER_FAILS: until(&d->saver_fails_until, w->now + length); break;
    case F_CAPTURE_FAILS: d->fail_capture = true; break;
    case F_START_FAILS: d->fail_start = true; break;
    case F_LOAD_FAILS: d->fail_load = true; break;
    case F_BURST:
        until(&d->q.burst_until, w->now + length);
        d->q.out_at = w->now;
        qemu_update(w, d);
        break;
    case F_BUSY: fault_busy(w, length); break;
    case F_QMP_SLOW: until(&d->qmp_slow_until, w->now + length); break;
    case F_CLOCK_JUMP:
        d->clock_offset += length;
        side_update(w, d);
        break;
    case F_UNPAIR:
        if (active)
            operator_says(w, d, SE_OP_UNPAIR, false);
        break;
    case F_SHUTDOWN:
        oracle_hard_fault(w);
        operator_says(w, d, SE_OP_SHUTDOWN, false);
        break;
    case F_PROMOTE: operator_says(w, d, SE_OP_PROMOTE, false); break;
    case F_PROMOTE_ASK:
        if (d->state == ST_STANDBY_READY)
            operator_says(w, d, SE_OP_PROMOTE, true);
        break;
    case F_FORCE:
        w->forced = true;
        operator_says(w, d, SE_OP_PROMOTE, true);
        break;
    case F_GUEST_ENDS: qemu_shutdown(w, d); break;
    case F_COLD_BOOT: cold_boot(w, d); break;
    case F_QMP_LOST:
        oracle_hard_fault(w);
        qemu_hang_up(w, d);
        break;
    case F_REPLACE_QEMU:
        oracle_hard_fault(w);
        if (d->q.alive)
            qemu_kill(w, d, false);
        d->start_qemu_at = w->now + 100 * MS;
        break;
    case F_QEMU_HANGS:
        if (length >= CAPTURE_DEADLINE) /* a shorter one is noticed by nobody */
            oracle_hard_fault(w);
        qemu_hang(w, d, length);
        break;
    case F_HEAL: fault_heal(w); break;
    case F_NUM: break;
    }
}

static int64_t length(struct world *w, const struct weight *f)
{
    bool silence = f->fault == F_PARTITION || f->fault == F_ONE_WAY || f->fault == F_DAEMON_PAUSE || f->fault == F_HOST_PAUSE;

    if (f->lo == 0)
        return 0;
    if (silence && rng_permille(&w->rng, 400)) /* about as long as a peer waits: both sides may be right */
        return rng_range(&w->rng, w->config.peer_timeout_ns * 8 / 10, w->config.peer_timeout_ns * 2);
    return rng_log(&w->rng, f->lo, f->hi);
}

static void random_fault(struct world *w, unsigned side)
{
    unsigned total = 0, at;
    const struct weight *pick = weights;

    for (unsigned i = 0; i < sizeof(weights) / sizeof(weights[0]); i++)
        total += weights[i].weight;
    at = (unsigned)rng_below(&w->rng, total);
    while (at >= pick->weight)
        at -= (pick++)->weight;
    fault_do(w, pick->fault, side, length(w, pick));
}

/* One fault; often another close behind it, for the second one is what finds mistakes. */
void fault_next(struct world *w)
{
    int64_t gap = rng_range(&w->rng, w->fault_gap / 20, 2 * w->fault_gap);

    if (!w->faults)
        return;
    random_fault(w, (unsigned)rng_below(&w->rng, 2));
    if (rng_permille(&w->rng, 350)) {
        w->count[N_DOUBLE]++;
        gap = rng_log(&w->rng, 20 * US, 400 * MS);
    }
    if (w->now + gap >= w->phase_end)
        return;
    world_at(w, w->now + gap, H_FAULT, 0, 0, 0);
    if (rng_permille(&w->rng, 700)) /* nobody sees what breaks while the guest says nothing */
        world_at(w, w->now + gap - 200 * MS, H_BUSY, 0, (uint64_t)rng_log(&w->rng, 300 * MS, 5 * SEC), 0);
}

void fault_heal(struct world *w)
{
    w->cut_until[0] = w->cut_until[1] = w->spike_until = 0;
    w->arbiter.up = true;
    w->lose_answers = 0;
    for (unsigned i = 0; i < 2; i++) {
        struct side *d = &w->side[i];
        d->arbiter_cut = d->saver_slow_until = d->saver_fails_until = d->qmp_slow_until = d->hangs_until = 0;
        d->fail_capture = d->fail_start = d->fail_load = false;
        d->crash_in = 0;
        d->host_paused = d->daemon_paused = 0;
        if (!d->host_up)
            world_at(w, w->now + 500 * MS, H_HOST_START, i, 0, 0);
        else if (!d->daemon_up)
            world_at(w, w->now + 500 * MS, H_DAEMON_START, i, 0, 0);
        side_update(w, d);
        qemu_update(w, d);
    }
    net_update(w);
    world_at(w, w->now + SETTLE - 6 * SEC, H_BUSY, 0, 7 * SEC, 0);
}

/* The guest is gone. That is forgiven only if more than one thing broke while it was not protected. */
static void lost(struct world *w)
{
    bool excused = w->guest_ended || w->hard_unprotected || w->hard_faults >= 2 || w->side[0].load_fault ||
                   w->side[1].load_fault;

    if (!excused)
        world_fail(w, "oracle d: the guest is lost after a single fault: a is %s (%s), b is %s (%s)",
                   session_state_name(w->side[0].state), w->side[0].s.reason, session_state_name(w->side[1].state),
                   w->side[1].s.reason);
    w->count[N_LOST_EXCUSED]++;
    w->world_end = w->now;
}

void fault_phase(struct world *w)
{
    if (w->scenario)
        return;
    if (w->faults) {
        w->faults = false;
        fault_heal(w);
        world_at(w, w->now + SETTLE, H_PHASE, 0, 0, 0);
        return;
    }
    oracle_settled(w);
    w->hard_faults = 0;
    w->hard_unprotected = false;
    w->side[0].load_fault = w->side[1].load_fault = false;
    w->faults = true;
    w->fault_gap = rng_log(&w->rng, 2 * SEC, 400 * SEC);
    w->phase_end = w->now + rng_log(&w->rng, 30 * SEC, 3600 * SEC);
    world_at(w, w->phase_end, H_PHASE, 0, 0, 0);
    world_at(w, w->now + rng_range(&w->rng, 0, w->fault_gap), H_FAULT, 0, 0, 0);
}

/* A supervisor for QEMU, and an operator who wants the guest protected. */
static void mend(struct world *w, struct side *d)
{
    bool useless = d->daemon_up && (d->state == ST_OUTDATED || d->state == ST_BROKEN);

    if (!d->host_up)
        return;
    if (useless && w->now - d->outdated_since > 3 * SEC && d->q.alive)
        qemu_kill(w, d, false);
    if (!d->q.alive && d->start_qemu_at == 0)
        d->start_qemu_at = w->now + rng_range(&w->rng, 100 * MS, 8 * SEC);
    if (!d->q.alive && d->start_qemu_at <= w->now)
        qemu_boot(w, d, true, 0);
    if (d->daemon_up && d->state == ST_NONE && d->q.ran && d->q.qmp_life == d->life && !d->q.ended &&
        w->now - d->none_since > 2 * SEC)
        operator_says(w, d, SE_OP_PAIR, d->adopt);
}

void fault_poll(struct world *w)
{
    mend(w, &w->side[0]);
    mend(w, &w->side[1]);
    w->lost_polls = oracle_copy_exists(w) ? 0 : w->lost_polls + 1;
    if (w->lost_polls > 10) {
        lost(w);
        return;
    }
    world_at(w, w->now + SEC, H_POLL, 0, 0, 0);
}

/* Times and bounds differ from world to world; the default ones are the most frequent. */
static void draw_config(struct world *w)
{
    struct session_config *c = &w->config;
    static const int64_t beats[] = { 20 * MS, 20 * MS, 50 * MS, 100 * MS, 200 * MS };
    static const int64_t epochs[] = { 100 * MS, 100 * MS, 250 * MS, 500 * MS, 1000 * MS };

    session_config_default(c);
    c->heartbeat_ns = beats[rng_below(&w->rng, 5)];
    c->peer_timeout_ns = 5 * c->heartbeat_ns;
    c->epoch_max_ns = epochs[rng_below(&w->rng, 5)];
    c->nr_slots = 2 + (unsigned)rng_below(&w->rng, 3);
    c->inflight_max = 1 + (unsigned)rng_below(&w->rng, 4);
    c->precopy_pages = 1 + (unsigned)rng_below(&w->rng, 6);
    c->sync_pages = (unsigned)rng_below(&w->rng, 8);
    c->sync_rounds_max = 1 + (unsigned)rng_below(&w->rng, 5);
    c->pause_permille = 20u << rng_below(&w->rng, 4);
    w->slot_pages = 3 + (unsigned)rng_below(&w->rng, 14);
    w->resume_events = rng_permille(&w->rng, 300);
    w->latency = rng_log(&w->rng, 50 * US, 4 * MS);
    w->jitter = w->latency / 2;
    w->out_gap = rng_log(&w->rng, 50 * MS, 8 * SEC);
    w->ask_timeout = rng_log(&w->rng, 100 * MS, 2 * SEC);
}

void world_begin(struct world *w, uint64_t seed, uint64_t number)
{
    struct node *nodes = w->nodes;
    struct msg *msgs[2 * CONNS_MAX];
    uint64_t count[N_NUM], states[ST_NUM], crashes[ST_NUM], deaths[ST_NUM];
    bool tracing = w->tracing, outside = w->outside;

    for (unsigned i = 0; i < 2 * CONNS_MAX; i++)
        msgs[i] = w->conn[i / 2].to[i % 2].msg;
    memcpy(count, w->count, sizeof(count));
    memcpy(states, w->states, sizeof(states));
    memcpy(crashes, w->crashes, sizeof(crashes));
    memcpy(deaths, w->deaths, sizeof(deaths));
    memset(w, 0, sizeof(*w));
    memcpy(w->count, count, sizeof(count));
    memcpy(w->states, states, sizeof(states));
    memcpy(w->crashes, crashes, sizeof(crashes));
    memcpy(w->deaths, deaths, sizeof(deaths));
    for (unsigned i = 0; i < 2 * CONNS_MAX; i++)
        w->conn[i / 2].to[i % 2].msg = msgs[i];
    w->nodes = nodes;
    w->tracing = tracing;
    w->outside = outside;
    w->seed = seed;
    w->number = number;
    w->rng.s = seed * 0x9e3779b97f4a7c15ull ^ (number + 1) * 0xd1342543de82ef95ull;
    rng_next(&w->rng);
    w->count[N_WORLDS]++;
    w->now = SEC;
    w->world_end = NEVER;
    for (unsigned i = 0; i < DUE_NUM; i++)
        w->due[i] = NEVER;
    w->due_nr = DUE_NET(0, 0);
    oracle_reset(w);
    draw_config(w);
    w->arbiter.up = true;
    for (unsigned i = 0; i < 2; i++) {
        struct side *d = &w->side[i];
        d->id = i;
        d->conn = -1;
        d->store.filling = -1;
        d->host_up = true;
        d->disk_paired = true;
        d->clock_offset = (int64_t)rng_below(&w->rng, 1000000) * SEC;
        qemu_boot(w, d, i == 1, i == 0 ? oracle_node(w, 0) : 0);
        world_at(w, w->now + rng_range(&w->rng, 0, SEC), H_DAEMON_START, i, 0, 0);
    }
    w->writer = w->side[0].q.id;
    w->visible = w->side[0].q.node;
    world_at(w, w->now + SETTLE - 6 * SEC, H_BUSY, 0, 7 * SEC, 0);
    world_at(w, w->now + SEC, H_POLL, 0, 0, 0);
    world_at(w, w->now + SETTLE, H_PHASE, 0, 0, 0);
}
