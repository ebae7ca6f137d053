/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * qmp-call - run one QMP command and print what it returned
 *
 * For people and scripts. Exit codes: 0, 1 QEMU said no, 64 usage, 69 no QEMU or no connection, 124
 * time-out.
 */
#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "qmp_sync.h"

#define TIMEOUT_MS 10000

static int usage(FILE *f)
{
    fprintf(f,
            "usage: qmp-call SOCKET COMMAND [JSON-ARGUMENTS]\n"
            "Runs COMMAND in the QEMU that listens on SOCKET and prints what it returned as JSON.\n"
            "  qmp-call /run/vm.qmp query-status\n"
            "  qmp-call /run/vm.qmp human-monitor-command '{\"command-line\": \"info roms\"}'\n");
    return f == stdout ? 0 : 64;
}

static int exit_code(int error)
{
    return error == -EREMOTEIO ? 1 : error == -ETIMEDOUT ? 124 : error == -EINVAL ? 64 : 69;
}

int main(int argc, char **argv)
{
    struct json_object *args = NULL, *data = NULL;
    struct qmp_sync *q = NULL;
    int r;

    if (argc == 2 && !strcmp(argv[1], "--help"))
        return usage(stdout);
    if (argc < 3 || argc > 4)
        return usage(stderr);
    if (argc == 4) {
        args = json_tokener_parse(argv[3]);
        if (!json_object_is_type(args, json_type_object)) {
            fprintf(stderr, "qmp-call: the arguments are not a JSON object: %s\n", argv[3]);
            json_object_put(args);
            return 64;
        }
    }
    r = qmp_sync_connect(argv[1], TIMEOUT_MS, &q);
    if (r) {
        fprintf(stderr, "qmp-call: %s: %s\n", argv[1],
                r == -EBUSY ? "no greeting: does another client hold the socket?" : strerror(-r));
        json_object_put(args);
        return r == -EINVAL ? 69 : exit_code(r);
    }
    r = qmp_sync_command(q, argv[2], args, -1, TIMEOUT_MS, &data);
    if (r)
        fprintf(stderr, "qmp-call: %s: %s\n", argv[2], qmp_sync_error(q));
    else
        puts(json_object_to_json_string_ext(data, JSON_C_TO_STRING_PRETTY));
    json_object_put(data);
    qmp_sync_close(q);
    return r ? exit_code(r) : 0;
}
