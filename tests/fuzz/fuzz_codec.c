/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz_codec - any bytes as a PAGES or STATE payload, and any bytes as pages to encode
 *
 * First byte: bit 0 PAGES or STATE, bit 1 decode or encode and back. Source and destination are blocks of their own, as long as
 * they must be and no longer, so that one byte too far is seen. Decoding twice into differently filled memory must
 * give the same: nothing that stood there may come through.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "replicator/codec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint64_t block_pages[] = {256, 1ull << 40};
static const struct codec_blocks blocks = {2, block_pages};
static struct codec codec;

static void *block(size_t len, int fill)
{
    void *p = malloc(len ? len : 1);

    assert(p);
    memset(p, fill, len);
    return p;
}

static void decode_pages(const uint8_t *payload, size_t len)
{
    struct codec_batch batch;
    const char *why = NULL;
    uint64_t *index;
    uint8_t *a, *b;
    int ret;

    if (codec_pages_parse(payload, len, &blocks, &batch, &why)) {
        assert(why);
        return;
    }
    a = block((size_t)batch.nr_pages * WIRE_PAGE_BYTES, 0);
    b = block((size_t)batch.nr_pages * WIRE_PAGE_BYTES, 0xff);
    index = block((size_t)batch.nr_pages * 8, 0);
    ret = codec_pages_decode(&batch, index, a, &why);
    assert(ret == codec_pages_decode(&batch, index, b, &why));
    assert(ret ? why != NULL : !memcmp(a, b, (size_t)batch.nr_pages * WIRE_PAGE_BYTES));
    free(index);
    free(b);
    free(a);
}

static void decode_state(const uint8_t *payload, size_t len)
{
    uint32_t have = 0, raw = 0;
    const char *why = NULL;
    uint8_t *state;
    ssize_t n;

    if (len >= 8) {
        memcpy(&have, payload, 4);
        memcpy(&raw, payload + 4, 4);
    }
    have %= 4096;
    raw = raw <= WIRE_STATE_CHUNK_BYTES ? raw : 100;
    state = block((size_t)have + raw, 0);
    n = codec_state_decode(payload, len, have, state, (size_t)have + raw, &why);
    assert(n < 0 ? why != NULL : n == (ssize_t)raw);
    free(state);
}

static void there_and_back_pages(const uint8_t *data, size_t size)
{
    uint32_t nr = size ? 1 + data[0] % 5 : 1;
    size_t bytes = (size_t)nr * WIRE_PAGE_BYTES;
    uint8_t *pages = block(bytes, 0), *back = block(bytes, 0xff), *payload = block(codec_pages_bound(nr), 0xff);
    uint64_t index[5] = {0}, index_back[5];
    struct codec_batch batch;
    const char *why;
    ssize_t n;

    /* the input over and over, stretched by its second byte: so there is something to compress */
    for (size_t i = 0; size > 2 && i < bytes; i++)
        pages[i] = data[2 + i / (1 + data[1] % 64) % (size - 2)];
    for (uint32_t i = 0; i < nr; i++)
        index[i] = (uint64_t)(i & 1) << 40 | (i + size) % 256;
    n = codec_pages_encode(&codec, &blocks, index, pages, nr, payload, codec_pages_bound(nr));
    assert(n > 0 && n % 8 == 0);
    assert(!codec_pages_parse(payload, (size_t)n, &blocks, &batch, &why));
    assert(!codec_pages_decode(&batch, index_back, back, &why));
    assert(!memcmp(pages, back, bytes) && !memcmp(index, index_back, 8 * (size_t)nr));
    free(payload);
    free(back);
    free(pages);
}

static void there_and_back_state(const uint8_t *data, size_t size)
{
    uint32_t raw = (uint32_t)(size < WIRE_STATE_CHUNK_BYTES ? size : WIRE_STATE_CHUNK_BYTES);
    uint8_t *payload, *back;
    const char *why;
    ssize_t n;

    if (!raw)
        return;
    payload = block(codec_state_bound(raw), 0xff);
    back = block(raw, 0xff);
    n = codec_state_encode(&codec, 0, data, raw, payload, codec_state_bound(raw));
    assert(n > 0 && n % 8 == 0);
    assert(codec_state_decode(payload, (size_t)n, 0, back, raw, &why) == (ssize_t)raw);
    assert(!memcmp(data, back, raw));
    free(back);
    free(payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const targets[4])(const uint8_t *, size_t) = {decode_pages, decode_state, there_and_back_pages,
                                                                there_and_back_state};
    uint8_t *copy;

    if (!size)
        return 0;
    codec_init(&codec);
    copy = block(size - 1, 0);
    memcpy(copy, data + 1, size - 1);
    targets[data[0] & 3](copy, size - 1);
    free(copy);
    return 0;
}
