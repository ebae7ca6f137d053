/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * sender.c - the active side's way from an arena slot to records in the link's queue; see sender.h
 */
#include "sender.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bug.h"

/* Fewer pages than this are encoded at once by the loop: waking a thread takes longer. */
#define INLINE_PAGES 16

static struct sender_batch *at(struct sender *s, uint64_t position)
{
    return &s->batch[position % SENDER_BATCHES];
}

static size_t payload_max(void)
{
    size_t pages = codec_pages_bound(WIRE_BATCH_PAGES), state = codec_state_bound(WIRE_STATE_CHUNK_BYTES);

    return pages > state ? pages : state;
}

static void encode(struct codec *codec, const struct codec_blocks *blocks, struct sender_batch *b)
{
    uint8_t *payload = b->buf + WIRE_HEADER_BYTES;

    if (b->kind == SENDER_PAGES)
        b->len = codec_pages_encode(codec, blocks, b->index, b->source, b->nr, payload, payload_max());
    else if (b->kind == SENDER_STATE)
        b->len = codec_state_encode(codec, b->offset, b->source, b->nr, payload, payload_max());
}

static void *work(void *opaque)
{
    struct sender *s = opaque;
    struct codec codec;
    uint64_t one = 1;

    codec_init(&codec);
    pthread_mutex_lock(&s->lock);
    while (!s->stopping) {
        struct sender_batch *b;
        if (s->claimed == s->made) {
            pthread_cond_wait(&s->work, &s->lock);
            continue;
        }
        b = at(s, s->claimed++);
        if (b->encoded)
            continue;
        pthread_mutex_unlock(&s->lock);
        encode(&codec, &s->blocks, b);
        pthread_mutex_lock(&s->lock);
        b->encoded = true;
        pthread_cond_broadcast(&s->work); /* sender_stop may wait for it */
        if (write(s->wake_fd, &one, sizeof(one)) < 0)
            continue; /* the counter is full: the loop has been woken anyway */
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int sender_init(struct sender *s, struct link *link, int wake_fd, unsigned nr_workers)
{
    memset(s, 0, sizeof(*s));
    s->link = link;
    s->wake_fd = wake_fd;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    codec_init(&s->codec);
    for (unsigned i = 0; i < SENDER_BATCHES; i++) {
        s->batch[i].sent = true;
        s->batch[i].buf = aligned_alloc(64, (WIRE_HEADER_BYTES + payload_max() + 63) & ~(size_t)63);
        if (!s->batch[i].buf)
            goto nomem;
    }
    for (; s->nr_workers < nr_workers && s->nr_workers < SENDER_WORKERS_MAX; s->nr_workers++) {
        int rc = pthread_create(&s->worker[s->nr_workers], NULL, work, s);
        if (rc) {
            sender_fini(s);
            return -rc;
        }
    }
    return 0;
nomem:
    sender_fini(s);
    return -ENOMEM;
}

void sender_fini(struct sender *s)
{
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_broadcast(&s->work);
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < s->nr_workers; i++)
        pthread_join(s->worker[i], NULL);
    s->nr_workers = 0;
    for (unsigned i = 0; i < SENDER_BATCHES; i++) {
        free(s->batch[i].buf);
        s->batch[i].buf = NULL;
    }
    pthread_cond_destroy(&s->work);
    pthread_mutex_destroy(&s->lock);
}

void sender_stop(struct sender *s)
{
    s->nr_jobs = 0;
    pthread_mutex_lock(&s->lock);
    while (s->claimed < s->made)
        at(s, s->claimed++)->encoded = true; /* nobody began it */
    for (uint64_t i = s->queued; i < s->made; i++) {
        while (!at(s, i)->encoded)
            pthread_cond_wait(&s->work, &s->lock);
        at(s, i)->sent = true;
    }
    s->queued = s->made;
    pthread_mutex_unlock(&s->lock);
    for (uint64_t i = s->freed; i < s->made; i++)
        at(s, i)->frees_slot = false; /* whoever has the slot next is not told of it */
}

void sender_start(struct sender *s, struct arena *arena, const struct codec_blocks *blocks, uint64_t generation)
{
    sender_stop(s);
    s->arena = arena;
    s->blocks = *blocks;
    s->generation = generation;
    s->epoch_pages = s->epoch_state = s->epoch_bytes = s->last_epoch_bytes = 0;
    s->pages_sent = 0;
}

int sender_add(struct sender *s, const struct sender_job *job)
{
    if (s->nr_jobs == SENDER_JOBS)
        return -ENOBUFS;
    s->job[(s->job_head + s->nr_jobs++) % SENDER_JOBS] = *job;
    return 0;
}

/* The next free place in the ring, or NULL; published by commit(). */
static struct sender_batch *reserve(struct sender *s, const struct sender_job *job, enum sender_kind kind)
{
    struct sender_batch *b;

    if (s->made - s->freed == SENDER_BATCHES)
        return NULL;
    b = at(s, s->made);
    b->kind = kind;
    b->epoch = job->epoch;
    b->slot = job->slot;
    b->frees_slot = false;
    b->sent = false;
    b->encoded = kind == SENDER_BEGIN || kind == SENDER_END;
    b->len = 0;
    return b;
}

static void commit(struct sender *s, struct sender_batch *b, bool inline_now)
{
    if (inline_now || s->nr_workers == 0) {
        if (!b->encoded)
            encode(&s->codec, &s->blocks, b);
        b->encoded = true;
    }
    pthread_mutex_lock(&s->lock);
    s->made++;
    if (!b->encoded)
        pthread_cond_signal(&s->work);
    else if (s->claimed == s->made - 1)
        s->claimed = s->made; /* nothing for a worker: it must not fall a ring's length behind */
    pthread_mutex_unlock(&s->lock);
}

static bool make_pages(struct sender *s, struct sender_job *job)
{
    const struct arena_geometry *g = &s->arena->geometry;
    struct sender_batch *b = reserve(s, job, SENDER_PAGES);
    uint64_t left = job->nr_pages - job->next_page;

    if (!b)
        return false;
    b->nr = left < WIRE_BATCH_PAGES ? (uint32_t)left : WIRE_BATCH_PAGES;
    b->index = arena_index(s->arena->base, g, job->slot) + job->next_page;
    b->source = arena_pages(s->arena->base, g, job->slot) + job->next_page * ARENA_PAGE_BYTES;
    job->next_page += b->nr;
    if (s->drop_page && job->epoch > 1 && b->nr > 1) {
        s->drop_page = false;
        b->nr--;
    }
    commit(s, b, job->nr_pages <= INLINE_PAGES);
    return true;
}

static bool make_state(struct sender *s, struct sender_job *job)
{
    struct sender_batch *b = reserve(s, job, SENDER_STATE);
    uint32_t left = job->state_bytes - job->next_state;

    if (!b)
        return false;
    b->nr = left < WIRE_STATE_CHUNK_BYTES ? left : WIRE_STATE_CHUNK_BYTES;
    b->offset = job->next_state;
    b->source = arena_state(s->arena->base, &s->arena->geometry, job->slot) + job->next_state;
    job->next_state += b->nr;
    commit(s, b, job->nr_pages <= INLINE_PAGES);
    return true;
}

static bool make_end(struct sender *s, struct sender_job *job)
{
    struct sender_batch *b = reserve(s, job, SENDER_END);

    if (!b)
        return false;
    b->end = (struct wire_epoch_end){ .held_packets = job->held_packets, .held_bytes = job->held_bytes };
    commit(s, b, true);
    return true;
}

static bool make_begin(struct sender *s, struct sender_job *job)
{
    struct sender_batch *b = reserve(s, job, SENDER_BEGIN);

    if (!b)
        return false;
    b->flags = job->full ? WIRE_EPOCH_FULL : 0;
    commit(s, b, true);
    return true;
}

/* Make batches of the first job. @return whether the job is made whole */
static bool make(struct sender *s, struct sender_job *job)
{
    if (job->first) {
        if (!make_begin(s, job))
            return false;
        job->first = false;
    }
    while (job->next_page < job->nr_pages) {
        if (!make_pages(s, job))
            return false;
    }
    while (job->last && job->next_state < job->state_bytes) {
        if (!make_state(s, job))
            return false;
    }
    if (job->last && !make_end(s, job))
        return false;
    return true;
}

static int queue_begin(struct sender *s, struct sender_batch *b)
{
    struct wire_epoch_begin begin = { .flags = b->flags };

    wire_digest_begin(&s->digest, b->epoch);
    s->epoch_pages = s->epoch_state = s->epoch_bytes = 0;
    b->sent = true;
    return link_send(s->link, WIRE_EPOCH_BEGIN, s->generation, b->epoch, &begin, sizeof(begin));
}

static int queue_end(struct sender *s, struct sender_batch *b)
{
    b->end.pages = s->epoch_pages;
    b->end.state_bytes = s->epoch_state;
    b->end.digest = wire_digest_value(&s->digest);
    b->sent = true;
    s->last_epoch_bytes = s->epoch_bytes + 2 * WIRE_HEADER_BYTES + sizeof(b->end);
    return link_send(s->link, WIRE_EPOCH_END, s->generation, b->epoch, &b->end, sizeof(b->end));
}

static int queue_body(struct sender *s, struct sender_batch *b)
{
    ssize_t len;

    if (b->len < 0) {
        b->sent = true;
        return (int)b->len;
    }
    len = wire_seal(&s->link->writer, b->buf, b->kind == SENDER_PAGES ? WIRE_PAGES : WIRE_STATE,
                    s->generation, b->epoch, (size_t)b->len);
    ASSERT(len > 0);
    wire_digest_add(&s->digest, wire_record_checksum(b->buf));
    s->epoch_bytes += (uint64_t)len;
    if (b->kind == SENDER_PAGES) {
        s->epoch_pages += b->nr;
        s->pages_sent += b->nr;
    } else {
        s->epoch_state += b->nr;
    }
    return link_send_sealed(s->link, b->buf, (size_t)len, &b->sent);
}

/* What has left gives its places in the ring free, and its slot if it was the last of it. */
static void collect(struct sender *s, unsigned *ret_free)
{
    for (; s->freed < s->queued && at(s, s->freed)->sent; s->freed++) {
        if (at(s, s->freed)->frees_slot)
            *ret_free |= 1u << at(s, s->freed)->slot;
    }
}

static int queue_encoded(struct sender *s)
{
    while (s->queued < s->made && link_room(s->link) > 0) {
        struct sender_batch *b = at(s, s->queued);
        bool encoded;
        int rc;

        pthread_mutex_lock(&s->lock);
        encoded = b->encoded;
        pthread_mutex_unlock(&s->lock);
        if (!encoded)
            break;
        s->queued++;
        rc = b->kind == SENDER_BEGIN ? queue_begin(s, b)
             : b->kind == SENDER_END ? queue_end(s, b)
                                     : queue_body(s, b);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int sender_pump(struct sender *s, unsigned *ret_free)
{
    int rc = queue_encoded(s);

    collect(s, ret_free);
    while (rc == 0 && s->nr_jobs) {
        struct sender_job *job = &s->job[s->job_head];
        uint64_t before = s->made;
        bool whole = make(s, job);

        if (whole && s->made > before) {
            at(s, s->made - 1)->frees_slot = true;
        } else if (whole) {
            *ret_free |= 1u << job->slot; /* nothing to send: an empty part */
        }
        if (whole) {
            s->job_head = (s->job_head + 1) % SENDER_JOBS;
            s->nr_jobs--;
        }
        rc = queue_encoded(s);
        collect(s, ret_free);
        if (!whole)
            break;
    }
    return rc;
}

bool sender_epoch_done(struct sender *s, uint64_t *ret_bytes)
{
    if (!s->last_epoch_bytes)
        return false;
    *ret_bytes = s->last_epoch_bytes;
    s->last_epoch_bytes = 0;
    return true;
}
