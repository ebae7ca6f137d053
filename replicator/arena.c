/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * arena.c - the memory shared with QEMU: make, map, give back; see arena.h
 */
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

int arena_open(const struct arena_geometry *geometry, struct arena *ret_arena)
{
    struct arena a = { .fd = -1, .base = MAP_FAILED, .geometry = *geometry };
    struct arena_header *header;
    int rc;

    if (!arena_geometry_valid(geometry))
        return -EINVAL;
    a.fd = memfd_create("pollux-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (a.fd < 0)
        return -errno;
    if (ftruncate(a.fd, (off_t)arena_bytes(geometry)) < 0 ||
        fcntl(a.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
        goto fail;
    a.base = mmap(NULL, arena_bytes(geometry), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, a.fd, 0);
    if (a.base == MAP_FAILED)
        goto fail;
    header = a.base;
    *header = (struct arena_header){
        .magic = ARENA_MAGIC,
        .version = ARENA_VERSION,
        .page_size = ARENA_PAGE_BYTES,
        .slots = geometry->slots,
        .slot_pages = geometry->slot_pages,
        .state_max = geometry->state_max,
    };
    *ret_arena = a;
    return 0;
fail:
    rc = -errno;
    close(a.fd);
    return rc;
}

void arena_close(struct arena *arena)
{
    if (arena->fd < 0)
        return;
    munmap(arena->base, arena_bytes(&arena->geometry));
    close(arena->fd);
    arena->fd = -1;
    arena->base = NULL;
}

void arena_forget(struct arena *arena, unsigned slot, uint64_t nr_pages)
{
    off_t at = (off_t)arena_pages_offset(&arena->geometry, slot);

    if (nr_pages)
        fallocate(arena->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
                  (off_t)(nr_pages * ARENA_PAGE_BYTES));
}

uint64_t arena_epoch(const struct arena *arena)
{
    const struct arena_header *header = arena->base;

    return arena->fd < 0 ? 0 : __atomic_load_n(&header->epoch, __ATOMIC_ACQUIRE);
}

void arena_held(const struct arena *arena, uint64_t *ret_packets, uint64_t *ret_bytes)
{
    const struct arena_header *header = arena->base;

    *ret_packets = arena->fd < 0 ? 0 : __atomic_load_n(&header->held_packets, __ATOMIC_RELAXED);
    *ret_bytes = arena->fd < 0 ? 0 : __atomic_load_n(&header->held_bytes, __ATOMIC_RELAXED);
}
