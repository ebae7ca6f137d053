/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * link.c - the connection to the peer: bytes in and out, records queued and taken; see link.h
 */
#include "link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RX_RECORDS 4 /* receive buffer, in largest records: moving part of one to the front is rare */

int link_init(struct link *link, struct loop *loop, unsigned slot, unsigned listen_slot)
{
    memset(link, 0, sizeof(*link));
    link->loop = loop;
    link->slot = slot;
    link->listen_slot = listen_slot;
    link->rx_bytes = RX_RECORDS * ((WIRE_RECORD_MAX_BYTES + 4095) & ~(size_t)4095);
    link->rx = aligned_alloc(4096, link->rx_bytes);
    link->layout_out = malloc(WIRE_RECORD_MAX_BYTES);
    if (link->rx && link->layout_out)
        return 0;
    link_fini(link);
    return -ENOMEM;
}

void link_fini(struct link *link)
{
    free(link->rx);
    free(link->layout_out);
    link->rx = link->layout_out = NULL;
}

int link_parse_address(const char *text, struct sockaddr_storage *ret_address)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret_address;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret_address;
    char host[LINK_ADDRESS_BYTES];
    const char *colon = strrchr(text, ':');
    char *end;
    unsigned long port;
    size_t len;

    if (!colon || colon == text || (size_t)(colon - text) >= sizeof(host) || !colon[1])
        return -EINVAL;
    port = strtoul(colon + 1, &end, 10);
    if (*end || port > 65535 || colon[1] == '-' || colon[1] == '+')
        return -EINVAL;
    len = (size_t)(colon - text);
    memcpy(host, text, len);
    host[len] = '\0';
    memset(ret_address, 0, sizeof(*ret_address));
    if (host[0] == '[' && host[len - 1] == ']') {
        host[len - 1] = '\0';
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        return inet_pton(AF_INET6, host + 1, &v6->sin6_addr) == 1 ? (int)sizeof(*v6) : -EINVAL;
    }
    v4->sin_family = AF_INET;
    v4->sin_port = htons((uint16_t)port);
    return inet_pton(AF_INET, host, &v4->sin_addr) == 1 ? (int)sizeof(*v4) : -EINVAL;
}

int link_listen(struct link *link, const char *address)
{
    struct sockaddr_storage sa;
    int len = link_parse_address(address, &sa), one = 1, fd, rc;

    if (len < 0)
        return len;
    fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&sa, (socklen_t)len) < 0 || listen(fd, 4) < 0) {
        rc = -errno;
        close(fd);
        return rc;
    }
    loop_open(link->loop, link->listen_slot, fd);
    loop_accept(link->loop, link->listen_slot);
    return 0;
}

/*
 * A record waits for nobody (Nagle), bytes that nobody acknowledges do not wait for minutes, and what a slow link
 * cannot take yet waits here, where it is known of, and not in megabytes of the kernel's buffer.
 */
static void tune(int fd)
{
    int one = 1, user_timeout_ms = 10000, unsent_bytes = 1 << 20;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof(user_timeout_ms));
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_bytes, sizeof(unsent_bytes));
}

static void reset(struct link *link)
{
    for (; link->nr; link->nr--, link->head = (link->head + 1) % LINK_QUEUE) {
        if (link->queue[link->head].ret_sent)
            *link->queue[link->head].ret_sent = true;
    }
    link->connecting = link->up = link->flushing = false;
    link->recv_busy = link->send_busy = false;
    link->head_sent = 0;
    link->small_used = 0;
    memset(&link->writer, 0, sizeof(link->writer));
}

static void name_peer(struct link *link, const struct sockaddr_storage *sa)
{
    char host[INET6_ADDRSTRLEN] = "?";
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)sa;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)sa;

    if (sa->ss_family == AF_INET6) {
        inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host));
        snprintf(link->peer_text, sizeof(link->peer_text), "[%s]:%u", host, ntohs(v6->sin6_port));
    } else {
        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host));
        snprintf(link->peer_text, sizeof(link->peer_text), "%s:%u", host, ntohs(v4->sin_port));
    }
}

int link_connect(struct link *link, const char *address, enum wire_peer peer)
{
    int len = link_parse_address(address, &link->address), fd;

    if (len < 0)
        return len;
    if (!loop_slot_free(link->loop, link->slot))
        return -EBUSY;
    fd = socket(link->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    tune(fd);
    reset(link);
    wire_reader_init(&link->reader, peer, link->rx, link->rx_bytes);
    name_peer(link, &link->address);
    loop_open(link->loop, link->slot, fd);
    loop_connect(link->loop, link->slot, (struct sockaddr *)&link->address, (socklen_t)len);
    link->connecting = true;
    return 0;
}

int link_expect(struct link *link, enum wire_peer peer)
{
    return wire_reader_init(&link->reader, peer, link->rx, link->rx_bytes);
}

void link_drop(struct link *link)
{
    loop_close(link->loop, link->slot);
    reset(link);
}

void link_flush_and_drop(struct link *link, int64_t until_ns)
{
    if (!link->up || link->nr == 0) {
        link_drop(link);
        return;
    }
    link->flushing = true;
    link->flush_until_ns = until_ns;
}

int64_t link_tick(struct link *link, int64_t now_ns)
{
    if (!link->flushing)
        return INT64_MAX;
    if (now_ns < link->flush_until_ns)
        return link->flush_until_ns;
    link_drop(link);
    return INT64_MAX;
}

/* A second peer is told so in one go; it is not worth a slot of its own. */
static void turn_away(int fd)
{
    struct wire_writer writer = { 0 };
    _Alignas(8) uint8_t record[512];
    ssize_t len = wire_put_reason(&writer, record, sizeof(record), WIRE_REFUSE, 0, 0, WIRE_REFUSE_BUSY,
                                  "this polluxd has a peer already");

    if (len > 0 && send(fd, record, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        len = 0; /* it will see the close */
    close(fd);
}

static enum link_said accepted(struct link *link, int fd)
{
    struct sockaddr_storage sa = { 0 };
    socklen_t len = sizeof(sa);

    if (!loop_slot_free(link->loop, link->slot)) {
        turn_away(fd);
        return LINK_NOTHING;
    }
    tune(fd);
    reset(link);
    getpeername(fd, (struct sockaddr *)&sa, &len);
    name_peer(link, &sa);
    loop_open(link->loop, link->slot, fd);
    link->up = true;
    return LINK_ACCEPTED;
}

static void send_more(struct link *link)
{
    unsigned n = 0;

    if (!link->up || link->send_busy || link->nr == 0)
        return;
    for (; n < link->nr && n < LINK_IOVS; n++) {
        const struct link_out *out = &link->queue[(link->head + n) % LINK_QUEUE];
        size_t skip = n == 0 ? link->head_sent : 0;
        link->iov[n].iov_base = (void *)(uintptr_t)(out->data + skip);
        link->iov[n].iov_len = out->len - skip;
    }
    link->msg = (struct msghdr){ .msg_iov = link->iov, .msg_iovlen = n };
    link->send_busy = true;
    loop_sendmsg(link->loop, link->slot, &link->msg);
}

static void sent(struct link *link, size_t n)
{
    link->bytes_sent += n;
    link->head_sent += n;
    while (link->nr && link->head_sent >= link->queue[link->head].len) {
        struct link_out *out = &link->queue[link->head];
        link->head_sent -= out->len;
        if (out->small)
            link->small_used--;
        if (out->ret_sent)
            *out->ret_sent = true;
        link->head = (link->head + 1) % LINK_QUEUE;
        link->nr--;
    }
}

static enum link_said ended(struct link *link, int error, int *ret_error)
{
    bool told = link->flushing;

    *ret_error = error;
    link_drop(link);
    return told ? LINK_NOTHING : LINK_ENDED;
}

enum link_said link_on_event(struct link *link, const struct loop_event *event, int *ret_error)
{
    int res = event->res;

    if (event->op == LOOP_ACCEPT) {
        bool was_deaf = link->deaf;
        link->deaf = link->loop->conn[link->listen_slot].naps;
        loop_accept(link->loop, link->listen_slot);
        if (res >= 0)
            return accepted(link, res);
        *ret_error = res;
        return link->deaf && !was_deaf ? LINK_DEAF : LINK_NOTHING;
    }
    if (event->op == LOOP_CONNECT) {
        link->connecting = false;
        if (res < 0)
            return ended(link, res, ret_error);
        link->up = true;
        return LINK_CONNECTED;
    }
    if (event->op == LOOP_RECV) {
        link->recv_busy = false;
        if (res == -EINTR || res == -EAGAIN)
            return LINK_RECEIVED;
        if (res <= 0)
            return ended(link, res, ret_error);
        link->bytes_received += (size_t)res;
        wire_reader_commit(&link->reader, (size_t)res);
        return link->flushing ? LINK_NOTHING : LINK_RECEIVED;
    }
    link->send_busy = false;
    if (res < 0 && res != -EINTR && res != -EAGAIN)
        return ended(link, res, ret_error);
    sent(link, res > 0 ? (size_t)res : 0);
    if (link->flushing && link->nr == 0) {
        link_drop(link);
        return LINK_NOTHING;
    }
    send_more(link);
    return LINK_SENT;
}

int link_next(struct link *link, struct wire_record *ret)
{
    return link->up && !link->flushing ? wire_next(&link->reader, ret) : 0;
}

void link_receive(struct link *link)
{
    size_t len;
    void *at;

    if (!link->up || link->recv_busy || link->flushing)
        return;
    at = wire_reader_space(&link->reader, &len);
    if (len == 0)
        return;
    link->recv_busy = true;
    loop_recv(link->loop, link->slot, at, len);
}

static int queue(struct link *link, const void *data, size_t len, bool small, bool *ret_sent)
{
    if (link->nr == LINK_QUEUE)
        return -ENOBUFS;
    link->queue[(link->head + link->nr++) % LINK_QUEUE] =
        (struct link_out){ .data = data, .len = len, .small = small, .ret_sent = ret_sent };
    send_more(link);
    return 0;
}

/* Small buffers are used in a ring, so the oldest is free first, as the queue sends in order. */
static uint8_t *small_buffer(struct link *link)
{
    if (link->small_used == LINK_SMALLS)
        return NULL;
    return link->small[link->small_next];
}

static int queue_small(struct link *link, ssize_t len)
{
    uint8_t *data = link->small[link->small_next];
    int rc;

    if (len < 0)
        return (int)len;
    rc = queue(link, data, (size_t)len, true, NULL);
    if (rc < 0)
        return rc;
    link->small_next = (link->small_next + 1) % LINK_SMALLS;
    link->small_used++;
    return 0;
}

int link_send(struct link *link, enum wire_type type, uint64_t generation, uint64_t epoch,
              const void *payload, size_t len)
{
    uint8_t *buf = small_buffer(link);

    if (!link->up || link->flushing)
        return -ENOTCONN;
    if (!buf || link->nr == LINK_QUEUE)
        return -ENOBUFS;
    return queue_small(link, wire_put(&link->writer, buf, LINK_SMALL_BYTES, type, generation, epoch,
                                      payload, len));
}

int link_send_reason(struct link *link, enum wire_type type, uint64_t generation, uint64_t epoch,
                     uint32_t code, const char *text)
{
    uint8_t *buf = small_buffer(link);

    if (!link->up || link->flushing)
        return -ENOTCONN;
    if (!buf || link->nr == LINK_QUEUE)
        return -ENOBUFS;
    return queue_small(link, wire_put_reason(&link->writer, buf, LINK_SMALL_BYTES, type, generation,
                                             epoch, code, text));
}

int link_send_layout(struct link *link, uint64_t generation, const char *text, size_t len)
{
    ssize_t n;

    if (!link->up || link->flushing)
        return -ENOTCONN;
    n = wire_put(&link->writer, link->layout_out, WIRE_RECORD_MAX_BYTES, WIRE_LAYOUT, generation, 0, text,
                 len);
    return n < 0 ? (int)n : queue(link, link->layout_out, (size_t)n, false, NULL);
}

bool link_busy(const struct link *link)
{
    return link->nr > 0;
}

unsigned link_room(const struct link *link)
{
    unsigned kept = LINK_SMALLS;

    return link->nr + kept < LINK_QUEUE ? LINK_QUEUE - kept - link->nr : 0;
}

int link_send_sealed(struct link *link, const void *record, size_t len, bool *ret_sent)
{
    if (!link->up || link->flushing)
        return -ENOTCONN;
    *ret_sent = false;
    return queue(link, record, len, false, ret_sent);
}
