/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sender.h - the active side's way from an arena slot to records in the link's queue
 *
 * Owns: a ring of batches (each with its own buffer), and the worker threads that encode them. The
 * loop's thread alone seals and queues, in ring order, so records leave in order whatever the
 * workers' timing. A slot is free when its last batch has left, not when it is encoded: the session takes no free
 * slot for a backlog, and begins to hold output when the full sync has gone out, not when it is ready to.
 *
 * Backpressure: when the peer does not take what is queued, no batch is free, the slot stays busy, and
 * the session captures no further. Memory is fixed at start.
 */
#ifndef POLLUX_SENDER_H
#define POLLUX_SENDER_H

#include <pthread.h>
#include <stdbool.h>

#include "arena.h"
#include "codec.h"
#include "link.h"

#define SENDER_BATCHES 24
#define SENDER_JOBS SENDER_BATCHES
#define SENDER_WORKERS_MAX 4

enum sender_kind { SENDER_BEGIN, SENDER_PAGES, SENDER_STATE, SENDER_END };

/* One slot to send. */
struct sender_job {
    uint64_t epoch;
    unsigned slot;
    bool first, last, full;
    uint64_t nr_pages, next_page;
    uint32_t state_bytes, next_state;
    uint64_t held_packets, held_bytes;
};

struct sender_batch {
    enum sender_kind kind;
    const uint64_t *index;
    const void *source;     /* pages, or state */
    uint32_t nr;            /* pages, or bytes of state */
    uint32_t offset;        /* of state */
    ssize_t len;            /* of the encoded payload, or -errno */
    bool encoded;           /* under the lock */
    bool frees_slot;        /* last of its slot */
    bool sent;              /* the link is done with the buffer */
    uint64_t epoch;
    unsigned slot;
    uint32_t flags;
    struct wire_epoch_end end;
    uint8_t *buf;           /* header, payload */
};

struct sender {
    struct link *link;
    struct arena *arena;
    struct codec_blocks blocks;
    uint64_t generation;
    struct sender_job job[SENDER_JOBS];
    unsigned job_head, nr_jobs;
    struct sender_batch batch[SENDER_BATCHES];
    uint64_t made, claimed, queued, freed; /* counts of batches: ring positions modulo SENDER_BATCHES */
    uint64_t epoch_pages, epoch_state;     /* of the epoch being queued */
    struct wire_digest digest;
    uint64_t epoch_bytes, last_epoch_bytes; /* on the wire */
    uint64_t pages_sent; /* in this session: the progress of its full sync */
    bool drop_page;                        /* planted fault, for tests: one page of one epoch never leaves */
    int wake_fd;                           /* eventfd: a worker is done */
    bool stopping;
    unsigned nr_workers;
    pthread_t worker[SENDER_WORKERS_MAX];
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct codec codec;                    /* of the loop's thread */
};

/**
 * @param wake_fd  eventfd that workers write when a batch is encoded; stays the caller's
 * @return 0 or -errno
 */
int sender_init(struct sender *s, struct link *link, int wake_fd, unsigned nr_workers);
void sender_fini(struct sender *s);

/** A new protection session: the arena, its blocks and the generation. Waits for workers that still encode. */
void sender_start(struct sender *s, struct arena *arena, const struct codec_blocks *blocks, uint64_t generation);

/** Forget all that waits. Returns when no worker reads the arena any more (at most some hundred microseconds). */
void sender_stop(struct sender *s);

/** Queue a slot. @return 0 or -ENOBUFS */
int sender_add(struct sender *s, const struct sender_job *job);

/**
 * Go on: make batches, seal and queue what is encoded.
 * @param ret_free     slots that are free now are or-ed in, as a bit mask
 * @return 0; -EPROTO when QEMU's index names a page that does not exist; -ENOTCONN, -ENOBUFS from the link
 */
int sender_pump(struct sender *s, unsigned *ret_free);

/** @return whether an epoch's END was queued since the last call, and the bytes of that epoch on the wire */
bool sender_epoch_done(struct sender *s, uint64_t *ret_bytes);

#endif
