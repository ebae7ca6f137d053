/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_store.c - the standby's epochs: nothing partial is ever whole, later copies win, memory is given back
 *
 * Records are made by the real codec and checked by nothing but the store: wire.c has its own tests.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "replicator/store.h"

#define PAGES0 300
#define PAGES1 40
#define STATE_BYTES 5000

static const uint64_t block_pages[] = { PAGES0, PAGES1 };
static const struct codec_blocks blocks = { 2, block_pages };

struct fixture {
    struct store store;
    struct codec codec;
    struct wire_digest digest;
    uint32_t checksum;
    uint64_t pages, state;
    _Alignas(8) uint8_t payload[300000];
    uint8_t guest[PAGES0 + PAGES1][4096]; /* what the standby's RAM should be */
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    assert_int_equal(store_open(&f->store, &blocks, 65536), 0);
    codec_init(&f->codec);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    store_close(&f->store);
    free(f);
    return 0;
}

static int offer(struct fixture *f, enum wire_type type, uint64_t epoch, size_t len, enum store_said *said, unsigned *slot)
{
    struct wire_record rec = { .type = type, .len = (uint32_t)len, .checksum = ++f->checksum, .epoch = epoch, .payload = f->payload };
    int rc = store_take(&f->store, &rec, said, slot);

    if (rc == 0 && *said != STORE_BUSY && (type == WIRE_PAGES || type == WIRE_STATE))
        wire_digest_add(&f->digest, rec.checksum);
    return rc;
}

static int begin(struct fixture *f, uint64_t epoch, bool full)
{
    struct wire_epoch_begin b = { .flags = full ? WIRE_EPOCH_FULL : 0 };
    enum store_said said;
    unsigned slot;

    memcpy(f->payload, &b, sizeof(b));
    wire_digest_begin(&f->digest, epoch);
    f->pages = f->state = 0;
    return offer(f, WIRE_EPOCH_BEGIN, epoch, sizeof(b), &said, &slot);
}

/* One page; its content becomes the guest's. */
static int page(struct fixture *f, uint64_t epoch, uint64_t block, uint64_t at, uint8_t fill, enum store_said *said, unsigned *slot)
{
    uint64_t index = block << 40 | at;
    uint8_t content[4096];
    ssize_t len;

    memset(content, fill, sizeof(content));
    content[7] = (uint8_t)at;
    memcpy(f->guest[(block ? PAGES0 : 0) + at], content, sizeof(content));
    len = codec_pages_encode(&f->codec, &blocks, &index, content, 1, f->payload, sizeof(f->payload));
    assert_true(len > 0);
    f->pages++;
    return offer(f, WIRE_PAGES, epoch, (size_t)len, said, slot);
}

static int device_state(struct fixture *f, uint64_t epoch, uint8_t fill)
{
    uint8_t raw[STATE_BYTES];
    enum store_said said;
    unsigned slot;
    ssize_t len;

    memset(raw, fill, sizeof(raw));
    len = codec_state_encode(&f->codec, (uint32_t)f->state, raw, sizeof(raw), f->payload, sizeof(f->payload));
    assert_true(len > 0);
    f->state += sizeof(raw);
    return offer(f, WIRE_STATE, epoch, (size_t)len, &said, &slot);
}

static int end(struct fixture *f, uint64_t epoch, enum store_said *said, unsigned *slot)
{
    struct wire_epoch_end e = { .pages = f->pages, .state_bytes = f->state, .digest = wire_digest_value(&f->digest) };

    memcpy(f->payload, &e, sizeof(e));
    return offer(f, WIRE_EPOCH_END, epoch, sizeof(e), said, slot);
}

static void whole_epoch(struct fixture *f, uint64_t epoch, uint8_t fill, unsigned *ret_slot)
{
    enum store_said said;

    assert_int_equal(begin(f, epoch, epoch == 1), 0);
    assert_int_equal(page(f, epoch, 0, epoch % PAGES0, fill, &said, ret_slot), 0);
    assert_int_equal(device_state(f, epoch, fill), 0);
    assert_int_equal(end(f, epoch, &said, ret_slot), 0);
    assert_int_equal(said, STORE_COMPLETE);
}

/* The arena is QEMU's too, and a guest may have broken out into it: its index must lead nowhere in here. */
static void what_qemu_writes_in_the_index_is_not_believed(void **state)
{
    struct fixture *f = *state;
    enum store_said said;
    unsigned slot;
    uint64_t *shared;

    assert_int_equal(begin(f, 1, true), 0);
    assert_int_equal(page(f, 1, 0, 5, 9, &said, &slot), 0);
    assert_int_equal(page(f, 1, 1, 6, 8, &said, &slot), 0);
    shared = arena_index(f->store.arena.base, &f->store.arena.geometry, (unsigned)f->store.filling);
    assert_int_equal(shared[0], 5);
    assert_int_equal(shared[1], 1ull << 40 | 6);
    shared[0] = shared[1] = UINT64_MAX / 3;
    assert_int_equal(page(f, 1, 0, 5, 7, &said, &slot), 0);
    assert_int_equal(f->store.slot[f->store.filling].nr_pages, 2);
    store_discard(&f->store);
    for (unsigned i = 0; i < PAGES0 + PAGES1; i++)
        assert_int_equal(f->store.map[i], 0);
}

static void an_epoch_is_whole_only_after_its_end(void **state)
{
    struct fixture *f = *state;
    enum store_said said;
    unsigned slot;

    assert_int_equal(begin(f, 1, true), 0);
    assert_int_equal(page(f, 1, 0, 5, 9, &said, &slot), 0);
    assert_int_equal(device_state(f, 1, 1), 0);
    assert_int_equal(store_find(&f->store, 1), -1);
    assert_int_equal(end(f, 1, &said, &slot), 0);
    assert_int_equal(said, STORE_COMPLETE);
    assert_int_equal(store_find(&f->store, 1), (int)slot);
    assert_int_equal(f->store.slot[slot].nr_pages, 1);
    assert_int_equal(f->store.slot[slot].state_bytes, STATE_BYTES);
}

static void half_an_epoch_is_forgotten(void **state)
{
    struct fixture *f = *state;
    enum store_said said;
    unsigned slot;

    assert_int_equal(begin(f, 1, true), 0);
    assert_int_equal(page(f, 1, 0, 5, 9, &said, &slot), 0);
    store_discard(&f->store);
    assert_int_equal(store_find(&f->store, 1), -1);
    assert_int_equal(store_bytes(&f->store), 0);
    whole_epoch(f, 1, 3, &slot); /* the map of the slot before is empty again */
    assert_int_equal(f->store.slot[slot].nr_pages, 1);
}

static void end_that_disagrees_is_refused(void **state)
{
    struct fixture *f = *state;
    enum store_said said;
    unsigned slot;

    for (int what = 0; what < 4; what++) {
        assert_int_equal(begin(f, 1, true), 0);
        assert_int_equal(page(f, 1, 0, 5, 9, &said, &slot), 0);
        if (what != 3)
            assert_int_equal(device_state(f, 1, 1), 0);
        f->pages += what == 0;
        f->state += what == 1;
        if (what == 2)
            wire_digest_add(&f->digest, 1);
        assert_int_equal(end(f, 1, &said, &slot), -EPROTO);
        assert_non_null(f->store.why);
        assert_int_equal(store_find(&f->store, 1), -1);
        store_discard(&f->store);
    }
}

static void records_outside_an_epoch_are_refused(void **state)
{
    struct fixture *f = *state;
    enum store_said said;
    unsigned slot;

    assert_int_equal(page(f, 1, 0, 5, 9, &said, &slot), -EPROTO);
    assert_int_equal(begin(f, 1, true), 0);
    assert_int_equal(page(f, 2, 0, 5, 9, &said, &slot), -EPROTO);
    assert_int_equal(begin(f, 1, true), -EPROTO);
}

static void a_later_copy_of_a_page_wins(void **state)
{
    struct fixture *f = *state;
    enum store_said said;
    unsigned slot;
    uint8_t *pages;
    uint64_t *index;

    assert_int_equal(begin(f, 1, true), 0);
    for (uint8_t fill = 1; fill < 4; fill++) {
        assert_int_equal(page(f, 1, 0, 5, fill, &said, &slot), 0);
        assert_int_equal(page(f, 1, 1, 6, fill + 10, &said, &slot), 0);
    }
    assert_int_equal(device_state(f, 1, 1), 0);
    assert_int_equal(end(f, 1, &said, &slot), 0);
    assert_int_equal(f->store.slot[slot].nr_pages, 2);
    index = arena_index(f->store.arena.base, &f->store.arena.geometry, slot);
    pages = arena_pages(f->store.arena.base, &f->store.arena.geometry, slot);
    assert_int_equal(index[0], 5);
    assert_int_equal(index[1], 1ull << 40 | 6);
    assert_memory_equal(pages, f->guest[5], 4096);
    assert_memory_equal(pages + 4096, f->guest[PAGES0 + 6], 4096);
}

static void every_page_twice_fits(void **state)
{
    struct fixture *f = *state;
    enum store_said said;
    unsigned slot;

    assert_int_equal(begin(f, 1, true), 0);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < PAGES0; i++)
            assert_int_equal(page(f, 1, 0, i, (uint8_t)round, &said, &slot), 0);
        for (unsigned i = 0; i < PAGES1; i++)
            assert_int_equal(page(f, 1, 1, i, (uint8_t)round, &said, &slot), 0);
    }
    assert_int_equal(device_state(f, 1, 1), 0);
    assert_int_equal(end(f, 1, &said, &slot), 0);
    assert_int_equal(f->store.slot[slot].nr_pages, PAGES0 + PAGES1);
}

static void the_last_acked_epoch_is_kept_for_its_state(void **state)
{
    struct fixture *f = *state;
    unsigned slot1, slot2;

    whole_epoch(f, 1, 1, &slot1);
    store_applying(&f->store, slot1, false);
    assert_int_equal(store_applied(&f->store, slot1), 1);
    store_acked(&f->store, 1);
    assert_int_equal(store_find(&f->store, 1), (int)slot1);
    whole_epoch(f, 2, 2, &slot2);
    assert_int_equal(store_find(&f->store, 1), (int)slot1);
    store_applying(&f->store, slot2, false);
    store_acked(&f->store, 2);
    assert_int_equal(store_find(&f->store, 1), -1);
    assert_int_equal(store_find(&f->store, 2), (int)slot2);
}

static void busy_when_all_slots_wait_and_goes_on_after(void **state)
{
    struct fixture *f = *state;
    enum store_said said = STORE_TAKEN;
    unsigned slot[STORE_SLOTS + 1];

    for (unsigned i = 0; i < STORE_SLOTS; i++) {
        whole_epoch(f, i + 1, 1, &slot[i]);
        store_applying(&f->store, slot[i], false);
    }
    assert_int_equal(begin(f, STORE_SLOTS + 1, false), 0);
    assert_int_equal(page(f, STORE_SLOTS + 1, 0, 1, 1, &said, &slot[STORE_SLOTS]), 0);
    assert_int_equal(said, STORE_BUSY);
    f->pages--; /* it will be offered again */
    assert_int_equal(store_applied(&f->store, slot[0]), 1);
    store_acked(&f->store, STORE_SLOTS);
    assert_int_equal(page(f, STORE_SLOTS + 1, 0, 1, 1, &said, &slot[STORE_SLOTS]), 0);
    assert_int_equal(said, STORE_TAKEN);
}

/* Acks may all come before the first apply is done: then nobody acks again until a slot is free. */
static void slots_applied_after_their_acks_become_free(void **state)
{
    struct fixture *f = *state;
    enum store_said said = STORE_TAKEN;
    unsigned slot[STORE_SLOTS + 1];

    for (unsigned i = 0; i < STORE_SLOTS; i++) {
        whole_epoch(f, i + 1, 1, &slot[i]);
        store_applying(&f->store, slot[i], false);
        store_acked(&f->store, i + 1);
    }
    for (unsigned i = 0; i < STORE_SLOTS; i++)
        assert_int_equal(store_applied(&f->store, slot[i]), i + 1);
    assert_int_equal(begin(f, STORE_SLOTS + 1, false), 0);
    assert_int_equal(page(f, STORE_SLOTS + 1, 0, 1, 1, &said, &slot[STORE_SLOTS]), 0);
    assert_int_equal(said, STORE_TAKEN);
    assert_int_equal(store_find(&f->store, STORE_SLOTS), (int)slot[STORE_SLOTS - 1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_qemu_writes_in_the_index_is_not_believed, setup, teardown),
        cmocka_unit_test_setup_teardown(an_epoch_is_whole_only_after_its_end, setup, teardown),
        cmocka_unit_test_setup_teardown(half_an_epoch_is_forgotten, setup, teardown),
        cmocka_unit_test_setup_teardown(end_that_disagrees_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(records_outside_an_epoch_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_later_copy_of_a_page_wins, setup, teardown),
        cmocka_unit_test_setup_teardown(every_page_twice_fits, setup, teardown),
        cmocka_unit_test_setup_teardown(the_last_acked_epoch_is_kept_for_its_state, setup, teardown),
        cmocka_unit_test_setup_teardown(busy_when_all_slots_wait_and_goes_on_after, setup, teardown),
        cmocka_unit_test_setup_teardown(slots_applied_after_their_acks_become_free, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
