/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_stream - whole streams: the golden ones of tests/compat, and the second reader and writer in Python
 *
 * Run from the top of the source tree (or with POLLUX_TOP set to it). tests/compat/stream-v1.bin and its fellows are what
 * version 1 wrote when it was new: today's code must write the same bytes and read them, or old and new cannot
 * talk. They hold no block that liblz4 compressed, since another version of it may well compress otherwise.
 * POLLUX_WRITE_GOLDEN=1 writes them anew, which only a new version of the protocol may do.
 * Exit 77 (skipped) if there is no python3; the golden streams are checked all the same.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "replicator/codec.h"
#include "replicator/layout.h"
#include "replicator/wire.h"
#include "seed.h"

#define STREAM_BYTES (8u << 20)
#define EPOCHS 20
#define SKIPPED 77

static uint8_t written[STREAM_BYTES] __attribute__((aligned(8)));
static uint8_t loaded[STREAM_BYTES] __attribute__((aligned(8)));
static uint8_t input[4 * WIRE_RECORD_MAX_BYTES] __attribute__((aligned(8)));
static uint8_t pages[WIRE_BATCH_PAGES * WIRE_PAGE_BYTES];
static struct codec codec;
static const uint64_t block_pages[] = {256};
static const struct codec_blocks blocks = {1, block_pages};
static const char layout_text[] = "cpus=1\nmachine=pc-i440fx-10.0\nnic:0=virtio-net-pci 52:54:00:12:34:56\n"
                                  "qemu=10.0.13\nram:pc.ram=1048576\nsection:timer:0=2\n";

static const char *top(void)
{
    const char *given = getenv("POLLUX_TOP");

    return given ? given : ".";
}

/* One direction of one connection in the making. */
struct out {
    struct wire_writer w;
    uint8_t *buf;
    size_t len;
    struct wire_digest digest;
    uint64_t pages, state_bytes;
};

static void add(struct out *o, ssize_t n)
{
    assert_true(n > 0);
    o->len += (size_t)n;
}

static void put(struct out *o, enum wire_type type, uint64_t generation, uint64_t epoch, const void *p, size_t len)
{
    add(o, wire_put(&o->w, o->buf + o->len, STREAM_BYTES - o->len, type, generation, epoch, p, len));
}

static void put_begin(struct out *o, uint64_t epoch)
{
    const struct wire_epoch_begin b = {.flags = epoch == 1 ? WIRE_EPOCH_FULL : 0};

    wire_digest_begin(&o->digest, epoch);
    o->pages = o->state_bytes = 0;
    put(o, WIRE_EPOCH_BEGIN, 3, epoch, &b, sizeof(b));
}

static void put_in_epoch(struct out *o, enum wire_type type, uint64_t epoch, const void *p, size_t len)
{
    const uint8_t *record = o->buf + o->len;

    put(o, type, 3, epoch, p, len);
    wire_digest_add(&o->digest, wire_record_checksum(record));
}

static void put_pages(struct out *o, uint64_t epoch, const uint64_t *index, uint32_t nr)
{
    static uint8_t payload[WIRE_CAP_MAX];
    ssize_t n = codec_pages_encode(&codec, &blocks, index, pages, nr, payload, sizeof(payload));

    assert_true(n > 0);
    o->pages += nr;
    put_in_epoch(o, WIRE_PAGES, epoch, payload, (size_t)n);
}

static void put_state(struct out *o, uint64_t epoch, const void *raw, uint32_t len)
{
    static uint8_t payload[WIRE_STATE_CHUNK_BYTES + 16];
    ssize_t n = codec_state_encode(&codec, (uint32_t)o->state_bytes, raw, len, payload, sizeof(payload));

    assert_true(n > 0);
    o->state_bytes += len;
    put_in_epoch(o, WIRE_STATE, epoch, payload, (size_t)n);
}

static void put_end(struct out *o, uint64_t epoch)
{
    const struct wire_epoch_end e = {.pages = o->pages,
                                     .state_bytes = o->state_bytes,
                                     .digest = wire_digest_value(&o->digest),
                                     .held_packets = 2,
                                     .held_bytes = 1500};

    put(o, WIRE_EPOCH_END, 3, epoch, &e, sizeof(e));
}

static void put_greeting(struct out *o, enum wire_role role)
{
    struct wire_hello h = {.version_min = 1, .version_max = 1, .role = role, .vm = "vm", .boot = 77};

    memset(h.instance, (int)role, sizeof(h.instance));
    put(o, WIRE_HELLO, role == WIRE_ROLE_ACTIVE ? 3 : 0, 0, &h, sizeof(h));
    put(o, WIRE_LAYOUT, role == WIRE_ROLE_ACTIVE ? 3 : 0, 0, layout_text, strlen(layout_text));
}

static void put_heartbeat(struct out *o)
{
    const struct wire_heartbeat h = {.sent_ns = 123456789, .echo_ns = 5, .state = 4};

    put(o, WIRE_HEARTBEAT, 3, 1, &h, sizeof(h));
}

static void fill_noise(uint8_t *p, size_t len, uint64_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        p[i] = (uint8_t)(seed >> 56);
    }
}

/* ---- golden streams: fixed content, every type ---- */

static void golden_active(struct out *o)
{
    /* a page of sevens as an lz4 block: fixed bytes, so that no compressor has a say */
    static const struct {
        struct wire_pages head;
        uint64_t index;
        uint8_t kind[8];
        uint16_t size[4];
        uint8_t data[32];
    } lz4 = {{1, WIRE_CODEC_PER_PAGE, 26, 0},
             4,
             {WIRE_PAGE_LZ4},
             {26},
             {0x1f, 7, 1, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 246, 0x50, 7,
              7, 7, 7, 7}};
    const uint64_t index[] = {0, 3, 255};
    const uint64_t last = 9;

    put_greeting(o, WIRE_ROLE_ACTIVE);
    put_begin(o, 1);
    memset(pages, 0, sizeof(pages));
    fill_noise(pages + WIRE_PAGE_BYTES, WIRE_PAGE_BYTES, 1);
    put_pages(o, 1, index, 3);
    put_in_epoch(o, WIRE_PAGES, 1, &lz4, sizeof(lz4));
    o->pages++;
    put_state(o, 1, pages + WIRE_PAGE_BYTES, 1001);
    put_state(o, 1, pages + WIRE_PAGE_BYTES, 64);
    put_end(o, 1);
    put_heartbeat(o);
    put_begin(o, 2);
    put_pages(o, 2, &last, 1);
    put_state(o, 2, pages + WIRE_PAGE_BYTES, 7);
    put_end(o, 2);
    add(o, wire_put_reason(&o->w, o->buf + o->len, 4136, WIRE_GUEST_GONE, 3, 2, WIRE_GONE_DIED, "QEMU died"));
    add(o, wire_put_reason(&o->w, o->buf + o->len, 4136, WIRE_GUEST_ENDED, 3, 2, WIRE_ENDED_UNPAIRED,
                           "gesch\xc3\xbctzt nicht mehr"));
}

static void golden_standby(struct out *o)
{
    put_greeting(o, WIRE_ROLE_STANDBY);
    put_heartbeat(o);
    put(o, WIRE_ACK, 3, 1, NULL, 0);
    put(o, WIRE_APPLIED, 3, 1, NULL, 0);
    put(o, WIRE_ACK, 3, 2, NULL, 0);
    add(o, wire_put_reason(&o->w, o->buf + o->len, 4136, WIRE_REFUSE, 3, 0, WIRE_REFUSE_SHUTDOWN, "shutting down"));
}

static void golden_client(struct out *o)
{
    struct wire_arb_ask a = {.op = WIRE_ARB_READ, .vm = "vm", .tag = 1};

    put(o, WIRE_ARB_ASK, 0, 0, &a, sizeof(a));
    a = (struct wire_arb_ask){.op = WIRE_ARB_CAS, .vm = "vm", .expect = 3, .next = 4, .holder = "H", .nonce = "N", .tag = 2};
    put(o, WIRE_ARB_ASK, 0, 0, &a, sizeof(a));
}

static void golden_witness(struct out *o)
{
    struct wire_arb_answer a = {.result = WIRE_ARB_VALUE, .vm = "vm", .generation = 3, .holder = "G", .tag = 1};

    put(o, WIRE_ARB_ANSWER, 0, 0, &a, sizeof(a));
    a = (struct wire_arb_answer){.result = WIRE_ARB_GRANTED, .vm = "vm", .generation = 4, .holder = "H", .nonce = "N", .tag = 2};
    put(o, WIRE_ARB_ANSWER, 0, 0, &a, sizeof(a));
}

/* In the order of enum wire_peer, who is the sender. */
static const struct {
    const char *file, *option;
    void (*make)(struct out *);
    int records;
} golden[WIRE_PEER_NUM] = {
    {"stream-v1.bin", "active", golden_active, 15},
    {"stream-v1-standby.bin", "standby", golden_standby, 7},
    {"stream-v1-client.bin", "client", golden_client, 2},
    {"stream-v1-witness.bin", "witness", golden_witness, 2},
};

static size_t load(const char *path)
{
    FILE *f = fopen(path, "rb");
    size_t n;

    if (!f)
        fail_msg("%s: %s (run from the top of the tree, or set POLLUX_TOP)", path, strerror(errno));
    n = fread(loaded, 1, sizeof(loaded), f);
    fclose(f);
    return n;
}

static void save(const char *path, const void *data, size_t len)
{
    FILE *f = fopen(path, "wb");

    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

/* Check what is inside LAYOUT, PAGES and STATE; state_bytes: those of the epoch so far. */
static const char *look_inside(const struct wire_record *rec, uint32_t *state_bytes)
{
    static uint8_t out[WIRE_BATCH_PAGES * WIRE_PAGE_BYTES], state[2 * WIRE_STATE_CHUNK_BYTES];
    uint64_t index[WIRE_BATCH_PAGES];
    struct codec_batch batch;
    const char *why = NULL;
    ssize_t n;

    switch (rec->type) {
    case WIRE_LAYOUT:
        layout_check(rec->payload, rec->len, &why);
        break;
    case WIRE_EPOCH_BEGIN:
        *state_bytes = 0;
        break;
    case WIRE_PAGES:
        if (!codec_pages_parse(rec->payload, rec->len, &blocks, &batch, &why))
            codec_pages_decode(&batch, index, out, &why);
        break;
    case WIRE_STATE:
        n = codec_state_decode(rec->payload, rec->len, *state_bytes, state, sizeof(state), &why);
        *state_bytes += n > 0 ? (uint32_t)n : 0;
        break;
    default:
        break;
    }
    return why;
}

/* Read a stream to its end. @return NULL or the broken rule; *ret_nr records */
static const char *read_stream(enum wire_peer peer, const uint8_t *data, size_t len, int *ret_nr)
{
    struct wire_reader r;
    struct wire_record rec;
    uint32_t state_bytes = 0;

    *ret_nr = 0;
    assert_int_equal(wire_reader_init(&r, peer, input, sizeof(input)), 0);
    while (len) {
        size_t room;
        uint8_t *p = wire_reader_space(&r, &room);
        size_t n = room < len ? room : len;
        int ret;

        memcpy(p, data, n);
        assert_int_equal(wire_reader_commit(&r, n), 0);
        data += n;
        len -= n;
        while ((ret = wire_next(&r, &rec)) == 1) {
            const char *why = look_inside(&rec, &state_bytes);

            if (why)
                return why;
            ++*ret_nr;
        }
        if (ret < 0)
            return r.why;
    }
    return wire_reader_at_boundary(&r) ? NULL : "the stream ends within a record";
}

static void golden_streams_are_written_the_same_and_read(void **state)
{
    (void)state;
    for (unsigned i = 0; i < WIRE_PEER_NUM; i++) {
        struct out o = {.buf = written};
        const char *why;
        char path[4096];
        size_t len;
        int nr;

        snprintf(path, sizeof(path), "%s/tests/compat/%s", top(), golden[i].file);
        golden[i].make(&o);
        if (getenv("POLLUX_WRITE_GOLDEN"))
            save(path, written, o.len);
        len = load(path);
        assert_int_equal(len, o.len);
        assert_memory_equal(loaded, written, len);
        why = read_stream((enum wire_peer)i, loaded, len, &nr);
        if (why)
            fail_msg("%s: %s", path, why);
        assert_int_equal(nr, golden[i].records);
        loaded[len / 2] ^= 4; /* the control: this reader does refuse */
        assert_non_null(read_stream((enum wire_peer)i, loaded, len, &nr));
    }
}

/* ---- the second reader and writer ---- */

static char directory[] = "/tmp/pollux-test-stream-XXXXXX";

static void tidy(void)
{
    static const char *const names[] = {"active", "standby", "list"};
    char path[256];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
}

/* Run a tool of tests/tools. @return its exit code; its first bytes of output are in ret_output */
static int run_tool(char *ret_output, size_t cap, const char *arguments)
{
    char command[16384];
    size_t n;
    FILE *f;
    int status;

    snprintf(command, sizeof(command), "PYTHONDONTWRITEBYTECODE=1 timeout 120 python3 %s/tests/tools/%s 2>&1", top(), arguments);
    f = popen(command, "r");
    assert_non_null(f);
    n = fread(ret_output, 1, cap - 1, f);
    ret_output[n] = '\0';
    status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void golden_streams_satisfy_the_second_reader(void **state)
{
    char arguments[8192], output[4096];

    (void)state;
    snprintf(arguments, sizeof(arguments),
             "stream_reader.py --summary --active %s/tests/compat/%s --standby %s/tests/compat/%s "
             "--client %s/tests/compat/%s --witness %s/tests/compat/%s",
             top(), golden[0].file, top(), golden[1].file, top(), golden[2].file, top(), golden[3].file);
    if (run_tool(output, sizeof(output), arguments) != 0)
        fail_msg("%s", output);
    assert_non_null(strstr(output, "\"pages\": 5, \"zero\": 3, \"lz4\": 1, \"raw\": 1"));
}

static void random_epoch(struct out *o, uint64_t epoch)
{
    put_begin(o, epoch);
    for (unsigned batch = (unsigned)seed_below(3) + 1; batch; batch--) {
        uint64_t index[WIRE_BATCH_PAGES];
        uint32_t nr = 1 + (uint32_t)seed_below(WIRE_BATCH_PAGES);

        for (uint32_t i = 0; i < nr; i++) {
            uint8_t *page = pages + i * WIRE_PAGE_BYTES;

            index[i] = (batch - 1) * WIRE_BATCH_PAGES + i; /* each once in the epoch */
            memset(page, 0, WIRE_PAGE_BYTES);
            if (seed_below(3))
                fill_noise(page, seed_below(2) ? WIRE_PAGE_BYTES : 1 + seed_below(2000), seed_next());
        }
        put_pages(o, epoch, index, nr);
    }
    put_state(o, epoch, pages, 1 + (uint32_t)seed_below(100000));
    put_state(o, epoch, pages, 1 + (uint32_t)seed_below(1000));
    put_end(o, epoch);
}

static void what_is_written_satisfies_the_second_reader(void **state)
{
    struct out a = {.buf = written}, s = {.buf = loaded};
    char arguments[1024], output[4096], want[64], path[256];
    uint64_t total = 0;

    (void)state;
    seed_start("second reader");
    put_greeting(&a, WIRE_ROLE_ACTIVE);
    put_greeting(&s, WIRE_ROLE_STANDBY);
    for (uint64_t epoch = 1; epoch <= EPOCHS; epoch++) {
        random_epoch(&a, epoch);
        total += a.pages;
        put(&s, WIRE_ACK, 3, epoch, NULL, 0);
    }
    snprintf(path, sizeof(path), "%s/standby", directory);
    save(path, s.buf, s.len);
    snprintf(path, sizeof(path), "%s/active", directory);
    save(path, a.buf, a.len);
    snprintf(arguments, sizeof(arguments), "stream_reader.py --summary --active %s/active --standby %s/standby",
             directory, directory);
    if (run_tool(output, sizeof(output), arguments) != 0)
        fail_msg("%s", output);
    snprintf(want, sizeof(want), "\"pages\": %llu,", (unsigned long long)total);
    assert_true(total > EPOCHS * 20);
    assert_non_null(strstr(output, want));
    /* the control: the second reader does refuse */
    a.buf[seed_below(a.len)] ^= 0x10;
    save(path, a.buf, a.len);
    assert_int_equal(run_tool(output, sizeof(output), arguments), 1);
    assert_non_null(strstr(output, "\"error\""));
}

static void what_the_second_writer_writes_is_read(void **state)
{
    char arguments[1024], output[512], path[256];
    const char *why;
    int nr;

    (void)state;
    snprintf(path, sizeof(path), "%s/active", directory);
    snprintf(arguments, sizeof(arguments), "stream_writer.py --sample >%s", path);
    assert_int_equal(run_tool(output, sizeof(output), arguments), 0);
    why = read_stream(WIRE_PEER_ACTIVE, loaded, load(path), &nr);
    if (why)
        fail_msg("%s", why);
    assert_int_equal(nr, 15);
}

static void what_the_second_writer_breaks_is_refused(void **state)
{
    char arguments[1024], output[512], path[256], name[128];
    size_t at = 0, len;
    int broken = 0;

    (void)state;
    snprintf(path, sizeof(path), "%s/list", directory);
    snprintf(arguments, sizeof(arguments), "stream_writer.py --broken-list >%s", path);
    assert_int_equal(run_tool(output, sizeof(output), arguments), 0);
    len = load(path);
    while (at < len) {
        uint32_t n;
        int nr;

        memcpy(&n, loaded + at, 4);
        assert_true(n < sizeof(name));
        memcpy(name, loaded + at + 4, n);
        name[n] = '\0';
        at += 4 + n;
        memcpy(&n, loaded + at, 4);
        if (!read_stream(WIRE_PEER_ACTIVE, loaded + at + 4, n, &nr))
            fail_msg("\"%s\" was not refused", name);
        at += 4 + n;
        broken++;
    }
    assert_true(broken >= 80);
}

int main(void)
{
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(golden_streams_are_written_the_same_and_read),
    };
    const struct CMUnitTest with_python[] = {
        cmocka_unit_test(golden_streams_satisfy_the_second_reader),
        cmocka_unit_test(what_is_written_satisfies_the_second_reader),
        cmocka_unit_test(what_the_second_writer_writes_is_read),
        cmocka_unit_test(what_the_second_writer_breaks_is_refused),
    };
    int failed;

    codec_init(&codec);
    failed = cmocka_run_group_tests(alone, NULL, NULL);
    if (failed)
        return failed;
    if (system("command -v python3 >/dev/null 2>&1") != 0) {
        printf("skipped: no python3\n");
        return SKIPPED;
    }
    if (!mkdtemp(directory)) {
        perror(directory);
        return 1;
    }
    failed = cmocka_run_group_tests(with_python, NULL, NULL);
    tidy();
    return failed;
}
