/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * histogram.h - a log-linear histogram of durations
 *
 * Owns its counters: fixed size, no allocation. Values below 64 are counted exactly, larger ones
 * within 1/32 (3.1 %); minimum, maximum, count and sum are exact. The unit is the caller's (the
 * daemon uses microseconds everywhere). Reads no clock.
 */
#ifndef POLLUX_HISTOGRAM_H
#define POLLUX_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_SUB_BITS 5u
#define HISTOGRAM_SUB (1u << HISTOGRAM_SUB_BITS)
/* Values of 2^40 and more (12 days in microseconds) share the last bucket; max stays exact. */
#define HISTOGRAM_TOP_BITS 40u
#define HISTOGRAM_BUCKETS (HISTOGRAM_SUB * (HISTOGRAM_TOP_BITS - HISTOGRAM_SUB_BITS + 1))

struct histogram {
    uint64_t count;
    uint64_t sum; /* stops at UINT64_MAX instead of wrapping */
    uint64_t min; /* UINT64_MAX while empty */
    uint64_t max;
    uint64_t bucket[HISTOGRAM_BUCKETS];
};

/**
 * Make @p h empty.
 * @param h the histogram
 */
void histogram_init(struct histogram *h);

/**
 * Count one value.
 * @param h the histogram
 * @param value in the unit of the caller
 */
void histogram_add(struct histogram *h, uint64_t value);

/**
 * Add everything counted in @p from.
 * @param h the histogram that grows
 * @param from unchanged; may not be @p h
 */
void histogram_merge(struct histogram *h, const struct histogram *from);

/**
 * The value that a share of all values does not exceed.
 * @param h the histogram
 * @param permille 0..1000 (500 = median, 990 = p99); more counts as 1000
 * @return upper edge of the bucket that holds it, never above the exact maximum nor below the
 *         exact minimum; 0 when nothing was counted
 */
uint64_t histogram_percentile(const struct histogram *h, unsigned permille);

/**
 * Arithmetic mean, rounded down.
 * @param h the histogram
 * @return 0 when nothing was counted
 */
uint64_t histogram_mean(const struct histogram *h);

#endif
