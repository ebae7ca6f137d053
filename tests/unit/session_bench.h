/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session_bench.h - a session on a bench: the ways into its states, and what a step asked for
 *
 * For test_session*.c. Each way goes through events, as in life; none writes into the session.
 */
#ifndef POLLUX_SESSION_BENCH_H
#define POLLUX_SESSION_BENCH_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "../../replicator/session.h"

#define MS INT64_C(1000000)
#define SEC INT64_C(1000000000)

struct bench {
    struct session s;
    struct session_actions acts; /* of the last step */
    int64_t now;
};

static bool moves[ST_NUM][ST_NUM]; /* seen in any test */

static inline void step(struct bench *b, struct session_event e)
{
    session_step(&b->s, &e, b->now, &b->acts);
    for (unsigned i = 0; i < b->acts.nr; i++) {
        if (b->acts.list[i].type == SA_MOVED)
            moves[b->acts.list[i].from][b->acts.list[i].to] = true;
    }
}

#define STEP(b, ...) step(b, (struct session_event){ __VA_ARGS__ })

static inline const struct session_action *find(const struct bench *b, enum session_action_type type)
{
    for (unsigned i = 0; i < b->acts.nr; i++) {
        if (b->acts.list[i].type == type)
            return &b->acts.list[i];
    }
    return NULL;
}

static inline const struct session_action *want(const struct bench *b, enum session_action_type type)
{
    const struct session_action *a = find(b, type);

    if (!a)
        fail_msg("no %s; state %s", session_action_name(type), session_state_name(b->s.state));
    return a;
}

static inline void is(const struct bench *b, enum session_state state)
{
    assert_string_equal(session_state_name(b->s.state), session_state_name(state));
}

static inline void done(struct bench *b, uint64_t serial, int error)
{
    STEP(b, .type = SE_DONE, .serial = serial, .error = error);
}

static inline void begin(struct bench *b)
{
    struct session_config config;

    session_mutant = MUTANT_NONE;
    session_config_default(&config);
    config.boot = 77;
    memset(b, 0, sizeof(*b));
    b->now = 100 * SEC;
    session_init(&b->s, &config);
}

static inline void start(struct bench *b, enum session_role role, uint64_t generation, enum session_guest guest)
{
    struct session_event e = { .type = SE_START, .flag = role != ROLE_NONE, .guest = GUEST_NONE };

    begin(b);
    e.persist.role = role;
    e.persist.generation = generation;
    memset(e.persist.nonce, 0x55, 16);
    step(b, e);
    if (guest != GUEST_NONE)
        STEP(b, .type = SE_GUEST_ATTACHED, .guest = guest);
}

static inline void answer(struct bench *b, enum session_grant grant)
{
    STEP(b, .type = SE_ARBITER, .code = grant, .generation = b->s.generation + 1);
}

static inline void alone(struct bench *b)
{
    start(b, ROLE_NONE, 0, GUEST_RUNNING);
    STEP(b, .type = SE_OP_PAIR);
    is(b, ST_CLAIMING);
    done(b, want(b, SA_SAVE)->serial, 0);
    want(b, SA_ASK);
    answer(b, GRANT_YES);
    is(b, ST_ALONE);
    done(b, b->s.wait_output, 0);
    done(b, b->s.wait_save, 0);
}

static inline void meet(struct bench *b, bool accepted, uint64_t generation, bool peer_active)
{
    STEP(b, .type = SE_LINK_UP, .flag = accepted);
    STEP(b, .type = SE_PEER_HELLO, .generation = generation, .flag = peer_active);
    STEP(b, .type = SE_PEER_LAYOUT, .flag = true);
}

static inline void captured(struct bench *b, const struct session_action *a, bool complete, uint64_t pages)
{
    struct session_event e = { .type = SE_CAPTURED };

    e.capture.epoch = a->epoch;
    e.capture.slot = a->slot;
    e.capture.precopy = a->precopy;
    e.capture.complete = complete;
    e.capture.pages = pages;
    e.capture.pause_ns = 1 * MS;
    step(b, e);
}

static inline void syncing(struct bench *b)
{
    alone(b);
    meet(b, false, 0, false);
    is(b, ST_SYNCING);
    done(b, want(b, SA_CHECKPOINT_START)->serial, 0);
}

static inline void entering(struct bench *b)
{
    syncing(b);
    captured(b, want(b, SA_CAPTURE), true, 10);
    is(b, ST_SYNCING); /* a backlog waits to be sent: output is not held for that */
    STEP(b, .type = SE_SLOT_FREE, .slot = 0);
    is(b, ST_ENTERING);
}

/* Everything given up and the last part of epoch 1 sent. */
static inline void entered(struct bench *b)
{
    entering(b);
    done(b, b->s.wait_save, 0);
    done(b, b->s.wait_output, 0);
    captured(b, want(b, SA_CAPTURE), true, 3);
    assert_true(want(b, SA_SEND_SLOT)->last);
}

static inline void protected(struct bench *b)
{
    entered(b);
    for (unsigned i = 0; i < b->s.config.nr_slots; i++)
        STEP(b, .type = SE_SLOT_FREE, .slot = i);
    STEP(b, .type = SE_ACK, .epoch = 1);
    is(b, ST_PROTECTED);
}

static inline void standby_syncing(struct bench *b)
{
    start(b, ROLE_NONE, 0, GUEST_FRESH);
    is(b, ST_STANDBY_WAIT);
    meet(b, true, 4, true);
    is(b, ST_STANDBY_SYNCING);
    STEP(b, .type = SE_RX_BEGIN, .epoch = 1, .flag = true);
}

static inline void ready(struct bench *b)
{
    standby_syncing(b);
    done(b, b->s.wait_start, 0);
    STEP(b, .type = SE_RX_COMPLETE, .epoch = 1);
    done(b, want(b, SA_SAVE)->serial, 0);
    is(b, ST_STANDBY_READY);
    want(b, SA_SEND_ACK);
}

static inline void asking(struct bench *b)
{
    ready(b);
    STEP(b, .type = SE_LINK_DOWN);
    is(b, ST_STANDBY_ASKING);
    want(b, SA_ASK);
}

static inline uint64_t passes(const struct bench *b)
{
    const struct session_action *a = find(b, SA_OUTPUT);

    return a && a->code == OUTPUT_PASS ? a->serial : 0;
}

#endif
