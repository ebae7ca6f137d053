/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * arena-layout.h - the memory that polluxd and QEMU share, exactly as docs/QEMU-INTERFACE.md says
 *
 * Structures, limits and offsets only. The geometry that is used after arena_geometry_valid() is our own
 * copy, never the one in the shared page: the other side could change it.
 */
#ifndef POLLUX_ARENA_LAYOUT_H
#define POLLUX_ARENA_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the arena is little endian");

#define ARENA_MAGIC 0x414e455241584c50ull /* "PLXARENA" */
#define ARENA_VERSION 1u
#define ARENA_PAGE_BYTES 4096u
#define ARENA_SLOTS_MAX 64u                 /* more than any pipeline wants; keeps every product below in 64 bits */
#define ARENA_SLOT_PAGES_MAX (1ull << 28)   /* 1 TiB of pages */
#define ARENA_STATE_MAX_BYTES (64ull << 20) /* PROTOCOL.md: STATE */
#define ARENA_BLOCK_SHIFT 40

struct arena_header {
    uint64_t magic;
    uint32_t version;
    uint32_t page_size;
    uint64_t slots;
    uint64_t slot_pages;
    uint64_t state_max; /* bytes, a multiple of 4096 */
    /* Written by QEMU while we read: use __atomic_load_n(), epoch with __ATOMIC_ACQUIRE. */
    uint64_t epoch; /* that the guest executes now; 0 before checkpoint-start */
    uint64_t held_packets;
    uint64_t held_bytes;
};

_Static_assert(sizeof(struct arena_header) == 64, "QEMU-INTERFACE.md: arena header");
_Static_assert(offsetof(struct arena_header, slots) == 16, "QEMU-INTERFACE.md: arena header");
_Static_assert(offsetof(struct arena_header, epoch) == 40, "QEMU-INTERFACE.md: arena header");

struct arena_geometry {
    uint64_t slots;
    uint64_t slot_pages;
    uint64_t state_max;
};

/** @return whether a geometry is within the limits, so that no offset below can overflow */
static inline bool arena_geometry_valid(const struct arena_geometry *g)
{
    return g->slots >= 1 && g->slots <= ARENA_SLOTS_MAX && g->slot_pages >= 1 &&
           g->slot_pages <= ARENA_SLOT_PAGES_MAX && g->state_max <= ARENA_STATE_MAX_BYTES &&
           g->state_max % ARENA_PAGE_BYTES == 0;
}

/** @return bytes of a slot's index, padded to a page */
static inline uint64_t arena_index_bytes(const struct arena_geometry *g)
{
    return (8 * g->slot_pages + ARENA_PAGE_BYTES - 1) & ~(uint64_t)(ARENA_PAGE_BYTES - 1);
}

/** @return bytes of one slot */
static inline uint64_t arena_slot_bytes(const struct arena_geometry *g)
{
    return arena_index_bytes(g) + ARENA_PAGE_BYTES * g->slot_pages + g->state_max;
}

/** @return bytes of the whole arena: the size of its memfd */
static inline uint64_t arena_bytes(const struct arena_geometry *g)
{
    return ARENA_PAGE_BYTES + g->slots * arena_slot_bytes(g);
}

/** @return offset of slot i's index entries, u64[slot_pages] */
static inline uint64_t arena_index_offset(const struct arena_geometry *g, uint64_t i)
{
    return ARENA_PAGE_BYTES + i * arena_slot_bytes(g);
}

/** @return offset of slot i's pages, u8[slot_pages][4096] */
static inline uint64_t arena_pages_offset(const struct arena_geometry *g, uint64_t i)
{
    return arena_index_offset(g, i) + arena_index_bytes(g);
}

/** @return offset of slot i's device state, u8[state_max] */
static inline uint64_t arena_state_offset(const struct arena_geometry *g, uint64_t i)
{
    return arena_pages_offset(g, i) + ARENA_PAGE_BYTES * g->slot_pages;
}

/** @return where slot i's index entries are in the mapping at base */
static inline uint64_t *arena_index(void *base, const struct arena_geometry *g, uint64_t i)
{
    return (uint64_t *)(void *)((uint8_t *)base + arena_index_offset(g, i));
}

/** @return where slot i's pages are in the mapping at base */
static inline uint8_t *arena_pages(void *base, const struct arena_geometry *g, uint64_t i)
{
    return (uint8_t *)base + arena_pages_offset(g, i);
}

/** @return where slot i's device state is in the mapping at base */
static inline uint8_t *arena_state(void *base, const struct arena_geometry *g, uint64_t i)
{
    return (uint8_t *)base + arena_state_offset(g, i);
}

#endif
