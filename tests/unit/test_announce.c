/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_announce.c - announcement frames, byte for byte; parsing; learning; schedule
 *
 * Two independent judges of the frames: vectors written by hand from the RFCs, and, where tcpdump
 * is installed, its reading of a capture file made of them.
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

#include "../../net-buffer/announce.h"

static const uint8_t mac[6] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
static const uint8_t ip4[4] = {10, 0, 0, 5};
static const uint8_t ip6[16] = {0xfd, [15] = 5};

/* clang-format off */
static const uint8_t rarp_vector[60] = {
    0xff,0xff,0xff,0xff,0xff,0xff, 0x52,0x54,0x00,0x12,0x34,0x56, 0x80,0x35,
    0x00,0x01, 0x08,0x00, 0x06, 0x04, 0x00,0x03,
    0x52,0x54,0x00,0x12,0x34,0x56, 0x00,0x00,0x00,0x00,
    0x52,0x54,0x00,0x12,0x34,0x56, 0x00,0x00,0x00,0x00,
};
static const uint8_t arp_request_vector[60] = {
    0xff,0xff,0xff,0xff,0xff,0xff, 0x52,0x54,0x00,0x12,0x34,0x56, 0x08,0x06,
    0x00,0x01, 0x08,0x00, 0x06, 0x04, 0x00,0x01,
    0x52,0x54,0x00,0x12,0x34,0x56, 0x0a,0x00,0x00,0x05,
    0x00,0x00,0x00,0x00,0x00,0x00, 0x0a,0x00,0x00,0x05,
};
static const uint8_t arp_reply_tagged_vector[64] = {
    0xff,0xff,0xff,0xff,0xff,0xff, 0x52,0x54,0x00,0x12,0x34,0x56, 0x81,0x00, 0x00,0x64, 0x08,0x06,
    0x00,0x01, 0x08,0x00, 0x06, 0x04, 0x00,0x02,
    0x52,0x54,0x00,0x12,0x34,0x56, 0x0a,0x00,0x00,0x05,
    0x52,0x54,0x00,0x12,0x34,0x56, 0x0a,0x00,0x00,0x05,
};
/*
 * Checksum by hand: source fd00+0005, destination ff02+0001, length 0020, next header 003a, type
 * 8800, flags 2000, target fd00+0005, option 0201+5254+0012+3456 = 0x42a24 -> 0x2a28, ~ = 0xd5d7.
 */
static const uint8_t na_vector[86] = {
    0x33,0x33,0x00,0x00,0x00,0x01, 0x52,0x54,0x00,0x12,0x34,0x56, 0x86,0xdd,
    0x60,0x00,0x00,0x00, 0x00,0x20, 0x3a, 0xff,
    0xfd,0x00,0,0,0,0,0,0,0,0,0,0,0,0,0,0x05,
    0xff,0x02,0,0,0,0,0,0,0,0,0,0,0,0,0,0x01,
    0x88, 0x00, 0xd5,0xd7, 0x20,0x00,0x00,0x00,
    0xfd,0x00,0,0,0,0,0,0,0,0,0,0,0,0,0,0x05,
    0x02, 0x01, 0x52,0x54,0x00,0x12,0x34,0x56,
};
/* clang-format on */

static void frames_equal_vectors_written_by_hand(void **state)
{
    uint8_t f[ANNOUNCE_FRAME_MAX];

    (void)state;
    assert_int_equal(announce_build_rarp(mac, 0, f, sizeof(f)), 60);
    assert_memory_equal(f, rarp_vector, 60);
    assert_int_equal(announce_build_arp(mac, 0, ip4, false, f, sizeof(f)), 60);
    assert_memory_equal(f, arp_request_vector, 60);
    assert_int_equal(announce_build_arp(mac, 100, ip4, true, f, sizeof(f)), 64);
    assert_memory_equal(f, arp_reply_tagged_vector, 64);
    assert_int_equal(announce_build_na(mac, 0, ip6, f, sizeof(f)), 86);
    assert_memory_equal(f, na_vector, 86);
    assert_int_equal(announce_build_na(mac, 4094, ip6, f, sizeof(f)), 90);
    assert_memory_equal(f + 18, na_vector + 14, 72);
}

static void a_frame_that_does_not_fit_is_refused(void **state)
{
    uint8_t f[ANNOUNCE_FRAME_MAX];

    (void)state;
    assert_int_equal(announce_build_rarp(mac, 0, f, 59), -ENOSPC);
    assert_int_equal(announce_build_arp(mac, 1, ip4, true, f, 63), -ENOSPC);
    assert_int_equal(announce_build_na(mac, 0, ip6, f, 85), -ENOSPC);
    assert_int_equal(announce_build_na(mac, 0, ip6, f, 86), 86);
    assert_int_equal(announce_build_rarp(mac, 4095, f, sizeof(f)), -EINVAL);
    assert_int_equal(announce_build_na(mac, 4095, ip6, f, sizeof(f)), -EINVAL);
}

/* --- tcpdump as the second judge ------------------------------------------------------------ */

static void write_record(FILE *out, const uint8_t *frame, int len)
{
    const uint32_t head[4] = {0, 0, (uint32_t)len, (uint32_t)len};

    assert_int_equal(fwrite(head, sizeof(head), 1, out), 1);
    assert_int_equal(fwrite(frame, (size_t)len, 1, out), 1);
}

static void write_capture(FILE *out, uint8_t corrupt)
{
    const uint32_t head[6] = {0xa1b2c3d4, 4u << 16 | 2, 0, 0, 65535, 1};
    uint8_t f[ANNOUNCE_FRAME_MAX];
    int len;

    assert_int_equal(fwrite(head, sizeof(head), 1, out), 1);
    len = announce_build_rarp(mac, 0, f, sizeof(f));
    write_record(out, f, len);
    len = announce_build_arp(mac, 0, ip4, false, f, sizeof(f));
    write_record(out, f, len);
    len = announce_build_arp(mac, 100, ip4, true, f, sizeof(f));
    write_record(out, f, len);
    len = announce_build_na(mac, 0, ip6, f, sizeof(f));
    f[57] ^= corrupt; /* a byte of the ICMPv6 checksum */
    write_record(out, f, len);
}

static void read_by_tcpdump(uint8_t corrupt, char *ret_text, size_t size)
{
    char path[] = "/tmp/test_announce.XXXXXX";
    char command[128];
    int fd = mkstemp(path);
    FILE *f;
    size_t got;

    assert_true(fd >= 0);
    f = fdopen(fd, "w");
    assert_non_null(f);
    write_capture(f, corrupt);
    assert_int_equal(fclose(f), 0);
    snprintf(command, sizeof(command), "tcpdump -t -n -e -vv -r %s 2>/dev/null", path);
    f = popen(command, "r");
    assert_non_null(f);
    got = fread(ret_text, 1, size - 1, f);
    ret_text[got] = '\0';
    pclose(f);
    unlink(path);
}

static void says(const char *text, const char *what)
{
    if (!strstr(text, what))
        fail_msg("tcpdump does not say '%s' but:\n%s", what, text);
}

static void tcpdump_reads_the_frames_as_meant(void **state)
{
    char text[8192];

    (void)state;
    if (system("command -v tcpdump >/dev/null 2>&1"))
        skip();
    read_by_tcpdump(0, text, sizeof(text));
    says(text, "Reverse Request who-is 52:54:00:12:34:56 tell 52:54:00:12:34:56");
    says(text, "Request who-has 10.0.0.5 tell 10.0.0.5");
    says(text, "vlan 100");
    says(text, "Reply 10.0.0.5 is-at 52:54:00:12:34:56");
    says(text, "52:54:00:12:34:56 > 33:33:00:00:00:01");
    says(text, "fd00::5 > ff02::1: [icmp6 sum ok] ICMP6, neighbor advertisement");
    says(text, "tgt is fd00::5, Flags [override]");
    says(text, "destination link-address option (2), length 8 (1): 52:54:00:12:34:56");
    /* Negative control: the judge notices a wrong checksum. */
    read_by_tcpdump(0x01, text, sizeof(text));
    says(text, "bad icmp6 cksum");
}

/* --- parsing -------------------------------------------------------------------------------- */

static void a_description_is_read(void **state)
{
    struct announce_guest g;

    (void)state;
    assert_int_equal(announce_parse_guest("52:54:00:12:34:56=10.0.0.5,fd00::5", &g), 0);
    assert_memory_equal(g.mac, mac, 6);
    assert_int_equal(g.vlan, 0);
    assert_int_equal(g.nr_addrs, 2);
    assert_false(g.addr[0].ip6);
    assert_memory_equal(g.addr[0].ip, ip4, 4);
    assert_true(g.addr[1].ip6);
    assert_memory_equal(g.addr[1].ip, ip6, 16);
    assert_int_equal(g.addr[1].proof, ANNOUNCE_TOLD);
    assert_int_equal(announce_parse_guest("52:54:00:12:34:56", &g), 0);
    assert_int_equal(g.nr_addrs, 0);
    assert_int_equal(announce_parse_guest("52:54:00:AB:cd:eF@4094=fe80::1", &g), 0);
    assert_int_equal(g.vlan, 4094);
    assert_int_equal(g.addr[0].vlan, 4094);
}

static void bad_descriptions_are_refused_and_change_nothing(void **state)
{
    static const struct {
        const char *text;
        int err;
    } cases[] = {
        {"", -EINVAL},
        {"=", -EINVAL},
        {"52:54:00:12:34", -EINVAL},
        {"52:54:00:12:34:5", -EINVAL},
        {"52:54:00:12:34:567", -EINVAL},
        {"52:54:00:12:34:56:", -EINVAL},
        {"52-54-00-12-34-56", -EINVAL},
        {"52:54:00:12:34:5g", -EINVAL},
        {" 52:54:00:12:34:56", -EINVAL},
        {"53:54:00:12:34:56", -EINVAL}, /* group address */
        {"ff:ff:ff:ff:ff:ff", -EINVAL},
        {"00:00:00:00:00:00", -EINVAL},
        {"52:54:00:12:34:56=", -EINVAL},
        {"52:54:00:12:34:56=10.0.0.5,", -EINVAL},
        {"52:54:00:12:34:56=10.0.0.5 ,fd00::5", -EINVAL},
        {"52:54:00:12:34:56=10.0.0", -EINVAL},
        {"52:54:00:12:34:56=10.0.0.256", -EINVAL},
        {"52:54:00:12:34:56=10.0.0.5/24", -EINVAL},
        {"52:54:00:12:34:56=host", -EINVAL},
        {"52:54:00:12:34:56@=10.0.0.5", -EINVAL},
        {"52:54:00:12:34:56@0=10.0.0.5", -EINVAL},
        {"52:54:00:12:34:56@4095=10.0.0.5", -EINVAL},
        {"52:54:00:12:34:56@99999999999999999999=10.0.0.5", -EINVAL},
        {"52:54:00:12:34:56@1x=10.0.0.5", -EINVAL},
        {"52:54:00:12:34:56=0.0.0.0", -EADDRNOTAVAIL},
        {"52:54:00:12:34:56=127.0.0.1", -EADDRNOTAVAIL},
        {"52:54:00:12:34:56=224.0.0.1", -EADDRNOTAVAIL},
        {"52:54:00:12:34:56=255.255.255.255", -EADDRNOTAVAIL},
        {"52:54:00:12:34:56=::", -EADDRNOTAVAIL},
        {"52:54:00:12:34:56=::1", -EADDRNOTAVAIL},
        {"52:54:00:12:34:56=::ffff:10.0.0.5", -EADDRNOTAVAIL},
        {"52:54:00:12:34:56=ff02::1", -EADDRNOTAVAIL},
        {"52:54:00:12:34:56=10.0.0.5,10.0.0.5", -EEXIST},
        {"52:54:00:12:34:56=fd00::5,fd00:0::0:5", -EEXIST},
        {"52:54:00:12:34:56=10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5,10.0.0.6,10.0.0.7,10.0.0.8,"
         "10.0.0.9,10.0.0.10,10.0.0.11,10.0.0.12,10.0.0.13,10.0.0.14,10.0.0.15,10.0.0.16,10.0.0.17",
         -E2BIG},
    };
    struct announce_guest g, before;
    char longest[ANNOUNCE_TEXT_MAX + 1];
    size_t i;

    (void)state;
    memset(&before, 0x5a, sizeof(before));
    g = before;
    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (announce_parse_guest(cases[i].text, &g) != cases[i].err)
            fail_msg("'%s' gives %d, not %d", cases[i].text,
                     announce_parse_guest(cases[i].text, &g), cases[i].err);
        assert_memory_equal(&g, &before, sizeof(g));
    }
    memset(longest, 'x', sizeof(longest));
    longest[ANNOUNCE_TEXT_MAX] = '\0';
    assert_int_equal(announce_parse_guest(longest, &g), -E2BIG);
    longest[ANNOUNCE_TEXT_MAX - 1] = '\0';
    assert_int_equal(announce_parse_guest(longest, &g), -EINVAL);
}

/* --- rounds --------------------------------------------------------------------------------- */

static void a_round_is_rarp_then_each_address(void **state)
{
    struct announce_guest g;
    uint8_t f[ANNOUNCE_FRAME_MAX];

    (void)state;
    assert_int_equal(announce_parse_guest("52:54:00:12:34:56=10.0.0.5,fd00::5", &g), 0);
    assert_int_equal(announce_frame(&g, ANNOUNCE_CLAIMED, 0, f, sizeof(f)), 60);
    assert_memory_equal(f, rarp_vector, 60);
    assert_int_equal(announce_frame(&g, ANNOUNCE_CLAIMED, 1, f, sizeof(f)), 60);
    assert_memory_equal(f, arp_request_vector, 60);
    assert_int_equal(announce_frame(&g, ANNOUNCE_CLAIMED, 2, f, sizeof(f)), 60);
    assert_int_equal(f[21], 2);
    assert_int_equal(announce_frame(&g, ANNOUNCE_CLAIMED, 3, f, sizeof(f)), 86);
    assert_memory_equal(f, na_vector, 86);
    assert_int_equal(announce_frame(&g, ANNOUNCE_CLAIMED, 4, f, sizeof(f)), 0);
    assert_int_equal(announce_frame(&g, ANNOUNCE_CLAIMED, 400, f, sizeof(f)), 0);
    assert_int_equal(announce_frame(&g, ANNOUNCE_CLAIMED, 3, f, 60), -ENOSPC);
    /* An address that was only seen may be another host's: not announced. */
    g.addr[0].proof = ANNOUNCE_SEEN;
    assert_int_equal(announce_frame(&g, ANNOUNCE_CLAIMED, 1, f, sizeof(f)), 86);
    assert_int_equal(announce_frame(&g, ANNOUNCE_CLAIMED, 2, f, sizeof(f)), 0);
    assert_int_equal(announce_frame(&g, ANNOUNCE_SEEN, 3, f, sizeof(f)), 86);
}

static void the_schedule_is_that_of_qemu(void **state)
{
    static const uint64_t at_ms[] = {0, 50, 200, 450, 800};
    struct announce_schedule flat = {.initial_ms = 10, .step_ms = 1000, .max_ms = 20, .rounds = 4};
    uint64_t next = 0;
    unsigned sent;

    (void)state;
    for (sent = 0; announce_next(&announce_schedule_default, sent, next, &next); sent++) {
        assert_true(sent < 5);
        assert_int_equal(next, at_ms[sent] * 1000000);
    }
    assert_int_equal(sent, 5);
    assert_true(announce_next(&flat, 3, 100, &next));
    assert_int_equal(next, 100 + 20 * 1000000);
    assert_false(announce_next(&flat, 4, 0, &next));
    flat.rounds = 0;
    assert_false(announce_next(&flat, 0, 0, &next));
}

/* --- learning ------------------------------------------------------------------------------- */

static struct announce_table table_of(const char *text)
{
    struct announce_table t = {0};
    struct announce_guest g;

    assert_int_equal(announce_parse_guest(text, &g), 0);
    assert_int_equal(announce_add(&t, &g), 0);
    return t;
}

static void ipv4_frame(uint8_t f[34], uint8_t last)
{
    memset(f, 0, 34);
    memcpy(f + 6, mac, 6);
    f[12] = 0x08;
    f[14] = 0x45;
    memcpy(f + 26, ip4, 4);
    f[29] = last;
}

static void arp_nd_and_ip_are_learned_with_their_proof(void **state)
{
    struct announce_table t = table_of("52:54:00:12:34:56");
    uint8_t f[34];

    (void)state;
    ipv4_frame(f, 5);
    assert_true(announce_learn(&t, f, sizeof(f)));
    assert_false(announce_learn(&t, f, sizeof(f)));
    assert_int_equal(t.guest[0].nr_addrs, 1);
    assert_int_equal(t.guest[0].addr[0].proof, ANNOUNCE_SEEN);
    assert_true(announce_learn(&t, arp_request_vector, 60));
    assert_int_equal(t.guest[0].nr_addrs, 1);
    assert_int_equal(t.guest[0].addr[0].proof, ANNOUNCE_CLAIMED);
    assert_false(announce_learn(&t, f, sizeof(f)));
    assert_int_equal(t.guest[0].addr[0].proof, ANNOUNCE_CLAIMED);
    assert_true(announce_learn(&t, na_vector, 86));
    assert_int_equal(t.guest[0].addr[1].proof, ANNOUNCE_CLAIMED);
    assert_memory_equal(t.guest[0].addr[1].ip, ip6, 16);
    /* The same address in a VLAN is another one. */
    assert_true(announce_learn(&t, arp_reply_tagged_vector, 64));
    assert_int_equal(t.guest[0].nr_addrs, 3);
    assert_int_equal(t.guest[0].addr[2].vlan, 100);
    assert_false(announce_learn(&t, rarp_vector, 60));
}

static void ipv6_source_is_seen_and_solicitation_claims(void **state)
{
    struct announce_table t = table_of("52:54:00:12:34:56");
    uint8_t f[86];

    (void)state;
    memcpy(f, na_vector, 86);
    f[54] = 128; /* echo request: only the source counts */
    assert_true(announce_learn(&t, f, 86));
    assert_int_equal(t.guest[0].addr[0].proof, ANNOUNCE_SEEN);
    f[54] = 135; /* solicitation for another's address, with our source link-layer option */
    f[77] = 9;
    f[78] = 1;
    assert_true(announce_learn(&t, f, 86));
    assert_int_equal(t.guest[0].nr_addrs, 1);
    assert_int_equal(t.guest[0].addr[0].proof, ANNOUNCE_CLAIMED);
    assert_memory_equal(t.guest[0].addr[0].ip, ip6, 16);
    /* Duplicate address detection: source ::, nothing is owned yet. */
    memset(f + 22, 0, 16);
    assert_false(announce_learn(&t, f, 86));
    assert_int_equal(t.guest[0].nr_addrs, 1);
}

static void what_proves_nothing_is_ignored(void **state)
{
    struct announce_table t = table_of("52:54:00:12:34:56");
    uint8_t f[86];

    (void)state;
    memcpy(f, arp_request_vector, 60);
    f[6] ^= 2; /* another NIC, a guest that bridges */
    assert_false(announce_learn(&t, f, 60));
    memcpy(f, arp_request_vector, 60);
    f[22] ^= 2; /* speaks for another MAC */
    assert_false(announce_learn(&t, f, 60));
    memcpy(f, arp_request_vector, 60);
    memset(f + 28, 0, 4); /* a probe */
    assert_false(announce_learn(&t, f, 60));
    memcpy(f, arp_request_vector, 60);
    f[19] = 16; /* wrong address length */
    assert_false(announce_learn(&t, f, 60));
    memcpy(f, na_vector, 86);
    f[21] = 64; /* crossed a router: not neighbour discovery; the source is still seen */
    assert_true(announce_learn(&t, f, 86));
    assert_int_equal(t.guest[0].addr[0].proof, ANNOUNCE_SEEN);
    assert_int_equal(t.guest[0].nr_addrs, 1);
}

/* Each prefix of each vector in a buffer of exactly its size: a sanitizer sees any read beyond. */
static void short_frames_are_never_read_beyond_their_end(void **state)
{
    static const struct {
        const uint8_t *frame;
        size_t len;
    } all[] = {{rarp_vector, 60}, {arp_request_vector, 60}, {arp_reply_tagged_vector, 64},
               {na_vector, 86}};
    struct announce_table t = table_of("52:54:00:12:34:56");
    uint8_t *copy;
    size_t i, len, at;

    (void)state;
    for (i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        for (len = 0; len <= all[i].len; len++) {
            for (at = 0; at < len; at++) {
                copy = malloc(len);
                assert_non_null(copy);
                memcpy(copy, all[i].frame, len);
                copy[at] ^= 0xff;
                announce_learn(&t, copy, len);
                free(copy);
            }
        }
    }
    assert_int_equal(t.nr_guests, 1);
    assert_true(t.guest[0].nr_addrs <= ANNOUNCE_ADDRS_MAX);
}

static void a_spraying_guest_cannot_push_out_what_counts(void **state)
{
    struct announce_table t = table_of("52:54:00:12:34:56=192.168.7.7");
    struct announce_guest *g = &t.guest[0];
    uint8_t f[34], arp[60];
    unsigned i, claimed = 0;

    (void)state;
    memcpy(arp, arp_request_vector, 60);
    assert_true(announce_learn(&t, arp, 60));
    for (i = 1; i < 250; i++) {
        ipv4_frame(f, (uint8_t)i);
        announce_learn(&t, f, sizeof(f));
    }
    assert_int_equal(g->nr_addrs, ANNOUNCE_ADDRS_MAX);
    assert_int_equal(g->addr[0].proof, ANNOUNCE_TOLD);
    assert_int_equal(g->addr[1].proof, ANNOUNCE_CLAIMED);
    assert_memory_equal(g->addr[1].ip, ip4, 4);
    /* Claims push out what was only seen, then the oldest claim, but never what the operator told. */
    for (i = 1; i < 250; i++) {
        arp[31] = arp[41] = (uint8_t)i;
        announce_learn(&t, arp, 60);
    }
    for (i = 0; i < ANNOUNCE_ADDRS_MAX; i++)
        claimed += g->addr[i].proof == ANNOUNCE_CLAIMED;
    assert_int_equal(claimed, ANNOUNCE_ADDRS_MAX - 1);
    assert_int_equal(g->addr[0].proof, ANNOUNCE_TOLD);
    ipv4_frame(f, 250);
    assert_false(announce_learn(&t, f, sizeof(f)));
}

static void the_table_of_nics_is_bounded_and_unique(void **state)
{
    struct announce_table t = {0};
    struct announce_guest g = {.mac = {0x52}};
    unsigned i;

    (void)state;
    for (i = 0; i < ANNOUNCE_GUESTS_MAX; i++) {
        g.mac[5] = (uint8_t)i;
        assert_int_equal(announce_add(&t, &g), 0);
        assert_int_equal(announce_add(&t, &g), -EEXIST);
    }
    g.mac[5] = 0xee;
    assert_int_equal(announce_add(&t, &g), -ENOSPC);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_equal_vectors_written_by_hand),
        cmocka_unit_test(a_frame_that_does_not_fit_is_refused),
        cmocka_unit_test(tcpdump_reads_the_frames_as_meant),
        cmocka_unit_test(a_description_is_read),
        cmocka_unit_test(bad_descriptions_are_refused_and_change_nothing),
        cmocka_unit_test(a_round_is_rarp_then_each_address),
        cmocka_unit_test(the_schedule_is_that_of_qemu),
        cmocka_unit_test(arp_nd_and_ip_are_learned_with_their_proof),
        cmocka_unit_test(ipv6_source_is_seen_and_solicitation_claims),
        cmocka_unit_test(what_proves_nothing_is_ignored),
        cmocka_unit_test(short_frames_are_never_read_beyond_their_end),
        cmocka_unit_test(a_spraying_guest_cannot_push_out_what_counts),
        cmocka_unit_test(the_table_of_nics_is_bounded_and_unique),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
