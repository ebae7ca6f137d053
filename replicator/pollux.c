/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pollux.c - the command line: verbs, their options, exit codes
 *
 * Talks to the polluxd of one VM on this host, over its control socket. Decides nothing: what is safe is
 * polluxd's to know. Codes are those of docs/CONTROL.md; status adds: 1 the VM is not protected.
 */
#include <errno.h>
#include <glob.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "options.h"
#include "pollux_client.h"
#include "pollux_show.h"
#include "session.h"
#include "wire-format.h"

#ifndef POLLUX_VERSION
#define POLLUX_VERSION "0.1"
#endif
#define RUN_DIR "/run/pollux"
#define PATH_BYTES 256
#define SECOND_NS INT64_C(1000000000)
#define ONLY_NEW INT64_MAX /* "since": nothing that was kept, all that comes */

struct settings {
    char path[PATH_BYTES];
    const char *control, *vm, *peer, *accept;
    const char *states; /* of wait --state, events --until */
    bool help, version, json, adopt, force, only_new;
    unsigned long long timeout_s, since, count;
};

struct verb {
    const char *name;
    const char *usage;
    const char *summary; /* one line */
    const char *text;    /* the rest of its help */
    const struct option_row *rows;
    unsigned timeout_s; /* unless --timeout; 0: none */
    int (*run)(struct settings *set);
};

/* ---- options ---- */

#define SETTINGS(into) ((struct settings *)(into))

#define TAKE_TEXT(member)                                                                \
    static int take_##member(void *into, const char *value, char why[OPTIONS_WHY_BYTES]) \
    {                                                                                    \
        SETTINGS(into)->member = value;                                                  \
        snprintf(why, OPTIONS_WHY_BYTES, "must not be empty");                           \
        return *value ? 0 : -EINVAL;                                                     \
    }

#define TAKE_SWITCH(member)                                                              \
    static int take_##member(void *into, const char *value, char why[OPTIONS_WHY_BYTES]) \
    {                                                                                    \
        (void)value, (void)why;                                                          \
        SETTINGS(into)->member = true;                                                   \
        return 0;                                                                        \
    }

#define TAKE_NUMBER(member, min, max)                                                    \
    static int take_##member(void *into, const char *value, char why[OPTIONS_WHY_BYTES]) \
    {                                                                                    \
        return options_number(value, min, max, &SETTINGS(into)->member, why);            \
    }

TAKE_TEXT(control)
TAKE_TEXT(peer)
TAKE_TEXT(accept)
TAKE_SWITCH(help)
TAKE_SWITCH(version)
TAKE_SWITCH(json)
TAKE_SWITCH(adopt)
TAKE_SWITCH(force)
TAKE_SWITCH(only_new)
TAKE_NUMBER(timeout_s, 1, 86400)
TAKE_NUMBER(since, 0, INT64_MAX)
TAKE_NUMBER(count, 1, 1000000000)

/* A VM's name becomes part of a path, so it must be one. */
static int take_vm(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    static const char legal[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t len = strlen(value);

    snprintf(why, OPTIONS_WHY_BYTES,
             "must be a VM's name: letters, digits, '.', '_', '-', at most %d", WIRE_VM_BYTES - 1);
    if (!len || len >= WIRE_VM_BYTES || strspn(value, legal) != len || strchr("._-", value[0]))
        return -EINVAL;
    SETTINGS(into)->vm = value;
    return 0;
}

static bool is_state(const char *word, size_t len)
{
    for (int i = 0; i < ST_NUM; i++) {
        const char *name = session_state_name((enum session_state)i);

        if (strlen(name) == len && memcmp(name, word, len) == 0)
            return true;
    }
    return false;
}

static int take_states(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    const char *at = value;

    for (;;) {
        size_t len = strcspn(at, ",");

        if (!is_state(at, len)) {
            snprintf(why, OPTIONS_WHY_BYTES,
                     "must be a state or several with commas between; \"%.*s\" is none",
                     (int)(len > 40 ? 40 : len), at);
            return -EINVAL;
        }
        if (!at[len])
            break;
        at += len + 1;
    }
    SETTINGS(into)->states = value;
    return 0;
}

/* clang-format off */
#define ROW_VM      { "vm", "NAME", "the VM; may be left out when this host has only one", take_vm }
#define ROW_CONTROL { "control", "PATH", "control socket (default: " RUN_DIR "/NAME.sock)", take_control }
#define ROW_HELP    { "help", NULL, "print this and exit", take_help }
#define ROW_TIMEOUT(text) { "timeout", "S", text, take_timeout_s }
#define ROW_END     { NULL, NULL, NULL, NULL }

static const struct option_row main_rows[] = {
    ROW_VM, ROW_CONTROL, ROW_HELP,
    { "version", NULL, "print the version and exit", take_version },
    ROW_END,
};

static const struct option_row pair_rows[] = {
    { "peer", "HOST:PORT", "where the polluxd of the standby listens", take_peer },
    { "adopt", NULL, "take over the history that the arbiter has of this VM: this\n"
                     "guest is the copy to keep", take_adopt },
    ROW_TIMEOUT("give up waiting for the answer after S seconds (default: 60)"),
    ROW_VM, ROW_CONTROL, ROW_HELP, ROW_END,
};

static const struct option_row unpair_rows[] = {
    ROW_TIMEOUT("give up waiting for the answer after S seconds (default: 60)"),
    ROW_VM, ROW_CONTROL, ROW_HELP, ROW_END,
};

static const struct option_row status_rows[] = {
    { "json", NULL, "print one JSON object (docs/CONTROL.md, status)", take_json },
    ROW_TIMEOUT("give up waiting for the answer after S seconds (default: 10)"),
    ROW_VM, ROW_CONTROL, ROW_HELP, ROW_END,
};

static const struct option_row promote_rows[] = {
    { "force", NULL, "run this copy without the arbiter's grant; asks first", take_force },
    { "yes-i-accept-data-loss", "VMNAME", "with --force: do not ask. VMNAME must be the VM's name", take_accept },
    ROW_TIMEOUT("give up waiting for the answer after S seconds (default: 60)"),
    ROW_VM, ROW_CONTROL, ROW_HELP, ROW_END,
};

static const struct option_row events_rows[] = {
    { "json", NULL, "print each event as one JSON object a line", take_json },
    { "since", "N", "begin after event number N (default: the oldest kept)", take_since },
    { "new", NULL, "only what happens from now on", take_only_new },
    { "count", "N", "end after N events", take_count },
    { "until", "STATE[,STATE]", "end after the VM has moved to one of these states", take_states },
    ROW_TIMEOUT("end with code 124 after S seconds (default: never)"),
    ROW_VM, ROW_CONTROL, ROW_HELP, ROW_END,
};

static const struct option_row wait_rows[] = {
    { "state", "STATE[,STATE]", "wait until the VM is, or comes to be, in one of these", take_states },
    ROW_TIMEOUT("end with code 124 after S seconds (default: 60)"),
    ROW_VM, ROW_CONTROL, ROW_HELP, ROW_END,
};
/* clang-format on */

/* ---- finding the daemon, talking to it ---- */

static int complain(int code, const char *text)
{
    fprintf(stderr, "pollux: %s\n", text);
    return code;
}

/* Fill set->path; complains. */
static int find_socket(struct settings *set)
{
    glob_t found;
    int code = CODE_GOOD;

    if (set->path[0])
        return CODE_GOOD;
    if (set->control) {
        if (strlen(set->control) >= PATH_BYTES)
            return complain(CODE_USAGE, "--control: the path is too long");
        strcpy(set->path, set->control);
        return CODE_GOOD;
    }
    if (set->vm) {
        snprintf(set->path, PATH_BYTES, RUN_DIR "/%s.sock", set->vm);
        return CODE_GOOD;
    }
    if (glob(RUN_DIR "/*.sock", 0, NULL, &found)) {
        return complain(CODE_UNAVAILABLE,
                        "no polluxd is known on this host: there is no control socket in " RUN_DIR
                        "; start polluxd, or give --control PATH");
    }
    if (found.gl_pathc > 1) {
        fprintf(stderr, "pollux: this host has several VMs; say which with --vm NAME:\n");
        for (size_t i = 0; i < found.gl_pathc; i++)
            fprintf(stderr, "  %s\n", found.gl_pathv[i]);
        code = CODE_USAGE;
    } else {
        snprintf(set->path, PATH_BYTES, "%s", found.gl_pathv[0]);
    }
    globfree(&found);
    return code;
}

static int64_t deadline(const struct settings *set)
{
    return set->timeout_s ? client_now_ns() + (int64_t)set->timeout_s * SECOND_NS : CLIENT_FOREVER;
}

static struct json_object *command(const char *name)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "cmd", json_object_new_string(name));
    return o;
}

/* Connect, ask, take the answer, hang up; complains. On CODE_GOOD the caller puts *ret. */
static int call_until(struct settings *set, struct json_object *request, int64_t at,
                      struct json_object **ret)
{
    struct client client = {.fd = -1};
    int code = find_socket(set);

    if (code) {
        json_object_put(request);
        return code;
    }
    code = client_open(&client, set->path);
    if (code)
        json_object_put(request);
    else
        code = client_call(&client, request, at, ret);
    if (code)
        complain(code, client.why);
    client_close(&client);
    return code;
}

static int call(struct settings *set, struct json_object *request, struct json_object **ret)
{
    return call_until(set, request, deadline(set), ret);
}

/* The status object; the caller puts *ret_answer, which owns it. */
static int get_status(struct settings *set, int64_t at, struct json_object **ret_answer,
                      struct json_object **ret)
{
    int code = call_until(set, command("status"), at, ret_answer);

    if (code)
        return code;
    if (json_object_object_get_ex(*ret_answer, "result", ret) &&
        json_object_is_type(*ret, json_type_object))
        return CODE_GOOD;
    json_object_put(*ret_answer);
    return complain(CODE_UNAVAILABLE, "what answers is not polluxd: its answer has no status");
}

static void say_result(struct json_object *answer, const char *otherwise)
{
    struct json_object *result = NULL;
    char text[400];

    json_object_object_get_ex(answer, "result", &result);
    client_printable(show_text(result, "text", otherwise), text, sizeof(text));
    printf("%s\n", text);
}

/* ---- verbs ---- */

static int run_pair(struct settings *set)
{
    struct json_object *request, *answer;
    int code;

    if (!set->peer)
        return complain(CODE_USAGE,
                        "pair needs --peer HOST:PORT, where the polluxd of the standby listens");
    request = command("pair");
    json_object_object_add(request, "peer", json_object_new_string(set->peer));
    json_object_object_add(request, "adopt", json_object_new_boolean(set->adopt));
    code = call(set, request, &answer);
    if (code)
        return code;
    say_result(answer, "paired: the arbiter granted this side; the sync goes on in the background");
    printf("\"pollux wait --state protected\" tells when the guest is protected; it is NOT yet.\n");
    json_object_put(answer);
    return CODE_GOOD;
}

static int run_unpair(struct settings *set)
{
    struct json_object *answer;
    int code = call(set, command("unpair"), &answer);

    if (code)
        return code;
    say_result(answer, "unpaired: the guest runs unprotected");
    json_object_put(answer);
    return CODE_GOOD;
}

static int run_status(struct settings *set)
{
    struct json_object *answer, *status;
    int code = get_status(set, deadline(set), &answer, &status);

    if (code)
        return code;
    if (set->json)
        printf("%s\n", json_object_to_json_string_ext(status, JSON_C_TO_STRING_PLAIN));
    else
        show_status(status);
    code = show_is_protected(status) ? CODE_GOOD : CODE_FAILED;
    json_object_put(answer);
    return code;
}

/* Words instead of a second switch: nobody types a VM's name by accident. */
static int confirm(const struct settings *set, struct json_object *status)
{
    const char *vm = show_text(status, "vm", "");
    char line[WIRE_VM_BYTES + 2], name[WIRE_VM_BYTES];

    client_printable(vm, name, sizeof(name));
    if (set->accept) {
        if (*vm && strcmp(set->accept, vm) == 0)
            return CODE_GOOD;
        fprintf(stderr, "pollux: not promoted: this polluxd's VM is \"%s\", not \"%.60s\"\n", name,
                set->accept);
        return CODE_NEEDS_FORCE;
    }
    show_risk(status);
    if (!isatty(STDIN_FILENO))
        return complain(CODE_NEEDS_FORCE,
                        "not promoted: this is no terminal to ask on; if you accept the loss, add "
                        "--yes-i-accept-data-loss VMNAME");
    fprintf(stderr, "\nTo go on, type the VM's name (%s): ", name);
    if (!fgets(line, sizeof(line), stdin))
        line[0] = 0;
    line[strcspn(line, "\n")] = 0;
    if (*vm && strcmp(line, vm) == 0)
        return CODE_GOOD;
    return complain(CODE_NEEDS_FORCE, "not promoted: that is not the VM's name");
}

static int run_promote(struct settings *set)
{
    struct json_object *answer, *status, *request;
    int code;

    if (set->accept && !set->force)
        return complain(CODE_USAGE, "--yes-i-accept-data-loss means nothing without --force");
    if (set->force) {
        code = get_status(set, deadline(set), &answer, &status);
        if (code)
            return code;
        code = confirm(set, status);
        json_object_put(answer);
        if (code)
            return code;
    }
    request = command("promote");
    json_object_object_add(request, "force", json_object_new_boolean(set->force));
    code = call(set, request, &answer);
    if (code)
        return code;
    say_result(answer, "promoted");
    json_object_put(answer);
    return CODE_GOOD;
}

static bool moved_to(struct json_object *event, const char *states)
{
    const char *to = show_text(event, "to", "");
    size_t len = strlen(to);

    if (strcmp(show_text(event, "type", ""), "state") != 0 || !len)
        return false;
    for (;;) {
        size_t n = strcspn(states, ",");

        if (n == len && memcmp(states, to, n) == 0)
            return true;
        if (!states[n])
            return false;
        states += n + 1;
    }
}

/* Connect and become a subscriber; complains; the caller closes the client in any case. */
static int subscribe(struct settings *set, struct client *client, int64_t since, int64_t at)
{
    struct json_object *request, *answer = NULL;
    int code;

    *client = (struct client){.fd = -1};
    code = find_socket(set);
    if (code)
        return code;
    code = client_open(client, set->path);
    request = command("events");
    json_object_object_add(request, "since", json_object_new_int64(since));
    if (code)
        json_object_put(request);
    else
        code = client_call(client, request, at, &answer);
    if (code)
        return complain(code, client->why);
    json_object_put(answer);
    return CODE_GOOD;
}

static int run_events(struct settings *set)
{
    int64_t at = deadline(set);
    int64_t answer_at = at == CLIENT_FOREVER ? client_now_ns() + 10 * SECOND_NS : at;
    struct json_object *event;
    struct client client;
    bool done = false;
    int code;

    if (set->only_new && set->since)
        return complain(CODE_USAGE, "--new and --since exclude each other");
    setvbuf(stdout, NULL, _IOLBF, 0);
    code = subscribe(set, &client, set->only_new ? ONLY_NEW : (int64_t)set->since, answer_at);
    for (unsigned long long n = 0; !code && !done; n++) {
        code = client_next(&client, at, &event);
        if (code) {
            complain(code, code == CODE_TIMEOUT ? "the time is over" : client.why);
            break;
        }
        if (set->json)
            printf("%s\n", json_object_to_json_string_ext(event, JSON_C_TO_STRING_PLAIN));
        else
            show_event(event);
        done = (set->count && n + 1 == set->count) || (set->states && moved_to(event, set->states));
        json_object_put(event);
    }
    client_close(&client);
    return code;
}

/* Subscribes before it looks, so that no move can fall between. */
static int run_wait(struct settings *set)
{
    struct json_object *answer = NULL, *status = NULL, *event;
    int64_t at = deadline(set);
    struct client client;
    bool there = false;
    int code;

    if (!set->states)
        return complain(CODE_USAGE, "wait needs --state STATE[,STATE]");
    code = subscribe(set, &client, ONLY_NEW, at);
    if (!code)
        code = get_status(set, at, &answer, &status);
    if (!code) {
        struct json_object *now = json_object_new_object();

        json_object_object_add(now, "type", json_object_new_string("state"));
        json_object_object_add(now, "to", json_object_new_string(show_text(status, "state", "")));
        there = moved_to(now, set->states);
        json_object_put(now);
        json_object_put(answer);
    }
    while (!code && !there) {
        code = client_next(&client, at, &event);
        if (code) {
            complain(code, code == CODE_TIMEOUT
                               ? "the time is over, and the VM is in none of these states"
                               : client.why);
            break;
        }
        there = moved_to(event, set->states);
        json_object_put(event);
    }
    client_close(&client);
    return code;
}

/* ---- main ---- */

/* clang-format off */
static const struct verb verbs[] = {
    { "pair", "--peer HOST:PORT [--adopt]",
      "protect the guest that runs here: fill a standby, then hold output",
      "Said once, on the host whose guest runs. Returns when the arbiter has granted this\n"
      "side its first generation; the standby is filled in the background while the guest\n"
      "runs. After a failover nothing need be said: the survivor looks for its peer by itself.",
      pair_rows, 60, run_pair },
    { "unpair", "",
      "end protection; the guest goes on alone",
      "Asks the arbiter first when a standby could take over, so that it cannot any more.",
      unpair_rows, 60, run_unpair },
    { "status", "[--json]",
      "say whether the VM is protected, and why not",
      "Ends with 0 if the guest is protected (on the standby: if it could take over now),\n"
      "1 if it is not.",
      status_rows, 10, run_status },
    { "promote", "[--force]",
      "run the guest here",
      "Without --force the arbiter must grant it (otherwise code 106), and an active that is\n"
      "alive is not stopped (code 107). With --force an active is stopped, an arbiter that does\n"
      "not answer is done without, and an outdated copy is run again: see what is printed then.",
      promote_rows, 60, run_promote },
    { "events", "[--json] [--since N | --new] [--count N] [--until STATE]",
      "follow what happens to the VM, a line each",
      "polluxd keeps the last 256 events; they come first. Ends with 0 at --count or --until,\n"
      "else runs for ever.",
      events_rows, 0, run_events },
    { "wait", "--state STATE[,STATE]",
      "wait for a state, for scripts",
      "Ends with 0 when the VM is in one of the states, or comes into it while waiting,\n"
      "however shortly; with 124 when the time is over.",
      wait_rows, 60, run_wait },
};
/* clang-format on */

#define NR_VERBS (sizeof(verbs) / sizeof(verbs[0]))

static int main_help(void)
{
    printf("Usage: pollux [OPTION]... VERB [OPTION]...\n"
           "Protects a running virtual machine, and says how it is. Talks to the polluxd of this\n"
           "host.\n\n");
    for (size_t i = 0; i < NR_VERBS; i++)
        printf("  %-10s%s\n", verbs[i].name, verbs[i].summary);
    printf("\n");
    options_help(main_rows);
    printf("\n\"pollux VERB --help\" says more. Exit codes: 0 good, 1 failed (status: not\n"
           "protected), 64 usage, 69 polluxd or arbiter unavailable, 78 configuration, 106 no\n"
           "quorum, 107 needs --force, 124 time-out.\n");
    return CODE_GOOD;
}

static int verb_help(const struct verb *verb)
{
    printf("Usage: pollux [--vm NAME | --control PATH] %s %s\n%s.\n\n%s\n\n", verb->name,
           verb->usage, verb->summary, verb->text);
    options_help(verb->rows);
    return CODE_GOOD;
}

static const struct verb *find_verb(const char *name)
{
    for (size_t i = 0; i < NR_VERBS; i++) {
        if (strcmp(verbs[i].name, name) == 0)
            return &verbs[i];
    }
    return NULL;
}

int main(int argc, char **argv)
{
    struct settings set = {.control = NULL};
    char why[OPTIONS_WHY_BYTES];
    const struct verb *verb;
    int next;

    if (options_parse(main_rows, &set, argc, argv, 1, &next, why))
        return complain(CODE_USAGE, why);
    if (set.help)
        return main_help();
    if (set.version) {
        printf("pollux " POLLUX_VERSION "\n");
        return CODE_GOOD;
    }
    if (next == argc)
        return complain(
            CODE_USAGE,
            "say what to do: pair, unpair, status, promote, events or wait; see --help");
    verb = find_verb(argv[next]);
    if (!verb) {
        fprintf(stderr, "pollux: unknown verb \"%.60s\"; see --help\n", argv[next]);
        return CODE_USAGE;
    }
    set.timeout_s = verb->timeout_s;
    if (options_parse(verb->rows, &set, argc, argv, next + 1, &next, why))
        return complain(CODE_USAGE, why);
    if (set.help)
        return verb_help(verb);
    if (next < argc) {
        fprintf(stderr, "pollux: %s: unexpected argument \"%.60s\"; see pollux %s --help\n",
                verb->name, argv[next], verb->name);
        return CODE_USAGE;
    }
    if (set.control && set.vm)
        return complain(CODE_USAGE, "--control and --vm exclude each other");
    return verb->run(&set);
}
