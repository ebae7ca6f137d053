/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * control.c - the control socket: operators' commands in, answers and events out; see control.h
 */
#include "control.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../qmp-client/json_strict.h"

#define SILENT_NS INT64_C(30000000000)

int control_init(struct control *c, struct loop *loop, unsigned listen_slot, unsigned first_slot,
                 void (*command)(void *opaque, unsigned client, struct json_object *request), void *opaque)
{
    memset(c, 0, sizeof(*c));
    c->loop = loop;
    c->listen_slot = listen_slot;
    c->first_slot = first_slot;
    c->command = command;
    c->opaque = opaque;
    for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
        c->client[i].in = malloc(CONTROL_LINE_BYTES);
        c->client[i].out = malloc(CONTROL_OUT_BYTES);
        if (!c->client[i].in || !c->client[i].out) {
            control_fini(c);
            return -ENOMEM;
        }
    }
    return 0;
}

void control_fini(struct control *c)
{
    if (c->listening)
        unlink(c->path);
    c->listening = false;
    for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
        free(c->client[i].in);
        free(c->client[i].out);
        c->client[i].in = c->client[i].out = NULL;
    }
}

/* Is anybody behind the path? @return 0 free now, or -errno */
static int make_room(const struct sockaddr_un *sa)
{
    struct stat st;
    int fd, rc;

    if (lstat(sa->sun_path, &st) < 0)
        return errno == ENOENT ? 0 : -errno;
    if (!S_ISSOCK(st.st_mode))
        return -EEXIST;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    rc = connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0 ? -errno : 0;
    close(fd);
    if (rc != -ECONNREFUSED)
        return -EADDRINUSE;
    return unlink(sa->sun_path) < 0 ? -errno : 0;
}

int control_listen(struct control *c, const char *path)
{
    struct sockaddr_un sa = { .sun_family = AF_UNIX };
    mode_t mask;
    int fd, rc;

    if (strlen(path) >= sizeof(sa.sun_path))
        return -ENAMETOOLONG;
    strcpy(sa.sun_path, path);
    strcpy(c->path, path);
    rc = make_room(&sa);
    if (rc < 0)
        return rc;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    mask = umask(0177);
    rc = bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 ? -errno : 0;
    umask(mask);
    if (rc == 0 && listen(fd, 8) < 0)
        rc = -errno;
    if (rc < 0) {
        close(fd);
        return rc;
    }
    c->listening = true;
    loop_open(c->loop, c->listen_slot, fd);
    loop_accept(c->loop, c->listen_slot);
    return 0;
}

static unsigned slot_of(const struct control *c, unsigned client)
{
    return c->first_slot + client;
}

static void drop(struct control *c, unsigned client)
{
    loop_close(c->loop, slot_of(c, client));
    c->client[client].open = false;
}

static void receive(struct control *c, unsigned client)
{
    struct control_client *k = &c->client[client];

    if (!k->open || k->recv_busy || k->closing)
        return;
    k->recv_busy = true;
    loop_recv(c->loop, slot_of(c, client), k->in + k->in_len, CONTROL_LINE_BYTES - k->in_len);
}

static void send_more(struct control *c, unsigned client)
{
    struct control_client *k = &c->client[client];

    if (!k->open || k->send_busy || k->out_len == 0)
        return;
    k->send_busy = true;
    k->sending = k->out_len;
    loop_send(c->loop, slot_of(c, client), k->out, k->sending);
}

void control_send(struct control *c, unsigned client, struct json_object *o)
{
    struct control_client *k = &c->client[client];
    const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN);
    size_t len = strlen(text);

    if (k->open && k->out_len + len + 1 <= CONTROL_OUT_BYTES) {
        memcpy(k->out + k->out_len, text, len);
        k->out[k->out_len + len] = '\n';
        k->out_len += len + 1;
        send_more(c, client);
    } else if (k->open) {
        drop(c, client); /* it does not read what it asked for */
    }
    json_object_put(o);
}

void control_answer(struct control *c, unsigned client, struct json_object *result)
{
    struct json_object *o = json_object_new_object();

    c->client[client].waits = false;
    json_object_object_add(o, "ok", json_object_new_boolean(true));
    if (result)
        json_object_object_add(o, "result", result);
    control_send(c, client, o);
}

void control_fail(struct control *c, unsigned client, int code, const char *why)
{
    struct json_object *o = json_object_new_object();

    c->client[client].waits = false;
    json_object_object_add(o, "ok", json_object_new_boolean(false));
    json_object_object_add(o, "code", json_object_new_int(code));
    json_object_object_add(o, "error", json_object_new_string(why));
    control_send(c, client, o);
}

void control_subscribe(struct control *c, unsigned client)
{
    c->client[client].subscribed = true;
}

void control_publish(struct control *c, struct json_object *o)
{
    for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
        if (c->client[i].open && c->client[i].subscribed)
            control_send(c, i, json_object_get(o));
    }
}

static void accepted(struct control *c, int fd, int64_t now_ns)
{
    for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
        struct control_client *k = &c->client[i];
        if (k->open || !loop_slot_free(c->loop, slot_of(c, i)))
            continue;
        *k = (struct control_client){ .open = true, .id = ++c->last_id, .heard_ns = now_ns, .in = k->in, .out = k->out };
        loop_open(c->loop, slot_of(c, i), fd);
        receive(c, i);
        return;
    }
    close(fd);
}

static void line(struct control *c, unsigned client, const char *text, size_t len)
{
    struct json_tokener *t = json_strict_new(8);
    struct json_object *o;

    if (!t)
        return;
    o = json_strict_parse(t, text, len);
    if (!o)
        control_fail(c, client, 64, "not a JSON object on one line");
    else
        c->command(c->opaque, client, o);
    json_object_put(o);
    json_tokener_free(t);
}

static void received(struct control *c, unsigned client, int res)
{
    struct control_client *k = &c->client[client];
    char *end;

    k->in_len += (size_t)res;
    while (k->open && !k->closing && (end = memchr(k->in, '\n', k->in_len))) {
        size_t len = (size_t)(end - k->in);
        if (k->waits) {
            k->closing = true;
            control_fail(c, client, 64, "one command at a time: wait for the answer to the one before");
            break;
        }
        k->waits = true;
        line(c, client, k->in, len);
        k->in_len -= len + 1;
        memmove(k->in, end + 1, k->in_len);
    }
    if (k->open && k->in_len == CONTROL_LINE_BYTES) {
        k->closing = true;
        control_fail(c, client, 64, "a command of more than 65535 bytes");
    }
}

void control_on_event(struct control *c, const struct loop_event *event, int64_t now_ns)
{
    unsigned client = event->slot - c->first_slot;
    struct control_client *k;

    if (event->slot == c->listen_slot) {
        loop_accept(c->loop, c->listen_slot);
        if (event->res >= 0)
            accepted(c, event->res, now_ns);
        return;
    }
    k = &c->client[client];
    if (event->op == LOOP_RECV) {
        k->recv_busy = false;
        k->heard_ns = now_ns;
        if (event->res <= 0)
            drop(c, client);
        else
            received(c, client, event->res);
        receive(c, client);
    } else {
        k->send_busy = false;
        if (event->res <= 0) {
            drop(c, client);
            return;
        }
        k->out_len -= (size_t)event->res;
        memmove(k->out, k->out + event->res, k->out_len);
        send_more(c, client);
        if (k->closing && k->out_len == 0)
            drop(c, client);
    }
}

int64_t control_tick(struct control *c, int64_t now_ns)
{
    int64_t at = INT64_MAX;

    for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
        struct control_client *k = &c->client[i];
        if (!k->open || k->subscribed || k->waits)
            continue;
        if (k->heard_ns + SILENT_NS <= now_ns)
            drop(c, i);
        else if (k->heard_ns + SILENT_NS < at)
            at = k->heard_ns + SILENT_NS;
    }
    return at;
}
