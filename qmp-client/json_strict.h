/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * json_strict.h - one whole JSON text, parsed strictly, by every version of json-c alike
 *
 * json-c 0.18 (Debian 13) in its strict mode takes each byte above 127 within a string for a control character (char
 * is signed) and fails; 0.16 (Debian 12) takes them as they are. Here such characters are written as \uXXXX first.
 * (json-c calls strict what still takes NaN, and names in single quotes.)
 */
#ifndef QMP_CLIENT_JSON_STRICT_H
#define QMP_CLIENT_JSON_STRICT_H

#include <stddef.h>

struct json_object;
struct json_tokener;

/**
 * @param depth levels of arrays and objects that are taken
 * @return a strict tokener, to be freed with json_tokener_free(); NULL without memory
 */
struct json_tokener *json_strict_new(int depth);

/**
 * @param tokener from json_strict_new(), used for nothing else; ready for the next text afterwards
 * @param text JSON (RFC 8259) in UTF-8, all of it; need not be terminated
 * @param len bytes, up to INT_MAX / 3
 * @return the object, the caller's; NULL if it is not exactly one JSON object in UTF-8, is nested too deep, or without
 * memory
 */
struct json_object *json_strict_parse(struct json_tokener *tokener, const char *text, size_t len);

#endif
