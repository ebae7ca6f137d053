/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * log.c - lines on standard error, with a level, and a limit for those that strangers can cause
 */
#include "log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const names[LOG_LEVEL_NUM] = {"error", "warning", "info", "debug"};
static enum log_level highest = LOG_INFO;
static const char *program = "pollux";

void log_set_name(const char *name)
{
    program = name;
}

void log_set_level(enum log_level level)
{
    highest = level;
}

int log_level_of(const char *word)
{
    for (int i = 0; i < LOG_LEVEL_NUM; i++) {
        if (strcmp(names[i], word) == 0)
            return i;
    }
    return -EINVAL;
}

void log_line(enum log_level level, const char *format, ...)
{
    char text[600];
    va_list args;

    if (level > highest)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "%s: %s: %s\n", program, names[level], text); /* one write: unbuffered stream, one call */
}

bool log_may(struct log_limit *limit, const char *what, int64_t now_ns)
{
    if (now_ns - limit->second_ns >= 1000000000) {
        if (limit->suppressed)
            log_line(LOG_WARNING, "%u more lines about %s were left out", limit->suppressed, what);
        *limit = (struct log_limit){.second_ns = now_ns};
    }
    if (limit->passed < LOG_LIMIT_BURST) {
        limit->passed++;
        return true;
    }
    limit->suppressed++;
    return false;
}
