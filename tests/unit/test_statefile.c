/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_statefile.c - polluxd's state survives, is locked, and each way it can be bad has its own words
 */
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "../../replicator/keyfile.h"
#include "../../replicator/statefile.h"
#include "fault_disk.h"

static char base[] = "/tmp/test-statefile-XXXXXX";
static char dir[64], path[80];

static const struct statefile_contents sample = {
    .vm = "db",
    .persist = {.generation = 7, .role = ROLE_ACTIVE_PROTECTING, .nonce = "a nonce of 16 b"},
    .instance = "an instance of.",
    .peer = "[fd00::2]:7460",
    .paired = true,
};

static int begin(void **state)
{
    (void)state;
    disk_begin(NULL, 0);
    strcpy(base + sizeof(base) - 7, "XXXXXX");
    if (!mkdtemp(base))
        return -1;
    snprintf(dir, sizeof(dir), "%s/db", base);
    snprintf(path, sizeof(path), "%s/state", dir);
    return 0;
}

static int end(void **state)
{
    (void)state;
    unlink(path);
    rmdir(path);
    chmod(dir, 0700);
    return rmdir(dir) | rmdir(base); /* nothing else was left behind */
}

static struct statefile open_good(void)
{
    struct statefile file;
    char why[STATEFILE_WHY_BYTES];

    if (statefile_open(dir, &file, why))
        fail_msg("%s", why);
    return file;
}

static void put(const char *text, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(__real_write(fd, text, len), len);
    close(fd);
}

static size_t get(char buf[KEYFILE_MAX_BYTES])
{
    int fd = open(path, O_RDONLY);
    ssize_t len = read(fd, buf, KEYFILE_MAX_BYTES);

    assert_true(len > 0);
    close(fd);
    return (size_t)len;
}

static void first_start_finds_none(void **state)
{
    struct statefile file = open_good();
    struct statefile_contents contents;
    char why[STATEFILE_WHY_BYTES];
    struct stat st;

    (void)state;
    assert_int_equal(statefile_load(&file, &contents, why), -ENOENT);
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    statefile_close(&file);
    statefile_close(&file);
}

static void what_is_saved_is_loaded_by_the_next(void **state)
{
    struct statefile file = open_good();
    struct statefile_contents contents;
    char why[STATEFILE_WHY_BYTES];

    (void)state;
    for (int role = 0; role < ROLE_NUM; role++) {
        struct statefile_contents wanted = sample;

        wanted.persist.role = (enum session_role)role;
        wanted.paired = role & 1;
        if (role == ROLE_NONE)
            memset(wanted.peer, 0, sizeof(wanted.peer));
        else
            memset(wanted.peer, 'p', sizeof(wanted.peer) - (size_t)role);
        assert_int_equal(statefile_save(&file, &wanted, why), 0);
        statefile_close(&file);
        file = open_good();
        assert_int_equal(statefile_load(&file, &contents, why), 0);
        assert_int_equal(contents.persist.generation, 7);
        assert_int_equal(contents.persist.role, role);
        assert_memory_equal(contents.persist.nonce, wanted.persist.nonce, 16);
        assert_memory_equal(contents.instance, wanted.instance, 16);
        assert_string_equal(contents.peer, wanted.peer);
        assert_int_equal(contents.paired, wanted.paired);
    }
    statefile_close(&file);
}

static void second_daemon_is_told(void **state)
{
    struct statefile file = open_good(), second;
    char why[STATEFILE_WHY_BYTES];

    (void)state;
    assert_int_equal(statefile_open(dir, &second, why), -EBUSY);
    assert_non_null(strstr(why, "another polluxd uses the state directory"));
    assert_non_null(strstr(why, dir));
    statefile_close(&file);
    assert_int_equal(statefile_open(dir, &second, why), 0); /* free again */
    statefile_close(&second);
}

static void refuses(const char *words)
{
    struct statefile file = open_good();
    struct statefile_contents contents, untouched;
    char why[STATEFILE_WHY_BYTES] = "";

    memset(&contents, 0x5a, sizeof(contents));
    untouched = contents;
    assert_int_equal(statefile_load(&file, &contents, why), -EPROTO);
    assert_memory_equal(&contents, &untouched, sizeof(contents));
    if (!strstr(why, words) || !strstr(why, path) || !strstr(why, "Move the file away"))
        fail_msg("\"%s\" does not say \"%s\"", why, words);
    statefile_close(&file);
}

static void each_damage_has_its_words(void **state)
{
    struct statefile file = open_good();
    char why[STATEFILE_WHY_BYTES], good[KEYFILE_MAX_BYTES], bad[KEYFILE_MAX_BYTES + 100] = {0};
    struct statefile_contents nobody = sample;
    char *at;
    size_t len;

    (void)state;
    assert_int_equal(statefile_save(&file, &sample, why), 0);
    len = get(good);
    put("", 0);
    statefile_close(&file);
    refuses("it is empty");
    put(good, len - 1);
    refuses("cut off");
    put(good, len / 2);
    refuses("cut off");
    memcpy(bad, good, len);
    at = strstr(bad, "generation=7");
    assert_non_null(at);
    at[11] = '8';
    put(bad, len);
    refuses("checksum is wrong");
    memset(bad, 'x', sizeof(bad));
    put(bad, sizeof(bad));
    refuses("longer than any state file");
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    refuses("not a plain file");
    rmdir(path);
    file = open_good();
    memset(nobody.instance, 0, 16);
    assert_int_equal(statefile_save(&file, &nobody, why), 0);
    statefile_close(&file);
    refuses("instance is all zero");
}

static void unknown_key_is_refused(void **state)
{
    static const struct keyfile_field field[] = {{"colour", KEYFILE_TEXT, 0, 16, NULL}};
    static const struct keyfile_schema other = {"pollux-state 1", field, 1},
                                       future = {"pollux-state 2", field, 1};
    struct statefile file = open_good();
    char text[KEYFILE_MAX_BYTES];
    ssize_t len = keyfile_format(&other, "blue", text, sizeof(text));

    (void)state;
    statefile_close(&file);
    put(text, (size_t)len);
    refuses("its key is unknown");
    len = keyfile_format(&future, "blue", text, sizeof(text));
    put(text, (size_t)len);
    refuses("of another version");
}

static void failed_save_keeps_the_old_and_says_why(void **state)
{
    static const struct {
        const char *call;
        int error, want;
        const char *words;
    } cases[] = {
        {"write", ENOSPC, -ENOSPC,
         "make room on that file system; the file of before is untouched"},
        {"create", EROFS, -EROFS, "that file system is read-only"},
        {"fsync", EIO, -EREMOTEIO,
         "Input/output error: see to that directory; the file of before is untouched"},
        {"rename", EACCES, -EACCES, "Permission denied"},
        {"fsync-dir", EIO, -EIO, "may be the old or the new one"},
    };
    struct statefile file = open_good();
    struct statefile_contents next = sample, contents;
    char why[STATEFILE_WHY_BYTES];

    (void)state;
    next.persist.generation = 8;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        disk_begin(NULL, 0);
        assert_int_equal(statefile_save(&file, &sample, why), 0);
        disk_begin(cases[i].call, cases[i].error);
        assert_int_equal(statefile_save(&file, &next, why), cases[i].want);
        if (!strstr(why, cases[i].words) || !strstr(why, path))
            fail_msg("\"%s\" does not say \"%s\"", why, cases[i].words);
        assert_int_equal(statefile_load(&file, &contents, why), 0);
        if (cases[i].want != -EIO)
            assert_int_equal(contents.persist.generation, 7);
    }
    statefile_close(&file);
}

static void contents_that_cannot_be_kept_are_refused(void **state)
{
    struct statefile file = open_good();
    struct statefile_contents contents = sample;
    char why[STATEFILE_WHY_BYTES];

    (void)state;
    memset(contents.peer, 'x', sizeof(contents.peer));
    assert_int_equal(statefile_save(&file, &contents, why), -EINVAL);
    contents = sample;
    contents.persist.role = ROLE_NUM;
    assert_int_equal(statefile_save(&file, &contents, why), -EINVAL);
    contents = sample;
    contents.peer[2] = '\n';
    assert_int_equal(statefile_save(&file, &contents, why), -EINVAL);
    assert_int_equal(access(path, F_OK), -1);
    statefile_close(&file);
}

static void unusable_directories_are_refused_at_the_start(void **state)
{
    struct statefile file = open_good();
    char why[STATEFILE_WHY_BYTES], long_dir[STATEFILE_DIR_BYTES + 1], deep[100];

    (void)state;
    statefile_close(&file);
    snprintf(deep, sizeof(deep), "%s/a/b", base);
    assert_int_equal(statefile_open(deep, &file, why), -ENOENT);
    assert_non_null(strstr(why, "make the directory above it first"));
    put("x", 1);
    assert_int_equal(statefile_open(path, &file, why), -ENOTDIR);
    assert_non_null(strstr(why, "cannot open the state directory"));
    memset(long_dir, 'd', STATEFILE_DIR_BYTES);
    long_dir[STATEFILE_DIR_BYTES] = 0;
    assert_int_equal(statefile_open(long_dir, &file, why), -EINVAL);
    assert_int_equal(statefile_open("", &file, why), -EINVAL);
    disk_begin("fsync-dir", EIO);
    assert_int_equal(statefile_open(dir, &file, why), -EIO);
    assert_null(disk_fails); /* the directory is fsynced before anything is read */
}

/* In a child with its own mounts: 0 good, 1 bad, 77 not possible here. */
static int on_own_tmpfs(const char *options, int (*check)(void))
{
    int status = 0;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (!pid) {
        if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
            mount("tmpfs", dir, "tmpfs", 0, options))
            _exit(77);
        _exit(check());
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

#define CHECK(holds)                                            \
    do {                                                        \
        if (!(holds)) {                                         \
            fprintf(stderr, "line %d: %s\n", __LINE__, #holds); \
            return 1;                                           \
        }                                                       \
    } while (0)

static int check_full_disk(void)
{
    struct statefile_contents next = sample, contents;
    char why[STATEFILE_WHY_BYTES], block[4096] = {0}, filler[80];
    struct statefile file;
    int fd;

    CHECK(!statefile_open(dir, &file, why));
    CHECK(!statefile_save(&file, &sample, why));
    snprintf(filler, sizeof(filler), "%s/filler", dir);
    fd = open(filler, O_WRONLY | O_CREAT, 0600);
    while (__real_write(fd, block, sizeof(block)) > 0)
        ;
    close(fd);
    next.persist.generation = 8;
    CHECK(statefile_save(&file, &next, why) == -ENOSPC);
    CHECK(strstr(why, "No space left on device: make room"));
    CHECK(!statefile_load(&file, &contents, why) && contents.persist.generation == 7);
    unlink(filler);
    CHECK(!statefile_save(&file, &next, why));
    CHECK(!statefile_load(&file, &contents, why) && contents.persist.generation == 8);
    return 0;
}

static int check_read_only(void)
{
    char why[STATEFILE_WHY_BYTES];
    struct statefile file;

    CHECK(!statefile_open(dir, &file, why));
    CHECK(!statefile_save(&file, &sample, why));
    CHECK(!mount(NULL, dir, NULL, MS_REMOUNT | MS_RDONLY, NULL));
    CHECK(statefile_save(&file, &sample, why) == -EROFS);
    CHECK(strstr(why, "read-only"));
    statefile_close(&file);
    CHECK(statefile_open(dir, &file, why) == -EROFS);
    CHECK(strstr(why, "cannot write to the state directory"));
    return 0;
}

static void full_disk_keeps_the_old(void **state)
{
    struct statefile file = open_good();
    int ret;

    (void)state;
    statefile_close(&file);
    ret = on_own_tmpfs("size=16k", check_full_disk);
    if (ret == 77)
        skip();
    assert_int_equal(ret, 0);
}

static void read_only_disk_is_said(void **state)
{
    struct statefile file = open_good();
    int ret;

    (void)state;
    statefile_close(&file);
    ret = on_own_tmpfs("size=64k", check_read_only);
    if (ret == 77)
        skip();
    assert_int_equal(ret, 0);
}

int main(void)
{
#define TEST(fact) cmocka_unit_test_setup_teardown(fact, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(first_start_finds_none),
        TEST(what_is_saved_is_loaded_by_the_next),
        TEST(second_daemon_is_told),
        TEST(each_damage_has_its_words),
        TEST(unknown_key_is_refused),
        TEST(failed_save_keeps_the_old_and_says_why),
        TEST(contents_that_cannot_be_kept_are_refused),
        TEST(unusable_directories_are_refused_at_the_start),
        TEST(full_disk_keeps_the_old),
        TEST(read_only_disk_is_said),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
