/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qemu.c - a fake QEMU: a guest that sends numbered packets, captures, its checkpoint-buffer, QMP in order
 *
 * The guest's state is the last packet it sent (a node in the world's history) and a version of each of a
 * few pages. RAM is captured, sent and applied page by page, and a load compares it with what it was at the
 * pause: so a slot that was not sent, sent twice or overwritten too early is seen as what it is, a broken guest.
 */
#include "sim.h"

#include <errno.h>
#include <string.h>

static uint64_t hash_ram(const struct qemu *q)
{
    uint64_t h = 1469598103934665603ull;

    for (unsigned i = 0; i < PAGES; i++)
        h = (h ^ q->ram[i]) * 1099511628211ull;
    return h;
}

static void touch(struct world *w, struct qemu *q, unsigned nr)
{
    uint64_t r = rng_next(&w->rng);

    for (unsigned i = 0; i < nr; i++, r >>= 4) {
        unsigned page = r & (PAGES - 1);
        q->ram[page] = ++w->version;
        q->dirty |= 1u << page;
    }
}

/* The guest ran since the last look: some of its pages changed. */
static void live(struct world *w, struct qemu *q)
{
    if (q->running)
        touch(w, q, (unsigned)rng_below(&w->rng, w->now < q->burst_until ? 12 : 4));
}

static int64_t duration(struct world *w, const struct side *d, const struct cmd *c)
{
    static const int64_t typical[CMD_NUM] = {
        [CMD_START] = 2 * MS, [CMD_STOP_ROLE] = 200 * US, [CMD_CAPTURE] = 300 * US, [CMD_OUTPUT] = 50 * US,
        [CMD_RELEASE] = 40 * US, [CMD_APPLY] = 100 * US, [CMD_LOAD] = 8 * MS, [CMD_RUN] = 200 * US,
        [CMD_STOP] = 200 * US,
    };
    int64_t t = typical[c->type];

    t += (int64_t)rng_below(&w->rng, (uint64_t)t);
    return w->now < d->qmp_slow_until ? t * 500 : t;
}

void qemu_update(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;
    bool on = q->alive && d->host_up;
    int64_t qmp = on && q->cmd_nr ? q->cmd_at : NEVER;
    int64_t out = on && q->running ? q->out_at : NEVER;

    int64_t stands = d->hangs_until > d->host_paused ? d->hangs_until : d->host_paused;

    w->due[DUE_SIDE(d->id, K_QMP)] = qmp < stands ? stands : qmp;
    w->due[DUE_SIDE(d->id, K_OUTPUT)] = out < stands ? stands : out;
}

void qemu_hang(struct world *w, struct side *d, int64_t length)
{
    if (!d->q.alive)
        return;
    d->hangs_until = w->now + length;
    d->hangs_since = w->now;
    world_at(w, w->now + CAPTURE_DEADLINE, H_QMP_DEADLINE, d->id, d->q.id, 0);
    qemu_update(w, d);
}

void qemu_deadline(struct world *w, struct side *d, uint64_t id)
{
    struct qemu *q = &d->q;

    if (!q->alive || q->id != id || d->hangs_until <= w->now || !d->daemon_up || q->qmp_life != d->life)
        return;
    for (unsigned i = 0; i < q->cmd_nr; i++) {
        const struct cmd *c = &q->cmd[(q->cmd_head + i) % CMDS_MAX];
        if (c->type == CMD_CAPTURE && c->life == d->life) {
            w->count[N_CAPTURE_FAILURES]++;
            side_post(w, d, &(struct session_event){ .type = SE_CAPTURE_FAILED, .error = -ETIMEDOUT });
            return;
        }
        if (c->type == CMD_APPLY && c->life == d->life && w->now - d->hangs_since >= APPLY_DEADLINE) {
            d->load_fault |= d->ask != 0; /* an ask on its way may still win what nobody can load any more */
            qemu_hang_up(w, d);
            return;
        }
    }
    world_at(w, w->now + 500 * MS, H_QMP_DEADLINE, d->id, id, 0); /* nothing was asked yet */
}

static void next_output(struct world *w, struct qemu *q)
{
    int64_t gap = w->now < q->burst_until ? 2 * MS : w->now < w->busy_until ? 20 * MS : w->out_gap;

    q->out_at = w->now + rng_range(&w->rng, gap / 8, 2 * gap);
}

void qemu_boot(struct world *w, struct side *d, bool fresh, uint64_t node)
{
    struct qemu *q = &d->q;

    memset(q, 0, sizeof(*q));
    d->hangs_until = 0;
    q->alive = true;
    q->ran = q->running = !fresh;
    q->id = ++w->ids;
    q->node = node;
    q->mode = OUTPUT_PASS; /* no buffer yet */
    for (unsigned i = 0; i < PAGES; i++)
        q->ram[i] = ++w->version;
    next_output(w, q);
    d->start_qemu_at = 0;
    world_trace(w, TRACE_WORLD, d->id, 0, q->id, 0, fresh ? "QEMU starts, paused" : "QEMU starts, its guest runs");
    qemu_update(w, d);
    if (d->daemon_up)
        world_at(w, w->now + rng_range(&w->rng, 5 * MS, 500 * MS), H_ATTACH, d->id, d->life, 0);
}

static bool connected(const struct side *d)
{
    return d->daemon_up && d->q.alive && d->q.qmp_life == d->life;
}

void qemu_kill(struct world *w, struct side *d, bool silent)
{
    struct qemu *q = &d->q;
    bool told = connected(d) && !silent && !q->ended;

    q->alive = q->running = false;
    q->cmd_nr = 0;
    q->qmp_life = 0;
    world_trace(w, TRACE_WORLD, d->id, 0, q->id, 0, "QEMU is gone");
    qemu_update(w, d);
    if (told)
        side_say(w, d, SE_GUEST_LOST);
}

/* The guest shuts itself down; QEMU ends a moment later. */
void qemu_shutdown(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;

    if (!q->alive || !q->running)
        return;
    q->running = false;
    q->ended = true;
    w->guest_ended = true;
    world_trace(w, TRACE_WORLD, d->id, 0, 0, 0, "the guest shuts down");
    if (connected(d))
        side_say(w, d, SE_GUEST_ENDED);
    world_at(w, w->now + rng_range(&w->rng, 1 * MS, 300 * MS), H_QEMU_GONE, d->id, q->id, 0);
    qemu_update(w, d);
}

/* The QMP connection ends, QEMU does not: polluxd takes it for lost, and finds it again. */
void qemu_hang_up(struct world *w, struct side *d)
{
    if (!connected(d))
        return;
    qemu_polluxd_gone(w, d);
    side_say(w, d, SE_GUEST_LOST);
    world_at(w, w->now + 500 * MS, H_ATTACH, d->id, d->life, 0);
}

/* polluxd died: what it had written to the QMP socket may still be read, in order. */
void qemu_polluxd_gone(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;

    if (q->cmd_nr)
        q->cmd_nr = 1 + (unsigned)rng_below(&w->rng, q->cmd_nr);
    q->qmp_life = 0;
    qemu_update(w, d);
}

static void answer(struct world *w, struct side *d, const struct cmd *c, int error)
{
    struct session_event e = { .type = SE_DONE, .serial = c->serial, .error = error };

    if (connected(d) && c->life == d->life)
        side_post(w, d, &e);
}

/* An answer to a command that could not even be said, or that failed. */
static void refuse(struct world *w, struct side *d, const struct cmd *c)
{
    if (c->type == CMD_CAPTURE)
        side_say(w, d, SE_CAPTURE_FAILED);
    else if (c->type == CMD_APPLY)
        side_say(w, d, SE_GUEST_LOST);
    else if (c->type != CMD_RELEASE)
        side_post(w, d, &(struct session_event){ .type = SE_DONE, .serial = c->serial, .error = -5 });
}

void qemu_ask(struct world *w, struct side *d, const struct cmd *c)
{
    struct qemu *q = &d->q;

    if (!connected(d) || q->cmd_nr == CMDS_MAX) {
        refuse(w, d, c);
        return;
    }
    q->cmd[(q->cmd_head + q->cmd_nr) % CMDS_MAX] = *c;
    if (q->cmd_nr++ == 0) {
        q->cmd_at = w->now + duration(w, d, c);
        qemu_update(w, d);
    }
}

static void resume(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;

    if (q->running || q->ended)
        return;
    q->running = true;
    next_output(w, q);
}

/* ---- output ---- */

static void send_held(struct world *w, struct side *d, uint64_t upto, uint64_t generation)
{
    struct qemu *q = &d->q;

    while (q->held_nr && q->held[q->held_head].epoch <= upto) {
        w->count[N_HELD_RELEASED]++;
        oracle_release(w, d, q->held[q->held_head].node, generation);
        q->held_head = (q->held_head + 1) % HELD_MAX;
        q->held_nr--;
    }
}

static void wake(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;
    bool half = q->held_nr == HELD_MAX / 2;

    if (q->role != QEMU_ACTIVE || (q->woke_epoch == q->epoch && !half))
        return;
    q->woke_epoch = q->epoch;
    if (d->daemon_up && q->wake_life == d->life)
        side_say(w, d, SE_OUTPUT_WAITS);
}

void qemu_output(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;

    q->node = oracle_node(w, q->node);
    touch(w, q, 1);
    next_output(w, q);
    if (q->mode == OUTPUT_PASS) {
        oracle_release(w, d, q->node, q->mode_generation);
    } else if (q->mode == OUTPUT_HOLD) {
        q->held[(q->held_head + q->held_nr++) % HELD_MAX] = (struct held){ q->node, q->epoch };
        wake(w, d);
        if (q->held_nr == HELD_MAX) {
            q->running = false;
            w->count[N_OUTPUT_FULL]++;
            world_trace(w, TRACE_WORLD, d->id, 0, 0, 0, "held output reached its limit");
            if (connected(d))
                side_say(w, d, SE_GUEST_STOPPED);
        }
    }
    qemu_update(w, d);
}

static void set_mode(struct world *w, struct side *d, const struct cmd *c)
{
    struct qemu *q = &d->q;

    q->mode = c->mode;
    q->mode_generation = c->generation;
    if (c->mode == OUTPUT_PASS)
        send_held(w, d, UINT64_MAX, c->generation);
    else if (c->mode == OUTPUT_DROP)
        q->held_nr = 0;
}

/* ---- the checkpoint commands ---- */

static void unpart(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;

    if (!q->part_paused)
        return;
    q->part_paused = false;
    if (q->part_resume)
        resume(w, d);
}

static int start(struct world *w, struct side *d, const struct cmd *c)
{
    struct qemu *q = &d->q;

    if (d->fail_start || q->role != QEMU_NONE || (!c->active && q->running)) {
        d->fail_start = false;
        return -5;
    }
    q->role = c->active ? QEMU_ACTIVE : QEMU_STANDBY;
    q->failed = q->part_paused = false;
    q->arena = c->arena;
    q->wake_life = c->life;
    q->epoch = 1;
    q->woke_epoch = 0;
    q->dirty = (1u << PAGES) - 1;
    if (!q->buffered) {
        q->buffered = true;
        q->mode = c->active ? OUTPUT_PASS : OUTPUT_HOLD;
    }
    (void)w;
    return 0;
}

static void stop_role(struct world *w, struct side *d)
{
    unpart(w, d);
    d->q.role = QEMU_NONE;
    d->q.failed = false;
    d->q.arena = 0;
}

static void capture_failed(struct world *w, struct side *d, const struct cmd *c)
{
    d->q.failed = true;
    unpart(w, d);
    w->count[N_CAPTURE_FAILURES]++;
    if (connected(d) && c->life == d->life)
        side_say(w, d, SE_CAPTURE_FAILED);
}

void qemu_part_timeout(struct world *w, struct side *d, uint64_t count)
{
    struct qemu *q = &d->q;
    struct cmd c = { .life = q->qmp_life };

    if (!q->alive || !q->part_paused || q->part_count != count)
        return;
    world_trace(w, TRACE_WORLD, d->id, 0, 0, 0, "a capture's next part did not come: the guest goes on");
    capture_failed(w, d, &c);
    qemu_update(w, d);
}

static void copy_dirty(struct world *w, struct qemu *q, struct content *to)
{
    unsigned room = w->slot_pages - (unsigned)__builtin_popcount(to->mask);

    for (unsigned i = 0; i < PAGES; i++) {
        if (!(q->dirty & (1u << i)) || (!(to->mask & (1u << i)) && room == 0))
            continue;
        room -= !(to->mask & (1u << i));
        to->mask |= 1u << i;
        to->version[i] = q->ram[i];
        q->dirty &= ~(1u << i);
    }
}

static void capture_part(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;

    w->count[N_PARTS]++;
    if (q->part_paused)
        return;
    q->part_paused = true;
    q->part_resume = q->running;
    q->running = false;
    world_at(w, w->now + 2 * SEC, H_PART_TIMEOUT, d->id, ++q->part_count, 0);
}

static void capture(struct world *w, struct side *d, const struct cmd *c)
{
    struct qemu *q = &d->q;
    struct slot scratch = { 0 }, *to = d->arena == c->arena ? &d->slot[c->slot] : &scratch;
    struct session_event e = { .type = SE_CAPTURED };

    live(w, q);
    if (d->fail_capture || q->role != QEMU_ACTIVE || q->failed || q->arena != c->arena || q->epoch != c->epoch) {
        d->fail_capture = false;
        capture_failed(w, d, c);
        return;
    }
    if (!c->append)
        to->pages.mask = 0;
    copy_dirty(w, q, &to->pages);
    e.capture.epoch = c->epoch;
    e.capture.slot = c->slot;
    e.capture.precopy = c->precopy;
    e.capture.complete = q->dirty == 0;
    e.capture.pages = (uint64_t)__builtin_popcount(to->pages.mask);
    e.capture.pause_ns = c->precopy ? 0 : 300 * US;
    if (c->precopy) {
        w->count[N_PRECOPIES]++;
        live(w, q);
    } else if (q->dirty) {
        capture_part(w, d);
    } else {
        to->device = (struct device){ q->node, hash_ram(q) };
        q->epoch++;
        w->count[N_EPOCHS]++;
        unpart(w, d);
        if (w->resume_events && q->running && connected(d) && c->life == d->life)
            side_say(w, d, SE_GUEST_RESUMED);
    }
    e.capture.remaining = (uint64_t)__builtin_popcount(q->dirty);
    if (connected(d) && c->life == d->life)
        side_post(w, d, &e);
}

static void apply(struct world *w, struct side *d, const struct cmd *c)
{
    struct qemu *q = &d->q;
    struct store_slot *from = &d->store.slot[c->slot];

    /* What a dead polluxd had asked for still finds its arena as it was. In one that was closed in life are no pages. */
    if (q->role != QEMU_STANDBY || d->store.id != c->arena || (!d->store.open && c->life == d->life))
        return;
    for (unsigned i = 0; i < PAGES; i++) {
        if (from->slot.pages.mask & (1u << i))
            q->ram[i] = from->slot.pages.version[i];
    }
    if (connected(d) && c->life == d->life)
        side_applied(w, d, c->slot, c->arena);
}

static int load(struct world *w, struct side *d, const struct cmd *c)
{
    struct qemu *q = &d->q;
    const struct device *device = &d->store.slot[c->slot].slot.device;

    if (d->fail_load || q->role != QEMU_STANDBY || d->store.id != c->arena) {
        d->load_fault |= d->fail_load;
        d->fail_load = false;
        q->load_failed = true;
        return -5;
    }
    if (hash_ram(q) != device->ram_hash)
        oracle_loaded(w, d, NULL);
    oracle_loaded(w, d, device);
    q->node = device->node;
    q->loaded = true;
    q->role = QEMU_NONE;
    return 0;
}

static int run(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;

    if (q->ended || q->load_failed || (!q->ran && !q->loaded))
        return -5;
    if (!q->ran)
        oracle_runs(w, d);
    q->ran = true;
    if (q->part_paused)
        q->part_resume = true;
    else
        resume(w, d);
    if (connected(d))
        side_say(w, d, SE_GUEST_RESUMED);
    return 0;
}

static void stop(struct side *d)
{
    d->q.part_resume = false;
    d->q.running = false;
}

static void release(struct world *w, struct side *d, const struct cmd *c)
{
    struct session_event e = { .type = SE_RELEASED, .epoch = c->epoch };

    send_held(w, d, c->epoch, c->generation);
    e.code = d->q.held_nr < HELD_MAX / 2;
    if (connected(d) && c->life == d->life)
        side_post(w, d, &e);
}

void qemu_cmd_done(struct world *w, struct side *d)
{
    struct qemu *q = &d->q;
    struct cmd c = q->cmd[q->cmd_head];

    q->cmd_head = (q->cmd_head + 1) % CMDS_MAX;
    q->cmd_nr--;
    if (q->cmd_nr)
        q->cmd_at = w->now + duration(w, d, &q->cmd[q->cmd_head]);
    switch (c.type) {
    case CMD_START: answer(w, d, &c, start(w, d, &c)); break;
    case CMD_STOP_ROLE:
        stop_role(w, d);
        answer(w, d, &c, 0);
        break;
    case CMD_CAPTURE: capture(w, d, &c); break;
    case CMD_OUTPUT:
        set_mode(w, d, &c);
        answer(w, d, &c, 0);
        break;
    case CMD_RELEASE: release(w, d, &c); break;
    case CMD_APPLY: apply(w, d, &c); break;
    case CMD_LOAD: answer(w, d, &c, load(w, d, &c)); break;
    case CMD_RUN: answer(w, d, &c, run(w, d)); break;
    case CMD_STOP:
        stop(d);
        answer(w, d, &c, 0);
        break;
    case CMD_NUM: break;
    }
    qemu_update(w, d);
}
