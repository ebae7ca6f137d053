/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_histogram.c - what histogram.c promises, against exact sorted values
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../../replicator/histogram.h"

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static void empty_answers_zero(void **state)
{
    struct histogram h;

    (void)state;
    histogram_init(&h);
    assert_int_equal(histogram_percentile(&h, 500), 0);
    assert_int_equal(histogram_percentile(&h, 1000), 0);
    assert_int_equal(histogram_mean(&h), 0);
}

static void one_value_is_every_percentile(void **state)
{
    static const uint64_t values[] = {0,   1,    31,         32,        63,        64,      65,
                                      100, 1000, 1234567890, 1ull << 39, 1ull << 40, UINT64_MAX};
    struct histogram h;
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        histogram_init(&h);
        histogram_add(&h, values[i]);
        assert_int_equal(histogram_percentile(&h, 0), values[i]);
        assert_int_equal(histogram_percentile(&h, 500), values[i]);
        assert_int_equal(histogram_percentile(&h, 1000), values[i]);
        assert_int_equal(h.min, values[i]);
        assert_int_equal(h.max, values[i]);
    }
}

static void values_below_64_are_exact(void **state)
{
    struct histogram h;
    uint64_t v;

    (void)state;
    histogram_init(&h);
    for (v = 0; v < 64; v++)
        histogram_add(&h, v);
    for (v = 1; v <= 64; v++)
        assert_int_equal(histogram_percentile(&h, (unsigned)(v * 1000 / 64)),
                         (v * 1000 / 64 * 64 + 999) / 1000 - 1);
    assert_int_equal(histogram_mean(&h), 31);
}

/* Every percentile of 20,000 values over twelve orders of magnitude is within 1/32 of the truth. */
static void percentiles_are_within_a_thirtysecond(void **state)
{
    enum { N = 20000 };
    static uint64_t values[N];
    struct histogram h;
    uint64_t seed = 42, got, want;
    unsigned i, p;

    (void)state;
    histogram_init(&h);
    for (i = 0; i < N; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        values[i] = (seed >> 24) >> (seed >> 18 & 31);
        histogram_add(&h, values[i]);
    }
    qsort(values, N, sizeof(values[0]), by_value);
    for (p = 1; p <= 1000; p++) {
        want = values[((uint64_t)N * p + 999) / 1000 - 1];
        got = histogram_percentile(&h, p);
        assert_true(got >= want);
        assert_true(got - want <= want / 32);
    }
    assert_int_equal(histogram_percentile(&h, 1000), values[N - 1]);
    assert_int_equal(histogram_percentile(&h, 5000), values[N - 1]);
}

static void huge_values_share_a_bucket_but_keep_the_maximum(void **state)
{
    struct histogram h;

    (void)state;
    histogram_init(&h);
    histogram_add(&h, 10);
    histogram_add(&h, 1ull << 50);
    histogram_add(&h, UINT64_MAX);
    assert_int_equal(histogram_percentile(&h, 333), 10);
    assert_int_equal(histogram_percentile(&h, 1000), UINT64_MAX);
    assert_int_equal(h.sum, UINT64_MAX);
}

static void merging_equals_adding(void **state)
{
    struct histogram a, b, both;
    uint64_t v;

    (void)state;
    histogram_init(&a);
    histogram_init(&b);
    histogram_init(&both);
    for (v = 1; v < 5000; v++) {
        histogram_add(v % 3 ? &a : &b, v * v);
        histogram_add(&both, v * v);
    }
    histogram_merge(&a, &b);
    assert_memory_equal(&a, &both, sizeof(a));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(empty_answers_zero),
        cmocka_unit_test(one_value_is_every_percentile),
        cmocka_unit_test(values_below_64_are_exact),
        cmocka_unit_test(percentiles_are_within_a_thirtysecond),
        cmocka_unit_test(huge_values_share_a_bucket_but_keep_the_maximum),
        cmocka_unit_test(merging_equals_adding),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
