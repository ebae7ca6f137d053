/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_codec - pages and device state come back as they were, and no broken payload is decoded
 *
 * Pages are made like those of real guests (zero, sparse, pointers, text, noise). The tables of mutations change one
 * field of a valid payload and expect the sentence that names the broken rule.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "replicator/arena-layout.h"
#include "replicator/codec.h"
#include "replicator/wire.h"
#include "seed.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define NR 64u
#define GUARD 64 /* bytes behind each destination that must not change */

static struct codec codec;
static uint8_t pages[NR * WIRE_PAGE_BYTES], back[NR * WIRE_PAGE_BYTES + GUARD];
static uint8_t payload[WIRE_CAP_MAX + GUARD], state_in[WIRE_STATE_CHUNK_BYTES];
static uint8_t state_out[2 * WIRE_STATE_CHUNK_BYTES + GUARD];
static uint64_t indexes[NR], index_back[NR];
static const uint64_t block_pages[] = {131072, 64, 1ull << 40};
static const struct codec_blocks blocks = {3, block_pages};

static uint64_t word_like(unsigned kind)
{
    static const char words[] = "the quick brown fox jumps over the lazy dog; ";
    uint64_t r = seed_next(), w;

    switch (kind) {
    case 0:
        return 0;
    case 1:
        return r % 32 ? 0 : r;
    case 2:
        return r & 1 ? r >> 52 : 0x7f0000000000 | (r >> 40 & 0xfffff8);
    case 3:
        memcpy(&w, words + r % (sizeof(words) - 8), 8);
        return w;
    default:
        return r;
    }
}

static void fill_page(uint8_t *page, unsigned kind)
{
    for (size_t i = 0; i < WIRE_PAGE_BYTES; i += 8) {
        uint64_t w = word_like(kind);

        memcpy(page + i, &w, 8);
    }
}

static size_t encode(uint32_t nr)
{
    ssize_t n;

    memset(payload, 0xa5, sizeof(payload));
    n = codec_pages_encode(&codec, &blocks, indexes, pages, nr, payload, codec_pages_bound(nr));
    assert_true(n > 0 && n % 8 == 0 && (size_t)n <= codec_pages_bound(nr));
    for (size_t i = codec_pages_bound(nr); i < sizeof(payload); i++)
        assert_int_equal(payload[i], 0xa5);
    return (size_t)n;
}

static const char *decode(size_t len)
{
    struct codec_batch batch;
    const char *why = NULL;
    int ret = codec_pages_parse(payload, len, &blocks, &batch, &why);

    memset(back, 0x5a, sizeof(back));
    if (!ret)
        ret = codec_pages_decode(&batch, index_back, back, &why);
    for (size_t i = sizeof(back) - GUARD; i < sizeof(back); i++)
        assert_int_equal(back[i], 0x5a);
    assert_int_equal(ret, why ? -EPROTO : 0);
    return why;
}

static void pages_come_back_as_they_were(void **unused)
{
    (void)unused;
    seed_start("pages");
    for (int round = 0; round < 300; round++) {
        uint32_t nr = 1 + (uint32_t)seed_below(NR);
        size_t len;

        for (uint32_t i = 0; i < nr; i++) {
            uint64_t block = seed_below(3);

            indexes[i] = block << 40 | seed_next() % block_pages[block];
            fill_page(pages + i * WIRE_PAGE_BYTES, (unsigned)seed_below(5));
        }
        len = encode(nr);
        assert_null(decode(len));
        assert_memory_equal(back, pages, nr * WIRE_PAGE_BYTES);
        assert_memory_equal(index_back, indexes, nr * sizeof(indexes[0]));
    }
    assert_true(codec.count.zero > 500 && codec.count.raw > 500 && codec.count.lz4 > 500);
}

static void one_byte_anywhere_makes_a_page_not_zero(void **unused)
{
    (void)unused;
    memset(pages, 0, sizeof(pages));
    indexes[0] = 1;
    assert_int_equal(encode(1), 40);
    for (size_t i = 0; i < WIRE_PAGE_BYTES; i++) {
        uint64_t zeros = codec.count.zero;

        pages[i] = (uint8_t)(1 + i % 255);
        assert_null(decode(encode(1)));
        assert_int_equal(codec.count.zero, zeros);
        assert_memory_equal(back, pages, WIRE_PAGE_BYTES);
        pages[i] = 0;
    }
}

static void the_worst_case_fits_its_bound_and_the_record(void **unused)
{
    (void)unused;
    for (uint32_t i = 0; i < NR; i++) {
        indexes[i] = i;
        fill_page(pages + i * WIRE_PAGE_BYTES, 4);
    }
    assert_int_equal(encode(NR), codec_pages_bound(NR));
    assert_true(codec_pages_bound(NR) <= wire_type_cap(WIRE_PAGES));
    assert_true(codec_state_bound(WIRE_STATE_CHUNK_BYTES) <= wire_type_cap(WIRE_STATE));
    assert_int_equal(codec_pages_encode(&codec, &blocks, indexes, pages, NR, payload, codec_pages_bound(NR) - 1),
                     -ENOSPC);
    assert_int_equal(codec_pages_encode(&codec, &blocks, indexes, pages, 0, payload, sizeof(payload)), -EINVAL);
    assert_int_equal(codec_pages_encode(&codec, &blocks, indexes, pages, 65, payload, sizeof(payload)), -EINVAL);
}

static void an_index_outside_the_guest_is_not_encoded(void **unused)
{
    static const uint64_t bad[] = {131072, 1ull << 40 | 64, 3ull << 40, ~0ull};

    (void)unused;
    memset(pages, 0, sizeof(pages));
    for (size_t i = 0; i < COUNT(bad); i++) {
        indexes[0] = 5;
        indexes[1] = bad[i];
        assert_int_equal(codec_pages_encode(&codec, &blocks, indexes, pages, 2, payload, sizeof(payload)), -EPROTO);
        assert_true(codec_pages_encode(&codec, NULL, indexes, pages, 2, payload, sizeof(payload)) > 0);
    }
}

struct mutation {
    unsigned at, bytes;
    uint64_t value;
    int longer; /* bytes */
    const char *why;
};

/* A batch of three: zero, raw, lz4 of 26 bytes. Index at 16, kinds at 40, sizes at 48, data at 56. */
static const uint8_t lz4_page[] = {0x1f, 7, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
                                   255,  255, 255, 255, 246, 0x50, 7, 7, 7, 7, 7};

static size_t three_pages(void)
{
    const struct wire_pages head = {.nr_pages = 3, .codec = 1, .data_bytes = 4096 + sizeof(lz4_page)};
    const uint64_t index[] = {5, 1ull << 40 | 63, 131071};
    const uint16_t size[] = {0, 4096, sizeof(lz4_page)};

    memset(payload, 0, sizeof(payload));
    memcpy(payload, &head, sizeof(head));
    memcpy(payload + 16, index, sizeof(index));
    memcpy(payload + 40, "\0\1\2", 3);
    memcpy(payload + 48, size, sizeof(size));
    memset(payload + 56, 0x77, 4096);
    memcpy(payload + 56 + 4096, lz4_page, sizeof(lz4_page));
    return 56 + 4096 + 32;
}

#define LENGTH_RULE "PAGES does not have the length that its fields make"
#define NR_RULE "PAGES does not have 1 to 64 pages"
#define DECODE_RULE "an lz4 page does not decode to 4096 bytes"

/* clang-format off */
static const struct mutation pages_mutations[] = {
    {0, 4, 0, 0, NR_RULE},
    {0, 4, 65, 0, NR_RULE},
    {0, 4, 0xffffffff, 0, NR_RULE},
    {0, 4, 2, 0, LENGTH_RULE},
    {0, 4, 64, 0, LENGTH_RULE},
    {4, 4, 0, 0, "PAGES' codec is not legal in version 1"},
    {4, 4, 2, 0, "PAGES' codec is not legal in version 1"},
    {8, 4, 4096 + 26 + 8, 0, LENGTH_RULE},
    {8, 4, 4096 + 27, 0, "the pages' sizes do not add up to the batch's data"},
    {8, 4, 3 * 4096 + 1, 0, "PAGES has more data than its pages can need"},
    {8, 4, 0xffffffff, 0, "PAGES has more data than its pages can need"},
    {12, 4, 1, 0, "PAGES' reserved field is not zero"},
    {0, 0, 0, 8, LENGTH_RULE},
    {0, 0, 0, -8, LENGTH_RULE},
    {0, 0, 0, -(56 + 4096 + 32 - 8), "PAGES is too short for its header"},
    {0, 0, 0, -(56 + 4096 + 32 - 16), LENGTH_RULE},
    {16, 8, 131072, 0, "a page's index names no page of the guest"},
    {24, 8, 1ull << 40 | 64, 0, "a page's index names no page of the guest"},
    {32, 8, 3ull << 40, 0, "a page's index names no page of the guest"},
    {32, 8, ~0ull, 0, "a page's index names no page of the guest"},
    {40, 1, 3, 0, "a page's kind is not legal in version 1"},
    {40, 1, 4, 0, "a page's kind is not legal in version 1"},
    {41, 1, 255, 0, "a page's kind is not legal in version 1"},
    {40, 1, 1, 0, "a raw page does not have 4096 bytes"},
    {41, 1, 0, 0, "a zero page has data"},
    {41, 1, 2, 0, "an lz4 page does not have 1 to 4095 bytes"},
    {42, 1, 1, 0, "a raw page does not have 4096 bytes"},
    {48, 2, 1, 0, "a zero page has data"},
    {50, 2, 4095, 0, "a raw page does not have 4096 bytes"},
    {52, 2, 0, 0, "an lz4 page does not have 1 to 4095 bytes"},
    {52, 2, 27, 0, "the pages' sizes do not add up to the batch's data"},
    {43, 1, 1, 0, "PAGES' padding is not zero"},
    {47, 1, 1, 0, "PAGES' padding is not zero"},
    {54, 1, 1, 0, "PAGES' padding is not zero"},
    {55, 1, 1, 0, "PAGES' padding is not zero"},
    {56 + 4096 + 26, 1, 1, 0, "PAGES' padding is not zero"},
    {56 + 4096 + 31, 1, 1, 0, "PAGES' padding is not zero"},
    {56 + 4096 + 2, 2, 2, 0, DECODE_RULE},          /* match from before the start */
    {56 + 4096 + 19, 1, 245, 0, DECODE_RULE},       /* 4095 bytes */
    {56 + 4096 + 19, 1, 247, 0, DECODE_RULE},       /* 4097 bytes */
    {56 + 4096 + 20, 1, 0xf0, 0, DECODE_RULE},      /* literals from beyond the block */
};

static const struct mutation state_mutations[] = { /* of: offset 100, 1001 raw bytes */
    {0, 4, 99, 0, "STATE does not go on where the part before it ended"},
    {0, 4, 101, 0, "STATE does not go on where the part before it ended"},
    {4, 4, 0, 0, "STATE does not carry 1 to 262144 bytes"},
    {4, 4, 262145, 0, "STATE does not carry 1 to 262144 bytes"},
    {4, 4, 999, 0, "STATE's data does not have a legal size"},
    {8, 4, 0, 0, "STATE's kind is not legal in version 1"},
    {8, 4, 3, 0, "STATE's kind is not legal in version 1"},
    {8, 4, 2, 0, "STATE's lz4 data does not decode to its size"},
    {12, 4, 0, 0, "STATE's data does not have a legal size"},
    {12, 4, 1002, 0, "STATE's data does not have a legal size"},
    {12, 4, 0xffffffff, 0, "STATE's data does not have a legal size"},
    {0, 0, 0, 8, "STATE does not have the length that its fields make"},
    {0, 0, 0, -8, "STATE does not have the length that its fields make"},
    {0, 0, 0, -1016, "STATE is too short for its header"},
    {16 + 1001, 1, 1, 0, "STATE's padding is not zero"},
};
/* clang-format on */

static void expect(const char *why, const struct mutation *m)
{
    if (!why || strcmp(why, m->why) != 0)
        fail_msg("%llx at %u, %d bytes longer: said \"%s\", not \"%s\"", (unsigned long long)m->value, m->at,
                 m->longer, why ? why : "fine", m->why);
}

static void broken_batches_are_refused(void **unused)
{
    (void)unused;
    assert_null(decode(three_pages())); /* the control */
    assert_int_equal(back[2 * WIRE_PAGE_BYTES + 4095], 7);
    assert_int_equal(back[WIRE_PAGE_BYTES], 0x77);
    assert_int_equal(back[0], 0);
    for (size_t i = 0; i < COUNT(pages_mutations); i++) {
        const struct mutation *m = &pages_mutations[i];
        size_t len = three_pages();

        memcpy(payload + m->at, &m->value, m->bytes);
        expect(decode((size_t)((ssize_t)len + m->longer)), m);
    }
}

/* liblz4 accepts a match at offset 0 (a page that repeats what the destination held): it must give zeros. */
static void what_comes_out_depends_on_the_payload_alone(void **unused)
{
    static uint8_t first[WIRE_PAGE_BYTES];
    const uint16_t offset = 0;
    size_t len = three_pages();
    struct codec_batch batch;
    const char *why = NULL;

    (void)unused;
    memcpy(payload + 56 + 4096 + 2, &offset, sizeof(offset));
    assert_int_equal(codec_pages_parse(payload, len, &blocks, &batch, &why), 0);
    for (int fill = 0; fill < 256; fill += 51) {
        memset(back, fill, sizeof(back));
        if (codec_pages_decode(&batch, index_back, back, &why))
            continue; /* a liblz4 that refuses it is right too */
        if (!fill)
            memcpy(first, back + 2 * WIRE_PAGE_BYTES, sizeof(first));
        assert_memory_equal(back + 2 * WIRE_PAGE_BYTES, first, sizeof(first));
    }
}

static size_t one_state(void)
{
    ssize_t n;

    for (size_t i = 0; i < 1001; i++)
        state_in[i] = (uint8_t)seed_next();
    memset(payload, 0, sizeof(payload));
    n = codec_state_encode(&codec, 100, state_in, 1001, payload, codec_state_bound(1001));
    assert_int_equal(n, 16 + 1008);
    return (size_t)n;
}

static void broken_state_is_refused(void **unused)
{
    const char *why = NULL;
    size_t len;

    (void)unused;
    seed_start("state");
    len = one_state();
    assert_int_equal(codec_state_decode(payload, len, 100, state_out, 1101, &why), 1001); /* the control */
    assert_int_equal(codec_state_decode(payload, len, 100, state_out, 1100, &why), -EPROTO);
    assert_string_equal(why, "the device state is larger than the room for it here");
    for (size_t i = 0; i < COUNT(state_mutations); i++) {
        const struct mutation *m = &state_mutations[i];

        len = one_state();
        memcpy(payload + m->at, &m->value, m->bytes);
        why = NULL;
        memset(state_out, 0x5a, sizeof(state_out));
        assert_int_equal(codec_state_decode(payload, (size_t)((ssize_t)len + m->longer), 100, state_out, 5000, &why),
                         -EPROTO);
        expect(why, m);
        assert_int_equal(state_out[99], 0x5a);
        assert_int_equal(state_out[5000], 0x5a);
    }
}

static void state_over_64_mib_is_refused(void **unused)
{
    const uint32_t far_off = WIRE_STATE_MAX_BYTES - 1000;
    const char *why = NULL;
    size_t len = one_state();

    (void)unused;
    memcpy(payload, &far_off, sizeof(far_off));
    assert_int_equal(codec_state_decode(payload, len, far_off, state_out, SIZE_MAX, &why), -EPROTO);
    assert_string_equal(why, "the device state is over 64 MiB");
    assert_int_equal(codec_state_encode(&codec, far_off, state_in, 1001, payload, sizeof(payload)), -EINVAL);
    assert_int_equal(codec_state_encode(&codec, 0, state_in, 0, payload, sizeof(payload)), -EINVAL);
    assert_int_equal(codec_state_encode(&codec, 0, state_in, 262145, payload, sizeof(payload)), -EINVAL);
    assert_int_equal(codec_state_encode(&codec, 0, state_in, 9, payload, codec_state_bound(9) - 1), -ENOSPC);
}

static void state_comes_back_in_parts(void **unused)
{
    static const uint32_t sizes[] = {1, 2, 7, 8, 9, 4096, 262143, 262144};

    (void)unused;
    seed_start("state parts");
    for (size_t i = 0; i < COUNT(sizes); i++) {
        for (unsigned kind = 0; kind < 5; kind++) {
            const char *why = NULL;
            ssize_t n;

            for (size_t at = 0; at + WIRE_PAGE_BYTES <= sizeof(state_in); at += WIRE_PAGE_BYTES)
                fill_page(state_in + at, kind);
            memset(state_out, 0x5a, sizeof(state_out));
            memset(payload, 0xa5, sizeof(payload));
            n = codec_state_encode(&codec, 333, state_in, sizes[i], payload, codec_state_bound(sizes[i]));
            assert_true(n > 0 && (size_t)n <= codec_state_bound(sizes[i]));
            assert_int_equal(payload[codec_state_bound(sizes[i])], 0xa5);
            assert_int_equal(codec_state_decode(payload, (size_t)n, 333, state_out, 333 + sizes[i], &why), sizes[i]);
            assert_memory_equal(state_out + 333, state_in, sizes[i]);
            assert_int_equal(state_out[332], 0x5a);
            assert_int_equal(state_out[333 + sizes[i]], 0x5a);
        }
    }
}

static void random_changes_stay_in_bounds(void **unused)
{
    int refused = 0, passed = 0;

    (void)unused;
    seed_start("random changes");
    for (int round = 0; round < 20000; round++) {
        size_t len = three_pages();

        for (size_t n = 1 + seed_below(4); n; n--) {
            /* mostly where the fields are */
            size_t at = seed_below(4) ? seed_below(56) : 56 + 4096 + seed_below(26);

            payload[at] = (uint8_t)seed_next();
        }
        if (decode(len))
            refused++;
        else
            passed++;
    }
    assert_true(refused > 10000 && passed > 100);
}

static void arena_offsets_are_those_of_the_contract(void **unused)
{
    const struct arena_geometry g = {.slots = 3, .slot_pages = 513, .state_max = 8192};
    struct arena_geometry bad = g;

    (void)unused;
    assert_memory_equal(&(uint64_t){ARENA_MAGIC}, "PLXARENA", 8);
    assert_true(arena_geometry_valid(&g));
    assert_int_equal(arena_index_bytes(&g), 8192);
    assert_int_equal(arena_slot_bytes(&g), 8192 + 513 * 4096 + 8192);
    assert_int_equal(arena_index_offset(&g, 2), 4096 + 2 * arena_slot_bytes(&g));
    assert_int_equal(arena_pages_offset(&g, 1), 4096 + arena_slot_bytes(&g) + 8192);
    assert_int_equal(arena_state_offset(&g, 0), 4096 + 8192 + 513 * 4096);
    assert_int_equal(arena_state_offset(&g, 2) + g.state_max, arena_bytes(&g));
    bad.state_max = 100;
    assert_false(arena_geometry_valid(&bad));
    bad = (struct arena_geometry){0, 1, 0};
    assert_false(arena_geometry_valid(&bad));
    bad = (struct arena_geometry){1, ARENA_SLOT_PAGES_MAX + 1, 0};
    assert_false(arena_geometry_valid(&bad));
    bad = (struct arena_geometry){ARENA_SLOTS_MAX, ARENA_SLOT_PAGES_MAX, ARENA_STATE_MAX_BYTES};
    assert_true(arena_geometry_valid(&bad) && arena_bytes(&bad) / ARENA_SLOTS_MAX > ARENA_SLOT_PAGES_MAX * 4096);
}

static int setup(void **unused)
{
    (void)unused;
    codec_init(&codec);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_come_back_as_they_were),
        cmocka_unit_test(one_byte_anywhere_makes_a_page_not_zero),
        cmocka_unit_test(the_worst_case_fits_its_bound_and_the_record),
        cmocka_unit_test(an_index_outside_the_guest_is_not_encoded),
        cmocka_unit_test(broken_batches_are_refused),
        cmocka_unit_test(what_comes_out_depends_on_the_payload_alone),
        cmocka_unit_test(broken_state_is_refused),
        cmocka_unit_test(state_over_64_mib_is_refused),
        cmocka_unit_test(state_comes_back_in_parts),
        cmocka_unit_test(random_changes_stay_in_bounds),
        cmocka_unit_test(arena_offsets_are_those_of_the_contract),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
