/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_arbiter.c - the arbiter's client against a fake witness on virtual time
 *
 * Each scenario is a function that says whether what it saw was right. It is run on the real client, where it
 * must be, and on a client with the planted fault that it is there to find, where it must not.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "../../replicator/arbiter.h"

#define MS INT64_C(1000000)

static const uint8_t me[16] = "instance of me.", other[16] = "of the other..";
static const uint8_t nonce1[16] = "nonce one......", nonce2[16] = "nonce two......";

/* What the fake witness does with the next asks. */
enum mood { HONEST, DEAF, LOSES_ANSWER, SAYS_ERROR };

struct world {
    struct arbiter a;
    int64_t now;
    /* the fake witness */
    enum mood mood;
    bool refuses_connect;  /* connection attempts fail */
    bool swallows_connect; /* connection attempts get no answer at all */
    struct arbiter_register reg;
    struct wire_reader reader;
    struct wire_writer writer;
    _Alignas(8) uint8_t in[1024];
    uint8_t reply[1024]; /* sent, not yet delivered */
    size_t reply_len;
    unsigned nr_asks_seen, nr_cas_seen;
    void (*forge)(struct wire_arb_answer *answer); /* changes what is answered to a CAS */
    /* what the client did */
    uint32_t link; /* open, 0: none */
    unsigned nr_connects, nr_closes, nr_outcomes, nr_changes;
    struct arbiter_outcome outcome;
    char text[ARBITER_WHY_BYTES];
};

static struct world w; /* big; one at a time */

/* ---- the fake witness: its own idea of PROTOCOL.md's rules ---- */

static bool same_register(const struct arbiter_register *r, uint64_t generation,
                          const uint8_t *holder, const uint8_t *nonce)
{
    return r->generation == generation && !memcmp(r->holder, holder, 16) &&
           !memcmp(r->nonce, nonce, 16);
}

static void witness_answer(const struct wire_arb_ask *ask)
{
    struct wire_arb_answer answer = {.result = WIRE_ARB_VALUE, .tag = ask->tag};
    ssize_t n;

    w.nr_asks_seen++;
    w.nr_cas_seen += ask->op == WIRE_ARB_CAS;
    if (w.mood == DEAF)
        return;
    if (w.mood == SAYS_ERROR) {
        answer.result = WIRE_ARB_ERROR;
    } else if (ask->op == WIRE_ARB_CAS) {
        bool repeated = same_register(&w.reg, ask->next, ask->holder, ask->nonce);

        answer.result = WIRE_ARB_REFUSED;
        if (repeated || w.reg.generation == ask->expect) {
            w.reg.generation = ask->next;
            memcpy(w.reg.holder, ask->holder, 16);
            memcpy(w.reg.nonce, ask->nonce, 16);
            answer.result = WIRE_ARB_GRANTED;
        }
    }
    memcpy(answer.vm, ask->vm, sizeof(answer.vm));
    answer.generation = w.reg.generation;
    memcpy(answer.holder, w.reg.holder, 16);
    memcpy(answer.nonce, w.reg.nonce, 16);
    if (w.forge && ask->op == WIRE_ARB_CAS)
        w.forge(&answer);
    n = wire_put(&w.writer, w.reply + w.reply_len, sizeof(w.reply) - w.reply_len, WIRE_ARB_ANSWER,
                 0, 0, &answer, sizeof(answer));
    assert_true(n > 0);
    if (w.mood != LOSES_ANSWER)
        w.reply_len += (size_t)n;
}

static void witness_takes(const void *bytes, size_t len)
{
    struct wire_record record;
    struct wire_arb_ask ask;
    size_t room;
    void *to = wire_reader_space(&w.reader, &room);

    assert_true(room >= len);
    memcpy(to, bytes, len);
    assert_int_equal(wire_reader_commit(&w.reader, len), 0);
    while (wire_next(&w.reader, &record) == 1) {
        assert_int_equal(wire_decode_arb_ask(&record, &ask), 0);
        witness_answer(&ask);
    }
    assert_null(w.reader.why); /* the client never sends what the witness must refuse */
}

/* ---- the caller's side ---- */

static void do_action(const struct arbiter_action *action)
{
    switch (action->type) {
    case ARBITER_CONNECT:
        assert_int_equal(w.link, 0); /* never two at once */
        w.nr_connects++;
        w.link = action->link;
        w.reply_len = 0;
        w.writer.sequence = 0;
        wire_reader_init(&w.reader, WIRE_PEER_CLIENT, w.in, sizeof(w.in));
        break;
    case ARBITER_SEND:
        assert_int_equal(action->link, w.link);
        assert_int_equal(action->len, ARBITER_RECORD_BYTES);
        witness_takes(action->bytes, action->len);
        break;
    case ARBITER_CLOSE:
        assert_int_equal(action->link, w.link);
        w.nr_closes++;
        w.link = 0;
        w.reply_len = 0;
        break;
    case ARBITER_OUTCOME:
        w.nr_outcomes++;
        w.outcome = action->outcome;
        break;
    case ARBITER_CHANGED:
        w.nr_changes++;
        memcpy(w.text, action->text, sizeof(w.text));
        break;
    }
}

static void drain(void)
{
    struct arbiter_action action;
    unsigned n = 0;

    while (arbiter_next_action(&w.a, &action)) {
        do_action(&action);
        assert_true(++n < 20); /* it comes to rest */
    }
}

/* Let everything happen that happens without time passing. */
static void settle(void)
{
    for (int i = 0; i < 20; i++) {
        size_t len = w.reply_len;

        drain();
        if (w.a.state == ARBITER_CONNECTING && w.refuses_connect) {
            uint32_t link = w.link;

            w.link = 0;
            arbiter_closed(&w.a, link, "Connection refused", w.now);
        } else if (w.a.state == ARBITER_CONNECTING && !w.swallows_connect) {
            arbiter_connected(&w.a, w.link, w.now);
        } else if (len) {
            w.reply_len = 0;
            arbiter_feed(&w.a, w.link, w.reply, len, w.now);
        }
    }
    drain();
}

/* Go on to a time, stopping wherever the client wants a tick. */
static void run_to(int64_t at)
{
    unsigned n = 0;

    settle();
    while (arbiter_deadline(&w.a) <= at) {
        if (arbiter_deadline(&w.a) > w.now)
            w.now = arbiter_deadline(&w.a);
        arbiter_tick(&w.a, w.now);
        settle();
        assert_true(++n < 10000); /* a deadline in the past for ever would be a busy loop */
    }
    w.now = at;
    arbiter_tick(&w.a, w.now);
    settle();
}

static void break_connection(void)
{
    uint32_t link = w.link;

    w.link = 0;
    w.reply_len = 0;
    arbiter_closed(&w.a, link, "Connection reset by peer", w.now);
}

static void begin(void)
{
    struct arbiter_config config;

    memset(&w, 0, sizeof(w));
    arbiter_config_default(&config);
    assert_int_equal(wire_vm_name("db", config.vm), 0);
    memcpy(config.holder, me, 16);
    w.now = 1000 * MS;
    assert_int_equal(arbiter_init(&w.a, &config, w.now), 0);
}

/* Connected, the first heartbeat answered. */
static void begin_connected(uint64_t generation, const uint8_t *holder)
{
    begin();
    w.reg.generation = generation;
    if (generation) {
        memcpy(w.reg.holder, holder, 16);
        memcpy(w.reg.nonce, nonce2, 16);
    }
    run_to(w.now);
    assert_int_equal(w.a.state, ARBITER_IDLE);
    assert_int_equal(w.a.reach, ARBITER_REACH_YES);
}

static void ask(uint64_t expect, const uint8_t *nonce)
{
    assert_int_equal(arbiter_ask(&w.a, WIRE_ARB_CAS, expect, expect + 1, nonce, w.now), 0);
    settle();
}

static bool got(enum session_grant grant)
{
    return w.nr_outcomes == 1 && w.outcome.grant == grant;
}

/* ---- scenarios ---- */

static bool grant_is_yes(void)
{
    begin_connected(0, NULL);
    ask(0, nonce1);
    return got(GRANT_YES) && w.outcome.reg.generation == 1 && w.outcome.holder_is_me &&
           w.nr_connects == 1;
}

static bool refusal_is_no_with_the_register(void)
{
    begin_connected(3, other);
    w.reg.generation = 4;
    ask(3, nonce1);
    return got(GRANT_NO) && w.outcome.reg.generation == 4 && !w.outcome.holder_is_me &&
           !memcmp(w.outcome.reg.holder, other, 16);
}

static bool no_connection_is_unreachable_at_once(void)
{
    begin();
    w.refuses_connect = true;
    run_to(w.now);
    ask(3, nonce1);
    return got(GRANT_UNREACHABLE) && strstr(w.outcome.why, "Connection refused") &&
           w.outcome.took_ns == 0;
}

static bool silence_is_unreachable_after_the_time(void)
{
    begin_connected(3, other);
    w.mood = DEAF;
    ask(3, nonce1);
    run_to(w.now + 1999 * MS);
    if (w.nr_outcomes)
        return false;
    run_to(w.now + MS);
    return got(GRANT_UNREACHABLE) && w.outcome.took_ns == 2000 * MS && w.nr_closes == 1 &&
           w.a.reach == ARBITER_REACH_NO;
}

static bool connect_without_an_answer_is_unreachable(void)
{
    begin();
    w.swallows_connect = true;
    run_to(w.now);
    ask(3, nonce1);
    run_to(w.now + 2000 * MS);
    return got(GRANT_UNREACHABLE) && w.nr_closes == 1;
}

static bool error_is_unreachable_and_the_connection_stays(void)
{
    begin_connected(3, other);
    w.mood = SAYS_ERROR;
    ask(3, nonce1);
    return got(GRANT_UNREACHABLE) && w.nr_closes == 0 && strstr(w.outcome.why, "cannot write");
}

/* The witness granted, its answer was lost: the repeated ask with the same nonce is granted too. */
static bool lost_answer_is_asked_for_again(void)
{
    begin_connected(3, other);
    w.mood = LOSES_ANSWER;
    ask(3, nonce1);
    run_to(w.now + 2000 * MS);
    if (!got(GRANT_UNREACHABLE) || w.reg.generation != 4)
        return false;
    w.mood = HONEST;
    w.nr_outcomes = 0;
    ask(3, nonce1);
    return got(GRANT_YES) && w.reg.generation == 4;
}

/* Another nonce is another ask: it may not profit from the first one's grant. */
static bool other_nonce_is_refused(void)
{
    begin_connected(0, NULL);
    ask(0, nonce1);
    w.nr_outcomes = 0;
    ask(0, nonce2);
    return got(GRANT_NO) && w.outcome.holder_is_me;
}

static bool broken_connection_is_repeated_once(void)
{
    begin_connected(3, other);
    w.mood = LOSES_ANSWER;
    ask(3, nonce1);
    w.mood = HONEST;
    break_connection();
    settle();
    return got(GRANT_YES) && w.nr_connects == 2 && w.nr_cas_seen == 2;
}

static bool second_break_is_unreachable(void)
{
    begin_connected(3, other);
    w.mood = DEAF;
    ask(3, nonce1);
    break_connection();
    settle();
    if (w.nr_outcomes || w.nr_cas_seen != 2)
        return false;
    break_connection();
    settle();
    return got(GRANT_UNREACHABLE) && w.nr_cas_seen == 2;
}

static bool restarted_witness_costs_no_time(void)
{
    begin_connected(3, other);
    w.refuses_connect = true;
    break_connection();
    settle();
    w.refuses_connect = false;
    ask(3, nonce1);
    return got(GRANT_YES) && w.outcome.took_ns == 0;
}

/* A heartbeat into a dead connection must not eat the time of the ask behind it. */
static bool ask_behind_a_dead_heartbeat_is_repeated(void)
{
    begin_connected(3, other);
    w.mood = DEAF;
    run_to(w.now + 1500 * MS); /* heartbeat at 1000, unanswered */
    ask(3, nonce1);
    if (w.nr_cas_seen != 1)
        return false;
    w.mood = HONEST;
    run_to(w.now + 1500 * MS);
    return got(GRANT_YES) && w.nr_connects == 2 && w.outcome.took_ns == 1500 * MS;
}

static void forge_tag(struct wire_arb_answer *answer)
{
    answer->tag++;
}

static void forge_vm(struct wire_arb_answer *answer)
{
    memcpy(answer->vm, "web", 4);
}

static void forge_grant(struct wire_arb_answer *answer)
{
    answer->result = WIRE_ARB_GRANTED; /* the register is somebody else's */
}

static void forge_nonce(struct wire_arb_answer *answer)
{
    answer->nonce[15] ^= 1;
}

static void forge_generation(struct wire_arb_answer *answer)
{
    answer->generation++;
}

static void forge_refusal(struct wire_arb_answer *answer)
{
    answer->result = WIRE_ARB_REFUSED; /* the register is ours */
}

static void forge_refusal_of_nothing(struct wire_arb_answer *answer)
{
    answer->result = WIRE_ARB_REFUSED; /* the register is what we expected */
    answer->generation = 3;
    memcpy(answer->holder, other, 16);
    memcpy(answer->nonce, nonce2, 16);
}

static void forge_value(struct wire_arb_answer *answer)
{
    answer->result = WIRE_ARB_VALUE;
}

static bool forged(void (*forge)(struct wire_arb_answer *), uint64_t at_witness)
{
    begin_connected(3, other);
    w.reg.generation = at_witness;
    w.forge = forge;
    ask(3, nonce1);
    return got(GRANT_UNREACHABLE) && w.nr_closes == 1 && w.a.counts.garbage == 1 &&
           strstr(w.outcome.why, "broke the protocol");
}

static bool answer_to_another_question_is_garbage(void)
{
    return forged(forge_tag, 3);
}

static bool answer_about_another_vm_is_garbage(void)
{
    return forged(forge_vm, 3);
}

static bool grant_of_anothers_register_is_garbage(void)
{
    return forged(forge_grant, 4) && forged(forge_nonce, 3) && forged(forge_generation, 3);
}

static bool refusal_of_our_own_register_is_garbage(void)
{
    return forged(forge_refusal, 3) && forged(forge_refusal_of_nothing, 3);
}

static bool value_for_a_cas_is_garbage(void)
{
    return forged(forge_value, 3);
}

/* After a witness lost its state it can neither refuse (we would stop our guest) ... */
static bool empty_register_is_no_refusal(void)
{
    begin_connected(3, other);
    memset(&w.reg, 0, sizeof(w.reg));
    ask(3, nonce1);
    return got(GRANT_UNREACHABLE) && strstr(w.outcome.why, "lost its memory") && w.a.forgetful &&
           w.nr_closes == 0;
}

/* ... nor grant: it was at 4, somebody else's, and is at 3 again, from a backup. */
static bool register_gone_back_is_no_grant(void)
{
    begin_connected(4, other);
    w.reg.generation = 3;
    ask(3, nonce1);
    if (!got(GRANT_UNREACHABLE) || !w.a.forgetful)
        return false;
    w.nr_outcomes = 0;
    ask(3, nonce1); /* now it is at 4 again, but ours: not the 4 we saw */
    return got(GRANT_UNREACHABLE);
}

static bool bytes_of_an_old_connection_are_ignored(void)
{
    uint8_t old[sizeof(w.reply)];
    uint32_t old_link;
    size_t len;

    begin_connected(3, other);
    w.mood = LOSES_ANSWER;
    ask(3, nonce1);
    memcpy(old, w.reply, sizeof(old)); /* the lost answer, still on its way */
    len = ARBITER_RECORD_BYTES;
    old_link = w.link;
    w.mood = DEAF;
    break_connection();
    settle();
    arbiter_feed(&w.a, old_link, old, len, w.now);
    arbiter_closed(&w.a, old_link, "late", w.now);
    arbiter_connected(&w.a, old_link, w.now);
    settle();
    return w.nr_outcomes == 0 && w.nr_closes == 0 && w.a.counts.stale_calls == 3 &&
           w.a.state == ARBITER_WAITING;
}

struct scenario {
    const char *name;
    bool (*run)(void);
    enum arbiter_mutant finds; /* the planted fault that must make it fail */
};

#define SCENARIO(fact, mutant)               \
    {                                        \
#fact, fact, ARBITER_MUTANT_##mutant \
    }

static const struct scenario scenarios[] = {
    SCENARIO(grant_is_yes, NONE),
    SCENARIO(refusal_is_no_with_the_register, NONE),
    SCENARIO(no_connection_is_unreachable_at_once, NONE),
    SCENARIO(silence_is_unreachable_after_the_time, SILENCE_IS_YES),
    SCENARIO(connect_without_an_answer_is_unreachable, SILENCE_IS_YES),
    SCENARIO(error_is_unreachable_and_the_connection_stays, ERROR_IS_NO),
    SCENARIO(lost_answer_is_asked_for_again, SILENCE_IS_YES),
    SCENARIO(other_nonce_is_refused, NONE),
    SCENARIO(broken_connection_is_repeated_once, NO_REPEAT),
    SCENARIO(second_break_is_unreachable, NO_REPEAT),
    SCENARIO(restarted_witness_costs_no_time, NONE),
    SCENARIO(ask_behind_a_dead_heartbeat_is_repeated, NO_REPEAT),
    SCENARIO(answer_to_another_question_is_garbage, ANY_TAG),
    SCENARIO(answer_about_another_vm_is_garbage, ANY_VM),
    SCENARIO(grant_of_anothers_register_is_garbage, GRANTED_UNSEEN),
    SCENARIO(refusal_of_our_own_register_is_garbage, REFUSED_UNSEEN),
    SCENARIO(value_for_a_cas_is_garbage, NONE),
    SCENARIO(empty_register_is_no_refusal, AMNESIA_COUNTS),
    SCENARIO(register_gone_back_is_no_grant, AMNESIA_COUNTS),
    SCENARIO(bytes_of_an_old_connection_are_ignored, STALE_LINK),
};

#define NR_SCENARIOS (sizeof(scenarios) / sizeof(scenarios[0]))

static void every_scenario_holds(void **state)
{
    (void)state;
    for (size_t i = 0; i < NR_SCENARIOS; i++) {
        arbiter_mutant = ARBITER_MUTANT_NONE;
        if (!scenarios[i].run())
            fail_msg("%s does not hold", scenarios[i].name);
    }
}

static void every_planted_fault_is_found(void **state)
{
    bool found[ARBITER_MUTANT_NUM] = {false};

    (void)state;
    for (size_t i = 0; i < NR_SCENARIOS; i++) {
        if (scenarios[i].finds == ARBITER_MUTANT_NONE)
            continue;
        arbiter_mutant = scenarios[i].finds;
        if (scenarios[i].run())
            fail_msg("%s holds although fault %d is planted", scenarios[i].name,
                     scenarios[i].finds);
        found[scenarios[i].finds] = true;
    }
    arbiter_mutant = ARBITER_MUTANT_NONE;
    for (int m = ARBITER_MUTANT_NONE + 1; m < ARBITER_MUTANT_NUM; m++)
        assert_true(found[m]);
}

/* ---- the rest ---- */

static void heartbeats_show_reachability(void **state)
{
    (void)state;
    begin_connected(0, NULL);
    run_to(w.now + 10500 * MS);
    assert_int_equal(w.a.counts.heartbeats, 11);
    assert_int_equal(w.nr_connects, 1);
    assert_int_equal(w.nr_changes, 1);
    w.mood = DEAF;
    run_to(w.now + 3000 * MS);
    assert_int_equal(w.a.reach, ARBITER_REACH_NO);
    assert_int_equal(w.nr_changes, 2);
    assert_non_null(strstr(w.text, "cannot be reached"));
    w.mood = HONEST;
    run_to(w.now + 5000 * MS);
    assert_int_equal(w.a.reach, ARBITER_REACH_YES);
    assert_int_equal(w.nr_changes, 3);
    assert_int_equal(w.nr_outcomes, 0); /* heartbeats are nobody's ask */
}

static void forgotten_register_is_told_before_it_is_needed(void **state)
{
    (void)state;
    begin_connected(7, me);
    memset(&w.reg, 0, sizeof(w.reg));
    run_to(w.now + 1000 * MS);
    assert_true(w.a.forgetful);
    assert_non_null(strstr(w.text, "forgotten generation 7"));
    w.reg.generation = 8;
    run_to(w.now + 1000 * MS);
    assert_false(w.a.forgetful);
}

/* witness --restore: nobody holds it, and its generation is what both sides know. */
static void restored_register_is_believed(void **state)
{
    (void)state;
    begin_connected(7, me);
    memset(&w.reg, 0, sizeof(w.reg));
    run_to(w.now + 1000 * MS);
    assert_true(w.a.forgetful);
    w.reg.generation = 7;
    run_to(w.now + 1000 * MS);
    assert_false(w.a.forgetful);
    ask(7, nonce1);
    assert_true(got(GRANT_YES));
}

static void unreachable_witness_is_tried_at_the_pace_of_reconnect(void **state)
{
    (void)state;
    begin();
    w.refuses_connect = true;
    run_to(w.now + 10 * 1000 * MS);
    assert_in_range(w.nr_connects, 19, 22);
    assert_int_equal(w.nr_changes, 1);
}

static void silent_connects_end(void **state)
{
    (void)state;
    begin();
    w.swallows_connect = true;
    run_to(w.now + 10 * 1000 * MS);
    assert_in_range(w.nr_connects, 4, 5); /* 2 s each, half a second between */
    assert_in_range(w.nr_closes, 4, 5);
}

static void one_ask_at_a_time(void **state)
{
    (void)state;
    begin_connected(0, NULL);
    w.mood = DEAF;
    ask(0, nonce1);
    assert_int_equal(arbiter_ask(&w.a, WIRE_ARB_CAS, 0, 1, nonce2, w.now), -EBUSY);
    run_to(w.now + 2000 * MS);
    assert_int_equal(w.nr_outcomes, 1);
    w.mood = HONEST;
    ask(0, nonce2);
    assert_int_equal(w.nr_outcomes, 2);
}

static void illegal_asks_are_refused(void **state)
{
    (void)state;
    begin_connected(0, NULL);
    assert_int_equal(arbiter_ask(&w.a, WIRE_ARB_CAS, 5, 5, nonce1, w.now), -EINVAL);
    assert_int_equal(arbiter_ask(&w.a, WIRE_ARB_CAS, 5, 6, NULL, w.now), -EINVAL);
    assert_int_equal(arbiter_ask(&w.a, (enum wire_arb_op)7, 5, 6, nonce1, w.now), -EINVAL);
}

static void read_gives_the_register(void **state)
{
    (void)state;
    begin_connected(9, me);
    assert_int_equal(arbiter_ask(&w.a, WIRE_ARB_READ, 0, 0, NULL, w.now), 0);
    settle();
    assert_true(got(GRANT_NO));
    assert_int_equal(w.outcome.op, WIRE_ARB_READ);
    assert_int_equal(w.outcome.reg.generation, 9);
    assert_true(w.outcome.holder_is_me);
}

static void unasked_answer_is_garbage(void **state)
{
    struct wire_arb_answer answer = {.result = WIRE_ARB_VALUE};
    uint8_t bytes[ARBITER_RECORD_BYTES];

    (void)state;
    begin_connected(0, NULL);
    memcpy(answer.vm, "db", 2);
    assert_int_equal(
        wire_put(&w.writer, bytes, sizeof(bytes), WIRE_ARB_ANSWER, 0, 0, &answer, sizeof(answer)),
        sizeof(bytes));
    arbiter_feed(&w.a, w.link, bytes, sizeof(bytes), w.now);
    drain();
    assert_int_equal(w.nr_closes, 1);
    assert_int_equal(w.a.counts.garbage, 1);
    assert_int_equal(w.a.state, ARBITER_DOWN);
}

/* Any bytes at all, in any pieces: no crash (the sanitizers look on), no grant, and it recovers. */
static void noise_never_grants(void **state)
{
    uint64_t seed = 12345;
    uint8_t noise[700];

    (void)state;
    for (unsigned round = 0; round < 300; round++) {
        size_t len;

        begin_connected(3, other);
        w.mood = LOSES_ANSWER;
        ask(3, nonce1);
        memcpy(noise, w.reply, sizeof(noise)); /* starts as the true answer */
        for (unsigned i = 0; i < 1 + round % 5; i++) {
            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            noise[seed >> 33 & 127] ^= (uint8_t)(1u << (seed >> 60 & 7));
        }
        if (!memcmp(noise, w.reply, ARBITER_RECORD_BYTES))
            continue;
        len = 200 + (seed >> 40) % 500;
        for (size_t at = 0; at < len; at += 1 + seed % 97)
            arbiter_feed(&w.a, w.link, noise + at,
                         at + 1 + seed % 97 > len ? len - at : 1 + seed % 97, w.now);
        drain();
        assert_false(w.nr_outcomes == 1 && w.outcome.grant != GRANT_UNREACHABLE);
        w.mood = HONEST;
        w.nr_outcomes = 0;
        run_to(w.now + 3000 * MS);
        ask(3, nonce1);
        assert_int_equal(w.outcome.grant, GRANT_YES);
    }
}

static void answers_may_come_byte_by_byte(void **state)
{
    size_t len = ARBITER_RECORD_BYTES;

    (void)state;
    begin_connected(3, other);
    w.mood = LOSES_ANSWER;
    ask(3, nonce1);
    for (size_t i = 0; i < len; i++) {
        assert_int_equal(w.nr_outcomes, 0);
        arbiter_feed(&w.a, w.link, w.reply + i, 1, w.now);
        drain();
    }
    assert_true(got(GRANT_YES));
}

static void table_of_moves_is_closed(void **state)
{
    (void)state;
    for (int from = 0; from < ARBITER_STATE_NUM; from++) {
        assert_string_not_equal(arbiter_state_name((enum arbiter_state)from), "?");
        assert_false(arbiter_may_move((enum arbiter_state)from, (enum arbiter_state)from));
        if (from != ARBITER_DOWN)
            assert_true(arbiter_may_move((enum arbiter_state)from, ARBITER_DOWN));
    }
    assert_false(arbiter_may_move(ARBITER_DOWN, ARBITER_WAITING));
    assert_false(arbiter_may_move(ARBITER_CONNECTING, ARBITER_WAITING));
    assert_false(arbiter_may_move(ARBITER_STATE_NUM, ARBITER_DOWN));
}

static void bad_configuration_is_refused(void **state)
{
    struct arbiter_config config;

    (void)state;
    arbiter_config_default(&config);
    assert_int_equal(arbiter_init(&w.a, &config, 0), -EINVAL); /* no name */
    assert_int_equal(wire_vm_name("db", config.vm), 0);
    config.ask_ns = 0;
    assert_int_equal(arbiter_init(&w.a, &config, 0), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_scenario_holds),
        cmocka_unit_test(every_planted_fault_is_found),
        cmocka_unit_test(heartbeats_show_reachability),
        cmocka_unit_test(forgotten_register_is_told_before_it_is_needed),
        cmocka_unit_test(restored_register_is_believed),
        cmocka_unit_test(unreachable_witness_is_tried_at_the_pace_of_reconnect),
        cmocka_unit_test(silent_connects_end),
        cmocka_unit_test(one_ask_at_a_time),
        cmocka_unit_test(illegal_asks_are_refused),
        cmocka_unit_test(read_gives_the_register),
        cmocka_unit_test(unasked_answer_is_garbage),
        cmocka_unit_test(noise_never_grants),
        cmocka_unit_test(answers_may_come_byte_by_byte),
        cmocka_unit_test(table_of_moves_is_closed),
        cmocka_unit_test(bad_configuration_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
