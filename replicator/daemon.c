/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * daemon.c - polluxd's loop: completions become events, the session's actions are carried out
 *
 * Theory of operation: one thread, one ring. Each turn waits for completions or the nearest deadline, hands
 * each completion to the part that owns its descriptor, and then settles: events are taken from the mailbox
 * one by one, the session answers each with actions, which the parts carry out (and which may put further
 * events in the mailbox), until nothing is left to do. Only workers (sender.c) and the saver run beside it.
 */
#include "daemon.h"

#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "bug.h"
#include "notify.h"

#define STATE_MAX_BYTES (8u << 20) /* device state; q35 with 32 virtio devices has 2 MB */
#define FLUSH_NS (200 * MS)
#define TURN_NS (2 * MS)
#define ALIVE_NS (2 * MS) /* signs of life that are no whole record count no more often */
#define SAVER_END_NS (2000 * MS)
#define DOORS_NAP_NS (20 * MS)
#define DOORS_TRIES 50

static int64_t monotonic_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void done(struct daemon *d, uint64_t serial, int error, const char *text)
{
    mailbox_put(&d->box, &(struct session_event){ .type = SE_DONE, .serial = serial, .error = error, .text = text });
}

/* ---- what the guest's side tells beside events ---- */

static void on_captured(void *opaque, const struct guest_capture *c)
{
    struct daemon *d = opaque;
    struct meters *m = &d->meters;
    uint64_t now = (uint64_t)d->now_ns;

    d->captured = *c;
    if (c->precopy || !c->complete)
        return;
    histogram_add(&m->pause_us, (uint64_t)c->pause_ns / 1000);
    if (m->last_capture_ns)
        histogram_add(&m->epoch_us, (now - m->last_capture_ns) / 1000);
    m->last_capture_ns = now;
    m->captured_at[c->epoch % 64] = now;
    m->epochs++;
    hold_captured(&d->hold, c->epoch, c->held_packets, c->held_bytes, now);
}

static void on_applied(void *opaque, unsigned slot, uint64_t store)
{
    struct daemon *d = opaque;
    bool ours = d->store_open && store == d->store_number; /* a slow QEMU may answer for the store before this one */
    uint64_t epoch = ours ? store_applied(&d->store, slot) : 0;

    if (epoch)
        mailbox_put(&d->box, &(struct session_event){ .type = SE_APPLIED, .epoch = epoch });
}

static void on_released(void *opaque, uint64_t epoch, uint64_t packets, uint64_t bytes)
{
    struct daemon *d = opaque;
    uint64_t held_packets, held_bytes, of, held_ns;
    struct session_event e = { .type = SE_RELEASED, .epoch = epoch };

    hold_released(&d->hold, epoch, packets, bytes, (uint64_t)d->now_ns);
    while (hold_next_time(&d->hold, &of, &held_ns))
        histogram_add(&d->meters.hold_us, held_ns / 1000);
    arena_held(&d->arena, &held_packets, &held_bytes);
    e.code = held_packets < d->options.hold_max_packets / 2 && held_bytes < d->options.hold_max_bytes / 2;
    mailbox_put(&d->box, &e);
}

static void on_warning(void *opaque, const char *text)
{
    journal_note(opaque, LOG_WARNING, "note", text);
}

static void on_news(void *opaque, const char *text)
{
    journal_note(opaque, LOG_INFO, "arbiter", text);
}

/* ---- the session's actions ---- */

static void start_active(struct daemon *d, uint64_t serial)
{
    struct arena_geometry geometry = {
        .slots = d->options.session.nr_slots,
        .slot_pages = d->options.slot_pages,
        .state_max = STATE_MAX_BYTES,
    };
    int rc = 0;

    if (d->guest.disk[0]) {
        char text[SESSION_TEXT_BYTES];
        snprintf(text, sizeof(text), "disk %s is writable, and disk writes are not replicated yet: attach it read-only", d->guest.disk);
        done(d, serial, -ENOTSUP, text);
        return;
    }
    for (unsigned i = 0; i < d->guest.nr_nics; i++) {
        if (d->guest.nic[i].vhost) {
            char text[SESSION_TEXT_BYTES];
            snprintf(text, sizeof(text), "NIC %s uses vhost, which bypasses QEMU: start it with vhost=off", d->guest.nic[i].netdev);
            done(d, serial, -ENOTSUP, text);
            return;
        }
    }
    sender_stop(&d->sender); /* its workers read the arena before */
    arena_close(&d->arena);
    rc = arena_open(&geometry, &d->arena);
    if (rc < 0) {
        char text[SESSION_TEXT_BYTES];
        snprintf(text, sizeof(text), "no memory for the arena: %s", strerror(-rc));
        done(d, serial, rc, text);
        return;
    }
    d->blocks = (struct codec_blocks){ .nr = d->guest.nr_blocks, .nr_pages = d->guest.block_pages };
    sender_start(&d->sender, &d->arena, &d->blocks, d->session.generation);
    hold_restart(&d->hold, (uint64_t)d->now_ns);
    d->meters.last_capture_ns = 0;
    guest_checkpoint_start(&d->guest, true, &d->arena, d->wake_fd, serial);
}

static void start_standby(struct daemon *d, uint64_t serial)
{
    int rc;

    if (d->store_open)
        store_close(&d->store);
    d->blocks = (struct codec_blocks){ .nr = d->guest.nr_blocks, .nr_pages = d->guest.block_pages };
    rc = store_open(&d->store, &d->blocks, STATE_MAX_BYTES);
    d->store_open = rc == 0;
    d->store_number++;
    if (rc < 0)
        done(d, serial, rc, "no memory for the standby's epochs");
    else
        guest_checkpoint_start(&d->guest, false, &d->store.arena, d->wake_fd, serial);
}

static void stop_checkpoint(struct daemon *d, uint64_t serial)
{
    sender_stop(&d->sender);
    guest_checkpoint_stop(&d->guest, serial);
    arena_close(&d->arena);
    if (d->store_open)
        store_close(&d->store);
    d->store_open = false;
    d->has_waiting = false;
}

/* An epoch may take several slots. The full one is no measure of an epoch, only of the bytes. */
static void count_pages(struct meters *m, const struct session_action *a, uint64_t pages)
{
    m->pages_total += pages;
    m->epoch_pages = a->first ? pages : m->epoch_pages + pages;
    if (a->last && !a->full)
        histogram_add(&m->pages, m->epoch_pages);
}

static void send_slot(struct daemon *d, const struct session_action *a)
{
    const struct guest_capture *c = &d->captured;
    struct sender_job job = {
        .epoch = a->epoch,
        .slot = a->slot,
        .first = a->first,
        .last = a->last,
        .full = a->full,
        .nr_pages = c->pages,
        .state_bytes = a->last ? (uint32_t)c->state_bytes : 0,
        .held_packets = c->held_packets,
        .held_bytes = c->held_bytes,
    };

    if (c->pages > d->arena.geometry.slot_pages || c->state_bytes > d->arena.geometry.state_max ||
        (a->last && c->state_bytes == 0)) {
        mailbox_say(&d->box, SE_CAPTURE_FAILED, "QEMU says that a capture has an impossible size");
        return;
    }
    count_pages(&d->meters, a, c->pages);
    if (sender_add(&d->sender, &job) < 0)
        mailbox_say(&d->box, SE_CAPTURE_FAILED, "too many slots wait to be sent");
}

static void apply(struct daemon *d, uint64_t epoch)
{
    int slot = d->store_open ? store_find(&d->store, epoch) : -1;

    if (slot < 0) {
        mailbox_say(&d->box, SE_GUEST_LOST, "bug: an acked epoch is not in the store");
        return;
    }
    store_applying(&d->store, (unsigned)slot, false);
    guest_apply(&d->guest, (unsigned)slot, d->store.slot[slot].nr_pages, d->store_number);
    store_acked(&d->store, epoch);
}

static void load(struct daemon *d, const struct session_action *a)
{
    int slot = d->store_open ? store_find(&d->store, a->epoch) : -1;

    d->promotion.epoch = a->epoch;
    if (slot < 0)
        done(d, a->serial, -ENOENT, "bug: the epoch to load is not in the store");
    else
        guest_load(&d->guest, (unsigned)slot, d->store.slot[slot].state_bytes, a->serial);
}

static void drop_link(struct daemon *d)
{
    if (d->store_open)
        store_discard(&d->store);
    d->has_waiting = false;
    if (d->parting)
        link_flush_and_drop(&d->link, d->now_ns + FLUSH_NS);
    else
        link_drop(&d->link);
    d->parting = false;
    d->peer_sent_ns = 0;
}

static void connect_peer(struct daemon *d)
{
    int rc = d->peer_address[0] ? link_connect(&d->link, d->peer_address, WIRE_PEER_STANDBY) : -EINVAL;

    if (rc < 0) {
        char text[SESSION_TEXT_BYTES];
        snprintf(text, sizeof(text), "cannot connect to the peer %s: %s", d->peer_address, strerror(-rc));
        mailbox_say(&d->box, SE_LINK_DOWN, text);
    }
}

static void save(struct daemon *d, const struct session_action *a)
{
    d->record.contents.persist = a->persist;
    d->record.contents.paired = d->session.paired;
    snprintf(d->record.contents.peer, sizeof(d->record.contents.peer), "%s", d->peer_address);
    d->record.serial = a->serial;
    if (saver_put(&d->saver, &d->record) < 0)
        done(d, a->serial, -EBUSY, "the state file is written too slowly");
}

static void answer_operator(struct daemon *d, const struct session_action *a)
{
    struct json_object *o;

    if (d->op_client < 0)
        return;
    if (control_id(&d->control, (unsigned)d->op_client) != d->op_id) {
        d->op_client = -1; /* whoever asked has left */
        return;
    }
    if (a->code) {
        control_fail(&d->control, (unsigned)d->op_client, a->code, a->text);
    } else {
        o = json_object_new_object();
        json_object_object_add(o, "state", json_object_new_string(session_state_name(d->session.state)));
        json_object_object_add(o, "text", json_object_new_string(a->text));
        control_answer(&d->control, (unsigned)d->op_client, o);
    }
    d->op_client = -1;
}

static void say_reason(struct daemon *d, enum wire_type type, int code, const char *text)
{
    uint64_t epoch = type == WIRE_REFUSE ? 0 : d->session.pipe.sent;

    link_send_reason(&d->link, type, d->session.generation, epoch, (uint32_t)code, text);
    d->parting = true;
}

/*
 * A standby may have to look for its peer one day, and was told no address: it is where the active called from, at
 * the port that its HELLO named.
 */
static void remember_peer(struct daemon *d)
{
    const char *from = d->link.peer_text, *colon = strrchr(from, ':');

    if (colon && d->peer_port)
        snprintf(d->peer_address, sizeof(d->peer_address), "%.*s:%u", (int)(colon - from), from, d->peer_port);
}

/* Who was turned away and why; without the port, which differs each time that the same one knocks. */
static void note_refusal(struct daemon *d, const char *why)
{
    const char *from = d->link.peer_text, *colon = strrchr(from, ':');
    char text[SESSION_TEXT_BYTES + LINK_ADDRESS_BYTES + 32];

    snprintf(text, sizeof(text), "refused the peer %.*s: %s", colon ? (int)(colon - from) : 0, from, why);
    journal_note(d, LOG_WARNING, "refused", text);
}

static void note_move(struct daemon *d, const struct session_action *a)
{
    journal_state(d, a);
    if (a->to == ST_STANDBY_SYNCING)
        remember_peer(d); /* before SA_SAVE, which follows */
    if (a->to == ST_STANDBY_ASKING) {
        d->promotion = (struct promotion){ .asked_ns = d->now_ns, .silent_ns = d->now_ns - (int64_t)d->peer_seen_ns };
        snprintf(d->promotion.reason, sizeof(d->promotion.reason), "%s", a->text);
    } else if (a->to == ST_PROMOTING) {
        d->promotion.granted_ns = d->now_ns;
        d->promotion.generation = d->session.generation;
    } else if (a->from == ST_PROMOTING && a->to == ST_ALONE) {
        d->promotion.running_ns = d->now_ns;
        d->promotion.valid = true;
        journal_time(d->promotion.time, sizeof(d->promotion.time));
        journal_promoted(d);
    } else if (a->from == ST_PROMOTING && a->to == ST_BROKEN) {
        log_line(LOG_ERROR, "%s: %s; the guest's other copy may still be whole: see the man page, RECOVERY",
                 d->options.vm, a->text);
    }
    if (a->to == ST_STANDBY_WAIT || a->to == ST_ALONE)
        memset(&d->meters.captured_at, 0, sizeof(d->meters.captured_at));
}

/* Acks come without gaps: one that finds no room, since the peer takes nothing any more, ends the connection. */
static void send_ack(struct daemon *d, uint64_t epoch)
{
    if (link_send(&d->link, WIRE_ACK, d->session.generation, epoch, NULL, 0) != -ENOBUFS)
        return;
    mailbox_say(&d->box, SE_LINK_DOWN, "the peer takes no acks");
    drop_link(d);
}

static void begin_announcing(struct daemon *d)
{
    guest_announce(&d->guest);
    d->announcing = true;
    d->announce_sent = 0;
    d->announce_at_ns = (uint64_t)d->now_ns;
}

static void perform(struct daemon *d, const struct session_action *a)
{
    switch (a->type) {
    case SA_MOVED: note_move(d, a); break;
    case SA_NOTE: journal_note(d, LOG_WARNING, "note", a->text); break;
    case SA_OP_REPLY: answer_operator(d, a); break;
    case SA_CONNECT: connect_peer(d); break;
    case SA_DISCONNECT: drop_link(d); break;
    case SA_SEND_HELLO: peer_send_hello(d, a); break;
    case SA_SEND_REFUSE:
        note_refusal(d, a->text);
        say_reason(d, WIRE_REFUSE, a->code, a->text);
        drop_link(d);
        break;
    case SA_SEND_HEARTBEAT: peer_send_heartbeat(d); break;
    case SA_SEND_ACK: send_ack(d, a->epoch); break;
    case SA_SEND_APPLIED: link_send(&d->link, WIRE_APPLIED, d->session.generation, a->epoch, NULL, 0); break;
    case SA_SEND_GONE: say_reason(d, WIRE_GUEST_GONE, a->code, "QEMU is gone"); break;
    case SA_SEND_ENDED: say_reason(d, WIRE_GUEST_ENDED, a->code, "ended in good order"); break;
    case SA_CHECKPOINT_START:
        if (a->flag)
            start_active(d, a->serial);
        else
            start_standby(d, a->serial);
        break;
    case SA_CHECKPOINT_STOP: stop_checkpoint(d, a->serial); break;
    case SA_CAPTURE: guest_capture(&d->guest, a->epoch, a->slot, a->precopy, a->append); break;
    case SA_SEND_SLOT: send_slot(d, a); break;
    case SA_OUTPUT: guest_output(&d->guest, (enum session_output)a->code, a->serial); break;
    case SA_RELEASE:
        if (d->meters.captured_at[a->epoch % 64])
            histogram_add(&d->meters.ack_us, ((uint64_t)d->now_ns - d->meters.captured_at[a->epoch % 64]) / 1000);
        guest_release(&d->guest, a->epoch);
        break;
    case SA_APPLY: apply(d, a->epoch); break;
    case SA_LOAD: load(d, a); break;
    case SA_RUN:
        d->promotion.loaded_ns = d->now_ns;
        guest_run(&d->guest, a->serial);
        break;
    case SA_STOP_GUEST: guest_stop(&d->guest, a->serial); break;
    case SA_ANNOUNCE: begin_announcing(d); break;
    case SA_SAVE: save(d, a); break;
    case SA_ASK: asker_ask(&d->asker, a->expect, a->next, a->nonce, d->now_ns); break;
    case SA_EXIT: d->exiting = true; break;
    case SA_NUM: break;
    }
}

static void step(struct daemon *d, const struct session_event *e)
{
    d->meters.captures_failed += e->type == SE_CAPTURE_FAILED;
    session_step(&d->session, e, d->now_ns, &d->actions);
    for (unsigned i = 0; i < d->actions.nr; i++)
        perform(d, &d->actions.list[i]);
}

/* Let the session take the events that wait. @return whether there were any */
static bool deliver(struct daemon *d)
{
    struct session_event e;
    bool any = false;

    for (; mailbox_take(&d->box, &e); any = true)
        step(d, &e);
    return any;
}

/*
 * Take what came until nothing moves any more, or the turn gets long: what was queued for sending leaves
 * only when the loop waits, and a heartbeat must not wait for a whole receive buffer to be decoded.
 */
static void settle(struct daemon *d)
{
    struct wire_record rec;
    int64_t begun_ns = monotonic_ns();
    bool more = true;

    d->unsettled = false;
    while (more && !d->unsettled) {
        unsigned freed = 0;
        uint64_t bytes, serial;
        int rc, error;
        char why[STATEFILE_WHY_BYTES];

        d->now_ns = monotonic_ns();
        if (session_deadline(&d->session) <= d->now_ns) /* also in the middle of a long stream of records */
            mailbox_say(&d->box, SE_TICK, NULL);
        more = deliver(d);
        rc = sender_pump(&d->sender, &freed);
        for (unsigned i = 0; i < SESSION_SLOTS_MAX; i++) {
            if (freed & (1u << i))
                mailbox_put(&d->box, &(struct session_event){ .type = SE_SLOT_FREE, .slot = i });
        }
        if (rc < 0 && d->session.link_up) {
            sender_stop(&d->sender);
            mailbox_say(&d->box, SE_LINK_DOWN, "the epoch could not be sent");
            drop_link(d);
        }
        while (sender_epoch_done(&d->sender, &bytes))
            histogram_add(&d->meters.bytes, bytes);
        while (saver_take(&d->saver, &serial, &error, why)) {
            if (error)
                log_line(LOG_ERROR, "%s: %s", d->options.vm, why);
            done(d, serial, error, why);
        }
        if (peer_retry(d) && !mailbox_half_full(&d->box)) {
            rc = link_next(&d->link, &rec);
            if (rc == 1) {
                mailbox_say(&d->box, SE_PEER_ALIVE, NULL);
                peer_on_record(d, &rec);
            } else if (rc < 0) {
                mailbox_say(&d->box, SE_PEER_ERROR, d->link.reader.why);
            }
        }
        more |= d->box.nr > 0;
        d->unsettled = more && d->now_ns - begun_ns > TURN_NS;
    }
    if (!d->has_waiting && !d->unsettled)
        link_receive(&d->link);
}

/* ---- completions ---- */

/* The largest record takes 270 ms at 8 Mbit/s: who sends it is alive before it is whole. */
static void on_bytes(struct daemon *d)
{
    d->peer_seen_ns = (uint64_t)d->now_ns;
    if (d->session.peer_layout && d->now_ns - d->session.last_rx_ns >= ALIVE_NS)
        mailbox_say(&d->box, SE_PEER_ALIVE, NULL);
}

static void on_peer_event(struct daemon *d, const struct loop_event *ev)
{
    int error = 0;
    char text[SESSION_TEXT_BYTES];

    switch (link_on_event(&d->link, ev, &error)) {
    case LINK_ACCEPTED:
        link_expect(&d->link, WIRE_PEER_ACTIVE);
        mailbox_put(&d->box, &(struct session_event){ .type = SE_LINK_UP, .flag = true });
        break;
    case LINK_CONNECTED: mailbox_say(&d->box, SE_LINK_UP, NULL); break;
    case LINK_ENDED:
        if (error)
            snprintf(text, sizeof(text), "the connection to %s: %s", d->link.peer_text, strerror(-error));
        else
            snprintf(text, sizeof(text), "the peer %s closed the connection", d->link.peer_text);
        if (d->store_open)
            store_discard(&d->store);
        d->has_waiting = false;
        mailbox_say(&d->box, SE_LINK_DOWN, text);
        break;
    case LINK_DEAF:
        snprintf(text, sizeof(text), "no connection can be taken: %s; this is tried again until it goes", strerror(-error));
        journal_note(d, LOG_WARNING, "note", text);
        break;
    case LINK_RECEIVED:
        if (ev->res > 0)
            on_bytes(d);
        break;
    case LINK_NOTHING:
    case LINK_SENT: break;
    }
}

static void on_wake(struct daemon *d)
{
    uint64_t epoch = arena_epoch(&d->arena);

    loop_read(&d->loop, SLOT_WAKE, &d->wake_value, sizeof(d->wake_value));
    if (epoch)
        hold_wakeup(&d->hold, epoch, (uint64_t)d->now_ns);
    mailbox_say(&d->box, SE_OUTPUT_WAITS, NULL);
}

static void on_signal(struct daemon *d)
{
    loop_read(&d->loop, SLOT_SIGNAL, d->signal_buf, sizeof(struct signalfd_siginfo));
    if (d->session.ending) {
        d->exiting = true; /* asked twice: now */
        return;
    }
    log_line(LOG_INFO, "%s: ending: a protected guest is first made to run alone, with the arbiter's grant", d->options.vm);
    mailbox_say(&d->box, SE_OP_SHUTDOWN, NULL);
}

static void on_completion(struct daemon *d, const struct loop_event *ev)
{
    /* What the session has not heard yet is about the connection before: a hang-up that follows must not hit a new one. */
    if (ev->slot == SLOT_LISTEN)
        deliver(d);
    switch (ev->slot) {
    case SLOT_SIGNAL: on_signal(d); break;
    case SLOT_WAKE: on_wake(d); break;
    case SLOT_WORK: loop_read(&d->loop, SLOT_WORK, &d->work_value, sizeof(d->work_value)); break;
    case SLOT_LISTEN:
    case SLOT_PEER: on_peer_event(d, ev); break;
    case SLOT_QMP: guest_on_event(&d->guest, ev, d->now_ns); break;
    case SLOT_ARBITER: asker_on_event(&d->asker, ev, d->now_ns); break;
    default: control_on_event(&d->control, ev, d->now_ns); break;
    }
}

/* Announcements of the addresses that the operator told us; QEMU's own go out beside them. */
static uint64_t announce(struct daemon *d)
{
    uint8_t frame[ANNOUNCE_FRAME_MAX];
    char mac[18];

    if (!d->announcing)
        return UINT64_MAX;
    if ((int64_t)d->announce_at_ns > d->now_ns)
        return d->announce_at_ns;
    for (unsigned i = 0; i < d->options.nr_guests; i++) {
        const struct announce_guest *g = &d->options.guest[i];
        snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", g->mac[0], g->mac[1], g->mac[2], g->mac[3],
                 g->mac[4], g->mac[5]);
        for (unsigned k = 0; k < d->guest.nr_nics; k++) {
            int len;
            if (strcasecmp(mac, d->guest.nic[k].mac) != 0)
                continue;
            for (unsigned n = 0; (len = announce_frame(g, ANNOUNCE_CLAIMED, n, frame, sizeof(frame))) > 0; n++)
                guest_inject(&d->guest, d->guest.nic[k].netdev, frame, (size_t)len);
        }
    }
    d->announce_sent++;
    d->announce_last_ns = (uint64_t)d->now_ns;
    d->announcing = announce_next(&announce_schedule_default, d->announce_sent, d->announce_last_ns, &d->announce_at_ns);
    return d->announcing ? d->announce_at_ns : UINT64_MAX;
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Everything that time alone moves. @return when to be here again */
static int64_t tick(struct daemon *d)
{
    int64_t at;

    d->now_ns = monotonic_ns();
    at = guest_tick(&d->guest, d->now_ns);
    at = earlier(at, asker_tick(&d->asker, d->now_ns));
    at = earlier(at, control_tick(&d->control, d->now_ns));
    at = earlier(at, link_tick(&d->link, d->now_ns));
    at = earlier(at, (int64_t)(announce(d) & INT64_MAX));
    at = earlier(at, journal_tick(d));
    settle(d);
    return earlier(at, session_deadline(&d->session));
}

int daemon_run(struct daemon *d)
{
    struct loop_event events[LOOP_EVENTS_MAX];

    notify_send("READY=1");
    while (!d->exiting) {
        int64_t at = tick(d);
        int64_t wait_ns = at - monotonic_ns();
        int nr;

        if (d->exiting)
            break;
        wait_ns = wait_ns < 0 || d->unsettled ? 0 : earlier(wait_ns, 1000 * MS);
        nr = loop_wait(&d->loop, wait_ns, events);
        if (nr < 0)
            return nr;
        d->now_ns = monotonic_ns();
        for (int i = 0; i < nr; i++) {
            if (loop_event_current(&d->loop, &events[i]))
                on_completion(d, &events[i]);
        }
    }
    notify_send("STOPPING=1");
    return 0;
}

/* ---- operators ---- */

static const char *take_peer(struct daemon *d, struct json_object *request)
{
    struct json_object *v;
    struct sockaddr_storage sa;
    const char *text;

    if (!json_object_object_get_ex(request, "peer", &v) || !json_object_is_type(v, json_type_string))
        return "pair needs the peer's address: pair --peer HOST:PORT";
    text = json_object_get_string(v);
    if (strlen(text) >= sizeof(d->peer_address) || link_parse_address(text, &sa) < 0)
        return "the peer's address must be a numeric HOST:PORT, such as 10.0.0.2:7460 or [fd00::2]:7460";
    snprintf(d->peer_address, sizeof(d->peer_address), "%s", text);
    return NULL;
}

static bool flag_of(struct json_object *request, const char *key)
{
    struct json_object *v;

    return json_object_object_get_ex(request, key, &v) && json_object_is_type(v, json_type_boolean) &&
           json_object_get_boolean(v);
}

static void operate(struct daemon *d, unsigned client, enum session_event_type type, bool flag)
{
    if (d->op_client >= 0) {
        control_fail(&d->control, client, 69, "another operator's command is still being carried out");
        return;
    }
    d->op_client = (int)client;
    d->op_id = control_id(&d->control, client);
    mailbox_put(&d->box, &(struct session_event){ .type = type, .flag = flag });
}

static void on_command(void *opaque, unsigned client, struct json_object *request)
{
    struct daemon *d = opaque;
    struct json_object *v;
    const char *cmd = "", *why;

    if (json_object_object_get_ex(request, "cmd", &v) && json_object_is_type(v, json_type_string))
        cmd = json_object_get_string(v);
    if (strcmp(cmd, "status") == 0) {
        control_answer(&d->control, client, status_json(d));
    } else if (strcmp(cmd, "events") == 0) {
        uint64_t since = json_object_object_get_ex(request, "since", &v) ? json_object_get_uint64(v) : 0;
        control_answer(&d->control, client, NULL);
        journal_replay(d, client, since);
        control_subscribe(&d->control, client);
    } else if (strcmp(cmd, "pair") == 0) {
        bool paired = d->session.paired;
        why = paired && d->session.link_up ? "paired already: unpair first" : take_peer(d, request);
        if (why)
            control_fail(&d->control, client, 64, why);
        else
            operate(d, client, SE_OP_PAIR, flag_of(request, "adopt"));
    } else if (strcmp(cmd, "unpair") == 0) {
        operate(d, client, SE_OP_UNPAIR, false);
    } else if (strcmp(cmd, "promote") == 0) {
        operate(d, client, SE_OP_PROMOTE, flag_of(request, "force"));
    } else {
        control_fail(&d->control, client, 64, "unknown command: status, pair, unpair, promote, events");
    }
}

/* ---- start and end ---- */

static int open_fds(struct daemon *d)
{
    sigset_t set;
    int fd;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
        return -errno;
    signal(SIGPIPE, SIG_IGN);
    fd = signalfd(-1, &set, SFD_CLOEXEC);
    d->wake_fd = eventfd(0, EFD_CLOEXEC);
    d->work_fd = eventfd(0, EFD_CLOEXEC);
    if (fd < 0 || d->wake_fd < 0 || d->work_fd < 0)
        return -errno;
    loop_open(&d->loop, SLOT_SIGNAL, fd);
    loop_open(&d->loop, SLOT_WAKE, d->wake_fd);
    loop_open(&d->loop, SLOT_WORK, d->work_fd);
    loop_read(&d->loop, SLOT_SIGNAL, d->signal_buf, sizeof(struct signalfd_siginfo));
    loop_read(&d->loop, SLOT_WAKE, &d->wake_value, sizeof(d->wake_value));
    loop_read(&d->loop, SLOT_WORK, &d->work_value, sizeof(d->work_value));
    return 0;
}

static int open_state(struct daemon *d)
{
    struct statefile file;
    char why[STATEFILE_WHY_BYTES];
    int rc = statefile_open(d->options.state_dir, &file, why);

    if (rc < 0) {
        log_line(LOG_ERROR, "%s", why);
        return rc;
    }
    rc = statefile_load(&file, &d->record.contents, why);
    if (rc == -ENOENT) {
        memset(&d->record.contents, 0, sizeof(d->record.contents));
        snprintf(d->record.contents.vm, sizeof(d->record.contents.vm), "%s", d->options.vm);
        if (getrandom(d->record.contents.instance, 16, 0) != 16)
            rc = -EIO;
        else
            rc = statefile_save(&file, &d->record.contents, why);
    } else if (rc == 0 && strcmp(d->record.contents.vm, d->options.vm) != 0) {
        snprintf(why, sizeof(why), "the state directory %s is that of the VM \"%s\", not of \"%s\": give each VM its own --state-dir",
                 d->options.state_dir, d->record.contents.vm, d->options.vm);
        rc = -EPERM;
    }
    if (rc < 0) {
        log_line(LOG_ERROR, "%s", why);
        statefile_close(&file);
        return rc;
    }
    return saver_init(&d->saver, &file, d->work_fd);
}

static void init_session(struct daemon *d)
{
    struct session_config config = d->options.session;

    memcpy(config.instance, d->record.contents.instance, sizeof(config.instance));
    if (getrandom(&config.boot, sizeof(config.boot), 0) != sizeof(config.boot))
        config.boot = (uint64_t)monotonic_ns() ^ (uint64_t)getpid() << 40;
    session_init(&d->session, &config);
    snprintf(d->peer_address, sizeof(d->peer_address), "%s", d->record.contents.peer);
    mailbox_put(&d->box, &(struct session_event){
                             .type = SE_START,
                             .persist = d->record.contents.persist,
                             .flag = d->record.contents.paired,
                             .guest = GUEST_NONE,
                         });
}

static int fail_with(const char *what, int rc)
{
    log_line(LOG_ERROR, "%s: %s", what, strerror(-rc));
    return rc;
}

static int fail_at_control(const char *path, int rc)
{
    if (rc == -EADDRINUSE)
        log_line(LOG_ERROR, "%s: another polluxd serves this control socket", path);
    else if (rc == -EEXIST)
        log_line(LOG_ERROR, "%s is not a socket: polluxd removes nothing but stale sockets; name another --control, or move it away",
                 path);
    else
        fail_with(path, rc);
    return rc;
}

/* A killed polluxd's listening sockets live on until the kernel has taken its ring apart: wait for that a little. */
static int open_doors(struct daemon *d)
{
    const struct timespec nap = { .tv_nsec = DOORS_NAP_NS };
    int rc = -EADDRINUSE;

    for (unsigned i = 0; i < DOORS_TRIES && (rc = link_listen(&d->link, d->options.listen)) == -EADDRINUSE; i++)
        nanosleep(&nap, NULL);
    if (rc < 0)
        return fail_with(d->options.listen, rc);
    for (unsigned i = 0; i < DOORS_TRIES && (rc = control_listen(&d->control, d->options.control)) == -EADDRINUSE; i++)
        nanosleep(&nap, NULL);
    return rc < 0 ? fail_at_control(d->options.control, rc) : 0;
}

static void init_meters(struct meters *m)
{
    memset(m, 0, sizeof(*m));
    histogram_init(&m->pause_us);
    histogram_init(&m->epoch_us);
    histogram_init(&m->hold_us);
    histogram_init(&m->ack_us);
    histogram_init(&m->pages);
    histogram_init(&m->bytes);
}

int daemon_init(struct daemon *d, const struct daemon_options *options)
{
    struct guest_observer observer = { d, on_captured, on_applied, on_released, on_warning };
    struct hold_limits limits = { options->hold_max_bytes, options->hold_max_packets, 0 };
    int rc;

    memset(d, 0, sizeof(*d));
    d->options = *options;
    d->op_client = -1;
    d->arena.fd = -1;
    d->now_ns = d->started_ns = monotonic_ns();
    init_meters(&d->meters);
    if ((rc = loop_init(&d->loop)) < 0)
        return fail_with("io_uring is not available (kernel.io_uring_disabled? seccomp?)", rc);
    if ((rc = open_fds(d)) < 0)
        return fail_with("cannot make descriptors", rc);
    if ((rc = open_state(d)) < 0)
        return rc;
    if ((rc = hold_init(&d->hold, &limits)) < 0)
        return fail_with("limits of held output", rc);
    if ((rc = link_init(&d->link, &d->loop, SLOT_PEER, SLOT_LISTEN)) < 0 ||
        (rc = sender_init(&d->sender, &d->link, d->work_fd, options->workers)) < 0)
        return fail_with("no memory for the stream", rc);
    if ((rc = guest_init(&d->guest, &d->loop, SLOT_QMP, &d->box, &observer, options->qmp)) < 0)
        return fail_with(options->qmp, rc);
    if ((rc = control_init(&d->control, &d->loop, SLOT_CONTROL_LISTEN, SLOT_CONTROL, on_command, d)) < 0)
        return fail_with("no memory for the control socket", rc);
    if ((rc = asker_init(&d->asker, &d->loop, SLOT_ARBITER, &d->box, options->arbiter, options->vm,
                         d->record.contents.instance, d->now_ns, on_news, d)) < 0)
        return fail_with(options->arbiter, rc);
    d->sender.drop_page = options->unsafe_drop_page;
    d->guest.hold_max_bytes = options->hold_max_bytes;
    d->guest.hold_max_packets = options->hold_max_packets;
    init_session(d);
    return open_doors(d);
}

void daemon_fini(struct daemon *d)
{
    if (saver_fini(&d->saver, SAVER_END_NS) < 0)
        log_line(LOG_ERROR, "%s: the disk of %s hangs: left while the state file was being written, so it may be the old one or the new one",
                 d->options.vm, d->saver.file.dir);
    sender_stop(&d->sender); /* after this no worker writes the eventfd */
    loop_fini(&d->loop);     /* after this the kernel uses none of our buffers */
    sender_fini(&d->sender);
    control_fini(&d->control);
    guest_fini(&d->guest);
    link_fini(&d->link);
    arena_close(&d->arena);
    if (d->store_open)
        store_close(&d->store);
    for (unsigned i = 0; i < JOURNAL_EVENTS; i++)
        free(d->journal[i].line);
}
