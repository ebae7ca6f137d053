/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * keyfile.h - small files that must never be half written: key=value lines under a checksum
 *
 * The state file of polluxd and the registers of the witness. A file is text, so that an operator can
 * read it:
 *
 *     TITLE                  what it is, and the version of its format
 *     key=value              each key of the table exactly once, in the table's order
 *     checksum=16 hex digits XXH64, seed 0, over every byte before this line
 *
 * It is replaced whole: temporary file, fsync, rename, fsync of the directory. A crash at any instant
 * leaves the old file or the new one. So a file whose checksum is wrong is never the trace of a crash,
 * and is refused with a sentence rather than guessed at.
 *
 * Owns the format and the order of the system calls. Never logs, never makes up a value.
 */
#ifndef POLLUX_KEYFILE_H
#define POLLUX_KEYFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define KEYFILE_MAX_BYTES 2048 /* of a whole file */
#define KEYFILE_WHY_BYTES 256  /* of an error text */

enum keyfile_type {
    KEYFILE_U64,     /* decimal */
    KEYFILE_BYTES16, /* 16 bytes as 32 hex digits */
    KEYFILE_TEXT,    /* printable ASCII, no space at either end; may be empty */
    KEYFILE_CHOICE, /* one word of a list, kept as its position: in an unsigned, or in a bool if size is 1 */
};

/** One line of the file and where it lives in the structure. */
struct keyfile_field {
    const char *key;
    enum keyfile_type type;
    size_t offset;
    size_t size;                /* of the member; TEXT: with the final NUL */
    const char *const *choices; /* CHOICE: ended by NULL */
};

/** Description of one kind of file. */
struct keyfile_schema {
    const char *title; /* first line */
    const struct keyfile_field *fields;
    size_t nr_fields;
};

/**
 * Write a structure as text.
 * @param schema  of the file
 * @param object  the structure
 * @param buf     where to
 * @param cap     bytes there
 * @return bytes written (no NUL); -EINVAL for a value that the format cannot hold; -ENOSPC
 */
ssize_t keyfile_format(const struct keyfile_schema *schema, const void *object, char *buf,
                       size_t cap);

/**
 * Read the text of a whole file; every byte is checked.
 * @param schema      of the file
 * @param text        any bytes
 * @param len         how many
 * @param ret_object  written only on success, and only the members in the schema
 * @param ret_why     written only on error: what is wrong, without the file's name
 * @return 0 or -EPROTO
 */
int keyfile_parse(const struct keyfile_schema *schema, const char *text, size_t len,
                  void *ret_object, char ret_why[KEYFILE_WHY_BYTES]);

/**
 * Read a whole file.
 * @param dirfd    its directory
 * @param name     its name there
 * @param ret_buf  KEYFILE_MAX_BYTES
 * @return bytes; -ENOENT; -EFBIG if it is longer than any such file; another -errno. A symbolic link
 *         or anything that is not a plain file is -EINVAL.
 */
ssize_t keyfile_read(int dirfd, const char *name, char *ret_buf);

/**
 * Replace a file so that it survives a crash at any instant. Blocks until it is on disk. The temporary
 * file is ".NAME.new"; one writer per name, the caller's lock sees to that.
 * @param dirfd       its directory
 * @param name        at most 200 bytes
 * @param text        the new content
 * @param len         bytes
 * @param ret_unsure  written always: true if it failed after the rename, so that nobody knows which of
 *                    the two a power cut would leave. false with an error: the old file is untouched.
 * @return 0 or -errno
 */
int keyfile_write(int dirfd, const char *name, const char *text, size_t len, bool *ret_unsure);

/** Write nr bytes as 2 * nr hex digits and a NUL. */
void keyfile_hex(const uint8_t *bytes, size_t nr, char *ret);

#endif
