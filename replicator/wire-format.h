/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * wire-format.h - the bytes on the wire, exactly as docs/PROTOCOL.md says
 *
 * Structures and limits only. Little endian hosts only (Debian amd64, arm64): a build on anything
 * else stops here rather than corrupt a stream.
 */
#ifndef POLLUX_WIRE_FORMAT_H
#define POLLUX_WIRE_FORMAT_H

#include <stdint.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the stream is little endian");

#define WIRE_MAGIC 0x52584c50u
#define WIRE_VERSION_MIN 1
#define WIRE_VERSION_MAX 1
#define WIRE_VM_BYTES 48
#define WIRE_PAGE_BYTES 4096u
#define WIRE_BATCH_PAGES 64u
#define WIRE_STATE_CHUNK_BYTES 262144u
#define WIRE_STATE_MAX_BYTES (64u << 20)
#define WIRE_BLOCK_SHIFT 40

enum wire_type {
    WIRE_HELLO = 1,
    WIRE_LAYOUT = 2,
    WIRE_REFUSE = 3,
    WIRE_HEARTBEAT = 4,
    WIRE_EPOCH_BEGIN = 5,
    WIRE_PAGES = 6,
    WIRE_STATE = 7,
    WIRE_EPOCH_END = 8,
    WIRE_ACK = 9,
    WIRE_GUEST_GONE = 10,
    WIRE_GUEST_ENDED = 11,
    WIRE_DISK_WRITE = 12,
    WIRE_APPLIED = 13,
    WIRE_ARB_ASK = 32,
    WIRE_ARB_ANSWER = 33,
    WIRE_TYPE_NUM
};

enum wire_role { WIRE_ROLE_ACTIVE = 1, WIRE_ROLE_STANDBY = 2 };

enum wire_refuse {
    WIRE_REFUSE_VERSION = 1,
    WIRE_REFUSE_NAME = 2,
    WIRE_REFUSE_ROLE = 3,
    WIRE_REFUSE_LAYOUT = 4,
    WIRE_REFUSE_GENERATION = 5,
    WIRE_REFUSE_BUSY = 6,
    WIRE_REFUSE_GUEST = 7,
    WIRE_REFUSE_PROTOCOL = 8,
    WIRE_REFUSE_SHUTDOWN = 9,
    WIRE_REFUSE_ITSELF = 10
};

enum wire_page_kind { WIRE_PAGE_ZERO = 0, WIRE_PAGE_RAW = 1, WIRE_PAGE_LZ4 = 2 };
enum wire_codec { WIRE_CODEC_PER_PAGE = 1 };
enum wire_state_kind { WIRE_STATE_RAW = 1, WIRE_STATE_LZ4 = 2 };
enum wire_epoch_flags { WIRE_EPOCH_FULL = 1u << 0 };
enum wire_gone { WIRE_GONE_DIED = 1, WIRE_GONE_BROKEN = 2 };
enum wire_ended { WIRE_ENDED_SHUTDOWN = 1, WIRE_ENDED_UNPAIRED = 2 };
enum wire_arb_op { WIRE_ARB_READ = 1, WIRE_ARB_CAS = 2 };
enum wire_arb_result {
    WIRE_ARB_VALUE = 1,
    WIRE_ARB_GRANTED = 2,
    WIRE_ARB_REFUSED = 3,
    WIRE_ARB_ERROR = 4
};

struct wire_header {
    uint32_t magic;
    uint16_t type;
    uint16_t flags;
    uint32_t length;
    uint32_t checksum;
    uint64_t generation;
    uint64_t epoch;
    uint64_t sequence;
};

struct wire_hello {
    uint16_t version_min;
    uint16_t version_max;
    uint32_t role;
    uint8_t instance[16];
    char vm[WIRE_VM_BYTES];
    uint32_t features;
    uint16_t flags;
    uint16_t listen_port; /* 0: none */
    uint64_t boot;
};

struct wire_reason { /* REFUSE, GUEST_GONE, GUEST_ENDED: followed by text */
    uint32_t code;
    uint32_t reserved;
};

struct wire_heartbeat {
    uint64_t sent_ns;
    uint64_t echo_ns;
    uint32_t state;
    uint32_t reserved;
};

struct wire_epoch_begin {
    uint32_t flags;
    uint32_t reserved;
    uint64_t reserved2;
};

struct wire_pages { /* followed by the batch */
    uint32_t nr_pages;
    uint32_t codec;
    uint32_t data_bytes;
    uint32_t reserved;
};

struct wire_state { /* followed by the data */
    uint32_t offset;
    uint32_t raw_bytes;
    uint32_t kind;
    uint32_t data_bytes;
};

struct wire_epoch_end {
    uint64_t pages;
    uint64_t state_bytes;
    uint64_t digest;
    uint64_t held_packets;
    uint64_t held_bytes;
};

struct wire_arb_ask {
    uint32_t op;
    uint32_t reserved;
    char vm[WIRE_VM_BYTES];
    uint64_t expect;
    uint64_t next;
    uint8_t holder[16];
    uint8_t nonce[16];
    uint64_t tag;
};

struct wire_arb_answer {
    uint32_t result;
    uint32_t reserved;
    char vm[WIRE_VM_BYTES];
    uint64_t generation;
    uint64_t reserved2;
    uint8_t holder[16];
    uint8_t nonce[16];
    uint64_t tag;
};

_Static_assert(sizeof(struct wire_header) == 40, "PROTOCOL.md: header");
_Static_assert(sizeof(struct wire_hello) == 88, "PROTOCOL.md: HELLO");
_Static_assert(sizeof(struct wire_heartbeat) == 24, "PROTOCOL.md: HEARTBEAT");
_Static_assert(sizeof(struct wire_epoch_begin) == 16, "PROTOCOL.md: EPOCH_BEGIN");
_Static_assert(sizeof(struct wire_pages) == 16, "PROTOCOL.md: PAGES");
_Static_assert(sizeof(struct wire_state) == 16, "PROTOCOL.md: STATE");
_Static_assert(sizeof(struct wire_epoch_end) == 40, "PROTOCOL.md: EPOCH_END");
_Static_assert(sizeof(struct wire_arb_ask) == 112, "PROTOCOL.md: ARB_ASK");
_Static_assert(sizeof(struct wire_arb_answer) == 112, "PROTOCOL.md: ARB_ANSWER");

#endif
