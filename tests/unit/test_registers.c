/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_registers.c - the witness's registers when the disk fails, and at their limits
 *
 * What a client sees is in test_witness.py; here is what needs faults inside of the process.
 */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../witness/registers.h"
#include "fault_disk.h"

static char base[] = "/tmp/test-registers-XXXXXX";
static struct registers r;

static void reopen(void)
{
    char why[REGISTERS_WHY_BYTES];

    registers_close(&r);
    if (registers_open(&r, base, why))
        fail_msg("%s", why);
}

static int begin(void **state)
{
    (void)state;
    disk_begin(NULL, 0);
    strcpy(base + sizeof(base) - 7, "XXXXXX");
    r.dirfd = -1;
    r.list = NULL;
    if (!mkdtemp(base))
        return -1;
    reopen();
    return 0;
}

static int end(void **state)
{
    char path[600];
    struct dirent *entry;
    DIR *stream = opendir(base);

    (void)state;
    registers_close(&r);
    while ((entry = readdir(stream))) {
        snprintf(path, sizeof(path), "%s/%s", base, entry->d_name);
        if (entry->d_name[0] != '.')
            unlink(path);
    }
    closedir(stream);
    return rmdir(base); /* a temporary file left behind is found */
}

static struct wire_arb_ask ask_for(const char *vm, uint64_t expect, uint8_t nonce)
{
    struct wire_arb_ask ask = {.op = WIRE_ARB_CAS, .expect = expect, .next = expect + 1};

    memcpy(ask.vm, vm, strlen(vm));
    memset(ask.holder, 'H', 16);
    memset(ask.nonce, nonce, 16);
    return ask;
}

static int cas(const char *vm, uint64_t expect, uint8_t nonce, int *ret_error)
{
    struct wire_arb_ask ask = ask_for(vm, expect, nonce);

    return registers_cas(&r, &ask, ret_error);
}

static uint64_t generation(const char *vm)
{
    struct wire_arb_ask ask = ask_for(vm, 0, 0);
    const struct arb_register *reg = registers_find(&r, ask.vm);

    return reg ? reg->generation : 0;
}

static void grant_is_on_disk_before_it_is_said(void **state)
{
    int error;

    (void)state;
    disk_begin(NULL, 0);
    assert_int_equal(cas("db", 0, 1, &error), WIRE_ARB_GRANTED);
    assert_int_equal(strncmp(disk_order, "create write ", 13), 0);
    assert_non_null(strstr(disk_order, "write fsync rename fsync-dir "));
    disk_begin(NULL, 0);
    assert_int_equal(cas("db", 0, 1, &error), WIRE_ARB_GRANTED); /* repeated: nothing to write */
    assert_int_equal(cas("db", 0, 2, &error), WIRE_ARB_REFUSED);
    assert_string_equal(disk_order, "");
    assert_int_equal(cas("db", 1, 2, &error), WIRE_ARB_GRANTED);
    assert_string_equal(disk_order, "pwrite fdatasync "); /* in place: one flush */
    reopen();
    assert_int_equal(generation("db"), 2);
}

static void disk_is_synced_before_the_first_answer(void **state)
{
    char why[REGISTERS_WHY_BYTES];

    (void)state;
    registers_close(&r);
    disk_begin("syncfs", EIO);
    assert_int_equal(registers_open(&r, base, why), -EIO);
    assert_null(disk_fails);
    assert_non_null(strstr(why, "cannot sync the file system"));
    disk_begin(NULL, 0);
    reopen();
    assert_string_equal(disk_order, "syncfs ");
}

static void each_failed_write_changes_nothing(void **state)
{
    static const struct {
        const char *call;
        int error;
    } cases[] = {
        {"create", ENOSPC}, {"write", ENOSPC}, {"write", EIO}, {"fsync", EIO}, {"rename", EIO}};
    int error;

    (void)state;
    assert_int_equal(cas("db", 0, 1, &error), WIRE_ARB_GRANTED);
    disk_begin("pwrite", ENOSPC);
    assert_int_equal(cas("db", 1, 2, &error), WIRE_ARB_ERROR);
    assert_int_equal(error, -ENOSPC);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        disk_begin(cases[i].call, cases[i].error);
        assert_int_equal(cas("new", 0, 2, &error), WIRE_ARB_ERROR);
        assert_null(disk_fails);
        disk_begin(NULL, 0);
        assert_int_equal(generation("db"), 1);
        assert_int_equal(generation("new"), 0);
        reopen();
        assert_int_equal(generation("db"), 1);
        assert_int_equal(generation("new"), 0);
    }
    assert_int_equal(cas("db", 1, 2, &error), WIRE_ARB_GRANTED);
}

static void unknown_state_of_the_disk_ends_all_answers(void **state)
{
    int error;

    (void)state;
    disk_begin("fsync-dir", EIO);
    assert_int_equal(cas("db", 0, 1, &error), -EIO);
    assert_int_equal(error, -EIO);
    reopen();
    assert_int_equal(generation("db"), 1);
    disk_begin("fdatasync", EIO);
    assert_int_equal(cas("db", 1, 2, &error), -EIO);
    assert_int_equal(generation("db"), 1); /* memory says nothing that may not be on disk */
}

static void half_a_write_is_refused_at_the_next_start(void **state)
{
    char why[REGISTERS_WHY_BYTES];
    int error, fd;

    (void)state;
    assert_int_equal(cas("db", 0, 1, &error), WIRE_ARB_GRANTED);
    disk_begin("half a pwrite", 0);
    assert_int_equal(cas("db", 1, 2, &error), -EIO);
    fd = openat(r.dirfd, "db.register", O_WRONLY);
    assert_int_equal(__real_pwrite(fd, "torn", 4, 60),
                     4); /* as a disk without whole sectors might */
    close(fd);
    registers_close(&r);
    assert_true(registers_open(&r, base, why) < 0);
    assert_non_null(strstr(why, "checksum is wrong"));
    disk_begin(NULL, 0);
}

static void name_that_was_removed_is_an_error(void **state)
{
    int error;

    (void)state;
    assert_int_equal(cas("db", 0, 1, &error), WIRE_ARB_GRANTED);
    assert_int_equal(unlinkat(r.dirfd, "db.register", 0), 0);
    assert_int_equal(cas("db", 1, 2, &error), WIRE_ARB_ERROR);
    assert_int_equal(error, -ENOENT);
}

static void one_more_than_the_most_is_refused(void **state)
{
    unsigned nr;
    int error;

    (void)state;
    assert_int_equal(cas("db", 0, 1, &error), WIRE_ARB_GRANTED);
    nr = r.nr;
    r.nr = REGISTERS_MAX; /* as if the rest were there: zeroed ones match no name */
    disk_begin(NULL, 0);
    assert_int_equal(cas("late", 0, 1, &error), WIRE_ARB_ERROR);
    assert_int_equal(error, -ENOSPC);
    assert_string_equal(disk_order, "");
    assert_int_equal(cas("db", 1, 2, &error), WIRE_ARB_GRANTED); /* who is there goes on */
    r.nr = nr;
}

/* Every cut and every changed byte of a register's file is refused at the start. */
static void damage_of_any_byte_is_refused(void **state)
{
    char path[600], text[1000], why[REGISTERS_WHY_BYTES];
    ssize_t len;
    int error, fd;

    (void)state;
    assert_int_equal(cas("db", 0, 1, &error), WIRE_ARB_GRANTED);
    registers_close(&r);
    snprintf(path, sizeof(path), "%s/db.register", base);
    fd = open(path, O_RDWR);
    len = read(fd, text, sizeof(text));
    assert_in_range(len, 100, sizeof(text) - 1);
    for (ssize_t i = 0; i < len; i++) {
        char bad = (char)(text[i] ^ 1);

        assert_int_equal(__real_pwrite(fd, &bad, 1, i), 1);
        assert_true(registers_open(&r, base, why) < 0);
        assert_non_null(strstr(why, path));
        assert_int_equal(__real_pwrite(fd, &text[i], 1, i), 1);
    }
    reopen(); /* control: the same file, whole again */
    assert_int_equal(generation("db"), 1);
    registers_close(&r);
    for (ssize_t cut = len - 1; cut >= 0; cut--) {
        assert_int_equal(ftruncate(fd, cut), 0);
        assert_true(registers_open(&r, base, why) < 0);
    }
    close(fd);
}

int main(void)
{
#define TEST(fact) cmocka_unit_test_setup_teardown(fact, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(grant_is_on_disk_before_it_is_said),
        TEST(disk_is_synced_before_the_first_answer),
        TEST(each_failed_write_changes_nothing),
        TEST(unknown_state_of_the_disk_ends_all_answers),
        TEST(half_a_write_is_refused_at_the_next_start),
        TEST(name_that_was_removed_is_an_error),
        TEST(one_more_than_the_most_is_refused),
        TEST(damage_of_any_byte_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
