/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * daemon.h - polluxd's parts put together: one protected VM on one host
 *
 * Owns: everything that lives as long as the process. daemon.c turns completions into events and carries
 * out actions; peer.c understands records; status.c and journal.c tell people.
 */
#ifndef POLLUX_DAEMON_H
#define POLLUX_DAEMON_H

#include <time.h>

#include "../common/log.h"
#include "../net-buffer/announce.h"
#include "../net-buffer/hold.h"
#include "asker.h"
#include "control.h"
#include "guest.h"
#include "histogram.h"
#include "link.h"
#include "loop.h"
#include "mailbox.h"
#include "saver.h"
#include "sender.h"
#include "session.h"
#include "store.h"

#define DAEMON_ADDRESS_BYTES 64
#define DAEMON_GUESTS_MAX 16
#define MS INT64_C(1000000)
#define JOURNAL_EVENTS 256
#define JOURNAL_NOTE_TYPES 4
#define JOURNAL_NOTES 30                  /* of one type at once; then one in */
#define JOURNAL_NOTE_NS (10000 * MS)

enum daemon_slot {
    SLOT_SIGNAL,
    SLOT_WAKE,
    SLOT_WORK,
    SLOT_LISTEN,
    SLOT_CONTROL_LISTEN,
    SLOT_PEER,
    SLOT_QMP,
    SLOT_ARBITER,
    SLOT_CONTROL, /* and CONTROL_CLIENTS - 1 more */
};
_Static_assert(SLOT_CONTROL + CONTROL_CLIENTS <= LOOP_CONNS_MAX, "a slot for every client");

/* What the operator said on the command line or in the configuration file. */
struct daemon_options {
    char vm[WIRE_VM_BYTES];
    char qmp[108];
    char control[108];
    char state_dir[256];
    char listen[DAEMON_ADDRESS_BYTES];
    char arbiter[DAEMON_ADDRESS_BYTES];
    struct session_config session;
    uint64_t slot_pages;
    uint64_t hold_max_bytes, hold_max_packets;
    unsigned workers;
    unsigned nr_guests;
    struct announce_guest guest[DAEMON_GUESTS_MAX]; /* addresses to announce */
    bool unsafe_drop_page; /* planted fault, for tests */
};

/* Everything counted, in microseconds, pages, bytes. */
struct meters {
    struct histogram pause_us, epoch_us, hold_us, ack_us, pages, bytes;
    uint64_t epochs, pages_total, captures_failed;
    uint64_t epoch_pages; /* sent of the epoch that is being sent */
    uint64_t last_capture_ns;
    uint64_t captured_at[64]; /* by epoch modulo 64: when, for ack_us */
    uint64_t rtt_us;
};

/* One promotion, as an operator will want to know it afterwards. */
struct promotion {
    bool valid;
    char time[40];
    char reason[SESSION_TEXT_BYTES];
    uint64_t generation, epoch;
    int64_t silent_ns; /* the peer's last sign of life to the decision to ask */
    int64_t asked_ns, granted_ns, loaded_ns, running_ns; /* monotonic */
};

struct journal_event {
    uint64_t seq;
    char *line; /* JSON text */
};

/* Notes of one type; see journal_note(). */
struct journal_limit {
    int64_t full_at_ns; /* when JOURNAL_NOTES may be told at once again */
    unsigned left_out;
    enum log_level level; /* of the last one left out */
};

struct daemon {
    struct daemon_options options;
    struct loop loop;
    struct mailbox box;
    struct session session;
    struct session_actions actions;
    struct link link;
    struct guest guest;
    struct sender sender;
    struct store store;
    bool store_open;
    uint64_t store_number; /* counts the stores opened: tells late answers of QEMU apart */
    struct arena arena; /* of the active */
    struct asker asker;
    struct saver saver;
    struct control control;
    struct hold hold;
    struct meters meters;
    struct promotion promotion;
    struct saver_record record; /* as last saved or loaded */
    char peer_address[DAEMON_ADDRESS_BYTES];
    struct guest_capture captured; /* the capture that SA_SEND_SLOT will speak of */
    struct wire_record waiting;    /* the store was busy: offered again when a slot is free */
    bool has_waiting;
    bool parting;                  /* last words are queued: the next disconnect flushes them */
    uint64_t peer_sent_ns, peer_sent_at_ns, peer_seen_ns;
    unsigned peer_state;
    unsigned peer_port; /* where it listens, by its HELLO; 0 nowhere */
    struct codec_blocks blocks;
    int wake_fd, work_fd;
    uint64_t wake_value, work_value;
    uint8_t signal_buf[256];
    int op_client; /* control client that waits for SA_OP_REPLY; -1 none */
    uint64_t op_id; /* that client's: it may leave, and another take its place */
    unsigned announce_sent;
    uint64_t announce_at_ns, announce_last_ns;
    bool announcing;
    bool exiting;
    bool unsettled; /* the turn got long: come back at once */
    int64_t now_ns, started_ns;
    struct journal_event journal[JOURNAL_EVENTS];
    uint64_t journal_seq;
    char note[WIRE_TEXT_MAX_BYTES + 1]; /* the last note: the same one is not told again at once */
    int64_t note_ns;
    struct journal_limit limit[JOURNAL_NOTE_TYPES];
};

/** @return whether epochs are received here: rx_* of the session count, not its pipe */
static inline bool daemon_is_standby(const struct daemon *d)
{
    return d->session.state >= ST_STANDBY_WAIT && d->session.state <= ST_PROMOTING;
}

/** @return 0 or -errno; what was wrong has been logged */
int daemon_init(struct daemon *d, const struct daemon_options *options);

/** Run until told to end. @return 0 or -errno of the loop */
int daemon_run(struct daemon *d);
void daemon_fini(struct daemon *d);

/* peer.c */
void peer_on_record(struct daemon *d, const struct wire_record *rec);
/** Offer the record again that found the store busy. @return whether the link may go on */
bool peer_retry(struct daemon *d);
void peer_send_hello(struct daemon *d, const struct session_action *a);
void peer_send_heartbeat(struct daemon *d);

/* status.c */
struct json_object *status_json(struct daemon *d);

/* journal.c: events for operators, as JSON lines and in the log */
void journal_state(struct daemon *d, const struct session_action *a);
/**
 * Tell what is worth a line. Strangers and faults that come again and again cannot flood the log: what is beyond
 * JOURNAL_NOTES of one type, and one in JOURNAL_NOTE_NS, is left out, and how many were is told when it is over.
 * @param d      the daemon
 * @param level  for the log
 * @param type   "note", "refused", "layout", "arbiter"
 * @param text   one line
 */
void journal_note(struct daemon *d, enum log_level level, const char *type, const char *text);

/** Tell how many notes were left out, where no more come. @return INT64_MAX or when to call again */
int64_t journal_tick(struct daemon *d);
void journal_promoted(struct daemon *d);
void journal_replay(struct daemon *d, unsigned client, uint64_t since);
void journal_time(char *ret, size_t cap);

#endif
