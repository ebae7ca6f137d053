/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * wire.h - records of the stream: make them, take them apart, refuse the broken ones
 *
 * Owns everything docs/PROTOCOL.md says about one record and about the order of records that needs no
 * session: header, checksum, sequence, who may send what, HELLO then LAYOUT first, sizes, the fields of
 * every fixed structure and text. What stands inside LAYOUT belongs to layout.h, inside PAGES and STATE
 * to codec.h; what an epoch is made of (EPOCH_BEGIN .. EPOCH_END, counts, numbers) to the session.
 *
 * Never does I/O, reads a clock, logs, allocates or keeps global state.
 *
 * Reading, one turn:
 *
 *     p = wire_reader_space(&r, &n);  got = recv(p, n);  wire_reader_commit(&r, got);
 *     while ((ret = wire_next(&r, &rec)) == 1)
 *         use rec; its payload stays where it is until the next wire_reader_space()
 *     ret < 0: the peer broke the rule that r.why names, in the record r.header; the connection is over
 */
#ifndef POLLUX_WIRE_H
#define POLLUX_WIRE_H

#define XXH_STATIC_LINKING_ONLY /* the size of XXH64_state_t, for struct wire_digest */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <xxhash.h>

#include "wire-format.h"

#define WIRE_HEADER_BYTES sizeof(struct wire_header)
#define WIRE_CAP_MAX 278528u       /* of the types that are legal today: PAGES */
#define WIRE_TEXT_MAX_BYTES 4088u  /* of REFUSE, GUEST_GONE, GUEST_ENDED */
#define WIRE_RECORD_MAX_BYTES (WIRE_HEADER_BYTES + WIRE_CAP_MAX)

/** Who is at the other end: it decides which types are legal. */
enum wire_peer {
    WIRE_PEER_ACTIVE,
    WIRE_PEER_STANDBY,
    WIRE_PEER_CLIENT,  /* of the witness */
    WIRE_PEER_WITNESS,
    WIRE_PEER_NUM
};

/** What is sent in one direction of one connection; all zero is ready for its first record. */
struct wire_writer {
    uint64_t sequence; /* of the next record */
};

/** One checked record. */
struct wire_record {
    enum wire_type type;
    uint32_t len;      /* of the payload, padding included */
    uint32_t checksum; /* for the epoch's digest */
    uint64_t generation;
    uint64_t epoch;
    uint64_t sequence;
    const void *payload; /* 8-byte aligned, in the reader's buffer */
};

/** What comes in one direction of one connection. Read .why and .header, write nothing. */
struct wire_reader {
    uint8_t *buf; /* caller's memory */
    size_t cap_bytes;
    size_t head; /* first byte not yet given out as a record */
    size_t tail; /* end of what was received */
    uint64_t sequence; /* that the next record must have */
    enum wire_peer peer;
    bool header_seen;          /* .header was checked and its body is awaited */
    struct wire_header header; /* of the record now in hand; after an error, of the broken one */
    const char *why;           /* NULL, or the broken rule: a constant sentence; set once, stays */
};

/** EPOCH_END's digest in the making. */
struct wire_digest {
    XXH64_state_t state;
};

/** @return the type's name as in docs/PROTOCOL.md, "unknown" for a number that has none */
const char *wire_type_name(unsigned type);

/** @return most bytes that a payload of this type may have, padding included; 0 also for illegal types */
uint32_t wire_type_cap(unsigned type);

/** @return bytes of a whole record whose payload has len bytes: header, payload, padding */
static inline size_t wire_record_bytes(size_t len)
{
    return WIRE_HEADER_BYTES + ((len + 7) & ~(size_t)7);
}

/**
 * Write one record: header, a copy of the payload, padding; takes the next sequence number.
 * @param w           the direction it will be sent in
 * @param buf         where to, any alignment
 * @param cap         bytes there
 * @param type        legal in version 1
 * @param generation  as PROTOCOL.md says for the type
 * @param epoch       likewise
 * @param payload     unpadded; may be NULL when len is 0
 * @param len         of it, in bytes
 * @return bytes written, a multiple of 8; -ENOSPC if cap is too small; -EINVAL for a record that the peer
 *         would have to refuse (a mistake of ours). No number is taken on an error.
 */
ssize_t wire_put(struct wire_writer *w, void *buf, size_t cap, enum wire_type type,
                 uint64_t generation, uint64_t epoch, const void *payload, size_t len);

/**
 * As wire_put, for a payload that already stands in place, WIRE_HEADER_BYTES after buf: PAGES and STATE
 * that workers encoded ahead. Reads each byte once (about 0.1 us per KB) for the checksum. It covers the
 * sequence, so a worker may seal only if the loop gave it the number: a struct wire_writer of its own will do.
 * @param w           the direction it will be sent in
 * @param buf         room for the header, then the payload, then padding up to a multiple of 8
 * @param type        legal in version 1
 * @param generation  as PROTOCOL.md says for the type
 * @param epoch       likewise
 * @param len         of the payload in bytes, unpadded
 * @return bytes of the whole record, or -EINVAL as wire_put
 */
ssize_t wire_seal(struct wire_writer *w, void *buf, enum wire_type type, uint64_t generation,
                  uint64_t epoch, size_t len);

/**
 * Write a REFUSE, GUEST_GONE or GUEST_ENDED. The text is made fit to send: cut at WIRE_TEXT_MAX_BYTES (whole
 * characters), bytes that are not printable UTF-8 become '?'.
 * @param w           the direction it will be sent in
 * @param buf         where to
 * @param cap         bytes there
 * @param type        one of the three
 * @param generation  of the session
 * @param epoch       last epoch sent; 0 for REFUSE
 * @param code        legal for the type
 * @param text        words for the operator of the other side; may be NULL
 * @return as wire_put
 */
ssize_t wire_put_reason(struct wire_writer *w, void *buf, size_t cap, enum wire_type type,
                        uint64_t generation, uint64_t epoch, uint32_t code, const char *text);

/** @return the smallest buffer, in bytes, that a reader of this peer's records can work with */
size_t wire_reader_min_bytes(enum wire_peer peer);

/**
 * Begin to read one direction of one connection.
 * @param r     caller's memory
 * @param peer  who sends
 * @param buf   caller's, 8-byte aligned, kept until the reader is not used any more. Four times the minimum
 *              makes moving part of a record to the front rare.
 * @param cap   bytes there
 * @return 0; -EINVAL if the buffer is too small or not aligned
 */
int wire_reader_init(struct wire_reader *r, enum wire_peer peer, void *buf, size_t cap);

/**
 * Go on in another buffer: what was received and not given out is copied over. The old buffer with the
 * payloads of records given out is the caller's again, for as long as it likes (to have them decoded by a worker).
 * @param r    the reader
 * @param buf  as for wire_reader_init
 * @param cap  likewise
 * @return 0; -EINVAL if it is too small for that or not aligned
 */
int wire_reader_move(struct wire_reader *r, void *buf, size_t cap);

/**
 * Where the next bytes from the peer go. Payloads given out before become invalid.
 * @param r        the reader
 * @param ret_len  bytes there; 0 only if whole records wait for wire_next(), or after an error
 * @return address, in the reader's buffer
 */
void *wire_reader_space(struct wire_reader *r, size_t *ret_len);

/**
 * Say that bytes came to where wire_reader_space() said.
 * @param r  the reader
 * @param n  how many
 * @return 0, or -EINVAL if there was no room for so many
 */
int wire_reader_commit(struct wire_reader *r, size_t n);

/**
 * Take the next record. Its header is checked as soon as it is there, before the body is waited for.
 * @param r    the reader
 * @param ret  written only when 1 is returned
 * @return 1 a record; 0 more bytes are needed; -EPROTO a rule is broken: r->why says which, and every later
 *         call returns the same
 */
int wire_next(struct wire_reader *r, struct wire_record *ret);

/** @return whether the stream may end here: no part of a record is left over */
bool wire_reader_at_boundary(const struct wire_reader *r);

/*
 * Typed views. wire_next() has checked every field of these structures, so they only copy; a record of
 * another type (a mistake of ours) is -EINVAL.
 */
int wire_decode_hello(const struct wire_record *rec, struct wire_hello *ret);
int wire_decode_heartbeat(const struct wire_record *rec, struct wire_heartbeat *ret);
int wire_decode_epoch_begin(const struct wire_record *rec, struct wire_epoch_begin *ret);
int wire_decode_epoch_end(const struct wire_record *rec, struct wire_epoch_end *ret);
int wire_decode_arb_ask(const struct wire_record *rec, struct wire_arb_ask *ret);
int wire_decode_arb_answer(const struct wire_record *rec, struct wire_arb_answer *ret);

/**
 * Take a REFUSE, GUEST_GONE or GUEST_ENDED apart.
 * @param rec           a checked record
 * @param ret_code      legal for its type
 * @param ret_text      not ended by NUL: print it with "%.*s"; printable UTF-8, lives as long as the payload
 * @param ret_text_len  bytes
 * @return 0, or -EINVAL for another type
 */
int wire_decode_reason(const struct wire_record *rec, uint32_t *ret_code, const char **ret_text,
                       int *ret_text_len);

/**
 * Check a payload against everything that does not depend on the session; LAYOUT, PAGES and STATE only for
 * their size.
 * @param type     legal in version 1
 * @param payload  its bytes, any alignment
 * @param len      with padding
 * @param ret_why  set on -EPROTO: a constant sentence
 * @return 0 or -EPROTO
 */
int wire_check_payload(enum wire_type type, const void *payload, size_t len, const char **ret_why);

/** @return whether a field of WIRE_VM_BYTES holds a legal VM name and zeros after it */
bool wire_vm_name_valid(const char vm[WIRE_VM_BYTES]);

/**
 * Fill a name field.
 * @param name    as configured
 * @param ret_vm  the field, zero padded
 * @return 0, or -EINVAL if no VM may have that name
 */
int wire_vm_name(const char *name, char ret_vm[WIRE_VM_BYTES]);

/**
 * Length of the character that a text starts with.
 * @param text  any bytes
 * @param len   how many
 * @return 1..4; 0 if they do not start with a printable UTF-8 character (control characters, C1 too, do not count)
 */
size_t wire_text_char(const char *text, size_t len);

/** @return whether all of it is printable UTF-8; true for nothing at all */
bool wire_text_valid(const char *text, size_t len);

/** Begin an epoch's digest. */
void wire_digest_begin(struct wire_digest *d, uint64_t epoch);

/** Take in one PAGES or STATE record by its checksum field, in the order sent. */
void wire_digest_add(struct wire_digest *d, uint32_t checksum);

/** @return what EPOCH_END must say if nothing follows */
uint64_t wire_digest_value(const struct wire_digest *d);

/** @return the checksum field of a sealed record */
uint32_t wire_record_checksum(const void *buf);

#endif
