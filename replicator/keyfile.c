/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * keyfile.c - small files that must never be half written: key=value lines under a checksum
 */
#include "keyfile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define CHECKSUM_KEY "checksum="
#define CHECKSUM_LINE_BYTES (sizeof(CHECKSUM_KEY) - 1 + 16 + 1)
#define NAME_MAX_BYTES 200
#define VALUE_MAX_BYTES 128

void keyfile_hex(const uint8_t *bytes, size_t nr, char *ret)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < nr; i++) {
        ret[2 * i] = digits[bytes[i] >> 4];
        ret[2 * i + 1] = digits[bytes[i] & 15];
    }
    ret[2 * nr] = 0;
}

/* ---- writing the text ---- */

static bool text_fits(const char *text, size_t len)
{
    if (len && (text[0] == ' ' || text[len - 1] == ' '))
        return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < 0x20 || text[i] > 0x7e)
            return false;
    }
    return true;
}

static unsigned choice_get(const struct keyfile_field *f, const void *member)
{
    unsigned value = 0;

    memcpy(&value, member, f->size); /* little endian host: a bool's byte is the low one */
    return value;
}

static unsigned nr_choices(const struct keyfile_field *f)
{
    unsigned n = 0;

    while (f->choices[n])
        n++;
    return n;
}

static int format_value(const struct keyfile_field *f, const void *object,
                        char ret[VALUE_MAX_BYTES])
{
    const uint8_t *member = (const uint8_t *)object + f->offset;
    size_t len;
    unsigned choice;
    uint64_t number;

    switch (f->type) {
    case KEYFILE_U64:
        memcpy(&number, member, sizeof(number));
        snprintf(ret, VALUE_MAX_BYTES, "%" PRIu64, number);
        return 0;
    case KEYFILE_BYTES16:
        keyfile_hex(member, 16, ret);
        return 0;
    case KEYFILE_TEXT:
        len = strnlen((const char *)member, f->size);
        if (len == f->size || len >= VALUE_MAX_BYTES || !text_fits((const char *)member, len))
            return -EINVAL;
        memcpy(ret, member, len + 1);
        return 0;
    case KEYFILE_CHOICE:
        choice = choice_get(f, member);
        if (choice >= nr_choices(f))
            return -EINVAL;
        snprintf(ret, VALUE_MAX_BYTES, "%s", f->choices[choice]);
        return 0;
    }
    return -EINVAL;
}

ssize_t keyfile_format(const struct keyfile_schema *schema, const void *object, char *buf,
                       size_t cap)
{
    char value[VALUE_MAX_BYTES];
    size_t len;
    int n;

    n = snprintf(buf, cap, "%s\n", schema->title);
    if (n < 0 || (size_t)n >= cap)
        return -ENOSPC;
    len = (size_t)n;
    for (size_t i = 0; i < schema->nr_fields; i++) {
        const struct keyfile_field *f = &schema->fields[i];

        if (format_value(f, object, value))
            return -EINVAL;
        n = snprintf(buf + len, cap - len, "%s=%s\n", f->key, value);
        if (n < 0 || (size_t)n >= cap - len)
            return -ENOSPC;
        len += (size_t)n;
    }
    n = snprintf(buf + len, cap - len, CHECKSUM_KEY "%016" PRIx64 "\n", XXH64(buf, len, 0));
    if (n < 0 || (size_t)n >= cap - len)
        return -ENOSPC;
    return (ssize_t)(len + (size_t)n);
}

/* ---- reading the text ---- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static int parse_hex(const char *text, size_t nr_digits, uint8_t *ret)
{
    for (size_t i = 0; i < nr_digits / 2; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);

        if (high < 0 || low < 0)
            return -EPROTO;
        ret[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

static int parse_u64(const char *text, size_t len, uint64_t *ret)
{
    uint64_t value = 0;

    if (!len || (text[0] == '0' && len > 1))
        return -EPROTO;
    for (size_t i = 0; i < len; i++) {
        unsigned digit = (unsigned)(text[i] - '0');

        if (text[i] < '0' || text[i] > '9' || value > (UINT64_MAX - digit) / 10)
            return -EPROTO;
        value = value * 10 + digit;
    }
    *ret = value;
    return 0;
}

/* Checks only, when object is NULL. */
static int parse_value(const struct keyfile_field *f, const char *text, size_t len, uint8_t *object)
{
    uint8_t *member = object ? object + f->offset : NULL;
    uint8_t bytes[16];
    uint64_t number;

    switch (f->type) {
    case KEYFILE_U64:
        if (parse_u64(text, len, &number))
            return -EPROTO;
        if (member)
            memcpy(member, &number, sizeof(number));
        return 0;
    case KEYFILE_BYTES16:
        if (len != 32 || parse_hex(text, 32, bytes))
            return -EPROTO;
        if (member)
            memcpy(member, bytes, sizeof(bytes));
        return 0;
    case KEYFILE_TEXT:
        if (len >= f->size || !text_fits(text, len))
            return -EPROTO;
        if (member) {
            memset(member, 0, f->size);
            memcpy(member, text, len);
        }
        return 0;
    case KEYFILE_CHOICE:
        for (unsigned i = 0; i < nr_choices(f); i++) {
            if (strlen(f->choices[i]) != len || memcmp(f->choices[i], text, len) != 0)
                continue;
            if (member)
                memcpy(member, &i, f->size);
            return 0;
        }
        return -EPROTO;
    }
    return -EPROTO;
}

static int check_sum(const char *text, size_t len, size_t *ret_body, char *ret_why)
{
    size_t body = len > CHECKSUM_LINE_BYTES ? len - CHECKSUM_LINE_BYTES : 0;
    const char *line = text + body;
    char want[17];

    if (!body || text[body - 1] != '\n' || text[len - 1] != '\n' ||
        memcmp(line, CHECKSUM_KEY, sizeof(CHECKSUM_KEY) - 1) != 0) {
        snprintf(ret_why, KEYFILE_WHY_BYTES, "it is cut off: it does not end with a checksum line");
        return -EPROTO;
    }
    snprintf(want, sizeof(want), "%016" PRIx64, XXH64(text, body, 0));
    if (memcmp(line + sizeof(CHECKSUM_KEY) - 1, want, 16) != 0) {
        snprintf(ret_why, KEYFILE_WHY_BYTES, "its checksum is wrong: it was damaged or edited");
        return -EPROTO;
    }
    *ret_body = body;
    return 0;
}

/* One pass over the lines; object NULL to check without writing. */
static int parse_lines(const struct keyfile_schema *schema, const char *text, size_t len,
                       uint8_t *object, char *ret_why)
{
    size_t title_len = strlen(schema->title), at = title_len + 1;

    if (len < at || memcmp(text, schema->title, title_len) != 0 || text[title_len] != '\n') {
        snprintf(ret_why, KEYFILE_WHY_BYTES,
                 "its first line is not \"%s\": it is another kind of file or of another version",
                 schema->title);
        return -EPROTO;
    }
    for (size_t i = 0; i < schema->nr_fields; i++) {
        const struct keyfile_field *f = &schema->fields[i];
        const char *line = text + at;
        const char *end = memchr(line, '\n', len - at);
        size_t key_len = strlen(f->key);
        size_t line_len = end ? (size_t)(end - line) : 0;

        if (line_len <= key_len || memcmp(line, f->key, key_len) != 0 || line[key_len] != '=') {
            snprintf(ret_why, KEYFILE_WHY_BYTES, "line %zu is not \"%s=\", or its key is unknown",
                     i + 2, f->key);
            return -EPROTO;
        }
        if (parse_value(f, line + key_len + 1, line_len - key_len - 1, object)) {
            snprintf(ret_why, KEYFILE_WHY_BYTES, "the value of \"%s\" is not legal", f->key);
            return -EPROTO;
        }
        at += line_len + 1;
    }
    if (at != len) {
        snprintf(ret_why, KEYFILE_WHY_BYTES, "line %zu has an unknown key", schema->nr_fields + 2);
        return -EPROTO;
    }
    return 0;
}

int keyfile_parse(const struct keyfile_schema *schema, const char *text, size_t len,
                  void *ret_object, char ret_why[KEYFILE_WHY_BYTES])
{
    size_t body;
    int ret;

    if (!len) {
        snprintf(ret_why, KEYFILE_WHY_BYTES, "it is empty");
        return -EPROTO;
    }
    ret = check_sum(text, len, &body, ret_why);
    if (!ret)
        ret = parse_lines(schema, text, body, NULL, ret_why);
    if (!ret)
        ret = parse_lines(schema, text, body, ret_object, ret_why);
    return ret;
}

/* ---- files ---- */

ssize_t keyfile_read(int dirfd, const char *name, char *ret_buf)
{
    size_t len = 0;
    struct stat st;
    ssize_t ret;
    int fd;

    /* O_NONBLOCK: a FIFO that somebody put there must not hang us */
    fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return errno == ELOOP ? -EINVAL : -errno;
    if (fstat(fd, &st)) {
        ret = -errno;
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        ret = -EINVAL;
        goto out;
    }
    ret = -EFBIG;
    if (st.st_size > KEYFILE_MAX_BYTES)
        goto out;
    do {
        ret = read(fd, ret_buf + len, KEYFILE_MAX_BYTES - len);
        if (ret > 0)
            len += (size_t)ret;
    } while ((ret > 0 && len < KEYFILE_MAX_BYTES) || (ret < 0 && errno == EINTR));
    ret = ret < 0 ? -errno : (ssize_t)len;
out:
    close(fd);
    return ret;
}

static int write_all(int fd, const char *text, size_t len)
{
    while (len) {
        ssize_t n = write(fd, text, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        text += n;
        len -= (size_t)n;
    }
    return 0;
}

int keyfile_write(int dirfd, const char *name, const char *text, size_t len, bool *ret_unsure)
{
    char temp[NAME_MAX_BYTES + 8];
    int fd, ret;

    *ret_unsure = false;
    if (!len || len > KEYFILE_MAX_BYTES || strlen(name) > NAME_MAX_BYTES)
        return -EINVAL;
    snprintf(temp, sizeof(temp), ".%s.new", name);
    if (unlinkat(dirfd, temp, 0) && errno != ENOENT) /* left over by a crash */
        return -errno;
    fd = openat(dirfd, temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    ret = write_all(fd, text, len);
    if (!ret && fsync(fd))
        ret = -errno;
    if (close(fd) && !ret)
        ret = -errno;
    if (!ret && renameat(dirfd, temp, dirfd, name))
        ret = -errno;
    if (ret) {
        unlinkat(dirfd, temp, 0);
        return ret;
    }
    if (fsync(dirfd)) {
        *ret_unsure = true;
        return -errno;
    }
    return 0;
}
