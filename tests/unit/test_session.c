/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_session.c - the session, step by step: each test's name is the fact it proves
 *
 * Random orders are the simulator's business (tests/sim); here stands what the rules say, one fact at a time. Each
 * planted fault (mutant) is shown to break the test of its rule.
 */
#include <errno.h>

#include "session_bench.h"

/* ---- the table ---- */

static void every_state_has_a_name_and_a_way_out(void **state)
{
    (void)state;
    for (unsigned from = 0; from < ST_NUM; from++) {
        unsigned nr = 0;
        assert_true(strlen(session_state_name((enum session_state)from)) > 2);
        assert_false(session_may_move((enum session_state)from, (enum session_state)from));
        for (unsigned to = 0; to < ST_NUM; to++)
            nr += session_may_move((enum session_state)from, (enum session_state)to);
        assert_true(nr > 0);
    }
    assert_false(session_may_move(ST_NUM, ST_NONE));
    assert_false(session_may_move(ST_NONE, ST_NUM));
    assert_string_equal(session_state_name(ST_NUM), "?");
}

static void every_event_and_action_has_a_name(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SE_NUM; i++)
        assert_non_null(session_event_name((enum session_event_type)i));
    for (unsigned i = 0; i < SA_NUM; i++)
        assert_non_null(session_action_name((enum session_action_type)i));
    assert_string_equal(session_event_name(SE_NUM), "?");
    assert_string_equal(session_action_name(SA_NUM), "?");
}

static void the_table_forbids_what_the_rules_forbid(void **state)
{
    (void)state;
    assert_false(session_may_move(ST_PROTECTED, ST_ALONE));            /* rule 1: not without CLAIMING */
    assert_false(session_may_move(ST_STANDBY_READY, ST_PROMOTING));    /* rule 2: not without ASKING */
    assert_false(session_may_move(ST_STANDBY_SYNCING, ST_STANDBY_ASKING));
    assert_false(session_may_move(ST_STANDBY_WAIT, ST_STANDBY_READY));
    assert_false(session_may_move(ST_SYNCING, ST_PROTECTED));          /* alone is given up first */
    for (unsigned to = 0; to < ST_NUM; to++) /* rule 3: and out of it only through another ask */
        assert_int_equal(session_may_move(ST_OUTDATED, (enum session_state)to), to == ST_ENDED || to == ST_CLAIMING);
}

/* ---- rule 1 ---- */

static void output_is_held_before_the_last_part_is_captured(void **state)
{
    struct bench b;

    (void)state;
    entering(&b);
    assert_int_equal(want(&b, SA_SAVE)->persist.role, ROLE_ACTIVE_PROTECTING);
    assert_int_equal(want(&b, SA_OUTPUT)->code, OUTPUT_HOLD);
    assert_null(find(&b, SA_CAPTURE));
    done(&b, b.s.wait_save, 0);
    assert_null(find(&b, SA_CAPTURE));
    done(&b, b.s.wait_output, 0);
    assert_false(want(&b, SA_CAPTURE)->precopy);
    entering(&b);
    done(&b, b.s.wait_output, 0);
    assert_null(find(&b, SA_CAPTURE));
    assert_false(session_alone(&b.s));
}

static void nothing_is_released_before_its_ack(void **state)
{
    struct bench b;

    (void)state;
    entered(&b);
    assert_null(find(&b, SA_RELEASE));
    STEP(&b, .type = SE_ACK, .epoch = 1);
    assert_int_equal(want(&b, SA_RELEASE)->epoch, 1);
    entered(&b);
    session_mutant = MUTANT_RELEASE_BEFORE_ACK;
    STEP(&b, .type = SE_ACK, .epoch = 1);
    b.now += SEC / 5;
    STEP(&b, .type = SE_SLOT_FREE, .slot = 0);
    captured(&b, want(&b, SA_CAPTURE), true, 1);
    assert_non_null(find(&b, SA_RELEASE)); /* control: the fault is seen */
    session_mutant = MUTANT_NONE;
}

static void an_ack_of_an_epoch_that_was_not_sent_ends_the_protection(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_ACK, .epoch = 2);
    is(&b, ST_CLAIMING);
    assert_null(find(&b, SA_RELEASE));
    protected(&b);
    STEP(&b, .type = SE_ACK, .epoch = 1); /* again */
    is(&b, ST_CLAIMING);
    assert_null(find(&b, SA_RELEASE));
}

static void an_ack_that_comes_after_the_loss_releases_nothing(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    b.now += SEC / 5;
    STEP(&b, .type = SE_OUTPUT_WAITS);
    STEP(&b, .type = SE_LINK_DOWN);
    STEP(&b, .type = SE_ACK, .epoch = 2);
    assert_int_equal(b.acts.nr, 0);
}

static void output_passes_only_with_a_grant(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_LINK_DOWN);
    is(&b, ST_CLAIMING);
    assert_false(passes(&b));
    assert_int_equal(want(&b, SA_ASK)->expect, 1);
    answer(&b, GRANT_UNREACHABLE);
    assert_false(passes(&b));
    is(&b, ST_CLAIMING);
    b.now += b.s.config.arbiter_retry_ns;
    STEP(&b, .type = SE_TICK);
    want(&b, SA_ASK);
    answer(&b, GRANT_YES);
    assert_true(passes(&b));
    assert_int_equal(b.s.generation, 2);
    protected(&b);
    session_mutant = MUTANT_PASS_WITHOUT_GRANT;
    STEP(&b, .type = SE_LINK_DOWN);
    assert_true(passes(&b)); /* control */
    session_mutant = MUTANT_NONE;
}

static void a_link_lost_before_the_last_part_needs_no_arbiter(void **state)
{
    struct bench b;

    (void)state;
    entering(&b);
    STEP(&b, .type = SE_LINK_DOWN);
    is(&b, ST_ALONE);
    assert_true(passes(&b));
    assert_null(find(&b, SA_ASK));
    entered(&b); /* but after it, it does */
    STEP(&b, .type = SE_LINK_DOWN);
    is(&b, ST_CLAIMING);
    want(&b, SA_ASK);
    assert_false(passes(&b));
}

static void a_save_that_fails_while_entering_leaves_the_guest_alone(void **state)
{
    struct bench b;

    (void)state;
    entering(&b);
    done(&b, b.s.wait_save, -28);
    is(&b, ST_ALONE);
    assert_true(passes(&b));
    want(&b, SA_SEND_REFUSE);
}

/* ---- rule 2 ---- */

static void a_standby_loads_and_runs_only_when_granted(void **state)
{
    struct bench b;

    (void)state;
    asking(&b);
    assert_null(find(&b, SA_LOAD));
    answer(&b, GRANT_UNREACHABLE);
    assert_null(find(&b, SA_LOAD));
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    want(&b, SA_ASK);
    answer(&b, GRANT_YES);
    is(&b, ST_PROMOTING);
    assert_int_equal(want(&b, SA_LOAD)->epoch, 1);
    assert_null(find(&b, SA_RUN));
    done(&b, b.s.wait_load, 0);
    assert_true(passes(&b));
    done(&b, want(&b, SA_RUN)->serial, 0);
    is(&b, ST_ALONE);
    want(&b, SA_ANNOUNCE);
    assert_int_equal(want(&b, SA_SAVE)->persist.generation, 5);
    ready(&b);
    session_mutant = MUTANT_PROMOTE_WITHOUT_GRANT;
    STEP(&b, .type = SE_LINK_DOWN);
    assert_non_null(find(&b, SA_LOAD)); /* control */
    session_mutant = MUTANT_NONE;
}

static void silence_of_the_arbiter_is_no_grant(void **state)
{
    struct bench b;

    (void)state;
    asking(&b);
    session_mutant = MUTANT_UNREACHABLE_IS_YES;
    answer(&b, GRANT_UNREACHABLE);
    is(&b, ST_PROMOTING); /* control: what must not be, and is not in the test before */
    session_mutant = MUTANT_NONE;
}

static void a_standby_that_is_not_whole_never_asks(void **state)
{
    struct bench b;

    (void)state;
    standby_syncing(&b);
    STEP(&b, .type = SE_LINK_DOWN);
    is(&b, ST_STANDBY_WAIT);
    assert_null(find(&b, SA_ASK));
    b.now += 100 * SEC;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_ASK));
}

static void acks_wait_for_the_state_file(void **state)
{
    struct bench b;

    (void)state;
    standby_syncing(&b);
    assert_int_equal(b.s.wait_save, 0); /* nothing of an active is kept before all of epoch 1 came from it */
    STEP(&b, .type = SE_RX_COMPLETE, .epoch = 1);
    assert_int_equal(want(&b, SA_SAVE)->persist.generation, 4);
    assert_null(find(&b, SA_SEND_ACK));
    done(&b, b.s.wait_start, 0);
    assert_null(find(&b, SA_SEND_ACK));
    is(&b, ST_STANDBY_SYNCING);
    done(&b, b.s.wait_save, 0);
    assert_int_equal(want(&b, SA_SEND_ACK)->epoch, 1);
    assert_int_equal(want(&b, SA_APPLY)->epoch, 1);
}

static void only_whole_epochs_are_acked(void **state)
{
    struct bench b;

    (void)state;
    ready(&b);
    STEP(&b, .type = SE_RX_BEGIN, .epoch = 2);
    assert_null(find(&b, SA_SEND_ACK));
    STEP(&b, .type = SE_RX_COMPLETE, .epoch = 2);
    assert_int_equal(want(&b, SA_SEND_ACK)->epoch, 2);
    session_mutant = MUTANT_ACK_BEFORE_COMPLETE;
    STEP(&b, .type = SE_RX_BEGIN, .epoch = 3);
    assert_non_null(find(&b, SA_SEND_ACK)); /* control */
    session_mutant = MUTANT_NONE;
}

static void epochs_out_of_order_end_the_connection(void **state)
{
    struct bench b;

    (void)state;
    ready(&b);
    STEP(&b, .type = SE_RX_BEGIN, .epoch = 3);
    want(&b, SA_DISCONNECT);
    ready(&b);
    STEP(&b, .type = SE_RX_COMPLETE, .epoch = 3);
    want(&b, SA_DISCONNECT);
    assert_null(find(&b, SA_SEND_ACK));
    ready(&b);
    STEP(&b, .type = SE_RX_BEGIN, .epoch = 2, .flag = true); /* FULL in mid-stream */
    want(&b, SA_DISCONNECT);
}

static void nothing_is_acked_after_the_ask(void **state)
{
    struct bench b;

    (void)state;
    asking(&b);
    STEP(&b, .type = SE_RX_COMPLETE, .epoch = 2);
    assert_null(find(&b, SA_SEND_ACK));
    answer(&b, GRANT_YES);
    assert_int_equal(want(&b, SA_LOAD)->epoch, 1);
    ready(&b);
    session_mutant = MUTANT_ACK_WHILE_ASKING;
    STEP(&b, .type = SE_LINK_DOWN);
    STEP(&b, .type = SE_RX_COMPLETE, .epoch = 2);
    assert_non_null(find(&b, SA_SEND_ACK)); /* control */
    session_mutant = MUTANT_NONE;
}

static void what_is_loaded_is_the_last_acked_epoch(void **state)
{
    struct bench b;

    (void)state;
    ready(&b);
    STEP(&b, .type = SE_RX_BEGIN, .epoch = 2);
    STEP(&b, .type = SE_RX_COMPLETE, .epoch = 2);
    STEP(&b, .type = SE_RX_BEGIN, .epoch = 3); /* half received */
    STEP(&b, .type = SE_PEER_GONE);
    answer(&b, GRANT_YES);
    assert_int_equal(want(&b, SA_LOAD)->epoch, 2);
}

static void a_load_that_fails_breaks_and_never_runs(void **state)
{
    struct bench b;

    (void)state;
    asking(&b);
    answer(&b, GRANT_YES);
    done(&b, b.s.wait_load, -5);
    is(&b, ST_BROKEN);
    assert_null(find(&b, SA_RUN));
}

/* ---- rule 3 ---- */

static void a_refusal_stops_the_guest_and_drops_its_output(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_LINK_DOWN);
    answer(&b, GRANT_NO);
    is(&b, ST_OUTDATED);
    want(&b, SA_STOP_GUEST);
    assert_int_equal(want(&b, SA_OUTPUT)->code, OUTPUT_DROP);
    assert_int_equal(want(&b, SA_SAVE)->persist.role, ROLE_OUTDATED);
    STEP(&b, .type = SE_LINK_UP, .flag = true);
    want(&b, SA_SEND_REFUSE);
    protected(&b);
    STEP(&b, .type = SE_LINK_DOWN);
    session_mutant = MUTANT_REFUSED_GOES_ON;
    answer(&b, GRANT_NO);
    assert_true(passes(&b)); /* control */
    session_mutant = MUTANT_NONE;
}

static void a_standby_that_is_refused_forgets_what_it_holds(void **state)
{
    struct bench b;

    (void)state;
    asking(&b);
    answer(&b, GRANT_NO);
    is(&b, ST_STANDBY_WAIT);
    want(&b, SA_CHECKPOINT_STOP);
    assert_int_equal(b.s.rx_acked, 0);
}

static void outdated_outlives_a_restart(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_OUTDATED, 3, GUEST_RUNNING);
    is(&b, ST_OUTDATED);
    want(&b, SA_STOP_GUEST);
    start(&b, ROLE_OUTDATED, 3, GUEST_FRESH); /* a fresh QEMU may be a standby */
    is(&b, ST_STANDBY_WAIT);
}

static void a_register_that_we_hold_is_ours_to_continue(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_ACTIVE_PROTECTING, 3, GUEST_RUNNING);
    want(&b, SA_ASK);
    STEP(&b, .type = SE_ARBITER, .code = GRANT_NO, .generation = 5, .flag = true);
    is(&b, ST_CLAIMING);
    done(&b, want(&b, SA_SAVE)->serial, 0);
    assert_int_equal(want(&b, SA_ASK)->expect, 5);
}

/* ---- rule 4 ---- */

static void nobody_answers_so_the_guest_freezes_and_goes_on_when_granted(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_LINK_DOWN);
    answer(&b, GRANT_UNREACHABLE);
    b.now += b.s.config.hold_freeze_ns - 1;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_STOP_GUEST));
    answer(&b, GRANT_UNREACHABLE);
    b.now += 1;
    STEP(&b, .type = SE_TICK);
    done(&b, want(&b, SA_STOP_GUEST)->serial, 0);
    assert_true(b.s.frozen);
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    want(&b, SA_ASK);
    answer(&b, GRANT_YES);
    want(&b, SA_RUN);
}

/* ---- asks ---- */

static void an_answer_to_a_former_ask_is_not_taken_for_this_one(void **state)
{
    struct bench b;

    (void)state;
    asking(&b); /* unanswered */
    STEP(&b, .type = SE_GUEST_LOST);
    is(&b, ST_ENDED);
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_FRESH);
    meet(&b, true, 5, true);
    done(&b, b.s.wait_start, 0);
    STEP(&b, .type = SE_RX_BEGIN, .epoch = 1, .flag = true);
    STEP(&b, .type = SE_RX_COMPLETE, .epoch = 1);
    done(&b, b.s.wait_save, 0);
    STEP(&b, .type = SE_LINK_DOWN);
    is(&b, ST_STANDBY_ASKING);
    assert_null(find(&b, SA_ASK)); /* one at a time */
    answer(&b, GRANT_NO);          /* to the former */
    is(&b, ST_STANDBY_ASKING);
    assert_int_equal(want(&b, SA_ASK)->expect, 5);
    answer(&b, GRANT_YES);
    is(&b, ST_PROMOTING);
}

static void an_ask_is_repeated_with_the_same_nonce_after_a_restart(void **state)
{
    struct bench b;
    uint8_t nonce[16];

    (void)state;
    memset(nonce, 0x55, sizeof(nonce));
    start(&b, ROLE_ACTIVE_PROTECTING, 3, GUEST_RUNNING);
    is(&b, ST_CLAIMING);
    assert_int_equal(want(&b, SA_OUTPUT)->code, OUTPUT_HOLD);
    assert_memory_equal(want(&b, SA_ASK)->nonce, nonce, 16);
    answer(&b, GRANT_UNREACHABLE);
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    assert_memory_equal(want(&b, SA_ASK)->nonce, nonce, 16);
    answer(&b, GRANT_YES); /* and the next ask has another */
    assert_memory_not_equal(want(&b, SA_SAVE)->persist.nonce, nonce, 16);
}

static void a_polluxd_that_was_alone_goes_on_without_asking(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_ACTIVE_ALONE, 3, GUEST_RUNNING);
    is(&b, ST_ALONE);
    assert_true(passes(&b));
    assert_null(find(&b, SA_ASK));
    want(&b, SA_RUN); /* the one before may have died before it resumed a frozen guest */
}

static void a_guest_that_booted_anew_never_asks(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_ACTIVE_PROTECTING, 3, GUEST_NONE);
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_RUNNING, .flag = true);
    is(&b, ST_OUTDATED);
    assert_null(find(&b, SA_ASK));
    want(&b, SA_STOP_GUEST);
    start(&b, ROLE_STANDBY, 3, GUEST_NONE);
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_RUNNING, .flag = true);
    is(&b, ST_OUTDATED);
}

static void a_newer_generation_at_the_peer_makes_an_active_ask(void **state)
{
    struct bench b;

    (void)state;
    alone(&b);
    STEP(&b, .type = SE_LINK_UP);
    STEP(&b, .type = SE_PEER_HELLO, .generation = 9);
    is(&b, ST_CLAIMING);
    assert_int_equal(want(&b, SA_OUTPUT)->code, OUTPUT_HOLD);
    assert_null(find(&b, SA_ASK)); /* first the nonce must be on disk */
    done(&b, want(&b, SA_SAVE)->serial, 0);
    want(&b, SA_ASK);
    answer(&b, GRANT_NO);
    is(&b, ST_OUTDATED);
}

static void two_actives_and_two_standbys_refuse_each_other(void **state)
{
    struct bench b;

    (void)state;
    alone(&b);
    STEP(&b, .type = SE_LINK_UP);
    STEP(&b, .type = SE_PEER_HELLO, .generation = 1, .flag = true);
    assert_int_equal(want(&b, SA_SEND_REFUSE)->code, 3);
    start(&b, ROLE_NONE, 0, GUEST_FRESH);
    STEP(&b, .type = SE_LINK_UP, .flag = true);
    STEP(&b, .type = SE_PEER_HELLO, .generation = 1, .flag = false);
    assert_int_equal(want(&b, SA_SEND_REFUSE)->code, 3);
    start(&b, ROLE_STANDBY, 7, GUEST_FRESH); /* an outdated active calls */
    STEP(&b, .type = SE_LINK_UP, .flag = true);
    STEP(&b, .type = SE_PEER_HELLO, .generation = 6, .flag = true);
    assert_int_equal(want(&b, SA_SEND_REFUSE)->code, 5);
}

static void different_machines_are_refused_and_the_guest_goes_on(void **state)
{
    struct bench b;

    (void)state;
    alone(&b);
    STEP(&b, .type = SE_LINK_UP);
    STEP(&b, .type = SE_PEER_HELLO, .generation = 0);
    STEP(&b, .type = SE_PEER_LAYOUT, .flag = false, .text = "ram:pc.ram differs");
    assert_int_equal(want(&b, SA_SEND_REFUSE)->code, 4);
    is(&b, ST_ALONE);
    assert_null(find(&b, SA_OUTPUT));
}

/* ---- time ---- */

static void silence_is_loss_only_after_the_time_out(void **state)
{
    struct bench b;
    int64_t silent;

    (void)state;
    ready(&b);
    silent = b.now;
    while (b.now < silent + b.s.config.peer_timeout_ns - 1) {
        b.now += b.s.config.heartbeat_ns;
        if (b.now >= silent + b.s.config.peer_timeout_ns)
            b.now = silent + b.s.config.peer_timeout_ns - 1;
        STEP(&b, .type = SE_TICK);
        is(&b, ST_STANDBY_READY);
    }
    b.now += 1;
    STEP(&b, .type = SE_TICK);
    is(&b, ST_STANDBY_ASKING);
}

static void own_standstill_is_not_the_peers_silence(void **state)
{
    struct bench b;

    (void)state;
    ready(&b);
    b.now += 30 * SEC;
    STEP(&b, .type = SE_TICK);
    is(&b, ST_STANDBY_READY);
}

static void own_backpressure_is_not_the_peers_silence(void **state)
{
    struct bench b;

    (void)state;
    ready(&b);
    STEP(&b, .type = SE_RX_PAUSED, .flag = true);
    for (unsigned i = 0; i < 100; i++) {
        b.now += b.s.config.heartbeat_ns;
        STEP(&b, .type = SE_TICK);
    }
    STEP(&b, .type = SE_RX_PAUSED, .flag = false);
    is(&b, ST_STANDBY_READY);
}

static void a_deadline_that_was_served_is_not_due_again(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    for (unsigned i = 0; i < 1000; i++) {
        int64_t at = session_deadline(&b.s);
        assert_true(at < INT64_MAX);
        b.now = at > b.now ? at : b.now;
        STEP(&b, .type = SE_TICK);
        if (find(&b, SA_CAPTURE)) {
            captured(&b, find(&b, SA_CAPTURE), true, 1);
            STEP(&b, .type = SE_SLOT_FREE, .slot = 0);
            STEP(&b, .type = SE_ACK, .epoch = b.s.pipe.sent);
        }
        assert_true(session_deadline(&b.s) > b.now);
        STEP(&b, .type = SE_PEER_ALIVE);
    }
}

/* ---- stale answers ---- */

static void stale_serials_are_ignored(void **state)
{
    struct bench b;
    uint64_t old;

    (void)state;
    entering(&b);
    old = b.s.wait_save;
    STEP(&b, .type = SE_LINK_DOWN); /* alone again: another save */
    assert_true(b.s.wait_save > old);
    done(&b, old, -28);
    assert_int_equal(b.acts.nr, 0);
    is(&b, ST_ALONE);
    done(&b, 0, 0);
    done(&b, UINT64_MAX, 0);
    assert_int_equal(b.acts.nr, 0);
}

static void a_capture_of_a_former_session_is_ignored(void **state)
{
    struct bench b;
    struct session_action a;

    (void)state;
    syncing(&b);
    a = *want(&b, SA_CAPTURE);
    STEP(&b, .type = SE_LINK_DOWN);
    is(&b, ST_ALONE);
    captured(&b, &a, true, 5);
    assert_null(find(&b, SA_SEND_SLOT));
    STEP(&b, .type = SE_SLOT_FREE, .slot = 99);
    is(&b, ST_ALONE);
}

static void what_a_dead_qemu_was_asked_is_not_waited_for(void **state)
{
    struct bench b;

    (void)state;
    entering(&b);
    STEP(&b, .type = SE_GUEST_LOST);
    is(&b, ST_ENDED);
    want(&b, SA_SEND_GONE);
    assert_int_equal(b.s.wait_output, 0);
    assert_int_equal(b.s.wait_stop, 0);
}

/* ---- the guest always goes on ---- */

static void a_guest_stopped_by_the_limit_is_resumed_after_the_release(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    b.now += SEC;
    STEP(&b, .type = SE_GUEST_STOPPED);
    captured(&b, want(&b, SA_CAPTURE), true, 1); /* at once: output waits */
    STEP(&b, .type = SE_ACK, .epoch = 2);
    STEP(&b, .type = SE_RELEASED, .epoch = 2, .code = 0);
    assert_null(find(&b, SA_RUN));
    STEP(&b, .type = SE_RELEASED, .epoch = 2, .code = 1);
    want(&b, SA_RUN);
}

static void a_stop_that_crosses_the_grant_is_resumed(void **state)
{
    struct bench b;

    (void)state;
    alone(&b);
    STEP(&b, .type = SE_GUEST_STOPPED);
    done(&b, want(&b, SA_RUN)->serial, 0);
    assert_false(b.s.frozen);
}

static void a_resume_older_than_our_stop_does_not_hide_it(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_LINK_DOWN);
    b.now += b.s.config.hold_freeze_ns;
    STEP(&b, .type = SE_TICK);
    want(&b, SA_STOP_GUEST);
    STEP(&b, .type = SE_GUEST_RESUMED);
    assert_true(b.s.frozen);
    answer(&b, GRANT_YES);
    want(&b, SA_RUN);
}

static void a_capture_goes_on_in_the_next_slot_without_a_pause_in_between(void **state)
{
    struct bench b;
    unsigned slot;

    (void)state;
    protected(&b);
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    slot = want(&b, SA_CAPTURE)->slot;
    captured(&b, want(&b, SA_CAPTURE), false, 100);
    assert_false(want(&b, SA_SEND_SLOT)->last);
    assert_int_not_equal(want(&b, SA_CAPTURE)->slot, slot);
    captured(&b, want(&b, SA_CAPTURE), true, 10);
    assert_true(want(&b, SA_SEND_SLOT)->last);
    assert_false(want(&b, SA_SEND_SLOT)->first);
}

static void a_dead_peer_is_noticed_even_if_heartbeats_are_rare(void **state)
{
    struct bench b;

    (void)state;
    ready(&b);
    b.s.config.heartbeat_ns = 75 * MS;
    b.s.config.peer_timeout_ns = 150 * MS;
    for (unsigned i = 0; i < 100 && b.s.state == ST_STANDBY_READY; i++) {
        b.now = session_deadline(&b.s) + MS / 5;
        STEP(&b, .type = SE_TICK);
    }
    is(&b, ST_STANDBY_ASKING);
}

static void a_standby_that_lives_but_does_not_ack_is_given_up(void **state)
{
    struct bench b;
    int64_t begun;

    (void)state;
    entered(&b);
    begun = b.now;
    while (b.s.state == ST_ENTERING && b.now - begun < 60 * SEC) {
        b.now += 20 * MS;
        STEP(&b, .type = SE_PEER_ALIVE);
    }
    is(&b, ST_CLAIMING);
    assert_true(b.now - begun <= b.s.config.hold_freeze_ns + 40 * MS);
    protected(&b);
    begun = b.now;
    while (b.s.state == ST_PROTECTED && b.now - begun < 60 * SEC) {
        b.now += 20 * MS;
        STEP(&b, .type = SE_PEER_ALIVE);
        if (find(&b, SA_CAPTURE))
            captured(&b, find(&b, SA_CAPTURE), true, 1);
    }
    is(&b, ST_CLAIMING);
}

static void output_that_could_not_be_let_pass_is_tried_again(void **state)
{
    struct bench b;

    (void)state;
    asking(&b);
    answer(&b, GRANT_YES);
    done(&b, want(&b, SA_LOAD)->serial, 0);
    b.s.wait_run = want(&b, SA_RUN)->serial;
    done(&b, want(&b, SA_OUTPUT)->serial, -5);
    done(&b, b.s.wait_run, 0);
    is(&b, ST_ALONE);
    assert_null(find(&b, SA_OUTPUT));
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    assert_int_equal(want(&b, SA_OUTPUT)->code, OUTPUT_PASS);
}

static void a_failed_capture_does_not_invite_the_standby_to_take_over(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_CAPTURE_FAILED);
    assert_int_equal(want(&b, SA_SEND_ENDED)->code, 2);
    is(&b, ST_CLAIMING);
    answer(&b, GRANT_YES);
    is(&b, ST_ALONE);
    assert_true(b.s.connect_at_ns > b.now); /* not at once: the cause may last */
}

static void a_full_sync_ends_even_if_no_round_ever_fits_a_slot(void **state)
{
    struct bench b;
    unsigned captures = 0;

    (void)state;
    syncing(&b);
    for (; b.s.state == ST_SYNCING && captures < 10000; captures++) {
        struct session_event e = { .type = SE_CAPTURED };
        e.capture.epoch = 1;
        e.capture.slot = b.s.pipe.slot;
        e.capture.precopy = true;
        e.capture.pages = 256;
        e.capture.remaining = 10000; /* dirtied faster than copied */
        assert_true(b.s.pipe.capturing);
        step(&b, e);
        STEP(&b, .type = SE_SLOT_FREE, .slot = e.capture.slot);
    }
    is(&b, ST_ENTERING);
    assert_int_equal(b.s.pipe.rounds, b.s.config.sync_rounds_max);
}

static void no_more_epochs_are_in_flight_than_allowed(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    for (unsigned i = 0; i < 20; i++) {
        b.now += SEC / 20;
        STEP(&b, .type = SE_PEER_ALIVE);
        if (!find(&b, SA_CAPTURE))
            STEP(&b, .type = SE_OUTPUT_WAITS);
        if (!find(&b, SA_CAPTURE))
            continue;
        captured(&b, find(&b, SA_CAPTURE), true, 1);
        for (unsigned k = 0; k < b.s.config.nr_slots; k++)
            STEP(&b, .type = SE_SLOT_FREE, .slot = k);
    }
    is(&b, ST_PROTECTED);
    assert_int_equal(b.s.pipe.sent - b.s.pipe.acked, b.s.config.inflight_max);
    STEP(&b, .type = SE_ACK, .epoch = 2);
    assert_non_null(find(&b, SA_CAPTURE));
}

static void a_sync_that_does_not_end_leaves_the_generation_as_it_was(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_STANDBY, 3, GUEST_FRESH);
    meet(&b, true, 1000000, true);
    is(&b, ST_STANDBY_SYNCING);
    STEP(&b, .type = SE_LINK_DOWN);
    is(&b, ST_STANDBY_WAIT);
    assert_int_equal(b.s.generation, 3);
    meet(&b, true, 1000000, true);
    STEP(&b, .type = SE_GUEST_LOST); /* nor does a QEMU that is lost meanwhile */
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_FRESH);
    assert_int_equal(b.s.generation, 3);
    meet(&b, true, 3, true); /* the active that it belongs to is not refused for what a stranger said */
    is(&b, ST_STANDBY_SYNCING);
}

static void a_generation_beyond_reach_is_refused(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_STANDBY, 3, GUEST_FRESH);
    meet(&b, true, UINT64_MAX, true);
    is(&b, ST_STANDBY_WAIT);
    alone(&b);
    STEP(&b, .type = SE_LINK_UP, .flag = true);
    STEP(&b, .type = SE_PEER_HELLO, .generation = UINT64_MAX - 1, .flag = true);
    is(&b, ST_ALONE);
    want(&b, SA_SEND_REFUSE);
    assert_null(find(&b, SA_ASK));
}

static void a_qemu_that_does_not_answer_lets_the_standby_ask_first(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    b.now += SEC / 5;
    STEP(&b, .type = SE_OUTPUT_WAITS);
    want(&b, SA_CAPTURE);
    STEP(&b, .type = SE_CAPTURE_FAILED, .error = -ETIMEDOUT);
    is(&b, ST_CLAIMING);
    assert_int_equal(want(&b, SA_SEND_GONE)->code, 2);
    want(&b, SA_DISCONNECT);
    assert_null(find(&b, SA_ASK));
    assert_false(passes(&b));
    b.now += b.s.config.yield_ns - MS;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_ASK));
    b.now += MS;
    STEP(&b, .type = SE_TICK); /* nobody took over: a guest that hangs is better than none */
    want(&b, SA_ASK);
    answer(&b, GRANT_NO);
    is(&b, ST_OUTDATED);
}

static void an_asking_standby_follows_an_active_that_was_granted(void **state)
{
    struct bench b;

    (void)state;
    asking(&b);
    answer(&b, GRANT_UNREACHABLE);
    meet(&b, true, 4, true); /* the generation that it asks to succeed proves nothing */
    is(&b, ST_STANDBY_ASKING);
    assert_false(b.s.link_up);
    STEP(&b, .type = SE_LINK_UP, .flag = true);
    STEP(&b, .type = SE_PEER_HELLO, .generation = 5, .flag = true);
    is(&b, ST_STANDBY_ASKING); /* a word alone does not cost the copy */
    STEP(&b, .type = SE_PEER_LAYOUT, .flag = true);
    is(&b, ST_STANDBY_SYNCING);
    assert_int_equal(b.s.generation, 5);
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_ASK));
}

static void a_standby_that_somebody_resumed_is_none(void **state)
{
    struct bench b;

    (void)state;
    start(&b, ROLE_NONE, 0, GUEST_FRESH); /* libvirt: -S, then cont */
    STEP(&b, .type = SE_GUEST_RESUMED);
    is(&b, ST_NONE);
    STEP(&b, .type = SE_OP_PAIR);
    is(&b, ST_CLAIMING);
    start(&b, ROLE_ACTIVE_ALONE, 3, GUEST_FRESH);
    STEP(&b, .type = SE_GUEST_RESUMED);
    is(&b, ST_ALONE);
    start(&b, ROLE_ACTIVE_PROTECTING, 3, GUEST_FRESH); /* what was protected is not in a guest that booted */
    STEP(&b, .type = SE_GUEST_RESUMED);
    is(&b, ST_OUTDATED);
    want(&b, SA_STOP_GUEST);
    ready(&b);
    STEP(&b, .type = SE_GUEST_RESUMED);
    is(&b, ST_OUTDATED);
    want(&b, SA_DISCONNECT);
    assert_null(find(&b, SA_ASK));
    asking(&b);
    answer(&b, GRANT_UNREACHABLE);
    STEP(&b, .type = SE_GUEST_RESUMED);
    is(&b, ST_OUTDATED);
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_ASK));
}

static void a_standby_whose_qemu_ended_its_session_does_not_ask(void **state)
{
    struct bench b;

    (void)state;
    ready(&b);
    STEP(&b, .type = SE_CAPTURE_FAILED, .text = "a device was added");
    is(&b, ST_STANDBY_WAIT);
    want(&b, SA_DISCONNECT);
    assert_null(find(&b, SA_ASK));
    asking(&b);
    answer(&b, GRANT_UNREACHABLE);
    STEP(&b, .type = SE_CAPTURE_FAILED, .text = "a device was added");
    is(&b, ST_STANDBY_WAIT);
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_ASK));
}

static void a_layout_after_the_end_of_its_link_begins_nothing(void **state)
{
    struct bench b;

    (void)state;
    alone(&b);
    STEP(&b, .type = SE_LINK_UP);
    STEP(&b, .type = SE_PEER_HELLO, .generation = 0);
    STEP(&b, .type = SE_LINK_DOWN);
    STEP(&b, .type = SE_PEER_LAYOUT, .flag = true);
    is(&b, ST_ALONE);
}

static void an_outdated_guest_that_could_not_be_stopped_is_stopped_again(void **state)
{
    struct bench b;

    (void)state;
    protected(&b);
    STEP(&b, .type = SE_LINK_DOWN);
    answer(&b, GRANT_NO);
    is(&b, ST_OUTDATED);
    done(&b, want(&b, SA_STOP_GUEST)->serial, -EIO);
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    want(&b, SA_STOP_GUEST);
    assert_int_equal(want(&b, SA_OUTPUT)->code, OUTPUT_DROP);
    done(&b, b.s.wait_stop, 0);
    b.now += SEC;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_STOP_GUEST));
}

static void a_standby_that_refuses_after_epoch_one_is_not_called_again_at_once(void **state)
{
    struct bench b;

    (void)state;
    entered(&b);
    STEP(&b, .type = SE_PEER_REFUSED, .code = 7, .text = "its disk is full");
    is(&b, ST_CLAIMING);
    answer(&b, GRANT_YES);
    is(&b, ST_ALONE);
    b.now += 2 * SEC;
    STEP(&b, .type = SE_TICK);
    assert_null(find(&b, SA_CONNECT));
    b.now += 10 * b.s.config.reconnect_ns;
    STEP(&b, .type = SE_TICK);
    want(&b, SA_CONNECT);
}

/* What the tests above moved through, and the few rare moves, is all that the table allows. */
static void every_legal_move_was_walked(void **state)
{
    struct bench b;
    unsigned missing = 0;

    (void)state;
    start(&b, ROLE_NONE, 0, GUEST_RUNNING); /* NONE -> CLAIMING -> ENDED -> NONE */
    STEP(&b, .type = SE_OP_PAIR);
    STEP(&b, .type = SE_GUEST_LOST);
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_RUNNING);
    STEP(&b, .type = SE_OP_PAIR);
    done(&b, b.s.wait_save, -ENOSPC); /* CLAIMING -> NONE */
    alone(&b);
    STEP(&b, .type = SE_OP_UNPAIR); /* ALONE -> NONE */
    alone(&b); /* ALONE -> ENDED -> ALONE */
    STEP(&b, .type = SE_GUEST_LOST);
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_RUNNING);
    is(&b, ST_ALONE);
    syncing(&b);
    STEP(&b, .type = SE_GUEST_LOST);
    syncing(&b);
    STEP(&b, .type = SE_OP_UNPAIR);
    protected(&b); /* PROTECTED -> ENDED -> CLAIMING -> OUTDATED -> ENDED -> OUTDATED */
    STEP(&b, .type = SE_GUEST_LOST);
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_RUNNING);
    is(&b, ST_CLAIMING);
    answer(&b, GRANT_NO);
    STEP(&b, .type = SE_GUEST_LOST);
    STEP(&b, .type = SE_GUEST_ATTACHED, .guest = GUEST_RUNNING);
    is(&b, ST_OUTDATED);
    STEP(&b, .type = SE_OP_PROMOTE, .flag = true);
    is(&b, ST_CLAIMING);
    start(&b, ROLE_NONE, 0, GUEST_FRESH);
    STEP(&b, .type = SE_GUEST_LOST);
    standby_syncing(&b);
    STEP(&b, .type = SE_GUEST_LOST);
    ready(&b);
    STEP(&b, .type = SE_GUEST_LOST);
    asking(&b);
    answer(&b, GRANT_YES);
    STEP(&b, .type = SE_GUEST_LOST);
    asking(&b);
    answer(&b, GRANT_YES);
    done(&b, b.s.wait_load, 0);
    done(&b, b.s.wait_run, -5);
    is(&b, ST_BROKEN);
    STEP(&b, .type = SE_GUEST_LOST);
    for (unsigned from = 0; from < ST_NUM; from++) {
        for (unsigned to = 0; to < ST_NUM; to++) {
            bool legal = session_may_move((enum session_state)from, (enum session_state)to);
            assert_true(legal || !moves[from][to]);
            if (legal && !moves[from][to]) {
                print_message("not walked: %s -> %s\n", session_state_name((enum session_state)from),
                              session_state_name((enum session_state)to));
                missing++;
            }
        }
    }
    assert_int_equal(missing, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_state_has_a_name_and_a_way_out),
        cmocka_unit_test(every_event_and_action_has_a_name),
        cmocka_unit_test(the_table_forbids_what_the_rules_forbid),
        cmocka_unit_test(output_is_held_before_the_last_part_is_captured),
        cmocka_unit_test(nothing_is_released_before_its_ack),
        cmocka_unit_test(an_ack_of_an_epoch_that_was_not_sent_ends_the_protection),
        cmocka_unit_test(an_ack_that_comes_after_the_loss_releases_nothing),
        cmocka_unit_test(output_passes_only_with_a_grant),
        cmocka_unit_test(a_link_lost_before_the_last_part_needs_no_arbiter),
        cmocka_unit_test(a_save_that_fails_while_entering_leaves_the_guest_alone),
        cmocka_unit_test(a_standby_loads_and_runs_only_when_granted),
        cmocka_unit_test(silence_of_the_arbiter_is_no_grant),
        cmocka_unit_test(a_standby_that_is_not_whole_never_asks),
        cmocka_unit_test(acks_wait_for_the_state_file),
        cmocka_unit_test(only_whole_epochs_are_acked),
        cmocka_unit_test(epochs_out_of_order_end_the_connection),
        cmocka_unit_test(nothing_is_acked_after_the_ask),
        cmocka_unit_test(what_is_loaded_is_the_last_acked_epoch),
        cmocka_unit_test(a_load_that_fails_breaks_and_never_runs),
        cmocka_unit_test(a_refusal_stops_the_guest_and_drops_its_output),
        cmocka_unit_test(a_standby_that_is_refused_forgets_what_it_holds),
        cmocka_unit_test(outdated_outlives_a_restart),
        cmocka_unit_test(a_register_that_we_hold_is_ours_to_continue),
        cmocka_unit_test(nobody_answers_so_the_guest_freezes_and_goes_on_when_granted),
        cmocka_unit_test(an_answer_to_a_former_ask_is_not_taken_for_this_one),
        cmocka_unit_test(an_ask_is_repeated_with_the_same_nonce_after_a_restart),
        cmocka_unit_test(a_polluxd_that_was_alone_goes_on_without_asking),
        cmocka_unit_test(a_guest_that_booted_anew_never_asks),
        cmocka_unit_test(a_newer_generation_at_the_peer_makes_an_active_ask),
        cmocka_unit_test(two_actives_and_two_standbys_refuse_each_other),
        cmocka_unit_test(different_machines_are_refused_and_the_guest_goes_on),
        cmocka_unit_test(silence_is_loss_only_after_the_time_out),
        cmocka_unit_test(own_standstill_is_not_the_peers_silence),
        cmocka_unit_test(own_backpressure_is_not_the_peers_silence),
        cmocka_unit_test(a_deadline_that_was_served_is_not_due_again),
        cmocka_unit_test(stale_serials_are_ignored),
        cmocka_unit_test(a_capture_of_a_former_session_is_ignored),
        cmocka_unit_test(what_a_dead_qemu_was_asked_is_not_waited_for),
        cmocka_unit_test(a_guest_stopped_by_the_limit_is_resumed_after_the_release),
        cmocka_unit_test(a_stop_that_crosses_the_grant_is_resumed),
        cmocka_unit_test(a_resume_older_than_our_stop_does_not_hide_it),
        cmocka_unit_test(a_capture_goes_on_in_the_next_slot_without_a_pause_in_between),
        cmocka_unit_test(a_dead_peer_is_noticed_even_if_heartbeats_are_rare),
        cmocka_unit_test(a_standby_that_lives_but_does_not_ack_is_given_up),
        cmocka_unit_test(output_that_could_not_be_let_pass_is_tried_again),
        cmocka_unit_test(a_failed_capture_does_not_invite_the_standby_to_take_over),
        cmocka_unit_test(a_full_sync_ends_even_if_no_round_ever_fits_a_slot),
        cmocka_unit_test(no_more_epochs_are_in_flight_than_allowed),
        cmocka_unit_test(a_sync_that_does_not_end_leaves_the_generation_as_it_was),
        cmocka_unit_test(a_generation_beyond_reach_is_refused),
        cmocka_unit_test(a_qemu_that_does_not_answer_lets_the_standby_ask_first),
        cmocka_unit_test(an_asking_standby_follows_an_active_that_was_granted),
        cmocka_unit_test(a_standby_that_somebody_resumed_is_none),
        cmocka_unit_test(a_standby_whose_qemu_ended_its_session_does_not_ask),
        cmocka_unit_test(a_layout_after_the_end_of_its_link_begins_nothing),
        cmocka_unit_test(a_standby_that_refuses_after_epoch_one_is_not_called_again_at_once),
        cmocka_unit_test(an_outdated_guest_that_could_not_be_stopped_is_stopped_again),
        cmocka_unit_test(every_legal_move_was_walked),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
