/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * status.c - what `pollux status --json` says (docs/CONTROL.md, version 1)
 */
#include <json-c/json.h>
#include <string.h>

#include "daemon.h"

static void text(struct json_object *o, const char *key, const char *value)
{
    json_object_object_add(o, key, json_object_new_string(value));
}

static void number(struct json_object *o, const char *key, uint64_t value)
{
    json_object_object_add(o, key, json_object_new_uint64(value));
}

static void yes_no(struct json_object *o, const char *key, bool value)
{
    json_object_object_add(o, key, json_object_new_boolean(value));
}

static void figures(struct json_object *o, const char *key, const struct histogram *h)
{
    struct json_object *f = json_object_new_object();

    number(f, "p50", histogram_percentile(h, 500));
    number(f, "p99", histogram_percentile(h, 990));
    number(f, "max", h->max);
    number(f, "count", h->count);
    json_object_object_add(o, key, f);
}

static const char *role(enum session_state state)
{
    switch (state) {
    case ST_CLAIMING:
    case ST_ALONE:
    case ST_SYNCING:
    case ST_ENTERING:
    case ST_PROTECTED: return "active";
    case ST_STANDBY_WAIT:
    case ST_STANDBY_SYNCING:
    case ST_STANDBY_READY:
    case ST_STANDBY_ASKING:
    case ST_PROMOTING: return "standby";
    default: return "none";
    }
}

static unsigned sync_percent(const struct daemon *d)
{
    uint64_t total = d->guest.memory_bytes / 4096;
    uint64_t have = d->store_open ? d->store.sync_pages : d->sender.pages_sent;

    if (d->session.state == ST_PROTECTED || d->session.state == ST_STANDBY_READY)
        return 100;
    if ((d->session.state != ST_SYNCING && d->session.state != ST_STANDBY_SYNCING) || total == 0)
        return 0;
    return have >= total ? 99 : (unsigned)(have * 100 / total);
}

static struct json_object *guest(const struct daemon *d)
{
    const struct guest *g = &d->guest;
    struct json_object *o = json_object_new_object(), *nics = json_object_new_array();

    yes_no(o, "attached", g->state == GUEST_KNOWN);
    yes_no(o, "running", g->state == GUEST_KNOWN && g->running);
    text(o, "qemu", g->qemu);
    text(o, "machine", g->machine);
    number(o, "memory_bytes", g->memory_bytes);
    number(o, "cpus", g->cpus);
    for (unsigned i = 0; i < g->nr_nics; i++) {
        struct json_object *n = json_object_new_object();
        text(n, "netdev", g->nic[i].netdev);
        text(n, "model", g->nic[i].model);
        text(n, "mac", g->nic[i].mac);
        json_object_array_add(nics, n);
    }
    json_object_object_add(o, "nics", nics);
    return o;
}

static struct json_object *memory(const struct daemon *d)
{
    struct json_object *o = json_object_new_object();
    uint64_t arena = d->store_open ? store_bytes(&d->store)
                     : d->arena.fd >= 0 ? arena_bytes(&d->arena.geometry)
                                        : 0;
    uint64_t limit = d->store_open ? STORE_SLOTS * d->guest.memory_bytes : arena;

    number(o, "arena_bytes", arena);
    number(o, "stream_bytes", d->link.rx_bytes + SENDER_BATCHES * (uint64_t)WIRE_RECORD_MAX_BYTES);
    number(o, "limit_bytes", limit + d->link.rx_bytes + SENDER_BATCHES * (uint64_t)WIRE_RECORD_MAX_BYTES);
    return o;
}

static struct json_object *peer(const struct daemon *d)
{
    struct json_object *o = json_object_new_object();
    bool up = d->session.link_up;

    text(o, "address", up ? d->link.peer_text : d->peer_address);
    yes_no(o, "connected", up);
    number(o, "rtt_us", up ? d->meters.rtt_us : 0);
    number(o, "last_seen_ms", d->peer_seen_ns ? ((uint64_t)d->now_ns - d->peer_seen_ns) / 1000000 : 0);
    text(o, "state", up && d->peer_seen_ns ? session_state_name((enum session_state)d->peer_state) : "");
    return o;
}

static struct json_object *arbiter(const struct daemon *d)
{
    const struct asker *a = &d->asker;
    static const char *const answers[] = { [GRANT_YES] = "granted", [GRANT_NO] = "refused", [GRANT_UNREACHABLE] = "none" };
    struct json_object *o = json_object_new_object();

    text(o, "kind", "witness");
    text(o, "address", d->options.arbiter);
    json_object_object_add(o, "reachable", a->arbiter.reach == ARBITER_REACH_UNKNOWN
                                               ? NULL
                                               : json_object_new_boolean(a->arbiter.reach == ARBITER_REACH_YES));
    text(o, "why", a->arbiter.reach == ARBITER_REACH_YES ? "" : a->arbiter.why);
    text(o, "last_answer", a->asked ? answers[a->last.grant] : "none");
    number(o, "generation", a->arbiter.known.generation);
    yes_no(o, "holder_is_me", a->arbiter.known_valid &&
                                  memcmp(a->arbiter.known.holder, d->session.config.instance, 16) == 0);
    number(o, "rtt_us", (uint64_t)a->arbiter.rtt_ns / 1000);
    return o;
}

static double ms(int64_t from, int64_t to)
{
    return from && to > from ? (double)(to - from) / 1e6 : 0;
}

static struct json_object *promotion(const struct daemon *d)
{
    const struct promotion *p = &d->promotion;
    struct json_object *o;

    if (!p->valid)
        return NULL;
    o = json_object_new_object();
    text(o, "time", p->time);
    number(o, "generation", p->generation);
    number(o, "epoch", p->epoch);
    text(o, "detected", p->reason);
    json_object_object_add(o, "detect_ms", json_object_new_double((double)p->silent_ns / 1e6));
    json_object_object_add(o, "grant_ms", json_object_new_double(ms(p->asked_ns, p->granted_ns)));
    json_object_object_add(o, "load_ms", json_object_new_double(ms(p->granted_ns, p->loaded_ns)));
    json_object_object_add(o, "run_ms", json_object_new_double(ms(p->loaded_ns, p->running_ns)));
    json_object_object_add(o, "total_ms", json_object_new_double((double)p->silent_ns / 1e6 + ms(p->asked_ns, p->running_ns)));
    return o;
}

struct json_object *status_json(struct daemon *d)
{
    static const char *const outputs[] = { [OUTPUT_HOLD] = "hold", [OUTPUT_PASS] = "pass", [OUTPUT_DROP] = "drop" };
    const struct session *s = &d->session;
    const struct meters *m = &d->meters;
    bool standby = daemon_is_standby(d);
    struct json_object *o = json_object_new_object(), *totals = json_object_new_object();

    number(o, "version", 1);
    text(o, "vm", d->options.vm);
    text(o, "role", role(s->state));
    text(o, "state", session_state_name(s->state));
    yes_no(o, "protected", s->state == ST_PROTECTED || s->state == ST_STANDBY_READY);
    text(o, "reason", s->reason);
    yes_no(o, "frozen", s->frozen);
    yes_no(o, "forced", s->forced);
    number(o, "generation", s->generation);
    number(o, "epoch", standby ? s->rx_complete : s->started ? s->pipe.executing : 0);
    number(o, "acked", standby ? s->rx_acked : s->pipe.acked);
    number(o, "released", standby ? 0 : s->pipe.released);
    number(o, "applied", standby ? s->rx_applied : 0);
    text(o, "output", outputs[s->output]);
    yes_no(o, "unsafe_release", s->config.unsafe_release);
    number(o, "sync_percent", sync_percent(d));
    figures(o, "pause_us", &m->pause_us);
    figures(o, "epoch_us", &m->epoch_us);
    figures(o, "hold_us", &m->hold_us);
    figures(o, "ack_us", &m->ack_us);
    figures(o, "pages_per_epoch", &m->pages);
    figures(o, "bytes_per_epoch", &m->bytes);
    number(totals, "epochs", m->epochs);
    number(totals, "pages", m->pages_total);
    number(totals, "bytes_raw", m->pages_total * 4096);
    number(totals, "bytes_sent", d->link.bytes_sent);
    number(totals, "bytes_received", d->link.bytes_received);
    number(totals, "captures_failed", m->captures_failed);
    number(totals, "stale_completions", d->loop.stale);
    json_object_object_add(o, "totals", totals);
    json_object_object_add(o, "guest", guest(d));
    json_object_object_add(o, "memory", memory(d));
    json_object_object_add(o, "peer", peer(d));
    json_object_object_add(o, "arbiter", arbiter(d));
    json_object_object_add(o, "last_promotion", promotion(d));
    number(o, "uptime_s", (uint64_t)(d->now_ns - d->started_ns) / 1000000000);
    return o;
}
