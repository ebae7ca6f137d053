/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * saver.c - the state file written by a thread of its own; see saver.h
 */
#include "saver.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void answer(struct saver *s, uint64_t serial, int error, const char *why)
{
    unsigned at = (s->done_head + s->done_nr) % SAVER_QUEUE;
    uint64_t one = 1;

    s->done[at].serial = serial;
    s->done[at].error = error;
    snprintf(s->done[at].why, sizeof(s->done[at].why), "%s", why);
    s->done_nr++;
    if (write(s->wake_fd, &one, sizeof(one)) < 0)
        return; /* the counter is full: the loop has been woken anyway */
}

static void *work(void *opaque)
{
    struct saver *s = opaque;

    pthread_mutex_lock(&s->lock);
    while (!s->stopping || s->nr) {
        struct saver_record record;
        char why[STATEFILE_WHY_BYTES] = "";
        int rc;
        if (s->nr == 0) {
            pthread_cond_wait(&s->work, &s->lock);
            continue;
        }
        record = s->queue[s->head];
        pthread_mutex_unlock(&s->lock);
        rc = statefile_save(&s->file, &record.contents, why);
        pthread_mutex_lock(&s->lock);
        s->head = (s->head + 1) % SAVER_QUEUE;
        s->nr--;
        answer(s, record.serial, rc, why);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

int saver_init(struct saver *s, const struct statefile *file, int wake_fd)
{
    int rc;

    memset(s, 0, sizeof(*s));
    s->file = *file;
    s->wake_fd = wake_fd;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->work, NULL);
    rc = pthread_create(&s->thread, NULL, work, s);
    s->running = rc == 0;
    return -rc;
}

int saver_fini(struct saver *s, int64_t timeout_ns)
{
    struct timespec until;

    if (!s->running)
        return 0;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += timeout_ns % 1000000000;
    until.tv_sec += timeout_ns / 1000000000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&s->lock);
    s->stopping = true;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->lock);
    s->running = false;
    if (pthread_clockjoin_np(s->thread, NULL, CLOCK_MONOTONIC, &until)) {
        pthread_mutex_lock(&s->lock);
        s->left = true;
        s->wake_fd = -1; /* the caller closes it, and the number may be another file's by then */
        pthread_mutex_unlock(&s->lock);
        return -ETIMEDOUT;
    }
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->work);
    statefile_close(&s->file);
    return 0;
}

/* Queued and answered together never exceed the queue, so an answer always has a place. */
int saver_put(struct saver *s, const struct saver_record *record)
{
    int rc = -EBUSY;

    pthread_mutex_lock(&s->lock);
    if (s->nr + s->done_nr < SAVER_QUEUE) {
        s->queue[(s->head + s->nr++) % SAVER_QUEUE] = *record;
        pthread_cond_signal(&s->work);
        rc = 0;
    }
    pthread_mutex_unlock(&s->lock);
    return rc;
}

bool saver_take(struct saver *s, uint64_t *ret_serial, int *ret_error, char *ret_why)
{
    bool any;

    pthread_mutex_lock(&s->lock);
    any = s->done_nr > 0;
    if (any) {
        *ret_serial = s->done[s->done_head].serial;
        *ret_error = s->done[s->done_head].error;
        memcpy(ret_why, s->done[s->done_head].why, STATEFILE_WHY_BYTES);
        s->done_head = (s->done_head + 1) % SAVER_QUEUE;
        s->done_nr--;
    }
    pthread_mutex_unlock(&s->lock);
    return any;
}
