/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_keyfile.c - the text of keyfiles, and what is left of one after each failure of the disk
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../replicator/keyfile.h"
#include "fault_disk.h"

struct thing {
    uint64_t number;
    uint8_t id[16];
    char text[20];
    unsigned choice;
    bool flag;
};

static const char *const colours[] = {"red", "green", "blue", NULL};
static const char *const no_yes[] = {"no", "yes", NULL};

/* clang-format off */
static const struct keyfile_field fields[] = {
    { "number", KEYFILE_U64,     offsetof(struct thing, number), 8,                NULL },
    { "id",     KEYFILE_BYTES16, offsetof(struct thing, id),     16,               NULL },
    { "text",   KEYFILE_TEXT,    offsetof(struct thing, text),   20,               NULL },
    { "choice", KEYFILE_CHOICE,  offsetof(struct thing, choice), sizeof(unsigned), colours },
    { "flag",   KEYFILE_CHOICE,  offsetof(struct thing, flag),   1,                no_yes },
};
/* clang-format on */
static const struct keyfile_schema schema = {"test-thing 1", fields, 5};
static const struct thing sample = {18446744073709551615u, "sixteen bytes..", "a b=c", 2, true};

static ssize_t format(const struct thing *thing, char *buf)
{
    return keyfile_format(&schema, thing, buf, KEYFILE_MAX_BYTES);
}

static int parse(const char *text, size_t len, struct thing *ret, char *why)
{
    return keyfile_parse(&schema, text, len, ret, why);
}

static void text_is_what_the_header_says(void **state)
{
    char buf[KEYFILE_MAX_BYTES];
    ssize_t len = format(&sample, buf);
    static const char want[] =
        "test-thing 1\nnumber=18446744073709551615\nid=7369787465656e2062797465732e2e00\n"
        "text=a b=c\nchoice=blue\nflag=yes\nchecksum=";

    (void)state;
    assert_int_equal(len, sizeof(want) - 1 + 17);
    assert_memory_equal(buf, want, sizeof(want) - 1);
    assert_int_equal(buf[len - 1], '\n');
}

static void what_is_written_is_read_back(void **state)
{
    char buf[KEYFILE_MAX_BYTES], why[KEYFILE_WHY_BYTES];
    struct thing back = {0}, empty = {0};
    ssize_t len = format(&sample, buf);

    (void)state;
    assert_int_equal(parse(buf, (size_t)len, &back, why), 0);
    assert_memory_equal(&back, &sample, sizeof(back));
    len = format(&empty, buf);
    assert_int_equal(parse(buf, (size_t)len, &back, why), 0);
    assert_memory_equal(&back, &empty, sizeof(back));
}

static void every_cut_and_every_flipped_bit_is_found(void **state)
{
    char buf[KEYFILE_MAX_BYTES], why[KEYFILE_WHY_BYTES];
    struct thing back = {.number = 5}, untouched = back;
    ssize_t len = format(&sample, buf);

    (void)state;
    for (size_t cut = 0; cut < (size_t)len; cut++)
        assert_int_equal(parse(buf, cut, &back, why), -EPROTO);
    for (size_t bit = 0; bit < (size_t)len * 8; bit++) {
        buf[bit / 8] = (char)(buf[bit / 8] ^ 1 << bit % 8);
        assert_int_equal(parse(buf, (size_t)len, &back, why), -EPROTO);
        buf[bit / 8] = (char)(buf[bit / 8] ^ 1 << bit % 8);
    }
    assert_int_equal(parse(buf, (size_t)len + 1, &back, why), -EPROTO);
    assert_memory_equal(&back, &untouched, sizeof(back)); /* outputs only on success */
    assert_int_equal(parse(buf, (size_t)len, &back, why), 0);
}

/* A file with a right checksum and wrong lines: made by seal_lines(). */
static size_t seal_lines(const char *lines, char *buf)
{
    static const struct keyfile_schema none = {"x", NULL, 0};
    struct keyfile_schema one = none;
    size_t len = strlen(lines);
    char title[512];
    ssize_t n;

    /* all lines but the checksum as a "title": the formatter adds the checksum */
    assert_true(len && lines[len - 1] == '\n' && len < sizeof(title));
    memcpy(title, lines, len - 1);
    title[len - 1] = 0;
    one.title = title;
    n = keyfile_format(&one, NULL, buf, KEYFILE_MAX_BYTES);
    assert_true(n > 0);
    return (size_t)n;
}

static void wrong_lines_under_a_right_checksum_are_found(void **state)
{
#define ID "id=00000000000000000000000000000000\n"
    static const struct {
        const char *lines, *why;
    } cases[] = {
        {"test-thing 2\nnumber=1\n" ID "text=\nchoice=red\nflag=no\n", "another version"},
        {"other-thing 1\nnumber=1\n" ID "text=\nchoice=red\nflag=no\n", "another kind"},
        {"test-thing 1\n" ID "number=1\ntext=\nchoice=red\nflag=no\n", "\"number=\""},
        {"test-thing 1\nnumber=1\n" ID "text=\nchoice=red\n", "\"flag=\""},
        {"test-thing 1\nnumber=1\n" ID "text=\nchoice=red\nflag=no\nmore=1\n", "unknown key"},
        {"test-thing 1\nnumber=1\nnumber=1\n" ID "text=\nchoice=red\nflag=no\n", "\"id=\""},
        {"test-thing 1\nnumber=\n" ID "text=\nchoice=red\nflag=no\n", "\"number\" is not legal"},
        {"test-thing 1\nnumber=-1\n" ID "text=\nchoice=red\nflag=no\n", "\"number\" is not legal"},
        {"test-thing 1\nnumber=01\n" ID "text=\nchoice=red\nflag=no\n", "\"number\" is not legal"},
        {"test-thing 1\nnumber=18446744073709551616\n" ID "text=\nchoice=red\nflag=no\n",
         "\"number\" is not legal"},
        {"test-thing 1\nnumber=1\nid=0\ntext=\nchoice=red\nflag=no\n", "\"id\" is not legal"},
        {"test-thing "
         "1\nnumber=1\nid=G0000000000000000000000000000000\ntext=\nchoice=red\nflag=no\n",
         "\"id\" is not legal"},
        {"test-thing 1\nnumber=1\n" ID "text=01234567890123456789\nchoice=red\nflag=no\n",
         "\"text\" is not legal"},
        {"test-thing 1\nnumber=1\n" ID "text=a\tb\nchoice=red\nflag=no\n", "\"text\" is not legal"},
        {"test-thing 1\nnumber=1\n" ID "text= a\nchoice=red\nflag=no\n", "\"text\" is not legal"},
        {"test-thing 1\nnumber=1\n" ID "text=\nchoice=re\nflag=no\n", "\"choice\" is not legal"},
        {"test-thing 1\nnumber=1\n" ID "text=\nchoice=red\nflag=yes!\n", "\"flag\" is not legal"},
    };
    char buf[KEYFILE_MAX_BYTES], why[KEYFILE_WHY_BYTES];
    struct thing back;
    size_t len;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        len = seal_lines(cases[i].lines, buf);
        assert_int_equal(parse(buf, len, &back, why), -EPROTO);
        if (!strstr(why, cases[i].why))
            fail_msg("case %zu: \"%s\" does not say \"%s\"", i, why, cases[i].why);
    }
    /* control: the same procedure with right lines */
    len = seal_lines("test-thing 1\nnumber=1\n" ID "text=\nchoice=red\nflag=no\n", buf);
    assert_int_equal(parse(buf, len, &back, why), 0);
}

static void values_the_format_cannot_hold_are_refused(void **state)
{
    char buf[KEYFILE_MAX_BYTES];
    struct thing thing = sample;

    (void)state;
    thing.choice = 3;
    assert_int_equal(format(&thing, buf), -EINVAL);
    thing = sample;
    memset(thing.text, 'x', sizeof(thing.text));
    assert_int_equal(format(&thing, buf), -EINVAL);
    thing = sample;
    thing.text[0] = '\n';
    assert_int_equal(format(&thing, buf), -EINVAL);
    for (size_t cap = 0; cap < 100; cap++)
        assert_int_equal(keyfile_format(&schema, &sample, buf, cap), -ENOSPC);
}

/* ---- the disk ---- */

static char dir[] = "/tmp/test-keyfile-XXXXXX";
static int dirfd_;

static int make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    dirfd_ = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return dirfd_ < 0 ? -1 : 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlinkat(dirfd_, "file", 0);
    close(dirfd_);
    return rmdir(dir); /* fails if anything else was left behind */
}

static void check_content(const char *want)
{
    char buf[KEYFILE_MAX_BYTES];
    ssize_t len = keyfile_read(dirfd_, "file", buf);

    assert_int_equal(len, strlen(want));
    assert_memory_equal(buf, want, strlen(want));
}

static void a_write_is_durable_in_this_order(void **state)
{
    bool unsure;

    (void)state;
    disk_begin(NULL, 0);
    assert_int_equal(keyfile_write(dirfd_, "file", "one", 3, &unsure), 0);
    assert_string_equal(disk_order, "create write write write fsync rename fsync-dir ");
    assert_false(unsure);
    check_content("one");
}

static void each_failure_before_the_rename_leaves_the_old_file(void **state)
{
    static const struct {
        const char *call;
        int error;
    } cases[] = {{"create", ENOSPC}, {"create", EROFS}, {"write", ENOSPC}, {"fsync", EIO},
                 {"fsync", ENOSPC},  {"rename", EIO},   {"rename", ENOSPC}};
    bool unsure;

    (void)state;
    disk_begin(NULL, 0);
    assert_int_equal(keyfile_write(dirfd_, "file", "old", 3, &unsure), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        unsure = true;
        disk_begin(cases[i].call, cases[i].error);
        assert_int_equal(keyfile_write(dirfd_, "file", "newer", 5, &unsure), -cases[i].error);
        assert_null(disk_fails); /* the fault fired */
        assert_false(unsure);
        check_content("old");
        assert_int_equal(faccessat(dirfd_, ".file.new", F_OK, 0), -1); /* nothing left over */
    }
}

static void failure_after_the_rename_is_told_apart(void **state)
{
    bool unsure = false;

    (void)state;
    disk_begin("fsync-dir", EIO);
    assert_int_equal(keyfile_write(dirfd_, "file", "new", 3, &unsure), -EIO);
    assert_null(disk_fails);
    assert_true(unsure);
}

static void left_over_temporary_file_does_not_disturb(void **state)
{
    bool unsure;
    int fd;

    (void)state;
    disk_begin(NULL, 0);
    fd = openat(dirfd_, ".file.new", O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(keyfile_write(dirfd_, "file", "good", 4, &unsure), 0);
    check_content("good");
}

static void only_plain_short_files_are_read(void **state)
{
    char buf[KEYFILE_MAX_BYTES], long_text[KEYFILE_MAX_BYTES + 1] = {0};
    bool unsure;
    int fd;

    (void)state;
    disk_begin(NULL, 0);
    assert_int_equal(keyfile_read(dirfd_, "missing", buf), -ENOENT);
    assert_int_equal(symlinkat("/etc/hostname", dirfd_, "link"), 0);
    assert_int_equal(keyfile_read(dirfd_, "link", buf), -EINVAL);
    assert_int_equal(unlinkat(dirfd_, "link", 0), 0);
    assert_int_equal(mkfifoat(dirfd_, "fifo", 0600), 0);
    assert_int_equal(keyfile_read(dirfd_, "fifo", buf), -EINVAL); /* and does not hang */
    assert_int_equal(unlinkat(dirfd_, "fifo", 0), 0);
    assert_int_equal(keyfile_read(dirfd_, ".", buf), -EINVAL);
    fd = openat(dirfd_, "long", O_WRONLY | O_CREAT, 0600);
    assert_int_equal(__real_write(fd, long_text, sizeof(long_text)), sizeof(long_text));
    close(fd);
    assert_int_equal(keyfile_read(dirfd_, "long", buf), -EFBIG);
    assert_int_equal(unlinkat(dirfd_, "long", 0), 0);
    assert_int_equal(keyfile_write(dirfd_, "file", long_text, sizeof(long_text), &unsure), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_what_the_header_says),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(every_cut_and_every_flipped_bit_is_found),
        cmocka_unit_test(wrong_lines_under_a_right_checksum_are_found),
        cmocka_unit_test(values_the_format_cannot_hold_are_refused),
        cmocka_unit_test(a_write_is_durable_in_this_order),
        cmocka_unit_test(each_failure_before_the_rename_leaves_the_old_file),
        cmocka_unit_test(failure_after_the_rename_is_told_apart),
        cmocka_unit_test(left_over_temporary_file_does_not_disturb),
        cmocka_unit_test(only_plain_short_files_are_read),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
