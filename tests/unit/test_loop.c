/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_loop.c - the loop's slots: a completion is handed to the connection that began it, or to nobody
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(event_of_a_closed_connection_is_stale, setup, teardown),
        cmocka_unit_test_setup_teardown(event_of_the_connection_before_is_stale, setup, teardown),
        cmocka_unit_test_setup_teardown(slot_drains_before_it_is_free, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
