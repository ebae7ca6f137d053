/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qmp.h - talk to one QEMU over QMP, without doing any I/O
 *
 * Owns the protocol: handshake, command ids, replies, events, deadlines. Never reads or writes a
 * socket, never reads a clock, never blocks, never logs, never keeps global state. The caller moves
 * the bytes by whatever means it has (poll, io_uring, a blocking loop: qmp_sync.h is one) and says
 * what time it is. Any monotonic clock in nanoseconds will do.
 *
 * One turn of a caller's loop:
 *
 *     bytes came       while (len > 0 && (n = qmp_feed(c, p, len)) >= 0) {
 *                          p += n; len -= n;
 *                          while (qmp_next(c, &m) == 1) { ...; qmp_message_fini(&m); }
 *                      }
 *     socket ended     qmp_closed(c, 0 or -errno)
 *     time passed      qmp_expire(c, now)          wake up again at qmp_next_deadline(c)
 *     can write        while (qmp_output(c, &p, &len, &fd) == 1) {
 *                          n = send p, with fd as SCM_RIGHTS if fd >= 0;
 *                          qmp_output_done(c, n);
 *                      }
 *     after any of it  qmp_next() until it returns 0
 *
 * What holds, whatever QEMU sends:
 *  - Each accepted command ends in exactly one QMP_REPLY or QMP_ERROR with its id: from QEMU, from
 * its deadline, or from the end of the connection.
 *  - After the connection has ended, for whatever reason, QMP_CLOSED is the last message, once.
 *  - Memory is bounded: see the limits below. A message over a limit ends the connection
 * (-EMSGSIZE), as does anything that is not QMP (-EPROTO).
 *  - Replies with an id that is not waited for (unknown, or answered already) are dropped and
 * counted, as the QMP specification asks.
 *
 * Facts about QEMU worth knowing (10.0):
 *  - A QMP unix socket serves one client at a time. A second one connects and is simply not
 * greeted: the handshake deadline then ends it with -EBUSY.
 *  - Without out-of-band execution, which this client leaves off, QEMU reads the next command only
 * when it has answered the one before; so several descriptors may be on their way at once.
 *  - QEMU clears O_NONBLOCK on each descriptor it is passed, which is a property of the open file
 * and so shared with the sender: an eventfd passed with getfd becomes a blocking one for both
 * sides.
 *  - QEMU stops reading a command at its last brace. When it then exits (quit), our line end is
 * unread and the socket ends in ECONNRESET instead of an end of file: take -EPIPE and -ECONNRESET
 * alike.
 *  - QEMU never sends descriptors. Receive without a control buffer (read, recv) and the kernel
 * discards any that come.
 *
 * Not thread-safe; different clients are independent of each other.
 */
#ifndef QMP_CLIENT_QMP_H
#define QMP_CLIENT_QMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

struct json_object;
struct qmp_client;

/* Limits. Each is far above what QEMU needs; query-qmp-schema, its biggest reply, has 0.2 MB. */
enum {
    QMP_MESSAGE_MAX_BYTES = 4 << 20, /* text of one message from QEMU */
    QMP_MESSAGE_MAX_COST = 64 << 20, /* estimated memory of one message once parsed, bytes */
    QMP_MESSAGE_MAX_DEPTH = 256,     /* nested arrays and objects */
    QMP_COMMAND_MAX_BYTES = 1 << 20, /* text of one command */
    QMP_IN_FLIGHT_MAX = 64,          /* commands not yet answered by QEMU, expired ones included */
    QMP_WAITING_MAX = 64,            /* parsed messages not yet taken with qmp_next() */
};

enum qmp_type {
    QMP_READY,  /* version. Commands are accepted from here on. An event may come just before. */
    QMP_REPLY,  /* id, data (what the command returned) */
    QMP_ERROR,  /* id, error, name (class), desc */
    QMP_EVENT,  /* name, data (or NULL), timestamp_us */
    QMP_CLOSED, /* error, desc. The last message. */
    QMP_TYPE_NUM
};

struct qmp_version {
    int major, minor, micro;
    char package[64]; /* the distributor's version text, cut to fit; may be empty */
};

/*
 * What qmp_next() hands out. Only the fields named beside the type above are meaningful.
 *
 * error of a QMP_ERROR: -EREMOTEIO QEMU refused or failed the command (class and desc are QEMU's);
 * -ETIMEDOUT with class "Deadline": it passed; else class "Closed": why the connection ended.
 * error of QMP_CLOSED: why the connection ended, see qmp_error().
 */
struct qmp_message {
    enum qmp_type type;
    uint64_t id;
    int error;                         /* see below */
    const char *name;                  /* valid until qmp_message_fini(), as desc and data are */
    const char *desc;                  /* for people; never NULL in QMP_ERROR and QMP_CLOSED */
    struct json_object *data;          /* take a reference (json_object_get) to keep it longer */
    int64_t timestamp_us;              /* since 1970 by QEMU's clock; -1 if it did not say */
    const struct qmp_version *version; /* valid as long as the client */
    struct json_object *root;          /* private: what the pointers above point into */
    size_t cost;                       /* estimated memory of it, for a queue that wants a bound */
};

struct qmp_counters {
    uint64_t replies; /* replies and errors matched to a command in time */
    uint64_t events;
    uint64_t late;    /* answers to commands whose deadline had passed; dropped */
    uint64_t unknown; /* answers with no id, an unknown id or an answered one; dropped */
    uint64_t expired; /* commands whose deadline passed */
};

/**
 * Make a client that expects a greeting.
 *
 * @param deadline_ns when the handshake must be done, on the caller's clock; less than INT64_MAX
 * @param ret_client the new client, to be freed with qmp_free()
 * @return 0; -EINVAL for an endless deadline; -ENOMEM
 */
int qmp_new(int64_t deadline_ns, struct qmp_client **ret_client);

/**
 * Free a client and whatever it holds. Bytes lent by qmp_output() are freed too: end a write that
 * still uses them first.
 *
 * @param client may be NULL
 */
void qmp_free(struct qmp_client *client);

/**
 * Take bytes received from QEMU, in pieces of any size.
 *
 * Stops early when enough messages wait to be taken: take them with qmp_next() and feed the rest.
 * If messages are taken after every call it never returns 0 for len > 0.
 *
 * @param client the client
 * @param bytes what was received
 * @param len how many bytes; 0 is allowed and is not an end of file (qmp_closed() is)
 * @return bytes consumed, 0..len; -EPROTO, -EMSGSIZE or -ENOMEM when the input ends the connection,
 * and the reason it ended on any later call. Messages that came before are still handed out.
 */
ssize_t qmp_feed(struct qmp_client *client, const void *bytes, size_t len);

/**
 * Take the next message.
 *
 * @param client the client
 * @param ret_message filled in if there is one; to be given to qmp_message_fini()
 * @return 1 if there was one, 0 if not
 */
int qmp_next(struct qmp_client *client, struct qmp_message *ret_message);

/**
 * Release what a message holds.
 *
 * @param message from qmp_next(), or zeroed; zeroed afterwards
 */
void qmp_message_fini(struct qmp_message *message);

/**
 * Queue a command.
 *
 * A command that has not begun to leave when its deadline passes is never sent. One that has may
 * still be executed by QEMU: its late answer is dropped, and until it comes the command counts as
 * in flight.
 *
 * @param client a client that is READY
 * @param name the command, as in QEMU's QMP reference
 * @param args its arguments, a JSON object, or NULL for none. The reference is consumed, on errors
 * too.
 * @param fd descriptor to pass with the command's first byte, or -1. It is duplicated
 * (close-on-exec): the caller may close its own at once. The duplicate is closed when it was sent,
 * or never will be.
 * @param deadline_ns when it must have been answered, on the caller's clock; less than INT64_MAX
 * @param ret_id identifies the answer; never 0, never used twice by one client; may be NULL
 * @return 0; -EAGAIN not READY yet; -EBUSY QMP_IN_FLIGHT_MAX commands are in flight; -EINVAL empty
 * name, arguments that are not an object or not valid UTF-8, or no deadline; -E2BIG command too
 * long; -EBADF, -EMFILE the descriptor cannot be duplicated; -ENOMEM; or why the connection ended
 */
int qmp_command(struct qmp_client *client, const char *name, struct json_object *args, int fd,
                int64_t deadline_ns, uint64_t *ret_id);

/**
 * What to write next: part of one command, never of two.
 *
 * The bytes stay where they are until qmp_output_done(), whatever else is called except qmp_free(),
 * so an asynchronous write may use them. Called again before that, it answers the same.
 *
 * @param client the client
 * @param ret_bytes what to write
 * @param ret_len how many bytes, at least 1
 * @param ret_fd descriptor to pass with the first of them (SCM_RIGHTS), or -1; the client keeps
 * owning it
 * @return 1 if there is something to write, 0 if not
 */
int qmp_output(struct qmp_client *client, const void **ret_bytes, size_t *ret_len, int *ret_fd);

/* Room for sendmsg's arguments, for qmp_output_msg(). Must not move while the write goes on. */
struct qmp_output_msg {
    struct msghdr msg;
    struct iovec iov;
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
};

/**
 * qmp_output() in the form that sendmsg and IORING_OP_SENDMSG take. Send with MSG_NOSIGNAL.
 *
 * @param client the client
 * @param ret_out its msg is ready to be sent
 * @return 1 if there is something to write, 0 if not
 */
int qmp_output_msg(struct qmp_client *client, struct qmp_output_msg *ret_out);

/**
 * Say how much of the last qmp_output() was written.
 *
 * @param client the client
 * @param len bytes written; 0 if the write was given up (it may then be offered again)
 * @return 0; -EINVAL if nothing was lent or not that much
 */
int qmp_output_done(struct qmp_client *client, size_t len);

/**
 * Fail what is overdue. A handshake that is overdue ends the connection: with -EBUSY if not a byte
 * came (another client holds the socket?), else with -ETIMEDOUT.
 *
 * @param client the client
 * @param now_ns the time on the caller's clock
 * @return how many deadlines had passed
 */
int qmp_expire(struct qmp_client *client, int64_t now_ns);

/**
 * When qmp_expire() next has something to do.
 *
 * @param client the client
 * @return a time on the caller's clock; INT64_MAX if nothing is waited for
 */
int64_t qmp_next_deadline(const struct qmp_client *client);

/**
 * Say that the connection ended. Commands in flight fail once each, then QMP_CLOSED follows. Has no
 * effect if it had ended before.
 *
 * @param client the client
 * @param error 0 at an end of file, which counts as -EPIPE; else a negative errno, such as
 * -ECONNRESET
 */
void qmp_closed(struct qmp_client *client, int error);

/**
 * Why the connection ended.
 *
 * @param client the client
 * @return 0 if it has not; -EPIPE QEMU closed it; -EBUSY no greeting; -ETIMEDOUT handshake not
 * finished; -EPROTO not QMP; -EMSGSIZE over a limit; -ENOMEM; or what qmp_closed() was given
 */
int qmp_error(const struct qmp_client *client);

/**
 * @param client the client
 * @return what was counted so far; valid as long as the client
 */
const struct qmp_counters *qmp_counters(const struct qmp_client *client);

#endif
