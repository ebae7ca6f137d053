/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * arbiter.h - the client of the witness: a state machine without I/O and without a clock
 *
 * Theory of operation
 *
 * polluxd keeps one connection to the witness open, so that a failover pays one round trip and one fsync
 * and no connect. A READ every heartbeat shows that the path works before it is needed. An ask (CAS)
 * goes out behind a READ that is still unanswered; the witness answers in order.
 *
 * The caller does what arbiter_next_action() says until it says nothing, after every other call here. Each
 * connection has a number (link); what is told about an older one is ignored and counted, so the
 * caller need not cancel anything.
 *
 * An ask ends with exactly one ARBITER_OUTCOME:
 *   GRANT_YES          the witness says GRANTED and its register is exactly what was asked for
 *   GRANT_NO           it says REFUSED, and its register is one that can have refused us
 *   GRANT_UNREACHABLE  everything else: no connection, no answer in time, ERROR, an answer that cannot be
 *                      true, and a register older than what we know, for then the witness has lost its
 *                      memory and can neither grant nor refuse. It changes nothing (DESIGN section 6, rule 4).
 * Repeating an ask with the same nonce is safe. If the connection breaks under an ask, it is repeated once
 * at once on a fresh one: a witness that was restarted since the last heartbeat costs no time-out.
 */
#ifndef POLLUX_ARBITER_H
#define POLLUX_ARBITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "session.h"
#include "wire.h"

#define ARBITER_RECORD_BYTES (WIRE_HEADER_BYTES + sizeof(struct wire_arb_ask))
#define ARBITER_WHY_BYTES 160
#define ARBITER_ASKS_MAX 2 /* a heartbeat and an ask behind it */

enum arbiter_state {
    ARBITER_DOWN,       /* no connection; .connect_at_ns says when the next attempt is due */
    ARBITER_CONNECTING, /* ARBITER_CONNECT was handed out */
    ARBITER_IDLE,       /* connected, nothing unanswered */
    ARBITER_WAITING,    /* connected, one or two asks unanswered */
    ARBITER_STATE_NUM
};

/** Whether the witness can be reached, as far as is known. */
enum arbiter_reach { ARBITER_REACH_UNKNOWN, ARBITER_REACH_YES, ARBITER_REACH_NO };

enum arbiter_action_type {
    ARBITER_CONNECT, /* .link: open a connection; arbiter_connected() or arbiter_closed() follows */
    ARBITER_SEND,    /* .link .bytes .len: send all of it, in the order handed out */
    ARBITER_CLOSE,   /* .link: close it (also in mid-connect); nothing need follow */
    ARBITER_OUTCOME, /* .outcome of arbiter_ask() */
    ARBITER_CHANGED, /* reach or staleness changed: worth a line to the operator, .text */
};

/** A VM's register at the witness. */
struct arbiter_register {
    uint64_t generation; /* 0: none yet */
    uint8_t holder[16];
    uint8_t nonce[16];
};

struct arbiter_outcome {
    enum wire_arb_op op;
    enum session_grant grant;    /* of a READ: GRANT_NO when the register was read */
    struct arbiter_register reg; /* unless GRANT_UNREACHABLE */
    bool holder_is_me;           /* reg.holder is our instance */
    int64_t took_ns;             /* from arbiter_ask() */
    char why[ARBITER_WHY_BYTES]; /* for GRANT_UNREACHABLE */
};

struct arbiter_action {
    enum arbiter_action_type type;
    uint32_t link;
    size_t len;
    uint8_t bytes[ARBITER_RECORD_BYTES]; /* a copy: the caller may keep it while the kernel sends */
    struct arbiter_outcome outcome;
    char text[ARBITER_WHY_BYTES];
};

struct arbiter_config {
    char vm[WIRE_VM_BYTES]; /* zero padded, see wire_vm_name() */
    uint8_t holder[16];     /* our instance */
    int64_t ask_ns;         /* an ask, connecting included, has this long */
    int64_t heartbeat_ns;   /* between READs */
    int64_t reconnect_ns;   /* between attempts when nothing is asked */
};

/** One question on its way. */
struct arbiter_ask {
    enum wire_arb_op op;
    uint64_t expect, next;
    uint8_t nonce[16];
    uint64_t tag;
    bool heartbeat; /* ours: no outcome */
    bool sent;      /* on the present connection */
    bool repeated;  /* was sent on a connection that broke */
    int64_t asked_ns;
    int64_t deadline_ns;
};

struct arbiter_counts {
    uint64_t connects, asks, heartbeats, unreachable, garbage, stale_calls;
};

struct arbiter {
    struct arbiter_config config;
    enum arbiter_state state;
    enum arbiter_reach reach;
    bool
        forgetful; /* the witness showed a register that went back or changed hands without rising */
    uint32_t link;                             /* number of the present or last connection */
    uint64_t tag;                              /* last used */
    struct arbiter_ask asks[ARBITER_ASKS_MAX]; /* in the order of sending */
    unsigned nr_asks;
    int64_t connect_at_ns;
    int64_t heartbeat_at_ns;
    int64_t now_ns;
    struct arbiter_register known; /* highest register seen */
    bool known_valid;
    int64_t rtt_ns;              /* of the last answer; 0: none yet */
    char why[ARBITER_WHY_BYTES]; /* why it is not reachable */
    /* what the caller has still to be told */
    bool want_close, want_connect, want_outcome, want_changed;
    uint32_t close_link;
    struct arbiter_outcome outcome;
    struct wire_writer writer;
    struct wire_reader reader;
    struct arbiter_counts counts;
    _Alignas(8) uint8_t in[4 * 160];
};

/** Times that fit a witness in the same data centre; vm and holder are the caller's. */
void arbiter_config_default(struct arbiter_config *config);

/**
 * Begin, down; the first attempt to connect is due at once.
 * @param a       caller's memory, not to be moved afterwards
 * @param config  copied
 * @param now_ns  monotonic
 * @return 0; -EINVAL for a VM name or times that are not legal
 */
int arbiter_init(struct arbiter *a, const struct arbiter_config *config, int64_t now_ns);

/**
 * Ask. One ask at a time; its outcome follows, always.
 * @param a       the client
 * @param op      READ or CAS
 * @param expect  CAS: the generation that the register should have
 * @param next    CAS: greater than expect
 * @param nonce   CAS: 16 bytes; the same again repeats the ask
 * @param now_ns  monotonic
 * @return 0; -EBUSY while one is unanswered; -EINVAL
 */
int arbiter_ask(struct arbiter *a, enum wire_arb_op op, uint64_t expect, uint64_t next,
                const uint8_t *nonce, int64_t now_ns);

/** The connection stands. */
void arbiter_connected(struct arbiter *a, uint32_t link, int64_t now_ns);

/**
 * Bytes came from the witness.
 * @param a       the client
 * @param link    connection they came on
 * @param bytes   any; copied
 * @param len     any
 * @param now_ns  monotonic
 */
void arbiter_feed(struct arbiter *a, uint32_t link, const void *bytes, size_t len, int64_t now_ns);

/**
 * Connecting failed, or the connection ended.
 * @param a       the client
 * @param link    which
 * @param why     for the operator ("Connection refused")
 * @param now_ns  monotonic
 */
void arbiter_closed(struct arbiter *a, uint32_t link, const char *why, int64_t now_ns);

/** Time passed; to be called at arbiter_deadline() at the latest. */
void arbiter_tick(struct arbiter *a, int64_t now_ns);

/** @return when arbiter_tick() is wanted (monotonic ns) */
int64_t arbiter_deadline(const struct arbiter *a);

/**
 * Take the next thing to do.
 * @param a    the client
 * @param ret  written when true is returned
 * @return whether there was one
 */
bool arbiter_next_action(struct arbiter *a, struct arbiter_action *ret);

/** @return the state's name, for logs */
const char *arbiter_state_name(enum arbiter_state state);

/** @return whether the table of transitions allows it; a unit test walks this */
bool arbiter_may_move(enum arbiter_state from, enum arbiter_state to);

/*
 * Planted faults, compiled in only for tests (-DARBITER_MUTANTS): each breaks one check, and the unit
 * test must find it.
 */
enum arbiter_mutant {
    ARBITER_MUTANT_NONE,
    ARBITER_MUTANT_ANY_TAG,        /* takes an answer to another question */
    ARBITER_MUTANT_ANY_VM,         /* takes an answer about another VM */
    ARBITER_MUTANT_GRANTED_UNSEEN, /* believes GRANTED without looking at the register */
    ARBITER_MUTANT_REFUSED_UNSEEN, /* believes REFUSED without looking at the register */
    ARBITER_MUTANT_ERROR_IS_NO,    /* ERROR counts as a refusal */
    ARBITER_MUTANT_SILENCE_IS_YES, /* a time-out counts as a grant */
    ARBITER_MUTANT_AMNESIA_COUNTS, /* believes a witness whose register went back */
    ARBITER_MUTANT_NO_REPEAT,      /* does not repeat an ask whose connection broke */
    ARBITER_MUTANT_STALE_LINK,     /* takes bytes of an old connection */
    ARBITER_MUTANT_NUM
};
#ifdef ARBITER_MUTANTS
extern enum arbiter_mutant arbiter_mutant;
#endif

#endif
