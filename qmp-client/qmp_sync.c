/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qmp_sync.c - a QMP connection that blocks, with a deadline on every call
 *
 * Owns the socket, the clock and the events nobody has waited for yet. All protocol is in qmp.c.
 */
#include "qmp_sync.h"

#include <errno.h>
#include <json-c/json.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_MS 1000000

struct qmp_sync {
    int fd;
    struct qmp_client *client;
    const struct qmp_version *version; /* NULL until READY */
    const char *why;                   /* the connection ended, in words */
    bool mute;                         /* QEMU reads no more; it may have spoken before that */
    uint64_t awaited_id;               /* 0 = no command */
    struct qmp_message answer;         /* to awaited_id; its id is 0 until it is there */
    struct qmp_message events[QMP_SYNC_EVENTS_MAX];
    unsigned int events_nr; /* oldest first */
    size_t events_cost;
    uint64_t dropped;
    char error[512];
    char buffer[65536];
};

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t deadline_after(int timeout_ms)
{
    return now_ns() + (int64_t)timeout_ms * NS_PER_MS;
}

/* --- events --- */

static struct qmp_message event_take(struct qmp_sync *q, unsigned int i)
{
    struct qmp_message m = q->events[i];

    q->events_cost -= m.cost;
    q->events_nr--;
    memmove(&q->events[i], &q->events[i + 1], (q->events_nr - i) * sizeof(m));
    return m;
}

static void event_keep(struct qmp_sync *q, struct qmp_message m)
{
    while (q->events_nr && (q->events_nr == QMP_SYNC_EVENTS_MAX ||
                            q->events_cost + m.cost > QMP_SYNC_EVENTS_MAX_COST)) {
        struct qmp_message old = event_take(q, 0);

        qmp_message_fini(&old);
        q->dropped++;
    }
    q->events[q->events_nr++] = m;
    q->events_cost += m.cost;
}

/* --- one turn: write, wait, read, sort --- */

static void sync_sort(struct qmp_sync *q)
{
    struct qmp_message m;

    while (qmp_next(q->client, &m)) {
        if (m.type == QMP_EVENT) {
            event_keep(q, m);
            continue;
        }
        if (m.type == QMP_READY)
            q->version = m.version;
        if (m.type == QMP_CLOSED)
            q->why = m.desc;
        if ((m.type == QMP_REPLY || m.type == QMP_ERROR) && m.id == q->awaited_id) {
            q->answer = m;
            continue;
        }
        qmp_message_fini(&m);
    }
}

/* @return whether there is more to write once the socket takes it */
static bool sync_write(struct qmp_sync *q)
{
    struct qmp_output_msg out;

    while (!q->mute && qmp_output_msg(q->client, &out)) {
        ssize_t n = sendmsg(q->fd, &out.msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        int error = errno;

        qmp_output_done(q->client, n < 0 ? 0 : (size_t)n);
        if (n >= 0 || error == EINTR)
            continue;
        if (error == EAGAIN)
            return true;
        if (error == EPIPE || error == ECONNRESET)
            q->mute = true; /* what it said before it went is still to be read */
        else
            qmp_closed(q->client, -error);
    }
    return false;
}

static void sync_read(struct qmp_sync *q)
{
    /* no control buffer: descriptors that come are discarded by the kernel */
    ssize_t n = recv(q->fd, q->buffer, sizeof(q->buffer), MSG_DONTWAIT);
    const char *p = q->buffer;

    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            qmp_closed(q->client, -errno);
        return;
    }
    if (n == 0)
        qmp_closed(q->client, 0);
    while (n > 0) {
        ssize_t used = qmp_feed(q->client, p, (size_t)n);

        sync_sort(q);
        if (used < 0)
            return;
        p += used;
        n -= used;
    }
}

/* Waits until something happens or until_ns passes, whichever is first, and deals with it. */
static void sync_turn(struct qmp_sync *q, int64_t until_ns)
{
    struct pollfd pfd = {.fd = q->fd, .events = POLLIN};
    int64_t now = now_ns(), first, wait_ms;
    int r;

    qmp_expire(q->client, now);
    if (sync_write(q))
        pfd.events |= POLLOUT;
    sync_sort(q);
    first = qmp_next_deadline(q->client);
    if (first > until_ns)
        first = until_ns;
    /* rounded up: a wait that ends just before its deadline would be repeated without sleeping */
    wait_ms = first <= now ? 0 : (first - now + NS_PER_MS - 1) / NS_PER_MS;
    if (qmp_error(q->client) || q->answer.id)
        return;
    r = poll(&pfd, 1, wait_ms > INT_MAX ? INT_MAX : (int)wait_ms);
    if (r < 0 && errno != EINTR)
        qmp_closed(q->client, -errno);
    if (r > 0 && (pfd.revents & ~POLLOUT))
        sync_read(q);
    sync_sort(q);
}

/* --- life --- */

int qmp_sync_attach(int fd, int timeout_ms, struct qmp_sync **ret_sync)
{
    struct qmp_sync *q;
    int r;

    if (timeout_ms < 0)
        return -EINVAL;
    q = calloc(1, sizeof(*q));
    if (!q)
        return -ENOMEM;
    q->fd = fd;
    r = qmp_new(deadline_after(timeout_ms), &q->client);
    while (!r && !q->version) {
        sync_turn(q, INT64_MAX);
        r = qmp_error(q->client);
    }
    if (r) {
        q->fd = -1;
        qmp_sync_close(q);
        return r;
    }
    *ret_sync = q;
    return 0;
}

int qmp_sync_connect(const char *path, int timeout_ms, struct qmp_sync **ret_sync)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int64_t deadline = deadline_after(timeout_ms), left_ms;
    struct timeval tv = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000 + 1};
    int fd, r;

    if (timeout_ms < 0)
        return -EINVAL;
    if (strlen(path) >= sizeof(sa.sun_path))
        return -ENAMETOOLONG;
    strcpy(sa.sun_path, path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    /* connect() to a listener whose queue is full blocks; the send time-out bounds that (unix(7)
     * sockets) */
    r = setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    if (r == 0)
        r = connect(fd, (const struct sockaddr *)&sa, sizeof(sa));
    if (r < 0) {
        r = errno == EAGAIN ? -EBUSY : -errno;
    } else {
        left_ms = (deadline - now_ns()) / NS_PER_MS;
        r = qmp_sync_attach(fd, left_ms > 0 ? (int)left_ms : 0, ret_sync);
    }
    if (r)
        close(fd);
    return r;
}

void qmp_sync_close(struct qmp_sync *sync)
{
    if (!sync)
        return;
    while (sync->events_nr) {
        struct qmp_message m = event_take(sync, 0);

        qmp_message_fini(&m);
    }
    qmp_message_fini(&sync->answer);
    qmp_free(sync->client);
    if (sync->fd >= 0)
        close(sync->fd);
    free(sync);
}

/* --- use --- */

static int sync_fail(struct qmp_sync *q, int error, const char *class, const char *desc)
{
    snprintf(q->error, sizeof(q->error), "%s: %s", class, desc);
    return error;
}

int qmp_sync_command(struct qmp_sync *sync, const char *name, struct json_object *args, int fd,
                     int timeout_ms, struct json_object **ret_data)
{
    int r;

    if (timeout_ms < 0) {
        json_object_put(args);
        return sync_fail(sync, -EINVAL, "Refused", "negative time-out");
    }
    r = qmp_command(sync->client, name, args, fd, deadline_after(timeout_ms), &sync->awaited_id);
    if (r)
        return sync_fail(sync, r, "Refused", strerror(-r));
    /* ends: the command has a deadline, and each accepted command gets one answer */
    while (!sync->answer.id)
        sync_turn(sync, INT64_MAX);
    if (sync->answer.type == QMP_ERROR)
        r = sync_fail(sync, sync->answer.error, sync->answer.name, sync->answer.desc);
    else if (ret_data)
        *ret_data = json_object_get(sync->answer.data);
    qmp_message_fini(&sync->answer);
    sync->awaited_id = 0;
    return r;
}

int qmp_sync_wait_event(struct qmp_sync *sync, const char *name, int timeout_ms,
                        struct qmp_message *ret_event)
{
    int64_t deadline;
    bool last = false;

    if (timeout_ms < 0)
        return sync_fail(sync, -EINVAL, "Refused", "negative time-out");
    deadline = deadline_after(timeout_ms);
    for (;;) {
        for (unsigned int i = 0; i < sync->events_nr; i++) {
            if (name && strcmp(sync->events[i].name, name))
                continue;
            *ret_event = event_take(sync, i);
            return 0;
        }
        if (qmp_error(sync->client))
            return sync_fail(sync, qmp_error(sync->client), "Closed", sync->why);
        if (last)
            return sync_fail(sync, -ETIMEDOUT, "Deadline", "no such event in time");
        last = now_ns() >= deadline; /* one more look, so that 0 sees what has been received */
        sync_turn(sync, deadline);
    }
}

const char *qmp_sync_error(const struct qmp_sync *sync)
{
    return sync->error;
}

const struct qmp_version *qmp_sync_version(const struct qmp_sync *sync)
{
    return sync->version;
}

uint64_t qmp_sync_dropped(const struct qmp_sync *sync)
{
    return sync->dropped;
}

const struct qmp_counters *qmp_sync_counters(const struct qmp_sync *sync)
{
    return qmp_counters(sync->client);
}
