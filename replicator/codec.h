/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * codec.h - what stands inside PAGES and STATE records: pages and device state, encoded and decoded
 *
 * Owns the payload formats of docs/PROTOCOL.md's PAGES (codec 1) and STATE. Runs in worker threads: one
 * struct codec each, nothing shared. Never does I/O, reads a clock, logs or allocates.
 *
 * Encoding reads memory that QEMU can write at any time, so each index entry is read once and every write
 * is bounded by the caller's buffer whatever the source does meanwhile; a page that changes under the encoder
 * may come out as one that decodes to neither version, and that only hurts the guest that QEMU belongs to.
 */
#ifndef POLLUX_CODEC_H
#define POLLUX_CODEC_H

#include <lz4.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire-format.h"

/** RAM blocks in the order of checkpoint-start's answer. The array is the caller's and must outlive all uses. */
struct codec_blocks {
    uint32_t nr;
    const uint64_t *nr_pages; /* of each block, in 4 KiB pages; at most 2^40 */
};

/** What an encoder has made since codec_init() (or since the caller zeroed it), for display and sizing. */
struct codec_count {
    uint64_t zero; /* pages of each kind */
    uint64_t raw;
    uint64_t lz4;
    uint64_t out_bytes; /* PAGES payloads */
};

/** One thread's work space: about 16 KiB, no pointers, may be placed anywhere. */
struct codec {
    LZ4_stream_t lz4;
    struct codec_count count;
};

/** A checked PAGES payload, taken apart but not yet decoded. Points into the payload. */
struct codec_batch {
    uint32_t nr_pages;
    const uint8_t *index; /* u64[nr_pages], any alignment */
    const uint8_t *kind;  /* u8[nr_pages] */
    const uint8_t *size;  /* u16[nr_pages], any alignment */
    const uint8_t *data;
};

/** Make a work space ready. */
void codec_init(struct codec *c);

/** @return bytes that a PAGES payload of nr_pages (1..64) may take at worst, a multiple of 8 */
size_t codec_pages_bound(uint32_t nr_pages);

/**
 * Encode a run of pages into a complete PAGES payload.
 * @param c         this thread's work space
 * @param blocks    to check the index entries against; NULL if they are known to be good
 * @param index     (block << 40) | page, of each page
 * @param pages     nr_pages * 4096 bytes, in the order of index
 * @param nr_pages  1..64
 * @param payload   where to; all of cap may be overwritten
 * @param cap       bytes there, at least codec_pages_bound(nr_pages)
 * @return bytes of the payload, a multiple of 8; -EINVAL for a number of pages out of range; -ENOSPC;
 *         -EPROTO if an index entry names no page of the guest (so QEMU is broken)
 */
ssize_t codec_pages_encode(struct codec *c, const struct codec_blocks *blocks, const uint64_t *index,
                           const void *pages, uint32_t nr_pages, void *payload, size_t cap);

/**
 * Check all of a PAGES payload except what its lz4 blocks decode to. Costs little: for the loop's thread.
 * @param payload    of the record
 * @param len        bytes, padding included
 * @param blocks     that the index entries must lie in
 * @param ret_batch  written on success
 * @param ret_why    set on -EPROTO: the broken rule, a constant sentence
 * @return 0 or -EPROTO
 */
int codec_pages_parse(const void *payload, size_t len, const struct codec_blocks *blocks,
                      struct codec_batch *ret_batch, const char **ret_why);

/**
 * Decode a parsed batch. The destination may be an arena slot: only whole, checked entries are written, but an
 * error can leave some of them written.
 * @param batch    from codec_pages_parse(), its payload unchanged since
 * @param index    nr_pages entries are written here
 * @param pages    nr_pages * 4096 bytes are written here
 * @param ret_why  set on -EPROTO
 * @return 0, or -EPROTO if an lz4 block does not decode to exactly one page
 */
int codec_pages_decode(const struct codec_batch *batch, uint64_t *index, void *pages,
                       const char **ret_why);

/** @return the i-th index entry of a batch */
uint64_t codec_batch_index(const struct codec_batch *batch, uint32_t i);

/** @return bytes that a STATE payload may take at worst for raw_bytes of device state, a multiple of 8 */
size_t codec_state_bound(uint32_t raw_bytes);

/**
 * Encode one part of the device state into a complete STATE payload.
 * @param c          this thread's work space
 * @param offset     of this part in the whole, bytes
 * @param raw        the part
 * @param raw_bytes  1..262144; offset + raw_bytes at most 64 MiB
 * @param payload    where to; all of cap may be overwritten
 * @param cap        bytes there, at least codec_state_bound(raw_bytes)
 * @return bytes of the payload, a multiple of 8; -EINVAL for sizes out of range; -ENOSPC
 */
ssize_t codec_state_encode(struct codec *c, uint32_t offset, const void *raw, uint32_t raw_bytes,
                           void *payload, size_t cap);

/**
 * Decode a STATE payload onto the parts that came before it.
 * @param payload  of the record
 * @param len      bytes, padding included
 * @param have     bytes of the epoch's device state that came already: the part must start there
 * @param state    the whole state's memory, writable from have on
 * @param cap      bytes of it
 * @param ret_why  set on -EPROTO: the broken rule, a constant sentence
 * @return bytes added; -EPROTO, also if the state would be larger than cap
 */
ssize_t codec_state_decode(const void *payload, size_t len, uint32_t have, void *state, size_t cap,
                           const char **ret_why);

#endif
