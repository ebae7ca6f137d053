/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_wire - one record at a time: every rule of docs/PROTOCOL.md that wire.c owns, kept and broken
 *
 * The table of mutations takes a valid record, changes one field, seals it again and expects the sentence that names
 * the broken rule: a check that vanished, or that answers for another one, fails here.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "replicator/wire.h"
#include "seed.h"

#define BUFFER_BYTES (4 * WIRE_RECORD_MAX_BYTES)
#define MAX_RECORDS 32

static uint8_t stream[BUFFER_BYTES] __attribute__((aligned(8)));
static uint8_t input[BUFFER_BYTES] __attribute__((aligned(8)));
static const char layout_text[] = "cpus=1\nqemu=10.0.13\n";

static const struct wire_hello hello = {.version_min = 1,
                                        .version_max = 1,
                                        .role = WIRE_ROLE_ACTIVE,
                                        .instance = {1, 2, 3},
                                        .vm = "db-1.example_x",
                                        .boot = 99};
static const struct wire_heartbeat heartbeat = {.sent_ns = 5, .echo_ns = 4, .state = 3};
static const struct wire_epoch_begin begin = {.flags = WIRE_EPOCH_FULL};
static const struct wire_epoch_end end = {.pages = 1, .state_bytes = WIRE_STATE_MAX_BYTES};
static const struct wire_arb_ask ask = {.op = WIRE_ARB_CAS, .vm = "a", .expect = 4, .next = 5, .tag = 1};
static const struct wire_arb_answer answer = {.result = WIRE_ARB_GRANTED, .vm = "a", .generation = 5, .tag = 1};

static enum wire_peer sender_of(enum wire_type type)
{
    switch (type) {
    case WIRE_ACK:
    case WIRE_APPLIED:
        return WIRE_PEER_STANDBY;
    case WIRE_ARB_ASK:
        return WIRE_PEER_CLIENT;
    case WIRE_ARB_ANSWER:
        return WIRE_PEER_WITNESS;
    default:
        return WIRE_PEER_ACTIVE;
    }
}

/* A valid record of each type. */
static size_t put(struct wire_writer *w, uint8_t *buf, enum wire_type type)
{
    static const uint8_t some[40];
    const size_t cap = WIRE_RECORD_MAX_BYTES;
    ssize_t n = -1;

    switch (type) {
    case WIRE_HELLO:
        n = wire_put(w, buf, cap, type, 7, 0, &hello, sizeof(hello));
        break;
    case WIRE_LAYOUT:
        n = wire_put(w, buf, cap, type, 7, 0, layout_text, strlen(layout_text));
        break;
    case WIRE_HEARTBEAT:
        n = wire_put(w, buf, cap, type, 7, 3, &heartbeat, sizeof(heartbeat));
        break;
    case WIRE_EPOCH_BEGIN:
        n = wire_put(w, buf, cap, type, 7, 3, &begin, sizeof(begin));
        break;
    case WIRE_EPOCH_END:
        n = wire_put(w, buf, cap, type, 7, 3, &end, sizeof(end));
        break;
    case WIRE_PAGES:
    case WIRE_STATE:
        n = wire_put(w, buf, cap, type, 7, 3, some, sizeof(some));
        break;
    case WIRE_ACK:
    case WIRE_APPLIED:
        n = wire_put(w, buf, cap, type, 7, 3, NULL, 0);
        break;
    case WIRE_REFUSE:
        n = wire_put_reason(w, buf, cap, type, 7, 0, WIRE_REFUSE_BUSY, "has a peer");
        break;
    case WIRE_GUEST_GONE:
    case WIRE_GUEST_ENDED:
        n = wire_put_reason(w, buf, cap, type, 7, 3, 2, "r\xc3\xa4\xe2\x82\xac\xf0\x9f\x90\xa7");
        break;
    case WIRE_ARB_ASK:
        n = wire_put(w, buf, cap, type, 0, 0, &ask, sizeof(ask));
        break;
    case WIRE_ARB_ANSWER:
        n = wire_put(w, buf, cap, type, 0, 0, &answer, sizeof(answer));
        break;
    default:
        break;
    }
    assert_true(n > 0);
    assert_int_equal(n % 8, 0);
    return (size_t)n;
}

/* What a peer of this kind says before anything else. */
static size_t put_greeting(struct wire_writer *w, uint8_t *buf, enum wire_peer peer)
{
    size_t n;

    if (peer == WIRE_PEER_CLIENT || peer == WIRE_PEER_WITNESS)
        return 0;
    n = put(w, buf, WIRE_HELLO);
    return n + put(w, buf + n, WIRE_LAYOUT);
}

/* Seal a record again after a change to it: the checksum as PROTOCOL.md defines it, made without wire.c. */
static void reseal(uint8_t *record, size_t bytes)
{
    uint32_t sum;

    memset(record + 12, 0, 4);
    sum = XXH32(record, bytes, 0);
    memcpy(record + 12, &sum, 4);
}

struct fed {
    int nr; /* records that came out */
    int ret; /* of the last wire_next() */
    const char *why;
    enum wire_type type[MAX_RECORDS];
};

/* Feed bytes in chunks; every record must come out as it was written. */
static struct fed feed(enum wire_peer peer, const uint8_t *data, size_t len, size_t cap, size_t chunk_max)
{
    struct fed fed = {0};
    struct wire_reader r;
    struct wire_record rec;
    size_t at = 0, out = 0;

    assert_int_equal(wire_reader_init(&r, peer, input, cap), 0);
    while (at < len && !fed.ret) {
        size_t room, n;
        uint8_t *p = wire_reader_space(&r, &room);

        n = chunk_max == 1 ? 1 : 1 + seed_below(chunk_max);
        n = n < room ? n : room;
        n = n < len - at ? n : len - at;
        assert_true(n > 0);
        memcpy(p, data + at, n);
        assert_int_equal(wire_reader_commit(&r, n), 0);
        at += n;
        while ((fed.ret = wire_next(&r, &rec)) == 1) {
            assert_true(fed.nr < MAX_RECORDS);
            fed.type[fed.nr++] = rec.type;
            assert_int_equal((uintptr_t)rec.payload % 8, 0);
            assert_memory_equal((const uint8_t *)rec.payload - WIRE_HEADER_BYTES, data + out,
                                WIRE_HEADER_BYTES + rec.len);
            assert_int_equal(rec.checksum, wire_record_checksum(data + out));
            out += WIRE_HEADER_BYTES + rec.len;
        }
    }
    fed.why = r.why;
    assert_int_equal(fed.ret < 0, r.why != NULL);
    if (fed.ret < 0) {
        size_t room;

        assert_int_equal(wire_next(&r, &rec), -EPROTO); /* and so for ever */
        wire_reader_space(&r, &room);
        assert_int_equal(room, 0);
    } else {
        assert_int_equal(wire_reader_at_boundary(&r), out == at);
    }
    return fed;
}

struct mutation {
    enum wire_type type; /* the record that is changed */
    unsigned at;         /* offset in the record: payloads start at 40 */
    unsigned bytes;
    uint64_t value;
    const char *why;
};

#define SIZE_RULE "the record does not have the size of its type's structure"
#define CAP_RULE "the record is longer than its type's cap"
#define TYPE_RULE "the type is not legal in version 1"
#define SIDE_RULE "the type is not for this side to send"
#define NO_EPOCH_RULE "the header names an epoch, and its type has none"
#define EPOCH_RULE "the header names epoch 0, and epochs are numbered from 1"
#define NONE_RULE "the header names a generation or epoch, and its type has none"
#define TEXT_RULE "the reason's text is not printable UTF-8"
#define PADDING_RULE "the reason's text is not padded with at most 7 zero bytes"

/* clang-format off */
/* Seen in the header alone. */
static const struct mutation header_mutations[] = {
    {WIRE_HEARTBEAT, 0, 1, 0, "the record does not start with PLXR"},
    {WIRE_HEARTBEAT, 3, 1, 0xff, "the record does not start with PLXR"},
    {WIRE_HEARTBEAT, 4, 2, 0, TYPE_RULE},
    {WIRE_HEARTBEAT, 4, 2, WIRE_DISK_WRITE, TYPE_RULE},
    {WIRE_HEARTBEAT, 4, 2, 14, TYPE_RULE},
    {WIRE_HEARTBEAT, 4, 2, 31, TYPE_RULE},
    {WIRE_HEARTBEAT, 4, 2, 34, TYPE_RULE},
    {WIRE_HEARTBEAT, 4, 2, 0xffff, TYPE_RULE},
    {WIRE_HEARTBEAT, 4, 2, WIRE_ACK, SIDE_RULE},
    {WIRE_HEARTBEAT, 4, 2, WIRE_APPLIED, SIDE_RULE},
    {WIRE_HEARTBEAT, 4, 2, WIRE_ARB_ASK, SIDE_RULE},
    {WIRE_HEARTBEAT, 4, 2, WIRE_ARB_ANSWER, SIDE_RULE},
    {WIRE_ACK, 4, 2, WIRE_EPOCH_BEGIN, SIDE_RULE},
    {WIRE_ACK, 4, 2, WIRE_PAGES, SIDE_RULE},
    {WIRE_ACK, 4, 2, WIRE_STATE, SIDE_RULE},
    {WIRE_ACK, 4, 2, WIRE_EPOCH_END, SIDE_RULE},
    {WIRE_ACK, 4, 2, WIRE_GUEST_GONE, SIDE_RULE},
    {WIRE_ACK, 4, 2, WIRE_GUEST_ENDED, SIDE_RULE},
    {WIRE_ARB_ASK, 4, 2, WIRE_HELLO, SIDE_RULE},
    {WIRE_ARB_ASK, 4, 2, WIRE_ARB_ANSWER, SIDE_RULE},
    {WIRE_ARB_ANSWER, 4, 2, WIRE_ARB_ASK, SIDE_RULE},
    {WIRE_HEARTBEAT, 6, 2, 1, "the header's reserved flags are not zero"},
    {WIRE_HEARTBEAT, 7, 1, 0x80, "the header's reserved flags are not zero"},
    {WIRE_HEARTBEAT, 8, 4, 25, "the record's length is not a multiple of 8"},
    {WIRE_PAGES, 8, 4, 0xffffffff, "the record's length is not a multiple of 8"},
    {WIRE_HELLO, 8, 4, 264, CAP_RULE},
    {WIRE_LAYOUT, 8, 4, 262152, CAP_RULE},
    {WIRE_REFUSE, 8, 4, 4104, CAP_RULE},
    {WIRE_HEARTBEAT, 8, 4, 72, CAP_RULE},
    {WIRE_EPOCH_BEGIN, 8, 4, 72, CAP_RULE},
    {WIRE_PAGES, 8, 4, 278536, CAP_RULE},
    {WIRE_PAGES, 8, 4, 0xfffffff8, CAP_RULE},
    {WIRE_STATE, 8, 4, 262216, CAP_RULE},
    {WIRE_EPOCH_END, 8, 4, 72, CAP_RULE},
    {WIRE_ACK, 8, 4, 8, CAP_RULE},
    {WIRE_APPLIED, 8, 4, 8, CAP_RULE},
    {WIRE_GUEST_GONE, 8, 4, 4104, CAP_RULE},
    {WIRE_GUEST_ENDED, 8, 4, 4104, CAP_RULE},
    {WIRE_ARB_ASK, 8, 4, 264, CAP_RULE},
    {WIRE_ARB_ANSWER, 8, 4, 264, CAP_RULE},
    {WIRE_HELLO, 8, 4, 80, SIZE_RULE},
    {WIRE_HELLO, 8, 4, 96, SIZE_RULE},
    {WIRE_REFUSE, 8, 4, 0, SIZE_RULE},
    {WIRE_HEARTBEAT, 8, 4, 32, SIZE_RULE},
    {WIRE_HEARTBEAT, 8, 4, 0, SIZE_RULE},
    {WIRE_EPOCH_BEGIN, 8, 4, 8, SIZE_RULE},
    {WIRE_PAGES, 8, 4, 16, SIZE_RULE},
    {WIRE_STATE, 8, 4, 16, SIZE_RULE},
    {WIRE_STATE, 8, 4, 262168, SIZE_RULE},
    {WIRE_EPOCH_END, 8, 4, 48, SIZE_RULE},
    {WIRE_GUEST_GONE, 8, 4, 0, SIZE_RULE},
    {WIRE_GUEST_ENDED, 8, 4, 0, SIZE_RULE},
    {WIRE_ARB_ASK, 8, 4, 104, SIZE_RULE},
    {WIRE_ARB_ANSWER, 8, 4, 120, SIZE_RULE},
    {WIRE_LAYOUT, 24, 8, 1, NO_EPOCH_RULE},
    {WIRE_REFUSE, 24, 8, 1, NO_EPOCH_RULE},
    {WIRE_EPOCH_BEGIN, 24, 8, 0, EPOCH_RULE},
    {WIRE_PAGES, 24, 8, 0, EPOCH_RULE},
    {WIRE_STATE, 24, 8, 0, EPOCH_RULE},
    {WIRE_EPOCH_END, 24, 8, 0, EPOCH_RULE},
    {WIRE_ACK, 24, 8, 0, EPOCH_RULE},
    {WIRE_APPLIED, 24, 8, 0, EPOCH_RULE},
    {WIRE_ARB_ASK, 16, 8, 1, NONE_RULE},
    {WIRE_ARB_ASK, 24, 8, 1, NONE_RULE},
    {WIRE_ARB_ANSWER, 16, 8, 1, NONE_RULE},
    {WIRE_ARB_ANSWER, 24, 8, 1, NONE_RULE},
    {WIRE_HELLO, 32, 8, 1, "the sequence number is not the next one"},
    {WIRE_HEARTBEAT, 32, 8, 1, "the sequence number is not the next one"},
    {WIRE_HEARTBEAT, 32, 8, 3, "the sequence number is not the next one"},
    {WIRE_HEARTBEAT, 32, 8, ~0ull, "the sequence number is not the next one"},
};

/* Seen in the whole record. */
static const struct mutation payload_mutations[] = {
    {WIRE_HELLO, 40, 2, 0, "HELLO's range of versions is empty"},
    {WIRE_HELLO, 40, 2, 2, "HELLO's range of versions is empty"},
    {WIRE_HELLO, 44, 4, 0, "HELLO's role is neither active nor standby"},
    {WIRE_HELLO, 44, 4, 3, "HELLO's role is neither active nor standby"},
    {WIRE_HELLO, 64, 1, 0, "HELLO's VM name is not a legal name"},
    {WIRE_HELLO, 64, 1, '-', "HELLO's VM name is not a legal name"},
    {WIRE_HELLO, 65, 1, '/', "HELLO's VM name is not a legal name"},
    {WIRE_HELLO, 65, 1, 0xe4, "HELLO's VM name is not a legal name"},
    {WIRE_HELLO, 66, 1, 0, "HELLO's VM name is not a legal name"},
    {WIRE_HELLO, 111, 1, 'x', "HELLO's VM name is not a legal name"},
    {WIRE_HELLO, 116, 2, 2, "HELLO has a reserved flag set"},
    {WIRE_HELLO, 116, 2, 0x8000, "HELLO has a reserved flag set"},
    {WIRE_REFUSE, 40, 4, 0, "the reason's code is not one of its type"},
    {WIRE_REFUSE, 40, 4, 11, "the reason's code is not one of its type"},
    {WIRE_GUEST_GONE, 40, 4, 3, "the reason's code is not one of its type"},
    {WIRE_GUEST_ENDED, 40, 4, 0, "the reason's code is not one of its type"},
    {WIRE_REFUSE, 44, 4, 1, "the reason's reserved field is not zero"},
    {WIRE_GUEST_GONE, 44, 4, 1u << 31, "the reason's reserved field is not zero"},
    {WIRE_REFUSE, 48, 1, 0x1b, TEXT_RULE},
    {WIRE_REFUSE, 48, 1, '\n', TEXT_RULE},
    {WIRE_REFUSE, 48, 1, 0x7f, TEXT_RULE},
    {WIRE_REFUSE, 48, 1, 0xff, TEXT_RULE},
    {WIRE_REFUSE, 57, 1, 0xc3, TEXT_RULE},      /* the last byte begins a character */
    {WIRE_REFUSE, 48, 2, 0x9bc2, TEXT_RULE},    /* C1 control: CSI */
    {WIRE_REFUSE, 48, 2, 0xafc0, TEXT_RULE},    /* overlong */
    {WIRE_REFUSE, 48, 3, 0x80a0ed, TEXT_RULE},  /* surrogate */
    {WIRE_REFUSE, 48, 3, 0x8080e0, TEXT_RULE},  /* overlong */
    {WIRE_REFUSE, 48, 4, 0x808080f0, TEXT_RULE}, /* overlong */
    {WIRE_REFUSE, 48, 4, 0x808090f4, TEXT_RULE}, /* beyond Unicode */
    {WIRE_REFUSE, 48, 2, 0x28c3, TEXT_RULE},
    {WIRE_REFUSE, 50, 1, 0, PADDING_RULE},
    {WIRE_REFUSE, 63, 1, 'x', PADDING_RULE},
    {WIRE_REFUSE, 48, 8, 0, PADDING_RULE},
    {WIRE_HEARTBEAT, 60, 4, 1, "HEARTBEAT's reserved field is not zero"},
    {WIRE_EPOCH_BEGIN, 40, 4, 2, "EPOCH_BEGIN has a reserved flag set"},
    {WIRE_EPOCH_BEGIN, 44, 4, 1, "EPOCH_BEGIN's reserved fields are not zero"},
    {WIRE_EPOCH_BEGIN, 48, 8, 1, "EPOCH_BEGIN's reserved fields are not zero"},
    {WIRE_EPOCH_END, 48, 8, WIRE_STATE_MAX_BYTES + 1, "EPOCH_END's device state is over 64 MiB"},
    {WIRE_ARB_ASK, 40, 4, 0, "ARB_ASK's operation is neither READ nor CAS"},
    {WIRE_ARB_ASK, 40, 4, 3, "ARB_ASK's operation is neither READ nor CAS"},
    {WIRE_ARB_ASK, 44, 4, 1, "ARB_ASK's reserved field is not zero"},
    {WIRE_ARB_ASK, 48, 1, 0, "ARB_ASK's VM name is not a legal name"},
    {WIRE_ARB_ASK, 104, 8, 4, "ARB_ASK's next generation is not greater than the expected one"},
    {WIRE_ARB_ANSWER, 40, 4, 0, "ARB_ANSWER's result is not one of the four"},
    {WIRE_ARB_ANSWER, 40, 4, 5, "ARB_ANSWER's result is not one of the four"},
    {WIRE_ARB_ANSWER, 44, 4, 1, "ARB_ANSWER's reserved fields are not zero"},
    {WIRE_ARB_ANSWER, 104, 8, 1, "ARB_ANSWER's reserved fields are not zero"},
    {WIRE_ARB_ANSWER, 49, 1, ' ', "ARB_ANSWER's VM name is not a legal name"},
};

static const enum wire_type all_types[] = {
    WIRE_HELLO, WIRE_LAYOUT, WIRE_REFUSE, WIRE_HEARTBEAT, WIRE_EPOCH_BEGIN, WIRE_PAGES, WIRE_STATE,
    WIRE_EPOCH_END, WIRE_ACK, WIRE_GUEST_GONE, WIRE_GUEST_ENDED, WIRE_APPLIED, WIRE_ARB_ASK, WIRE_ARB_ANSWER,
};
/* clang-format on */

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* Greeting and one record of a type; @return where it starts, *ret_len all bytes. */
static size_t stream_with(enum wire_type type, size_t *ret_len)
{
    struct wire_writer w = {0};
    size_t at = 0;

    if (type == WIRE_LAYOUT)
        at = put(&w, stream, WIRE_HELLO);
    else if (type != WIRE_HELLO)
        at = put_greeting(&w, stream, sender_of(type));
    *ret_len = at + put(&w, stream + at, type);
    return at;
}

static void check_mutation(const struct mutation *m, bool header_only)
{
    size_t len, at = stream_with(m->type, &len);
    struct fed fed;

    memcpy(stream + at + m->at, &m->value, m->bytes);
    reseal(stream + at, len - at);
    fed = feed(sender_of(m->type), stream, header_only ? at + WIRE_HEADER_BYTES : len, BUFFER_BYTES, 64);
    if (fed.ret != -EPROTO || !fed.why || strcmp(fed.why, m->why) != 0)
        fail_msg("%s with %llx at %u: said \"%s\", not \"%s\"", wire_type_name(m->type),
                 (unsigned long long)m->value, m->at, fed.why ? fed.why : "fine", m->why);
}

static void a_broken_header_is_refused_before_its_body_comes(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(header_mutations); i++)
        check_mutation(&header_mutations[i], true);
}

static void a_broken_payload_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(payload_mutations); i++)
        check_mutation(&payload_mutations[i], false);
}

/* The control of the two above: unchanged, each record passes, whichever side may send it. */
static void every_type_passes_unchanged(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(all_types); i++) {
        size_t len;
        struct fed fed;

        stream_with(all_types[i], &len);
        fed = feed(sender_of(all_types[i]), stream, len, BUFFER_BYTES, len);
        assert_null(fed.why);
        assert_int_equal(fed.ret, 0);
        assert_int_equal(fed.type[fed.nr - 1], all_types[i]);
    }
}

static void every_flipped_bit_is_seen(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(all_types); i++) {
        size_t len, at = stream_with(all_types[i], &len);

        for (size_t bit = 0; bit < 8 * (len - at); bit++) {
            struct fed fed;

            stream[at + bit / 8] ^= (uint8_t)(1u << bit % 8);
            fed = feed(sender_of(all_types[i]), stream, len, BUFFER_BYTES, len);
            stream[at + bit / 8] ^= (uint8_t)(1u << bit % 8);
            /* a length that grew legally waits for more; nothing else passes */
            if (fed.ret == 0 && !(bit / 8 >= 8 && bit / 8 < 12))
                fail_msg("%s: bit %zu changed and nothing was said", wire_type_name(all_types[i]), bit);
            assert_true(fed.ret == 0 || fed.ret == -EPROTO);
            if (bit >= 8 * WIRE_HEADER_BYTES)
                assert_string_equal(fed.why, "the checksum is wrong");
        }
    }
}

static void the_order_of_the_greeting_is_kept(void **state)
{
    static const struct {
        enum wire_type type[3];
        const char *why;
    } orders[] = {
        {{WIRE_HEARTBEAT}, "the first record is neither HELLO nor REFUSE"},
        {{WIRE_LAYOUT}, "the first record is neither HELLO nor REFUSE"},
        {{WIRE_REFUSE}, NULL},
        {{WIRE_HELLO, WIRE_HELLO}, "HELLO came again"},
        {{WIRE_HELLO, WIRE_HEARTBEAT}, "the second record is neither LAYOUT nor REFUSE"},
        {{WIRE_HELLO, WIRE_LAYOUT, WIRE_HELLO}, "HELLO came again"},
        {{WIRE_HELLO, WIRE_LAYOUT, WIRE_LAYOUT}, "LAYOUT came again"},
        {{WIRE_HELLO, WIRE_REFUSE}, NULL},
        {{WIRE_HELLO, WIRE_LAYOUT, WIRE_REFUSE}, NULL},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(orders); i++) {
        struct wire_writer w = {0};
        size_t len = 0;
        struct fed fed;

        for (size_t j = 0; j < 3 && orders[i].type[j]; j++)
            len += put(&w, stream + len, orders[i].type[j]);
        fed = feed(WIRE_PEER_ACTIVE, stream, len, BUFFER_BYTES, len);
        if (orders[i].why)
            assert_string_equal(fed.why, orders[i].why);
        else
            assert_null(fed.why);
    }
}

/* All that an active may send, with a PAGES of the largest size that is legal. */
static size_t long_stream(int *ret_nr)
{
    static const enum wire_type types[] = {WIRE_HELLO, WIRE_LAYOUT, WIRE_HEARTBEAT, WIRE_EPOCH_BEGIN, WIRE_PAGES,
                                           WIRE_STATE, WIRE_EPOCH_END, WIRE_GUEST_GONE, WIRE_GUEST_ENDED};
    struct wire_writer w = {0};
    size_t len = 0;
    ssize_t n;

    for (size_t i = 0; i < COUNT(types); i++)
        len += put(&w, stream + len, types[i]);
    for (size_t i = 0; i < WIRE_CAP_MAX; i++)
        stream[len + WIRE_HEADER_BYTES + i] = (uint8_t)seed_next();
    n = wire_seal(&w, stream + len, WIRE_PAGES, 7, 4, WIRE_CAP_MAX);
    assert_int_equal(n, WIRE_RECORD_MAX_BYTES);
    len += (size_t)n;
    len += put(&w, stream + len, WIRE_HEARTBEAT);
    *ret_nr = (int)COUNT(types) + 2;
    return len;
}

static void chunks_of_any_size_give_the_same_records(void **state)
{
    static const size_t chunks[] = {1, 7, 41, 1000, 65536, BUFFER_BYTES};
    const size_t caps[] = {wire_reader_min_bytes(WIRE_PEER_ACTIVE), 300008, BUFFER_BYTES};

    (void)state;
    seed_start("chunks");
    for (size_t c = 0; c < COUNT(caps); c++) {
        for (size_t i = 0; i < COUNT(chunks); i++) {
            int nr;
            size_t len = long_stream(&nr);
            struct fed fed = feed(WIRE_PEER_ACTIVE, stream, len, caps[c], chunks[i]);

            assert_null(fed.why);
            assert_int_equal(fed.nr, nr);
        }
    }
}

static void random_changes_never_pass(void **state)
{
    int passed = 0, refused = 0, waiting = 0;

    (void)state;
    seed_start("random changes");
    for (int round = 0; round < 20000; round++) {
        enum wire_type type = all_types[seed_below(COUNT(all_types))];
        size_t len, at = stream_with(type, &len);
        size_t where = at + seed_below(len - at);
        uint8_t was = stream[where];
        bool sealed = seed_below(2);
        struct fed fed;

        stream[where] = (uint8_t)seed_next();
        if (sealed)
            reseal(stream + at, len - at);
        fed = feed(sender_of(type), stream, len, BUFFER_BYTES, 1 + seed_below(len));
        refused += fed.ret < 0;
        waiting += fed.ret == 0 && fed.type[fed.nr ? fed.nr - 1 : 0] != type;
        passed += fed.ret == 0;
        if (fed.ret == 0 && !sealed && stream[where] != was && !(where - at >= 8 && where - at < 12))
            fail_msg("%s: byte %zu changed and nothing was said", wire_type_name(type), where - at);
    }
    /* too little happening would prove nothing */
    assert_true(refused > 10000 && passed > 1000 && waiting > 10);
}

static void what_the_peer_would_refuse_is_not_written(void **state)
{
    struct wire_writer w = {.sequence = 9};
    struct wire_hello bad = hello;

    (void)state;
    bad.role = 0;
    assert_int_equal(wire_put(&w, stream, 1000, WIRE_HELLO, 1, 0, &bad, sizeof(bad)), -EINVAL);
    assert_int_equal(wire_put(&w, stream, 1000, WIRE_HELLO, 1, 0, &hello, 80), -EINVAL);
    assert_int_equal(wire_put(&w, stream, 1000, WIRE_DISK_WRITE, 1, 1, &hello, 80), -EINVAL);
    assert_int_equal(wire_put(&w, stream, 1000, (enum wire_type)77, 1, 1, &hello, 80), -EINVAL);
    assert_int_equal(wire_put(&w, stream, 1000, WIRE_ACK, 1, 0, NULL, 0), -EINVAL);
    assert_int_equal(wire_put(&w, stream, 1000, WIRE_ACK, 1, 1, &hello, 1), -EINVAL);
    assert_int_equal(wire_put(&w, stream, 127, WIRE_HELLO, 1, 0, &hello, sizeof(hello)), -ENOSPC);
    assert_int_equal(wire_seal(&w, stream, WIRE_PAGES, 1, 1, SIZE_MAX), -EINVAL);
    assert_int_equal(wire_seal(&w, stream, WIRE_PAGES, 1, 1, WIRE_CAP_MAX + 1), -EINVAL);
    assert_int_equal(wire_put_reason(&w, stream, 1000, WIRE_REFUSE, 1, 0, 11, "x"), -EINVAL);
    assert_int_equal(wire_put_reason(&w, stream, 1000, WIRE_HELLO, 1, 0, 1, "x"), -EINVAL);
    assert_int_equal(wire_put_reason(&w, stream, 1000, WIRE_LAYOUT, 1, 0, 1, "x"), -EINVAL);
    assert_int_equal(wire_put_reason(&w, stream, 48, WIRE_REFUSE, 1, 0, 1, "x"), -ENOSPC);
    assert_int_equal(wire_put(&w, stream, SIZE_MAX, WIRE_PAGES, 1, 1, &hello, SIZE_MAX), -EINVAL);
    assert_int_equal(w.sequence, 9);
    assert_int_equal(wire_put(&w, stream, 128, WIRE_HELLO, 1, 0, &hello, sizeof(hello)), 128);
    assert_int_equal(w.sequence, 10);
}

static void payloads_are_padded_with_zeros(void **state)
{
    struct wire_writer w = {0};

    (void)state;
    memset(stream, 0xff, 100);
    assert_int_equal(wire_put(&w, stream, 100, WIRE_LAYOUT, 1, 0, "a=b\n", 4), 48);
    assert_memory_equal(stream + 40, "a=b\n\0\0\0\0\xff", 9);
}

static void expect_reason(const char *text, const char *want)
{
    struct wire_writer w = {0};
    struct wire_reader r;
    struct wire_record rec;
    const char *got;
    uint32_t code;
    size_t len = put_greeting(&w, stream, WIRE_PEER_ACTIVE), room;
    int got_len;
    ssize_t n = wire_put_reason(&w, stream + len, WIRE_HEADER_BYTES + 4096, WIRE_REFUSE, 1, 0,
                                WIRE_REFUSE_LAYOUT, text);

    assert_true(n > 0);
    len += (size_t)n;
    assert_int_equal(wire_reader_init(&r, WIRE_PEER_ACTIVE, input, sizeof(input)), 0);
    memcpy(wire_reader_space(&r, &room), stream, len);
    assert_int_equal(wire_reader_commit(&r, len), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(wire_next(&r, &rec), 1);
    assert_int_equal(wire_decode_reason(&rec, &code, &got, &got_len), 0);
    assert_int_equal(code, WIRE_REFUSE_LAYOUT);
    assert_int_equal(got_len, strlen(want));
    assert_memory_equal(got, want, strlen(want));
}

static void reasons_are_made_fit_to_send(void **state)
{
    static char text[5000], want[WIRE_TEXT_MAX_BYTES + 1];

    (void)state;
    expect_reason(NULL, "");
    expect_reason("", "");
    expect_reason("eight ch", "eight ch");
    expect_reason("a\nb\x1b[1m\xff \xc3\xa4 \xc3", "a?b?[1m? \xc3\xa4 ?");
    memset(text, 'x', sizeof(text) - 1);
    memset(want, 'x', sizeof(want) - 1);
    expect_reason(text, want);
    memcpy(text + WIRE_TEXT_MAX_BYTES - 1, "\xe2\x82\xac", 3); /* would be cut in two: left out */
    want[WIRE_TEXT_MAX_BYTES - 1] = '\0';
    expect_reason(text, want);
}

static void decoding_gives_back_what_was_put(void **state)
{
    struct wire_record rec = {.type = WIRE_HELLO, .len = sizeof(hello), .payload = &hello};
    struct wire_hello got;
    struct wire_heartbeat other;

    (void)state;
    assert_int_equal(wire_decode_hello(&rec, &got), 0);
    assert_memory_equal(&got, &hello, sizeof(got));
    assert_int_equal(wire_decode_heartbeat(&rec, &other), -EINVAL);
    rec = (struct wire_record){.type = WIRE_HEARTBEAT, .len = sizeof(heartbeat), .payload = &heartbeat};
    assert_int_equal(wire_decode_heartbeat(&rec, &other), 0);
    assert_memory_equal(&other, &heartbeat, sizeof(other));
    assert_int_equal(wire_decode_hello(&rec, &got), -EINVAL);
    assert_int_equal(wire_decode_epoch_begin(&rec, NULL), -EINVAL);
    assert_int_equal(wire_decode_epoch_end(&rec, NULL), -EINVAL);
    assert_int_equal(wire_decode_arb_ask(&rec, NULL), -EINVAL);
    assert_int_equal(wire_decode_arb_answer(&rec, NULL), -EINVAL);
    assert_int_equal(wire_decode_reason(&rec, NULL, NULL, NULL), -EINVAL);
}

static void a_reader_wants_room_for_the_largest_record(void **state)
{
    struct wire_reader r;
    size_t least = wire_reader_min_bytes(WIRE_PEER_ACTIVE);

    (void)state;
    assert_int_equal(least, 40 + 278528);
    assert_int_equal(wire_reader_min_bytes(WIRE_PEER_STANDBY), 40 + 262144);
    assert_int_equal(wire_reader_min_bytes(WIRE_PEER_CLIENT), 40 + 112);
    assert_int_equal(wire_reader_init(&r, WIRE_PEER_ACTIVE, input, least - 1), -EINVAL);
    assert_int_equal(wire_reader_init(&r, WIRE_PEER_ACTIVE, input + 4, least), -EINVAL);
    assert_int_equal(wire_reader_init(&r, WIRE_PEER_ACTIVE, NULL, least), -EINVAL);
    assert_int_equal(wire_reader_init(&r, WIRE_PEER_ACTIVE, input, least), 0);
    assert_int_equal(wire_reader_commit(&r, least), 0);
    assert_int_equal(wire_reader_commit(&r, 1), -EINVAL);
}

static void a_reader_goes_on_in_another_buffer(void **state)
{
    static uint8_t other[BUFFER_BYTES] __attribute__((aligned(8)));
    struct wire_reader r;
    struct wire_record first, rec;
    int nr, seen = 0;
    size_t len = long_stream(&nr), half = len / 2, room;

    (void)state;
    assert_int_equal(wire_reader_init(&r, WIRE_PEER_ACTIVE, input, sizeof(input)), 0);
    memcpy(wire_reader_space(&r, &room), stream, half);
    assert_int_equal(wire_reader_commit(&r, half), 0);
    assert_int_equal(wire_next(&r, &first), 1);
    while (wire_next(&r, &rec) == 1)
        seen++;
    assert_int_equal(wire_reader_move(&r, other, 100), -EINVAL);
    assert_int_equal(wire_reader_move(&r, other, sizeof(other)), 0);
    memcpy(wire_reader_space(&r, &room), stream + half, len - half);
    assert_true(room >= len - half);
    assert_int_equal(wire_reader_commit(&r, len - half), 0);
    while (wire_next(&r, &rec) == 1)
        seen++;
    assert_int_equal(seen + 1, nr);
    assert_memory_equal(first.payload, &hello, sizeof(hello)); /* the old buffer was left alone */
}

static void after_an_error_nothing_comes(void **state)
{
    struct wire_reader r;
    struct wire_record rec;
    size_t room, len;

    (void)state;
    stream_with(WIRE_HEARTBEAT, &len);
    stream[0] ^= 1;
    assert_int_equal(wire_reader_init(&r, WIRE_PEER_ACTIVE, input, sizeof(input)), 0);
    memcpy(wire_reader_space(&r, &room), stream, len);
    assert_int_equal(wire_reader_commit(&r, len), 0);
    assert_int_equal(wire_next(&r, &rec), -EPROTO);
    input[0] ^= 1; /* even if it were right now */
    assert_int_equal(wire_next(&r, &rec), -EPROTO);
}

static void characters_are_measured(void **state)
{
    static const struct {
        const char *text;
        size_t len, want;
    } texts[] = {{"a", 1, 1}, {"a", 0, 0}, {" ", 1, 1}, {"~", 1, 1}, {"\x7f", 1, 0}, {"\x1f", 1, 0}, {"\0", 1, 0},
                 {"\xc3\xa4", 2, 2}, {"\xc3\xa4", 1, 0}, {"\xc2\xa0", 2, 2}, {"\xc2\x9f", 2, 0}, {"\xa4", 1, 0},
                 {"\xe2\x82\xac", 3, 3}, {"\xe2\x82\xac", 2, 0}, {"\xed\x9f\xbf", 3, 3}, {"\xed\xa0\x80", 3, 0},
                 {"\xf0\x90\x80\x80", 4, 4}, {"\xf0\x90\x80\x80", 3, 0}, {"\xf4\x8f\xbf\xbf", 4, 4},
                 {"\xf4\x90\x80\x80", 4, 0}, {"\xf8\x88\x80\x80\x80", 5, 0}, {"\xff", 1, 0}};

    (void)state;
    for (size_t i = 0; i < COUNT(texts); i++)
        assert_int_equal(wire_text_char(texts[i].text, texts[i].len), texts[i].want);
}

static void a_payload_alone_is_checked(void **state)
{
    const char *why = NULL;

    (void)state;
    assert_int_equal(wire_check_payload(WIRE_HELLO, &hello, sizeof(hello), &why), 0);
    assert_int_equal(wire_check_payload(WIRE_HELLO, &hello, sizeof(hello) - 1, &why), -EPROTO);
    assert_string_equal(why, "the record's length is not a multiple of 8");
    assert_int_equal(wire_check_payload(WIRE_DISK_WRITE, &hello, sizeof(hello), &why), -EPROTO);
    assert_string_equal(why, TYPE_RULE);
    assert_int_equal(wire_check_payload((enum wire_type)99, &hello, sizeof(hello), &why), -EPROTO);
}

static void vm_names_are_checked(void **state)
{
    static const char *const bad[] = {"", ".a", "_a", "-a", "a b", "a/b", "a\n", "\xc3\xa4",
                                      "123456789012345678901234567890123456789012345678"};
    static const char *const good[] = {"a", "0", "Web_1.example-x", "12345678901234567890123456789012345678901234567"};
    char vm[WIRE_VM_BYTES];

    (void)state;
    for (size_t i = 0; i < COUNT(bad); i++) {
        memset(vm, 'k', sizeof(vm));
        assert_int_equal(wire_vm_name(bad[i], vm), -EINVAL);
        assert_int_equal(vm[0], 'k');
    }
    for (size_t i = 0; i < COUNT(good); i++) {
        memset(vm, 'k', sizeof(vm));
        assert_int_equal(wire_vm_name(good[i], vm), 0);
        assert_true(wire_vm_name_valid(vm));
        assert_string_equal(vm, good[i]);
    }
}

static void the_digest_is_xxh64_of_the_checksums(void **state)
{
    const uint32_t sums[] = {1, 0xdeadbeef, 7};
    struct wire_digest d;

    (void)state;
    wire_digest_begin(&d, 42);
    assert_int_equal(wire_digest_value(&d), XXH64("", 0, 42));
    for (size_t i = 0; i < COUNT(sums); i++)
        wire_digest_add(&d, sums[i]);
    assert_int_equal(wire_digest_value(&d), XXH64(sums, sizeof(sums), 42));
    assert_int_not_equal(wire_digest_value(&d), XXH64(sums, sizeof(sums), 43));
}

static void types_have_names_and_caps(void **state)
{
    (void)state;
    assert_string_equal(wire_type_name(WIRE_GUEST_ENDED), "GUEST_ENDED");
    assert_string_equal(wire_type_name(20), "unknown");
    assert_string_equal(wire_type_name(~0u), "unknown");
    assert_int_equal(wire_type_cap(WIRE_PAGES), 278528);
    assert_int_equal(wire_type_cap(WIRE_DISK_WRITE), 0);
    assert_int_equal(wire_type_cap(~0u), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_passes_unchanged),
        cmocka_unit_test(a_broken_header_is_refused_before_its_body_comes),
        cmocka_unit_test(a_broken_payload_is_refused),
        cmocka_unit_test(every_flipped_bit_is_seen),
        cmocka_unit_test(the_order_of_the_greeting_is_kept),
        cmocka_unit_test(chunks_of_any_size_give_the_same_records),
        cmocka_unit_test(random_changes_never_pass),
        cmocka_unit_test(what_the_peer_would_refuse_is_not_written),
        cmocka_unit_test(payloads_are_padded_with_zeros),
        cmocka_unit_test(reasons_are_made_fit_to_send),
        cmocka_unit_test(decoding_gives_back_what_was_put),
        cmocka_unit_test(a_reader_wants_room_for_the_largest_record),
        cmocka_unit_test(a_reader_goes_on_in_another_buffer),
        cmocka_unit_test(after_an_error_nothing_comes),
        cmocka_unit_test(characters_are_measured),
        cmocka_unit_test(a_payload_alone_is_checked),
        cmocka_unit_test(vm_names_are_checked),
        cmocka_unit_test(the_digest_is_xxh64_of_the_checksums),
        cmocka_unit_test(types_have_names_and_caps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
