/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * asker.c - the hands of arbiter.h: its connection on our loop, its outcomes in our mailbox; see asker.h
 */
#include "asker.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "link.h"

int asker_init(struct asker *a, struct loop *loop, unsigned slot, struct mailbox *box, const char *where,
               const char vm[WIRE_VM_BYTES], const uint8_t instance[16], int64_t now_ns,
               void (*changed)(void *opaque, const char *text), void *opaque)
{
    static const char kind[] = "witness:";
    struct arbiter_config config;
    int len;

    memset(a, 0, sizeof(*a));
    if (strncmp(where, kind, sizeof(kind) - 1) != 0)
        return -EINVAL;
    len = link_parse_address(where + sizeof(kind) - 1, &a->address);
    if (len < 0)
        return len;
    a->address_len = (socklen_t)len;
    a->loop = loop;
    a->slot = slot;
    a->box = box;
    a->changed = changed;
    a->opaque = opaque;
    arbiter_config_default(&config);
    memcpy(config.vm, vm, sizeof(config.vm));
    memcpy(config.holder, instance, sizeof(config.holder));
    return arbiter_init(&a->arbiter, &config, now_ns);
}

static void outcome(struct asker *a, const struct arbiter_outcome *o)
{
    a->last = *o;
    a->asked = true;
    mailbox_put(a->box, &(struct session_event){
                            .type = SE_ARBITER,
                            .code = o->grant,
                            .generation = o->reg.generation,
                            .flag = o->holder_is_me,
                        });
}

static void hang_up(struct asker *a)
{
    loop_close(a->loop, a->slot);
    a->connected = a->recv_busy = a->send_busy = false;
    a->tx_len = 0;
}

static void dial(struct asker *a, int64_t now_ns)
{
    int one = 1, fd;

    a->want_connect = !loop_slot_free(a->loop, a->slot);
    if (a->want_connect)
        return; /* the old connection drains: asker_tick() comes back */
    fd = socket(a->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        arbiter_closed(&a->arbiter, a->link, strerror(errno), now_ns);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    loop_open(a->loop, a->slot, fd);
    loop_connect(a->loop, a->slot, (struct sockaddr *)&a->address, a->address_len);
}

static void flush(struct asker *a)
{
    if (!a->connected || a->send_busy || a->tx_len == 0)
        return;
    a->send_busy = true;
    loop_send(a->loop, a->slot, a->tx, a->tx_len);
}

static void receive(struct asker *a)
{
    if (!a->connected || a->recv_busy)
        return;
    a->recv_busy = true;
    loop_recv(a->loop, a->slot, a->rx, sizeof(a->rx));
}

/* Do what the arbiter's client wants, until it wants nothing. */
static void pump(struct asker *a, int64_t now_ns)
{
    struct arbiter_action act;

    while (arbiter_next_action(&a->arbiter, &act)) {
        switch (act.type) {
        case ARBITER_CONNECT:
            a->link = act.link;
            dial(a, now_ns);
            break;
        case ARBITER_SEND:
            if (act.link != a->link || a->tx_len + act.len > sizeof(a->tx))
                break; /* of a connection that is gone; the ask has its deadline */
            memcpy(a->tx + a->tx_len, act.bytes, act.len);
            a->tx_len += act.len;
            break;
        case ARBITER_CLOSE:
            if (act.link == a->link)
                hang_up(a);
            break;
        case ARBITER_OUTCOME: outcome(a, &act.outcome); break;
        case ARBITER_CHANGED: a->changed(a->opaque, act.text); break;
        }
    }
    flush(a);
    receive(a);
}

void asker_ask(struct asker *a, uint64_t expect, uint64_t next, const uint8_t nonce[16], int64_t now_ns)
{
    struct arbiter_outcome failed = { .op = WIRE_ARB_CAS, .grant = GRANT_UNREACHABLE };

    if (arbiter_ask(&a->arbiter, WIRE_ARB_CAS, expect, next, nonce, now_ns) < 0)
        outcome(a, &failed);
    pump(a, now_ns);
}

void asker_on_event(struct asker *a, const struct loop_event *event, int64_t now_ns)
{
    int res = event->res;
    const char *why = res < 0 ? strerror(-res) : "the witness closed the connection";

    if (event->op == LOOP_CONNECT && res >= 0) {
        a->connected = true;
        arbiter_connected(&a->arbiter, a->link, now_ns);
    } else if (event->op == LOOP_RECV && res > 0) {
        a->recv_busy = false;
        arbiter_feed(&a->arbiter, a->link, a->rx, (size_t)res, now_ns);
    } else if (event->op == LOOP_SEND && res > 0) {
        a->send_busy = false;
        a->tx_len -= (size_t)res;
        memmove(a->tx, a->tx + res, a->tx_len);
    } else if (res != -EINTR && res != -EAGAIN) {
        hang_up(a);
        arbiter_closed(&a->arbiter, a->link, why, now_ns);
    }
    pump(a, now_ns);
}

int64_t asker_tick(struct asker *a, int64_t now_ns)
{
    int64_t at;

    if (a->want_connect)
        dial(a, now_ns);
    arbiter_tick(&a->arbiter, now_ns);
    pump(a, now_ns);
    at = arbiter_deadline(&a->arbiter);
    return a->want_connect && at > now_ns + 1000000 ? now_ns + 1000000 : at;
}
