/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * layout.c - the text in LAYOUT records: what two guests must have in common
 *
 * Both texts are sorted by key, so comparing is one merge. Never does I/O, logs or keeps state; a key may hold
 * any printable character but '=', since device names come from QEMU and block names from the operator.
 */
#include "layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

#define TOLD_BYTES 64      /* of a name or value that are told */
#define SENTENCE_BYTES 384 /* one difference: two values, a name, our words */
#define TAIL_BYTES 32      /* "; and 4294967295 more" */

static int key_compare(const struct layout_line *a, const struct layout_line *b)
{
    size_t n = a->key_len < b->key_len ? a->key_len : b->key_len;
    int c = memcmp(a->key, b->key, n);

    return c ? c : (a->key_len > b->key_len) - (a->key_len < b->key_len);
}

static int line_compare(const void *a, const void *b)
{
    return key_compare(a, b);
}

void layout_iter_init(struct layout_iter *it, const void *text, size_t len)
{
    *it = (struct layout_iter){.text = text, .len = len};
}

static const char *check_line(const struct layout_line *line)
{
    if (!line->key_len)
        return "LAYOUT has a line without a key";
    if (!wire_text_valid(line->key, line->key_len) || !wire_text_valid(line->value, line->value_len))
        return "LAYOUT is not printable UTF-8";
    return NULL;
}

static const char *next_line(struct layout_iter *it, struct layout_line *ret)
{
    const char *start = it->text + it->pos;
    const char *end = memchr(start, '\n', it->len - it->pos);
    const char *equals = end ? memchr(start, '=', (size_t)(end - start)) : NULL;
    const char *why;

    if (!end)
        return "LAYOUT's last line is not ended";
    if (!equals)
        return "LAYOUT has a line without '='";
    ret->key = start;
    ret->key_len = (size_t)(equals - start);
    ret->value = equals + 1;
    ret->value_len = (size_t)(end - equals - 1);
    why = check_line(ret);
    if (why)
        return why;
    if (it->last.key && key_compare(&it->last, ret) >= 0)
        return "LAYOUT's keys are not sorted, each once";
    it->last = *ret;
    it->pos = (size_t)(end + 1 - it->text);
    return NULL;
}

static const char *check_padding(const struct layout_iter *it)
{
    size_t left = it->len - it->pos;

    for (size_t i = 0; i < left; i++) {
        if (it->text[it->pos + i] || i >= 7)
            return "LAYOUT is not padded with at most 7 zero bytes";
    }
    return NULL;
}

int layout_next(struct layout_iter *it, struct layout_line *ret_line, const char **ret_why)
{
    struct layout_line line = {0};
    const char *why;

    if (it->pos == it->len)
        return 0;
    if (!it->text[it->pos]) {
        why = check_padding(it);
        if (!why)
            return 0;
    } else {
        why = next_line(it, &line);
    }
    if (why) {
        *ret_why = why;
        return -EPROTO;
    }
    *ret_line = line;
    return 1;
}

int layout_check(const void *text, size_t len, const char **ret_why)
{
    struct layout_iter it;
    struct layout_line line;
    int nr = 0;
    int ret;

    if (len > LAYOUT_MAX_BYTES) {
        *ret_why = "LAYOUT is over 262144 bytes";
        return -EPROTO;
    }
    layout_iter_init(&it, text, len);
    while ((ret = layout_next(&it, &line, ret_why)) == 1)
        nr++;
    return ret < 0 ? ret : nr;
}

ssize_t layout_build(struct layout_line *lines, size_t nr, char *ret, size_t cap)
{
    size_t used = 0;

    for (size_t i = 0; i < nr; i++) {
        if (check_line(&lines[i]) || memchr(lines[i].key, '=', lines[i].key_len))
            return -EINVAL;
    }
    if (nr)
        qsort(lines, nr, sizeof(*lines), line_compare);
    if (cap > LAYOUT_MAX_BYTES)
        cap = LAYOUT_MAX_BYTES;
    for (size_t i = 0; i < nr; i++) {
        const struct layout_line *l = &lines[i];

        if (i && key_compare(&lines[i - 1], l) == 0)
            return -EINVAL;
        if (l->key_len > cap - used || l->value_len > cap - used ||
            l->key_len + l->value_len + 2 > cap - used)
            return -ENOSPC;
        memcpy(ret + used, l->key, l->key_len);
        used += l->key_len;
        ret[used++] = '=';
        if (l->value_len)
            memcpy(ret + used, l->value, l->value_len);
        used += l->value_len;
        ret[used++] = '\n';
    }
    return (ssize_t)used;
}

/* ---- telling differences ---- */

/* A piece of text for "%.*s%s": cut to TOLD_BYTES, between characters. */
struct told {
    const char *text;
    int len;
    const char *dots;
};

static struct told told(const char *text, size_t len)
{
    size_t n = 0;

    while (n < len) {
        size_t c = wire_text_char(text + n, len - n);

        if (!c || n + c > TOLD_BYTES)
            break;
        n += c;
    }
    return (struct told){.text = text, .len = (int)n, .dots = n < len ? "..." : ""};
}

/* clang-format off */
static const struct {
    const char *prefix;
    const char *noun;
    const char *before; /* the value */
    const char *after;
} kinds[] = {
    {"qemu", "QEMU", "", ""},
    {"machine", "machine type", "", ""},
    {"cpus", "number of processors", "", ""},
    {"ram:", "RAM block", "", " bytes"},
    {"section:", "device section", "version ", ""},
    {"nic:", "network card", "", ""},
};
/* clang-format on */

#define NR_KINDS (sizeof(kinds) / sizeof(kinds[0]))

static size_t kind_of(const struct layout_line *line)
{
    for (size_t i = 0; i < NR_KINDS; i++) {
        size_t n = strlen(kinds[i].prefix);
        bool names = kinds[i].prefix[n - 1] == ':'; /* a name follows; else it is the whole key */

        if (line->key_len >= n && memcmp(line->key, kinds[i].prefix, n) == 0 &&
            (names || line->key_len == n))
            return i;
    }
    return NR_KINDS;
}

static void tell_side(char *ret, size_t cap, const struct layout_line *line, size_t kind)
{
    struct told v;

    if (!line) {
        snprintf(ret, cap, "missing");
        return;
    }
    v = told(line->value, line->value_len);
    snprintf(ret, cap, "%s%.*s%s%s", kind < NR_KINDS ? kinds[kind].before : "", v.len, v.text, v.dots,
             kind < NR_KINDS ? kinds[kind].after : "");
}

/* One difference in words; here or there is NULL when that side has no such line. */
static void tell(char *ret, size_t cap, const struct layout_line *here, const struct layout_line *there)
{
    const struct layout_line *line = here ? here : there;
    size_t kind = kind_of(line);
    size_t prefix = kind < NR_KINDS ? strlen(kinds[kind].prefix) : 0;
    struct told name = told(line->key + prefix, line->key_len - prefix);
    char a[SENTENCE_BYTES / 3], b[SENTENCE_BYTES / 3];

    tell_side(a, sizeof(a), here, kind);
    tell_side(b, sizeof(b), there, kind);
    snprintf(ret, cap, "%s%s%.*s%s: %s here, %s there", kind < NR_KINDS ? kinds[kind].noun : "",
             kind < NR_KINDS && name.len ? " " : "", name.len, name.text, name.dots, a, b);
}

struct report {
    char *text;
    size_t cap;
    size_t used;
    int found;
    int named;
};

static void report_add(struct report *r, const struct layout_line *here, const struct layout_line *there)
{
    char sentence[SENTENCE_BYTES];
    size_t len;

    r->found++;
    if (r->named == LAYOUT_DIFFERENCES_MAX || r->named != r->found - 1)
        return; /* enough, or one did not fit: those after it are only counted */
    tell(sentence, sizeof(sentence), here, there);
    len = strlen(sentence);
    if (r->used + 2 + len + TAIL_BYTES > r->cap)
        return;
    if (r->used) {
        memcpy(r->text + r->used, "; ", 2);
        r->used += 2;
    }
    memcpy(r->text + r->used, sentence, len);
    r->used += len;
    r->named++;
}

static void report_end(struct report *r)
{
    char tail[TAIL_BYTES] = "";

    if (r->found > r->named && r->used)
        snprintf(tail, sizeof(tail), "; and %d more", r->found - r->named);
    else if (r->found > r->named)
        snprintf(tail, sizeof(tail), "%d differences", r->found);
    snprintf(r->text + r->used, r->cap - r->used, "%s", tail);
}

/* Both texts were checked, so a walk over them only ever ends. */
static void merge(struct layout_iter *a, struct layout_iter *b, struct report *report)
{
    struct layout_line here, there;
    const char *why;
    int ra = layout_next(a, &here, &why);
    int rb = layout_next(b, &there, &why);

    while (ra == 1 || rb == 1) {
        int c = ra != 1 ? 1 : rb != 1 ? -1 : key_compare(&here, &there);

        if (c < 0)
            report_add(report, &here, NULL);
        else if (c > 0)
            report_add(report, NULL, &there);
        else if (here.value_len != there.value_len ||
                 memcmp(here.value, there.value, here.value_len) != 0)
            report_add(report, &here, &there);
        if (c <= 0)
            ra = layout_next(a, &here, &why);
        if (c >= 0)
            rb = layout_next(b, &there, &why);
    }
}

int layout_diff(const void *here, size_t here_len, const void *there, size_t there_len, char *ret_text,
                size_t cap, const char **ret_why)
{
    struct report report = {.text = ret_text, .cap = cap};
    struct layout_iter a, b;
    int ret = layout_check(here, here_len, ret_why);

    if (ret >= 0)
        ret = layout_check(there, there_len, ret_why);
    if (ret < 0)
        return ret;
    layout_iter_init(&a, here, here_len);
    layout_iter_init(&b, there, there_len);
    merge(&a, &b, &report);
    report_end(&report);
    return report.found;
}
