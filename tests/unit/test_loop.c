/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_loop.c - the loop's slots: a completion is handed to the connection that began it, or to nobody
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "replicator/loop.h"

#define SECOND INT64_C(1000000000)

static int setup(void **state)
{
    static struct loop loop;

    if (loop_init(&loop) < 0)
        return -1;
    *state = &loop;
    return 0;
}

static int teardown(void **state)
{
    loop_fini(*state);
    return 0;
}

/* A recv and a send of one connection complete; both events are collected before either is handled. */
static void both_ended(struct loop *loop, struct loop_event ret[LOOP_EVENTS_MAX])
{
    static char buf[8];
    int pair[2], nr = 0;

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(loop_open(loop, 0, pair[0]), 0);
    assert_int_equal(write(pair[1], "x", 1), 1);
    loop_recv(loop, 0, buf, sizeof(buf));
    loop_send(loop, 0, "y", 1);
    assert_int_equal(loop_wait(loop, 0, ret), 2); /* both are done when they are submitted */
    for (int i = 0; i < 2; i++)
        nr += loop_event_current(loop, &ret[i]);
    assert_int_equal(nr, 2);
    close(pair[1]);
}

static void event_of_a_closed_connection_is_stale(void **state)
{
    struct loop_event ev[LOOP_EVENTS_MAX];

    both_ended(*state, ev);
    loop_close(*state, 0);
    assert_true(loop_slot_free(*state, 0));
    assert_false(loop_event_current(*state, &ev[1]));
}

/* polluxd hung up on a witness that had closed, connected again, and took the old send for one of the new connection. */
static void event_of_the_connection_before_is_stale(void **state)
{
    struct loop_event ev[LOOP_EVENTS_MAX];
    int pair[2];

    both_ended(*state, ev);
    loop_close(*state, 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(loop_open(*state, 0, pair[0]), 0);
    assert_false(loop_event_current(*state, &ev[1]));
    close(pair[1]);
}

static void slot_drains_before_it_is_free(void **state)
{
    struct loop_event ev[LOOP_EVENTS_MAX];
    struct loop *loop = *state;
    static char buf[8];
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(loop_open(loop, 0, pair[0]), 0);
    loop_recv(loop, 0, buf, sizeof(buf));
    assert_int_equal(loop_wait(loop, 0, ev), 0);
    loop_close(loop, 0);
    assert_false(loop_slot_free(loop, 0));
    for (int i = 0; i < 100 && !loop_slot_free(loop, 0); i++)
        assert_int_equal(loop_wait(loop, SECOND / 10, ev), 0);
    assert_true(loop_slot_free(loop, 0));
    close(pair[1]);
}

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * SECOND + ts.tv_nsec;
}

/* A listening socket in slot 0, and somebody who has called. @return the caller's socket */
static int listen_and_call(struct loop *loop)
{
    struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof(sa);
    int door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), caller = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(door, (struct sockaddr *)&sa, sizeof(sa)), 0);
    assert_int_equal(listen(door, 4), 0);
    assert_int_equal(getsockname(door, (struct sockaddr *)&sa, &len), 0);
    assert_int_equal(connect(caller, (struct sockaddr *)&sa, sizeof(sa)), 0);
    assert_int_equal(loop_open(loop, 0, door), 0);
    return caller;
}

/* As the loop's callers do: whatever came, accept again. @return failures until the first success, or until end_ns */
static unsigned failures_until(struct loop *loop, int64_t end_ns, int *ret_fd)
{
    struct loop_event ev[LOOP_EVENTS_MAX];
    unsigned failures = 0;

    for (int64_t left; *ret_fd < 0 && (left = end_ns - now_ns()) > 0;) {
        int nr = loop_wait(loop, left, ev);
        for (int i = 0; i < nr; i++) {
            assert_int_equal(ev[i].op, LOOP_ACCEPT);
            assert_true(ev[i].res >= 0 || ev[i].res == -EMFILE);
            assert_int_equal(loop->conn[0].naps, ev[i].res < 0);
            failures += ev[i].res < 0;
            *ret_fd = ev[i].res;
            loop_accept(loop, 0);
        }
    }
    return failures;
}

/* polluxd took the whole of a processor for as long as its table of descriptors was full. */
static void accept_without_descriptors_is_tried_again_after_a_nap(void **state)
{
    struct loop *loop = *state;
    struct rlimit before, none;
    int caller = listen_and_call(loop), fd = -1;
    unsigned failures;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = (struct rlimit){ .rlim_cur = 3, .rlim_max = before.rlim_max };
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    loop_accept(loop, 0);
    failures = failures_until(loop, now_ns() + 3 * LOOP_NAP_NS, &fd);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_true(fd < 0);
    assert_in_range(failures, 1, 4); /* one at once, one after each nap */
    failures_until(loop, now_ns() + 20 * SECOND, &fd);
    assert_true(fd >= 0);
    close(fd);
    close(caller);
}

static void slot_that_naps_drains(void **state)
{
    struct loop_event ev[LOOP_EVENTS_MAX];
    struct loop *loop = *state;
    int caller = listen_and_call(loop);
    int64_t end_ns = now_ns() + 20 * SECOND;

    loop->conn[0].naps = true;
    loop_accept(loop, 0);
    assert_int_equal(loop_wait(loop, 0, ev), 0);
    loop_close(loop, 0);
    while (!loop_slot_free(loop, 0) && now_ns() < end_ns)
        assert_int_equal(loop_wait(loop, SECOND / 10, ev), 0);
    assert_true(loop_slot_free(loop, 0));
    close(caller);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(event_of_a_closed_connection_is_stale, setup, teardown),
        cmocka_unit_test_setup_teardown(event_of_the_connection_before_is_stale, setup, teardown),
        cmocka_unit_test_setup_teardown(slot_drains_before_it_is_free, setup, teardown),
        cmocka_unit_test_setup_teardown(accept_without_descriptors_is_tried_again_after_a_nap, setup, teardown),
        cmocka_unit_test_setup_teardown(slot_that_naps_drains, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
