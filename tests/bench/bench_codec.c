/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * bench_codec - what a page costs to encode, to decode and to checksum, beside a plain copy
 *
 * Owns its pages: made from a seed, four kinds; or, with the name of a trace (decompressed CKTRACE1 file), the changed
 * pages of a real guest. Prints one line per kind: microseconds per page and bytes out per byte in.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "replicator/codec.h"
#include "replicator/wire.h"

#define NR_PAGES 4096u /* 16 MiB: not in the second-level cache, as an arena slot is not */
#define NR_BATCHES (NR_PAGES / WIRE_BATCH_PAGES)
#define MIN_NS 300000000
#define SLOT_BYTES 266240u /* of one sealed PAGES record */

static uint8_t *pages, *copy, *records;
static size_t record_bytes[NR_BATCHES];
static uint64_t indexes[NR_PAGES], decoded[NR_PAGES];
static struct codec codec;
static const uint64_t block_pages[] = {NR_PAGES};
static const struct codec_blocks blocks = {1, block_pages};

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void fill(const char *kind)
{
    uint64_t seed = 20260101;

    memset(pages, 0, (size_t)NR_PAGES * WIRE_PAGE_BYTES);
    if (strcmp(kind, "zero") == 0)
        return;
    for (size_t i = 0; i < (size_t)NR_PAGES * WIRE_PAGE_BYTES / 8; i++) {
        uint64_t r = next_random(&seed);

        if (strcmp(kind, "pointers") == 0) /* like heap pages: half small numbers, half addresses */
            r = r & 1 ? r >> 52 : 0x7f0000000000 | (r >> 40 & 0xfffff8);
        else if (strcmp(kind, "sparse") == 0) /* like a fresh page table or a stack */
            r = r % 16 ? 0 : r;
        memcpy(pages + 8 * i, &r, 8);
    }
}

static int fill_from_trace(const char *path)
{
    FILE *f = fopen(path, "rb");
    uint8_t head[16], at[8], prev[WIRE_PAGE_BYTES];
    uint32_t nr = 0, in_epoch = 0;
    int ret = -EIO;

    if (!f)
        return -errno;
    if (fread(head, 16, 1, f) != 1 || memcmp(head, "CKTRACE1", 8) != 0)
        goto out;
    while (nr < NR_PAGES) {
        if (!in_epoch) {
            if (fread(at, 8, 1, f) != 1)
                goto out;
            memcpy(&in_epoch, at + 4, 4);
            continue;
        }
        if (fread(at, 8, 1, f) != 1 || fread(prev, sizeof(prev), 1, f) != 1 ||
            fread(pages + (size_t)nr * WIRE_PAGE_BYTES, WIRE_PAGE_BYTES, 1, f) != 1)
            goto out;
        nr++;
        in_epoch--;
    }
    ret = 0;
out:
    fclose(f);
    return ret;
}

static void run_memcpy(void)
{
    for (uint32_t i = 0; i < NR_PAGES; i++)
        memcpy(copy + (size_t)i * WIRE_PAGE_BYTES, pages + (size_t)i * WIRE_PAGE_BYTES, WIRE_PAGE_BYTES);
}

static void die(const char *what)
{
    fprintf(stderr, "bench_codec: %s\n", what);
    exit(1);
}

static void run_encode(void)
{
    for (uint32_t b = 0; b < NR_BATCHES; b++) {
        uint8_t *record = records + (size_t)b * SLOT_BYTES;
        ssize_t n = codec_pages_encode(&codec, &blocks, indexes + (size_t)b * WIRE_BATCH_PAGES,
                                       pages + (size_t)b * WIRE_BATCH_PAGES * WIRE_PAGE_BYTES, WIRE_BATCH_PAGES,
                                       record + WIRE_HEADER_BYTES, SLOT_BYTES - WIRE_HEADER_BYTES);

        if (n < 0)
            die("a batch did not encode");
        record_bytes[b] = (size_t)n;
    }
}

static void run_seal(void)
{
    struct wire_writer w = {0};

    for (uint32_t b = 0; b < NR_BATCHES; b++) {
        if (wire_seal(&w, records + (size_t)b * SLOT_BYTES, WIRE_PAGES, 1, 1, record_bytes[b]) < 0)
            die("a record did not seal");
    }
}

static void run_decode(void)
{
    for (uint32_t b = 0; b < NR_BATCHES; b++) {
        struct codec_batch batch;
        const char *why;

        if (codec_pages_parse(records + (size_t)b * SLOT_BYTES + WIRE_HEADER_BYTES, record_bytes[b], &blocks,
                              &batch, &why) ||
            codec_pages_decode(&batch, decoded + (size_t)b * WIRE_BATCH_PAGES,
                               copy + (size_t)b * WIRE_BATCH_PAGES * WIRE_PAGE_BYTES, &why))
            die("a batch did not decode");
    }
}

/* Microseconds per page, best of as many rounds as fit in MIN_NS. */
static double measure(void (*run)(void))
{
    int64_t start = now_ns(), best = INT64_MAX;

    do {
        int64_t t0 = now_ns(), t;

        run();
        t = now_ns() - t0;
        if (t < best)
            best = t;
    } while (now_ns() - start < MIN_NS);
    return (double)best / 1000 / NR_PAGES;
}

static void bench(const char *name)
{
    double copy_us = measure(run_memcpy), encode_us = measure(run_encode), seal_us = measure(run_seal);
    double decode_us = measure(run_decode);
    size_t out = 0;

    if (memcmp(pages, copy, (size_t)NR_PAGES * WIRE_PAGE_BYTES) != 0 ||
        memcmp(indexes, decoded, sizeof(indexes)) != 0)
        die("decoded pages differ from the encoded ones");
    for (uint32_t b = 0; b < NR_BATCHES; b++)
        out += record_bytes[b];
    printf("%-14s %8.3f %8.3f %8.3f %8.3f %8.1f%%\n", name, copy_us, encode_us, seal_us, decode_us,
           100.0 * (double)out / ((double)NR_PAGES * WIRE_PAGE_BYTES));
}

int main(int argc, char **argv)
{
    static const char *const kinds[] = {"zero", "sparse", "pointers", "random"};
    int ret = 0;

    pages = malloc((size_t)NR_PAGES * WIRE_PAGE_BYTES);
    copy = malloc((size_t)NR_PAGES * WIRE_PAGE_BYTES);
    records = malloc((size_t)NR_BATCHES * SLOT_BYTES);
    if (!pages || !copy || !records)
        die("no memory");
    codec_init(&codec);
    for (uint32_t i = 0; i < NR_PAGES; i++)
        indexes[i] = i;
    printf("us per page    %8s %8s %8s %8s %9s\n", "memcpy", "encode", "seal", "decode", "out/in");
    for (size_t i = 0; argc == 1 && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        fill(kinds[i]);
        bench(kinds[i]);
    }
    for (int i = 1; i < argc; i++) {
        const char *slash = strrchr(argv[i], '/');

        ret = fill_from_trace(argv[i]);
        if (ret) {
            fprintf(stderr, "bench_codec: %s: %s\n", argv[i], strerror(-ret));
            break;
        }
        bench(slash ? slash + 1 : argv[i]);
    }
    free(records);
    free(copy);
    free(pages);
    return ret ? 1 : 0;
}
