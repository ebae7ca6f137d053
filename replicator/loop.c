/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * loop.c - one io_uring, and the descriptors whose operations are in flight on it; see loop.h
 */
#include "loop.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Each slot has at most a recv, a send and a cancel in flight, or a nap, an accept and a cancel: the ring can never be full. */
#define RING_ENTRIES (4 * LOOP_CONNS_MAX)

static uint64_t tag(enum loop_op op, unsigned slot, uint32_t generation)
{
    return (uint64_t)op << 56 | (uint64_t)slot << 32 | generation;
}

int loop_init(struct loop *loop)
{
    memset(loop, 0, sizeof(*loop));
    for (unsigned i = 0; i < LOOP_CONNS_MAX; i++)
        loop->conn[i].fd = -1;
    return io_uring_queue_init(RING_ENTRIES, &loop->ring, 0);
}

void loop_fini(struct loop *loop)
{
    for (unsigned i = 0; i < LOOP_CONNS_MAX; i++)
        loop_close(loop, i);
    io_uring_queue_exit(&loop->ring);
    for (unsigned i = 0; i < LOOP_CONNS_MAX; i++) {
        if (loop->conn[i].fd >= 0)
            close(loop->conn[i].fd);
        loop->conn[i].fd = -1;
    }
}

bool loop_slot_free(const struct loop *loop, unsigned slot)
{
    return loop->conn[slot].fd < 0;
}

int loop_open(struct loop *loop, unsigned slot, int fd)
{
    struct loop_conn *c = &loop->conn[slot];

    if (c->fd >= 0)
        return -EBUSY;
    c->fd = fd;
    c->open = true;
    c->naps = false;
    c->generation++;
    c->inflight = 0;
    return 0;
}

static void close_if_drained(struct loop_conn *c)
{
    if (c->fd >= 0 && !c->open && c->inflight == 0) {
        close(c->fd);
        c->fd = -1;
    }
}

static struct io_uring_sqe *prepare(struct loop *loop)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);

    if (!sqe) { /* submission queue full: the kernel takes what is there, then there is room */
        io_uring_submit(&loop->ring);
        sqe = io_uring_get_sqe(&loop->ring);
    }
    return sqe;
}

static void begin(struct loop *loop, struct io_uring_sqe *sqe, enum loop_op op, unsigned slot)
{
    struct loop_conn *c = &loop->conn[slot];

    io_uring_sqe_set_data64(sqe, tag(op, slot, c->generation));
    c->inflight++;
}

void loop_close(struct loop *loop, unsigned slot)
{
    struct loop_conn *c = &loop->conn[slot];

    if (c->fd < 0 || !c->open)
        return;
    c->open = false;
    if (c->inflight > 0) {
        struct io_uring_sqe *sqe = prepare(loop);
        shutdown(c->fd, SHUT_RDWR); /* not a socket: the cancel does it */
        io_uring_prep_cancel_fd(sqe, c->fd, IORING_ASYNC_CANCEL_ALL);
        begin(loop, sqe, LOOP_CANCEL, slot);
    }
    close_if_drained(c);
}

void loop_recv(struct loop *loop, unsigned slot, void *buf, size_t len)
{
    struct io_uring_sqe *sqe = prepare(loop);

    io_uring_prep_recv(sqe, loop->conn[slot].fd, buf, len, 0);
    begin(loop, sqe, LOOP_RECV, slot);
}

void loop_send(struct loop *loop, unsigned slot, const void *buf, size_t len)
{
    struct io_uring_sqe *sqe = prepare(loop);

    io_uring_prep_send(sqe, loop->conn[slot].fd, buf, len, MSG_NOSIGNAL);
    begin(loop, sqe, LOOP_SEND, slot);
}

void loop_sendmsg(struct loop *loop, unsigned slot, const struct msghdr *msg)
{
    struct io_uring_sqe *sqe = prepare(loop);

    io_uring_prep_sendmsg(sqe, loop->conn[slot].fd, msg, MSG_NOSIGNAL);
    begin(loop, sqe, LOOP_SEND, slot);
}

/*
 * With a full table of descriptors an accept fails at once, even if nobody calls. The kernel naps for us: a time-out,
 * and the accept linked behind it (hard, as a time-out's end is an error).
 */
void loop_accept(struct loop *loop, unsigned slot)
{
    static const struct __kernel_timespec nap = { .tv_nsec = LOOP_NAP_NS };
    struct io_uring_sqe *sqe;

    if (loop->conn[slot].naps) {
        sqe = prepare(loop);
        io_uring_prep_timeout(sqe, (struct __kernel_timespec *)(uintptr_t)&nap, 0, 0);
        io_uring_sqe_set_flags(sqe, IOSQE_IO_HARDLINK);
        begin(loop, sqe, LOOP_NAP, slot);
    }
    sqe = prepare(loop);
    io_uring_prep_accept(sqe, loop->conn[slot].fd, NULL, NULL, SOCK_CLOEXEC);
    begin(loop, sqe, LOOP_ACCEPT, slot);
}

void loop_connect(struct loop *loop, unsigned slot, const struct sockaddr *address, socklen_t len)
{
    struct io_uring_sqe *sqe = prepare(loop);

    io_uring_prep_connect(sqe, loop->conn[slot].fd, address, len);
    begin(loop, sqe, LOOP_CONNECT, slot);
}

void loop_read(struct loop *loop, unsigned slot, void *buf, size_t len)
{
    struct io_uring_sqe *sqe = prepare(loop);

    io_uring_prep_read(sqe, loop->conn[slot].fd, buf, (unsigned)len, 0);
    begin(loop, sqe, LOOP_READ, slot);
}

bool loop_event_current(const struct loop *loop, const struct loop_event *event)
{
    const struct loop_conn *c = &loop->conn[event->slot];

    return c->fd >= 0 && c->open && c->generation == event->generation;
}

/* One caller who left says nothing about the next; anything else would fail again at once. */
static bool lasts(int res)
{
    return res < 0 && res != -EINTR && res != -EAGAIN && res != -ECONNABORTED;
}

/* @return whether the completion is one that the caller still waits for */
static bool take(struct loop *loop, const struct io_uring_cqe *cqe, struct loop_event *ret)
{
    uint64_t data = io_uring_cqe_get_data64(cqe);
    unsigned slot = (data >> 32) & 0xffffff;
    struct loop_conn *c;

    if (slot >= LOOP_CONNS_MAX)
        return false;
    c = &loop->conn[slot];
    c->inflight--;
    ret->op = (enum loop_op)(data >> 56);
    ret->slot = slot;
    ret->generation = c->generation;
    ret->res = cqe->res;
    if (ret->op == LOOP_ACCEPT)
        c->naps = lasts(cqe->res);
    if (c->open && ret->op != LOOP_CANCEL && ret->op != LOOP_NAP)
        return true;
    if (ret->op == LOOP_ACCEPT && cqe->res >= 0)
        close(cqe->res);
    if (ret->op != LOOP_CANCEL && ret->op != LOOP_NAP)
        loop->stale++;
    close_if_drained(c);
    return false;
}

int loop_wait(struct loop *loop, int64_t timeout_ns, struct loop_event *ret)
{
    struct __kernel_timespec ts = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };
    struct io_uring_cqe *cqe;
    unsigned head, seen = 0;
    int nr = 0;
    int rc = io_uring_submit_and_wait_timeout(&loop->ring, &cqe, timeout_ns > 0 ? 1 : 0, &ts, NULL);

    if (rc < 0 && rc != -ETIME && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY)
        return rc;
    io_uring_for_each_cqe(&loop->ring, head, cqe)
    {
        if (nr == LOOP_EVENTS_MAX)
            break;
        nr += take(loop, cqe, &ret[nr]);
        seen++;
    }
    io_uring_cq_advance(&loop->ring, seen);
    return nr;
}
