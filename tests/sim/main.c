/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * main.c - the simulator's command line: worlds one after the other until enough hours have passed
 */
#include "sim.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct options {
    uint64_t seed, world;
    bool one_world, trace, json, expect_violation, outside;
    double hours;
    enum session_mutant mutant;
    const char *scenario;
};

/* clang-format off */
static const char *const mutant_names[MUTANT_NUM] = {
    [MUTANT_NONE] = "none", [MUTANT_RELEASE_BEFORE_ACK] = "release-before-ack",
    [MUTANT_PASS_WITHOUT_GRANT] = "pass-without-grant", [MUTANT_PROMOTE_WITHOUT_GRANT] = "promote-without-grant",
    [MUTANT_PROMOTE_STALE] = "promote-stale", [MUTANT_REFUSED_GOES_ON] = "refused-goes-on",
    [MUTANT_UNREACHABLE_IS_YES] = "unreachable-is-yes", [MUTANT_ACK_BEFORE_COMPLETE] = "ack-before-complete",
    [MUTANT_ACK_WHILE_ASKING] = "ack-while-asking", [MUTANT_ALONE_NOT_GIVEN_UP] = "alone-not-given-up",
};

/* What must have happened in a hundred hours, or the run proves nothing. */
static const struct { enum count what; uint64_t per_100h; } wanted[] = {
    { N_FAULTS, 5000 }, { N_DOUBLE, 1000 }, { N_FAILOVERS, 200 }, { N_REFUSALS, 200 }, { N_UNREACHABLE, 200 },
    { N_REPEATED_GRANTS, 5 }, { N_RESYNCS, 1000 }, { N_PROTECTED, 1000 }, { N_EPOCHS, 100000 }, { N_HELD_RELEASED, 50000 },
    { N_STRAGGLERS, 1 }, { N_PARTS, 100 }, { N_PRECOPIES, 1000 }, { N_CAPTURE_FAILURES, 50 }, { N_OUTPUT_FULL, 10 }, { N_FROZEN, 20 },
    { N_SAVE_FAILURES, 5 }, { N_DAEMON_CRASHES, 500 }, { N_CRASH_AT_ACTION, 100 }, { N_HOST_LOSSES, 200 }, { N_QEMU_DEATHS, 200 },
    { N_PAUSES, 200 }, { N_PARTITIONS, 500 }, { N_SLOW_ASKS, 5 }, { N_BACKPRESSURE, 2 }, { N_OPERATOR, 300 },
    { N_SHUTDOWNS, 50 }, { N_SETTLED, 50 },
};
/* clang-format on */

static void usage(FILE *to)
{
    fprintf(to, "usage: sim [--seed N] [--hours H] [--world N] [--mutant NAME] [--expect-violation] [--outside] [--trace]\n"
                "           [--scenario NAME|all|list] [--json]\n"
                "Runs random worlds for H simulated hours (default 10), or one world, or a directed scenario.\n"
                "--outside: only what people would see counts: contradicting or lost output, a guest that is gone or stands still.\n"
                "Exit code 1: an oracle was violated; the seed, the world and the last events are printed. Mutants:\n ");
    for (unsigned i = 0; i < MUTANT_NUM; i++)
        fprintf(to, " %s", mutant_names[i]);
    fprintf(to, "\n");
}

static uint64_t fresh_seed(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return ((uint64_t)ts.tv_sec * 1000003u ^ (uint64_t)ts.tv_nsec) % 1000000000u;
}

static enum session_mutant find_mutant(const char *name)
{
    for (unsigned i = 0; i < MUTANT_NUM; i++) {
        if (strcmp(name, mutant_names[i]) == 0)
            return (enum session_mutant)i;
    }
    fprintf(stderr, "sim: no mutant %s\n", name);
    usage(stderr);
    exit(64);
}

static void parse(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        { "seed", required_argument, NULL, 's' },     { "hours", required_argument, NULL, 'h' },
        { "world", required_argument, NULL, 'w' },    { "mutant", required_argument, NULL, 'm' },
        { "trace", no_argument, NULL, 't' },          { "scenario", required_argument, NULL, 'c' },
        { "json", no_argument, NULL, 'j' },           { "expect-violation", no_argument, NULL, 'e' },
        { "outside", no_argument, NULL, 'o' },        { "help", no_argument, NULL, '?' },
        { NULL, 0, NULL, 0 },
    };
    int c;

    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 's': o->seed = strtoull(optarg, NULL, 0); break;
        case 'h': o->hours = strtod(optarg, NULL); break;
        case 'w':
            o->world = strtoull(optarg, NULL, 0);
            o->one_world = true;
            break;
        case 'm': o->mutant = find_mutant(optarg); break;
        case 't': o->trace = true; break;
        case 'c': o->scenario = optarg; break;
        case 'j': o->json = true; break;
        case 'e': o->expect_violation = true; break;
        case 'o': o->outside = true; break;
        default:
            usage(argc == 2 && strcmp(argv[1], "--help") == 0 ? stdout : stderr);
            exit(argc == 2 && strcmp(argv[1], "--help") == 0 ? 0 : 64);
        }
    }
    if (optind < argc) {
        usage(stderr);
        exit(64);
    }
}

static void report_failure(const struct world *w, const struct options *o)
{
    FILE *to = o->expect_violation ? stdout : stderr;

    if (!o->expect_violation && !o->trace)
        world_print_trace(w, to);
    fprintf(to, "%s: seed %llu world %llu, at %.6f s: %s\n", o->expect_violation ? "found" : "VIOLATION",
            (unsigned long long)w->seed, (unsigned long long)w->number, (double)w->now / 1e9, w->why);
    if (!o->expect_violation && !w->scenario)
        fprintf(to, "again: sim --seed %llu --world %llu%s%s --trace\n", (unsigned long long)w->seed,
                (unsigned long long)w->number, o->mutant ? " --mutant " : "", o->mutant ? mutant_names[o->mutant] : "");
}

/* @return whether enough happened */
static bool enough(const struct world *w, double hours)
{
    bool good = true;

    for (unsigned i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        double need = (double)wanted[i].per_100h * hours / 100;
        if ((double)w->count[wanted[i].what] < need) {
            fprintf(stderr, "too little happened: %s %llu, wanted %.0f\n", count_name[wanted[i].what],
                    (unsigned long long)w->count[wanted[i].what], need);
            good = false;
        }
    }
    for (unsigned i = ST_CLAIMING; i < ST_NUM; i++) {
        if (w->states[i] == 0) {
            fprintf(stderr, "too little happened: no side was ever %s\n", session_state_name((enum session_state)i));
            good = false;
        }
    }
    return good;
}

static void summary(const struct world *w, const struct options *o, double hours, double seconds)
{
    const char *sep = "";

    if (o->json) {
        printf("{\"seed\": %llu, \"hours\": %.1f, \"seconds\": %.1f, \"counts\": {", (unsigned long long)o->seed, hours, seconds);
        for (unsigned i = 0; i < N_NUM; i++, sep = ", ")
            printf("%s\"%s\": %llu", sep, count_name[i], (unsigned long long)w->count[i]);
        sep = "";
        printf("}, \"states\": {");
        for (unsigned i = 0; i < ST_NUM; i++, sep = ", ")
            printf("%s\"%s\": {\"entered\": %llu, \"polluxd_crashed\": %llu, \"qemu_or_host_died\": %llu}", sep,
                   session_state_name((enum session_state)i), (unsigned long long)w->states[i],
                   (unsigned long long)w->crashes[i], (unsigned long long)w->deaths[i]);
        printf("}}\n");
        return;
    }
    printf("%.1f simulated hours in %.1f s of processor time (%.0f times real time, %.0f ns a step), seed %llu\n", hours, seconds,
           hours * 3600 / seconds, seconds * 1e9 / (double)w->count[N_STEPS], (unsigned long long)o->seed);
    for (unsigned i = 0; i < N_NUM; i++)
        printf("  %-26s %12llu%s", count_name[i], (unsigned long long)w->count[i], i % 3 == 2 ? "\n" : "");
    printf("\n  %-16s %12s %15s %17s\n", "state", "entered", "polluxd crashed", "QEMU or host died");
    for (unsigned i = 0; i < ST_NUM; i++)
        printf("  %-16s %12llu %15llu %17llu\n", session_state_name((enum session_state)i), (unsigned long long)w->states[i],
               (unsigned long long)w->crashes[i], (unsigned long long)w->deaths[i]);
}

static double cpu_seconds(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int random_worlds(struct world *w, const struct options *o)
{
    double hours = 0, begun = cpu_seconds();
    int rc = 0;

    for (uint64_t k = o->world; hours < o->hours && !rc; k++) {
        world_begin(w, o->seed, k);
        w->world_end = w->now + 4 * 3600 * SEC;
        while (world_turn(w))
            ;
        hours += (double)(w->now - SEC) / 3600e9;
        rc = w->failed;
        if (o->one_world)
            break;
    }
    if (rc)
        report_failure(w, o);
    if (o->expect_violation) {
        printf("%s after %.2f simulated hours, %.2f s\n", rc ? "found" : "NOT found", hours, cpu_seconds() - begun);
        return !rc;
    }
    if (!o->one_world || !rc)
        summary(w, o, hours, cpu_seconds() - begun);
    if (!rc && !o->one_world && hours >= 50 && !enough(w, hours))
        rc = 1;
    return rc;
}

static int scenarios(struct world *w, const struct options *o)
{
    bool all = strcmp(o->scenario, "all") == 0, list = strcmp(o->scenario, "list") == 0, any = false;
    int rc = 0;

    for (unsigned i = 0; scenario_at(i); i++) {
        const struct scenario *s = scenario_at(i);
        if (list) {
            printf("%s\n", scenario_name(s));
            any = true;
            continue;
        }
        if (!all && strcmp(o->scenario, scenario_name(s)) != 0)
            continue;
        any = true;
        /* The same plot with other random times; once for a reader of the trace. */
        for (uint64_t n = 0; n < (o->trace ? 1u : 20u); n++) {
            if (!scenario_run(w, s, o->seed + n)) {
                report_failure(w, o);
                rc = 1;
                break;
            }
        }
        if (o->expect_violation && rc) {
            printf("found by scenario %s\n", scenario_name(s));
            return 0;
        }
        printf("%s %s\n", w->failed ? "not ok" : "ok", scenario_name(s));
    }
    if (!any)
        fprintf(stderr, "sim: no scenario %s; --scenario list names them\n", o->scenario);
    return !any ? 64 : o->expect_violation ? 1 : rc;
}

int main(int argc, char **argv)
{
    struct options o = { .seed = fresh_seed(), .hours = 10 };
    struct world *w = world_new();
    int rc;

    parse(argc, argv, &o);
    session_mutant = o.mutant;
    w->tracing = o.trace;
    w->outside = o.outside;
    if (!o.json)
        printf("sim: seed %llu%s%s\n", (unsigned long long)o.seed, o.mutant ? ", mutant " : "",
               o.mutant ? mutant_names[o.mutant] : "");
    rc = o.scenario ? scenarios(w, &o) : random_worlds(w, &o);
    world_free(w);
    return rc;
}
