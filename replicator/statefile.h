/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * statefile.h - what one polluxd must remember across restarts, in its state directory
 *
 * Owns: the directory's lock (one polluxd for a VM on a host) and the file "state" in it. Its format and
 * its survival of crashes are keyfile.h's.
 */
#ifndef POLLUX_STATEFILE_H
#define POLLUX_STATEFILE_H

#include <stdbool.h>

#include "session.h"

#define STATEFILE_WHY_BYTES 768
#define STATEFILE_PEER_BYTES 64

struct statefile {
    int dirfd, lockfd; /* -1: not open */
    char dir[256];
};

struct statefile_contents {
    uint8_t instance[16]; /* who this side is: random, made once */
    struct session_persist persist;
    bool paired;
    char peer[STATEFILE_PEER_BYTES]; /* "HOST:PORT", empty while not paired */
};

/**
 * Make the directory if it is missing (mode 0700, parents must exist), open and lock it.
 * @param dir       path
 * @param ret_file  written on success
 * @param ret_why   STATEFILE_WHY_BYTES; on error: what is wrong and what to do
 * @return 0; -EWOULDBLOCK another polluxd has it; or -errno
 */
int statefile_open(const char *dir, struct statefile *ret_file, char *ret_why);

/** Unlock and close. Harmless twice. */
void statefile_close(struct statefile *file);

/**
 * Read and check the file.
 * @return 0; -ENOENT: there is none (a new VM); -EPROTO a file that cannot be trusted; or -errno
 */
int statefile_load(const struct statefile *file, struct statefile_contents *ret_contents, char *ret_why);

/** Replace the file. Blocks until it is on disk. @return 0 or -errno, the file is then the old one or unsure */
int statefile_save(const struct statefile *file, const struct statefile_contents *contents, char *ret_why);

#endif
