/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * peer.c - what the peer's records mean: each becomes session events, or goes into the store
 *
 * Owns: the introduction (who may be our peer at all) and the rule that every record belongs to the
 * generation in hand. wire.c has checked each record by itself; the session judges the order of things.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon.h"
#include "layout.h"

static void broken(struct daemon *d, int code, const char *why)
{
    mailbox_put(&d->box, &(struct session_event){ .type = SE_PEER_ERROR, .code = code, .text = why });
}

static void on_hello(struct daemon *d, const struct wire_record *rec)
{
    struct wire_hello h;
    struct session_event e = { .type = SE_PEER_HELLO, .generation = rec->generation, .epoch = rec->epoch };

    if (wire_decode_hello(rec, &h) < 0) {
        broken(d, WIRE_REFUSE_PROTOCOL, "HELLO cannot be read");
    } else if (h.version_min > WIRE_VERSION_MAX || h.version_max < WIRE_VERSION_MIN) {
        broken(d, WIRE_REFUSE_VERSION, "no protocol version in common: update polluxd on both hosts");
    } else if (memcmp(h.vm, d->options.vm, sizeof(h.vm)) != 0) {
        char text[SESSION_TEXT_BYTES];
        snprintf(text, sizeof(text), "another VM: %s here, %.*s there", d->options.vm,
                 (int)sizeof(h.vm), h.vm);
        broken(d, WIRE_REFUSE_NAME, text);
    } else if (memcmp(h.instance, d->session.config.instance, sizeof(h.instance)) == 0) {
        broken(d, WIRE_REFUSE_ITSELF, "the peer is this polluxd itself (or its state directory was copied)");
    } else {
        e.flag = h.role == WIRE_ROLE_ACTIVE;
        d->peer_port = h.listen_port;
        mailbox_put(&d->box, &e);
    }
}

static void on_layout(struct daemon *d, const struct wire_record *rec)
{
    char text[WIRE_TEXT_MAX_BYTES + 1];
    const char *why = NULL;
    int rc = layout_diff(d->guest.layout, d->guest.layout_len, rec->payload, rec->len, text, sizeof(text), &why);
    struct session_event e = { .type = SE_PEER_LAYOUT, .flag = rc == 0, .text = text };

    if (rc < 0)
        broken(d, WIRE_REFUSE_PROTOCOL, why);
    else
        mailbox_put(&d->box, &e);
    if (rc > 0 && strlen(text) >= SESSION_TEXT_BYTES)
        journal_note(d, LOG_WARNING, "layout", text); /* whole, where a REFUSE and a reason are cut */
}

static void on_reason(struct daemon *d, const struct wire_record *rec)
{
    char text[SESSION_TEXT_BYTES];
    const char *p = "";
    uint32_t code = 0;
    int len = 0;
    struct session_event e = { .type = rec->type == WIRE_REFUSE       ? SE_PEER_REFUSED
                                       : rec->type == WIRE_GUEST_GONE ? SE_PEER_GONE
                                                                      : SE_PEER_ENDED };

    if (wire_decode_reason(rec, &code, &p, &len) < 0)
        return;
    snprintf(text, sizeof(text), "%.*s", len, p);
    e.code = (int)code;
    e.text = text;
    mailbox_put(&d->box, &e);
}

static void on_heartbeat(struct daemon *d, const struct wire_record *rec)
{
    struct wire_heartbeat h;

    if (wire_decode_heartbeat(rec, &h) < 0)
        return;
    d->peer_sent_ns = h.sent_ns;
    d->peer_sent_at_ns = (uint64_t)d->now_ns;
    d->peer_state = h.state;
    if (h.echo_ns && h.echo_ns <= (uint64_t)d->now_ns)
        d->meters.rtt_us = ((uint64_t)d->now_ns - h.echo_ns) / 1000;
}

/* @return whether the record was taken; otherwise it waits for a free slot */
static bool to_store(struct daemon *d, const struct wire_record *rec)
{
    enum store_said said = STORE_TAKEN;
    unsigned slot = 0;
    bool full = d->store.full;
    struct session_event e = { .epoch = rec->epoch };

    if (!d->store_open) {
        broken(d, WIRE_REFUSE_PROTOCOL, "an epoch before the introduction was over");
        return true;
    }
    if (store_take(&d->store, rec, &said, &slot) < 0) {
        broken(d, WIRE_REFUSE_PROTOCOL, d->store.why);
        return true;
    }
    switch (said) {
    case STORE_BUSY:
        return false;
    case STORE_BEGAN:
        e.type = SE_RX_BEGIN;
        e.flag = d->store.full;
        mailbox_put(&d->box, &e);
        break;
    case STORE_PART:
        store_applying(&d->store, slot, true);
        guest_apply(&d->guest, slot, d->store.slot[slot].nr_pages, d->store_number);
        break;
    case STORE_COMPLETE:
        e.type = SE_RX_COMPLETE;
        e.flag = full;
        mailbox_put(&d->box, &e);
        break;
    case STORE_TAKEN:
        break;
    }
    return true;
}

static void pause_receiving(struct daemon *d, bool pause)
{
    d->has_waiting = pause;
    mailbox_put(&d->box, &(struct session_event){ .type = SE_RX_PAUSED, .flag = pause });
}

void peer_on_record(struct daemon *d, const struct wire_record *rec)
{
    bool bound = rec->type != WIRE_HELLO && rec->type != WIRE_REFUSE && rec->type != WIRE_LAYOUT &&
                 rec->type != WIRE_HEARTBEAT;

    d->peer_seen_ns = (uint64_t)d->now_ns;
    if (bound && rec->generation != d->session.generation) {
        broken(d, WIRE_REFUSE_PROTOCOL, "a record of another generation");
        return;
    }
    switch (rec->type) {
    case WIRE_HELLO: on_hello(d, rec); break;
    case WIRE_LAYOUT: on_layout(d, rec); break;
    case WIRE_REFUSE:
    case WIRE_GUEST_GONE:
    case WIRE_GUEST_ENDED: on_reason(d, rec); break;
    case WIRE_HEARTBEAT: on_heartbeat(d, rec); break;
    case WIRE_ACK:
        mailbox_put(&d->box, &(struct session_event){ .type = SE_ACK, .epoch = rec->epoch });
        break;
    case WIRE_APPLIED: break;
    case WIRE_EPOCH_BEGIN:
    case WIRE_PAGES:
    case WIRE_STATE:
    case WIRE_EPOCH_END:
        if (!to_store(d, rec)) {
            d->waiting = *rec; /* its payload stays where it is: nothing is received meanwhile */
            pause_receiving(d, true);
        }
        break;
    default: broken(d, WIRE_REFUSE_PROTOCOL, "a record that has no meaning here"); break;
    }
}

bool peer_retry(struct daemon *d)
{
    if (!d->has_waiting)
        return true;
    if (!to_store(d, &d->waiting))
        return false;
    pause_receiving(d, false);
    return true;
}

void peer_send_hello(struct daemon *d, const struct session_action *a)
{
    struct wire_hello h = {
        .version_min = WIRE_VERSION_MIN,
        .version_max = WIRE_VERSION_MAX,
        .role = a->flag ? WIRE_ROLE_ACTIVE : WIRE_ROLE_STANDBY,
        .flags = a->generation == 0 ? 1 : 0,
        .boot = d->session.config.boot,
    };
    struct sockaddr_storage listen;

    if (link_parse_address(d->options.listen, &listen) > 0) /* the port is at the same place in both families */
        h.listen_port = ntohs(((struct sockaddr_in *)&listen)->sin_port);

    memcpy(h.vm, d->options.vm, sizeof(h.vm));
    memcpy(h.instance, d->session.config.instance, sizeof(h.instance));
    link_send(&d->link, WIRE_HELLO, a->generation, a->epoch, &h, sizeof(h));
    link_send_layout(&d->link, a->generation, d->guest.layout, d->guest.layout_len);
}

void peer_send_heartbeat(struct daemon *d)
{
    uint64_t now = (uint64_t)d->now_ns;
    struct wire_heartbeat h = {
        .sent_ns = now,
        .echo_ns = d->peer_sent_ns ? d->peer_sent_ns + (now - d->peer_sent_at_ns) : 0,
        .state = d->session.state,
    };
    uint64_t epoch = daemon_is_standby(d) ? d->session.rx_complete : d->session.pipe.acked;

    if (link_busy(&d->link))
        return; /* what waits is a sign of life as well; heartbeats behind it would take the places of acks and epochs */
    link_send(&d->link, WIRE_HEARTBEAT, d->session.generation, epoch, &h, sizeof(h));
}
