/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * codec.c - what stands inside PAGES and STATE records: pages and device state, encoded and decoded
 *
 * Each page goes as the cheapest of zero, lz4 block, raw. Owns no memory; never does I/O, reads a clock,
 * logs or allocates.
 */
#include "codec.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

/*
 * An lz4 page must save at least this much, or it goes raw: below it the decoder's time (more than a copy's)
 * is not worth the bytes, and lz4 gives up earlier.
 */
#define LZ4_GAIN_BYTES 256u
#define LZ4_PAGE_MAX (WIRE_PAGE_BYTES - LZ4_GAIN_BYTES)
/* lz4's own default effort; tests/bench/bench_codec shows what others would give */
#define LZ4_ACCELERATION 1

_Static_assert(LZ4_PAGE_MAX <= 4095, "PROTOCOL.md: an lz4 block in PAGES has 1..4095 bytes");

static size_t align8(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

static uint16_t load16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static uint64_t load64(const uint8_t *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof(v));
    return v;
}

static bool all_zero(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (p[i])
            return false;
    }
    return true;
}

/* A page equals itself shifted by 8 bytes, and starts with 8 zeros: libc's memcmp has the widest vectors. */
static bool page_is_zero(const uint8_t *page)
{
    return load64(page) == 0 && memcmp(page, page + 8, WIRE_PAGE_BYTES - 8) == 0;
}

static bool index_valid(const struct codec_blocks *blocks, uint64_t entry)
{
    uint64_t block = entry >> WIRE_BLOCK_SHIFT;
    uint64_t page = entry & ((1ull << WIRE_BLOCK_SHIFT) - 1);

    return block < blocks->nr && page < blocks->nr_pages[block];
}

void codec_init(struct codec *c)
{
    memset(&c->lz4, 0, sizeof(c->lz4));
    c->count = (struct codec_count){0};
}

/*
 * An independent lz4 block. That the table of 16 KiB is cleared for each page costs nothing that could be measured:
 * LZ4_compress_fast_continue, which does not, was as fast or slower (bench_codec, real traces).
 * @return its size, 0 if it does not fit in cap
 */
static uint32_t lz4_block(struct codec *c, const void *src, uint32_t src_bytes, uint8_t *dst,
                          uint32_t cap)
{
    int n = LZ4_compress_fast_extState(&c->lz4, src, (char *)dst, (int)src_bytes, (int)cap,
                                       LZ4_ACCELERATION);

    return n > 0 ? (uint32_t)n : 0;
}

/*
 * Decode a block that must give exactly dst_bytes. The format forbids matches at offset 0; liblz4 1.9 decodes them as
 * zeros instead of refusing them, and looking for them first would double the time. So such a block passes, but
 * what comes out still depends on nothing but the bytes received, never on what the destination held (test_codec).
 */
static bool lz4_unblock(const uint8_t *src, uint32_t src_bytes, void *dst, uint32_t dst_bytes)
{
    return LZ4_decompress_safe((const char *)src, dst, (int)src_bytes, (int)dst_bytes) == (int)dst_bytes;
}

/* ---- PAGES ---- */

/* Offsets of a payload's parts; all follow from the number of pages. */
struct pages_parts {
    size_t index, kind, size, data;
};

static struct pages_parts pages_parts(uint32_t nr_pages)
{
    struct pages_parts at = {.index = sizeof(struct wire_pages)};

    at.kind = at.index + 8 * (size_t)nr_pages;
    at.size = at.kind + align8(nr_pages);
    at.data = at.size + align8(2 * (size_t)nr_pages);
    return at;
}

size_t codec_pages_bound(uint32_t nr_pages)
{
    return pages_parts(nr_pages).data + (size_t)nr_pages * WIRE_PAGE_BYTES;
}

static enum wire_page_kind encode_page(struct codec *c, const uint8_t *page, uint8_t *dst,
                                       uint32_t *ret_bytes)
{
    uint32_t n;

    if (page_is_zero(page)) {
        c->count.zero++;
        *ret_bytes = 0;
        return WIRE_PAGE_ZERO;
    }
    n = lz4_block(c, page, WIRE_PAGE_BYTES, dst, LZ4_PAGE_MAX);
    if (n) {
        c->count.lz4++;
        *ret_bytes = n;
        return WIRE_PAGE_LZ4;
    }
    memcpy(dst, page, WIRE_PAGE_BYTES);
    c->count.raw++;
    *ret_bytes = WIRE_PAGE_BYTES;
    return WIRE_PAGE_RAW;
}

ssize_t codec_pages_encode(struct codec *c, const struct codec_blocks *blocks, const uint64_t *index,
                           const void *pages, uint32_t nr_pages, void *payload, size_t cap)
{
    struct wire_pages head = {.nr_pages = nr_pages, .codec = WIRE_CODEC_PER_PAGE};
    struct pages_parts at;
    uint8_t *out = payload;
    size_t end;

    if (nr_pages < 1 || nr_pages > WIRE_BATCH_PAGES)
        return -EINVAL;
    if (cap < codec_pages_bound(nr_pages))
        return -ENOSPC;
    at = pages_parts(nr_pages);
    memcpy(out + at.index, index, 8 * (size_t)nr_pages);
    for (uint32_t i = 0; blocks && i < nr_pages; i++) {
        if (!index_valid(blocks, load64(out + at.index + 8 * (size_t)i)))
            return -EPROTO;
    }
    memset(out + at.kind, 0, at.data - at.kind); /* the padding in there */
    for (uint32_t i = 0; i < nr_pages; i++) {
        uint32_t bytes;
        uint16_t size;

        out[at.kind + i] = (uint8_t)encode_page(
            c, (const uint8_t *)pages + (size_t)i * WIRE_PAGE_BYTES, out + at.data + head.data_bytes, &bytes);
        size = (uint16_t)bytes;
        memcpy(out + at.size + 2 * (size_t)i, &size, sizeof(size));
        head.data_bytes += bytes;
    }
    end = at.data + head.data_bytes;
    memset(out + end, 0, align8(end) - end);
    memcpy(out, &head, sizeof(head));
    c->count.out_bytes += align8(end);
    return (ssize_t)align8(end);
}

static const char *check_entry(uint8_t kind, uint16_t size)
{
    switch (kind) {
    case WIRE_PAGE_ZERO:
        return size == 0 ? NULL : "a zero page has data";
    case WIRE_PAGE_RAW:
        return size == WIRE_PAGE_BYTES ? NULL : "a raw page does not have 4096 bytes";
    case WIRE_PAGE_LZ4:
        return size >= 1 && size <= 4095 ? NULL : "an lz4 page does not have 1 to 4095 bytes";
    default:
        return "a page's kind is not legal in version 1";
    }
}

static const char *check_entries(const struct codec_batch *b, const struct codec_blocks *blocks,
                                 uint32_t data_bytes)
{
    uint64_t total = 0;

    for (uint32_t i = 0; i < b->nr_pages; i++) {
        uint16_t size = load16(b->size + 2 * (size_t)i);
        const char *why = check_entry(b->kind[i], size);

        if (why)
            return why;
        if (!index_valid(blocks, codec_batch_index(b, i)))
            return "a page's index names no page of the guest";
        total += size;
    }
    return total == data_bytes ? NULL : "the pages' sizes do not add up to the batch's data";
}

static const char *parse_pages(const uint8_t *in, size_t len, const struct codec_blocks *blocks,
                               struct codec_batch *batch)
{
    struct wire_pages head;
    struct pages_parts at;
    size_t end;

    if (len < sizeof(head))
        return "PAGES is too short for its header";
    memcpy(&head, in, sizeof(head));
    if (head.nr_pages < 1 || head.nr_pages > WIRE_BATCH_PAGES)
        return "PAGES does not have 1 to 64 pages";
    if (head.codec != WIRE_CODEC_PER_PAGE)
        return "PAGES' codec is not legal in version 1";
    if (head.reserved)
        return "PAGES' reserved field is not zero";
    at = pages_parts(head.nr_pages);
    if (head.data_bytes > head.nr_pages * WIRE_PAGE_BYTES)
        return "PAGES has more data than its pages can need";
    end = at.data + head.data_bytes;
    if (len != align8(end))
        return "PAGES does not have the length that its fields make";
    if (!all_zero(in + at.kind + head.nr_pages, at.size - at.kind - head.nr_pages) ||
        !all_zero(in + at.size + 2 * (size_t)head.nr_pages, at.data - at.size - 2 * (size_t)head.nr_pages) ||
        !all_zero(in + end, len - end))
        return "PAGES' padding is not zero";
    *batch = (struct codec_batch){.nr_pages = head.nr_pages,
                                  .index = in + at.index,
                                  .kind = in + at.kind,
                                  .size = in + at.size,
                                  .data = in + at.data};
    return check_entries(batch, blocks, head.data_bytes);
}

int codec_pages_parse(const void *payload, size_t len, const struct codec_blocks *blocks,
                      struct codec_batch *ret_batch, const char **ret_why)
{
    struct codec_batch batch;
    const char *why = parse_pages(payload, len, blocks, &batch);

    if (why) {
        *ret_why = why;
        return -EPROTO;
    }
    *ret_batch = batch;
    return 0;
}

uint64_t codec_batch_index(const struct codec_batch *batch, uint32_t i)
{
    return load64(batch->index + 8 * (size_t)i);
}

int codec_pages_decode(const struct codec_batch *batch, uint64_t *index, void *pages,
                       const char **ret_why)
{
    const uint8_t *data = batch->data;

    for (uint32_t i = 0; i < batch->nr_pages; i++) {
        uint8_t *page = (uint8_t *)pages + (size_t)i * WIRE_PAGE_BYTES;
        uint16_t size = load16(batch->size + 2 * (size_t)i);

        switch (batch->kind[i]) {
        case WIRE_PAGE_ZERO:
            memset(page, 0, WIRE_PAGE_BYTES);
            break;
        case WIRE_PAGE_RAW:
            memcpy(page, data, WIRE_PAGE_BYTES);
            break;
        default: /* lz4: codec_pages_parse() has seen to it */
            if (!lz4_unblock(data, size, page, WIRE_PAGE_BYTES)) {
                *ret_why = "an lz4 page does not decode to 4096 bytes";
                return -EPROTO;
            }
        }
        data += size;
    }
    memcpy(index, batch->index, 8 * (size_t)batch->nr_pages);
    return 0;
}

/* ---- STATE ---- */

size_t codec_state_bound(uint32_t raw_bytes)
{
    return sizeof(struct wire_state) + align8(raw_bytes);
}

ssize_t codec_state_encode(struct codec *c, uint32_t offset, const void *raw, uint32_t raw_bytes,
                           void *payload, size_t cap)
{
    struct wire_state head = {.offset = offset, .raw_bytes = raw_bytes, .kind = WIRE_STATE_LZ4};
    uint8_t *data = (uint8_t *)payload + sizeof(head);

    if (raw_bytes < 1 || raw_bytes > WIRE_STATE_CHUNK_BYTES || offset > WIRE_STATE_MAX_BYTES - raw_bytes)
        return -EINVAL;
    if (cap < codec_state_bound(raw_bytes))
        return -ENOSPC;
    head.data_bytes = lz4_block(c, raw, raw_bytes, data, raw_bytes - 1);
    if (!head.data_bytes) {
        head.kind = WIRE_STATE_RAW;
        head.data_bytes = raw_bytes;
        memcpy(data, raw, raw_bytes);
    }
    memset(data + head.data_bytes, 0, align8(head.data_bytes) - head.data_bytes);
    memcpy(payload, &head, sizeof(head));
    return (ssize_t)(sizeof(head) + align8(head.data_bytes));
}

static const char *check_state(const struct wire_state *head, size_t len, uint32_t have, size_t cap)
{
    if (head->raw_bytes < 1 || head->raw_bytes > WIRE_STATE_CHUNK_BYTES)
        return "STATE does not carry 1 to 262144 bytes";
    if (head->offset != have)
        return "STATE does not go on where the part before it ended";
    if (head->offset > WIRE_STATE_MAX_BYTES - head->raw_bytes)
        return "the device state is over 64 MiB";
    if (head->offset + head->raw_bytes > cap)
        return "the device state is larger than the room for it here";
    if (head->kind != WIRE_STATE_RAW && head->kind != WIRE_STATE_LZ4)
        return "STATE's kind is not legal in version 1";
    if (head->data_bytes < 1 || head->data_bytes > WIRE_STATE_CHUNK_BYTES ||
        (head->kind == WIRE_STATE_RAW && head->data_bytes != head->raw_bytes))
        return "STATE's data does not have a legal size";
    if (len != sizeof(*head) + align8(head->data_bytes))
        return "STATE does not have the length that its fields make";
    return NULL;
}

ssize_t codec_state_decode(const void *payload, size_t len, uint32_t have, void *state, size_t cap,
                           const char **ret_why)
{
    const uint8_t *data = (const uint8_t *)payload + sizeof(struct wire_state);
    struct wire_state head;
    const char *why;

    if (len < sizeof(head)) {
        *ret_why = "STATE is too short for its header";
        return -EPROTO;
    }
    memcpy(&head, payload, sizeof(head));
    why = check_state(&head, len, have, cap);
    if (!why && !all_zero(data + head.data_bytes, align8(head.data_bytes) - head.data_bytes))
        why = "STATE's padding is not zero";
    if (!why && head.kind == WIRE_STATE_RAW)
        memcpy((uint8_t *)state + have, data, head.raw_bytes);
    else if (!why && !lz4_unblock(data, head.data_bytes, (uint8_t *)state + have, head.raw_bytes))
        why = "STATE's lz4 data does not decode to its size";
    if (why) {
        *ret_why = why;
        return -EPROTO;
    }
    return (ssize_t)head.raw_bytes;
}
