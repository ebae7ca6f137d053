/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control.h - the control socket: operators' commands in, answers and events out (docs/CONTROL.md)
 *
 * Owns: the listening unix socket and its clients, each with a bounded line to read and a bounded text to
 * write. Knows JSON lines, not what they mean: commands go to the handler.
 */
#ifndef POLLUX_CONTROL_H
#define POLLUX_CONTROL_H

#include <stdbool.h>
#include <sys/un.h>

#include "loop.h"

struct json_object;

#define CONTROL_CLIENTS 12
#define CONTROL_LINE_BYTES 65536
#define CONTROL_OUT_BYTES (1u << 20)

struct control_client {
    bool open, closing, subscribed;
    bool recv_busy, send_busy;
    bool waits; /* for the answer to a command */
    uint64_t id; /* differs from that of every client before */
    int64_t heard_ns;
    size_t in_len, out_len, sending;
    char *in;
    char *out; /* [0, sending) is with the kernel, [0, out_len) is to be sent */
};

struct control {
    struct loop *loop;
    unsigned listen_slot, first_slot;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    bool listening;
    void *opaque;
    /* Takes one command. The answer may come later, by control_answer(). */
    void (*command)(void *opaque, unsigned client, struct json_object *request);
    struct control_client client[CONTROL_CLIENTS];
    uint64_t last_id;
};

/** @return the client's id, for a later answer; 0 when nobody is there */
static inline uint64_t control_id(const struct control *c, unsigned client)
{
    return c->client[client].open ? c->client[client].id : 0;
}

/** @return 0 or -ENOMEM */
int control_init(struct control *c, struct loop *loop, unsigned listen_slot, unsigned first_slot,
                 void (*command)(void *opaque, unsigned client, struct json_object *request), void *opaque);
void control_fini(struct control *c);

/**
 * Listen on a path. A socket that nobody serves any more is replaced.
 * @return 0; -EADDRINUSE another daemon serves it; -ENAMETOOLONG; -EEXIST something else is there; or -errno
 */
int control_listen(struct control *c, const char *path);

void control_on_event(struct control *c, const struct loop_event *event, int64_t now_ns);

/** Close clients that never say anything. @return when to call again */
int64_t control_tick(struct control *c, int64_t now_ns);

/** Send one object as a line; consumes the reference. A client that does not read is closed. */
void control_send(struct control *c, unsigned client, struct json_object *o);
void control_answer(struct control *c, unsigned client, struct json_object *result);
void control_fail(struct control *c, unsigned client, int code, const char *why);

/** The client wants events from now on. */
void control_subscribe(struct control *c, unsigned client);

/** Send an event to all subscribers; the reference stays the caller's. */
void control_publish(struct control *c, struct json_object *o);

#endif
