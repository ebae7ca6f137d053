/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_session_operator.c - what people ask of a session: pair, unpair, promote, an end; each test's name is the fact
 */
#include <errno.h>

#include "session_bench.h"

static void a_first_claim_that_is_refused_changes_nothing(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_NONE, 0, GUEST_RUNNING);
    STEP(&b, .type = SE_OP_PAIR);
    done(&b, want(&b, SA_SAVE)->serial, 0);
    STEP(&b, .type = SE_ARBITER, .code = GRANT_NO, .generation = 8);
    is(&b, ST_NONE);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 106);
    assert_null(find(&b, SA_STOP_GUEST));
    STEP(&b, .type = SE_OP_PAIR, .flag = true); /* --adopt */
    done(&b, want(&b, SA_SAVE)->serial, 0);
    STEP(&b, .type = SE_ARBITER, .code = GRANT_NO, .generation = 8);
    done(&b, want(&b, SA_SAVE)->serial, 0);
    assert_int_equal(want(&b, SA_ASK)->expect, 8);
    answer(&b, GRANT_YES);
    is(&b, ST_ALONE);
    assert_int_equal(b.s.generation, 9);
}

static void a_first_claim_without_an_arbiter_changes_nothing(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_NONE, 0, GUEST_RUNNING);
    STEP(&b, .type = SE_OP_PAIR);
    done(&b, want(&b, SA_SAVE)->serial, 0);
    answer(&b, GRANT_UNREACHABLE);
    is(&b, ST_NONE);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 69);
    STEP(&b, .type = SE_OP_PAIR);
    done(&b, want(&b, SA_SAVE)->serial, -28);
    is(&b, ST_NONE);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 1);
}

static void a_claim_whose_guest_is_lost_leaves_no_trace_in_a_later_life(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_NONE, 0, GUEST_RUNNING);
    STEP(&b, .type = SE_OP_PAIR);
    STEP(&b, .type = SE_GUEST_LOST);
    is(&b, ST_ENDED);
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_FRESH);
    meet(&b, true, 4, true);
    done(&b, b.s.wait_start, 0);
    STEP(&b, .type = SE_RX_BEGIN, .epoch = 1, .flag = true);
    STEP(&b, .type = SE_RX_COMPLETE, .epoch = 1);
    done(&b, b.s.wait_save, 0);
    STEP(&b, .type = SE_LINK_DOWN);
    answer(&b, GRANT_UNREACHABLE);
    is(&b, ST_STANDBY_ASKING);
}

static void unpair_while_protected_needs_a_grant_first(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_OP_UNPAIR);
    is(&b, ST_CLAIMING);
    want(&b, SA_SEND_ENDED);
    assert_false(passes(&b));
    answer(&b, GRANT_YES);
    done(&b, b.s.wait_stop, 0);
    done(&b, b.s.wait_output, 0);
    done(&b, b.s.wait_save, 0);
    is(&b, ST_NONE);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 0);
    assert_false(b.s.paired);
}

static void shutdown_while_protected_needs_a_grant_or_leaves_output_held(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_OP_SHUTDOWN);
    is(&b, ST_CLAIMING);
    want(&b, SA_SEND_ENDED);
    assert_null(find(&b, SA_EXIT));
    b.now += 3 * SEC;
    STEP(&b, .type = SE_TICK);
    want(&b, SA_EXIT);
    assert_int_equal(b.s.output, OUTPUT_HOLD);
    protected(&b);
    STEP(&b, .type = SE_OP_SHUTDOWN);
    answer(&b, GRANT_YES);
    done(&b, b.s.wait_stop, 0);
    done(&b, b.s.wait_output, 0);
    assert_null(find(&b, SA_EXIT));
    done(&b, b.s.wait_save, 0);
    want(&b, SA_EXIT);
}

static void promote_needs_force_and_force_is_said(void **state)
{
    struct bench b;

    (void)state;
    ready(&b);
    STEP(&b, .type = SE_OP_PROMOTE);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 107);
    is(&b, ST_STANDBY_READY);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true); /* the active lives: the arbiter decides */
    is(&b, ST_STANDBY_ASKING);
    assert_null(find(&b, SA_LOAD));
    assert_null(find(&b, SA_OP_REPLY)); /* what the arbiter says is the answer */
    answer(&b, GRANT_UNREACHABLE);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 106);
    STEP(&b, .type = SE_OP_PROMOTE);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 107);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true);
    is(&b, ST_PROMOTING);
    assert_true(b.s.forced);
    start(&b, ROLE_NONE, 0, GUEST_FRESH);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true); /* nothing to run */
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 1);
}

static void promote_is_answered_with_what_became_of_it(void **state)
{
    struct bench b;

    (void)state;
    ready(&b);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true);
    answer(&b, GRANT_YES);
    assert_null(find(&b, SA_OP_REPLY));
    done(&b, b.s.wait_load, 0);
    done(&b, b.s.wait_run, 0);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 0);
    ready(&b);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true); /* the active asked first */
    answer(&b, GRANT_NO);
    is(&b, ST_STANDBY_WAIT);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 106);
    ready(&b);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true);
    answer(&b, GRANT_YES);
    done(&b, b.s.wait_load, -EIO);
    is(&b, ST_BROKEN);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 1);
}

static void an_operator_is_answered_even_if_a_disk_is_not(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_NONE, 0, GUEST_RUNNING);
    STEP(&b, .type = SE_OP_PAIR); /* its save hangs */
    assert_true(session_deadline(&b.s) <= b.now + b.s.config.operator_ns);
    b.now += b.s.config.operator_ns;
    STEP(&b, .type = SE_TICK);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 1);
    done(&b, b.s.wait_save, 0); /* and it goes on */
    want(&b, SA_ASK);
}

/* Refused, stopped, outdated, in generation 1; the register is at 2 of the other side. */
static void outdated(struct bench *b)
{
    protected(b);
    STEP(b, .type = SE_LINK_DOWN);
    answer(b, GRANT_NO);
    is(b, ST_OUTDATED);
    done(b, b->s.wait_stop, 0);
    done(b, b->s.wait_output, 0);
    done(b, b->s.wait_save, 0);
}

static void an_outdated_copy_runs_again_only_by_force_and_by_a_grant(void **state)
{
    struct bench b;

    (void)state;
    outdated(&b);
    STEP(&b, .type = SE_OP_PROMOTE);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 107);
    is(&b, ST_OUTDATED);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true);
    is(&b, ST_CLAIMING);
    assert_null(find(&b, SA_ASK)); /* its nonce first; until the grant it stays outdated on disk */
    assert_int_equal(want(&b, SA_SAVE)->persist.role, ROLE_OUTDATED);
    done(&b, b.s.wait_save, 0);
    assert_int_equal(want(&b, SA_ASK)->expect, 1);
    STEP(&b, .type = SE_ARBITER, .code = GRANT_NO, .generation = 2); /* of the other side */
    is(&b, ST_CLAIMING);
    assert_false(passes(&b));
    assert_int_equal(want(&b, SA_SAVE)->persist.role, ROLE_OUTDATED);
    done(&b, want(&b, SA_SAVE)->serial, 0);
    assert_int_equal(want(&b, SA_ASK)->expect, 2);
    answer(&b, GRANT_UNREACHABLE); /* a grant whose answer is lost would leave nobody to run the guest */
    is(&b, ST_CLAIMING);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 106);
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    assert_int_equal(want(&b, SA_ASK)->expect, 2);
    answer(&b, GRANT_YES);
    is(&b, ST_ALONE);
    assert_int_equal(b.s.generation, 3);
    assert_true(passes(&b));
    want(&b, SA_RUN);
}

static void an_outdated_copy_without_an_arbiter_stays_stopped(void **state)
{
    struct bench b;

    (void)state;
    outdated(&b);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true);
    done(&b, b.s.wait_save, 0);
    answer(&b, GRANT_UNREACHABLE);
    is(&b, ST_OUTDATED); /* it is not asked again when nobody waits for it: the other side may have gone far by then */
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 106);
    assert_null(find(&b, SA_RUN));
    assert_false(passes(&b));
    b.now += 5 * SEC;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_ASK));
}

/* Forced to generation 5 while the register is at 4 or beyond; the ask that tells it is out. */
static void forced(struct bench *b)
{
    asking(b);
    answer(b, GRANT_UNREACHABLE);
    STEP(b, .type = SE_OP_PROMOTE, .flag = true);
    is(b, ST_PROMOTING);
    done(b, b->s.wait_load, 0);
    done(b, b->s.wait_run, 0);
    is(b, ST_ALONE);
    assert_int_equal(want(b, SA_SAVE)->persist.role, ROLE_ACTIVE_FORCED);
    assert_null(find(b, SA_ASK));
    done(b, b->s.wait_save, 0);
    assert_int_equal(want(b, SA_ASK)->expect, 4);
    assert_int_equal(want(b, SA_ASK)->next, 5);
}

static void a_forced_side_tells_the_arbiter_before_it_pairs_again(void **state)
{
    struct bench b;

    (void)state;
    forced(&b);
    STEP(&b, .type = SE_ARBITER, .code = GRANT_UNREACHABLE);
    b.now += 5 * SEC;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_CONNECT)); /* a standby could not succeed a generation that the register does not know */
    want(&b, SA_ASK);
    STEP(&b, .type = SE_ARBITER, .code = GRANT_YES, .generation = 5, .flag = true);
    assert_false(b.s.forced);
    assert_int_equal(b.s.generation, 5);
    assert_int_equal(want(&b, SA_SAVE)->persist.role, ROLE_ACTIVE_ALONE);
    want(&b, SA_CONNECT);
}

static void a_forced_side_overrules_whoever_was_granted_meanwhile(void **state)
{
    struct bench b;

    (void)state;
    forced(&b);
    STEP(&b, .type = SE_ARBITER, .code = GRANT_NO, .generation = 5); /* the other side, in the same generation */
    is(&b, ST_ALONE);
    assert_int_equal(b.s.generation, 6);
    assert_true(b.s.forced);
    done(&b, want(&b, SA_SAVE)->serial, 0);
    assert_int_equal(want(&b, SA_ASK)->expect, 5);
    STEP(&b, .type = SE_ARBITER, .code = GRANT_YES, .generation = 6, .flag = true);
    assert_false(b.s.forced);
    alone(&b); /* and the other side, in an older generation, doubts when they meet */
    meet(&b, true, 6, true);
    is(&b, ST_CLAIMING);
}

static void forced_outlives_a_restart(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_ACTIVE_FORCED, 5, GUEST_RUNNING);
    is(&b, ST_ALONE);
    assert_true(passes(&b));
    assert_int_equal(want(&b, SA_ASK)->expect, 4);
    assert_int_equal(want(&b, SA_ASK)->nonce[0], 0x55); /* the same ask as before */
    meet(&b, true, 9, true); /* whatever a peer says, the operator has decided */
    is(&b, ST_ALONE);
}

static void a_forced_copy_that_is_gone_takes_the_operators_word_with_it(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_ACTIVE_FORCED, 5, GUEST_NONE); /* the host comes back, and somebody boots the guest anew */
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_RUNNING, .flag = true);
    is(&b, ST_OUTDATED);
    assert_false(passes(&b));
    assert_null(find(&b, SA_ASK));
    assert_int_equal(b.s.generation, 4); /* what the register may know */
    start(&b, ROLE_ACTIVE_FORCED, 5, GUEST_FRESH);
    is(&b, ST_STANDBY_WAIT);
    meet(&b, true, 4, true);
    is(&b, ST_STANDBY_SYNCING);
    start(&b, ROLE_ACTIVE_FORCED, 5, GUEST_FRESH);
    STEP(&b, .type = SE_GUEST_RESUMED);
    is(&b, ST_OUTDATED);
    assert_false(passes(&b));
}

static void a_forced_guest_that_ends_leaves_a_generation_that_can_be_asked_for(void **state)
{
    struct bench b;

    (void)state;
    forced(&b);
    STEP(&b, .type = SE_GUEST_ENDED);
    assert_int_equal(want(&b, SA_SAVE)->persist.role, ROLE_NONE);
    assert_int_equal(want(&b, SA_SAVE)->persist.generation, 4);
    asking(&b); /* a load that fails, and a QEMU that replaces it */
    answer(&b, GRANT_UNREACHABLE);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true);
    done(&b, b.s.wait_load, -EIO);
    is(&b, ST_BROKEN);
    STEP(&b, .type = SE_GUEST_LOST);
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_FRESH);
    is(&b, ST_STANDBY_WAIT);
    assert_int_equal(b.s.generation, 4);
}

static void pair_does_not_overtake_an_unpair(void **state)
{
    struct bench b;

    (void)state;
    alone(&b);
    STEP(&b, .type = SE_OP_UNPAIR);
    is(&b, ST_NONE);
    protected(&b);
    STEP(&b, .type = SE_OP_UNPAIR); /* asks first */
    answer(&b, GRANT_YES);
    is(&b, ST_ALONE);
    b.now += b.s.config.operator_ns; /* its save hangs */
    STEP(&b, .type = SE_TICK);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 1);
    STEP(&b, .type = SE_OP_PAIR);
    assert_int_equal(want(&b, SA_OP_REPLY)->code, 1);
    done(&b, b.s.wait_stop, 0);
    done(&b, b.s.wait_output, 0);
    done(&b, b.s.wait_save, 0);
    is(&b, ST_NONE);
}

static void an_unpaired_forced_side_leaves_the_register_as_it_is(void **state)
{
    struct bench b;

    (void)state;
    forced(&b);
    done(&b, b.s.wait_output, 0);
    STEP(&b, .type = SE_OP_UNPAIR);
    is(&b, ST_NONE);
    assert_int_equal(want(&b, SA_SAVE)->persist.generation, 4);
    done(&b, b.s.wait_save, 0);
    assert_null(find(&b, SA_ASK));
    STEP(&b, .type = SE_ARBITER, .code = GRANT_YES, .generation = 5, .flag = true); /* of before */
    is(&b, ST_NONE);
    assert_int_equal(b.s.generation, 4);
}

static void a_guest_that_shuts_down_is_not_taken_over(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_GUEST_ENDED);
    is(&b, ST_ENDED);
    want(&b, SA_SEND_ENDED);
    ready(&b);
    STEP(&b, .type = SE_PEER_ENDED);
    is(&b, ST_STANDBY_WAIT);
    assert_null(find(&b, SA_ASK));
    ready(&b);
    STEP(&b, .type = SE_PEER_GONE); /* but one whose QEMU died is */
    is(&b, ST_STANDBY_ASKING);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_first_claim_that_is_refused_changes_nothing),
        cmocka_unit_test(a_first_claim_without_an_arbiter_changes_nothing),
        cmocka_unit_test(a_claim_whose_guest_is_lost_leaves_no_trace_in_a_later_life),
        cmocka_unit_test(unpair_while_protected_needs_a_grant_first),
        cmocka_unit_test(shutdown_while_protected_needs_a_grant_or_leaves_output_held),
        cmocka_unit_test(promote_needs_force_and_force_is_said),
        cmocka_unit_test(promote_is_answered_with_what_became_of_it),
        cmocka_unit_test(an_operator_is_answered_even_if_a_disk_is_not),
        cmocka_unit_test(an_outdated_copy_runs_again_only_by_force_and_by_a_grant),
        cmocka_unit_test(an_outdated_copy_without_an_arbiter_stays_stopped),
        cmocka_unit_test(a_forced_side_tells_the_arbiter_before_it_pairs_again),
        cmocka_unit_test(a_forced_side_overrules_whoever_was_granted_meanwhile),
        cmocka_unit_test(forced_outlives_a_restart),
        cmocka_unit_test(a_forced_copy_that_is_gone_takes_the_operators_word_with_it),
        cmocka_unit_test(a_forced_guest_that_ends_leaves_a_generation_that_can_be_asked_for),
        cmocka_unit_test(pair_does_not_overtake_an_unpair),
        cmocka_unit_test(an_unpaired_forced_side_leaves_the_register_as_it_is),
        cmocka_unit_test(a_guest_that_shuts_down_is_not_taken_over),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
