/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * side.c - polluxd around the real session: mailbox, saver, sender, store, and what each action does
 *
 * Follows daemon.c, peer.c, store.c and sender.c in what the session can see of them: events one by one, actions at
 * once and in order, answers that a dead QEMU never gives, records of another generation refused.
 */
#include "sim.h"

#include <string.h>

#define ENCODE (400 * US)
#define ON_THE_WIRE (300 * US)

void side_update(struct world *w, struct side *d)
{
    int64_t awake = side_awake(d);
    int64_t tick = session_deadline(&d->s);
    bool room = net_queued(w, d) < BACKPRESSURE;

#define DUE(k, on, at) w->due[DUE_SIDE(d->id, k)] = !(on) ? NEVER : (at) < awake ? awake : (at)
    DUE(K_SESSION, d->daemon_up && tick != NEVER, tick - d->clock_offset);
    DUE(K_INBOX, d->daemon_up && d->inbox_nr, w->now);
    DUE(K_SENDER, d->daemon_up && d->job_nr && room, d->job_at);
    DUE(K_SAVER, d->daemon_up && d->save_nr, d->save_at);
#undef DUE
    qemu_update(w, d);
}

static void step(struct world *w, struct side *d, const struct session_event *e);

void side_post(struct world *w, struct side *d, const struct session_event *e)
{
    if (!d->daemon_up)
        return;
    if (!d->settling && d->inbox_nr == 0 && side_awake(d) <= w->now) {
        d->settling = true;
        step(w, d, e);
        d->settling = false;
        side_settle(w, d);
        return;
    }
    if (d->inbox_nr == INBOX_MAX) {
        world_fail(w, "simulator: mailbox is full");
        return;
    }
    d->inbox[(d->inbox_head + d->inbox_nr++) % INBOX_MAX] = *e;
    side_settle(w, d);
}

void side_say(struct world *w, struct side *d, enum session_event_type type)
{
    side_post(w, d, &(struct session_event){ .type = type });
}

/* ---- sender ---- */

static void next_job(struct world *w, struct side *d)
{
    d->job_at = w->now + ENCODE / 4 + (int64_t)rng_below(&w->rng, ENCODE);
}

static void add_job(struct world *w, struct side *d, const struct session_action *a)
{
    if (d->job_nr == JOBS_MAX) {
        side_say(w, d, SE_CAPTURE_FAILED);
        return;
    }
    d->job[(d->job_head + d->job_nr++) % JOBS_MAX] =
        (struct job){ .epoch = a->epoch, .slot = a->slot, .first = a->first, .last = a->last, .full = a->full };
    if (d->job_nr == 1)
        next_job(w, d);
}

void side_job_done(struct world *w, struct side *d)
{
    struct job j = d->job[d->job_head];
    struct msg m = { .generation = d->s.generation, .epoch = j.epoch, .full = j.full, .last = j.last };
    int64_t wire = ON_THE_WIRE / 4 + (int64_t)rng_below(&w->rng, ON_THE_WIRE);

    d->job_head = (d->job_head + 1) % JOBS_MAX;
    d->job_nr--;
    if (d->job_nr)
        next_job(w, d);
    if (j.first) {
        m.type = M_BEGIN;
        net_send(w, d, &m, 0);
    }
    m.type = M_PART;
    m.slot = d->slot[j.slot];
    net_send(w, d, &m, wire);
    memset(&d->slot[j.slot].pages, 0xff, sizeof(d->slot[j.slot].pages)); /* a late reader would find nonsense */
    side_post(w, d, &(struct session_event){ .type = SE_SLOT_FREE, .slot = j.slot });
    side_update(w, d);
}

/* ---- store ---- */

static void store_discard(struct side *d)
{
    if (d->store.filling >= 0)
        d->store.slot[d->store.filling].state = STORE_FREE;
    d->store.filling = -1;
    d->store.in_epoch = false;
}

static int store_find(const struct side *d, uint64_t epoch)
{
    for (unsigned i = 0; i < STORE_SLOTS; i++) {
        enum store_state s = d->store.slot[i].state;
        if (d->store.slot[i].epoch == epoch && (s == STORE_WHOLE || s == STORE_APPLYING || s == STORE_APPLIED))
            return (int)i;
    }
    return -1;
}

static void store_release(struct side *d, uint64_t epoch)
{
    for (unsigned i = 0; i < STORE_SLOTS; i++) {
        if (d->store.slot[i].state == STORE_APPLIED && d->store.slot[i].epoch < epoch)
            d->store.slot[i].state = STORE_FREE;
    }
}

static bool store_slot_taken(struct side *d)
{
    struct store *st = &d->store;

    for (unsigned i = 0; i < STORE_SLOTS && st->filling < 0; i++) {
        if (st->slot[i].state == STORE_FREE) {
            st->slot[i] = (struct store_slot){ .state = STORE_FILLING, .epoch = st->epoch };
            st->filling = (int)i;
        }
    }
    return st->filling >= 0;
}

static void apply(struct world *w, struct side *d, unsigned slot)
{
    struct cmd c = { .type = CMD_APPLY, .slot = slot, .arena = d->store.id, .life = d->life };

    qemu_ask(w, d, &c);
}

/* @return false: no slot is free */
static bool take_part(struct world *w, struct side *d, const struct msg *m)
{
    struct store *st = &d->store;
    struct session_event broken = { .type = SE_PEER_ERROR, .code = 8 };
    struct store_slot *slot;
    unsigned at;

    if (!st->open || !st->in_epoch || m->epoch != st->epoch) {
        side_post(w, d, &broken);
        return true;
    }
    if (!store_slot_taken(d))
        return false;
    at = (unsigned)st->filling;
    slot = &st->slot[at];
    for (unsigned i = 0; i < PAGES; i++) {
        if (m->slot.pages.mask & (1u << i))
            slot->slot.pages.version[i] = m->slot.pages.version[i];
    }
    slot->slot.pages.mask |= m->slot.pages.mask;
    if (m->last) {
        slot->slot.device = m->slot.device;
        slot->state = STORE_WHOLE;
        st->filling = -1;
        st->in_epoch = false;
        d->rx_whole = m->epoch;
        side_post(w, d, &(struct session_event){ .type = SE_RX_COMPLETE, .epoch = m->epoch, .flag = m->full });
    } else if (m->full) {
        slot->state = STORE_PART;
        st->filling = -1;
        apply(w, d, at);
    }
    return true;
}

/* QEMU has applied a slot. Older slots go as soon as nothing needs them (see session-changes.md on store.c). */
void side_applied(struct world *w, struct side *d, unsigned slot, uint64_t store)
{
    struct store_slot *s = &d->store.slot[slot];
    uint64_t epoch = s->epoch;

    if (!d->store.open || d->store.id != store)
        return;
    if (s->state == STORE_PART) {
        s->state = STORE_FREE;
    } else if (s->state == STORE_APPLYING) {
        s->state = STORE_APPLIED;
        store_release(d, d->s.rx_acked);
        side_post(w, d, &(struct session_event){ .type = SE_APPLIED, .epoch = epoch });
    }
    if (d->rx_waiting) {
        d->rx_waiting = false;
        net_update(w);
        side_post(w, d, &(struct session_event){ .type = SE_RX_PAUSED, .flag = false });
    }
}

/* ---- records ---- */

static void link_ended(struct world *w, struct side *d)
{
    store_discard(d);
    side_say(w, d, SE_LINK_DOWN);
}

bool side_receive(struct world *w, struct side *d, const struct msg *m)
{
    struct session_event e = { .generation = m->generation, .epoch = m->epoch, .code = m->code, .flag = m->flag };
    bool bound = m->type >= M_BEGIN;

    if (!d->daemon_up)
        return true;
    if (m->type == M_FIN) {
        link_ended(w, d);
        return true;
    }
    if (m->type == M_ESTABLISHED) {
        side_say(w, d, SE_LINK_UP);
        return true;
    }
    if (m->type == M_PART && d->store.open && d->store.in_epoch && !store_slot_taken(d))
        return false;
    side_say(w, d, SE_PEER_ALIVE);
    if (d->conn < 0 || !d->daemon_up)
        return true;
    if (bound && m->generation != d->s.generation) {
        e = (struct session_event){ .type = SE_PEER_ERROR, .code = 8 };
        side_post(w, d, &e);
        return true;
    }
    switch (m->type) {
    case M_HELLO: e.type = SE_PEER_HELLO; break;
    case M_LAYOUT: e.type = SE_PEER_LAYOUT; break;
    case M_REFUSE: e.type = SE_PEER_REFUSED; break;
    case M_ACK:
        e.type = SE_ACK;
        d->acked_rx = m->epoch;
        break;
    case M_GONE: e.type = SE_PEER_GONE; break;
    case M_ENDED: e.type = SE_PEER_ENDED; break;
    case M_BEGIN:
        e = (struct session_event){ .type = SE_RX_BEGIN, .epoch = m->epoch, .flag = m->full };
        if (!d->store.open || d->store.in_epoch)
            e = (struct session_event){ .type = SE_PEER_ERROR, .code = 8 };
        d->store.in_epoch = true;
        d->store.epoch = m->epoch;
        d->store.full = m->full;
        break;
    case M_PART: return take_part(w, d, m);
    default: return true;
    }
    side_post(w, d, &e);
    return true;
}

/* ---- actions ---- */

static void drop_link(struct world *w, struct side *d)
{
    store_discard(d);
    net_close(w, d, d->parting);
    d->parting = false;
}

static void send(struct world *w, struct side *d, enum msg_type type, const struct session_action *a)
{
    struct msg m = { .type = type, .generation = d->s.generation, .epoch = a->epoch, .code = a->code, .flag = a->flag };

    if (type == M_HELLO)
        m.generation = a->generation;
    net_send(w, d, &m, 0);
}

static void save(struct world *w, struct side *d, const struct session_action *a)
{
    if (d->save_nr == SAVES_MAX) {
        side_post(w, d, &(struct session_event){ .type = SE_DONE, .serial = a->serial, .error = -16 });
        return;
    }
    d->save[(d->save_head + d->save_nr++) % SAVES_MAX] =
        (struct save){ .serial = a->serial, .persist = a->persist, .paired = d->s.paired };
    if (d->save_nr == 1)
        d->save_at = w->now + (w->now < d->saver_slow_until ? rng_range(&w->rng, 50 * MS, 2 * SEC)
                                                            : rng_range(&w->rng, 500 * US, 8 * MS));
}

static void write_record(struct side *d, const struct save *s)
{
    d->disk = s->persist;
    d->disk_paired = s->paired;
}

void side_saved(struct world *w, struct side *d)
{
    struct save s = d->save[d->save_head];
    bool fails = w->now < d->saver_fails_until;

    d->save_head = (d->save_head + 1) % SAVES_MAX;
    d->save_nr--;
    if (d->save_nr)
        d->save_at = w->now + rng_range(&w->rng, 500 * US, 8 * MS);
    if (!fails || rng_permille(&w->rng, 300)) /* renamed, but not known to last: may be there all the same */
        write_record(d, &s);
    if (fails)
        w->count[N_SAVE_FAILURES]++;
    side_post(w, d, &(struct session_event){ .type = SE_DONE, .serial = s.serial, .error = fails ? -28 : 0 });
    side_update(w, d);
}

static void checkpoint_start(struct world *w, struct side *d, const struct session_action *a)
{
    struct cmd c = { .type = CMD_START, .serial = a->serial, .arena = ++w->ids, .life = d->life, .active = a->flag };

    if (a->flag) {
        w->count[N_RESYNCS]++;
        d->arena = c.arena;
        d->job_nr = 0;
        d->acked_rx = 0;
    } else {
        d->store = (struct store){ .open = true, .id = c.arena, .filling = -1 };
        d->rx_whole = 0;
    }
    qemu_ask(w, d, &c);
}

static void checkpoint_stop(struct world *w, struct side *d, const struct session_action *a)
{
    struct cmd c = { .type = CMD_STOP_ROLE, .serial = a->serial, .life = d->life };

    d->job_nr = 0;
    d->arena = 0;
    d->store.open = false;
    if (d->rx_waiting) {
        d->rx_waiting = false;
        net_update(w);
    }
    qemu_ask(w, d, &c);
}

static void apply_epoch(struct world *w, struct side *d, uint64_t epoch)
{
    int slot = d->store.open ? store_find(d, epoch) : -1;

    if (slot < 0) {
        if (epoch > d->rx_whole)
            return; /* mutants ack what is not there yet */
        world_fail(w, "%c: an acked epoch is not in the store", 'a' + d->id);
        return;
    }
    d->store.slot[slot].state = STORE_APPLYING;
    apply(w, d, (unsigned)slot);
    store_release(d, epoch);
}

static void load(struct world *w, struct side *d, const struct session_action *a)
{
    int slot = d->store.open ? store_find(d, a->epoch) : -1;
    struct cmd c = { .type = CMD_LOAD, .serial = a->serial, .life = d->life, .arena = d->store.id, .slot = (unsigned)slot };

    if (slot < 0)
        side_post(w, d, &(struct session_event){ .type = SE_DONE, .serial = a->serial, .error = -2 });
    else
        qemu_ask(w, d, &c);
}

static void ask_qemu(struct world *w, struct side *d, const struct session_action *a, enum cmd_type type)
{
    struct cmd c = { .type = type, .serial = a->serial, .epoch = a->epoch, .slot = a->slot, .precopy = a->precopy,
                     .append = a->append, .life = d->life, .arena = d->arena, .generation = d->s.generation,
                     .mode = (enum session_output)a->code };

    qemu_ask(w, d, &c);
}

static void perform(struct world *w, struct side *d, const struct session_action *a)
{
    switch (a->type) {
    case SA_MOVED:
    case SA_NOTE:
    case SA_ANNOUNCE: break;
    case SA_OP_REPLY: d->adopt = a->code == 106; break;
    case SA_CONNECT: net_connect(w, d); break;
    case SA_DISCONNECT: drop_link(w, d); break;
    case SA_SEND_HELLO:
        send(w, d, M_HELLO, a);
        send(w, d, M_LAYOUT, &(struct session_action){ .flag = true });
        break;
    case SA_SEND_REFUSE:
        send(w, d, M_REFUSE, a);
        d->parting = true;
        drop_link(w, d);
        break;
    case SA_SEND_HEARTBEAT: send(w, d, M_HEARTBEAT, a); break;
    case SA_SEND_ACK: send(w, d, M_ACK, a); break;
    case SA_SEND_APPLIED: send(w, d, M_APPLIED, a); break;
    case SA_SEND_GONE:
    case SA_SEND_ENDED:
        send(w, d, a->type == SA_SEND_GONE ? M_GONE : M_ENDED, a);
        d->parting = true;
        break;
    case SA_CHECKPOINT_START: checkpoint_start(w, d, a); break;
    case SA_CHECKPOINT_STOP: checkpoint_stop(w, d, a); break;
    case SA_CAPTURE: ask_qemu(w, d, a, CMD_CAPTURE); break;
    case SA_SEND_SLOT: add_job(w, d, a); break;
    case SA_OUTPUT: ask_qemu(w, d, a, CMD_OUTPUT); break;
    case SA_RELEASE: ask_qemu(w, d, a, CMD_RELEASE); break;
    case SA_APPLY: apply_epoch(w, d, a->epoch); break;
    case SA_LOAD: load(w, d, a); break;
    case SA_RUN: ask_qemu(w, d, a, CMD_RUN); break;
    case SA_STOP_GUEST: ask_qemu(w, d, a, CMD_STOP); break;
    case SA_SAVE: save(w, d, a); break;
    case SA_ASK: register_ask(w, d, a); break;
    case SA_EXIT:
        w->count[N_SHUTDOWNS]++;
        side_crash(w, d, false);
        world_at(w, w->now + rng_range(&w->rng, 50 * MS, 2 * SEC), H_DAEMON_START, d->id, 0, 0);
        break;
    case SA_NUM: break;
    }
}

static bool dull(enum session_event_type type)
{
    return type == SE_PEER_ALIVE || type == SE_TICK;
}

static void step(struct world *w, struct side *d, const struct session_event *e)
{
    struct session_actions acts;
    uint64_t life = d->life;

    session_step(&d->s, e, side_now(w, d), &acts);
    w->count[N_STEPS]++;
    if (w->tracing || !dull(e->type) || acts.nr)
        world_trace(w, TRACE_EVENT, d->id, e->type, e->epoch ? e->epoch : e->serial, e->generation,
                    e->type == SE_DONE && e->error ? "failed" : "");
    oracle_step(w, d, e);
    if (w->scenario)
        scenario_event(w, d, e);
    for (unsigned i = 0; i < acts.nr && d->life == life && d->daemon_up && !w->failed; i++) {
        const struct session_action *a = &acts.list[i];
        if (a->type != SA_SEND_HEARTBEAT)
            world_trace(w, TRACE_ACTION, d->id, a->type, a->epoch ? a->epoch : a->expect ? a->expect : a->serial,
                        a->type == SA_OUTPUT ? (uint64_t)a->code : a->next, a->text);
        oracle_action(w, d, a);
        perform(w, d, a);
        if (w->scenario && d->life == life)
            scenario_action(w, d, a);
        if (d->crash_in && --d->crash_in == 0 && d->life == life) {
            w->count[N_CRASH_AT_ACTION]++;
            fault_do(w, F_DAEMON_CRASH, d->id, 0);
        }
    }
}

void side_settle(struct world *w, struct side *d)
{
    struct session_event e;

    if (d->settling)
        return;
    d->settling = true;
    while (d->inbox_nr && d->daemon_up && side_awake(d) <= w->now && !w->failed) {
        e = d->inbox[d->inbox_head];
        d->inbox_head = (d->inbox_head + 1) % INBOX_MAX;
        d->inbox_nr--;
        step(w, d, &e);
    }
    d->settling = false;
    side_update(w, d);
}

void side_tick(struct world *w, struct side *d)
{
    if (session_deadline(&d->s) <= side_now(w, d))
        side_say(w, d, SE_TICK);
    else
        side_update(w, d);
}

void side_arbiter(struct world *w, struct side *d, uint64_t id, enum session_grant grant)
{
    const struct ask *ask = &w->ask[id % ASKS_MAX];
    struct session_event e = { .type = SE_ARBITER, .code = grant };

    d->ask = 0;
    if (grant == GRANT_UNREACHABLE) {
        w->count[N_UNREACHABLE]++;
    } else {
        e.generation = ask->generation;
        e.flag = ask->holder == d->id + 1;
    }
    side_post(w, d, &e);
}

/* ---- the process ---- */

void side_start(struct world *w, struct side *d)
{
    struct session_config config = w->config;

    d->daemon_up = true;
    d->life = ++w->ids;
    config.boot = rng_next(&w->rng);
    config.instance[0] = (uint8_t)(d->id + 1);
    session_init(&d->s, &config);
    d->state = ST_NONE;
    d->last_serial = 0;
    d->vain_ticks = 0;
    world_trace(w, TRACE_WORLD, d->id, 0, d->life, d->disk.generation, "polluxd starts");
    side_post(w, d, &(struct session_event){ .type = SE_START, .persist = d->disk, .flag = d->disk_paired });
    if (d->q.alive)
        world_at(w, w->now + rng_range(&w->rng, 2 * MS, 50 * MS), H_ATTACH, d->id, d->life, 0);
}

void side_attach(struct world *w, struct side *d)
{
    struct session_event e = { .type = SE_GUEST_ATTACHED, .guest = d->q.ran ? GUEST_RUNNING : GUEST_FRESH };

    e.flag = d->q.ran && !d->q.buffered;

    if (!d->daemon_up || !d->q.alive || d->q.ended || d->q.qmp_life == d->life)
        return;
    if (d->hangs_until > w->now) { /* it does not even greet */
        world_at(w, d->hangs_until + 500 * MS, H_ATTACH, d->id, d->life, 0);
        return;
    }
    d->q.qmp_life = d->life;
    side_post(w, d, &e);
}

/* polluxd dies; with its host or alone. What it had told the saver may be on disk, in order, or not. */
void side_crash(struct world *w, struct side *d, bool host)
{
    unsigned written = d->save_nr ? (unsigned)rng_below(&w->rng, d->save_nr + 1) : 0;

    if (!d->daemon_up)
        return;
    d->daemon_up = false;
    for (unsigned i = 0; i < written; i++)
        write_record(d, &d->save[(d->save_head + i) % SAVES_MAX]);
    d->life = ++w->ids;
    d->inbox_nr = d->save_nr = d->job_nr = 0;
    d->arena = 0;
    d->ask = 0;
    d->store.open = d->parting = false;
    d->crash_in = 0;
    d->daemon_paused = 0;
    world_trace(w, TRACE_WORLD, d->id, 0, 0, 0, host ? "host dies" : "polluxd dies");
    if (host)
        net_lose(w, d);
    else
        net_close(w, d, false);
    if (!host)
        qemu_polluxd_gone(w, d);
    side_update(w, d);
}
