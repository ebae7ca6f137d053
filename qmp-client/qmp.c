/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qmp.c - the QMP protocol as a machine that is fed bytes and times
 *
 * Owns the state of one connection: where the handshake is, the commands in flight, the messages
 * not yet taken. Its only system calls are fcntl(F_DUPFD_CLOEXEC) and close() on descriptors to be
 * passed.
 *
 * Theory of operation. Each command lives in a slot from qmp_command() until three things are true:
 *   told       the caller has been given its one answer,
 *   answered   QEMU answered it, or never will (not sent, or the connection ended),
 *   out NULL   its text has left, or never will.
 * The three come in any order: a deadline tells before QEMU answers; and with asynchronous writes
 * the answer may be seen before the completion of the write that caused it. Failures are kept in
 * the slot (error) and turned into messages by qmp_next(), so failing needs no memory and cannot
 * fail.
 */
#include "qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json_strict.h"
#include "qmp_json.h"
#include "qmp_scan.h"

enum state {
    STATE_GREETING,     /* nothing but the greeting is legal */
    STATE_CAPABILITIES, /* qmp_capabilities is on its way: its answer, or an event */
    STATE_READY,
    STATE_CLOSED, /* error and why are set; nothing is taken, nothing is sent */
};

struct slot {
    uint64_t id; /* 0 = free */
    int64_t deadline_ns;
    int error;     /* to be told by qmp_next(); 0 = nothing to tell */
    bool settled;  /* an answer is queued, or error was set: never again */
    bool expired;  /* settled by its deadline: the connection may end before it is told */
    bool answered; /* nothing more is expected from QEMU */
    bool lent;     /* out is being written by the caller */
    int fd;        /* to go with the first byte, or -1 */
    char *out;     /* text not yet wholly written, or NULL */
    size_t out_len, out_off;
};

struct qmp_client {
    enum state state;
    int error;
    const char *why;
    bool closed_told;
    bool heard; /* any byte came */
    int64_t handshake_ns;

    struct qmp_scan scan;
    char *partial; /* the message so far, if it came in more than one piece */
    size_t partial_len, partial_room;
    struct json_tokener *tokener;
    struct qmp_message waiting[QMP_WAITING_MAX]; /* ring */
    unsigned int waiting_first, waiting_nr;
    size_t waiting_cost;

    struct slot slots[QMP_IN_FLIGHT_MAX];
    uint64_t last_id;
    uint64_t capabilities_id;

    struct qmp_version version;
    struct qmp_counters counters;
};

static const char *const WHY_EOF = "QEMU closed the connection";
static const char *const WHY_EOF_MIDWAY = "QEMU closed the connection in the middle of a message";
static const char *const WHY_EOF_SILENT = "QEMU closed the connection before its greeting";
static const char *const WHY_BROKEN = "the connection to QEMU failed";
static const char *const WHY_SILENT = "no greeting: does another client hold the QMP socket?";
static const char *const WHY_HANDSHAKE = "QEMU did not finish the handshake in time";

/* --- slots --- */

static void slot_drop_output(struct slot *s)
{
    free(s->out);
    s->out = NULL;
    s->lent = false;
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

static void slot_release_if_over(struct slot *s)
{
    if (s->id && s->settled && !s->error && s->answered && !s->out)
        *s = (struct slot){.fd = -1};
}

/* Text nobody has begun to write need not leave at all. */
static void slot_unsend(struct slot *s)
{
    if (s->out && !s->lent && !s->out_off) {
        slot_drop_output(s);
        s->answered = true;
    }
}

static void slot_fail(struct qmp_client *c, struct slot *s, int error)
{
    if (s->settled)
        return;
    s->settled = true;
    if (s->id != c->capabilities_id) /* our own: the caller never heard of it */
        s->error = error;
}

static struct slot *slot_find(struct qmp_client *c, uint64_t id)
{
    for (size_t i = 0; id && i < QMP_IN_FLIGHT_MAX; i++)
        if (c->slots[i].id == id)
            return &c->slots[i];
    return NULL;
}

static struct slot *slot_free(struct qmp_client *c)
{
    for (size_t i = 0; i < QMP_IN_FLIGHT_MAX; i++)
        if (!c->slots[i].id)
            return &c->slots[i];
    return NULL;
}

/* ids rise, so the lowest is the oldest */
static struct slot *slot_oldest(struct qmp_client *c, bool (*wanted)(const struct slot *))
{
    struct slot *oldest = NULL;

    for (size_t i = 0; i < QMP_IN_FLIGHT_MAX; i++) {
        struct slot *s = &c->slots[i];

        if (s->id && wanted(s) && (!oldest || s->id < oldest->id))
            oldest = s;
    }
    return oldest;
}

static bool slot_has_output(const struct slot *s)
{
    return s->out;
}

static bool slot_has_error(const struct slot *s)
{
    return s->error;
}

static bool slot_is_lent(const struct slot *s)
{
    return s->lent;
}

/* --- the end of the connection --- */

/* @return error, for the caller to pass on */
static int client_end(struct qmp_client *c, int error, const char *why)
{
    if (c->state == STATE_CLOSED)
        return c->error;
    c->state = STATE_CLOSED;
    c->error = error;
    c->why = why;
    for (size_t i = 0; i < QMP_IN_FLIGHT_MAX; i++) {
        struct slot *s = &c->slots[i];

        if (!s->id)
            continue;
        slot_fail(c, s, error);
        s->answered = true;
        if (!s->lent)
            slot_drop_output(s);
        slot_release_if_over(s);
    }
    json_tokener_free(c->tokener);
    c->tokener = NULL;
    free(c->partial);
    c->partial = NULL;
    c->partial_len = c->partial_room = 0;
    return error;
}

int qmp_error(const struct qmp_client *client)
{
    return client->error;
}

void qmp_closed(struct qmp_client *client, int error)
{
    const char *why = WHY_EOF;

    if (error >= 0)
        error = -EPIPE;
    if (error != -EPIPE && error != -ECONNRESET)
        why = WHY_BROKEN;
    else if (!client->heard)
        why = WHY_EOF_SILENT;
    else if (client->scan.size)
        why = WHY_EOF_MIDWAY;
    client_end(client, error, why);
}

/* --- what QEMU says --- */

static void waiting_push(struct qmp_client *c, struct qmp_message message, struct json_object *root)
{
    unsigned int at = (c->waiting_first + c->waiting_nr) % QMP_WAITING_MAX;

    message.root = json_object_get(root);
    message.cost = c->scan.cost;
    c->waiting[at] = message;
    c->waiting_nr++;
    c->waiting_cost += c->scan.cost;
}

/* Asked before each piece, and a piece holds at most one message: one free place is enough. */
static bool waiting_full(const struct qmp_client *c)
{
    return c->waiting_nr == QMP_WAITING_MAX || c->waiting_cost >= QMP_MESSAGE_MAX_COST;
}

static int command_queue(struct qmp_client *c, const char *name, struct json_object *args, int fd,
                         int64_t deadline_ns, uint64_t *ret_id);

static int take_greeting(struct qmp_client *c, struct json_object *greeting)
{
    if (c->state != STATE_GREETING)
        return client_end(c, -EPROTO, "QEMU greeted twice");
    if (qmp_json_version(greeting, &c->version))
        return client_end(c, -EPROTO, "the greeting names no QEMU version");
    c->state = STATE_CAPABILITIES;
    if (command_queue(c, "qmp_capabilities", NULL, -1, c->handshake_ns, &c->capabilities_id))
        return client_end(c, -ENOMEM, "out of memory");
    return 0;
}

static int take_event(struct qmp_client *c, struct json_object *root, struct json_object *name)
{
    struct qmp_message m = {.type = QMP_EVENT};
    struct json_object *data;

    if (c->state == STATE_GREETING)
        return client_end(c, -EPROTO, "an event before the greeting");
    if (!qmp_json_is_name(name))
        return client_end(c, -EPROTO, "an event whose name is not text");
    if (json_object_object_get_ex(root, "data", &data)) {
        if (!json_object_is_type(data, json_type_object))
            return client_end(c, -EPROTO, "an event whose data is not an object");
        m.data = data;
    }
    m.timestamp_us = qmp_json_timestamp_us(root);
    m.name = json_object_get_string(name);
    c->counters.events++;
    waiting_push(c, m, root);
    return 0;
}

static int take_capabilities(struct qmp_client *c, struct slot *s, bool granted)
{
    s->settled = true;
    slot_release_if_over(s);
    if (!granted)
        return client_end(c, -EPROTO, "QEMU refused qmp_capabilities");
    c->state = STATE_READY;
    waiting_push(c, (struct qmp_message){.type = QMP_READY, .version = &c->version}, NULL);
    return 0;
}

/* @param value the member "return" or "error"; NULL if it is null */
static int take_answer(struct qmp_client *c, struct json_object *root, bool is_error,
                       struct json_object *value)
{
    struct qmp_message m = {.type = is_error ? QMP_ERROR : QMP_REPLY, .data = value};
    struct json_object *class, *desc;
    struct slot *s = NULL;
    int64_t id;

    if (c->state == STATE_GREETING)
        return client_end(c, -EPROTO, "an answer before the greeting");
    if (is_error) {
        if (!json_object_object_get_ex(value, "class", &class) || !qmp_json_is_name(class) ||
            !json_object_object_get_ex(value, "desc", &desc) ||
            !json_object_is_type(desc, json_type_string))
            return client_end(c, -EPROTO, "an error without class or description");
        m.error = -EREMOTEIO;
        m.name = json_object_get_string(class);
        m.desc = json_object_get_string(desc);
        m.data = NULL;
    }
    if (qmp_json_number(root, "id", INT64_MAX, &id))
        s = slot_find(c, (uint64_t)id);
    /* Nobody can answer what was not even begun to be written. */
    if (!s || s->answered || (s->out && !s->lent && !s->out_off)) {
        c->counters.unknown++;
        return 0;
    }
    s->answered = true;
    if (s->settled) {
        c->counters.late++;
        slot_release_if_over(s);
        return 0;
    }
    if (s->id == c->capabilities_id)
        return take_capabilities(c, s, !is_error);
    s->settled = true;
    m.id = s->id;
    c->counters.replies++;
    waiting_push(c, m, root);
    slot_release_if_over(s);
    return 0;
}

static int take_message(struct qmp_client *c, struct json_object *root)
{
    struct json_object *greeting, *event, *value, *error;
    bool is_greeting = json_object_object_get_ex(root, "QMP", &greeting);
    bool is_event = json_object_object_get_ex(root, "event", &event);
    bool is_reply = json_object_object_get_ex(root, "return", &value);
    bool is_error = json_object_object_get_ex(root, "error", &error);

    if (is_greeting + is_event + is_reply + is_error != 1)
        return client_end(c, -EPROTO, "neither greeting, event, reply nor error");
    if (is_greeting)
        return take_greeting(c, greeting);
    if (is_event)
        return take_event(c, root, event);
    return take_answer(c, root, is_error, is_error ? error : value);
}

#define PARTIAL_KEPT (64 * 1024) /* most messages fit; the memory of a larger one is given back */

/* The scanner bounds what comes here: QMP_MESSAGE_MAX_BYTES and one piece. */
static int keep_piece(struct qmp_client *c, const char *bytes, size_t len)
{
    size_t room = c->partial_room ? c->partial_room : 4096;
    char *grown;

    while (room < c->partial_len + len)
        room *= 2;
    if (room != c->partial_room) {
        grown = realloc(c->partial, room);
        if (!grown)
            return -ENOMEM;
        c->partial = grown;
        c->partial_room = room;
    }
    memcpy(c->partial + c->partial_len, bytes, len);
    c->partial_len += len;
    return 0;
}

/*
 * One piece of one message. The parser sees whole messages only: a character beyond ASCII that was cut in two could
 * not be written in the way that every version of json-c takes (json_strict.h).
 * @return bytes used, or -errno when it ended the connection
 */
static ssize_t feed_piece(struct qmp_client *c, const char *bytes, size_t len)
{
    const char *text = bytes;
    struct json_object *root;
    size_t used, text_len;
    int ended, r;

    ended = qmp_scan(&c->scan, bytes, len, &used);
    if (ended == -EMSGSIZE)
        return client_end(c, -EMSGSIZE, "a message from QEMU is too big or too deep");
    if (ended < 0)
        return client_end(c, -EPROTO, "QEMU sent something that is not JSON");
    text_len = used;
    if (!ended || c->partial_len) {
        if (keep_piece(c, bytes, used) < 0)
            return client_end(c, -ENOMEM, "no memory for a message from QEMU");
        if (!ended)
            return (ssize_t)used;
        text = c->partial;
        text_len = c->partial_len;
        c->partial_len = 0;
    }
    root = json_strict_parse(c->tokener, text, text_len);
    if (!root)
        return client_end(c, -EPROTO, "QEMU sent something that is not JSON");
    r = take_message(c, root);
    json_object_put(root);
    if (c->partial_room > PARTIAL_KEPT) {
        free(c->partial);
        c->partial = NULL;
        c->partial_room = 0;
    }
    c->scan = (struct qmp_scan){0};
    return r ? r : (ssize_t)used;
}

ssize_t qmp_feed(struct qmp_client *client, const void *bytes, size_t len)
{
    const char *p = bytes;
    size_t done = 0;

    if (client->state == STATE_CLOSED)
        return client->error;
    client->heard |= len > 0;
    while (done < len && !waiting_full(client)) {
        ssize_t n;

        if (!client->scan.size && qmp_scan_is_space(p[done])) {
            done++;
            continue;
        }
        n = feed_piece(client, p + done, len - done);
        if (n < 0)
            return n;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int qmp_next(struct qmp_client *client, struct qmp_message *ret_message)
{
    struct slot *s;

    if (client->waiting_nr) {
        *ret_message = client->waiting[client->waiting_first];
        client->waiting_cost -= ret_message->cost;
        client->waiting_first = (client->waiting_first + 1) % QMP_WAITING_MAX;
        client->waiting_nr--;
        return 1;
    }
    s = slot_oldest(client, slot_has_error);
    if (s) {
        *ret_message = (struct qmp_message){
            .type = QMP_ERROR,
            .id = s->id,
            .error = s->error,
            .name = s->expired ? "Deadline" : "Closed",
            .desc = s->expired ? "QEMU did not answer in time" : client->why,
        };
        s->error = 0;
        slot_release_if_over(s);
        return 1;
    }
    if (client->state == STATE_CLOSED && !client->closed_told) {
        client->closed_told = true;
        *ret_message =
            (struct qmp_message){.type = QMP_CLOSED, .error = client->error, .desc = client->why};
        return 1;
    }
    return 0;
}

void qmp_message_fini(struct qmp_message *message)
{
    json_object_put(message->root);
    *message = (struct qmp_message){0};
}

/* --- what we say --- */

static int command_queue(struct qmp_client *c, const char *name, struct json_object *args, int fd,
                         int64_t deadline_ns, uint64_t *ret_id)
{
    struct slot *s = slot_free(c);
    size_t len;
    char *text;
    int own = -1, r;

    if (!s)
        return -EBUSY;
    r = qmp_json_command(name, args, c->last_id + 1, &text, &len);
    if (r)
        return r;
    if (fd >= 0) {
        own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (own < 0) {
            r = -errno;
            free(text);
            return r;
        }
    }
    *s = (struct slot){
        .id = ++c->last_id, .deadline_ns = deadline_ns, .fd = own, .out = text, .out_len = len};
    if (ret_id)
        *ret_id = s->id;
    return 0;
}

int qmp_command(struct qmp_client *client, const char *name, struct json_object *args, int fd,
                int64_t deadline_ns, uint64_t *ret_id)
{
    int r;

    if (client->state == STATE_CLOSED)
        r = client->error;
    else if (client->state != STATE_READY)
        r = -EAGAIN;
    else if (!name || !*name || deadline_ns == INT64_MAX ||
             (args && !json_object_is_type(args, json_type_object)))
        r = -EINVAL;
    else
        r = command_queue(client, name, args, fd < 0 ? -1 : fd, deadline_ns, ret_id);
    json_object_put(args);
    return r;
}

int qmp_output(struct qmp_client *client, const void **ret_bytes, size_t *ret_len, int *ret_fd)
{
    struct slot *s;

    if (client->state == STATE_CLOSED)
        return 0;
    s = slot_oldest(client, slot_has_output);
    if (!s)
        return 0;
    s->lent = true;
    *ret_bytes = s->out + s->out_off;
    *ret_len = s->out_len - s->out_off;
    *ret_fd = s->fd;
    return 1;
}

int qmp_output_msg(struct qmp_client *client, struct qmp_output_msg *ret_out)
{
    const void *bytes;
    size_t len;
    int fd;

    if (!qmp_output(client, &bytes, &len, &fd))
        return 0;
    memset(ret_out, 0, sizeof(*ret_out));
    ret_out->iov = (struct iovec){.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    ret_out->msg.msg_iov = &ret_out->iov;
    ret_out->msg.msg_iovlen = 1;
    if (fd >= 0) {
        struct cmsghdr *cmsg;

        ret_out->msg.msg_control = ret_out->control.bytes;
        ret_out->msg.msg_controllen = sizeof(ret_out->control.bytes);
        cmsg = CMSG_FIRSTHDR(&ret_out->msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
    }
    return 1;
}

int qmp_output_done(struct qmp_client *client, size_t len)
{
    struct slot *s = slot_oldest(client, slot_is_lent);

    if (!s || len > s->out_len - s->out_off)
        return -EINVAL;
    s->lent = false;
    s->out_off += len;
    if (len && s->fd >= 0) { /* it went with the first byte */
        close(s->fd);
        s->fd = -1;
    }
    if (s->out_off == s->out_len || client->state == STATE_CLOSED)
        slot_drop_output(s);
    else if (s->settled)
        slot_unsend(s);
    slot_release_if_over(s);
    return 0;
}

/* --- time --- */

int qmp_expire(struct qmp_client *client, int64_t now_ns)
{
    int nr = 0;

    if (client->state == STATE_CLOSED)
        return 0;
    if (client->state != STATE_READY) {
        if (now_ns < client->handshake_ns)
            return 0;
        if (client->heard)
            client_end(client, -ETIMEDOUT, WHY_HANDSHAKE);
        else
            client_end(client, -EBUSY, WHY_SILENT);
        return 1;
    }
    for (size_t i = 0; i < QMP_IN_FLIGHT_MAX; i++) {
        struct slot *s = &client->slots[i];

        if (!s->id || s->settled || now_ns < s->deadline_ns)
            continue;
        slot_fail(client, s, -ETIMEDOUT);
        s->expired = true;
        slot_unsend(s);
        client->counters.expired++;
        nr++;
    }
    return nr;
}

int64_t qmp_next_deadline(const struct qmp_client *client)
{
    int64_t first = INT64_MAX;

    if (client->state == STATE_CLOSED)
        return first;
    if (client->state != STATE_READY)
        return client->handshake_ns;
    for (size_t i = 0; i < QMP_IN_FLIGHT_MAX; i++) {
        const struct slot *s = &client->slots[i];

        if (s->id && !s->settled && s->deadline_ns < first)
            first = s->deadline_ns;
    }
    return first;
}

/* --- life --- */

int qmp_new(int64_t deadline_ns, struct qmp_client **ret_client)
{
    struct qmp_client *c;

    if (deadline_ns == INT64_MAX)
        return -EINVAL;
    c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    /* +2: json-c counts one level for the value itself, and the scanner is to be the one that
     * refuses */
    c->tokener = json_strict_new(QMP_MESSAGE_MAX_DEPTH + 2);
    if (!c->tokener) {
        free(c);
        return -ENOMEM;
    }
    c->handshake_ns = deadline_ns;
    c->why = "";
    for (size_t i = 0; i < QMP_IN_FLIGHT_MAX; i++)
        c->slots[i].fd = -1;
    *ret_client = c;
    return 0;
}

void qmp_free(struct qmp_client *client)
{
    struct qmp_message m;

    if (!client)
        return;
    client_end(client, -ECANCELED, "");
    for (size_t i = 0; i < QMP_IN_FLIGHT_MAX; i++)
        slot_drop_output(&client->slots[i]);
    while (qmp_next(client, &m))
        qmp_message_fini(&m);
    free(client);
}

const struct qmp_counters *qmp_counters(const struct qmp_client *client)
{
    return &client->counters;
}
