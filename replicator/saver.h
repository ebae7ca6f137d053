/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * saver.h - the state file written by a thread of its own, so that a slow fsync never looks like silence
 *
 * Owns: the state directory (locked: one polluxd for a VM) and the newest record to be written. Records are
 * written in the order given; each is answered, in order, once it is on disk or known not to be.
 */
#ifndef POLLUX_SAVER_H
#define POLLUX_SAVER_H

#include <pthread.h>
#include <stdbool.h>

#include "statefile.h"

#define SAVER_QUEUE 8

struct saver_record {
    struct statefile_contents contents;
    uint64_t serial;
};

struct saver {
    struct statefile file;
    int wake_fd;
    bool stopping;
    pthread_t thread;
    bool running;
    bool left; /* the thread was given up while it wrote */
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct saver_record queue[SAVER_QUEUE];
    unsigned head, nr;
    struct {
        uint64_t serial;
        int error;
        char why[STATEFILE_WHY_BYTES];
    } done[SAVER_QUEUE];
    unsigned done_head, done_nr;
};

/**
 * Begin: file was opened by statefile_open() and is the saver's from here.
 * @param wake_fd  eventfd written when something was answered
 * @return 0 or -errno
 */
int saver_init(struct saver *s, const struct statefile *file, int wake_fd);

/**
 * Write what is queued, end the thread, close the file.
 * @param s           the saver
 * @param timeout_ns  a disk that hangs is waited for no longer
 * @return 0; -ETIMEDOUT: the thread was left at its work, with the directory still locked, and *s must live as long as
 *         the process (s->left says so too)
 */
int saver_fini(struct saver *s, int64_t timeout_ns);

/** @return 0, or -EBUSY when SAVER_QUEUE records wait: then nothing will be answered */
int saver_put(struct saver *s, const struct saver_record *record);

/** @return false when nothing more was answered; ret_why has STATEFILE_WHY_BYTES */
bool saver_take(struct saver *s, uint64_t *ret_serial, int *ret_error, char *ret_why);

#endif
