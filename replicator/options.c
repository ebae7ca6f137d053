/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * options.c - one table per program: its long options, their help, and what takes them
 */
#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HELP_COLUMN 30

static const struct option_row *find(const struct option_row *rows, const char *name, size_t len)
{
    for (; rows->name; rows++) {
        if (strlen(rows->name) == len && memcmp(rows->name, name, len) == 0)
            return rows;
    }
    return NULL;
}

int options_parse(const struct option_row *rows, void *into, int argc, char **argv, int at,
                  int *ret_next, char ret_why[OPTIONS_WHY_BYTES])
{
    char why[OPTIONS_WHY_BYTES];

    for (; at < argc && argv[at][0] == '-' && argv[at][1]; at++) {
        const char *name = argv[at] + 2, *value = "";
        size_t len = strcspn(name, "=");
        const struct option_row *row = NULL;

        *ret_next = at;
        if (strcmp(argv[at], "--") == 0) {
            at++;
            break;
        }
        if (argv[at][1] == '-')
            row = find(rows, name, len);
        if (!row) {
            snprintf(ret_why, OPTIONS_WHY_BYTES, "unknown option \"%.60s\"; see --help", argv[at]);
            return -EINVAL;
        }
        if (!row->value && name[len] == '=') {
            snprintf(ret_why, OPTIONS_WHY_BYTES, "--%s takes no value", row->name);
            return -EINVAL;
        }
        if (row->value && name[len] == '=') {
            value = name + len + 1;
        } else if (row->value) {
            if (at + 1 == argc) {
                snprintf(ret_why, OPTIONS_WHY_BYTES, "--%s needs a value: %s", row->name,
                         row->value);
                return -EINVAL;
            }
            value = argv[++at];
        }
        snprintf(why, sizeof(why), "is not legal");
        if (row->take(into, value, why)) {
            snprintf(ret_why, OPTIONS_WHY_BYTES, "--%s %.*s", row->name, 150, why);
            return -EINVAL;
        }
    }
    *ret_next = at;
    return 0;
}

static void print_help_lines(const char *help)
{
    for (;;) {
        int len = (int)strcspn(help, "\n");

        printf("%.*s\n", len, help);
        if (!help[len])
            return;
        help += len + 1;
        printf("%*s", HELP_COLUMN, "");
    }
}

void options_help(const struct option_row *rows)
{
    for (; rows->name; rows++) {
        int n = printf("  --%s%s%s", rows->name, rows->value ? " " : "",
                       rows->value ? rows->value : "");

        if (n > HELP_COLUMN - 2) {
            printf("\n");
            n = 0;
        }
        printf("%*s", HELP_COLUMN - n, "");
        print_help_lines(rows->help);
    }
}

int options_number(const char *text, unsigned long long min, unsigned long long max,
                   unsigned long long *ret, char why[OPTIONS_WHY_BYTES])
{
    unsigned long long value;
    char *end;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < min || value > max) {
        snprintf(why, OPTIONS_WHY_BYTES, "must be a whole number from %llu to %llu, not \"%.40s\"",
                 min, max, text);
        return -EINVAL;
    }
    *ret = value;
    return 0;
}
