/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * json_strict.c - one whole JSON text, parsed strictly, by every version of json-c alike
 */
#include "json_strict.h"

#include <json-c/json.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define UNIT_BYTES 6 /* \uXXXX; at most three for each byte that it replaces: 2 -> 6, 3 -> 6, 4 -> 12 */

struct json_tokener *json_strict_new(int depth)
{
    struct json_tokener *tokener = json_tokener_new_ex(depth);

    if (tokener)
        json_tokener_set_flags(tokener, JSON_TOKENER_STRICT);
    return tokener;
}

/* One character of UTF-8 (RFC 3629, section 4). @return its length in bytes, 0 if it is none */
static size_t decode(const uint8_t *p, size_t len, uint32_t *ret_code)
{
    size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    uint32_t code = n == 1 ? p[0] : p[0] & (0x7fu >> n);

    if (n > len || (n > 1 && p[0] < 0xc2) || p[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (p[i] & 0x3f);
    }
    if (code < least[n] || (code >= 0xd800 && code < 0xe000) || code > 0x10ffff)
        return 0;
    *ret_code = code;
    return n;
}

/* @return the text with \u escapes, to be freed; NULL if it is no UTF-8 or there is no memory */
static char *to_ascii(const char *text, size_t len, size_t *ret_len)
{
    char *out = malloc(3 * len + 1), *to = out;

    for (size_t i = 0, n; out && i < len; i += n) {
        uint32_t code = 0;

        n = decode((const uint8_t *)text + i, len - i, &code);
        if (n == 0) {
            free(out);
            return NULL;
        }
        if (n == 1) {
            *to++ = text[i];
        } else if (code < 0x10000) {
            to += snprintf(to, UNIT_BYTES + 1, "\\u%04x", (unsigned)code);
        } else {
            code -= 0x10000;
            to += snprintf(to, UNIT_BYTES + 1, "\\u%04x", (unsigned)(0xd800 | code >> 10));
            to += snprintf(to, UNIT_BYTES + 1, "\\u%04x", (unsigned)(0xdc00 | (code & 0x3ff)));
        }
    }
    *ret_len = (size_t)(to - out);
    return out;
}

struct json_object *json_strict_parse(struct json_tokener *tokener, const char *text, size_t len)
{
    struct json_object *root;
    char *ascii = NULL;
    bool plain = true;

    if (len > INT_MAX / 3)
        return NULL;
    for (size_t i = 0; i < len && plain; i++)
        plain = (uint8_t)text[i] < 0x80;
    if (!plain) {
        text = ascii = to_ascii(text, len, &len);
        if (!ascii)
            return NULL;
    }
    root = json_tokener_parse_ex(tokener, text, (int)len);
    if (!json_object_is_type(root, json_type_object) || json_tokener_get_parse_end(tokener) != len) {
        json_object_put(root);
        root = NULL;
    }
    json_tokener_reset(tokener);
    free(ascii);
    return root;
}
