/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * net.c - a fake network between a and b: connections as TCP gives them
 *
 * In order, nothing lost while a connection lives; a partition delays (and says nothing), the end of a process
 * says FIN after what was sent, the end of a host says nothing at all, and who sends to a connection that the other
 * end has forgotten is told so (RST). One connection for each side, a second is turned away, as link.c does.
 */
#include "sim.h"

#include <string.h>

static int64_t latency(struct world *w)
{
    int64_t t = w->latency + (int64_t)rng_below(&w->rng, (uint64_t)w->jitter + 1);

    return w->now < w->spike_until ? t + w->spike : t;
}

/* When the record at the head of a queue can be taken. */
static void update(struct world *w, unsigned c, unsigned to)
{
    const struct conn *conn = &w->conn[c];
    const struct queue *queue = &conn->to[to];
    const struct side *d = &w->side[to];
    int64_t at = NEVER;

    if (conn->used && queue->nr) {
        at = queue->msg[queue->head].at;
        if (conn->open[to] && d->host_up) {
            if (d->rx_waiting)
                at = NEVER;
            else if (at < side_awake(d))
                at = side_awake(d);
        }
    }
    w->due[DUE_NET(c, to)] = at;
}

void net_update(struct world *w)
{
    for (unsigned c = 0; c < CONNS_MAX; c++) {
        update(w, c, 0);
        update(w, c, 1);
    }
}

static void put(struct world *w, unsigned c, unsigned to, const struct msg *m, int64_t at)
{
    struct queue *queue = &w->conn[c].to[to];

    if (queue->nr == QUEUE_MAX) {
        world_fail(w, "simulator: a queue of the network is full");
        return;
    }
    if (at < queue->last_at)
        at = queue->last_at;
    queue->last_at = at;
    queue->msg[(queue->head + queue->nr) % QUEUE_MAX] = *m;
    queue->msg[(queue->head + queue->nr++) % QUEUE_MAX].at = at;
    if (queue->nr == 1)
        update(w, c, to);
}

static void maybe_free(struct world *w, unsigned c)
{
    struct conn *conn = &w->conn[c];

    if (conn->open[0] || conn->open[1])
        return;
    conn->used = false;
    conn->to[0].nr = conn->to[1].nr = 0;
    w->due[DUE_NET(c, 0)] = w->due[DUE_NET(c, 1)] = NEVER;
}

void net_send(struct world *w, struct side *d, const struct msg *m, int64_t extra)
{
    if (d->conn < 0)
        return;
    /* Many signs of life that nobody reads say no more than some: a long cut must not fill the queue. */
    if (m->type == M_HEARTBEAT && net_queued(w, d) > BACKPRESSURE)
        return;
    put(w, (unsigned)d->conn, 1 - d->id, m, w->now + latency(w) + extra);
}

unsigned net_queued(const struct world *w, const struct side *d)
{
    return d->conn < 0 ? 0 : w->conn[d->conn].to[1 - d->id].nr;
}

void net_connect(struct world *w, struct side *d)
{
    unsigned c = 0;
    bool way = w->cut_until[0] <= w->now && w->cut_until[1] <= w->now;

    while (c < CONNS_MAX && w->conn[c].used)
        c++;
    if (c == CONNS_MAX || d->conn >= 0) {
        side_say(w, d, SE_LINK_DOWN);
        return;
    }
    w->conn[c].used = true;
    if (w->due_nr < DUE_NET(c + 1, 0))
        w->due_nr = DUE_NET(c + 1, 0);
    w->conn[c].open[d->id] = true;
    w->conn[c].open[1 - d->id] = false;
    w->conn[c].to[0].last_at = w->conn[c].to[1].last_at = 0;
    d->conn = (int)c;
    if (way && other(w, d)->host_up)
        world_at(w, w->now + latency(w), H_CONNECT, 1 - d->id, c, 0);
    else
        world_at(w, w->now + rng_range(&w->rng, SEC, 3 * SEC), H_CONNECT_FAILED, d->id, c, d->life);
}

void net_connect_failed(struct world *w, struct side *d, unsigned conn)
{
    if (d->conn != (int)conn || !w->conn[conn].used)
        return;
    w->conn[conn].open[d->id] = false;
    d->conn = -1;
    maybe_free(w, conn);
    side_say(w, d, SE_LINK_DOWN);
}

void net_connect_arrives(struct world *w, struct side *to, unsigned conn)
{
    struct conn *c = &w->conn[conn];
    struct side *from = other(w, to);
    struct msg m = { .type = M_ESTABLISHED };

    if (!c->used || !c->open[from->id] || c->open[to->id])
        return; /* the caller is gone */
    if (!to->host_up || !to->daemon_up) {
        world_at(w, w->now + (to->host_up ? latency(w) : 2 * SEC), H_CONNECT_FAILED, from->id, conn, from->life);
        return;
    }
    put(w, conn, from->id, &m, w->now + latency(w));
    if (to->conn >= 0) {
        w->count[N_TURNED_AWAY]++;
        m = (struct msg){ .type = M_REFUSE, .code = 6 };
        put(w, conn, from->id, &m, w->now + latency(w));
        m = (struct msg){ .type = M_FIN };
        put(w, conn, from->id, &m, w->now + latency(w));
        return;
    }
    c->open[to->id] = true;
    to->conn = (int)conn;
    side_post(w, to, &(struct session_event){ .type = SE_LINK_UP, .flag = true });
}

/* The side forgets its connection; what it had queued may or may not have left. */
void net_close(struct world *w, struct side *d, bool flush)
{
    unsigned c = (unsigned)d->conn;
    struct queue *queue;
    struct msg m = { .type = M_FIN };

    if (d->conn < 0)
        return;
    d->conn = -1;
    d->rx_waiting = false;
    w->conn[c].open[d->id] = false;
    w->conn[c].to[d->id].nr = 0;
    w->due[DUE_NET(c, d->id)] = NEVER;
    queue = &w->conn[c].to[1 - d->id];
    if (!flush && queue->nr)
        queue->nr -= (unsigned)rng_below(&w->rng, queue->nr + 1);
    if (w->conn[c].open[1 - d->id]) {
        if (queue->nr == QUEUE_MAX)
            queue->nr--;
        put(w, c, 1 - d->id, &m, w->now + latency(w));
        update(w, c, 1 - d->id);
    }
    maybe_free(w, c);
}

void net_lose(struct world *w, struct side *d)
{
    unsigned c = (unsigned)d->conn;

    if (d->conn < 0)
        return;
    d->conn = -1;
    d->rx_waiting = false;
    w->conn[c].open[d->id] = false;
    w->conn[c].to[d->id].nr = 0;
    w->due[DUE_NET(c, d->id)] = NEVER;
    maybe_free(w, c);
}

/* Both ends are told that the connection is broken. */
void net_reset(struct world *w)
{
    for (unsigned c = 0; c < CONNS_MAX; c++) {
        if (!w->conn[c].used || !w->conn[c].open[0] || !w->conn[c].open[1])
            continue;
        for (unsigned to = 0; to < 2; to++) {
            struct queue *queue = &w->conn[c].to[to];
            struct msg m = { .type = M_FIN };
            queue->nr -= (unsigned)rng_below(&w->rng, queue->nr + 1);
            if (queue->nr == QUEUE_MAX)
                queue->nr--;
            put(w, c, to, &m, w->now + latency(w));
            update(w, c, to);
        }
    }
}

static void ended(struct world *w, struct side *d, unsigned c)
{
    w->conn[c].open[d->id] = false;
    w->conn[c].to[d->id].nr = 0;
    w->due[DUE_NET(c, d->id)] = NEVER;
    d->conn = -1;
    d->rx_waiting = false;
    maybe_free(w, c);
    side_receive(w, d, &(struct msg){ .type = M_FIN });
}

void net_deliver(struct world *w, unsigned conn, unsigned to)
{
    struct conn *c = &w->conn[conn];
    struct queue *queue = &c->to[to];
    struct side *d = &w->side[to];
    struct msg *head = &queue->msg[queue->head], m;

    if (w->cut_until[to] > w->now) {
        head->at = w->cut_until[to] + (int64_t)rng_below(&w->rng, 200 * MS); /* retransmitted when the way is back */
        update(w, conn, to);
        return;
    }
    if (c->open[to] && head->type == M_HEARTBEAT && side_awake(d) <= w->now) {
        queue->head = (queue->head + 1) % QUEUE_MAX; /* by far the most frequent */
        queue->nr--;
        update(w, conn, to);
        side_say(w, d, SE_PEER_ALIVE);
        return;
    }
    if (c->open[to] && d->conn == (int)conn && head->type != M_FIN) {
        /* Copied: what it causes may close the connection. A record that waits stays at the head. */
        m = *head;
        if (m.type == M_ESTABLISHED || !side_awake(d) || side_awake(d) <= w->now) {
            queue->head = (queue->head + 1) % QUEUE_MAX;
            queue->nr--;
            if (!side_receive(w, d, &m)) {
                queue->head = (queue->head + QUEUE_MAX - 1) % QUEUE_MAX;
                queue->nr++;
                d->rx_waiting = true;
                w->count[N_BACKPRESSURE]++;
                side_post(w, d, &(struct session_event){ .type = SE_RX_PAUSED, .flag = true });
            }
        }
        update(w, conn, to);
        side_update(w, &w->side[1 - to]); /* its sender may have room again */
        return;
    }
    m = *head;
    queue->head = (queue->head + 1) % QUEUE_MAX;
    queue->nr--;
    if (c->open[to] && m.type == M_FIN) {
        ended(w, d, conn);
    } else if (!c->open[to] && m.type != M_FIN && d->host_up && c->open[1 - to]) {
        struct msg rst = { .type = M_FIN };
        queue->nr = 0;
        put(w, conn, 1 - to, &rst, w->now + latency(w));
    }
    update(w, conn, to);
}
