/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz_wire - any bytes from any peer, as they come or sealed so that the checksum is no shield
 *
 * First byte: who sends (2 bits), mode (2 bits: as it comes, sealed, sealed after a valid greeting), how large the chunks
 * are. Sealed input is a row of u8 type, u8 length / 8, u8 epoch, payload: each becomes a record with a right checksum and
 * sequence. Every record that passes must satisfy its typed view; what is inside LAYOUT, PAGES and STATE is looked at too.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "replicator/codec.h"
#include "replicator/layout.h"
#include "replicator/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t stream[1u << 20] __attribute__((aligned(8)));
static const uint64_t block_pages[] = {256, 3};
static const struct codec_blocks blocks = {2, block_pages};

static size_t greet(enum wire_peer peer)
{
    const struct wire_hello hello = {.version_min = 1, .version_max = 1, .role = 1 + (peer & 1), .vm = "vm"};
    struct wire_writer w = {0};
    ssize_t a, b;

    if (peer != WIRE_PEER_ACTIVE && peer != WIRE_PEER_STANDBY)
        return 0;
    a = wire_put(&w, stream, sizeof(stream), WIRE_HELLO, 1, 0, &hello, sizeof(hello));
    b = wire_put(&w, stream + a, sizeof(stream) - (size_t)a, WIRE_LAYOUT, 1, 0, "a=b\n", 4);
    assert(a > 0 && b > 0);
    return (size_t)(a + b);
}

/* used: bytes of a greeting that is there already */
static size_t seal_all(const uint8_t *data, size_t size, size_t used)
{
    size_t sequence = used ? 2 : 0;

    while (size >= 3 && used < sizeof(stream) / 2) {
        size_t len = 8 * (size_t)data[1];
        struct wire_header h = {.magic = WIRE_MAGIC,
                                .type = data[0],
                                .length = (uint32_t)len,
                                .generation = data[2] >> 4,
                                .epoch = data[2] & 15,
                                .sequence = sequence++};

        data += 3;
        size -= 3;
        memset(stream + used + sizeof(h), 0, len);
        memcpy(stream + used + sizeof(h), data, len < size ? len : size);
        data += len < size ? len : size;
        size -= len < size ? len : size;
        memcpy(stream + used, &h, sizeof(h));
        h.checksum = XXH32(stream + used, sizeof(h) + len, 0);
        memcpy(stream + used, &h, sizeof(h));
        used += sizeof(h) + len;
    }
    return used;
}

static void look_inside(const struct wire_record *rec)
{
    static uint8_t pages[WIRE_BATCH_PAGES * WIRE_PAGE_BYTES], state[1u << 20];
    uint64_t index[WIRE_BATCH_PAGES];
    struct codec_batch batch;
    const char *why = NULL;

    if (rec->type == WIRE_LAYOUT && layout_check(rec->payload, rec->len, &why) < 0)
        assert(why);
    if (rec->type == WIRE_PAGES && !codec_pages_parse(rec->payload, rec->len, &blocks, &batch, &why))
        codec_pages_decode(&batch, index, pages, &why);
    if (rec->type == WIRE_STATE && codec_state_decode(rec->payload, rec->len, 0, state, sizeof(state), &why) < 0)
        assert(why);
}

static void look_at(const struct wire_record *rec)
{
    union {
        struct wire_hello hello;
        struct wire_heartbeat heartbeat;
        struct wire_epoch_begin begin;
        struct wire_epoch_end end;
        struct wire_arb_ask ask;
        struct wire_arb_answer answer;
    } u;
    const char *text;
    uint32_t code;
    int len;

    switch (rec->type) {
    case WIRE_HELLO:
        assert(!wire_decode_hello(rec, &u.hello) && wire_vm_name_valid(u.hello.vm));
        break;
    case WIRE_HEARTBEAT:
        assert(!wire_decode_heartbeat(rec, &u.heartbeat) && !u.heartbeat.reserved);
        break;
    case WIRE_EPOCH_BEGIN:
        assert(!wire_decode_epoch_begin(rec, &u.begin) && rec->epoch);
        break;
    case WIRE_EPOCH_END:
        assert(!wire_decode_epoch_end(rec, &u.end) && rec->epoch);
        break;
    case WIRE_ARB_ASK:
        assert(!wire_decode_arb_ask(rec, &u.ask) && !rec->epoch && !rec->generation);
        break;
    case WIRE_ARB_ANSWER:
        assert(!wire_decode_arb_answer(rec, &u.answer) && u.answer.result);
        break;
    case WIRE_REFUSE:
    case WIRE_GUEST_GONE:
    case WIRE_GUEST_ENDED:
        assert(!wire_decode_reason(rec, &code, &text, &len) && code && wire_text_valid(text, (size_t)len));
        break;
    default:
        look_inside(rec);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wire_reader r;
    struct wire_record rec;
    enum wire_peer peer;
    size_t cap, chunk, at = 0;
    uint8_t *buf;
    int ret = 0;

    if (!size)
        return 0;
    peer = data[0] & 3;
    chunk = 1 + (size_t)(data[0] >> 4) * 59;
    cap = wire_reader_min_bytes(peer);
    if (data[0] & 12) {
        size = seal_all(data + 1, size - 1, data[0] & 8 ? greet(peer) : 0);
    } else {
        memcpy(stream, data + 1, size - 1 < sizeof(stream) ? size - 1 : sizeof(stream));
        size = size - 1 < sizeof(stream) ? size - 1 : sizeof(stream);
    }
    buf = malloc(cap); /* its own block, so that one byte too far is seen */
    assert(buf && !wire_reader_init(&r, peer, buf, cap));
    while (at < size && ret >= 0) {
        size_t room, n;
        uint8_t *p = wire_reader_space(&r, &room);

        n = room < chunk ? room : chunk;
        n = n < size - at ? n : size - at;
        assert(n > 0);
        memcpy(p, stream + at, n);
        assert(!wire_reader_commit(&r, n));
        at += n;
        while ((ret = wire_next(&r, &rec)) == 1)
            look_at(&rec);
    }
    assert((ret < 0) == (r.why != NULL));
    free(buf);
    return 0;
}
