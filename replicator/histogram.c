/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * histogram.c - a log-linear histogram of durations
 *
 * Each power of two is cut into HISTOGRAM_SUB linear buckets (the scheme of HdrHistogram), so that
 * p50 of a 300 us pause and p99 of a 300 ms one are read from the same 9 KiB.
 */
#include "histogram.h"

#include <string.h>

static unsigned bucket_of(uint64_t value)
{
    unsigned top, shift;

    if (value < HISTOGRAM_SUB)
        return (unsigned)value;
    if (value >> HISTOGRAM_TOP_BITS)
        return HISTOGRAM_BUCKETS - 1;
    top = 63u - (unsigned)__builtin_clzll(value);
    shift = top - HISTOGRAM_SUB_BITS;
    return HISTOGRAM_SUB * (shift + 1) + (unsigned)((value >> shift) - HISTOGRAM_SUB);
}

/* The largest value that bucket_of() maps to bucket @i. */
static uint64_t bucket_edge(unsigned i)
{
    unsigned shift;

    if (i < HISTOGRAM_SUB)
        return i;
    shift = i / HISTOGRAM_SUB - 1;
    return ((uint64_t)(i % HISTOGRAM_SUB + HISTOGRAM_SUB + 1) << shift) - 1;
}

static uint64_t add_saturating(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

void histogram_init(struct histogram *h)
{
    memset(h, 0, sizeof(*h));
    h->min = UINT64_MAX;
}

void histogram_add(struct histogram *h, uint64_t value)
{
    h->count++;
    h->sum = add_saturating(h->sum, value);
    if (value < h->min)
        h->min = value;
    if (value > h->max)
        h->max = value;
    h->bucket[bucket_of(value)]++;
}

void histogram_merge(struct histogram *h, const struct histogram *from)
{
    unsigned i;

    h->count += from->count;
    h->sum = add_saturating(h->sum, from->sum);
    if (from->min < h->min)
        h->min = from->min;
    if (from->max > h->max)
        h->max = from->max;
    for (i = 0; i < HISTOGRAM_BUCKETS; i++)
        h->bucket[i] += from->bucket[i];
}

uint64_t histogram_percentile(const struct histogram *h, unsigned permille)
{
    uint64_t rank, seen = 0, value = h->max;
    unsigned i;

    if (!h->count)
        return 0;
    if (permille > 1000)
        permille = 1000;
    /* Rank of the wanted value, 1-based, rounded up, without overflow for any count. */
    rank = h->count / 1000 * permille + (h->count % 1000 * permille + 999) / 1000;
    if (!rank)
        rank = 1;
    for (i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen >= rank) {
            /* The last bucket has no upper edge: only the exact maximum bounds it. */
            value = i == HISTOGRAM_BUCKETS - 1 ? h->max : bucket_edge(i);
            break;
        }
    }
    if (value > h->max)
        value = h->max;
    return value < h->min ? h->min : value;
}

uint64_t histogram_mean(const struct histogram *h)
{
    return h->count ? h->sum / h->count : 0;
}
