/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qmp_json.h - QMP's JSON, checked member by member
 *
 * Private to qmp-client.
 */
#ifndef QMP_CLIENT_QMP_JSON_H
#define QMP_CLIENT_QMP_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_object;
struct qmp_version;

/**
 * @param value any JSON value
 * @return whether it is a string without \u0000, in which two different names would look the same
 */
bool qmp_json_is_name(struct json_object *value);

/**
 * @param object any JSON value
 * @param key a member of it
 * @param max the largest number wanted
 * @param ret_number the member
 * @return whether it is a whole number in 0..max
 */
bool qmp_json_number(struct json_object *object, const char *key, int64_t max, int64_t *ret_number);

/**
 * @param event a QMP event
 * @return its time in microseconds since 1970; -1 if it has none that makes sense
 */
int64_t qmp_json_timestamp_us(struct json_object *event);

/**
 * @param greeting the member "QMP" of a greeting
 * @param ret_version QEMU's version
 * @return 0; -EPROTO it has none
 */
int qmp_json_version(struct json_object *greeting, struct qmp_version *ret_version);

/**
 * Write a command down.
 *
 * @param name the command
 * @param args an object, or NULL; stays the caller's
 * @param id to tell the answer by
 * @param ret_text one line with its line end, not terminated; to be freed
 * @param ret_len its length in bytes
 * @return 0; -E2BIG longer than QMP_COMMAND_MAX_BYTES; -EINVAL not valid UTF-8 or not a number;
 * -ENOMEM
 */
int qmp_json_command(const char *name, struct json_object *args, uint64_t id, char **ret_text,
                     size_t *ret_len);

#endif
