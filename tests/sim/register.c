/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * register.c - the arbiter: one compare-and-swap register, and the way to it, which loses asks and answers
 */
#include "sim.h"

#include <string.h>

void register_ask(struct world *w, struct side *d, const struct session_action *a)
{
    uint64_t id = ++w->ids;
    struct ask *ask = &w->ask[id % ASKS_MAX];
    int64_t way = rng_range(&w->rng, 200 * US, 3 * MS);

    *ask = (struct ask){ .id = id, .life = d->life, .side = d->id, .expect = a->expect, .next = a->next };
    memcpy(ask->nonce, a->nonce, 16);
    d->ask = id;
    if (!w->arbiter.up) {
        world_at(w, w->now + way, H_ANSWER, d->id, id, GRANT_UNREACHABLE); /* connection refused */
        return;
    }
    world_at(w, w->now + w->ask_timeout, H_ASK_TIMEOUT, d->id, id, 0);
    if (w->faults && rng_permille(&w->rng, 20)) {
        w->count[N_SLOW_ASKS]++;
        way += rng_log(&w->rng, 10 * MS, 5 * SEC); /* it may arrive long after the asker gave up */
    }
    if (d->arbiter_cut <= w->now)
        world_at(w, w->now + way, H_ASK, d->id, id, 0);
    else if (rng_permille(&w->rng, 300))
        world_at(w, d->arbiter_cut + way, H_ASK, d->id, id, 0); /* in a queue until the way is back */
}

static struct ask *find(struct world *w, uint64_t id)
{
    struct ask *ask = &w->ask[id % ASKS_MAX];

    return ask->id == id ? ask : NULL;
}

void register_arrives(struct world *w, uint64_t id)
{
    struct ask *ask = find(w, id);
    struct arbiter *r = &w->arbiter;
    bool same, yes;

    if (!ask || !r->up)
        return;
    same = r->generation == ask->next && r->holder == ask->side + 1 && memcmp(r->nonce, ask->nonce, 16) == 0;
    yes = r->generation == ask->expect;
    if (yes) {
        r->generation = ask->next;
        r->holder = ask->side + 1;
        memcpy(r->nonce, ask->nonce, 16);
    } else if (same) {
        w->count[N_REPEATED_GRANTS]++;
    }
    world_trace(w, TRACE_WORLD, ask->side, 0, r->generation, r->holder,
                yes ? "arbiter grants" : same ? "arbiter grants again" : "arbiter refuses");
    ask->generation = r->generation;
    ask->holder = r->holder;
    if (w->lose_answers) {
        w->lose_answers--;
        return;
    }
    if (w->side[ask->side].arbiter_cut <= w->now)
        world_at(w, w->now + rng_range(&w->rng, 200 * US, 3 * MS), H_ANSWER, ask->side, id,
                 yes || same ? GRANT_YES : r->generation < ask->expect ? GRANT_UNREACHABLE : GRANT_NO);
}

void register_answers(struct world *w, uint64_t id, enum session_grant grant)
{
    struct ask *ask = find(w, id);
    struct side *d;

    if (!ask)
        return;
    d = &w->side[ask->side];
    if (d->daemon_up && d->life == ask->life && d->ask == id)
        side_arbiter(w, d, id, grant);
}

void register_timeout(struct world *w, uint64_t id)
{
    register_answers(w, id, GRANT_UNREACHABLE);
}
