/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pollux_client.h - the CLI's end of the control socket (docs/CONTROL.md): lines of JSON with deadlines
 *
 * Nothing that answers is trusted to be polluxd: lines are bounded, parsed strictly, and text is made fit for
 * a terminal before it is shown. Errors come with a sentence that says what to do, and as the CLI's exit code.
 */
#ifndef POLLUX_POLLUX_CLIENT_H
#define POLLUX_POLLUX_CLIENT_H

#include <json-c/json.h>
#include <stddef.h>
#include <stdint.h>

#define CLIENT_LINE_BYTES 65536 /* with the newline, in both directions */
#define CLIENT_WHY_BYTES 600
#define CLIENT_FOREVER INT64_MAX

/** Exit codes of the CLI, and codes in the daemon's errors. */
enum client_code {
    CODE_GOOD = 0,
    CODE_FAILED = 1,
    CODE_USAGE = 64,
    CODE_UNAVAILABLE = 69,
    CODE_CONFIG = 78,
    CODE_NO_QUORUM = 106,
    CODE_NEEDS_FORCE = 107,
    CODE_TIMEOUT = 124,
};

struct client {
    int fd;
    const char *path;           /* of the socket, for messages */
    char *buf;                  /* CLIENT_LINE_BYTES */
    size_t len, used;           /* received; of that, given out */
    char why[CLIENT_WHY_BYTES]; /* after a code other than CODE_GOOD */
};

/** @return monotonic time in ns */
int64_t client_now_ns(void);

/**
 * Connect to a control socket.
 * @param c     to fill; client_close() it also after an error
 * @param path  of the socket, kept
 * @return an exit code; CODE_GOOD, or c->why says what to do
 */
int client_open(struct client *c, const char *path);

/** Close; legal again. */
void client_close(struct client *c);

/**
 * Send a command and take its answer.
 * @param c            open
 * @param request      consumed
 * @param deadline_ns  monotonic
 * @param ret_answer   on CODE_GOOD: the whole answer, "ok" is true in it; caller puts it
 * @return an exit code; the daemon's own if it said no
 */
int client_call(struct client *c, struct json_object *request, int64_t deadline_ns,
                struct json_object **ret_answer);

/**
 * Take the next object that the daemon sends (events).
 * @param c            open
 * @param deadline_ns  monotonic, or CLIENT_FOREVER
 * @param ret          on CODE_GOOD: an object; caller puts it
 * @return an exit code
 */
int client_next(struct client *c, int64_t deadline_ns, struct json_object **ret);

/**
 * Make text fit for a terminal: what is not printable UTF-8 becomes '?'.
 * @param text  any
 * @param ret   where to, always ended by NUL
 * @param cap   bytes there
 * @return ret
 */
const char *client_printable(const char *text, char *ret, size_t cap);

#endif
