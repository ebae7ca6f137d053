/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session.h - one protected VM, seen from one side: a state machine without I/O and without a clock
 *
 * Theory of operation
 *
 * polluxd (and the simulator) turns what happens into events and calls session_step(); the session
 * answers with actions, which the caller carries out in the order given. Actions marked (done) are
 * answered later by one SE_DONE event that carries the action's serial; the session ignores serials
 * it no longer waits for, so a late answer can never be taken for another.
 *
 * The four safety rules (DESIGN section 6) live here and nowhere else:
 *   1. SA_RELEASE of epoch N only after SE_ACK N; SA_OUTPUT pass only with a grant to run alone.
 *   2. SA_LOAD and SA_RUN on a standby only after SE_ARBITER granted for generation + 1.
 *   3. A refusal stops the guest, drops what it held, and leaves the side outdated.
 *   4. No answer from the arbiter changes nothing; after hold_freeze_ns the guest is frozen.
 *
 * "Alone" is given up in two steps before a standby can exist: the state file says so (SA_SAVE done)
 * and output is held (SA_OUTPUT hold done); only then is the last part of epoch 1 captured.
 * The nonce of the next ask is written in the same save, so that a failover needs no fsync of ours
 * and a polluxd that restarts can repeat its ask.
 */
#ifndef POLLUX_SESSION_H
#define POLLUX_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SESSION_SLOTS_MAX 8
#define SESSION_TEXT_BYTES 160
#define SESSION_ACTIONS_MAX 24

enum session_state {
    ST_NONE,            /* not paired; the guest is none of our business */
    ST_CLAIMING,        /* runs the guest, asks the arbiter for the right to run it alone; output as it was */
    ST_ALONE,           /* runs the guest alone, unprotected, output passes */
    ST_SYNCING,         /* as ALONE, and a standby is being filled */
    ST_ENTERING,        /* gives up "alone": saving, holding, last part of epoch 1; output held */
    ST_PROTECTED,       /* the standby holds a committed epoch; output held per epoch */
    ST_OUTDATED,        /* another side runs the guest; ours is stopped */
    ST_STANDBY_WAIT,    /* paused guest, nothing usable, waits for an active */
    ST_STANDBY_SYNCING, /* being filled, not promotable */
    ST_STANDBY_READY,   /* holds a committed epoch, promotable */
    ST_STANDBY_ASKING,  /* the active is lost; asks the arbiter; acks nothing any more */
    ST_PROMOTING,       /* granted: apply, load, run */
    ST_ENDED,           /* the guest ended or its QEMU is gone; waits for another QEMU */
    ST_BROKEN,          /* granted but could not load: an operator is needed */
    ST_NUM
};

enum session_output { OUTPUT_HOLD, OUTPUT_PASS, OUTPUT_DROP };
enum session_role {
    ROLE_NONE,
    ROLE_ACTIVE_ALONE,
    ROLE_ACTIVE_PROTECTING,
    ROLE_STANDBY,
    ROLE_OUTDATED,
    ROLE_ACTIVE_FORCED, /* alone by promote --force; the register does not know of it yet */
    ROLE_NUM
};
/* FRESH: started with -S and never run, so it can be a standby. RUNNING: has run, even if it is stopped now. */
enum session_guest { GUEST_NONE, GUEST_RUNNING, GUEST_FRESH };

/** What survives a restart of polluxd; written by SA_SAVE, read back in SE_START. */
struct session_persist {
    uint64_t generation;
    enum session_role role;
    uint8_t nonce[16]; /* of the next ask in this generation */
};

struct session_config {
    uint8_t instance[16];       /* who this side is, made once per state directory */
    uint64_t boot;              /* random, made at each start of polluxd */
    int64_t heartbeat_ns;
    int64_t peer_timeout_ns;    /* silence after which the arbiter is asked */
    int64_t hello_timeout_ns;   /* from connect to a complete introduction */
    int64_t reconnect_ns;
    int64_t arbiter_retry_ns;   /* between asks that got no answer */
    int64_t yield_ns;           /* head start of the standby when our QEMU hangs */
    int64_t operator_ns;        /* an operator's command is answered within this */
    int64_t hold_freeze_ns;     /* output held this long without a way to release it: freeze */
    int64_t epoch_max_ns;       /* an idle epoch ends after this */
    unsigned pause_permille;    /* share of guest time that captures may cost */
    unsigned nr_slots;          /* arena slots, 2..SESSION_SLOTS_MAX */
    unsigned inflight_max;      /* epochs captured but not acked */
    unsigned precopy_pages;     /* an epoch that had more pages than this is precopied next time */
    unsigned sync_rounds_max;   /* precopy rounds of a full sync before the pause is taken anyway */
    unsigned sync_pages;        /* remaining pages at which the full sync pauses */
    bool unsafe_release;        /* for measuring only: output passes in PROTECTED */
};

enum session_event_type {
    SE_START,          /* .persist, .guest, .flag paired: polluxd started */
    SE_TICK,           /* session_deadline() passed */
    SE_GUEST_ATTACHED, /* .guest: a QEMU was connected later; .flag: it runs, and shows no trace of a polluxd
                          before us (it has NICs, none with a checkpoint-buffer): it booted anew */
    SE_GUEST_LOST,     /* .text: QMP closed, QEMU died */
    SE_GUEST_ENDED,    /* guest shut down by itself */
    SE_GUEST_STOPPED,  /* the output buffer's limit (or an operator) stopped the guest */
    SE_GUEST_RESUMED,
    SE_OP_PAIR,        /* .flag adopt: take over a register that others left */
    SE_OP_UNPAIR,
    SE_OP_PROMOTE,     /* .flag force */
    SE_OP_SHUTDOWN,    /* polluxd was told to end */
    SE_LINK_UP,        /* connected, or accepted (.flag true when accepted) */
    SE_LINK_DOWN,      /* .text */
    SE_PEER_ALIVE,     /* bytes or a record came */
    SE_PEER_HELLO,     /* .generation, .epoch, .flag true when the peer is active; identity was checked by the caller */
    SE_PEER_LAYOUT,    /* .flag equal or not (then .text says how they differ) */
    SE_PEER_REFUSED,   /* .code, .text: the peer sent REFUSE */
    SE_PEER_GONE,      /* the active's QEMU died */
    SE_PEER_ENDED,     /* .code: the active's guest ended in good order */
    SE_PEER_ERROR,     /* .text, .code of the REFUSE (0: protocol error): the peer cannot be accepted */
    SE_OUTPUT_WAITS,   /* first packet of the current epoch was held */
    SE_CAPTURED,       /* .capture */
    SE_CAPTURE_FAILED, /* .text: the QEMU side says the session failed; the guest runs. .error -ETIMEDOUT: QEMU did
                          not answer at all, so it may hang */
    SE_SLOT_FREE,      /* .slot: encoded, may be captured into again */
    SE_ACK,            /* .epoch */
    SE_RX_BEGIN,       /* .epoch, .flag full */
    SE_RX_COMPLETE,    /* .epoch: whole and verified in memory */
    SE_APPLIED,        /* .epoch */
    SE_RELEASED,       /* .epoch, .code 1 when the buffers are below half of their limits */
    SE_RX_PAUSED,      /* .flag: we ourselves do not read from the peer now */
    SE_ARBITER,        /* .code enum session_grant, .generation and .flag (holder is us) of the register */
    SE_DONE,           /* .serial, .error: an action marked (done) ended */
    SE_NUM
};

enum session_grant { GRANT_YES, GRANT_NO, GRANT_UNREACHABLE };

struct session_event {
    enum session_event_type type;
    bool flag;
    int code;
    int error; /* 0 or -errno */
    unsigned slot;
    uint64_t epoch;
    uint64_t generation;
    uint64_t serial;
    enum session_guest guest;
    struct session_persist persist;
    struct {
        uint64_t epoch;
        unsigned slot;
        bool precopy;
        bool complete;
        uint64_t pages;     /* in the slot */
        uint64_t remaining; /* dirty pages that were not copied */
        int64_t pause_ns;
    } capture;
    const char *text; /* valid during the call; may be NULL */
};

enum session_action_type {
    SA_MOVED,        /* .from, .to, .text: log it, tell the subscribers */
    SA_NOTE,         /* .text: worth a line to the operator */
    SA_OP_REPLY,     /* .code exit code (0 good), .text: answer to the operator's command */
    SA_CONNECT,      /* to the configured peer; SE_LINK_UP or SE_LINK_DOWN follows */
    SA_DISCONNECT,   /* no SE_LINK_DOWN follows; partial epochs received are thrown away */
    SA_SEND_HELLO,   /* .generation, .epoch, .flag active; HELLO then LAYOUT */
    SA_SEND_REFUSE,  /* .code, .text, then the link is closed as by SA_DISCONNECT */
    SA_SEND_HEARTBEAT,
    SA_SEND_ACK,     /* .epoch */
    SA_SEND_APPLIED, /* .epoch */
    SA_SEND_GONE,    /* .code */
    SA_SEND_ENDED,   /* .code */
    SA_CHECKPOINT_START, /* (done) .flag active: arena and checkpoint-start; guest's filters exist afterwards */
    SA_CHECKPOINT_STOP,  /* (done) */
    SA_CAPTURE,      /* .epoch .slot .precopy .append: SE_CAPTURED or SE_CAPTURE_FAILED follows */
    SA_SEND_SLOT,    /* .epoch .slot .first .last .full: encode, send; SE_SLOT_FREE follows */
    SA_OUTPUT,       /* (done) .code enum session_output */
    SA_RELEASE,      /* .epoch; SE_RELEASED follows */
    SA_APPLY,        /* .epoch; SE_APPLIED follows */
    SA_LOAD,         /* (done) .epoch: apply what is left up to it, load its device state */
    SA_RUN,          /* (done) cont */
    SA_STOP_GUEST,   /* (done) stop */
    SA_ANNOUNCE,     /* start announcing the guest's addresses */
    SA_SAVE,         /* (done) .persist */
    SA_ASK,          /* .expect .next .nonce: SE_ARBITER follows, always */
    SA_EXIT,         /* polluxd may end now */
    SA_NUM
};

struct session_action {
    enum session_action_type type;
    uint64_t serial;
    int code;
    bool flag;
    bool precopy, append, first, last, full;
    unsigned slot;
    enum session_state from, to;
    uint64_t epoch;
    uint64_t generation;
    uint64_t expect, next;
    uint8_t nonce[16];
    struct session_persist persist;
    char text[SESSION_TEXT_BYTES];
};

struct session_actions {
    unsigned nr;
    struct session_action list[SESSION_ACTIONS_MAX];
};

/** Capture pipeline of the active side; see session_capture.c. */
struct session_pipe {
    uint64_t executing;     /* epoch the guest is in */
    uint64_t sent;          /* last epoch whose last slot was handed to the stream */
    uint64_t acked;
    uint64_t released;
    uint64_t last_pages;
    unsigned slots_busy;    /* bit i: slot i is being captured into or encoded */
    unsigned slot;          /* the slot of the capture in progress */
    unsigned rounds;        /* precopy rounds of the full sync */
    uint64_t round_pages;   /* dirty when this round began; 0 between rounds */
    uint64_t round_sent;
    bool capturing;
    bool entering;          /* the full sync has converged: only its final capture is left */
    bool final_part;        /* a final capture filled its slot: the guest is paused until it is complete */
    bool final_now;         /* a precopy was done: the final capture follows at once */
    bool begun;             /* a part of the executing epoch was sent already */
    bool precopied;         /* the slot holds a precopy to append to */
    bool output_waits;
    bool output_waits_next; /* a wake-up during a capture: may belong to the epoch after it */
    int64_t waits_since_ns; /* for the ack of the oldest epoch sent, or to be done with ENTERING */
    int64_t epoch_start_ns; /* when the executing epoch began */
    int64_t next_ns;        /* earliest next capture, by the pause budget */
};

struct session {
    struct session_config config;
    enum session_state state;
    char reason[SESSION_TEXT_BYTES]; /* why it is in this state */
    struct session_persist persist;  /* as last asked to be saved */
    uint64_t generation;
    enum session_guest guest;
    bool paired;            /* the active side wants a standby (address known to the caller) */
    bool link_up;
    bool peer_hello, peer_layout;
    bool rx_paused;
    bool frozen;            /* we or the output limit stopped the guest */
    bool maybe_stopped;     /* the polluxd before us may have, or may have died before it resumed it */
    bool adopt;             /* the operator's word: continue a register that others hold */
    bool op_pending;        /* an operator command waits for its SA_OP_REPLY */
    bool ending, unpairing; /* what to do once alone */
    bool asking;            /* an SA_ASK is out */
    uint64_t asked_expect;  /* of that ask: the answer belongs to it and to nothing later */
    uint8_t asked_nonce[16];
    bool forced;            /* generation was taken by promote --force; the register does not know of it yet */
    bool started;           /* checkpoint-start was asked for and not stopped */
    bool first_claim;       /* CLAIMING for the first generation: a refusal is an error, not a loss */
    enum session_output output; /* last wanted */
    uint64_t nonce_count;
    uint64_t serial;
    uint64_t wait_save, wait_output, wait_start, wait_stop, wait_load, wait_run; /* serials; 0: none */
    uint64_t rx_complete, rx_acked, rx_applied; /* standby */
    uint64_t rx_asked;      /* last epoch acked when the arbiter was asked: none is acked after it */
    uint64_t hello_generation; /* the active's, until its layout was compared */
    struct session_pipe pipe;
    int64_t now_ns;
    int64_t last_rx_ns, last_tx_ns, link_up_ns;
    int64_t output_at_ns; /* SA_OUTPUT or SA_RUN failed: again then */
    bool connect_slowly;  /* protecting failed for a reason that may well last */
    int64_t connect_at_ns, ask_at_ns, claiming_since_ns, end_at_ns, operator_at_ns; /* INT64_MAX: not wanted */
    int64_t due_ns;         /* session_deadline() after the step before; 0 before the first */
    struct session_actions *out; /* during a step */
};

/**
 * Make a session in state NONE.
 * @param s        caller's memory
 * @param config   copied
 */
void session_init(struct session *s, const struct session_config *config);

/** Defaults of every time and bound, in one place. */
void session_config_default(struct session_config *config);

/**
 * Take one event.
 * @param s        the session
 * @param event    what happened
 * @param now_ns   monotonic time, never read by the session itself
 * @param ret      filled with the actions to carry out, in order
 */
void session_step(struct session *s, const struct session_event *event, int64_t now_ns,
                  struct session_actions *ret);

/** @return when SE_TICK is wanted at the latest (monotonic ns), INT64_MAX for never */
int64_t session_deadline(const struct session *s);

/** @return the state's name in the words of the glossary, for operators and logs */
const char *session_state_name(enum session_state state);
const char *session_event_name(enum session_event_type type);
const char *session_action_name(enum session_action_type type);

/** @return whether the table of transitions allows it; a unit test walks this */
bool session_may_move(enum session_state from, enum session_state to);

/** @return whether this side has the right to let output pass unheld now (safety oracle, status) */
bool session_alone(const struct session *s);

/*
 * Planted faults, compiled in only for tests (-DSESSION_MUTANTS): each breaks one safety rule, and
 * the simulator must find it.
 */
enum session_mutant {
    MUTANT_NONE,
    MUTANT_RELEASE_BEFORE_ACK,    /* rule 1: releases when sent */
    MUTANT_PASS_WITHOUT_GRANT,    /* rule 1: passes output when the standby is lost, without asking */
    MUTANT_PROMOTE_WITHOUT_GRANT, /* rule 2: a time-out is enough to run */
    MUTANT_PROMOTE_STALE,         /* rule 2: loads the epoch before the last acked one */
    MUTANT_REFUSED_GOES_ON,       /* rule 3: the loser keeps running */
    MUTANT_UNREACHABLE_IS_YES,    /* rule 4: silence of the arbiter counts as a grant */
    MUTANT_ACK_BEFORE_COMPLETE,   /* standby acks at EPOCH_BEGIN (but for a FULL epoch) */
    MUTANT_ACK_WHILE_ASKING,      /* standby goes on acking after it asked, and loads what it had then */
    MUTANT_ALONE_NOT_GIVEN_UP,    /* enters protection without holding output first */
    MUTANT_NUM
};
#ifdef SESSION_MUTANTS
extern enum session_mutant session_mutant;
#endif

#endif
