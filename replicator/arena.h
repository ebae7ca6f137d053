/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * arena.h - the memory shared with QEMU: make, map, give back
 *
 * Owns: the memfd and its mapping. Layout: arena-layout.h.
 */
#ifndef POLLUX_ARENA_H
#define POLLUX_ARENA_H

#include "arena-layout.h"

struct arena {
    int fd; /* -1: none */
    void *base;
    struct arena_geometry geometry;
};

/**
 * Make a sealed memfd of this geometry, map it, write its header. Memory is used only as it is touched.
 * @param ret_arena  written on success
 * @return 0 or -errno; -EINVAL for a geometry that is not valid
 */
int arena_open(const struct arena_geometry *geometry, struct arena *ret_arena);

/** Unmap and close; QEMU's mapping keeps its memory until checkpoint-stop. Harmless on a zeroed or closed arena with fd -1. */
void arena_close(struct arena *arena);

/** Give the memory of a slot's first nr_pages pages back to the system. */
void arena_forget(struct arena *arena, unsigned slot, uint64_t nr_pages);

/** @return the epoch that QEMU says the guest executes */
uint64_t arena_epoch(const struct arena *arena);

/** What QEMU says is held now. */
void arena_held(const struct arena *arena, uint64_t *ret_packets, uint64_t *ret_bytes);

#endif
