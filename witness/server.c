/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server.c - the witness's clients: one thread, one poll loop, every table bounded
 */
#include "server.h"

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS INT64_C(1000000000)
#define MAKE_ROOM_NS (3 * SECOND_NS) /* polluxd asks every second */
#define ACCEPT_PER_TURN 64
#define ACCEPT_PAUSE_NS (SECOND_NS / 10)
#define ANSWER_BYTES (WIRE_HEADER_BYTES + sizeof(struct wire_arb_answer))
#define NR_POLL_MAX (1 + SERVER_LISTEN_MAX + SERVER_CLIENTS_MAX)

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * SECOND_NS + ts.tv_nsec;
}

void server_init(struct server *s, const struct server_config *config, struct registers *registers,
                 int signal_fd)
{
    memset(s, 0, sizeof(*s));
    s->config = *config;
    s->registers = registers;
    s->signal_fd = signal_fd;
    histogram_init(&s->fsync_us);
    for (unsigned i = 0; i < SERVER_CLIENTS_MAX; i++)
        s->clients[i].fd = -1;
}

void server_fini(struct server *s)
{
    for (unsigned i = 0; i < s->nr_listen; i++)
        close(s->listen_fd[i]);
    s->nr_listen = 0;
    for (unsigned i = 0; i < SERVER_CLIENTS_MAX; i++) {
        if (s->clients[i].fd >= 0)
            close(s->clients[i].fd);
        s->clients[i].fd = -1;
    }
}

void server_name(const struct sockaddr *address, socklen_t len, char ret[SERVER_NAME_BYTES])
{
    char host[48], port[8];

    if (getnameinfo(address, len, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV))
        snprintf(ret, SERVER_NAME_BYTES, "unknown");
    else
        snprintf(ret, SERVER_NAME_BYTES, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

int server_listen(struct server *s, const struct sockaddr *address, socklen_t len, bool dual,
                  char ret_name[SERVER_NAME_BYTES])
{
    struct sockaddr_storage bound;
    socklen_t bound_len = sizeof(bound);
    int fd, ret, one = 1, only6 = !dual;

    if (s->nr_listen == SERVER_LISTEN_MAX)
        return -ENOSPC;
    fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
        (address->sa_family == AF_INET6 &&
         setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only6, sizeof(only6))) ||
        bind(fd, address, len) || listen(fd, SERVER_CLIENTS_MAX) ||
        getsockname(fd, (struct sockaddr *)&bound, &bound_len)) {
        ret = -errno;
        close(fd);
        return ret;
    }
    server_name((struct sockaddr *)&bound, bound_len, ret_name);
    s->listen_fd[s->nr_listen++] = fd;
    return 0;
}

/* ---- one client ---- */

static void close_client(struct server_client *c)
{
    close(c->fd);
    c->fd = -1;
}

static void close_broken(struct server *s, struct server_client *c, int64_t now)
{
    s->counts.closed_broken++;
    if (log_may(&s->broken, "clients that broke the protocol", now))
        log_line(LOG_WARNING, "client %s: closed: %s", c->name, c->reader.why);
    close_client(c);
}

static int send_answers(struct server_client *c, int64_t now)
{
    ssize_t n = 0;

    while (c->out_len) {
        n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        c->out_len -= (size_t)n;
        memmove(c->out, c->out + n, c->out_len);
    }
    if (n < 0 && errno != EAGAIN)
        return -errno;
    if (!c->out_len)
        c->blocked_ns = 0;
    else if (!c->blocked_ns)
        c->blocked_ns = now;
    return 0;
}

static void log_cas(struct server *s, const struct server_client *c, const struct wire_arb_ask *ask,
                    int result, int error, int64_t took_us)
{
    const struct arb_register *reg = registers_find(s->registers, ask->vm);
    uint64_t generation = reg ? reg->generation : 0;
    int64_t now = now_ns();

    if (result == WIRE_ARB_GRANTED)
        log_line(LOG_INFO, "vm %s: generation %" PRIu64 " granted to %s (%" PRId64 " us)", ask->vm,
                 generation, c->name, took_us);
    else if (result == WIRE_ARB_REFUSED && log_may(&s->refusals, "refusals", now))
        log_line(LOG_INFO,
                 "vm %s: generation %" PRIu64 " refused to %s: the register is at %" PRIu64,
                 ask->vm, ask->next, c->name, generation);
    else if (result == WIRE_ARB_ERROR &&
             log_may(&s->failures, "registers that could not be written", now))
        log_line(LOG_ERROR, "vm %s: cannot write its register: %s; nothing was granted", ask->vm,
                 s->registers->nr == REGISTERS_MAX && error == -ENOSPC ? "all registers are taken"
                                                                       : strerror(-error));
}

/* Returns the result for the wire, or -EIO: end without an answer. */
static int carry_out(struct server *s, const struct server_client *c,
                     const struct wire_arb_ask *ask)
{
    int64_t start = now_ns(), took_us;
    int result, error;

    if (ask->op == WIRE_ARB_READ) {
        s->counts.reads++;
        return WIRE_ARB_VALUE;
    }
    result = registers_cas(s->registers, ask, &error);
    took_us = (now_ns() - start) / 1000;
    if (result < 0) {
        log_line(
            LOG_ERROR,
            "vm %s: the state directory could not be fsynced (%s): what a power cut would leave is "
            "not known, so nothing more is answered; see to the disk, then start the witness again",
            ask->vm, strerror(-error));
        return result;
    }
    if (result == WIRE_ARB_GRANTED)
        histogram_add(&s->fsync_us, (uint64_t)took_us);
    s->counts.granted += result == WIRE_ARB_GRANTED;
    s->counts.refused += result == WIRE_ARB_REFUSED;
    s->counts.errors += result == WIRE_ARB_ERROR;
    log_cas(s, c, ask, result, error, took_us);
    return result;
}

static int answer(struct server *s, struct server_client *c, const struct wire_record *record)
{
    struct wire_arb_answer a = {.reserved = 0};
    const struct arb_register *reg;
    struct wire_arb_ask ask;
    ssize_t len;
    int ret;

    ret = wire_decode_arb_ask(record, &ask);
    if (ret)
        return ret;
    ret = carry_out(s, c, &ask);
    if (ret < 0)
        return ret;
    a.result = (uint32_t)ret;
    a.tag = ask.tag;
    memcpy(a.vm, ask.vm, sizeof(a.vm));
    reg = registers_find(s->registers, ask.vm);
    if (reg) {
        a.generation = reg->generation;
        memcpy(a.holder, reg->holder, sizeof(a.holder));
        memcpy(a.nonce, reg->nonce, sizeof(a.nonce));
    }
    len = wire_put(&c->writer, c->out + c->out_len, sizeof(c->out) - c->out_len, WIRE_ARB_ANSWER, 0,
                   0, &a, sizeof(a));
    if (len < 0)
        return (int)len;
    c->out_len += (size_t)len;
    return 0;
}

/* Answer what is there and fits. Returns -EIO when the witness must end, else 0. */
static int answer_all(struct server *s, struct server_client *c, int64_t now)
{
    struct wire_record record;
    int got = 0, ret;

    while (c->fd >= 0 && sizeof(c->out) - c->out_len >= ANSWER_BYTES) {
        got = wire_next(&c->reader, &record);
        if (got != 1)
            break;
        c->heard_ns = now;
        c->part_ns = 0;
        ret = answer(s, c, &record);
        if (ret)
            return ret;
        if (send_answers(c, now))
            close_client(c);
    }
    if (c->fd >= 0 && got < 0)
        close_broken(s, c, now);
    if (c->fd >= 0 && !got && !wire_reader_at_boundary(&c->reader) && !c->part_ns)
        c->part_ns = now;
    return 0;
}

static int receive(struct server *s, struct server_client *c, int64_t now)
{
    size_t room;
    void *space = wire_reader_space(&c->reader, &room);
    ssize_t n = 1;

    if (room)
        n = recv(c->fd, space, room, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        close_client(c);
        return 0;
    }
    if (room)
        wire_reader_commit(&c->reader, (size_t)n);
    return answer_all(s, c, now);
}

static int serve_client(struct server *s, struct server_client *c, short events, int64_t now)
{
    if (events & (POLLERR | POLLHUP | POLLNVAL) || (events & POLLOUT && send_answers(c, now))) {
        close_client(c);
        return 0;
    }
    if (events & POLLOUT) /* asks that waited for room in the answers */
        return answer_all(s, c, now);
    return receive(s, c, now);
}

/* ---- the table of clients ---- */

static int64_t client_deadline(const struct server *s, const struct server_client *c)
{
    int64_t at = c->heard_ns + s->config.silent_ns;

    if (c->part_ns && c->part_ns + s->config.slow_ns < at)
        at = c->part_ns + s->config.slow_ns;
    if (c->blocked_ns && c->blocked_ns + s->config.slow_ns < at)
        at = c->blocked_ns + s->config.slow_ns;
    return at;
}

static void close_late(struct server *s, int64_t now)
{
    for (unsigned i = 0; i < SERVER_CLIENTS_MAX; i++) {
        struct server_client *c = &s->clients[i];

        if (c->fd < 0 || client_deadline(s, c) > now)
            continue;
        s->counts.closed_slow++;
        if (log_may(&s->slow, "silent or slow clients", now))
            log_line(LOG_INFO, "client %s: closed: %s", c->name,
                     c->blocked_ns ? "it does not take its answers"
                     : c->part_ns  ? "it sent part of a record and no more"
                                   : "it was silent too long");
        close_client(c);
    }
}

/* A free place; else the place of whoever was silent longest, if that is long enough; else NULL. */
static struct server_client *find_place(struct server *s, int64_t now)
{
    struct server_client *longest = NULL;

    for (unsigned i = 0; i < SERVER_CLIENTS_MAX; i++) {
        struct server_client *c = &s->clients[i];

        if (c->fd < 0)
            return c;
        if (!longest || c->heard_ns < longest->heard_ns)
            longest = c;
    }
    if (now - longest->heard_ns < MAKE_ROOM_NS)
        return NULL;
    s->counts.turned_away++;
    if (log_may(&s->turned, "clients that had to make room", now))
        log_line(LOG_WARNING,
                 "client %s: closed: all %d places are taken and it was silent longest",
                 longest->name, SERVER_CLIENTS_MAX);
    close_client(longest);
    return longest;
}

static void take_client(struct server *s, int fd, const struct sockaddr *address, socklen_t len,
                        int64_t now)
{
    struct server_client *c = find_place(s, now);
    char name[SERVER_NAME_BYTES];
    int one = 1;

    server_name(address, len, name);
    if (!c) {
        s->counts.turned_away++;
        if (log_may(&s->turned, "clients turned away", now))
            log_line(LOG_WARNING, "client %s: turned away: all %d places are taken", name,
                     SERVER_CLIENTS_MAX);
        close(fd);
        return;
    }
    s->counts.accepted++;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* only speed depends on it */
    c->fd = fd;
    c->writer = (struct wire_writer){.sequence = 0};
    c->out_len = 0;
    c->heard_ns = now;
    c->part_ns = c->blocked_ns = 0;
    memcpy(c->name, name, sizeof(c->name));
    wire_reader_init(&c->reader, WIRE_PEER_CLIENT, c->in, sizeof(c->in));
    log_line(LOG_DEBUG, "client %s: connected", c->name);
}

static void accept_some(struct server *s, int listen_fd, int64_t now)
{
    struct sockaddr_storage address;

    for (unsigned i = 0; i < ACCEPT_PER_TURN; i++) {
        socklen_t len = sizeof(address);
        int fd =
            accept4(listen_fd, (struct sockaddr *)&address, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0) {
            int error = errno;

            if (error == EAGAIN || error == EINTR || error == ECONNABORTED)
                return;
            if (log_may(&s->turned, "clients turned away", now))
                log_line(LOG_WARNING, "cannot accept a client: %s", strerror(error));
            s->accept_at_ns = now + ACCEPT_PAUSE_NS; /* poll would wake us for it again at once */
            return;
        }
        take_client(s, fd, (struct sockaddr *)&address, len, now);
    }
}

/* ---- the loop ---- */

static void print_counts(const struct server *s)
{
    const struct server_counts *n = &s->counts;
    unsigned nr_clients = 0;

    for (unsigned i = 0; i < SERVER_CLIENTS_MAX; i++)
        nr_clients += s->clients[i].fd >= 0;
    log_line(LOG_INFO,
             "status: %u registers, %u clients; %" PRIu64 " reads, %" PRIu64 " granted, %" PRIu64
             " refused, %" PRIu64 " errors; grant p50 %" PRIu64 " us, p99 %" PRIu64
             " us, max %" PRIu64 " us; %" PRIu64 " accepted, %" PRIu64 " turned away, %" PRIu64
             " slow, %" PRIu64 " broken",
             s->registers->nr, nr_clients, n->reads, n->granted, n->refused, n->errors,
             histogram_percentile(&s->fsync_us, 500), histogram_percentile(&s->fsync_us, 990),
             s->fsync_us.count ? s->fsync_us.max : 0, n->accepted, n->turned_away, n->closed_slow,
             n->closed_broken);
}

/* Returns whether to end. */
static bool take_signal(const struct server *s)
{
    struct signalfd_siginfo info;

    if (read(s->signal_fd, &info, sizeof(info)) != sizeof(info))
        return false;
    if (info.ssi_signo == SIGUSR1) {
        print_counts(s);
        return false;
    }
    log_line(LOG_INFO, "ending: signal %u", info.ssi_signo);
    return true;
}

/* Fill the list for poll: signals, listeners, then clients; who[i] is the client of entry i. */
static unsigned fill_poll(struct server *s, struct pollfd *list, struct server_client **who,
                          int64_t now, int64_t *ret_deadline)
{
    bool accepting = s->accept_at_ns <= now;
    unsigned nr = 0;

    list[nr++] = (struct pollfd){.fd = s->signal_fd, .events = POLLIN};
    for (unsigned i = 0; i < s->nr_listen; i++)
        list[nr++] = (struct pollfd){.fd = s->listen_fd[i], .events = accepting ? POLLIN : 0};
    *ret_deadline = accepting ? INT64_MAX : s->accept_at_ns;
    for (unsigned i = 0; i < SERVER_CLIENTS_MAX; i++) {
        struct server_client *c = &s->clients[i];
        int64_t deadline;

        if (c->fd < 0)
            continue;
        deadline = client_deadline(s, c);
        if (deadline < *ret_deadline)
            *ret_deadline = deadline;
        who[nr] = c;
        /* Who does not take its answers is not read from. */
        list[nr++] = (struct pollfd){.fd = c->fd, .events = c->out_len ? POLLOUT : POLLIN};
    }
    return nr;
}

static int poll_timeout_ms(int64_t deadline, int64_t now)
{
    if (deadline == INT64_MAX)
        return -1; /* nobody is connected: signals and new clients wake us */
    return deadline <= now ? 0 : (int)((deadline - now) / 1000000 + 1);
}

int server_run(struct server *s)
{
    struct pollfd list[NR_POLL_MAX];
    struct server_client *who[NR_POLL_MAX] = {NULL};
    int64_t deadline, now;
    unsigned nr;
    int ret;

    for (;;) {
        now = now_ns();
        nr = fill_poll(s, list, who, now, &deadline);
        if (poll(list, nr, poll_timeout_ms(deadline, now)) < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        now = now_ns();
        if (list[0].revents && take_signal(s))
            return 0;
        for (unsigned i = 1 + s->nr_listen; i < nr; i++) {
            if (!list[i].revents)
                continue;
            ret = serve_client(s, who[i], list[i].revents, now);
            if (ret)
                return ret;
        }
        for (unsigned i = 1; i <= s->nr_listen; i++) {
            if (list[i].revents)
                accept_some(s, list[i].fd, now);
        }
        close_late(s, now);
    }
}
