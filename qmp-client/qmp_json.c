/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qmp_json.c - QMP's JSON, checked member by member
 *
 * Owns what a member must look like. Pure functions; what they are given is hostile.
 */
#include "qmp_json.h"

#include <errno.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qmp.h"
#include "qmp_scan.h"

bool qmp_json_is_name(struct json_object *value)
{
    return json_object_is_type(value, json_type_string) &&
           strlen(json_object_get_string(value)) == (size_t)json_object_get_string_len(value);
}

bool qmp_json_number(struct json_object *object, const char *key, int64_t max, int64_t *ret_number)
{
    struct json_object *member;
    int64_t n;

    if (!json_object_object_get_ex(object, key, &member) ||
        !json_object_is_type(member, json_type_int))
        return false;
    n = json_object_get_int64(member);
    if (n < 0 || n > max)
        return false;
    *ret_number = n;
    return true;
}

int64_t qmp_json_timestamp_us(struct json_object *event)
{
    struct json_object *stamp;
    int64_t s, us;

    if (json_object_object_get_ex(event, "timestamp", &stamp) &&
        qmp_json_number(stamp, "seconds", INT64_MAX / 1000000 - 1, &s) &&
        qmp_json_number(stamp, "microseconds", 999999, &us))
        return s * 1000000 + us;
    return -1;
}

int qmp_json_version(struct json_object *greeting, struct qmp_version *ret_version)
{
    struct json_object *version, *qemu, *package;
    int64_t major, minor, micro;

    if (!json_object_object_get_ex(greeting, "version", &version) ||
        !json_object_object_get_ex(version, "qemu", &qemu) ||
        !qmp_json_number(qemu, "major", INT_MAX, &major) ||
        !qmp_json_number(qemu, "minor", INT_MAX, &minor) ||
        !qmp_json_number(qemu, "micro", INT_MAX, &micro))
        return -EPROTO;
    *ret_version =
        (struct qmp_version){.major = (int)major, .minor = (int)minor, .micro = (int)micro};
    if (json_object_object_get_ex(version, "package", &package) && qmp_json_is_name(package))
        snprintf(ret_version->package, sizeof(ret_version->package), "%s",
                 json_object_get_string(package));
    return 0;
}

int qmp_json_command(const char *name, struct json_object *args, uint64_t id, char **ret_text,
                     size_t *ret_len)
{
    struct json_object *root = json_object_new_object();
    struct json_object *execute = json_object_new_string(name);
    struct json_object *number = json_object_new_int64((int64_t)id);
    struct qmp_scan scan = {0};
    size_t len = 0, used;
    const char *text;
    int r = -ENOMEM;

    if (!root || !execute || !number)
        goto out;
    if (json_object_object_add(root, "execute", execute))
        goto out;
    execute = NULL;
    if (args && json_object_object_add(root, "arguments", json_object_get(args))) {
        json_object_put(args);
        goto out;
    }
    if (json_object_object_add(root, "id", number))
        goto out;
    number = NULL;
    text = json_object_to_json_string_length(root, JSON_C_TO_STRING_PLAIN, &len);
    if (!text)
        goto out;
    r = -E2BIG;
    if (len + 1 > QMP_COMMAND_MAX_BYTES)
        goto out;
    /* QEMU answers broken text with an error that has no id: refuse it here, where the cause is
     * known. */
    r = -EINVAL;
    if (qmp_scan(&scan, text, len, &used) != 1 || used != len)
        goto out;
    r = -ENOMEM;
    *ret_text = malloc(len + 1);
    if (!*ret_text)
        goto out;
    memcpy(*ret_text, text, len);
    (*ret_text)[len] = '\n';
    *ret_len = len + 1;
    r = 0;
out:
    json_object_put(execute);
    json_object_put(number);
    json_object_put(root);
    return r;
}
