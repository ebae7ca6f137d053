/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * link.h - the connection to the peer: bytes in and out, records queued and taken
 *
 * Owns: the listening socket, the one peer connection, its queue of records to send and its receive
 * buffer. Knows nothing of sessions: records come out through link_next(), whoever understands them
 * takes them. Records leave in the order in which they were queued.
 */
#ifndef POLLUX_LINK_H
#define POLLUX_LINK_H

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "loop.h"
#include "wire.h"

#define LINK_QUEUE 256     /* records waiting to be sent */
#define LINK_SMALLS 64     /* of them, small ones in our own buffers */
#define LINK_SMALL_BYTES 4224
#define LINK_IOVS 16
#define LINK_ADDRESS_BYTES 64

struct link_out {
    const uint8_t *data;
    size_t len;
    bool small;      /* from our own ring of small buffers */
    bool *ret_sent;  /* set when it has left; may be NULL */
};

struct link {
    struct loop *loop;
    unsigned slot, listen_slot;
    bool connecting, up, flushing; /* flushing: close when everything queued has left */
    bool recv_busy, send_busy;
    bool deaf; /* the listening socket gives no connections: said once */
    int64_t flush_until_ns;
    char peer_text[LINK_ADDRESS_BYTES];   /* who is connected, for people */
    struct sockaddr_storage address;      /* while connecting */
    struct wire_writer writer;
    struct wire_reader reader;
    uint8_t *rx;
    size_t rx_bytes;
    uint8_t *layout_out; /* one LAYOUT record */
    struct link_out queue[LINK_QUEUE];
    unsigned head, nr;
    size_t head_sent; /* bytes of the head that have left */
    uint8_t small[LINK_SMALLS][LINK_SMALL_BYTES];
    unsigned small_next, small_used;
    struct iovec iov[LINK_IOVS];
    struct msghdr msg;
    uint64_t bytes_sent, bytes_received;
};

enum link_said {
    LINK_NOTHING,
    LINK_CONNECTED, /* link_up is true now */
    LINK_ACCEPTED,
    LINK_RECEIVED,  /* call link_next() */
    LINK_SENT,      /* some records left */
    LINK_ENDED,     /* the connection is over; *ret_error says why (0: closed by the peer) */
    LINK_DEAF,      /* no connection can be taken at present; *ret_error says why. The loop tries again */
};

/** @return 0 or -ENOMEM */
int link_init(struct link *link, struct loop *loop, unsigned slot, unsigned listen_slot);
void link_fini(struct link *link);

/**
 * Listen for a peer.
 * @param address  "HOST:PORT", "[IPV6]:PORT"; HOST numeric
 * @return 0, -EINVAL for an address that is none, or -errno of bind and listen
 */
int link_listen(struct link *link, const char *address);

/** Begin to connect. @return 0, -EINVAL, -EBUSY while an older connection drains, or -errno */
int link_connect(struct link *link, const char *address, enum wire_peer peer);

/** Who will talk on a connection that was accepted. Must be said before link_next(). */
int link_expect(struct link *link, enum wire_peer peer);

/** Drop the connection now. What was queued is lost. */
void link_drop(struct link *link);

/** Send what is queued, then drop, by until_ns at the latest. Nothing is received any more. */
void link_flush_and_drop(struct link *link, int64_t until_ns);

/** Say that time passed: a flush that takes too long is given up. @return INT64_MAX or when to call again */
int64_t link_tick(struct link *link, int64_t now_ns);

/** Take a completion of one of the two slots. */
enum link_said link_on_event(struct link *link, const struct loop_event *event, int *ret_error);

/** @return 1 and a record, 0 if none is whole, -EPROTO (link->reader.why says what) */
int link_next(struct link *link, struct wire_record *ret);

/** All records were taken: receive again. */
void link_receive(struct link *link);

/**
 * Queue a small record (payload up to LINK_SMALL_BYTES - 48).
 * @return 0; -ENOTCONN; -ENOBUFS: the peer takes nothing, the connection should be dropped
 */
int link_send(struct link *link, enum wire_type type, uint64_t generation, uint64_t epoch,
              const void *payload, size_t len);
int link_send_reason(struct link *link, enum wire_type type, uint64_t generation, uint64_t epoch,
                     uint32_t code, const char *text);
int link_send_layout(struct link *link, uint64_t generation, const char *text, size_t len);

/** @return whether records wait that have not left: the peer has more of our bytes to come */
bool link_busy(const struct link *link);

/** Queue a record that was sealed in the caller's memory, which stays untouched until *ret_sent is true. */
int link_send_sealed(struct link *link, const void *record, size_t len, bool *ret_sent);

/** @return room for sealed records in the queue (some places are kept for small ones) */
unsigned link_room(const struct link *link);

/** Parse "HOST:PORT" or "[IPV6]:PORT", numeric. @return length of the address, or -EINVAL */
int link_parse_address(const char *text, struct sockaddr_storage *ret_address);

#endif
