/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * tick - wakes five times a second and does nothing
 *
 * Under TCG a guest that never switches address space never makes QEMU grow its soft-MMU TLB, and a
 * memory load alone then runs many times slower than beside one process that wakes now and then. So
 * every measured guest has this one. Touches no memory page that it did not touch before.
 */
#include <time.h>

int main(void)
{
    const struct timespec pause = {.tv_nsec = 200 * 1000 * 1000};

    for (;;)
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}
