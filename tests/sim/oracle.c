/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * oracle.c - what must never be, checked at each step; docs/SAFETY.md explains each oracle
 *
 * (a) one writer: no two sides release output in one generation, and once a guest was promoted nothing new
 *     comes from another. (b) nothing released is missing on the side that is promoted, and its memory is what it was.
 * (c) who runs or passes holds the register. (d) after the last fault the pair comes back; one fault never costs the guest.
 * (e) the session keeps its own rules. Reads everything, changes nothing but its own notes.
 */
#include "sim.h"

#include <string.h>

void oracle_reset(struct world *w)
{
    memset(w->owner, 0, sizeof(w->owner));
    w->last_node = 0;
    w->visible = w->writer = w->writer_base = 0;
    w->gap_ok = false;
}

uint64_t oracle_node(struct world *w, uint64_t parent)
{
    struct node *p = &w->nodes[parent % NODES], *n = &w->nodes[++w->last_node % NODES];
    uint64_t count = parent ? p->n + 1 : 1;

    n->parent = parent;
    n->n = count;
    return w->last_node;
}

/* Whether a guest in this state has the packet in its past. */
bool oracle_contains(const struct world *w, uint64_t state, uint64_t node)
{
    uint64_t n = node ? w->nodes[node % NODES].n : 0;

    if (node == 0)
        return true;
    while (state && w->nodes[state % NODES].n > n && w->last_node - state < NODES)
        state = w->nodes[state % NODES].parent;
    return state == node;
}

static void owns(struct world *w, const struct side *d, uint64_t generation)
{
    uint64_t i = generation % (sizeof(w->owner) / sizeof(w->owner[0]));

    if (w->owner[i].qemu == 0 || w->owner[i].generation != generation) {
        w->owner[i].generation = generation;
        w->owner[i].qemu = d->q.id;
    } else if (w->owner[i].qemu != d->q.id && !w->forced) {
        world_fail(w, "oracle a: both sides release output in generation %llu; the second is %c",
                   (unsigned long long)generation, 'a' + d->id);
    }
}

void oracle_release(struct world *w, const struct side *d, uint64_t node, uint64_t generation)
{
    w->count[N_RELEASED]++;
    if (d->q.stranger)
        return; /* before polluxd could see it: as any QEMU that somebody starts */
    owns(w, d, generation);
    if (w->forced) {
        w->last_visible_at = w->now;
        return;
    }
    if (d->q.id != w->writer) {
        w->count[N_STRAGGLERS]++;
        if (!oracle_contains(w, w->writer_base, node))
            world_fail(w, "oracle a: %c releases packet %llu after the other side was promoted without it", 'a' + d->id,
                       (unsigned long long)w->nodes[node % NODES].n);
        else if (w->nodes[node % NODES].n > w->nodes[w->visible % NODES].n)
            w->visible = node;
        return;
    }
    w->last_visible_at = w->now;
    if (w->nodes[node % NODES].parent != w->visible) {
        if (!w->gap_ok || !oracle_contains(w, node, w->visible))
            world_fail(w, "oracle b: %c releases packet %llu, which does not continue what was seen (up to %llu)",
                       'a' + d->id, (unsigned long long)w->nodes[node % NODES].n,
                       (unsigned long long)w->nodes[w->visible % NODES].n);
    }
    w->gap_ok = false;
    w->visible = node;
}

void oracle_loaded(struct world *w, const struct side *d, const struct device *device)
{
    if (!device) {
        world_fail(w, "oracle b: %c loads a state whose memory is not what it was at the pause", 'a' + d->id);
        return;
    }
    if (!oracle_contains(w, device->node, w->visible) && !w->forced)
        world_fail(w, "oracle b: %c loads a state up to packet %llu, but %llu was seen outside", 'a' + d->id,
                   (unsigned long long)w->nodes[device->node % NODES].n,
                   (unsigned long long)w->nodes[w->visible % NODES].n);
}

/* A promoted guest runs: from here it is the one that says new things. */
void oracle_runs(struct world *w, const struct side *d)
{
    if (!oracle_contains(w, d->q.node, w->visible) && !w->forced)
        world_fail(w, "oracle b: %c runs a guest that lacks a packet seen outside", 'a' + d->id);
    w->writer = d->q.id;
    w->writer_base = d->q.node;
    w->gap_ok = true;
}

bool oracle_fully_protected(const struct world *w)
{
    for (unsigned i = 0; i < 2; i++) {
        const struct side *a = &w->side[i], *b = &w->side[1 - i];
        if (a->state == ST_PROTECTED && b->state == ST_STANDBY_READY && a->daemon_up && b->daemon_up && a->q.alive &&
            b->q.alive && a->hangs_until <= w->now && b->hangs_until <= w->now && a->q.qmp_life == a->life && b->q.qmp_life == b->life && a->conn >= 0 && a->conn == b->conn)
            return true;
    }
    return false;
}

void oracle_hard_fault(struct world *w)
{
    if (oracle_fully_protected(w)) {
        w->hard_faults = 1;
        w->hard_unprotected = false;
    } else {
        w->hard_faults++;
        w->hard_unprotected = true;
    }
}

bool oracle_copy_exists(const struct world *w)
{
    for (unsigned i = 0; i < 2; i++) {
        const struct side *d = &w->side[i];
        enum session_state s = d->state;
        if (!d->host_up || !d->q.alive || d->q.ended)
            continue;
        if (d->q.ran && !d->q.stranger && (!d->daemon_up || (s != ST_OUTDATED && s != ST_BROKEN)))
            return true;
        if (d->daemon_up && (s == ST_STANDBY_READY || s == ST_STANDBY_ASKING || s == ST_PROMOTING))
            return true;
    }
    return false;
}

/* ---- (e) the session's own rules ---- */

void oracle_step(struct world *w, struct side *d, const struct session_event *e)
{
    d->vain_ticks = e->type == SE_TICK && session_deadline(&d->s) <= side_now(w, d) ? d->vain_ticks + 1 : 0;
    if (d->vain_ticks > 3)
        world_fail(w, "oracle e: %c wants a tick again and again and does nothing in it (%s)", 'a' + d->id,
                   session_state_name(d->s.state));
}

static void moved(struct world *w, struct side *d, const struct session_action *a)
{
    if (a->from != d->state || !session_may_move(a->from, a->to))
        world_fail(w, "oracle e: %c moves %s -> %s but was %s", 'a' + d->id, session_state_name(a->from),
                   session_state_name(a->to), session_state_name(d->state));
    d->state = a->to;
    w->states[a->to]++;
    d->outdated_since = d->none_since = w->now;
    if (a->to == ST_PROTECTED) {
        w->count[N_PROTECTED]++;
        w->saw_protected = true;
    } else if (a->from == ST_PROMOTING && a->to == ST_ALONE) {
        w->count[N_FAILOVERS]++;
    } else if (a->to == ST_OUTDATED || (a->from == ST_STANDBY_ASKING && a->to == ST_STANDBY_WAIT)) {
        w->count[N_REFUSALS]++;
    } else if (a->to == ST_BROKEN && !d->load_fault) {
        world_fail(w, "oracle d: %c is broken without a cause: %s", 'a' + d->id, a->text);
    }
}

static bool holds_register(const struct world *w, const struct side *d)
{
    return w->arbiter.generation == d->s.generation && w->arbiter.holder == d->id + 1;
}

static void output(struct world *w, const struct side *d, const struct session_action *a)
{
    if (a->code != OUTPUT_PASS || w->forced)
        return;
    if (d->q.stranger && w->saw_protected)
        world_fail(w, "oracle a: %c lets a guest speak that booted anew, though a protected one may live on", 'a' + d->id);
    if (!holds_register(w, d))
        world_fail(w, "oracle c: %c lets output pass in generation %llu, but the register is at %llu of %c", 'a' + d->id,
                   (unsigned long long)d->s.generation, (unsigned long long)w->arbiter.generation,
                   (int)('a' + w->arbiter.holder - 1));
}

void oracle_action(struct world *w, struct side *d, const struct session_action *a)
{
    /* Won by a polluxd whose QEMU hangs: a fault of its own, as a load that fails. promote --force mends it. */
    if (a->type == SA_LOAD && d->hangs_until > w->now && d->hangs_until - d->hangs_since >= APPLY_DEADLINE)
        d->load_fault = true;
    if (a->serial) {
        if (a->serial <= d->last_serial)
            world_fail(w, "oracle e: %c uses serial %llu again", 'a' + d->id, (unsigned long long)a->serial);
        d->last_serial = a->serial;
    }
    switch (a->type) {
    case SA_MOVED: moved(w, d, a); break;
    case SA_OUTPUT: output(w, d, a); break;
    case SA_RELEASE:
        if (a->epoch > d->acked_rx)
            world_fail(w, "oracle c: %c releases epoch %llu, but only %llu was acked", 'a' + d->id,
                       (unsigned long long)a->epoch, (unsigned long long)d->acked_rx);
        break;
    case SA_SEND_ACK:
        if ((a->epoch > d->rx_whole || !d->store.open))
            world_fail(w, "oracle c: %c acks epoch %llu, but only %llu is whole", 'a' + d->id, (unsigned long long)a->epoch,
                       (unsigned long long)d->rx_whole);
        break;
    case SA_LOAD:
        if (!w->forced && !holds_register(w, d))
            world_fail(w, "oracle c: %c loads without holding the register", 'a' + d->id);
        break;
    case SA_ASK:
        if (d->ask)
            world_fail(w, "oracle e: %c asks while an ask is unanswered", 'a' + d->id);
        break;
    case SA_CAPTURE:
        if (d->arena == 0 || a->slot >= w->config.nr_slots)
            world_fail(w, "oracle e: %c captures without an arena", 'a' + d->id);
        for (unsigned i = 0; i < d->job_nr; i++) {
            if (d->job[(d->job_head + i) % JOBS_MAX].slot == a->slot)
                world_fail(w, "oracle e: %c captures into slot %u, which is being sent", 'a' + d->id, a->slot);
        }
        break;
    case SA_NOTE:
        if (strncmp(a->text, "frozen", 6) == 0)
            w->count[N_FROZEN]++;
        break;
    default: break;
    }
}

/* ---- (d) a while after the last fault ---- */

void oracle_settled(struct world *w)
{
    const struct side *a = &w->side[0], *b = &w->side[1], *active = a->state == ST_PROTECTED ? a : b;
    const struct side *standby = active == a ? b : a;

    if (active->state != ST_PROTECTED || standby->state != ST_STANDBY_READY) {
        world_fail(w, "oracle d: long after the last fault a is %s (%s), b is %s (%s)", session_state_name(a->state),
                   a->s.reason, session_state_name(b->state), b->s.reason);
    } else if ((!active->q.running && !active->q.part_paused) || w->now - w->last_visible_at > 3 * SEC) {
        world_fail(w, "oracle d: protected, but no output for %.1f s; guest %s, frozen %d",
                   (double)(w->now - w->last_visible_at) / 1e9, active->q.running ? "runs" : "is stopped", active->s.frozen);
    } else if (active->s.generation != standby->s.generation || active->s.generation != w->arbiter.generation) {
        world_fail(w, "oracle d: generations differ: active %llu, standby %llu, register %llu",
                   (unsigned long long)active->s.generation, (unsigned long long)standby->s.generation,
                   (unsigned long long)w->arbiter.generation);
    }
    w->count[N_SETTLED]++;
}
