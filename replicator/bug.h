/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bug.h - ASSERT: for our own mistakes only, always compiled in
 *
 * Bytes from the peer, QEMU, the guest, the disk or the operator never reach it.
 */
#ifndef POLLUX_BUG_H
#define POLLUX_BUG_H

#include <stdio.h>
#include <stdlib.h>

#define ASSERT(cond)                                                                    \
    do {                                                                                \
        if (!(cond)) {                                                                  \
            fprintf(stderr, "%s:%d: bug: %s\n", __FILE__, __LINE__, #cond);             \
            abort();                                                                    \
        }                                                                               \
    } while (0)

#endif
