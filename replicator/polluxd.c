/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * polluxd.c - the daemon's options and its start
 *
 * Owns: the table of options, which the configuration file shares (the same words as keys). Everything
 * that can be wrong with them is said here, before anything is touched.
 */
#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "daemon.h"
#include "options.h"

#ifndef VERSION
#define VERSION "0.1"
#endif

#define PRIORITY (-15)
#define EXIT_USAGE 64
#define EXIT_CONFIG 78

struct settings {
    struct daemon_options o;
    char config[256];
    bool help, version;
};

static int take_text(char *into, size_t cap, const char *value, char why[OPTIONS_WHY_BYTES])
{
    if (strlen(value) >= cap || !value[0]) {
        snprintf(why, OPTIONS_WHY_BYTES, "must have 1 to %zu characters", cap - 1);
        return -EINVAL;
    }
    strcpy(into, value);
    return 0;
}

#define SETTINGS(into) ((struct settings *)(into))
#define TAKE_TEXT(name, member)                                                        \
    static int name(void *into, const char *value, char why[OPTIONS_WHY_BYTES])         \
    {                                                                                   \
        return take_text(SETTINGS(into)->member, sizeof(SETTINGS(into)->member), value, why); \
    }
#define TAKE_NUMBER(name, member, min, max, unit)                                      \
    static int name(void *into, const char *value, char why[OPTIONS_WHY_BYTES])         \
    {                                                                                   \
        unsigned long long n;                                                           \
        int rc = options_number(value, min, max, &n, why);                              \
        if (rc == 0)                                                                    \
            SETTINGS(into)->member = n * (unit);                                        \
        return rc;                                                                      \
    }
#define TAKE_SWITCH(name, member)                                                      \
    static int name(void *into, const char *value, char why[OPTIONS_WHY_BYTES])         \
    {                                                                                   \
        (void)value;                                                                    \
        (void)why;                                                                      \
        SETTINGS(into)->member = true;                                                  \
        return 0;                                                                       \
    }

TAKE_TEXT(take_qmp, o.qmp)
TAKE_TEXT(take_control, o.control)
TAKE_TEXT(take_state_dir, o.state_dir)
TAKE_TEXT(take_config, config)
TAKE_NUMBER(take_peer_timeout, o.session.peer_timeout_ns, 20, 60000, MS)
TAKE_NUMBER(take_heartbeat, o.session.heartbeat_ns, 1, 10000, MS)
TAKE_NUMBER(take_epoch_max, o.session.epoch_max_ns, 5, 10000, MS)
TAKE_NUMBER(take_hold_freeze, o.session.hold_freeze_ns, 100, 3600000, MS)
TAKE_NUMBER(take_slots, o.session.nr_slots, 2, SESSION_SLOTS_MAX, 1)
TAKE_NUMBER(take_slot_pages, o.slot_pages, 256, 16777216, 1)
TAKE_NUMBER(take_hold_bytes, o.hold_max_bytes, 65536, 1ull << 32, 1)
TAKE_NUMBER(take_hold_packets, o.hold_max_packets, 64, 1ull << 24, 1)
TAKE_NUMBER(take_workers, o.workers, 0, SENDER_WORKERS_MAX, 1)
TAKE_SWITCH(take_unsafe, o.session.unsafe_release)
TAKE_SWITCH(take_drop_page, o.unsafe_drop_page)
TAKE_SWITCH(take_help, help)
TAKE_SWITCH(take_version, version)

static int take_vm(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    if (wire_vm_name(value, SETTINGS(into)->o.vm) == 0)
        return 0;
    snprintf(why, OPTIONS_WHY_BYTES, "must be 1 to 47 letters, digits, '.', '_' or '-', and begin with a letter or digit");
    return -EINVAL;
}

static int take_address(char *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    struct sockaddr_storage sa;

    if (strlen(value) < DAEMON_ADDRESS_BYTES && link_parse_address(value, &sa) > 0) {
        strcpy(into, value);
        return 0;
    }
    snprintf(why, OPTIONS_WHY_BYTES, "must be a numeric HOST:PORT, such as 10.0.0.1:7460 or [fd00::1]:7460");
    return -EINVAL;
}

static int take_listen(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    return take_address(SETTINGS(into)->o.listen, value, why);
}

static int take_arbiter(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    char address[DAEMON_ADDRESS_BYTES];

    if (strncmp(value, "witness:", 8) == 0 && strlen(value) < DAEMON_ADDRESS_BYTES &&
        take_address(address, value + 8, why) == 0) {
        strcpy(SETTINGS(into)->o.arbiter, value);
        return 0;
    }
    snprintf(why, OPTIONS_WHY_BYTES, "must be witness:HOST:PORT, numeric");
    return -EINVAL;
}

static int take_pause_percent(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    unsigned long long n;
    int rc = options_number(value, 1, 90, &n, why);

    if (rc == 0)
        SETTINGS(into)->o.session.pause_permille = (unsigned)n * 10;
    return rc;
}

static int take_guest_address(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    struct daemon_options *o = &SETTINGS(into)->o;

    if (o->nr_guests == DAEMON_GUESTS_MAX) {
        snprintf(why, OPTIONS_WHY_BYTES, "can be given %d times at most", DAEMON_GUESTS_MAX);
        return -EINVAL;
    }
    if (announce_parse_guest(value, &o->guest[o->nr_guests]) < 0) {
        snprintf(why, OPTIONS_WHY_BYTES, "must be MAC[@VLAN]=ADDRESS[,ADDRESS...], such as 52:54:00:12:34:56=10.0.0.5,fd00::5");
        return -EINVAL;
    }
    o->nr_guests++;
    return 0;
}

static int take_log_level(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    int level = log_level_of(value);

    (void)into;
    if (level < 0) {
        snprintf(why, OPTIONS_WHY_BYTES, "must be error, warning, info or debug");
        return -EINVAL;
    }
    log_set_level((enum log_level)level);
    return 0;
}

/* clang-format off */
static const struct option_row rows[] = {
    { "vm", "NAME", "name of the VM, the same on both hosts", take_vm },
    { "qmp", "PATH", "QMP unix socket of its QEMU, for polluxd alone", take_qmp },
    { "listen", "HOST:PORT", "where the peer's polluxd may connect (default 0.0.0.0:7460)", take_listen },
    { "arbiter", "witness:HOST:PORT", "who grants the right to run the guest", take_arbiter },
    { "control", "PATH", "control socket (default /run/pollux/VM.sock)", take_control },
    { "state-dir", "DIR", "what must survive a restart (default /var/lib/pollux/VM)", take_state_dir },
    { "config", "FILE", "read options from FILE: lines of option=value", take_config },
    { "peer-timeout-ms", "N", "silence of the peer after which the arbiter is asked (default 120)", take_peer_timeout },
    { "heartbeat-ms", "N", "longest silence of our own (default 20)", take_heartbeat },
    { "epoch-max-ms", "N", "an idle guest is captured so often (default 100)", take_epoch_max },
    { "pause-percent", "N", "share of guest time that captures may cost (default 10)", take_pause_percent },
    { "slots", "N", "arena slots (default 3)", take_slots },
    { "slot-pages", "N", "pages of 4 KiB that a slot holds (default 16384)", take_slot_pages },
    { "workers", "N", "threads that compress pages (default 1)", take_workers },
    { "hold-max-bytes", "N", "held output at which the guest is frozen (default 16777216)", take_hold_bytes },
    { "hold-max-packets", "N", "likewise in packets (default 16384)", take_hold_packets },
    { "hold-freeze-ms", "N", "freeze when output waits so long for the arbiter (default 5000)", take_hold_freeze },
    { "guest-address", "MAC=IP[,IP]", "announce these after a promotion; may be repeated", take_guest_address },
    { "unsafe-release-before-ack", NULL, "for measuring only: do not hold output. A failover then LOSES DATA", take_unsafe },
    { "unsafe-drop-page", NULL, "for tests only: one changed page is not sent. The standby is then WRONG", take_drop_page },
    { "log-level", "LEVEL", "error, warning, info (default) or debug", take_log_level },
    { "version", NULL, "print the version", take_version },
    { "help", NULL, "print this text", take_help },
    { NULL, NULL, NULL, NULL },
};
/* clang-format on */

struct ini_context {
    struct settings *settings;
    char why[OPTIONS_WHY_BYTES + 64];
};

static int on_ini(void *opaque, const char *section, const char *name, const char *value)
{
    struct ini_context *c = opaque;
    char why[OPTIONS_WHY_BYTES];

    if (c->why[0])
        return 0; /* inih goes on after the first error; we do not */
    if (section[0]) {
        snprintf(c->why, sizeof(c->why), "no sections: only option=value");
        return 0;
    }
    for (const struct option_row *row = rows; row->name; row++) {
        bool on = strcmp(value, "yes") == 0;
        if (strcmp(row->name, name) != 0 || strcmp(name, "config") == 0)
            continue;
        if (!row->value && !on && strcmp(value, "no") != 0) {
            snprintf(c->why, sizeof(c->why), "%s must be yes or no", name);
            return 0;
        }
        if (!row->value && !on)
            return 1;
        if (row->take(c->settings, row->value ? value : "", why) == 0)
            return 1;
        snprintf(c->why, sizeof(c->why), "%s %s", name, why);
        return 0;
    }
    snprintf(c->why, sizeof(c->why), "unknown option %.60s", name);
    return 0;
}

static int read_config(struct settings *s)
{
    struct ini_context c = { .settings = s };
    int line = ini_parse(s->config, on_ini, &c);

    if (line == 0)
        return 0;
    if (line < 0)
        fprintf(stderr, "polluxd: %s: %s\n", s->config, strerror(errno));
    else
        fprintf(stderr, "polluxd: %s:%d: %s\n", s->config, line, c.why[0] ? c.why : "not option=value");
    return -EINVAL;
}

static int complete(struct settings *s)
{
    struct daemon_options *o = &s->o;
    const char *missing = !o->vm[0] ? "vm" : !o->qmp[0] ? "qmp" : !o->arbiter[0] ? "arbiter" : NULL;

    if (missing) {
        fprintf(stderr, "polluxd: --%s is needed; see polluxd --help\n", missing);
        return -EINVAL;
    }
    /* A turn that is late by half the time-out counts as our own stand-still, and heartbeats set the pace of turns. */
    if (o->session.heartbeat_ns * 3 > o->session.peer_timeout_ns) {
        fprintf(stderr, "polluxd: --peer-timeout-ms must be at least three times --heartbeat-ms\n");
        return -EINVAL;
    }
    if (!o->control[0]) {
        mkdir("/run/pollux", 0755);
        snprintf(o->control, sizeof(o->control), "/run/pollux/%s.sock", o->vm);
    }
    if (!o->state_dir[0]) {
        mkdir("/var/lib/pollux", 0755);
        snprintf(o->state_dir, sizeof(o->state_dir), "/var/lib/pollux/%s", o->vm);
    }
    if (!o->listen[0])
        strcpy(o->listen, "0.0.0.0:7460");
    return 0;
}

int main(int argc, char **argv)
{
    static struct settings s;
    static struct settings from_file;
    struct daemon *d;
    char why[OPTIONS_WHY_BYTES];
    int next, rc;

    log_set_name("polluxd");
    session_config_default(&s.o.session);
    s.o.slot_pages = 16384;
    s.o.hold_max_bytes = 16 << 20;
    s.o.hold_max_packets = 16384;
    s.o.workers = 1;
    from_file = s;
    if (options_parse(rows, &s, argc, argv, 1, &next, why) < 0 || next != argc) {
        fprintf(stderr, "polluxd: %s; see polluxd --help\n", next != argc ? "takes no words, only options" : why);
        return EXIT_USAGE;
    }
    if (s.help) {
        printf("usage: polluxd --vm NAME --qmp PATH --arbiter witness:HOST:PORT [OPTION...]\n\n"
               "Keeps one VM protected, or ready to take over: one polluxd for a VM on each of two hosts.\n\n");
        options_help(rows);
        return 0;
    }
    if (s.version) {
        printf("polluxd %s\n", VERSION);
        return 0;
    }
    if (s.config[0]) { /* the command line is parsed again on top: it wins */
        strcpy(from_file.config, s.config);
        if (read_config(&from_file) < 0)
            return EXIT_CONFIG;
        options_parse(rows, &from_file, argc, argv, 1, &next, why);
        s = from_file;
    }
    if (complete(&s) < 0)
        return EXIT_USAGE;
    if (s.o.session.unsafe_release || s.o.unsafe_drop_page)
        log_line(LOG_WARNING, "%s: started UNSAFE, for measuring or testing: a failover will lose data", s.o.vm);
    d = calloc(1, sizeof(*d));
    if (!d) {
        log_line(LOG_ERROR, "no memory");
        return 1;
    }
    /* Silence is what the peer goes by: a busy host must not make us look dead. Without the right to, we run as we are. */
    setpriority(PRIO_PROCESS, 0, PRIORITY);
    rc = daemon_init(d, &s.o);
    if (rc == 0) {
        rc = daemon_run(d);
        if (rc < 0)
            log_line(LOG_ERROR, "the event loop failed: %s", strerror(-rc));
        daemon_fini(d);
    }
    if (!d->saver.left) /* its thread still uses it */
        free(d);
    return rc < 0 ? 1 : 0;
}
