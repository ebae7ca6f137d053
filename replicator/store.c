/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * store.c - the standby's epochs: received into arena slots, whole before anything is applied; see store.h
 */
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "bug.h"

/* Zeroed memory of the system, touched only where the guest has pages that change. @return NULL: none */
static void *map_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

int store_open(struct store *st, const struct codec_blocks *blocks, uint32_t state_max)
{
    struct arena_geometry geometry = { .slots = STORE_SLOTS, .state_max = state_max };
    uint64_t total = 0;
    int rc;

    memset(st, 0, sizeof(*st));
    st->arena.fd = -1;
    st->filling = -1;
    st->blocks = *blocks;
    st->block_first = calloc(blocks->nr ? blocks->nr : 1, sizeof(*st->block_first));
    if (!st->block_first)
        return -ENOMEM;
    for (uint32_t i = 0; i < blocks->nr; i++) {
        st->block_first[i] = total;
        total += blocks->nr_pages[i];
    }
    st->total_pages = total;
    geometry.slot_pages = total + WIRE_BATCH_PAGES; /* a batch is decoded behind the rest, then merged */
    st->map = map_memory(total * sizeof(*st->map));
    st->index = map_memory(geometry.slot_pages * sizeof(*st->index));
    rc = st->map && st->index ? arena_open(&geometry, &st->arena) : -ENOMEM;
    if (rc < 0)
        store_close(st);
    return rc;
}

void store_close(struct store *st)
{
    arena_close(&st->arena);
    if (st->map)
        munmap(st->map, st->total_pages * sizeof(*st->map));
    if (st->index)
        munmap(st->index, (st->total_pages + WIRE_BATCH_PAGES) * sizeof(*st->index));
    free(st->block_first);
    st->map = NULL;
    st->index = NULL;
    st->block_first = NULL;
    st->in_epoch = false;
    st->filling = -1;
    memset(st->slot, 0, sizeof(st->slot));
}

static int broken(struct store *st, const char *why)
{
    st->why = why;
    return -EPROTO;
}

static uint32_t *map_entry(struct store *st, uint64_t index)
{
    return &st->map[st->block_first[index >> ARENA_BLOCK_SHIFT] +
                    (index & ((1ull << ARENA_BLOCK_SHIFT) - 1))];
}

/* The filling slot is complete or thrown away: the map is empty again. */
static void clear_map(struct store *st, unsigned slot)
{
    for (uint64_t i = 0; i < st->slot[slot].nr_pages; i++)
        *map_entry(st, st->index[i]) = 0;
}

static int take_free_slot(struct store *st)
{
    for (int i = 0; i < STORE_SLOTS; i++) {
        if (st->slot[i].state == STORE_FREE) {
            st->slot[i] = (struct store_slot){ .state = STORE_FILLING, .epoch = st->epoch };
            return i;
        }
    }
    return -1;
}

static int take_begin(struct store *st, const struct wire_record *rec, enum store_said *ret_said)
{
    struct wire_epoch_begin begin;

    if (wire_decode_epoch_begin(rec, &begin) < 0)
        return broken(st, "EPOCH_BEGIN cannot be read");
    if (st->in_epoch)
        return broken(st, "EPOCH_BEGIN inside an epoch");
    st->in_epoch = true;
    st->epoch = rec->epoch;
    st->full = begin.flags & WIRE_EPOCH_FULL;
    st->epoch_pages = st->epoch_state = 0;
    if (st->full)
        st->sync_pages = 0;
    wire_digest_begin(&st->digest, rec->epoch);
    *ret_said = STORE_BEGAN;
    return 0;
}

/* Move decoded pages that the slot has already onto their older copy. */
static void merge(struct store *st, unsigned slot, uint32_t nr)
{
    uint64_t *index = st->index, *shared = arena_index(st->arena.base, &st->arena.geometry, slot);
    uint8_t *pages = arena_pages(st->arena.base, &st->arena.geometry, slot);
    uint64_t from = st->slot[slot].nr_pages, to = from;

    for (uint32_t i = 0; i < nr; i++, from++) {
        uint32_t *entry = map_entry(st, index[from]);
        uint64_t dest = *entry ? *entry - 1 : to;
        if (!*entry) {
            *entry = (uint32_t)++to;
            index[dest] = shared[dest] = index[from];
        }
        if (dest != from)
            memcpy(pages + dest * ARENA_PAGE_BYTES, pages + from * ARENA_PAGE_BYTES, ARENA_PAGE_BYTES);
    }
    st->slot[slot].nr_pages = to;
}

static int take_pages(struct store *st, const struct wire_record *rec, enum store_said *ret_said,
                      unsigned *ret_slot)
{
    struct store_slot *slot = &st->slot[st->filling];
    struct codec_batch batch;
    int rc = codec_pages_parse(rec->payload, rec->len, &st->blocks, &batch, &st->why);

    if (rc < 0)
        return rc;
    ASSERT(slot->nr_pages <= st->total_pages); /* each page once, and a batch to spare */
    rc = codec_pages_decode(&batch, st->index + slot->nr_pages,
                            arena_pages(st->arena.base, &st->arena.geometry, (unsigned)st->filling) +
                                slot->nr_pages * ARENA_PAGE_BYTES,
                            &st->why);
    if (rc < 0)
        return rc;
    merge(st, (unsigned)st->filling, batch.nr_pages);
    st->epoch_pages += batch.nr_pages;
    st->sync_pages += st->full ? batch.nr_pages : 0;
    if (st->full && slot->nr_pages >= STORE_PART_PAGES) {
        *ret_slot = (unsigned)st->filling;
        *ret_said = STORE_PART;
        clear_map(st, *ret_slot);
        st->filling = -1;
    }
    return 0;
}

static int take_state(struct store *st, const struct wire_record *rec)
{
    struct store_slot *slot = &st->slot[st->filling];
    ssize_t n = codec_state_decode(rec->payload, rec->len, slot->state_bytes,
                                   arena_state(st->arena.base, &st->arena.geometry, (unsigned)st->filling),
                                   st->arena.geometry.state_max, &st->why);

    if (n < 0)
        return (int)n;
    slot->state_bytes += (uint32_t)n;
    st->epoch_state += (uint64_t)n;
    return 0;
}

static int take_end(struct store *st, const struct wire_record *rec, enum store_said *ret_said,
                    unsigned *ret_slot)
{
    struct wire_epoch_end end;

    if (wire_decode_epoch_end(rec, &end) < 0)
        return broken(st, "EPOCH_END cannot be read");
    if (end.pages != st->epoch_pages)
        return broken(st, "EPOCH_END counts other pages than came");
    if (end.state_bytes != st->epoch_state || end.state_bytes == 0)
        return broken(st, "EPOCH_END counts other device state than came");
    if (end.digest != wire_digest_value(&st->digest))
        return broken(st, "EPOCH_END has another digest than the records");
    st->slot[st->filling].state = STORE_WHOLE;
    clear_map(st, (unsigned)st->filling);
    *ret_slot = (unsigned)st->filling;
    *ret_said = STORE_COMPLETE;
    st->filling = -1;
    st->in_epoch = false;
    return 0;
}

int store_take(struct store *st, const struct wire_record *rec, enum store_said *ret_said, unsigned *ret_slot)
{
    int rc;

    *ret_said = STORE_TAKEN;
    if (rec->type == WIRE_EPOCH_BEGIN)
        return take_begin(st, rec, ret_said);
    if (!st->in_epoch || rec->epoch != st->epoch)
        return broken(st, "a record of an epoch that did not begin");
    if (st->filling < 0)
        st->filling = take_free_slot(st);
    if (st->filling < 0) {
        *ret_said = STORE_BUSY;
        return 0;
    }
    if (rec->type == WIRE_EPOCH_END)
        return take_end(st, rec, ret_said, ret_slot);
    rc = rec->type == WIRE_PAGES ? take_pages(st, rec, ret_said, ret_slot) : take_state(st, rec);
    if (rc == 0)
        wire_digest_add(&st->digest, rec->checksum);
    return rc;
}

static void release(struct store *st, unsigned slot)
{
    if (st->slot[slot].nr_pages > STORE_FORGET_PAGES)
        arena_forget(&st->arena, slot, st->slot[slot].nr_pages);
    st->slot[slot] = (struct store_slot){ .state = STORE_FREE };
}

void store_discard(struct store *st)
{
    if (st->filling >= 0) {
        clear_map(st, (unsigned)st->filling);
        release(st, (unsigned)st->filling);
    }
    st->filling = -1;
    st->in_epoch = false;
}

int store_find(const struct store *st, uint64_t epoch)
{
    for (int i = 0; i < STORE_SLOTS; i++) {
        enum store_state state = st->slot[i].state;
        if (st->slot[i].epoch == epoch &&
            (state == STORE_WHOLE || state == STORE_APPLYING || state == STORE_APPLIED))
            return i;
    }
    return -1;
}

void store_applying(struct store *st, unsigned slot, bool part)
{
    ASSERT(st->slot[slot].state == (part ? STORE_FILLING : STORE_WHOLE));
    st->slot[slot].state = part ? STORE_APPLYING_PART : STORE_APPLYING;
}

/* Slots of applied epochs before the last acked one: applied first and acked later, or the other way round. */
static void release_old(struct store *st)
{
    for (unsigned i = 0; i < STORE_SLOTS; i++) {
        if (st->slot[i].state == STORE_APPLIED && st->slot[i].epoch < st->acked)
            release(st, i);
    }
}

uint64_t store_applied(struct store *st, unsigned slot)
{
    uint64_t epoch = st->slot[slot].epoch;

    if (st->slot[slot].state == STORE_APPLYING_PART) {
        release(st, slot);
        return 0;
    }
    if (st->slot[slot].state != STORE_APPLYING)
        return 0; /* of a store that was opened anew meanwhile */
    st->slot[slot].state = STORE_APPLIED;
    release_old(st);
    return epoch;
}

void store_acked(struct store *st, uint64_t epoch)
{
    st->acked = epoch;
    release_old(st);
}

uint64_t store_bytes(const struct store *st)
{
    uint64_t pages = 0;

    for (unsigned i = 0; i < STORE_SLOTS; i++)
        pages += st->slot[i].nr_pages;
    return pages * ARENA_PAGE_BYTES;
}
