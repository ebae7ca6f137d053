/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * hold.h - policy of held guest output: when to capture early, freeze and thaw
 *
 * Owns no packet: QEMU's checkpoint-buffer filter holds them. This keeps the account of one VM: how
 * much is held, since when each epoch's output waits, and what follows from the limits. Pure: no
 * I/O, no clock (now_ns is handed down, any monotonic clock), no log, no allocation. It never
 * decides to release; that is the session's business and follows from acks and grants only.
 *
 * Order of calls for one epoch N:
 *   hold_wakeup(N)     its first packet is held (QEMU wrote the eventfd); may be missing
 *   hold_observed()    any time a held count was read
 *   hold_captured(N)   the capture ended epoch N; later wake-ups belong to N + 1
 *   hold_released(N)   the output up to N was let go; then hold_next_time() until it returns false
 * hold_decide() may be called at any time and as often as wanted: it changes nothing.
 */
#ifndef POLLUX_HOLD_H
#define POLLUX_HOLD_H

#include <stdbool.h>
#include <stdint.h>

/* Epochs with output that waits at once. An active has at most a few slots in flight. */
#define HOLD_EPOCHS_MAX 64u

struct hold_limits {
    uint64_t max_bytes;   /* freeze at; same as the filter's max-bytes; 1 or more */
    uint64_t max_packets; /* freeze at; 1 or more */
    uint64_t max_hold_ns; /* freeze when the oldest output has waited so long; 0: never */
};

enum hold_verdict {
    HOLD_NOTHING,
    HOLD_CAPTURE_EARLY, /* output of the running epoch waits: end the epoch when the budget allows */
    HOLD_FREEZE,        /* a limit is reached: stop the guest, keep capturing and sending */
    HOLD_THAW,          /* frozen, and there is room again: let it run */
    HOLD_VERDICT_NUM,
};

enum hold_reason {
    HOLD_REASON_NONE,
    HOLD_REASON_OUTPUT_WAITS,
    HOLD_REASON_BYTES,
    HOLD_REASON_PACKETS,
    HOLD_REASON_TIME,
    HOLD_REASON_ROOM, /* of HOLD_THAW */
    HOLD_REASON_NUM,
};

/* One epoch whose output waits. */
struct hold_epoch {
    uint64_t epoch;
    uint64_t first_ns; /* when its first packet was held, as far as we saw it */
};

struct hold {
    struct hold_limits limits;
    uint64_t bytes; /* last observation, over all buffers of the VM */
    uint64_t packets;
    uint64_t captured_packets; /* of them, those sent before the last capture */
    uint64_t running_epoch;    /* the epoch the guest executes; 0 before hold_restart() */
    bool frozen;
    struct hold_epoch waiting[HOLD_EPOCHS_MAX]; /* a ring, epochs strictly rising */
    unsigned head;
    unsigned nr_waiting;
    uint64_t released_epoch; /* everything up to here was released */
    uint64_t released_ns;    /* and when */
    uint64_t merged;         /* epochs that found the ring full: counted with their successor */
    uint64_t freezes;        /* times the guest was frozen */
    uint64_t frozen_since_ns;
    uint64_t frozen_ns; /* all finished freezes together */
};

/**
 * Check limits that come from an operator.
 * @param limits what to check
 * @return 0, or -EINVAL when bytes or packets are 0 or too large to double
 */
int hold_check_limits(const struct hold_limits *limits);

/**
 * Begin with nothing held, running, no session: hold_restart() begins one.
 * @param h the account
 * @param limits valid by hold_check_limits()
 * @return 0 or -EINVAL
 */
int hold_init(struct hold *h, const struct hold_limits *limits);

/**
 * checkpoint-start succeeded, a new protection session: epochs count from 1 again. What is still held was sent before the
 * session's first capture and so belongs to its epoch 1, as it does in the filter.
 * @param h the account
 * @param now_ns now
 */
void hold_restart(struct hold *h, uint64_t now_ns);

/**
 * The filter held the first packet of an epoch.
 * @param h the account
 * @param epoch the epoch that the guest executes; an older one is taken as a late wake-up and ignored
 * @param now_ns now
 */
void hold_wakeup(struct hold *h, uint64_t epoch, uint64_t now_ns);

/**
 * What the filter holds now (arena header, or a reply that carries it).
 * @param h the account
 * @param packets held in all buffers
 * @param bytes held in all buffers
 * @param now_ns now
 *
 * More packets than the last capture left are taken as held in the running epoch since now: a
 * lost wake-up delays an answer but hides nothing. A stale count costs one early capture.
 */
void hold_observed(struct hold *h, uint64_t packets, uint64_t bytes, uint64_t now_ns);

/**
 * A capture ended an epoch. What is held now was sent in that epoch or before.
 * @param h the account
 * @param epoch that ended; the guest executes epoch + 1 from here
 * @param packets held at the capture, all buffers
 * @param bytes held at the capture, all buffers
 * @param now_ns now
 */
void hold_captured(struct hold *h, uint64_t epoch, uint64_t packets, uint64_t bytes,
                   uint64_t now_ns);

/**
 * The output of all epochs up to one was let go (or dropped).
 * @param h the account
 * @param epoch highest released; a smaller one than before changes nothing
 * @param packets how many left
 * @param bytes how many left
 * @param now_ns now
 */
void hold_released(struct hold *h, uint64_t epoch, uint64_t packets, uint64_t bytes,
                   uint64_t now_ns);

/**
 * Take the hold time of one released epoch that had output, oldest first.
 * @param h the account
 * @param ret_epoch which epoch
 * @param ret_held_ns first packet held to released
 * @return false when there is none left; outputs are then unchanged
 */
bool hold_next_time(struct hold *h, uint64_t *ret_epoch, uint64_t *ret_held_ns);

/**
 * The guest was stopped because of a limit (by QEMU at its own limit, or after HOLD_FREEZE).
 * @param h the account
 * @param now_ns now
 */
void hold_frozen(struct hold *h, uint64_t now_ns);

/**
 * The guest runs again.
 * @param h the account
 * @param now_ns now
 */
void hold_thawed(struct hold *h, uint64_t now_ns);

/**
 * What to do now.
 * @param h the account; unchanged
 * @param now_ns now
 * @param ret_reason why; may be NULL
 * @return the verdict. HOLD_FREEZE only while not frozen, HOLD_THAW only while frozen: tell
 *         hold_frozen() and hold_thawed() when done. A frozen guest with uncaptured output gives
 *         HOLD_CAPTURE_EARLY, because only a capture and its ack make room.
 */
enum hold_verdict hold_decide(const struct hold *h, uint64_t now_ns, enum hold_reason *ret_reason);

/**
 * When hold_decide() could change without any new observation.
 * @param h the account
 * @param ret_at_ns absolute time to ask again
 * @return false when time alone changes nothing
 */
bool hold_deadline(const struct hold *h, uint64_t *ret_at_ns);

/**
 * How long the guest has been frozen in all, the present freeze included.
 * @param h the account
 * @param now_ns now
 * @return nanoseconds
 */
uint64_t hold_frozen_total_ns(const struct hold *h, uint64_t now_ns);

/**
 * @param verdict any value
 * @return a word for the log, "?" for a value that is none
 */
const char *hold_verdict_name(enum hold_verdict verdict);

/**
 * @param reason any value
 * @return a word for the log, "?" for a value that is none
 */
const char *hold_reason_name(enum hold_reason reason);

#endif
