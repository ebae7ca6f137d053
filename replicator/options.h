/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * options.h - one table per program: its long options, their help, and what takes them
 *
 * Owns parsing and the --help text, so that the two cannot drift apart. Knows no option itself.
 * Every option is long; "--name VALUE" and "--name=VALUE" are the same.
 */
#ifndef POLLUX_OPTIONS_H
#define POLLUX_OPTIONS_H

#include <stddef.h>

#define OPTIONS_ROWS_MAX 48
#define OPTIONS_WHY_BYTES 200

struct option_row {
    const char *name;  /* without the dashes */
    const char *value; /* what the help calls its value; NULL for a switch */
    const char *help;  /* one or more lines, separated by '\n' */
    /*
     * Takes the value ("" for a switch). Returns 0, or -EINVAL with a reason in why ("must be ..."),
     * which is printed after the option's name.
     */
    int (*take)(void *into, const char *value, char why[OPTIONS_WHY_BYTES]);
};

/**
 * Parse leading options; stops at the first word that is not one, or after "--".
 * @param rows      ended by a row without a name
 * @param into      handed to take()
 * @param argc      of main
 * @param argv      of main; never reordered
 * @param at        where to begin
 * @param ret_next  index of the first word left, also on error
 * @param ret_why   on error: a sentence without program name and newline
 * @return 0, or -EINVAL
 */
int options_parse(const struct option_row *rows, void *into, int argc, char **argv, int at,
                  int *ret_next, char ret_why[OPTIONS_WHY_BYTES]);

/**
 * Print the table as help text on standard output.
 * @param rows  ended by a row without a name
 */
void options_help(const struct option_row *rows);

/**
 * Parse a whole decimal number.
 * @param text  from the user
 * @param min   smallest legal
 * @param max   largest legal
 * @param ret   written on success
 * @param why   written on error: "must be a whole number from MIN to MAX"
 * @return 0 or -EINVAL
 */
int options_number(const char *text, unsigned long long min, unsigned long long max,
                   unsigned long long *ret, char why[OPTIONS_WHY_BYTES]);

#endif
