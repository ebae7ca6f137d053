/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qmp_scan.h - where one JSON object ends in a stream, and whether it is worth parsing
 *
 * Private to qmp-client. Looks at each byte once, in pieces of any size, before json-c sees it:
 * json-c bounds only depth, checks UTF-8 wrongly across pieces, and takes `{}` to almost a kilobyte
 * of memory.
 */
#ifndef QMP_CLIENT_QMP_SCAN_H
#define QMP_CLIENT_QMP_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Zeroed = at the start of a message. */
struct qmp_scan {
    size_t size;        /* bytes of this message so far */
    size_t cost;        /* estimated memory when parsed, bytes */
    unsigned int depth; /* open arrays and objects */
    unsigned int word;  /* length of the number or word we are in */
    bool in_string, escaped;
    uint8_t utf8_left;          /* continuation bytes still to come ... */
    uint8_t utf8_min, utf8_max; /* ... and what the next one may be */
};

/**
 * Go over the next bytes of a message.
 *
 * @param scan zeroed before the first byte; zero it again after an end or an error
 * @param bytes the next bytes; the message's first must be '{' (skip white space before it)
 * @param len how many
 * @param ret_used how many belong to this message (all of them unless it ended)
 * @return 1 the object ended, 0 more is needed, -EPROTO not a JSON object in UTF-8, -EMSGSIZE over
 * a limit of qmp.h. Balanced brackets and valid strings are all it vouches for; the parser does the
 * rest.
 */
int qmp_scan(struct qmp_scan *scan, const char *bytes, size_t len, size_t *ret_used);

/**
 * @param c a byte
 * @return whether JSON allows it between tokens
 */
bool qmp_scan_is_space(char c);

#endif
