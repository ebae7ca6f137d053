/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server.h - the witness's clients: one thread, one poll loop, every table bounded
 *
 * A client sends ARB_ASK records and gets one ARB_ANSWER for each, in order (docs/PROTOCOL.md, "Arbiter").
 * A client that breaks a rule, sends half a record and stops, does not take its answers, or is silent for
 * too long is closed. When all places are taken, the one that has been silent longest makes room,
 * if that is longer than any polluxd stays silent.
 *
 * A CAS blocks the loop for the time of its fsync: grants are as rare as failovers, and one after the other
 * is what makes them simple to trust.
 */
#ifndef POLLUX_WITNESS_SERVER_H
#define POLLUX_WITNESS_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "../replicator/histogram.h"
#include "../replicator/wire.h"
#include "../common/log.h"
#include "registers.h"

#define SERVER_CLIENTS_MAX 256
#define SERVER_LISTEN_MAX 8
#define SERVER_NAME_BYTES 64

struct server_client {
    int fd; /* -1: free */
    struct wire_reader reader;
    struct wire_writer writer;
    size_t out_len;               /* answers not yet sent */
    int64_t heard_ns;             /* last complete ask, or the accept */
    int64_t part_ns;              /* since when part of a record is there; 0: none */
    int64_t blocked_ns;           /* since when answers wait for the client to take them; 0: none */
    char name[SERVER_NAME_BYTES]; /* address and port */
    _Alignas(8) uint8_t in[1024]; /* several asks */
    uint8_t out[4 * 160];         /* four answers */
};

struct server_config {
    int64_t silent_ns; /* a client without a complete ask for this long is closed */
    int64_t slow_ns;   /* one that leaves a record or an answer half way for this long, too */
};

struct server_counts {
    uint64_t accepted, turned_away, closed_slow, closed_broken;
    uint64_t reads, granted, refused, errors;
};

struct server {
    struct server_config config;
    struct registers *registers;
    int signal_fd; /* SIGTERM, SIGINT: end; SIGUSR1: print counts */
    int listen_fd[SERVER_LISTEN_MAX];
    unsigned nr_listen;
    int64_t accept_at_ns; /* no new clients before: accept() failed */
    struct server_counts counts;
    struct histogram fsync_us; /* of CAS that were written */
    struct log_limit broken, turned, slow, refusals, failures;
    struct server_client clients[SERVER_CLIENTS_MAX];
};

/** Make it empty; the caller has opened the registers and the signal descriptor. */
void server_init(struct server *s, const struct server_config *config, struct registers *registers,
                 int signal_fd);

/**
 * Listen on one more address.
 * @param s         the server
 * @param address   of a socket
 * @param len       of it
 * @param dual      an IPv6 socket takes IPv4 clients too
 * @param ret_name  the address as bound, with the port the kernel chose for port 0
 * @return 0 or -errno; -ENOSPC for more than SERVER_LISTEN_MAX
 */
int server_listen(struct server *s, const struct sockaddr *address, socklen_t len, bool dual,
                  char ret_name[SERVER_NAME_BYTES]);

/** Write an address as "1.2.3.4:7461" or "[::1]:7461". */
void server_name(const struct sockaddr *address, socklen_t len, char ret[SERVER_NAME_BYTES]);

/**
 * Serve until a signal says to end.
 * @param s  the server
 * @return 0 told to end; -EIO the disk failed in a way that leaves a register unknown; another -errno
 */
int server_run(struct server *s);

/** Close everything it opened, not the registers. */
void server_fini(struct server *s);

#endif
