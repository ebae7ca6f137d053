/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * log.h - lines on standard error, with a level, and a limit for those that strangers can cause
 */
#ifndef POLLUX_LOG_H
#define POLLUX_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG, LOG_LEVEL_NUM };

/** At most LOG_LIMIT_BURST lines a second pass; all zero is ready. */
struct log_limit {
    int64_t second_ns;
    unsigned passed;
    unsigned suppressed;
};

#define LOG_LIMIT_BURST 10

/** Which program speaks: a constant, printed before each line. */
void log_set_name(const char *name);

/** Lines above this level are not printed. */
void log_set_level(enum log_level level);

/**
 * Find a level by its word.
 * @param word  "error", "warning", "info" or "debug"
 * @return the level, or -EINVAL
 */
int log_level_of(const char *word);

/** Print one line: "PROGRAM: LEVEL: text". */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/**
 * Ask whether one more line of a kind may be printed. Says how many were left out, when a new second lets
 * lines through again.
 * @param limit   of this kind
 * @param what    the kind in words, for that line
 * @param now_ns  monotonic
 */
bool log_may(struct log_limit *limit, const char *what, int64_t now_ns);

#endif
