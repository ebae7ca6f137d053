/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * registers.h - the witness's memory: one compare-and-swap register for each VM, on disk
 *
 * Each register is one file, VM.register: text (replicator/keyfile.h) filled up with newlines to 512 bytes.
 * The first grant of a VM makes it: temporary file, fsync, rename, fsync of the directory. Every later
 * one overwrites the 512 bytes in place and waits for fdatasync: one flush without a journal commit, measured
 * under load at 1 to 3 ms where replacing the file took 8 to 11 ms, and it needs no free space. A sector is
 * written whole or not at all, so after a crash there is the old register or the new one, whose answer
 * nobody has seen. A disk that breaks this promise leaves a wrong checksum, and then nothing is granted. A log
 * that only grows would need one flush as well, but its end is torn after every crash in mid-write, and
 * then "written but not answered" and "answered and later damaged" look the same: one would have to guess.
 *
 * What is in memory is on disk: memory is changed after the flush, and at the start the file system is
 * synced before anything is answered (the one before us may have been killed between write and flush).
 *
 * Owns the state directory (flock on it). Never logs, never talks to a client.
 */
#ifndef POLLUX_WITNESS_REGISTERS_H
#define POLLUX_WITNESS_REGISTERS_H

#include <stdint.h>

#include "../replicator/wire-format.h"

#define REGISTERS_MAX 4096 /* VMs; 96 bytes of memory each */
#define REGISTERS_WHY_BYTES 900

struct arb_register {
    char vm[WIRE_VM_BYTES]; /* zero padded */
    uint64_t generation;    /* 1 or more */
    uint8_t holder[16];
    uint8_t nonce[16];
};

struct registers {
    int dirfd;
    unsigned nr;
    struct arb_register *list; /* REGISTERS_MAX */
};

/**
 * Lock the state directory (made if it is missing) and read all registers.
 * @param r        to fill
 * @param dir      its path
 * @param ret_why  on error: a sentence that says what is wrong and what to do
 * @return 0 or -errno; after an error nothing is held
 */
int registers_open(struct registers *r, const char *dir, char ret_why[REGISTERS_WHY_BYTES]);

/**
 * Write a register anew that was lost or damaged, as an operator says; holder and nonce are zero. An undamaged one
 * is never touched; a damaged file is kept as VM.register.damaged.
 * @param dir         the state directory, which no witness may be using
 * @param vm          zero padded, legal
 * @param generation  1 or more
 * @param ret_why     on error: a sentence
 * @return 0; -EEXIST there is an undamaged one; another -errno
 */
int registers_restore(const char *dir, const char vm[WIRE_VM_BYTES], uint64_t generation,
                      char ret_why[REGISTERS_WHY_BYTES]);

/** Give everything back; legal again, and after registers_open() failed. */
void registers_close(struct registers *r);

/** @return the register of a VM (a zero padded name), or NULL if it has none yet */
const struct arb_register *registers_find(const struct registers *r, const char vm[WIRE_VM_BYTES]);

/**
 * Carry out a CAS. Blocks until a change is on disk.
 * @param r          the registers
 * @param ask        checked by wire.c, op CAS
 * @param ret_error  written always: 0, or what stood behind WIRE_ARB_ERROR (-ENOSPC also when there are
 *                   REGISTERS_MAX)
 * @return the enum wire_arb_result; or -EIO if nobody can know what is on disk: no answer may be given any
 *         more, not about any register
 */
int registers_cas(struct registers *r, const struct wire_arb_ask *ask, int *ret_error);

#endif
