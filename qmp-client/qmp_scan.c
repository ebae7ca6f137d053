/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qmp_scan.c - where one JSON object ends in a stream, and whether it is worth parsing
 *
 * Owns the bounds on what is parsed. Never allocates, never looks at a byte twice.
 */
#include "qmp_scan.h"

#include <errno.h>
#include <string.h>

#include "qmp.h"

/* json-c 0.16 on 64 bits: an empty object is 0.8 KB (16 hash slots), a member with a number about
 * 0.2 KB */
#define COST_CONTAINER 1024
#define COST_VALUE 256

/* The longest number QEMU prints has 24 characters. json-c rescans a number at each new piece. */
#define WORD_MAX 64

bool qmp_scan_is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Unicode 15, table 3-7: no overlong forms, no surrogates, nothing past U+10FFFF */
static int scan_utf8(struct qmp_scan *s, uint8_t c)
{
    if (s->utf8_left) {
        if (c < s->utf8_min || c > s->utf8_max)
            return -EPROTO;
        s->utf8_left--;
        s->utf8_min = 0x80;
        s->utf8_max = 0xbf;
        return 0;
    }
    if (c < 0x80)
        return 0;
    if (c < 0xc2 || c > 0xf4)
        return -EPROTO;
    s->utf8_left = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
    s->utf8_min = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    s->utf8_max = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    return 0;
}

static int scan_in_string(struct qmp_scan *s, uint8_t c)
{
    if (c < 0x20)
        return -EPROTO;
    if (s->utf8_left || c >= 0x80) {
        if (s->escaped)
            return -EPROTO;
        return scan_utf8(s, c);
    }
    if (s->escaped)
        s->escaped = false;
    else if (c == '\\')
        s->escaped = true;
    else if (c == '"')
        s->in_string = false;
    return 0;
}

/* @return 1 at the bracket that closes the message, else 0 or -errno */
static int scan_outside_string(struct qmp_scan *s, uint8_t c)
{
    bool ended = false;

    switch (c) {
    case '{':
    case '[':
        if (++s->depth > QMP_MESSAGE_MAX_DEPTH)
            return -EMSGSIZE;
        s->cost += COST_CONTAINER;
        break;
    case '}':
    case ']':
        ended = --s->depth == 0;
        break;
    case ',':
        s->cost += COST_VALUE;
        break;
    case '"':
        s->in_string = true;
        break;
    case ':':
    case ' ':
    case '\t':
    case '\r':
    case '\n':
        break;
    default:
        /* numbers, true, false, null: json-c would also take NaN, Infinity and comments */
        if (!strchr("0123456789+-.eEtrufalsn", c) || c == '\0' || ++s->word > WORD_MAX)
            return -EPROTO;
        return 0;
    }
    s->word = 0;
    return ended;
}

int qmp_scan(struct qmp_scan *scan, const char *bytes, size_t len, size_t *ret_used)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t c = (uint8_t)bytes[i];
        int r;

        if (!scan->depth && c != '{')
            return -EPROTO;
        scan->size++;
        scan->cost++;
        r = scan->in_string ? scan_in_string(scan, c) : scan_outside_string(scan, c);
        if (r < 0)
            return r;
        if (scan->size > QMP_MESSAGE_MAX_BYTES || scan->cost > QMP_MESSAGE_MAX_COST)
            return -EMSGSIZE;
        if (r == 1) {
            *ret_used = i + 1;
            return 1;
        }
    }
    *ret_used = len;
    return 0;
}
