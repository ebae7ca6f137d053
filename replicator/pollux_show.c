/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pollux_show.c - status and events in words for people
 */
#include "pollux_show.h"

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "pollux_client.h"

#define TEXT_BYTES 400

/* ---- members, whatever the daemon sent ---- */

static struct json_object *member(struct json_object *o, const char *key, enum json_type type)
{
    struct json_object *m;

    if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &m) ||
        !json_object_is_type(m, type))
        return NULL;
    return m;
}

const char *show_text(struct json_object *o, const char *key, const char *other)
{
    struct json_object *m = member(o, key, json_type_string);

    return m ? json_object_get_string(m) : other;
}

static uint64_t number(struct json_object *o, const char *key)
{
    struct json_object *m = member(o, key, json_type_int);

    return m ? json_object_get_uint64(m) : 0;
}

static double real(struct json_object *o, const char *key)
{
    struct json_object *m = member(o, key, json_type_double);

    return m ? json_object_get_double(m) : (double)number(o, key);
}

static bool yes(struct json_object *o, const char *key)
{
    struct json_object *m = member(o, key, json_type_boolean);

    return m && json_object_get_boolean(m);
}

static struct json_object *object(struct json_object *o, const char *key)
{
    return member(o, key, json_type_object);
}

/* Text for the terminal; the last four stay valid, enough for one printf. */
static const char *clean(struct json_object *o, const char *key)
{
    static char texts[4][TEXT_BYTES];
    static unsigned at;

    at = (at + 1) % 4;
    return client_printable(show_text(o, key, ""), texts[at], TEXT_BYTES);
}

/* ---- status ---- */

bool show_is_protected(struct json_object *status)
{
    return yes(status, "protected");
}

static void show_headline(struct json_object *s)
{
    const char *state = show_text(s, "state", "?");
    bool syncing = strcmp(state, "syncing") == 0 || strcmp(state, "standby-syncing") == 0;

    printf("%s: %s: %s", clean(s, "vm"), show_is_protected(s) ? "PROTECTED" : "NOT PROTECTED",
           clean(s, "state"));
    if (syncing)
        printf(" %" PRIu64 " %%", number(s, "sync_percent"));
    if (yes(s, "frozen"))
        printf(", FROZEN");
    if (*show_text(s, "reason", ""))
        printf(" (%s)", clean(s, "reason"));
    printf("\n");
    if (yes(s, "unsafe_release"))
        printf("  UNSAFE     output is not held (--unsafe-release-before-ack): a failover will "
               "lose data\n");
    if (yes(s, "forced"))
        printf("  FORCED     this side runs by an operator's word, without the arbiter's grant\n");
}

static void show_figures(struct json_object *s, const char *key, const char *name)
{
    struct json_object *f = object(s, key);

    if (!f || !number(f, "count"))
        return;
    printf("  %-10s p50 %.2f ms, p99 %.2f ms, max %.2f ms (%" PRIu64 " counted)\n", name,
           real(f, "p50") / 1000, real(f, "p99") / 1000, real(f, "max") / 1000, number(f, "count"));
}

static void show_guest(struct json_object *g)
{
    if (!yes(g, "attached")) {
        printf("  guest      no QEMU is attached\n");
        return;
    }
    printf("  guest      %s, %s, %" PRIu64 " processors, %" PRIu64 " MiB, QEMU %s\n",
           yes(g, "running") ? "running" : "not running", clean(g, "machine"), number(g, "cpus"),
           number(g, "memory_bytes") >> 20, clean(g, "qemu"));
}

static void show_peer(struct json_object *p)
{
    if (!*show_text(p, "address", ""))
        printf("  peer       none\n");
    else if (!yes(p, "connected"))
        printf("  peer       %s, NOT CONNECTED\n", clean(p, "address"));
    else
        printf("  peer       %s, %s, round trip %.2f ms, heard %" PRIu64 " ms ago\n",
               clean(p, "address"), clean(p, "state"), real(p, "rtt_us") / 1000,
               number(p, "last_seen_ms"));
}

static void show_arbiter(struct json_object *a)
{
    struct json_object *reachable = NULL;
    bool known = json_object_object_get_ex(a, "reachable", &reachable) && reachable;

    printf("  arbiter    %s, ", clean(a, "address"));
    if (!known)
        printf("not asked yet\n");
    else if (!yes(a, "reachable"))
        printf("CANNOT BE REACHED%s%s\n", *show_text(a, "why", "") ? ": " : "", clean(a, "why"));
    else
        printf("answers; generation %" PRIu64 ", %s\n", number(a, "generation"),
               !number(a, "generation") ? "nobody holds it yet"
               : yes(a, "holder_is_me") ? "this side holds it"
                                        : "the other side holds it");
}

static void show_promotion(struct json_object *p)
{
    printf("  promotion  %s: generation %" PRIu64 ", epoch %" PRIu64 " (%s)\n", clean(p, "time"),
           number(p, "generation"), number(p, "epoch"), clean(p, "detected"));
    printf("             detected in %.1f ms, grant %.1f ms, load %.1f ms, run %.1f ms: %.1f ms in "
           "all\n",
           real(p, "detect_ms"), real(p, "grant_ms"), real(p, "load_ms"), real(p, "run_ms"),
           real(p, "total_ms"));
}

void show_status(struct json_object *s)
{
    struct json_object *part;

    if (number(s, "version") != 1)
        printf("note: this pollux knows status version 1, polluxd sent version %" PRIu64
               "; --json shows all of it\n",
               number(s, "version"));
    show_headline(s);
    printf("  position   %s, generation %" PRIu64 ", epoch %" PRIu64 ", acked %" PRIu64
           ", released %" PRIu64 ", output %s\n",
           clean(s, "role"), number(s, "generation"), number(s, "epoch"), number(s, "acked"),
           number(s, "released"), clean(s, "output"));
    if ((part = object(s, "guest")))
        show_guest(part);
    if ((part = object(s, "peer")))
        show_peer(part);
    if ((part = object(s, "arbiter")))
        show_arbiter(part);
    show_figures(s, "pause_us", "pause");
    show_figures(s, "hold_us", "hold");
    show_figures(s, "ack_us", "ack");
    show_figures(s, "epoch_us", "epoch");
    if ((part = object(s, "totals")) && number(part, "epochs"))
        printf("  sent       %" PRIu64 " epochs, %" PRIu64
               " pages, %.1f MiB on the wire for %.1f MiB of pages\n",
               number(part, "epochs"), number(part, "pages"), real(part, "bytes_sent") / 1048576,
               real(part, "bytes_raw") / 1048576);
    if ((part = object(s, "memory")))
        printf("  memory     arena %.1f MiB, stream %.1f MiB, limit %.1f MiB\n",
               real(part, "arena_bytes") / 1048576, real(part, "stream_bytes") / 1048576,
               real(part, "limit_bytes") / 1048576);
    if ((part = object(s, "last_promotion")))
        show_promotion(part);
}

/* ---- events ---- */

void show_event(struct json_object *e)
{
    const char *type = show_text(e, "type", "");

    printf("%s %s %" PRIu64 " ", clean(e, "time"), clean(e, "vm"), number(e, "seq"));
    if (strcmp(type, "state") == 0)
        printf("%s -> %s (%s) generation %" PRIu64 " epoch %" PRIu64 "\n", clean(e, "from"),
               clean(e, "to"), clean(e, "reason"), number(e, "generation"), number(e, "epoch"));
    else if (strcmp(type, "promoted") == 0)
        printf("promoted: %s; generation %" PRIu64 " epoch %" PRIu64
               "; arbiter %s; grant %.1f ms, load %.1f ms, run %.1f ms\n",
               clean(e, "reason"), number(e, "generation"), number(e, "epoch"), clean(e, "arbiter"),
               real(e, "grant_ms"), real(e, "load_ms"), real(e, "run_ms"));
    else
        printf("%s: %s\n", clean(e, "type"), clean(e, "text"));
}

/* ---- before a forced promotion ---- */

void show_risk(struct json_object *s)
{
    struct json_object *peer = object(s, "peer"), *arbiter = object(s, "arbiter");
    bool outdated = strcmp(show_text(s, "state", ""), "outdated") == 0;

    fprintf(stderr, "%s: this side is %s, generation %" PRIu64 ", and holds epoch %" PRIu64 ".\n",
            clean(s, "vm"), clean(s, "state"), number(s, "generation"), number(s, "acked"));
    if (peer && yes(peer, "connected"))
        fprintf(stderr, "The other side (%s) IS CONNECTED and says it is %s.\n",
                clean(peer, "address"), clean(peer, "state"));
    else if (peer)
        fprintf(stderr, "The other side (%s) is not connected; it was last heard %.1f s ago.\n",
                clean(peer, "address"), real(peer, "last_seen_ms") / 1000);
    if (arbiter)
        fprintf(stderr, "The arbiter (%s) %s.\n", clean(arbiter, "address"),
                !yes(arbiter, "reachable") ? "cannot be reached, so it has granted nothing"
                : outdated                 ? "granted the guest to the other side, and will be asked to overrule that"
                                           : "answers: promote without --force is the safe way");
    fprintf(stderr, "\nA forced promotion runs this copy without a grant. If the other side still "
                    "runs the guest, there are\n"
                    "two of it from then on: both answer clients, their disks drift apart, and "
                    "what one of the two has done\n"
                    "since will have to be thrown away. Make sure first that the other host is off "
                    "or cut off.\n");
}
