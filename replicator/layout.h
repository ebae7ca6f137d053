/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * layout.h - the text in LAYOUT records: what two guests must have in common
 *
 * Owns the text's grammar (docs/PROTOCOL.md: sorted lines of key=value) and how a difference is told to an
 * operator. Does not know where the values come from. Never does I/O, logs or keeps state.
 */
#ifndef POLLUX_LAYOUT_H
#define POLLUX_LAYOUT_H

#include <stddef.h>
#include <sys/types.h>

#define LAYOUT_MAX_BYTES 262144u
#define LAYOUT_DIFFERENCES_MAX 10 /* told; all are counted */

/** One line; neither part is ended by NUL. */
struct layout_line {
    const char *key; /* printable UTF-8, at least one byte, no '=' */
    size_t key_len;
    const char *value; /* printable UTF-8, may be empty, may hold '=' */
    size_t value_len;
};

/** Walks over a text and checks it on the way. */
struct layout_iter {
    const char *text;
    size_t len;
    size_t pos;
    struct layout_line last; /* to compare the next key with; key NULL before the first */
};

/**
 * Begin a walk.
 * @param it    caller's memory
 * @param text  a LAYOUT payload with its padding, or a text without
 * @param len   bytes
 */
void layout_iter_init(struct layout_iter *it, const void *text, size_t len);

/**
 * Take the next line.
 * @param it        the walk
 * @param ret_line  written when 1 is returned; points into the text
 * @param ret_why   set on -EPROTO: the broken rule, a constant sentence
 * @return 1 a line; 0 the end, padding checked too; -EPROTO
 */
int layout_next(struct layout_iter *it, struct layout_line *ret_line, const char **ret_why);

/**
 * Check a whole text.
 * @param text     as for layout_iter_init
 * @param len      bytes
 * @param ret_why  set on -EPROTO
 * @return number of lines, or -EPROTO
 */
int layout_check(const void *text, size_t len, const char **ret_why);

/**
 * Sort lines and write them as a text.
 * @param lines  sorted in place
 * @param nr     how many
 * @param ret    the text, no NUL and no padding (wire_put pads)
 * @param cap    bytes there
 * @return bytes of the text; -EINVAL for a key twice, or a line that the grammar does not allow; -ENOSPC if it does
 *         not fit in cap or in LAYOUT_MAX_BYTES
 */
ssize_t layout_build(struct layout_line *lines, size_t nr, char *ret, size_t cap);

/**
 * Say in an operator's words how two layouts differ: the first LAYOUT_DIFFERENCES_MAX of them, divided by "; ", then
 * how many more there are. Long names and values are cut.
 * @param here      our text
 * @param here_len  bytes, with or without padding
 * @param there     the peer's
 * @param there_len likewise
 * @param ret_text  NUL-terminated printable UTF-8, empty if they are equal; written unless -EPROTO is returned
 * @param cap       bytes there, at least 1; WIRE_TEXT_MAX_BYTES + 1 holds whatever can be told
 * @param ret_why   set on -EPROTO
 * @return number of differences, 0 for equal; -EPROTO if one of them breaks a rule
 */
int layout_diff(const void *here, size_t here_len, const void *there, size_t there_len, char *ret_text,
                size_t cap, const char **ret_why);

#endif
