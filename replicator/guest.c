/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * guest.c - the local QEMU: what it is, and the commands that carry out the session's actions; see guest.h
 */
#include "guest.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "guest_json.h"

#define MS INT64_C(1000000)
#define GREETING_DEADLINE (2000 * MS)
#define COMMAND_DEADLINE (10000 * MS)
#define CAPTURE_DEADLINE (4000 * MS) /* QEMU itself gives up a disk that does not come to rest after 2 s */
#define RETRY (500 * MS)

int guest_init(struct guest *g, struct loop *loop, unsigned slot, struct mailbox *box,
               const struct guest_observer *observer, const char *qmp_path)
{
    memset(g, 0, sizeof(*g));
    if (strlen(qmp_path) >= sizeof(g->path))
        return -ENAMETOOLONG;
    strcpy(g->path, qmp_path);
    g->loop = loop;
    g->slot = slot;
    g->box = box;
    g->observer = *observer;
    g->layout = malloc(LAYOUT_MAX_BYTES);
    return g->layout ? 0 : -ENOMEM;
}

void guest_fini(struct guest *g)
{
    qmp_free(g->qmp);
    qmp_free(g->leaving);
    g->leaving = NULL;
    free(g->layout);
    g->qmp = NULL;
    g->layout = NULL;
}

static void flush(struct guest *g)
{
    if (g->state < GUEST_GREETING || g->send_busy || qmp_output_msg(g->qmp, &g->out) != 1)
        return;
    g->send_busy = true;
    loop_sendmsg(g->loop, g->slot, &g->out.msg);
}

static void receive(struct guest *g)
{
    if (g->state < GUEST_GREETING || g->recv_busy)
        return;
    g->recv_busy = true;
    loop_recv(g->loop, g->slot, g->rx, sizeof(g->rx));
}

static void detach(struct guest *g, const char *why);

/* Answer what waits for an answer, as failed. */
static void fail(struct guest *g, const struct guest_pending *p, const char *why, int error)
{
    struct session_event e = { .error = error, .serial = p->serial, .text = why };

    switch (p->kind) {
    case GUEST_DONE:
    case GUEST_COVERED:
    case GUEST_LOAD:
        e.type = SE_DONE;
        mailbox_put(g->box, &e);
        break;
    case GUEST_CAPTURE:
        e.type = SE_CAPTURE_FAILED;
        mailbox_put(g->box, &e);
        break;
    case GUEST_APPLY:
        /* RAM here is in no known state, so this guest must not run: begin with this QEMU anew, to be filled anew. */
        if (g->state != GUEST_DETACHED)
            detach(g, why);
        break;
    case GUEST_STEP:
        if (!g->step_why[0])
            snprintf(g->step_why, sizeof(g->step_why), "%s", why);
        break;
    default:
        break;
    }
}

static struct guest_pending *find(struct guest *g, uint64_t id)
{
    for (unsigned i = 0; i < GUEST_COMMANDS_MAX; i++) {
        if (g->pending[i].kind != GUEST_FREE && g->pending[i].id == id)
            return &g->pending[i];
    }
    return NULL;
}

static void ask(struct guest *g, const char *name, struct json_object *args, int fd, struct guest_pending want)
{
    struct guest_pending *p = NULL;
    int64_t deadline = want.kind == GUEST_CAPTURE ? CAPTURE_DEADLINE : COMMAND_DEADLINE;
    int rc = -ENOTCONN;

    for (unsigned i = 0; i < GUEST_COMMANDS_MAX && !p; i++)
        p = g->pending[i].kind == GUEST_FREE ? &g->pending[i] : NULL;
    if (p && g->state >= GUEST_ASKING) {
        want.begun_ns = g->now_ns;
        rc = qmp_command(g->qmp, name, args, fd, g->now_ns + deadline, &want.id);
        args = NULL;
    }
    json_object_put(args);
    if (rc < 0) {
        char why[96];
        snprintf(why, sizeof(why), "QEMU cannot be asked for %s: %s", name, strerror(-rc));
        fail(g, &want, why, -EIO);
        return;
    }
    *p = want;
    flush(g);
}

static struct json_object *object(void)
{
    return json_object_new_object();
}

static void put_u64(struct json_object *o, const char *key, uint64_t value)
{
    json_object_object_add(o, key, json_object_new_uint64(value));
}

static void put_text(struct json_object *o, const char *key, const char *value)
{
    json_object_object_add(o, key, json_object_new_string(value));
}

static void put_bool(struct json_object *o, const char *key, bool value)
{
    json_object_object_add(o, key, json_object_new_boolean(value));
}

static void detach(struct guest *g, const char *why)
{
    bool was_known = g->state == GUEST_KNOWN;

    loop_close(g->loop, g->slot);
    qmp_free(g->leaving);
    g->leaving = g->qmp; /* a write in flight may still read from it: freed when the slot has drained */
    g->qmp = NULL;
    g->state = GUEST_DETACHED;
    g->recv_busy = g->send_busy = false;
    memset(g->pending, 0, sizeof(g->pending));
    g->retry_at_ns = g->now_ns + RETRY;
    if (was_known)
        mailbox_say(g->box, g->ended ? SE_GUEST_ENDED : SE_GUEST_LOST, why);
    else if (!g->complained)
        g->observer.warn(g->observer.opaque, why);
    g->complained = true;
}

static void attach(struct guest *g)
{
    int fd;

    g->retry_at_ns = INT64_MAX;
    if (!loop_slot_free(g->loop, g->slot)) {
        g->retry_at_ns = g->now_ns + RETRY;
        return;
    }
    qmp_free(g->leaving);
    g->leaving = NULL;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || qmp_new(g->now_ns + GREETING_DEADLINE, &g->qmp) < 0) {
        if (fd >= 0)
            close(fd);
        g->retry_at_ns = g->now_ns + RETRY;
        return;
    }
    g->address = (struct sockaddr_un){ .sun_family = AF_UNIX };
    strcpy(g->address.sun_path, g->path);
    g->state = GUEST_CONNECTING;
    loop_open(g->loop, g->slot, fd);
    loop_connect(g->loop, g->slot, (struct sockaddr *)&g->address, sizeof(g->address));
}

static void identify(struct guest *g, const struct qmp_version *v)
{
    char package[64];
    size_t len;

    snprintf(package, sizeof(package), "%s", v->package[0] == ' ' ? v->package + 1 : v->package);
    len = strlen(package);
    if (len && package[0] == '(' && package[len - 1] == ')') {
        package[len - 1] = '\0';
        memmove(package, package + 1, len);
    }
    snprintf(g->qemu, sizeof(g->qemu), "%d.%d.%d %s", v->major, v->minor, v->micro, package);
    g->state = GUEST_ASKING;
    ask(g, "query-status", NULL, -1, (struct guest_pending){ .kind = GUEST_QUERY_STATUS });
    ask(g, "query-checkpoint", NULL, -1, (struct guest_pending){ .kind = GUEST_QUERY_CHECKPOINT });
}

static bool is_one_of(const char *word, const char *const *words)
{
    for (; *words; words++) {
        if (strcmp(word, *words) == 0)
            return true;
    }
    return false;
}

/* A polluxd before us left its checkpoint session behind: its arena is gone with it, output stays as it is. */
static void end_old_session(struct guest *g, struct json_object *answer)
{
    char role[GUEST_NAME_BYTES];

    guest_json_text(answer, "role", role, sizeof(role));
    if (role[0] && strcmp(role, "none") != 0)
        ask(g, "checkpoint-stop", NULL, -1, (struct guest_pending){ .kind = GUEST_QUIET });
}

/* A guest that a polluxd has protected has its buffers. One without them was booted by somebody else since. */
static bool booted_anew(const struct guest *g)
{
    for (unsigned i = 0; i < g->nr_nics; i++) {
        if (g->nic[i].buffered)
            return false;
    }
    return g->nr_nics > 0;
}

static void known(struct guest *g, struct json_object *answer)
{
    static const char *const fresh[] = { "prelaunch", "inmigrate", NULL };
    static const char *const over[] = { "shutdown", "guest-panicked", "internal-error", "postmigrate",
                                        "finish-migrate", NULL };
    struct session_event e = { .type = SE_GUEST_ATTACHED };

    if (is_one_of(g->run_state, over)) {
        char why[GUEST_WHY_BYTES];
        snprintf(why, sizeof(why), "QEMU's guest is in run state %s: nothing to protect", g->run_state);
        detach(g, why);
        return;
    }
    end_old_session(g, answer);
    g->state = GUEST_KNOWN;
    g->complained = g->ended = false;
    e.guest = is_one_of(g->run_state, fresh) ? GUEST_FRESH : GUEST_RUNNING;
    e.flag = e.guest == GUEST_RUNNING && booted_anew(g);
    mailbox_put(g->box, &e);
}

static void on_reply(struct guest *g, const struct qmp_message *m)
{
    struct guest_pending *p = find(g, m->id), was;
    struct guest_capture capture = { 0 };
    struct session_event e = { 0 };

    if (!p)
        return;
    was = *p;
    p->kind = GUEST_FREE;
    e.serial = was.serial;
    switch (was.kind) {
    case GUEST_QUERY_STATUS:
        guest_json_text(m->data, "status", g->run_state, sizeof(g->run_state));
        g->running = guest_json_bool(m->data, "running");
        break;
    case GUEST_QUERY_CHECKPOINT:
        if (guest_json_identity(g, m->data) < 0)
            detach(g, g->step_why);
        else
            known(g, m->data);
        break;
    case GUEST_COVERED:
        guest_json_covered(g, m->data);
        /* fall through */
    case GUEST_DONE:
    case GUEST_LOAD:
        e.type = SE_DONE;
        if (was.kind != GUEST_LOAD && g->step_why[0]) {
            e.error = -EIO;
            e.text = g->step_why;
        }
        mailbox_put(g->box, &e);
        g->step_why[0] = '\0';
        break;
    case GUEST_CAPTURE:
        guest_json_capture(m->data, &capture);
        capture.epoch = was.epoch;
        capture.slot = was.slot;
        capture.precopy = was.precopy;
        g->observer.captured(g->observer.opaque, &capture);
        e.type = SE_CAPTURED;
        e.capture.epoch = was.epoch;
        e.capture.slot = was.slot;
        e.capture.precopy = was.precopy;
        e.capture.complete = capture.complete;
        e.capture.pages = capture.pages;
        e.capture.remaining = capture.remaining;
        e.capture.pause_ns = capture.pause_ns;
        mailbox_put(g->box, &e);
        break;
    case GUEST_APPLY:
        g->observer.applied(g->observer.opaque, was.slot, was.serial);
        break;
    case GUEST_RELEASE:
        g->observer.released(g->observer.opaque, was.epoch, guest_json_u64(m->data, "packets"),
                             guest_json_u64(m->data, "bytes"));
        break;
    default:
        break;
    }
}

static void on_error(struct guest *g, const struct qmp_message *m)
{
    struct guest_pending *p = find(g, m->id), was;
    char why[GUEST_WHY_BYTES];

    if (!p)
        return;
    was = *p;
    p->kind = GUEST_FREE;
    /* QEMU is gone, which is said next: a command that failed of it must not be news of its own before. */
    if (strcmp(m->name, "Closed") == 0)
        return;
    snprintf(why, sizeof(why), "QEMU: %s", m->desc);
    if (was.kind == GUEST_QUERY_CHECKPOINT && strcmp(m->name, "CommandNotFound") == 0) {
        detach(g, "this QEMU has no checkpoint commands: start the guest with the patched QEMU (make qemu)");
    } else if (was.kind == GUEST_QUERY_CHECKPOINT || was.kind == GUEST_QUERY_STATUS) {
        detach(g, why);
    } else if (was.kind == GUEST_STEP) {
        if (!g->step_why[0])
            snprintf(g->step_why, sizeof(g->step_why), "%s", why);
    } else if (was.kind == GUEST_QUIET || was.kind == GUEST_RELEASE) {
        g->observer.warn(g->observer.opaque, why);
    } else {
        fail(g, &was, g->step_why[0] ? g->step_why : why, m->error == -ETIMEDOUT ? -ETIMEDOUT : -EIO);
        g->step_why[0] = '\0';
    }
}

static void on_qmp_event(struct guest *g, const struct qmp_message *m)
{
    char reason[GUEST_NAME_BYTES] = "";

    if (strcmp(m->name, "CHECKPOINT_OUTPUT_FULL") == 0) {
        mailbox_say(g->box, SE_GUEST_STOPPED, "held output reached its limit");
    } else if (strcmp(m->name, "CHECKPOINT_FAILED") == 0) {
        guest_json_text(m->data, "reason", reason, sizeof(reason));
        mailbox_say(g->box, SE_CAPTURE_FAILED, reason[0] ? reason : "QEMU ended the checkpoint session");
    } else if (strcmp(m->name, "STOP") == 0) {
        g->running = false;
    } else if (strcmp(m->name, "RESUME") == 0) {
        g->running = true;
        snprintf(g->run_state, sizeof(g->run_state), "running"); /* it may be news to known(): not fresh any more */
        mailbox_say(g->box, SE_GUEST_RESUMED, NULL);
    } else if (strcmp(m->name, "SHUTDOWN") == 0) {
        guest_json_text(m->data, "reason", reason, sizeof(reason));
        /* A signal to QEMU is the host's doing (it goes down): that is a loss, and the standby's moment. */
        g->ended = strcmp(reason, "host-signal") != 0 && strcmp(reason, "host-error") != 0;
        if (g->ended)
            mailbox_say(g->box, SE_GUEST_ENDED, reason);
    }
}

static void drain(struct guest *g)
{
    struct qmp_message m;

    while (g->qmp && qmp_next(g->qmp, &m) == 1) {
        switch (m.type) {
        case QMP_READY: identify(g, m.version); break;
        case QMP_REPLY: on_reply(g, &m); break;
        case QMP_ERROR: on_error(g, &m); break;
        case QMP_EVENT: on_qmp_event(g, &m); break;
        default: {
            char why[GUEST_WHY_BYTES];
            if (m.error == -EBUSY)
                snprintf(why, sizeof(why), "the QMP socket %s is held by another client: give polluxd one of its own", g->path);
            else
                snprintf(why, sizeof(why), "the QMP connection ended: %s", m.desc);
            qmp_message_fini(&m);
            detach(g, why);
            return;
        }
        }
        qmp_message_fini(&m);
    }
}

static void received(struct guest *g, int res)
{
    size_t at = 0;

    while (g->qmp && at < (size_t)res) {
        ssize_t n = qmp_feed(g->qmp, g->rx + at, (size_t)res - at);
        if (n < 0)
            break;
        at += (size_t)n;
        drain(g);
    }
}

void guest_on_event(struct guest *g, const struct loop_event *event, int64_t now_ns)
{
    g->now_ns = now_ns;
    if (event->op == LOOP_CONNECT) {
        char why[GUEST_WHY_BYTES];
        if (event->res < 0) {
            snprintf(why, sizeof(why), "cannot connect to QEMU at %s: %s", g->path, strerror(-event->res));
            detach(g, why);
            return;
        }
        g->state = GUEST_GREETING;
    } else if (event->op == LOOP_RECV) {
        g->recv_busy = false;
        if (event->res > 0)
            received(g, event->res);
        else if (event->res != -EINTR && event->res != -EAGAIN)
            qmp_closed(g->qmp, event->res);
    } else if (event->op == LOOP_SEND) {
        g->send_busy = false;
        qmp_output_done(g->qmp, event->res > 0 ? (size_t)event->res : 0);
        if (event->res < 0 && event->res != -EINTR && event->res != -EAGAIN)
            qmp_closed(g->qmp, event->res);
    }
    drain(g);
    if (g->qmp) {
        flush(g);
        receive(g);
    }
}

int64_t guest_tick(struct guest *g, int64_t now_ns)
{
    int64_t at;

    g->now_ns = now_ns;
    if (g->qmp) {
        qmp_expire(g->qmp, now_ns);
        drain(g);
    }
    if (g->state == GUEST_DETACHED && g->retry_at_ns <= now_ns)
        attach(g);
    at = g->qmp ? qmp_next_deadline(g->qmp) : INT64_MAX;
    return g->state == GUEST_DETACHED && g->retry_at_ns < at ? g->retry_at_ns : at;
}

static void pass_fd(struct guest *g, int fd, const char *name)
{
    struct json_object *args = object();

    put_text(args, "fdname", name);
    ask(g, "getfd", args, fd, (struct guest_pending){ .kind = GUEST_STEP });
}

static void add_buffers(struct guest *g, bool active)
{
    for (unsigned i = 0; i < g->nr_nics; i++) {
        struct json_object *args;
        char id[GUEST_NAME_BYTES + 16];
        if (g->nic[i].buffered || !g->nic[i].netdev[0]) /* without a netdev it is connected to nothing */
            continue;
        args = object();
        snprintf(id, sizeof(id), "pollux-%s", g->nic[i].netdev);
        put_text(args, "qom-type", "checkpoint-buffer");
        put_text(args, "id", id);
        put_text(args, "netdev", g->nic[i].netdev);
        put_text(args, "mode", active ? "pass" : "hold");
        if (g->hold_max_bytes)
            put_u64(args, "max-bytes", g->hold_max_bytes);
        if (g->hold_max_packets)
            put_u64(args, "max-packets", g->hold_max_packets);
        ask(g, "object-add", args, -1, (struct guest_pending){ .kind = GUEST_STEP });
    }
}

void guest_checkpoint_start(struct guest *g, bool active, const struct arena *arena, int wake_fd, uint64_t serial)
{
    struct json_object *args = object();

    g->step_why[0] = '\0';
    add_buffers(g, active);
    pass_fd(g, arena->fd, "pollux-arena");
    pass_fd(g, wake_fd, "pollux-wakeup");
    put_text(args, "role", active ? "active" : "standby");
    put_text(args, "arena", "pollux-arena");
    put_text(args, "wakeup", "pollux-wakeup");
    put_u64(args, "slots", arena->geometry.slots);
    put_u64(args, "slot-pages", arena->geometry.slot_pages);
    put_u64(args, "state-max", arena->geometry.state_max);
    ask(g, "checkpoint-start", args, -1, (struct guest_pending){ .kind = GUEST_STEP });
    /* Only what QEMU says afterwards shows that all output can be held: NICs may have come, an object-add may be late. */
    ask(g, "query-checkpoint", NULL, -1, (struct guest_pending){ .kind = GUEST_COVERED, .serial = serial });
}

void guest_checkpoint_stop(struct guest *g, uint64_t serial)
{
    ask(g, "checkpoint-stop", NULL, -1, (struct guest_pending){ .kind = GUEST_DONE, .serial = serial });
}

void guest_capture(struct guest *g, uint64_t epoch, unsigned slot, bool precopy, bool append)
{
    struct json_object *args = object();

    put_u64(args, "slot", slot);
    put_u64(args, "epoch", epoch);
    put_bool(args, "precopy", precopy);
    put_bool(args, "append", append);
    ask(g, "checkpoint-capture", args, -1,
        (struct guest_pending){ .kind = GUEST_CAPTURE, .epoch = epoch, .slot = slot, .precopy = precopy });
}

void guest_output(struct guest *g, enum session_output mode, uint64_t serial)
{
    static const char *const words[] = { [OUTPUT_HOLD] = "hold", [OUTPUT_PASS] = "pass", [OUTPUT_DROP] = "drop" };
    struct json_object *args = object();

    put_text(args, "mode", words[mode]);
    ask(g, "checkpoint-output", args, -1, (struct guest_pending){ .kind = GUEST_DONE, .serial = serial });
}

void guest_release(struct guest *g, uint64_t epoch)
{
    struct json_object *args = object();

    put_u64(args, "epoch", epoch);
    ask(g, "checkpoint-release", args, -1, (struct guest_pending){ .kind = GUEST_RELEASE, .epoch = epoch });
}

void guest_apply(struct guest *g, unsigned slot, uint64_t nr_pages, uint64_t store)
{
    struct json_object *args = object();

    put_u64(args, "slot", slot);
    put_u64(args, "pages", nr_pages);
    ask(g, "checkpoint-apply", args, -1, (struct guest_pending){ .kind = GUEST_APPLY, .slot = slot, .serial = store });
}

void guest_load(struct guest *g, unsigned slot, uint32_t state_bytes, uint64_t serial)
{
    struct json_object *args = object();

    put_u64(args, "slot", slot);
    put_u64(args, "state-bytes", state_bytes);
    ask(g, "checkpoint-load", args, -1, (struct guest_pending){ .kind = GUEST_LOAD, .serial = serial });
}

void guest_run(struct guest *g, uint64_t serial)
{
    ask(g, "cont", NULL, -1, (struct guest_pending){ .kind = GUEST_DONE, .serial = serial });
}

void guest_stop(struct guest *g, uint64_t serial)
{
    ask(g, "stop", NULL, -1, (struct guest_pending){ .kind = GUEST_DONE, .serial = serial });
}

/* QEMU's own announcement: RARP from every NIC, and virtio-net asks the guest's kernel for its ARP and NDP. */
void guest_announce(struct guest *g)
{
    struct json_object *args = object();

    put_u64(args, "initial", 10);
    put_u64(args, "max", 500);
    put_u64(args, "rounds", 8);
    put_u64(args, "step", 50);
    ask(g, "announce-self", args, -1, (struct guest_pending){ .kind = GUEST_QUIET });
}

void guest_inject(struct guest *g, const char *netdev, const void *frame, size_t len)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *p = frame;
    char text[512];
    size_t n = 0;
    struct json_object *args;

    if (len > 360)
        return; /* announcements are 90 bytes at most */
    for (size_t i = 0; i < len; i += 3) {
        uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < len ? (uint32_t)p[i + 1] << 8 : 0) |
                     (i + 2 < len ? p[i + 2] : 0);
        text[n++] = digits[v >> 18];
        text[n++] = digits[v >> 12 & 63];
        text[n++] = i + 1 < len ? digits[v >> 6 & 63] : '=';
        text[n++] = i + 2 < len ? digits[v & 63] : '=';
    }
    text[n] = '\0';
    args = object();
    put_text(args, "netdev", netdev);
    put_text(args, "frame", text);
    ask(g, "checkpoint-inject", args, -1, (struct guest_pending){ .kind = GUEST_QUIET });
}
