/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qmp_sync.h - a QMP connection that blocks, with a deadline on every call
 *
 * For tools and tests: owns a socket and a client of qmp.h, and reads the clock (CLOCK_MONOTONIC).
 * A daemon with a loop of its own uses qmp.h directly. Never logs; never raises SIGPIPE. Not
 * thread-safe.
 *
 *     struct qmp_sync *q;
 *     struct json_object *status;
 *     int r = qmp_sync_connect("/run/vm.qmp", 1000, &q);      -EBUSY: another client holds the
 * socket? if (!r) r = qmp_sync_command(q, "query-status", NULL, -1, 1000, &status); if (r ==
 * -EREMOTEIO) puts(qmp_sync_error(q));                            what QEMU said
 */
#ifndef QMP_CLIENT_QMP_SYNC_H
#define QMP_CLIENT_QMP_SYNC_H

#include <stdint.h>

#include "qmp.h"

struct qmp_sync;

enum {
    QMP_SYNC_EVENTS_MAX = 256, /* events kept for qmp_sync_wait_event(); the oldest go first */
    QMP_SYNC_EVENTS_MAX_COST = 64 << 20, /* and their estimated memory, bytes */
};

/**
 * Connect to QEMU's QMP unix socket and finish the handshake.
 *
 * @param path the socket
 * @param timeout_ms for all of it, 0 or more
 * @param ret_sync the connection, to be ended with qmp_sync_close()
 * @return 0; -EBUSY connected but not greeted in time: another client holds the socket (or QEMU
 * hangs); -ETIMEDOUT greeted, but the handshake was not finished; -ENOENT, -ECONNREFUSED no QEMU
 * there; -ENAMETOOLONG; -EINVAL; -EPROTO, -EMSGSIZE it does not speak QMP; -EPIPE it closed the
 * connection
 */
int qmp_sync_connect(const char *path, int timeout_ms, struct qmp_sync **ret_sync);

/**
 * The same on a connected stream socket, such as one end of a socketpair given to QEMU.
 *
 * @param fd the socket; owned by the result on success, untouched on an error
 * @param timeout_ms for the handshake, 0 or more
 * @param ret_sync the connection, to be ended with qmp_sync_close()
 * @return as qmp_sync_connect()
 */
int qmp_sync_attach(int fd, int timeout_ms, struct qmp_sync **ret_sync);

/**
 * End the connection and free it.
 *
 * @param sync may be NULL
 */
void qmp_sync_close(struct qmp_sync *sync);

/**
 * Run one command and wait for its answer. Events that come meanwhile are kept.
 *
 * @param sync the connection; still usable after -EREMOTEIO and -ETIMEDOUT
 * @param name the command
 * @param args its arguments or NULL; the reference is consumed, on errors too
 * @param fd descriptor to pass with it (getfd, add-fd), or -1; stays the caller's
 * @param timeout_ms 0 or more
 * @param ret_data what the command returned, a reference of the caller's (NULL for a JSON null);
 * may be NULL
 * @return 0; -EREMOTEIO QEMU refused or failed it; -ETIMEDOUT no answer in time (QEMU may still
 * execute it); or as qmp_command(). qmp_sync_error() has the words.
 */
int qmp_sync_command(struct qmp_sync *sync, const char *name, struct json_object *args, int fd,
                     int timeout_ms, struct json_object **ret_data);

/**
 * Take an event: the oldest of that name that was kept, else wait for one. Others stay kept.
 *
 * @param sync the connection
 * @param name the event, or NULL for any
 * @param timeout_ms 0 or more; 0 takes what has already been received
 * @param ret_event to be given to qmp_message_fini()
 * @return 0; -ETIMEDOUT none in time; else why the connection ended
 */
int qmp_sync_wait_event(struct qmp_sync *sync, const char *name, int timeout_ms,
                        struct qmp_message *ret_event);

/**
 * @param sync the connection
 * @return words for the last call that failed, "CLASS: description"; empty if none did; valid until
 * the next call
 */
const char *qmp_sync_error(const struct qmp_sync *sync);

/**
 * @param sync the connection
 * @return QEMU's version, from its greeting
 */
const struct qmp_version *qmp_sync_version(const struct qmp_sync *sync);

/**
 * @param sync the connection
 * @return events dropped because nobody waited for them
 */
uint64_t qmp_sync_dropped(const struct qmp_sync *sync);

/**
 * @param sync the connection
 * @return the counters of its client
 */
const struct qmp_counters *qmp_sync_counters(const struct qmp_sync *sync);

#endif
