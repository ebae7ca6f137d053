/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * store.h - the standby's epochs: received into arena slots, whole before anything is applied
 *
 * Owns: the standby's arena and which slot holds which epoch. A page stands once in a slot, a later copy
 * overwrites the earlier one, so a slot that can hold all of RAM can hold any epoch; memory is used only as
 * pages come and given back after they were applied. The slot of the last acked epoch is kept until the
 * next one is acked, because its device state is what a promotion loads.
 *
 * Theory of operation: FILLING (records come) -> WHOLE (EPOCH_END agreed: may be acked) -> APPLYING (QEMU copies)
 * -> APPLIED (kept for its device state) -> FREE. The parts of a FULL epoch are applied as they come, since there is
 * nothing older to protect: such a slot goes FILLING -> APPLYING_PART -> FREE and the epoch goes on in another.
 */
#ifndef POLLUX_STORE_H
#define POLLUX_STORE_H

#include <stdbool.h>

#include "arena.h"
#include "codec.h"
#include "wire.h"

#define STORE_SLOTS 4
#define STORE_PART_PAGES 4096u /* of a FULL epoch: applied when a slot has so many */
/*
 * A slot that used more gives its memory back. More than a part: giving back and touching again costs far more
 * than copying (a hole of 64 MiB took 55 ms, and each first touch a fault).
 */
#define STORE_FORGET_PAGES (2 * STORE_PART_PAGES)

enum store_state { STORE_FREE, STORE_FILLING, STORE_WHOLE, STORE_APPLYING, STORE_APPLYING_PART, STORE_APPLIED };

struct store_slot {
    enum store_state state;
    uint64_t epoch;
    uint64_t nr_pages;
    uint32_t state_bytes;
};

struct store {
    struct arena arena;
    struct codec_blocks blocks;
    uint64_t total_pages;
    uint64_t *block_first;   /* position of each block's first page in the map */
    uint32_t *map;           /* of the filling slot: position + 1 of each guest page, 0 none */
    uint64_t *index;         /* of the filling slot, our own: QEMU can write the one in the arena at any time */
    struct store_slot slot[STORE_SLOTS];
    int filling;             /* slot, -1 none */
    bool full;
    bool in_epoch;
    uint64_t epoch;          /* being received */
    uint64_t acked;          /* the last: its slot is kept, for its device state */
    uint64_t epoch_pages, epoch_state;
    uint64_t sync_pages;     /* of the FULL epoch so far, for progress */
    struct wire_digest digest;
    const char *why;         /* the broken rule after -EPROTO */
};

enum store_said {
    STORE_TAKEN,
    STORE_BUSY,     /* no slot is free: offer the same record again after store_applied() */
    STORE_BEGAN,    /* *ret_slot unused; an epoch began */
    STORE_PART,     /* *ret_slot is to be applied now (FULL epoch) */
    STORE_COMPLETE, /* the epoch is whole in *ret_slot */
};

/** @return 0 or -errno. blocks' array must outlive the store. */
int store_open(struct store *st, const struct codec_blocks *blocks, uint32_t state_max);
void store_close(struct store *st);

/**
 * Take one EPOCH_BEGIN, PAGES, STATE or EPOCH_END.
 * @param ret_said  written on success
 * @param ret_slot  see enum store_said
 * @return 0, or -EPROTO (st->why says which rule was broken)
 */
int store_take(struct store *st, const struct wire_record *rec, enum store_said *ret_said, unsigned *ret_slot);

/** The connection is over: what is half received is forgotten. */
void store_discard(struct store *st);

/** The slot that holds a whole epoch, or -1. */
int store_find(const struct store *st, uint64_t epoch);

/** QEMU begins to apply it (all its pages). */
void store_applying(struct store *st, unsigned slot, bool part);

/** QEMU has applied it. @return its epoch if a whole one was applied, 0 for a part */
uint64_t store_applied(struct store *st, unsigned slot);

/** Epoch N was acked: slots of older epochs become free as soon as they are applied. */
void store_acked(struct store *st, uint64_t epoch);

/** @return bytes of page content held in all slots */
uint64_t store_bytes(const struct store *st);

#endif
