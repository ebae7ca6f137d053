/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pollux_client.c - the CLI's end of the control socket (docs/CONTROL.md): lines of JSON with deadlines
 */
#include "pollux_client.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../qmp-client/json_strict.h"
#include "wire.h"

#define JSON_DEPTH_MAX 16

int64_t client_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

const char *client_printable(const char *text, char *ret, size_t cap)
{
    size_t len = strlen(text), out = 0;

    while (len && out + 5 < cap) {
        size_t n = wire_text_char(text, len);

        if (n)
            memcpy(ret + out, text, n);
        else
            ret[out] = '?';
        n = n ? n : 1;
        out += n;
        text += n;
        len -= n;
    }
    ret[out] = 0;
    return ret;
}

static int fail(struct client *c, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(struct client *c, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(c->why, sizeof(c->why), format, args);
    va_end(args);
    return code;
}

/* Which of the ways in which nobody can be there it is: each has another cure. */
static int say_why_not(struct client *c, int error)
{
    struct stat st;

    if (error == ENOENT || error == ENOTDIR)
        return fail(c, CODE_UNAVAILABLE,
                    "there is no control socket %s: polluxd was not started for this VM on this "
                    "host, or with "
                    "another --control; start it, or name the right VM or socket",
                    c->path);
    if (error == EACCES || error == EPERM)
        return fail(
            c, CODE_FAILED,
            "may not use the control socket %s: run pollux as the user that polluxd runs as (root)",
            c->path);
    if (lstat(c->path, &st) == 0 && !S_ISSOCK(st.st_mode) && !S_ISLNK(st.st_mode))
        return fail(c, CODE_CONFIG, "%s is not a socket: give the path of polluxd's control socket",
                    c->path);
    if (error == ECONNREFUSED)
        return fail(c, CODE_UNAVAILABLE,
                    "the control socket %s is stale: its polluxd is not running any more (the "
                    "guest may well be); "
                    "start polluxd again, it takes the socket over",
                    c->path);
    if (error == EAGAIN)
        return fail(c, CODE_UNAVAILABLE,
                    "polluxd at %s takes no more clients now: it is busy or stuck; see its log",
                    c->path);
    return fail(c, CODE_UNAVAILABLE, "cannot connect to the control socket %s: %s", c->path,
                strerror(error));
}

int client_open(struct client *c, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    *c = (struct client){.fd = -1, .path = path};
    if (strlen(path) >= sizeof(address.sun_path))
        return fail(
            c, CODE_CONFIG,
            "the path of the control socket is too long: a socket's path has at most %zu bytes",
            sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path));
    c->buf = malloc(CLIENT_LINE_BYTES);
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (!c->buf || c->fd < 0)
        return fail(c, CODE_FAILED, "cannot make a socket: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&address, sizeof(address)))
        return say_why_not(c, errno);
    return CODE_GOOD;
}

void client_close(struct client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    free(c->buf);
    c->fd = -1;
    c->buf = NULL;
}

/* Wait until the socket is ready. Returns an exit code. */
static int wait_for(struct client *c, short events, int64_t deadline_ns)
{
    struct pollfd one = {.fd = c->fd, .events = events};

    for (;;) {
        int64_t left = deadline_ns - client_now_ns();
        int timeout_ms = deadline_ns == CLIENT_FOREVER ? -1
                         : left <= 0                   ? 0
                         : left / 1000000 > 3600000    ? 3600000
                                                       : (int)(left / 1000000 + 1);
        int n = poll(&one, 1, timeout_ms);

        if (n > 0)
            return CODE_GOOD;
        if (n < 0 && errno != EINTR)
            return fail(c, CODE_FAILED, "poll: %s", strerror(errno));
        if (!n && left <= 0)
            return fail(c, CODE_TIMEOUT,
                        "polluxd at %s did not answer in time: it is busy or stuck; see its log",
                        c->path);
    }
}

static int send_line(struct client *c, struct json_object *request, int64_t deadline_ns)
{
    const char *text = json_object_to_json_string_ext(request, JSON_C_TO_STRING_PLAIN);
    size_t len = strlen(text), sent = 0;
    int code = CODE_GOOD;

    if (len + 1 > CLIENT_LINE_BYTES)
        return fail(c, CODE_USAGE, "the command is longer than %d bytes", CLIENT_LINE_BYTES);
    memcpy(c->buf, text, len);
    c->buf[len++] = '\n';
    while (!code && sent < len) {
        ssize_t n = send(c->fd, c->buf + sent, len - sent, MSG_NOSIGNAL);

        if (n > 0)
            sent += (size_t)n;
        else if (n < 0 && errno == EAGAIN)
            code = wait_for(c, POLLOUT, deadline_ns);
        else if (n < 0 && errno != EINTR)
            return fail(c, CODE_UNAVAILABLE, "polluxd at %s closed the connection: %s; see its log",
                        c->path, strerror(errno));
    }
    return code;
}

/* The next whole line, without its newline, ended by NUL; in c->buf until the next call. */
static int next_line(struct client *c, int64_t deadline_ns, char **ret_line, size_t *ret_len)
{
    for (;;) {
        char *start = c->buf + c->used;
        char *end = memchr(start, '\n', c->len - c->used);
        ssize_t n;
        int code;

        if (end) {
            *end = 0;
            *ret_line = start;
            *ret_len = (size_t)(end - start);
            c->used += *ret_len + 1;
            return CODE_GOOD;
        }
        c->len -= c->used;
        memmove(c->buf, start, c->len);
        c->used = 0;
        if (c->len == CLIENT_LINE_BYTES)
            return fail(c, CODE_UNAVAILABLE,
                        "what answers at %s is not polluxd: it sent a line of more than %d bytes",
                        c->path, CLIENT_LINE_BYTES);
        code = wait_for(c, POLLIN, deadline_ns);
        if (code)
            return code;
        n = recv(c->fd, c->buf + c->len, CLIENT_LINE_BYTES - c->len, 0);
        if (n > 0)
            c->len += (size_t)n;
        else if (!n && c->len)
            return fail(c, CODE_UNAVAILABLE,
                        "polluxd at %s ended in the middle of an answer; see its log", c->path);
        else if (!n)
            return fail(c, CODE_UNAVAILABLE,
                        "polluxd at %s closed the connection: it ended, or has too many clients; "
                        "see its log",
                        c->path);
        else if (errno != EINTR && errno != EAGAIN)
            return fail(c, CODE_UNAVAILABLE, "the connection to polluxd at %s broke: %s", c->path,
                        strerror(errno));
    }
}

static int parse(struct client *c, const char *line, size_t len, struct json_object **ret)
{
    struct json_tokener *tokener = json_strict_new(JSON_DEPTH_MAX);
    struct json_object *o;

    if (!tokener)
        return fail(c, CODE_FAILED, "no memory");
    o = json_strict_parse(tokener, line, len);
    json_tokener_free(tokener);
    if (!o)
        return fail(c, CODE_UNAVAILABLE,
                    "what answers at %s is not polluxd: it sent something else than a JSON object",
                    c->path);
    *ret = o;
    return CODE_GOOD;
}

int client_next(struct client *c, int64_t deadline_ns, struct json_object **ret)
{
    size_t len = 0;
    char *line = NULL;
    int code = next_line(c, deadline_ns, &line, &len);

    return code ? code : parse(c, line, len, ret);
}

static int known_code(int64_t code)
{
    static const int known[] = {CODE_FAILED,    CODE_USAGE,       CODE_UNAVAILABLE, CODE_CONFIG,
                                CODE_NO_QUORUM, CODE_NEEDS_FORCE, CODE_TIMEOUT};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (known[i] == code)
            return known[i];
    }
    return CODE_FAILED;
}

int client_call(struct client *c, struct json_object *request, int64_t deadline_ns,
                struct json_object **ret_answer)
{
    struct json_object *answer = NULL, *ok, *error, *number;
    int code = send_line(c, request, deadline_ns);

    json_object_put(request);
    if (!code)
        code = client_next(c, deadline_ns, &answer);
    if (code)
        return code;
    if (!json_object_object_get_ex(answer, "ok", &ok) ||
        !json_object_is_type(ok, json_type_boolean)) {
        code = fail(c, CODE_UNAVAILABLE,
                    "what answers at %s is not polluxd: its answer has no \"ok\"", c->path);
    } else if (!json_object_get_boolean(ok)) {
        code = CODE_FAILED;
        if (json_object_object_get_ex(answer, "code", &number) &&
            json_object_is_type(number, json_type_int))
            code = known_code(json_object_get_int64(number));
        client_printable("polluxd said no and not why; see its log", c->why, sizeof(c->why));
        if (json_object_object_get_ex(answer, "error", &error) &&
            json_object_is_type(error, json_type_string))
            client_printable(json_object_get_string(error), c->why, sizeof(c->why));
    } else {
        *ret_answer = answer;
        return CODE_GOOD;
    }
    json_object_put(answer);
    return code;
}
