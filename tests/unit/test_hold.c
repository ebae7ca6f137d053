/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_hold.c - the policy of held output: each test's name is the fact it proves
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "../../net-buffer/hold.h"

#define MS 1000000ull

static const struct hold_limits limits = {
    .max_bytes = 1000, .max_packets = 100, .max_hold_ns = 500 * MS};

static struct hold begun(void)
{
    struct hold h;

    assert_int_equal(hold_init(&h, &limits), 0);
    hold_restart(&h, 0);
    return h;
}

static void decides(const struct hold *h, uint64_t now_ns, enum hold_verdict want,
                    enum hold_reason why)
{
    enum hold_reason reason = HOLD_REASON_NUM;

    assert_string_equal(hold_verdict_name(hold_decide(h, now_ns, &reason)),
                        hold_verdict_name(want));
    assert_string_equal(hold_reason_name(reason), hold_reason_name(why));
    assert_int_equal(hold_decide(h, now_ns, NULL), want);
}

static void limits_of_zero_or_too_large_are_refused(void **state)
{
    struct hold_limits l = limits;
    struct hold h;

    (void)state;
    l.max_bytes = 0;
    assert_int_equal(hold_init(&h, &l), -EINVAL);
    l = limits;
    l.max_packets = 0;
    assert_int_equal(hold_init(&h, &l), -EINVAL);
    l = limits;
    l.max_bytes = UINT64_MAX;
    assert_int_equal(hold_check_limits(&l), -EINVAL);
    l = limits;
    l.max_packets = UINT64_MAX;
    assert_int_equal(hold_check_limits(&l), -EINVAL);
    assert_int_equal(hold_check_limits(&limits), 0);
}

static void an_idle_guest_asks_for_nothing(void **state)
{
    struct hold h = begun();
    uint64_t at;

    (void)state;
    decides(&h, 0, HOLD_NOTHING, HOLD_REASON_NONE);
    decides(&h, 1000000 * MS, HOLD_NOTHING, HOLD_REASON_NONE);
    assert_false(hold_deadline(&h, &at));
}

static void held_output_asks_for_an_early_capture_until_captured(void **state)
{
    struct hold h = begun();

    (void)state;
    hold_wakeup(&h, 1, 10 * MS);
    decides(&h, 10 * MS, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    decides(&h, 11 * MS, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    hold_captured(&h, 1, 1, 60, 12 * MS);
    decides(&h, 12 * MS, HOLD_NOTHING, HOLD_REASON_NONE);
    hold_wakeup(&h, 2, 13 * MS);
    decides(&h, 13 * MS, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
}

static void a_late_wakeup_of_a_captured_epoch_is_ignored(void **state)
{
    struct hold h = begun();

    (void)state;
    hold_captured(&h, 1, 1, 60, MS);
    hold_wakeup(&h, 1, 2 * MS);
    decides(&h, 2 * MS, HOLD_NOTHING, HOLD_REASON_NONE);
}

static void a_lost_wakeup_is_made_good_by_the_counters(void **state)
{
    struct hold h = begun();
    uint64_t epoch, held;

    (void)state;
    hold_observed(&h, 1, 60, 5 * MS);
    decides(&h, 5 * MS, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    hold_captured(&h, 1, 1, 60, 6 * MS);
    hold_observed(&h, 1, 60, 7 * MS);
    decides(&h, 7 * MS, HOLD_NOTHING, HOLD_REASON_NONE);
    /* One more while the first still waits. */
    hold_observed(&h, 2, 120, 8 * MS);
    decides(&h, 8 * MS, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    hold_captured(&h, 2, 2, 120, 9 * MS);
    hold_released(&h, 2, 2, 120, 10 * MS);
    assert_true(hold_next_time(&h, &epoch, &held));
    assert_int_equal(epoch, 1);
    assert_int_equal(held, 5 * MS);
    assert_true(hold_next_time(&h, &epoch, &held));
    assert_int_equal(epoch, 2);
    assert_int_equal(held, 2 * MS);
    assert_false(hold_next_time(&h, &epoch, &held));
}

static void hold_times_run_from_first_packet_to_release(void **state)
{
    struct hold h = begun();
    uint64_t epoch = 77, held = 88;

    (void)state;
    hold_wakeup(&h, 1, 10 * MS);
    hold_wakeup(&h, 1, 11 * MS); /* half-full reminder: not a new first packet */
    hold_captured(&h, 1, 2, 120, 12 * MS);
    hold_captured(&h, 2, 2, 120, 13 * MS); /* an epoch without output has no hold time */
    hold_wakeup(&h, 3, 14 * MS);
    hold_captured(&h, 3, 3, 180, 15 * MS);
    assert_false(hold_next_time(&h, &epoch, &held));
    assert_int_equal(epoch, 77);
    assert_int_equal(held, 88);

    hold_released(&h, 2, 2, 120, 20 * MS);
    assert_true(hold_next_time(&h, &epoch, &held));
    assert_int_equal(epoch, 1);
    assert_int_equal(held, 10 * MS);
    assert_false(hold_next_time(&h, &epoch, &held));
    assert_int_equal(h.packets, 1);

    hold_released(&h, 1, 0, 0, 25 * MS); /* older than before: nothing */
    assert_false(hold_next_time(&h, &epoch, &held));
    hold_released(&h, 3, 1, 60, 30 * MS);
    assert_true(hold_next_time(&h, &epoch, &held));
    assert_int_equal(epoch, 3);
    assert_int_equal(held, 16 * MS);
    assert_int_equal(h.packets, 0);
    assert_int_equal(h.bytes, 0);
}

static void the_guest_freezes_at_each_limit_and_not_below(void **state)
{
    struct hold h = begun();

    (void)state;
    hold_observed(&h, 99, 999, MS);
    decides(&h, MS, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    hold_observed(&h, 99, 1000, MS);
    decides(&h, MS, HOLD_FREEZE, HOLD_REASON_BYTES);
    hold_observed(&h, 100, 999, MS);
    decides(&h, MS, HOLD_FREEZE, HOLD_REASON_PACKETS);
    hold_observed(&h, UINT64_MAX, UINT64_MAX, MS);
    decides(&h, MS, HOLD_FREEZE, HOLD_REASON_BYTES);
}

static void the_guest_freezes_when_the_oldest_output_waited_too_long(void **state)
{
    struct hold h = begun();
    uint64_t at;

    (void)state;
    hold_wakeup(&h, 1, 10 * MS);
    hold_captured(&h, 1, 1, 60, 11 * MS);
    hold_wakeup(&h, 2, 400 * MS);
    assert_true(hold_deadline(&h, &at));
    assert_int_equal(at, 510 * MS);
    decides(&h, at - 1, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    decides(&h, at, HOLD_FREEZE, HOLD_REASON_TIME);
    hold_released(&h, 1, 1, 60, at);
    decides(&h, at, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    assert_true(hold_deadline(&h, &at));
    assert_int_equal(at, 900 * MS);
}

static void no_time_limit_means_no_deadline(void **state)
{
    struct hold_limits l = limits;
    struct hold h;
    uint64_t at;

    (void)state;
    l.max_hold_ns = 0;
    assert_int_equal(hold_init(&h, &l), 0);
    hold_restart(&h, 0);
    hold_wakeup(&h, 1, 1);
    assert_false(hold_deadline(&h, &at));
    decides(&h, UINT64_MAX, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
}

static void a_frozen_guest_is_captured_and_thaws_below_half(void **state)
{
    struct hold h = begun();

    (void)state;
    hold_wakeup(&h, 1, MS);
    hold_observed(&h, 10, 1000, 2 * MS);
    decides(&h, 2 * MS, HOLD_FREEZE, HOLD_REASON_BYTES);
    hold_frozen(&h, 2 * MS);
    hold_frozen(&h, 3 * MS); /* told twice: QEMU's event and our own */
    decides(&h, 3 * MS, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    hold_captured(&h, 1, 10, 1000, 4 * MS);
    decides(&h, 4 * MS, HOLD_NOTHING, HOLD_REASON_NONE);
    hold_released(&h, 1, 5, 500, 5 * MS);
    decides(&h, 5 * MS, HOLD_NOTHING, HOLD_REASON_NONE); /* 500 is half, not below */
    hold_observed(&h, 4, 499, 5 * MS);
    decides(&h, 5 * MS, HOLD_THAW, HOLD_REASON_ROOM);
    assert_int_equal(hold_frozen_total_ns(&h, 6 * MS), 4 * MS);
    hold_thawed(&h, 6 * MS);
    hold_thawed(&h, 9 * MS);
    decides(&h, 6 * MS, HOLD_NOTHING, HOLD_REASON_NONE);
    assert_int_equal(h.freezes, 1);
    assert_int_equal(hold_frozen_total_ns(&h, 100 * MS), 4 * MS);
}

static void a_limit_of_one_still_thaws(void **state)
{
    struct hold_limits l = {.max_bytes = 1, .max_packets = 1};
    struct hold h;

    (void)state;
    assert_int_equal(hold_init(&h, &l), 0);
    hold_restart(&h, 0);
    hold_observed(&h, 1, 60, 0);
    decides(&h, 0, HOLD_FREEZE, HOLD_REASON_BYTES);
    hold_frozen(&h, 0);
    hold_captured(&h, 1, 1, 60, 0);
    hold_released(&h, 1, 1, 60, 0);
    decides(&h, 0, HOLD_THAW, HOLD_REASON_ROOM);
}

static void a_new_session_takes_old_output_as_its_first_epoch(void **state)
{
    struct hold h = begun();
    uint64_t epoch, held;

    (void)state;
    hold_captured(&h, 40, 0, 0, 5 * MS);
    hold_wakeup(&h, 41, 10 * MS);
    hold_observed(&h, 3, 180, 10 * MS);
    hold_restart(&h, 50 * MS);
    decides(&h, 50 * MS, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    hold_captured(&h, 1, 3, 180, 60 * MS);
    hold_released(&h, 1, 3, 180, 70 * MS);
    assert_true(hold_next_time(&h, &epoch, &held));
    assert_int_equal(epoch, 1);
    assert_int_equal(held, 60 * MS);
    assert_false(hold_next_time(&h, &epoch, &held));
}

static void a_full_account_merges_and_never_reports_too_short(void **state)
{
    struct hold h = begun();
    uint64_t n, epoch = 0, held = 0, nr = 0;

    (void)state;
    for (n = 1; n <= HOLD_EPOCHS_MAX + 10; n++) {
        hold_wakeup(&h, n, n);
        hold_captured(&h, n, n % 50, n % 50, n);
    }
    assert_int_equal(h.merged, 10);
    hold_released(&h, n - 1, 0, 0, 1000);
    while (hold_next_time(&h, &epoch, &held)) {
        nr++;
        assert_true(held >= 1000 - epoch);
    }
    assert_int_equal(nr, HOLD_EPOCHS_MAX);
    assert_int_equal(epoch, HOLD_EPOCHS_MAX + 10);
    /* The ring is usable again. */
    hold_wakeup(&h, n, n);
    decides(&h, n, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
}

static void a_clock_that_goes_back_gives_zero_not_ages(void **state)
{
    struct hold h = begun();
    uint64_t epoch, held = 1;

    (void)state;
    hold_wakeup(&h, 1, 100 * MS);
    decides(&h, 5 * MS, HOLD_CAPTURE_EARLY, HOLD_REASON_OUTPUT_WAITS);
    hold_captured(&h, 1, 1, 60, 5 * MS);
    hold_released(&h, 1, 9, 9000, 6 * MS); /* more than was there: the counters are not trusted */
    assert_true(hold_next_time(&h, &epoch, &held));
    assert_int_equal(held, 0);
    assert_int_equal(h.packets, 0);
}

static void every_verdict_and_reason_has_a_name(void **state)
{
    int i;

    (void)state;
    for (i = 0; i < HOLD_VERDICT_NUM; i++)
        assert_string_not_equal(hold_verdict_name((enum hold_verdict)i), "?");
    for (i = 0; i < HOLD_REASON_NUM; i++)
        assert_string_not_equal(hold_reason_name((enum hold_reason)i), "?");
    assert_string_equal(hold_verdict_name(HOLD_VERDICT_NUM), "?");
    assert_string_equal(hold_reason_name(HOLD_REASON_NUM), "?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limits_of_zero_or_too_large_are_refused),
        cmocka_unit_test(an_idle_guest_asks_for_nothing),
        cmocka_unit_test(held_output_asks_for_an_early_capture_until_captured),
        cmocka_unit_test(a_late_wakeup_of_a_captured_epoch_is_ignored),
        cmocka_unit_test(a_lost_wakeup_is_made_good_by_the_counters),
        cmocka_unit_test(hold_times_run_from_first_packet_to_release),
        cmocka_unit_test(the_guest_freezes_at_each_limit_and_not_below),
        cmocka_unit_test(the_guest_freezes_when_the_oldest_output_waited_too_long),
        cmocka_unit_test(no_time_limit_means_no_deadline),
        cmocka_unit_test(a_frozen_guest_is_captured_and_thaws_below_half),
        cmocka_unit_test(a_limit_of_one_still_thaws),
        cmocka_unit_test(a_new_session_takes_old_output_as_its_first_epoch),
        cmocka_unit_test(a_full_account_merges_and_never_reports_too_short),
        cmocka_unit_test(a_clock_that_goes_back_gives_zero_not_ages),
        cmocka_unit_test(every_verdict_and_reason_has_a_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
