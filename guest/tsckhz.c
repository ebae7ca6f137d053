/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tsckhz - prints how fast this machine's time stamp counter runs, in kHz
 *
 * For `tsc_early_khz=` on the kernel command line of a microvm under TCG, whose counter is the
 * host's: that machine has neither HPET nor PM timer, so a Linux guest must calibrate against the
 * PIT, fails when the host is busy, and then hangs early, without a word. Runs on the host, for 50
 * ms.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

#define SPAN_NS 50000000ull

/* Reads clock and counter as one: of a few tries, the one that took the least time. */
static void read_pair(uint64_t *ret_ns, uint64_t *ret_tsc)
{
    uint64_t best = UINT64_MAX;
    struct timespec ts;

    for (int i = 0; i < 20; i++) {
        uint64_t before = __rdtsc(), after;

        clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
        after = __rdtsc();
        if (after - before >= best)
            continue;
        best = after - before;
        *ret_ns = (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
        *ret_tsc = before + best / 2;
    }
}

int main(void)
{
    const struct timespec pause = {.tv_nsec = SPAN_NS};
    uint64_t ns[2], tsc[2];

    read_pair(&ns[0], &tsc[0]);
    clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
    read_pair(&ns[1], &tsc[1]);
    printf("%" PRIu64 "\n", (tsc[1] - tsc[0]) * 1000000 / (ns[1] - ns[0]));
    return 0;
}
