/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * seed.h - random numbers for tests that can be repeated
 *
 * The seed is fixed unless POLLUX_SEED is set, and is always printed. Never used by product code.
 */
#ifndef POLLUX_TEST_SEED_H
#define POLLUX_TEST_SEED_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t seed_state;

/** Begin a sequence of random numbers; prints how to get the same one again. */
static inline void seed_start(const char *test)
{
    const char *given = getenv("POLLUX_SEED");

    seed_state = given ? strtoull(given, NULL, 0) : 20260117;
    printf("%s: POLLUX_SEED=%llu\n", test, (unsigned long long)seed_state);
    seed_state = seed_state * 2 + 1; /* xorshift must not start at zero */
}

/** @return the next random number */
static inline uint64_t seed_next(void)
{
    seed_state ^= seed_state << 13;
    seed_state ^= seed_state >> 7;
    seed_state ^= seed_state << 17;
    return seed_state * 0x2545f4914f6cdd1dull;
}

/** @return a random number below n (n > 0) */
static inline size_t seed_below(size_t n)
{
    return (size_t)((seed_next() >> 16) % n);
}

#endif
