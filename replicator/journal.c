/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * journal.c - events for operators: one line in the log, one JSON object for subscribers, the last kept
 */
#include <json-c/json.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "daemon.h"

#define NOTE_AGAIN_NS (60000 * MS)

void journal_time(char *ret, size_t cap)
{
    struct timespec ts;
    struct tm tm;
    char seconds[32];

    clock_gettime(CLOCK_REALTIME, &ts);
    gmtime_r(&ts.tv_sec, &tm);
    strftime(seconds, sizeof(seconds), "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(ret, cap, "%s.%06ldZ", seconds, ts.tv_nsec / 1000);
}

static struct json_object *new_event(struct daemon *d, const char *type)
{
    struct json_object *o = json_object_new_object();
    char time[40];

    journal_time(time, sizeof(time));
    json_object_object_add(o, "seq", json_object_new_uint64(++d->journal_seq));
    json_object_object_add(o, "time", json_object_new_string(time));
    json_object_object_add(o, "mono_ns", json_object_new_int64(d->now_ns));
    json_object_object_add(o, "vm", json_object_new_string(d->options.vm));
    json_object_object_add(o, "type", json_object_new_string(type));
    json_object_object_add(o, "generation", json_object_new_uint64(d->session.generation));
    return o;
}

static void publish(struct daemon *d, struct json_object *o)
{
    struct journal_event *slot = &d->journal[d->journal_seq % JOURNAL_EVENTS];

    free(slot->line);
    slot->seq = d->journal_seq;
    slot->line = strdup(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
    control_publish(&d->control, o);
    json_object_put(o);
}

void journal_state(struct daemon *d, const struct session_action *a)
{
    uint64_t epoch = daemon_is_standby(d) || a->from == ST_PROMOTING ? d->session.rx_acked : d->session.pipe.acked;
    struct json_object *o = new_event(d, "state");

    log_line(LOG_INFO, "%s: generation %llu, epoch %llu: %s -> %s (%s)", d->options.vm,
             (unsigned long long)d->session.generation, (unsigned long long)epoch,
             session_state_name(a->from), session_state_name(a->to), a->text);
    json_object_object_add(o, "from", json_object_new_string(session_state_name(a->from)));
    json_object_object_add(o, "to", json_object_new_string(session_state_name(a->to)));
    json_object_object_add(o, "reason", json_object_new_string(a->text));
    json_object_object_add(o, "epoch", json_object_new_uint64(epoch));
    publish(d, o);
}

static const char *const note_types[JOURNAL_NOTE_TYPES] = { "note", "refused", "layout", "arbiter" };

static void tell(struct daemon *d, enum log_level level, const char *type, const char *text)
{
    struct json_object *o = new_event(d, type);

    log_line(level, "%s: %s", d->options.vm, text);
    json_object_object_add(o, "text", json_object_new_string(text));
    publish(d, o);
}

static void tell_left_out(struct daemon *d, struct journal_limit *limit)
{
    const char *type = note_types[limit - d->limit];
    char text[80];

    if (!limit->left_out)
        return;
    snprintf(text, sizeof(text), "%u more of type \"%s\" were left out here", limit->left_out, type);
    limit->left_out = 0;
    tell(d, limit->level, type, text);
}

/* When so many may be told at once: the places come back one by one. */
static int64_t places_at(const struct journal_limit *limit, unsigned places)
{
    return limit->full_at_ns - (JOURNAL_NOTES - places) * JOURNAL_NOTE_NS;
}

int64_t journal_tick(struct daemon *d)
{
    int64_t first = INT64_MAX;

    for (unsigned i = 0; i < JOURNAL_NOTE_TYPES; i++) {
        struct journal_limit *limit = &d->limit[i];
        int64_t at = places_at(limit, 2); /* nobody took the first */

        if (limit->left_out && at <= d->now_ns)
            tell_left_out(d, limit);
        else if (limit->left_out && at < first)
            first = at;
    }
    return first;
}

void journal_note(struct daemon *d, enum log_level level, const char *type, const char *text)
{
    struct journal_limit *limit;
    unsigned kind = 0;

    while (kind < JOURNAL_NOTE_TYPES - 1 && strcmp(note_types[kind], type) != 0)
        kind++;
    limit = &d->limit[kind];
    /* What is tried again twice a second, and strangers who knock, must not flood the log: once a minute is enough. */
    if (d->note_ns && d->now_ns - d->note_ns < NOTE_AGAIN_NS && strcmp(d->note, text) == 0)
        return;
    if (places_at(limit, 1) > d->now_ns) {
        limit->left_out++;
        limit->level = level;
        d->note_ns = 0; /* this one was not told, so its repeats are no repeats */
        return;
    }
    snprintf(d->note, sizeof(d->note), "%s", text);
    d->note_ns = d->now_ns;
    tell_left_out(d, limit);
    limit->full_at_ns = (limit->full_at_ns > d->now_ns ? limit->full_at_ns : d->now_ns) + JOURNAL_NOTE_NS;
    tell(d, level, type, text);
}

static double ms_between(int64_t from, int64_t to)
{
    return from && to > from ? (double)(to - from) / 1e6 : 0;
}

void journal_promoted(struct daemon *d)
{
    const struct promotion *p = &d->promotion;
    struct json_object *o = new_event(d, "promoted");

    log_line(LOG_INFO, "%s: promoted in generation %llu at epoch %llu: asked because %s; grant %.1f ms, load %.1f ms, run %.1f ms",
             d->options.vm, (unsigned long long)p->generation, (unsigned long long)p->epoch, p->reason,
             ms_between(p->asked_ns, p->granted_ns), ms_between(p->granted_ns, p->loaded_ns),
             ms_between(p->loaded_ns, p->running_ns));
    json_object_object_add(o, "reason", json_object_new_string(p->reason));
    json_object_object_add(o, "epoch", json_object_new_uint64(p->epoch));
    json_object_object_add(o, "silent_ms", json_object_new_double((double)p->silent_ns / 1e6));
    json_object_object_add(o, "arbiter", json_object_new_string(d->session.forced ? "overridden by the operator" : "granted"));
    json_object_object_add(o, "grant_ms", json_object_new_double(ms_between(p->asked_ns, p->granted_ns)));
    json_object_object_add(o, "load_ms", json_object_new_double(ms_between(p->granted_ns, p->loaded_ns)));
    json_object_object_add(o, "run_ms", json_object_new_double(ms_between(p->loaded_ns, p->running_ns)));
    publish(d, o);
}

void journal_replay(struct daemon *d, unsigned client, uint64_t since)
{
    uint64_t first = d->journal_seq > JOURNAL_EVENTS ? d->journal_seq - JOURNAL_EVENTS + 1 : 1;

    for (uint64_t seq = since >= first ? since + 1 : first; seq <= d->journal_seq; seq++) {
        const struct journal_event *e = &d->journal[seq % JOURNAL_EVENTS];
        if (e->line && e->seq == seq)
            control_send(&d->control, client, json_tokener_parse(e->line));
    }
}
