/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * loop.h - one io_uring, and the descriptors whose operations are in flight on it
 *
 * Owns: the ring, and for each connection slot the count of operations in flight. The kernel writes
 * into a caller's buffer until an operation has ended, so a descriptor that is given up is only
 * shut down and cancelled at first, and closed (its slot free again) when the last operation came back.
 *
 * user_data is a tagged value, never a pointer: operation, slot, generation of the slot. A completion of
 * an older generation is stale: it is counted, and not handed out.
 */
#ifndef POLLUX_LOOP_H
#define POLLUX_LOOP_H

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define LOOP_CONNS_MAX 32
#define LOOP_EVENTS_MAX 64
#define LOOP_NAP_NS 100000000 /* between accepts that fail */

enum loop_op { LOOP_RECV = 1, LOOP_SEND, LOOP_ACCEPT, LOOP_CONNECT, LOOP_READ, LOOP_CANCEL, LOOP_NAP, LOOP_OP_NUM };

/* One descriptor. Read .fd, .open and .naps; write nothing. */
struct loop_conn {
    int fd; /* -1: slot free */
    bool open; /* false while it drains */
    bool naps; /* the last accept failed for a reason that lasts: the next one begins after LOOP_NAP_NS */
    uint32_t generation;
    unsigned inflight;
};

struct loop {
    struct io_uring ring;
    struct loop_conn conn[LOOP_CONNS_MAX];
    uint64_t stale; /* completions of conns that were closed meanwhile */
};

/** What came back: res as io_uring gives it, 0 or more, or -errno. */
struct loop_event {
    enum loop_op op;
    unsigned slot;
    uint32_t generation; /* of the slot */
    int res;
};

/**
 * @param loop     caller's memory
 * @return 0 or -errno (-ENOSYS, -EPERM: the kernel has no io_uring or forbids it)
 */
int loop_init(struct loop *loop);
void loop_fini(struct loop *loop);

/**
 * Put a descriptor in a slot; the loop owns and closes it from here.
 * @return 0, or -EBUSY if the slot still drains (the descriptor stays the caller's)
 */
int loop_open(struct loop *loop, unsigned slot, int fd);

/** Give the descriptor of a slot up. Harmless on a free slot. */
void loop_close(struct loop *loop, unsigned slot);

/** @return whether the slot can take a new descriptor */
bool loop_slot_free(const struct loop *loop, unsigned slot);

/**
 * Several events come at once, and handling one may close a slot and open it again: what came for the connection
 * before is stale then. Ask before handling each.
 * @return whether the event is for the connection that has the slot now
 */
bool loop_event_current(const struct loop *loop, const struct loop_event *event);

/* Each begins one operation on an open slot; buffers stay the kernel's until its event came or the slot is free. */
void loop_recv(struct loop *loop, unsigned slot, void *buf, size_t len);
void loop_send(struct loop *loop, unsigned slot, const void *buf, size_t len);
void loop_sendmsg(struct loop *loop, unsigned slot, const struct msghdr *msg);
void loop_accept(struct loop *loop, unsigned slot);
void loop_connect(struct loop *loop, unsigned slot, const struct sockaddr *address, socklen_t len);
void loop_read(struct loop *loop, unsigned slot, void *buf, size_t len);

/**
 * Submit what was begun, wait for completions or the deadline, hand out what came.
 * @param loop         the loop
 * @param timeout_ns   at most this long; 0 does not wait
 * @param ret          room for LOOP_EVENTS_MAX
 * @return number of events, 0 at the deadline, or -errno of the ring itself
 */
int loop_wait(struct loop *loop, int64_t timeout_ns, struct loop_event *ret);

#endif
