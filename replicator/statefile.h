/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * statefile.h - what polluxd must still know after it was killed: one small file in its state directory
 *
 * DIR/state, as keyfile.h describes. The directory belongs to one polluxd of one VM: it is locked as long
 * as the file is open. A file that is damaged is refused, never guessed at: it says whether this side may
 * run the guest alone.
 *
 * Owns the directory's lock and the words of its errors. Blocks on the disk; never logs.
 */
#ifndef POLLUX_STATEFILE_H
#define POLLUX_STATEFILE_H

#include <stdbool.h>
#include <stdint.h>

#include "session.h"
#include "wire-format.h"

#define STATEFILE_PEER_BYTES 64
#define STATEFILE_DIR_BYTES 512
#define STATEFILE_WHY_BYTES 1024

struct statefile_contents {
    char vm[WIRE_VM_BYTES]; /* whose state this is: a directory given to another VM's polluxd is noticed */
    struct session_persist persist;
    uint8_t instance[16];            /* who this side is; random, never all zero */
    char peer[STATEFILE_PEER_BYTES]; /* "host:port" of the other side, empty if none */
    bool paired;
};

/** An open, locked state directory; may be copied, and one of the copies closed. */
struct statefile {
    int dirfd; /* -1: none */
    char dir[STATEFILE_DIR_BYTES];
};

/**
 * Open the state directory and lock it. It is made (0700) if only its last part is missing.
 * @param dir       path
 * @param ret_file  written on success
 * @param ret_why   on error: a sentence that names the path and says what to do, STATEFILE_WHY_BYTES
 * @return 0; -EBUSY another polluxd has it; -EROFS or -EACCES it cannot be written to; another -errno
 */
int statefile_open(const char *dir, struct statefile *ret_file, char *ret_why);

/**
 * Read and check the file.
 * @param file          open
 * @param ret_contents  written on success
 * @param ret_why       on error other than -ENOENT, as above
 * @return 0; -ENOENT there is none yet; -EPROTO damaged, of another version or too long; another -errno
 */
int statefile_load(const struct statefile *file, struct statefile_contents *ret_contents,
                   char *ret_why);

/**
 * Replace the file; returns when it is on disk.
 * @param file      open
 * @param contents  all of it
 * @param ret_why   on error, as above
 * @return 0; -EINVAL for contents that cannot be kept (mistake of ours); another -errno. In both cases the
 *         old file is untouched, except after -EIO: then it may be either one, and the sentence says so.
 */
int statefile_save(const struct statefile *file, const struct statefile_contents *contents,
                   char *ret_why);

/** Unlock and close; legal again and after a failed open. */
void statefile_close(struct statefile *file);

#endif
