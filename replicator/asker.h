/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * asker.h - the hands of arbiter.h: its connection on our loop, its outcomes in our mailbox
 */
#ifndef POLLUX_ASKER_H
#define POLLUX_ASKER_H

#include <sys/socket.h>

#include "arbiter.h"
#include "loop.h"
#include "mailbox.h"

struct asker {
    struct arbiter arbiter;
    struct loop *loop;
    unsigned slot;
    struct mailbox *box;
    struct sockaddr_storage address;
    socklen_t address_len;
    uint32_t link;    /* arbiter's number of the connection in the slot */
    bool connected, want_connect;
    bool recv_busy, send_busy;
    uint8_t rx[512];
    uint8_t tx[4 * ARBITER_RECORD_BYTES];
    size_t tx_len;
    struct arbiter_outcome last; /* of the last ask */
    bool asked;
    void (*changed)(void *opaque, const char *text);
    void *opaque;
};

/**
 * @param where  "witness:HOST:PORT", numeric
 * @return 0 or -EINVAL
 */
int asker_init(struct asker *a, struct loop *loop, unsigned slot, struct mailbox *box, const char *where,
               const char vm[WIRE_VM_BYTES], const uint8_t instance[16], int64_t now_ns,
               void (*changed)(void *opaque, const char *text), void *opaque);

/** SE_ARBITER follows, always. */
void asker_ask(struct asker *a, uint64_t expect, uint64_t next, const uint8_t nonce[16], int64_t now_ns);

void asker_on_event(struct asker *a, const struct loop_event *event, int64_t now_ns);

/** @return when to call again */
int64_t asker_tick(struct asker *a, int64_t now_ns);

#endif
