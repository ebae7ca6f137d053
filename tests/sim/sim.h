/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sim.h - the simulator: two sessions, an arbiter, guests and a network on virtual time from one seed
 *
 * Theory of operation
 *
 * A world is two hosts, a and b. Each has a QEMU (qemu.c), a polluxd (side.c: mailbox, saver, sender and store as
 * the real daemon has them, around the real session), and a TCP-like link between them (net.c). Time jumps
 * from event to event. What happens often (deadlines of a session, QMP answers, records, guest output) has a
 * fixed place in due[]; what happens rarely (faults, asks, restarts) waits in a heap. fault.c breaks things and plays
 * operator and supervisor; scenario.c does so in a planned order; oracle.c watches.
 *
 * Nothing here reads a clock, and everything random comes from the world's own generator, so a world is
 * the same each time from its seed and number.
 */
#ifndef POLLUX_SIM_H
#define POLLUX_SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "../../replicator/session.h"

#define US INT64_C(1000)
#define MS INT64_C(1000000)
#define SEC INT64_C(1000000000)
#define NEVER INT64_MAX

#define PAGES 16u            /* of a fake guest */
#define HELD_MAX 256u        /* packets a checkpoint-buffer holds before it stops the guest */
#define CMDS_MAX 64u         /* QMP commands on their way */
#define INBOX_MAX 64u
#define SAVES_MAX 8u         /* SAVER_QUEUE of the daemon */
#define JOBS_MAX 24u
#define STORE_SLOTS 4u
#define CONNS_MAX 6u
/* As guest.c's: a capture that is not answered in time has failed, an apply ends the connection. */
#define CAPTURE_DEADLINE (4 * SEC)
#define APPLY_DEADLINE (10 * SEC)
#define QUEUE_MAX 1024u      /* records on their way in one direction */
#define BACKPRESSURE 64u     /* above this the sender stops encoding */
#define NODES (1u << 18)     /* of the guest's history that are remembered */
#define TRACE_MAX 96u
#define HEAP_MAX 512u
#define ASKS_MAX 64u

struct rng {
    uint64_t s;
};

static inline uint64_t rng_next(struct rng *r)
{
    uint64_t z = (r->s += 0x9e3779b97f4a7c15ull); /* splitmix64, Steele et al. 2014 */

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/** @return below n; n > 0 */
static inline uint64_t rng_below(struct rng *r, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)rng_next(r) * n) >> 64);
}

/** @return lo..hi */
static inline int64_t rng_range(struct rng *r, int64_t lo, int64_t hi)
{
    return lo + (int64_t)rng_below(r, (uint64_t)(hi - lo) + 1);
}

static inline bool rng_permille(struct rng *r, unsigned permille)
{
    return rng_below(r, 1000) < permille;
}

/** @return about lo..hi, each power of two in it equally likely */
int64_t rng_log(struct rng *r, int64_t lo, int64_t hi);

/* ---- what moves between the parts ---- */

/* Pages in an arena slot or a record: version of each page in mask. */
struct content {
    uint32_t mask;
    uint32_t version[PAGES];
};

/* Device state: where in its history the guest was, and what its RAM was. */
struct device {
    uint64_t node;
    uint64_t ram_hash;
};

struct slot {
    struct content pages;
    struct device device;
};

enum cmd_type {
    CMD_START, CMD_STOP_ROLE, CMD_CAPTURE, CMD_OUTPUT, CMD_RELEASE, CMD_APPLY, CMD_LOAD, CMD_RUN, CMD_STOP,
    CMD_NUM
};

/* One QMP command. */
struct cmd {
    enum cmd_type type;
    uint64_t serial, epoch;
    uint64_t generation; /* of the session that said it */
    uint64_t arena;      /* arena or store it belongs to */
    uint64_t life;       /* of the polluxd that said it */
    unsigned slot;
    bool precopy, append, active;
    enum session_output mode;
};

enum qemu_role { QEMU_NONE, QEMU_ACTIVE, QEMU_STANDBY };

struct held {
    uint64_t node, epoch;
};

struct qemu {
    bool alive;
    bool ran;           /* not FRESH */
    bool running;
    bool ended;         /* the guest shut down; QEMU goes in a moment */
    bool loaded, load_failed;
    bool stranger;      /* booted anew where a guest was protected: its output is nobody's business but its own */
    uint64_t id;        /* this process */
    uint64_t node;      /* history of its guest: the last packet it sent */
    uint32_t ram[PAGES];
    uint32_t dirty;
    enum qemu_role role;
    bool failed;
    uint64_t arena;     /* memfd it has mapped */
    uint64_t wake_life; /* polluxd whose eventfd it has */
    uint64_t qmp_life;  /* polluxd that is connected to it; 0 none */
    uint64_t epoch;
    bool part_paused, part_resume; /* a capture that filled its slot */
    uint64_t part_count;
    enum session_output mode;
    uint64_t mode_generation;
    bool buffered;      /* has a checkpoint-buffer */
    struct held held[HELD_MAX];
    unsigned held_head, held_nr;
    uint64_t woke_epoch;
    struct cmd cmd[CMDS_MAX];
    unsigned cmd_head, cmd_nr;
    int64_t cmd_at;     /* the first ends */
    int64_t out_at;     /* the guest sends its next packet */
    int64_t burst_until;
};

enum msg_type {
    M_ESTABLISHED, M_FIN, M_HELLO, M_LAYOUT, M_REFUSE, M_HEARTBEAT, M_BEGIN, M_PART, M_ACK, M_APPLIED, M_GONE,
    M_ENDED, M_NUM
};

struct msg {
    int64_t at;
    enum msg_type type;
    int code;
    bool flag, last, full;
    uint64_t generation, epoch;
    struct slot slot;
};

struct queue {
    struct msg *msg; /* QUEUE_MAX */
    unsigned head, nr;
    int64_t last_at;
};

struct conn {
    bool used;
    bool open[2];      /* as each end sees it */
    struct queue to[2];
};

enum store_state { STORE_FREE, STORE_FILLING, STORE_WHOLE, STORE_APPLYING, STORE_PART, STORE_APPLIED };

struct store_slot {
    enum store_state state;
    uint64_t epoch;
    struct slot slot;
};

struct store {
    bool open, full, in_epoch;
    uint64_t id, epoch;
    int filling;
    struct store_slot slot[STORE_SLOTS];
};

struct job {
    uint64_t epoch;
    unsigned slot;
    bool first, last, full;
};

struct save {
    uint64_t serial;
    struct session_persist persist;
    bool paired;
};

/* One host and the polluxd on it. */
struct side {
    unsigned id;
    bool host_up, daemon_up;
    int64_t host_paused, daemon_paused; /* until */
    int64_t clock_offset;
    uint64_t life;
    struct session s;
    struct session_event inbox[INBOX_MAX];
    unsigned inbox_head, inbox_nr;
    bool settling;
    unsigned crash_in;         /* polluxd dies at this many actions from now; 0 never */
    struct qemu q;
    int conn;                  /* -1 none */
    bool parting;
    bool rx_waiting;           /* store busy: the record at the head of the queue waits */
    struct session_persist disk;
    bool disk_paired;
    struct save save[SAVES_MAX];
    unsigned save_head, save_nr;
    int64_t save_at;
    int64_t saver_slow_until, saver_fails_until;
    uint64_t arena;            /* id of the active's; 0 none */
    struct slot slot[SESSION_SLOTS_MAX];
    struct job job[JOBS_MAX];
    unsigned job_head, job_nr;
    int64_t job_at;
    struct store store;
    uint64_t ask;              /* outstanding; 0 none */
    int64_t qmp_slow_until;
    int64_t hangs_since, hangs_until; /* QEMU's main loop stands still: no answers, no output */
    int64_t arbiter_cut;       /* until */
    int64_t outdated_since, none_since, start_qemu_at;
    bool adopt;
    bool fail_capture, fail_start, fail_load; /* the next one */
    /* what the oracles know */
    uint64_t last_serial;
    uint64_t acked_rx;         /* highest ack that came on this link */
    uint64_t rx_whole;         /* highest epoch that came whole */
    enum session_state state;  /* as the SA_MOVED actions say */
    unsigned vain_ticks;
    bool load_fault;           /* BROKEN has a cause */
};

struct arbiter {
    bool up;
    uint64_t generation, holder;
    uint8_t nonce[16];
};

struct ask {
    uint64_t id, life;
    unsigned side;
    uint64_t expect, next;
    uint8_t nonce[16];
    uint64_t generation, holder; /* the register, in the answer */
};

struct node {
    uint64_t parent, n;
};

/* What happened, so that a run in which too little happened can be told from a good one. */
enum count {
    N_FAULTS, N_DOUBLE, N_FAILOVERS, N_REFUSALS, N_UNREACHABLE, N_REPEATED_GRANTS, N_RESYNCS, N_PROTECTED, N_EPOCHS,
    N_RELEASED, N_HELD_RELEASED, N_STRAGGLERS, N_PARTS, N_PRECOPIES, N_CAPTURE_FAILURES, N_OUTPUT_FULL, N_FROZEN, N_SAVE_FAILURES,
    N_DAEMON_CRASHES, N_CRASH_AT_ACTION, N_HOST_LOSSES, N_QEMU_DEATHS, N_PAUSES, N_PARTITIONS, N_LINK_RESETS,
    N_ARBITER_CUTS, N_SLOW_ASKS, N_TURNED_AWAY, N_BACKPRESSURE, N_OPERATOR, N_SHUTDOWNS, N_SETTLED, N_LOST_EXCUSED, N_WORLDS,
    N_STEPS, N_COLD_BOOTS, N_NUM
};
extern const char *const count_name[N_NUM];

enum trace_kind { TRACE_EVENT, TRACE_ACTION, TRACE_WORLD };
struct trace {
    int64_t at;
    uint8_t kind, side, type;
    uint64_t a, b;
    char text[72];
};

enum heap_type {
    H_CONNECT, H_CONNECT_FAILED, H_ASK, H_ANSWER, H_ASK_TIMEOUT, H_DAEMON_START, H_ATTACH, H_HOST_START, H_QEMU_START,
    H_QEMU_GONE, H_PART_TIMEOUT, H_QMP_DEADLINE, H_FAULT, H_POLL, H_WAKE, H_ARBITER_UP, H_PHASE, H_SCENARIO, H_BUSY
};
struct heap_item {
    int64_t at;
    uint64_t seq;
    enum heap_type type;
    unsigned side;
    uint64_t a, b;
};

enum { K_SESSION, K_INBOX, K_QMP, K_SENDER, K_SAVER, K_OUTPUT, K_NUM };
#define DUE_HEAP 0u
#define DUE_SIDE(side, k) (1u + (side) * K_NUM + (k))
#define DUE_NET(conn, to) (1u + 2 * K_NUM + (conn) * 2 + (to))
#define DUE_NUM (1u + 2 * K_NUM + 2 * CONNS_MAX)

struct scenario;

struct world {
    int64_t now;
    int64_t due[DUE_NUM];
    unsigned due_nr;           /* beyond it: connections that were not used yet */
    struct rng rng;
    uint64_t seed, number;
    struct heap_item heap[HEAP_MAX];
    unsigned heap_nr;
    uint64_t seq, ids;
    struct side side[2];
    struct session_config config;
    struct session_actions actions;
    struct conn conn[CONNS_MAX];
    int64_t cut_until[2];      /* records to this side do not arrive before */
    int64_t latency, jitter, spike_until, spike;
    struct arbiter arbiter;
    struct ask ask[ASKS_MAX];
    unsigned lose_answers;     /* so many of the next answers are lost */
    unsigned slot_pages;
    bool resume_events;        /* captures tell RESUME */
    int64_t out_gap;           /* mean time between packets of a quiet guest */
    int64_t busy_until;
    int64_t ask_timeout;
    /* history */
    struct node *nodes;
    uint64_t last_node;
    uint32_t version;
    uint64_t visible;          /* node of the last packet that the outside saw */
    uint64_t writer;           /* id of the QEMU that may say something new */
    uint64_t writer_base;      /* what its state was when it became the writer */
    bool gap_ok;
    struct { uint64_t generation, qemu; } owner[1024];
    int64_t last_visible_at;
    /* schedule */
    bool faults;               /* phase: faults come, or everything heals */
    int64_t fault_gap;
    int64_t phase_end, world_end;
    bool saw_protected;        /* since the last loss of a copy */
    unsigned hard_faults;      /* since the pair was last fully protected */
    bool hard_unprotected;     /* one of them hit when it was not */
    bool forced;               /* oracle a is off: an operator took the risk in words */
    bool guest_ended;
    unsigned lost_polls;
    bool outside;              /* oracles (c) and (e), which look inside, are silent */
    const struct scenario *scenario;
    unsigned step;
    int64_t step_since;
    bool step_armed;
    bool failed;
    char why[256];
    bool tracing;
    struct trace trace[TRACE_MAX];
    uint64_t trace_nr;
    uint64_t count[N_NUM];
    uint64_t states[ST_NUM];        /* entered */
    uint64_t crashes[ST_NUM];       /* polluxd, by the state it was in */
    uint64_t deaths[ST_NUM];        /* QEMU or host, same */
};

/* ---- core.c ---- */
void world_at(struct world *w, int64_t at, enum heap_type type, unsigned side, uint64_t a, uint64_t b);
bool world_turn(struct world *w); /* one event; false at the end or after a failure */
void world_trace(struct world *w, enum trace_kind kind, unsigned side, unsigned type, uint64_t a, uint64_t b,
                 const char *text);
void world_print_trace(const struct world *w, FILE *to);
void world_fail(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
struct world *world_new(void);
void world_free(struct world *w);
void world_begin(struct world *w, uint64_t seed, uint64_t number);

static inline struct side *other(struct world *w, const struct side *d)
{
    return &w->side[1 - d->id];
}

/* ---- side.c: polluxd ---- */
void side_post(struct world *w, struct side *d, const struct session_event *e);
void side_say(struct world *w, struct side *d, enum session_event_type type);
void side_settle(struct world *w, struct side *d);
void side_tick(struct world *w, struct side *d);
void side_start(struct world *w, struct side *d);
void side_attach(struct world *w, struct side *d);
void side_crash(struct world *w, struct side *d, bool host);
void side_update(struct world *w, struct side *d); /* due times, after pauses and the like */
void side_saved(struct world *w, struct side *d);
void side_job_done(struct world *w, struct side *d);
bool side_receive(struct world *w, struct side *d, const struct msg *m); /* false: no room, offer it again */
void side_applied(struct world *w, struct side *d, unsigned slot, uint64_t store);
void side_arbiter(struct world *w, struct side *d, uint64_t ask, enum session_grant grant);

static inline int64_t side_now(const struct world *w, const struct side *d)
{
    return w->now + d->clock_offset;
}

static inline int64_t side_awake(const struct side *d)
{
    return d->host_paused > d->daemon_paused ? d->host_paused : d->daemon_paused;
}

/* ---- qemu.c ---- */
void qemu_boot(struct world *w, struct side *d, bool fresh, uint64_t node);
void qemu_kill(struct world *w, struct side *d, bool silent);
void qemu_ask(struct world *w, struct side *d, const struct cmd *c);
void qemu_cmd_done(struct world *w, struct side *d);
void qemu_output(struct world *w, struct side *d);
void qemu_update(struct world *w, struct side *d);
void qemu_part_timeout(struct world *w, struct side *d, uint64_t count);
void qemu_polluxd_gone(struct world *w, struct side *d);
void qemu_shutdown(struct world *w, struct side *d);
void qemu_hang_up(struct world *w, struct side *d);
void qemu_hang(struct world *w, struct side *d, int64_t length);
void qemu_deadline(struct world *w, struct side *d, uint64_t id);

/* ---- net.c ---- */
void net_connect(struct world *w, struct side *d);
void net_connect_arrives(struct world *w, struct side *to, unsigned conn);
void net_connect_failed(struct world *w, struct side *d, unsigned conn);
void net_send(struct world *w, struct side *d, const struct msg *m, int64_t extra);
void net_close(struct world *w, struct side *d, bool flush);
void net_lose(struct world *w, struct side *d); /* power: no FIN */
void net_reset(struct world *w);
void net_deliver(struct world *w, unsigned conn, unsigned to);
void net_update(struct world *w);
unsigned net_queued(const struct world *w, const struct side *d);

/* ---- arbiter part of net.c's neighbour: register.c ---- */
void register_ask(struct world *w, struct side *d, const struct session_action *a);
void register_arrives(struct world *w, uint64_t id);
void register_answers(struct world *w, uint64_t id, enum session_grant grant);
void register_timeout(struct world *w, uint64_t id);

/* ---- oracle.c ---- */
void oracle_reset(struct world *w);
uint64_t oracle_node(struct world *w, uint64_t parent);
bool oracle_contains(const struct world *w, uint64_t state, uint64_t node);
void oracle_release(struct world *w, const struct side *d, uint64_t node, uint64_t generation);
void oracle_loaded(struct world *w, const struct side *d, const struct device *device);
void oracle_runs(struct world *w, const struct side *d);
void oracle_step(struct world *w, struct side *d, const struct session_event *e);
void oracle_action(struct world *w, struct side *d, const struct session_action *a);
void oracle_hard_fault(struct world *w);
bool oracle_fully_protected(const struct world *w);
void oracle_settled(struct world *w);
bool oracle_copy_exists(const struct world *w);

/* ---- fault.c ---- */
enum fault {
    F_DAEMON_CRASH, F_CRASH_AT_ACTION, F_HOST_LOSS, F_QEMU_DEATH, F_LINK_RESET, F_PARTITION, F_ONE_WAY, F_SPIKE,
    F_ARBITER_CUT, F_ARBITER_DOWN, F_LOSE_ANSWER, F_DAEMON_PAUSE, F_HOST_PAUSE, F_SAVER_SLOW, F_SAVER_FAILS,
    F_CAPTURE_FAILS, F_START_FAILS, F_LOAD_FAILS, F_BURST, F_BUSY, F_QMP_SLOW, F_CLOCK_JUMP, F_UNPAIR, F_SHUTDOWN, F_PROMOTE,
    F_GUEST_ENDS, F_COLD_BOOT, F_QMP_LOST, F_REPLACE_QEMU, F_HEAL, F_PROMOTE_ASK, F_FORCE,
    F_QEMU_HANGS, F_NUM
};
extern const char *const fault_name[F_NUM];
void fault_do(struct world *w, enum fault f, unsigned side, int64_t length);
void fault_next(struct world *w);
void fault_poll(struct world *w);
void fault_phase(struct world *w);
void fault_heal(struct world *w);
void fault_busy(struct world *w, int64_t length);

/* ---- scenario.c ---- */
const struct scenario *scenario_find(const char *name);
const struct scenario *scenario_at(unsigned i); /* NULL: no more */
const char *scenario_name(const struct scenario *s);
bool scenario_run(struct world *w, const struct scenario *s, uint64_t seed);
void scenario_event(struct world *w, const struct side *d, const struct session_event *e);
void scenario_action(struct world *w, const struct side *d, const struct session_action *a);
void scenario_fire(struct world *w, uint64_t step);

#endif
