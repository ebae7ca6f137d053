/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * core.c - virtual time: which event is next, and the trace of what was
 *
 * Owns: due[], the heap, the trace. Knows nothing about what an event does.
 */
#include "sim.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

const char *const count_name[N_NUM] = {
    [N_FAULTS] = "faults", [N_DOUBLE] = "multiple faults", [N_FAILOVERS] = "failovers", [N_REFUSALS] = "refusals",
    [N_UNREACHABLE] = "asks unanswered", [N_REPEATED_GRANTS] = "grants repeated", [N_RESYNCS] = "full syncs",
    [N_PROTECTED] = "protected", [N_EPOCHS] = "epochs", [N_RELEASED] = "packets released",
    [N_HELD_RELEASED] = "of them held", [N_STRAGGLERS] = "released late by a loser", [N_PARTS] = "captures in parts", [N_PRECOPIES] = "precopies",
    [N_CAPTURE_FAILURES] = "captures failed", [N_OUTPUT_FULL] = "output full", [N_FROZEN] = "frozen",
    [N_SAVE_FAILURES] = "saves failed", [N_DAEMON_CRASHES] = "polluxd crashes", [N_CRASH_AT_ACTION] = "of them between actions",
    [N_HOST_LOSSES] = "host losses", [N_QEMU_DEATHS] = "QEMU deaths", [N_PAUSES] = "pauses", [N_PARTITIONS] = "partitions",
    [N_LINK_RESETS] = "link resets", [N_ARBITER_CUTS] = "arbiter cuts", [N_SLOW_ASKS] = "slow asks", [N_TURNED_AWAY] = "peers turned away",
    [N_BACKPRESSURE] = "receiving paused", [N_OPERATOR] = "operator commands", [N_SHUTDOWNS] = "polluxd shutdowns",
    [N_SETTLED] = "settled", [N_LOST_EXCUSED] = "lost by two faults", [N_WORLDS] = "worlds", [N_STEPS] = "steps",
    [N_COLD_BOOTS] = "cold boots",
};

int64_t rng_log(struct rng *r, int64_t lo, int64_t hi)
{
    unsigned steps = 0;
    int64_t base = lo;

    while ((hi >> steps) > lo)
        steps++;
    base = lo << rng_below(r, steps + 1);
    base += (int64_t)rng_below(r, (uint64_t)base + 1);
    return base > hi ? hi : base;
}

static bool earlier(const struct heap_item *a, const struct heap_item *b)
{
    return a->at != b->at ? a->at < b->at : a->seq < b->seq;
}

static void heap_push(struct world *w, const struct heap_item *item)
{
    unsigned i = w->heap_nr;

    if (w->heap_nr == HEAP_MAX) {
        world_fail(w, "simulator: heap is full");
        return;
    }
    w->heap_nr++;
    for (; i && earlier(item, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = *item;
    w->due[DUE_HEAP] = w->heap[0].at;
}

static struct heap_item heap_pop(struct world *w)
{
    struct heap_item top = w->heap[0], last = w->heap[--w->heap_nr];
    unsigned i = 0;

    for (unsigned child; (child = 2 * i + 1) < w->heap_nr; i = child) {
        if (child + 1 < w->heap_nr && earlier(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!earlier(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    w->due[DUE_HEAP] = w->heap_nr ? w->heap[0].at : NEVER;
    return top;
}

void world_at(struct world *w, int64_t at, enum heap_type type, unsigned side, uint64_t a, uint64_t b)
{
    heap_push(w, &(struct heap_item){ at < w->now ? w->now : at, ++w->seq, type, side, a, b });
}

static void print_one(const struct trace *t, FILE *to)
{
    static const char *const kinds[] = { "<-", "->", "**" };
    const char *name = t->kind == TRACE_EVENT    ? session_event_name((enum session_event_type)t->type)
                       : t->kind == TRACE_ACTION ? session_action_name((enum session_action_type)t->type)
                                                 : "";

    fprintf(to, "%14.6f %c %s %-16s", (double)t->at / 1e9, t->side > 1 ? ' ' : 'a' + t->side, kinds[t->kind], name);
    if (t->a || t->b)
        fprintf(to, " %llu %llu", (unsigned long long)t->a, (unsigned long long)t->b);
    fprintf(to, " %s\n", t->text);
}

void world_trace(struct world *w, enum trace_kind kind, unsigned side, unsigned type, uint64_t a, uint64_t b,
                 const char *text)
{
    struct trace *t = &w->trace[w->trace_nr++ % TRACE_MAX];

    t->at = w->now;
    t->kind = (uint8_t)kind;
    t->side = (uint8_t)side;
    t->type = (uint8_t)type;
    t->a = a;
    t->b = b;
    t->text[0] = '\0';
    if (text && text[0])
        snprintf(t->text, sizeof(t->text), "%s", text);
    if (w->tracing)
        print_one(t, stdout);
}

void world_print_trace(const struct world *w, FILE *to)
{
    uint64_t first = w->trace_nr > TRACE_MAX ? w->trace_nr - TRACE_MAX : 0;

    for (uint64_t i = first; i < w->trace_nr; i++)
        print_one(&w->trace[i % TRACE_MAX], to);
}

void world_fail(struct world *w, const char *fmt, ...)
{
    va_list ap;

    if (w->failed)
        return;
    if (w->outside && strncmp(fmt, "oracle a", 8) != 0 && strncmp(fmt, "oracle b", 8) != 0 &&
        strncmp(fmt, "oracle d", 8) != 0) {
        if (strncmp(fmt, "oracle", 6) != 0)
            w->world_end = w->now; /* the simulator itself cannot go on */
        return;
    }
    w->failed = true;
    va_start(ap, fmt);
    vsnprintf(w->why, sizeof(w->why), fmt, ap);
    va_end(ap);
    world_trace(w, TRACE_WORLD, 2, 0, 0, 0, w->why);
}

struct world *world_new(void)
{
    struct world *w = calloc(1, sizeof(*w));
    struct msg *msgs = calloc((size_t)CONNS_MAX * 2 * QUEUE_MAX, sizeof(*msgs));

    if (w)
        w->nodes = calloc(NODES, sizeof(*w->nodes));
    if (!w || !msgs || !w->nodes) {
        fprintf(stderr, "sim: out of memory\n");
        exit(2);
    }
    for (unsigned c = 0; c < CONNS_MAX; c++) {
        w->conn[c].to[0].msg = msgs + (size_t)(2 * c) * QUEUE_MAX;
        w->conn[c].to[1].msg = msgs + (size_t)(2 * c + 1) * QUEUE_MAX;
    }
    return w;
}

void world_free(struct world *w)
{
    free(w->conn[0].to[0].msg);
    free(w->nodes);
    free(w);
}

static void heap_event(struct world *w)
{
    struct heap_item i = heap_pop(w);
    struct side *d = &w->side[i.side];

    switch (i.type) {
    case H_CONNECT: net_connect_arrives(w, d, (unsigned)i.a); break;
    case H_CONNECT_FAILED:
        if (d->life == i.b)
            net_connect_failed(w, d, (unsigned)i.a);
        break;
    case H_ASK: register_arrives(w, i.a); break;
    case H_ANSWER: register_answers(w, i.a, (enum session_grant)i.b); break;
    case H_ASK_TIMEOUT: register_timeout(w, i.a); break;
    case H_DAEMON_START:
        if (d->host_up && !d->daemon_up)
            side_start(w, d);
        break;
    case H_ATTACH:
        if (d->life == i.a)
            side_attach(w, d);
        break;
    case H_HOST_START:
        d->host_up = true;
        world_trace(w, TRACE_WORLD, d->id, 0, 0, 0, "host is up again");
        world_at(w, w->now + rng_range(&w->rng, 10 * MS, 2 * SEC), H_DAEMON_START, d->id, 0, 0);
        d->start_qemu_at = w->now + rng_range(&w->rng, 100 * MS, 5 * SEC);
        break;
    case H_QEMU_START: break;
    case H_QEMU_GONE:
        if (d->q.id == i.a && d->q.alive)
            qemu_kill(w, d, true);
        break;
    case H_PART_TIMEOUT: qemu_part_timeout(w, d, i.a); break;
    case H_QMP_DEADLINE: qemu_deadline(w, d, i.a); break;
    case H_FAULT: fault_next(w); break;
    case H_POLL: fault_poll(w); break;
    case H_WAKE:
        side_update(w, d);
        net_update(w);
        break;
    case H_ARBITER_UP: w->arbiter.up = true; break;
    case H_PHASE: fault_phase(w); break;
    case H_SCENARIO: scenario_fire(w, i.a); break;
    case H_BUSY: fault_busy(w, (int64_t)i.a); break;
    }
}

static void side_event(struct world *w, unsigned which)
{
    struct side *d = &w->side[which / K_NUM];

    switch (which % K_NUM) {
    case K_SESSION: side_tick(w, d); break;
    case K_INBOX:
        if (rng_permille(&w->rng, 500))
            side_tick(w, d);
        side_settle(w, d);
        break;
    case K_QMP: qemu_cmd_done(w, d); break;
    case K_SENDER: side_job_done(w, d); break;
    case K_SAVER: side_saved(w, d); break;
    case K_OUTPUT: qemu_output(w, d); break;
    default: break;
    }
}

bool world_turn(struct world *w)
{
    unsigned first = 0;
    int64_t at = w->due[0];

    for (unsigned i = 1; i < w->due_nr; i++) {
        if (w->due[i] < at) {
            at = w->due[i];
            first = i;
        }
    }
    if (at >= w->world_end || w->failed)
        return false;
    if (at > w->now)
        w->now = at;
    if (first == DUE_HEAP)
        heap_event(w);
    else if (first < DUE_NET(0, 0))
        side_event(w, first - 1);
    else
        net_deliver(w, (first - DUE_NET(0, 0)) / 2, (first - DUE_NET(0, 0)) % 2);
    return !w->failed;
}
