/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * witness.c - the arbiter daemon: options, start and end
 *
 * Theory of operation
 *
 * Two hosts that cannot see each other must not both run a guest. Each asks the witness, on a third
 * host, to move the VM's register from the generation it knows to the next; one compare-and-swap wins,
 * ever, and the answer is given only when it is on disk. The witness knows no time-out, no lease and no
 * health: it never decides anything by itself. See registers.h for the disk, server.h for the clients.
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "../replicator/notify.h"
#include "../replicator/options.h"
#include "server.h"

#ifndef POLLUX_VERSION
#define POLLUX_VERSION "0.1"
#endif
#define DEFAULT_PORT 7461
#define DEFAULT_STATE_DIR "/var/lib/pollux-witness"
#define SLOW_NS INT64_C(5000000000)

enum { EXIT_USAGE = 64, EXIT_UNAVAILABLE = 69, EXIT_CONFIG = 78 };

struct settings {
    const char *state_dir;
    struct {
        struct sockaddr_storage address;
        socklen_t len;
    } listen[SERVER_LISTEN_MAX];
    unsigned nr_listen;
    int64_t silent_ns;
    char restore_vm[WIRE_VM_BYTES]; /* empty: serve */
    unsigned long long restore_generation;
    bool help, version;
};

/* ---- options ---- */

/* ADDR:PORT or [ADDR6]:PORT, numbers only: no resolver stands between a start and the network. */
static int take_listen(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                             .ai_socktype = SOCK_STREAM};
    struct settings *set = into;
    const char *colon = strrchr(value, ':');
    char port_why[OPTIONS_WHY_BYTES], host[64];
    unsigned long long port;
    struct addrinfo *found;
    size_t len;

    snprintf(why, OPTIONS_WHY_BYTES, "must be ADDR:PORT or [ADDR6]:PORT in numbers, not \"%.60s\"",
             value);
    if (!colon || options_number(colon + 1, 0, 65535, &port, port_why))
        return -EINVAL;
    len = (size_t)(colon - value);
    if (len > 1 && value[0] == '[' && value[len - 1] == ']') {
        value++;
        len -= 2;
        hints.ai_family = AF_INET6;
    } else {
        hints.ai_family = AF_INET;
    }
    if (!len || len >= sizeof(host))
        return -EINVAL;
    memcpy(host, value, len);
    host[len] = 0;
    if (getaddrinfo(host, colon + 1, &hints, &found))
        return -EINVAL;
    if (set->nr_listen == SERVER_LISTEN_MAX) {
        freeaddrinfo(found);
        snprintf(why, OPTIONS_WHY_BYTES, "may be given %d times at most", SERVER_LISTEN_MAX);
        return -EINVAL;
    }
    memcpy(&set->listen[set->nr_listen].address, found->ai_addr, found->ai_addrlen);
    set->listen[set->nr_listen++].len = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

static int take_state_dir(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    if (!*value) {
        snprintf(why, OPTIONS_WHY_BYTES, "must not be empty");
        return -EINVAL;
    }
    ((struct settings *)into)->state_dir = value;
    return 0;
}

static int take_silent(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    unsigned long long ms;

    if (options_number(value, 100, 86400000, &ms, why))
        return -EINVAL;
    ((struct settings *)into)->silent_ns = (int64_t)ms * 1000000;
    return 0;
}

static int take_log_level(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    int level = log_level_of(value);

    (void)into;
    if (level < 0) {
        snprintf(why, OPTIONS_WHY_BYTES, "must be error, warning, info or debug, not \"%.40s\"",
                 value);
        return -EINVAL;
    }
    log_set_level(level);
    return 0;
}

static int take_restore(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    struct settings *set = into;
    const char *equals = strchr(value, '=');
    char name[WIRE_VM_BYTES] = "", number_why[OPTIONS_WHY_BYTES];

    if (equals && equals - value < WIRE_VM_BYTES)
        memcpy(name, value, (size_t)(equals - value));
    if (wire_vm_name(name, set->restore_vm) == 0 &&
        options_number(equals + 1, 1, UINT64_MAX, &set->restore_generation, number_why) == 0)
        return 0;
    snprintf(why, OPTIONS_WHY_BYTES, "must be VM=GENERATION, such as db=7");
    return -EINVAL;
}

static int take_help(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    (void)value, (void)why;
    ((struct settings *)into)->help = true;
    return 0;
}

static int take_version(void *into, const char *value, char why[OPTIONS_WHY_BYTES])
{
    (void)value, (void)why;
    ((struct settings *)into)->version = true;
    return 0;
}

/* clang-format off */
static const struct option_row rows[] = {
    { "listen", "ADDR:PORT", "where clients connect; may be given several times, IPv6\n"
                             "as [ADDR]:PORT (default: port 7461 on every address)", take_listen },
    { "state-dir", "DIR", "where the registers are (default: " DEFAULT_STATE_DIR ")", take_state_dir },
    { "client-timeout-ms", "MS", "a client silent for this long is closed (default: 30000)", take_silent },
    { "restore", "VM=GENERATION", "write a register anew that was lost or damaged, and exit;\n"
                                  "see witness(8), RECOVERY", take_restore },
    { "log-level", "LEVEL", "error, warning, info or debug (default: info)", take_log_level },
    { "help", NULL, "print this and exit", take_help },
    { "version", NULL, "print the version and exit", take_version },
    { NULL, NULL, NULL, NULL },
};
/* clang-format on */

/* ---- start ---- */

static int listen_default(struct server *s, char name[SERVER_NAME_BYTES])
{
    struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons(DEFAULT_PORT)};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(DEFAULT_PORT)};
    int ret = server_listen(s, (struct sockaddr *)&any6, sizeof(any6), true, name);

    if (ret == -EAFNOSUPPORT || ret == -EADDRNOTAVAIL)
        ret = server_listen(s, (struct sockaddr *)&any4, sizeof(any4), false, name);
    return ret;
}

static int listen_all(struct server *s, const struct settings *set)
{
    char name[SERVER_NAME_BYTES] = "port 7461";
    int ret = 0;

    if (!set->nr_listen) {
        ret = listen_default(s, name);
        if (!ret)
            log_line(LOG_INFO, "listening on %s", name);
    }
    for (unsigned i = 0; !ret && i < set->nr_listen; i++) {
        const struct sockaddr *address = (const struct sockaddr *)&set->listen[i].address;

        server_name(address, set->listen[i].len, name);
        ret = server_listen(s, address, set->listen[i].len, false, name);
        if (!ret)
            log_line(LOG_INFO, "listening on %s", name);
    }
    if (ret)
        log_line(LOG_ERROR, "cannot listen on %s: %s", name, strerror(-ret));
    return ret;
}

static int open_signals(void)
{
    sigset_t set;
    int fd;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    if (sigprocmask(SIG_BLOCK, &set, NULL))
        return -errno;
    fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

static int run(const struct settings *set)
{
    struct server_config config = {.silent_ns = set->silent_ns,
                                   .slow_ns = set->silent_ns < SLOW_NS ? set->silent_ns : SLOW_NS};
    char why[REGISTERS_WHY_BYTES];
    struct registers registers;
    struct server *server;
    int signal_fd, ret, code = EXIT_FAILURE;

    signal_fd = open_signals();
    if (signal_fd < 0) {
        log_line(LOG_ERROR, "cannot take signals: %s", strerror(-signal_fd));
        return EXIT_FAILURE;
    }
    ret = registers_open(&registers, set->state_dir, why);
    if (ret) {
        log_line(LOG_ERROR, "%s", why);
        close(signal_fd);
        return ret == -EWOULDBLOCK ? EXIT_UNAVAILABLE : EXIT_CONFIG;
    }
    server = malloc(sizeof(*server));
    if (!server) {
        log_line(LOG_ERROR, "no memory for %d clients", SERVER_CLIENTS_MAX);
        goto out;
    }
    server_init(server, &config, &registers, signal_fd);
    if (listen_all(server, set)) {
        code = EXIT_UNAVAILABLE;
        goto out;
    }
    log_line(LOG_INFO, "ready: %u registers in %s", registers.nr, set->state_dir);
    ret = notify_send("READY=1\n");
    if (ret < 0)
        log_line(LOG_WARNING, "cannot tell the service manager: %s", strerror(-ret));
    ret = server_run(server);
    notify_send("STOPPING=1\n");
    code = ret ? EXIT_FAILURE : EXIT_SUCCESS;
    if (ret && ret != -EIO)
        log_line(LOG_ERROR, "ending: %s", strerror(-ret));
out:
    if (server)
        server_fini(server);
    free(server);
    registers_close(&registers);
    close(signal_fd);
    return code;
}

static int restore(const struct settings *set)
{
    char why[REGISTERS_WHY_BYTES];
    int ret = registers_restore(set->state_dir, set->restore_vm, set->restore_generation, why);

    if (ret) {
        log_line(LOG_ERROR, "%s", why);
        return ret == -EWOULDBLOCK ? EXIT_UNAVAILABLE : EXIT_CONFIG;
    }
    log_line(LOG_INFO, "the register of %s is at generation %llu", set->restore_vm,
             set->restore_generation);
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    struct settings set = {.state_dir = DEFAULT_STATE_DIR, .silent_ns = INT64_C(30000000000)};
    char why[OPTIONS_WHY_BYTES];
    int next;

    log_set_name("witness");
    if (options_parse(rows, &set, argc, argv, 1, &next, why)) {
        fprintf(stderr, "witness: %s\n", why);
        return EXIT_USAGE;
    }
    if (next < argc) {
        fprintf(stderr, "witness: unexpected argument \"%.60s\"; see --help\n", argv[next]);
        return EXIT_USAGE;
    }
    if (set.help) {
        printf("Usage: witness [OPTION]...\n"
               "The arbiter of Pollux: keeps one compare-and-swap register per VM, on disk.\n\n");
        options_help(rows);
        return 0;
    }
    if (set.version) {
        printf("witness (Pollux) " POLLUX_VERSION "\n");
        return 0;
    }
    return set.restore_vm[0] ? restore(&set) : run(&set);
}
