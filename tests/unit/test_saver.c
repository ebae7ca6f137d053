/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_saver.c - the state file's own thread: answers in order, and a disk that hangs does not keep polluxd from ending
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "replicator/saver.h"

#define MS INT64_C(1000000)
#define DEADLINE_MS 20000

int __real_fsync(int fd);
int __wrap_fsync(int fd);

static pthread_mutex_t disk = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool hangs, hanging; /* under disk */

int __wrap_fsync(int fd)
{
    pthread_mutex_lock(&disk);
    while (hangs) {
        hanging = true;
        pthread_cond_broadcast(&changed);
        pthread_cond_wait(&changed, &disk);
    }
    pthread_mutex_unlock(&disk);
    return __real_fsync(fd);
}

static void set_hangs(bool now)
{
    pthread_mutex_lock(&disk);
    hangs = now;
    hanging = false;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&disk);
}

static void wait_until_it_hangs(void)
{
    pthread_mutex_lock(&disk);
    while (!hanging)
        pthread_cond_wait(&changed, &disk);
    pthread_mutex_unlock(&disk);
}

struct bed {
    char dir[64];
    int wake_fd;
    struct saver saver;
};

static int setup(void **state)
{
    static struct bed bed;
    struct statefile file;
    char why[STATEFILE_WHY_BYTES];

    memset(&bed, 0, sizeof(bed));
    snprintf(bed.dir, sizeof(bed.dir), "/tmp/pollux-saver-XXXXXX");
    if (!mkdtemp(bed.dir) || statefile_open(bed.dir, &file, why) < 0)
        return -1;
    bed.wake_fd = eventfd(0, EFD_CLOEXEC);
    *state = &bed;
    return saver_init(&bed.saver, &file, bed.wake_fd);
}

static int teardown(void **state)
{
    struct bed *bed = *state;
    char path[80];

    set_hangs(false);
    saver_fini(&bed->saver, DEADLINE_MS * MS);
    close(bed->wake_fd);
    snprintf(path, sizeof(path), "%s/state", bed->dir);
    unlink(path);
    return rmdir(bed->dir);
}

static struct saver_record record_of(uint64_t serial)
{
    struct saver_record r = { .serial = serial };

    memset(r.contents.instance, 7, sizeof(r.contents.instance));
    r.contents.persist.generation = serial;
    return r;
}

static uint64_t saved_generation(const struct bed *bed)
{
    struct statefile file;
    struct statefile_contents contents;
    char why[STATEFILE_WHY_BYTES];

    assert_int_equal(statefile_open(bed->dir, &file, why), 0); /* the lock of before is free */
    assert_int_equal(statefile_load(&file, &contents, why), 0);
    statefile_close(&file);
    return contents.persist.generation;
}

static void records_are_answered_in_order(void **state)
{
    struct bed *bed = *state;
    uint64_t serial, next = 1;
    char why[STATEFILE_WHY_BYTES];
    int error;

    for (uint64_t i = 1; i <= 3; i++) {
        struct saver_record r = record_of(i);
        assert_int_equal(saver_put(&bed->saver, &r), 0);
    }
    while (next <= 3) {
        struct pollfd p = { .fd = bed->wake_fd, .events = POLLIN };
        uint64_t count;
        assert_int_equal(poll(&p, 1, DEADLINE_MS), 1);
        assert_int_equal(read(bed->wake_fd, &count, sizeof(count)), sizeof(count));
        for (; saver_take(&bed->saver, &serial, &error, why); next++) {
            assert_int_equal(serial, next);
            assert_int_equal(error, 0);
        }
    }
}

static void what_is_queued_is_written_before_the_end(void **state)
{
    struct bed *bed = *state;

    set_hangs(true);
    for (uint64_t i = 1; i <= 3; i++) {
        struct saver_record r = record_of(i);
        assert_int_equal(saver_put(&bed->saver, &r), 0);
    }
    wait_until_it_hangs();
    set_hangs(false);
    assert_int_equal(saver_fini(&bed->saver, DEADLINE_MS * MS), 0);
    assert_false(bed->saver.left);
    assert_int_equal(saved_generation(bed), 3);
}

/* polluxd waited for its disk for ever, and could only be killed. */
static void a_disk_that_hangs_is_left(void **state)
{
    struct bed *bed = *state;
    struct saver_record r = record_of(9);
    uint64_t count;

    set_hangs(true);
    assert_int_equal(saver_put(&bed->saver, &r), 0);
    wait_until_it_hangs();
    assert_int_equal(saver_fini(&bed->saver, 20 * MS), -ETIMEDOUT);
    assert_true(bed->saver.left);
    assert_int_equal(saver_fini(&bed->saver, 20 * MS), 0); /* again: harmless */
    set_hangs(false);
    /* The thread ends by itself, and does not write where the eventfd was. */
    assert_int_equal(pthread_join(bed->saver.thread, NULL), 0);
    statefile_close(&bed->saver.file);
    assert_int_equal(fcntl(bed->wake_fd, F_SETFL, O_NONBLOCK), 0);
    assert_int_equal(read(bed->wake_fd, &count, sizeof(count)), -1);
    assert_int_equal(saved_generation(bed), 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(records_are_answered_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_queued_is_written_before_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(a_disk_that_hangs_is_left, setup, teardown),
    };

    alarm(DEADLINE_MS / 1000); /* what waits for ever fails */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
