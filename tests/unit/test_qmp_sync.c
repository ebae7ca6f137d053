/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_qmp_sync.c - the blocking QMP connection against a scripted server in a thread
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "qmp-client/qmp_sync.h"

#define GREETING                                                                                   \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 0, \"minor\": 0, \"major\": 10}}}}\r\n"
#define PATIENCE_MS 10000 /* for what must happen; far longer than it takes */

/* The other end: says `say`, then for each further step waits for a line and says the next. */
struct server {
    int fd, client_fd;
    int got_fd;         /* descriptor that came with a command, or -1 */
    const int *give_fd; /* descriptor to send along with the first text, or NULL */
    bool keep_open;     /* at the end of the script */
    const char *const *script;
    pthread_t thread;
};

static bool server_read_line(struct server *s)
{
    char c = 0;

    while (c != '\n') {
        struct iovec iov = {.iov_base = &c, .iov_len = 1};
        union {
            char bytes[CMSG_SPACE(sizeof(int))];
            struct cmsghdr align;
        } control;
        struct msghdr msg = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
        struct pollfd p = {.fd = s->fd, .events = POLLIN};
        struct cmsghdr *cmsg;

        if (poll(&p, 1, PATIENCE_MS) != 1 || recvmsg(s->fd, &msg, MSG_CMSG_CLOEXEC) != 1)
            return false;
        cmsg = CMSG_FIRSTHDR(&msg);
        if (cmsg)
            memcpy(&s->got_fd, CMSG_DATA(cmsg), sizeof(int));
    }
    return true;
}

static void server_say(struct server *s, const char *text)
{
    size_t len = strlen(text);
    struct iovec iov = {.iov_base = (void *)(uintptr_t)text, .iov_len = len};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (s->give_fd) {
        control.align.cmsg_len = CMSG_LEN(sizeof(int));
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&control.align), s->give_fd, sizeof(int));
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        s->give_fd = NULL;
    }
    while (iov.iov_len) {
        ssize_t n = sendmsg(s->fd, &msg, MSG_NOSIGNAL);

        if (n < 0)
            return;
        iov.iov_base = (char *)iov.iov_base + n;
        iov.iov_len -= (size_t)n;
        msg.msg_controllen = 0;
    }
}

static void *server_main(void *opaque)
{
    struct server *s = opaque;

    for (size_t i = 0; s->script[i]; i++) {
        if (i && !server_read_line(s))
            break;
        server_say(s, s->script[i]);
    }
    if (!s->keep_open)
        shutdown(s->fd, SHUT_RDWR);
    return NULL;
}

static void server_start(struct server *s, const char *const *script)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    s->fd = fds[0];
    s->client_fd = fds[1];
    s->got_fd = -1;
    s->script = script;
    assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
}

static void server_stop(struct server *s)
{
    shutdown(s->fd, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->fd);
    if (s->got_fd >= 0)
        close(s->got_fd);
}

static struct qmp_sync *attach(struct server *s)
{
    struct qmp_sync *q = NULL;

    assert_int_equal(qmp_sync_attach(s->client_fd, PATIENCE_MS, &q), 0);
    return q;
}

static int open_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    int nr = 0;

    assert_non_null(d);
    while (readdir(d))
        nr++;
    closedir(d);
    return nr;
}

static void commands_and_events_come_through(void **state)
{
    static const char *const script[] = {
        GREETING, "{\"return\": {}, \"id\": 1}{\"event\": \"A\"}",
        "{\"event\": \"B\"}{\"return\": {\"x\": 1}, \"id\": 2}{\"event\": \"C\"}",
        "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no such thing\"}, \"id\": 3}",
        NULL};
    struct server s = {.keep_open = true};
    struct json_object *data = NULL;
    struct qmp_message m;
    struct qmp_sync *q;

    (void)state;
    server_start(&s, script);
    q = attach(&s);
    assert_int_equal(qmp_sync_version(q)->major, 10);
    assert_int_equal(qmp_sync_command(q, "x", NULL, -1, PATIENCE_MS, &data), 0);
    assert_string_equal(json_object_to_json_string(data), "{ \"x\": 1 }");
    json_object_put(data);
    assert_int_equal(qmp_sync_command(q, "y", NULL, -1, PATIENCE_MS, &data), -EREMOTEIO);
    assert_string_equal(qmp_sync_error(q), "CommandNotFound: no such thing");
    assert_int_equal(qmp_sync_wait_event(q, "B", PATIENCE_MS, &m), 0);
    qmp_message_fini(&m);
    assert_int_equal(qmp_sync_wait_event(q, NULL, PATIENCE_MS, &m), 0);
    assert_string_equal(m.name, "A");
    qmp_message_fini(&m);
    assert_int_equal(qmp_sync_wait_event(q, "A", 0, &m), -ETIMEDOUT);
    assert_int_equal(qmp_sync_wait_event(q, "C", PATIENCE_MS, &m), 0);
    qmp_message_fini(&m);
    qmp_sync_close(q);
    server_stop(&s);
}

static void a_passed_descriptor_is_the_same_file(void **state)
{
    static const char *const script[] = {GREETING, "{\"return\": {}, \"id\": 1}",
                                         "{\"return\": {}, \"id\": 2}", NULL};
    int fds = open_fds(), mine = eventfd(0, EFD_CLOEXEC);
    struct server s = {.keep_open = true};
    uint64_t n = 42;
    struct qmp_sync *q;

    (void)state;
    server_start(&s, script);
    q = attach(&s);
    assert_int_equal(qmp_sync_command(q, "getfd", NULL, mine, PATIENCE_MS, NULL), 0);
    assert_true(s.got_fd >= 0);
    assert_int_equal(write(s.got_fd, &n, sizeof(n)), sizeof(n));
    n = 0;
    assert_int_equal(read(mine, &n, sizeof(n)), sizeof(n));
    assert_int_equal(n, 42);
    close(mine);
    qmp_sync_close(q);
    server_stop(&s);
    assert_int_equal(open_fds(), fds);
}

static void descriptors_from_the_other_side_are_not_taken(void **state)
{
    static const char *const script[] = {GREETING, "{\"return\": {}, \"id\": 1}", NULL};
    struct server s = {.keep_open = true};
    int ends[2], fds;
    struct pollfd p;
    struct qmp_sync *q;

    (void)state;
    assert_int_equal(pipe(ends), 0);
    s.give_fd = &ends[1];
    server_start(&s, script);
    fds = open_fds();
    q = attach(&s);
    assert_int_equal(open_fds(), fds);
    close(ends[1]);
    p = (struct pollfd){.fd = ends[0], .events = POLLIN};
    assert_int_equal(poll(&p, 1, PATIENCE_MS), 1); /* no writer is left anywhere */
    assert_true(p.revents & POLLHUP);
    close(ends[0]);
    qmp_sync_close(q);
    server_stop(&s);
}

static void a_server_that_dies_in_mid_reply_is_an_error_at_once(void **state)
{
    static const char *const script[] = {GREETING, "{\"return\": {}, \"id\": 1}",
                                         "{\"return\": {\"stat", NULL};
    struct server s = {0};
    struct qmp_message m;
    struct qmp_sync *q;

    (void)state;
    server_start(&s, script);
    q = attach(&s);
    assert_int_equal(qmp_sync_command(q, "x", NULL, -1, PATIENCE_MS, NULL), -EPIPE);
    assert_string_equal(qmp_sync_error(q),
                        "Closed: QEMU closed the connection in the middle of a message");
    assert_int_equal(qmp_sync_command(q, "x", NULL, -1, PATIENCE_MS, NULL), -EPIPE);
    assert_int_equal(qmp_sync_wait_event(q, NULL, PATIENCE_MS, &m), -EPIPE);
    qmp_sync_close(q);
    server_stop(&s);
}

static void what_was_said_before_the_end_is_still_heard(void **state)
{
    static const char *const script[] = {GREETING, "{\"return\": {}, \"id\": 1}", NULL};
    struct server s = {.keep_open = true};
    struct qmp_message m;
    struct qmp_sync *q;

    (void)state;
    server_start(&s, script);
    q = attach(&s);
    pthread_join(s.thread, NULL);
    server_say(&s, "{\"event\": \"SHUTDOWN\"}");
    shutdown(s.fd, SHUT_RDWR); /* gone before we write, and its last words not yet read */
    assert_int_equal(qmp_sync_command(q, "quit", NULL, -1, PATIENCE_MS, NULL), -EPIPE);
    assert_int_equal(qmp_sync_wait_event(q, "SHUTDOWN", PATIENCE_MS, &m), 0);
    qmp_message_fini(&m);
    qmp_sync_close(q);
    close(s.fd);
}

static void a_command_past_its_deadline_leaves_the_connection_usable(void **state)
{
    static const char *const script[] = {GREETING, "{\"return\": {}, \"id\": 1}", "",
                                         "{\"return\": 1, \"id\": 2}{\"return\": 2, \"id\": 3}",
                                         NULL};
    struct server s = {.keep_open = true};
    struct json_object *data = NULL;
    struct qmp_sync *q;

    (void)state;
    server_start(&s, script);
    q = attach(&s);
    assert_int_equal(qmp_sync_command(q, "x", NULL, -1, 20, &data), -ETIMEDOUT);
    assert_null(data);
    assert_string_equal(qmp_sync_error(q), "Deadline: QEMU did not answer in time");
    assert_int_equal(qmp_sync_command(q, "y", NULL, -1, PATIENCE_MS, &data), 0);
    assert_int_equal(json_object_get_int(data), 2);
    assert_int_equal(qmp_sync_counters(q)->late, 1);
    json_object_put(data);
    qmp_sync_close(q);
    server_stop(&s);
}

static void a_server_that_does_not_read_cannot_block_us(void **state)
{
    static const char *const script[] = {GREETING, "{\"return\": {}, \"id\": 1}", NULL};
    struct server s = {.keep_open = true};
    char *big = calloc(1, 1000000);
    struct qmp_sync *q;

    (void)state;
    assert_non_null(big);
    memset(big, 'a', 999999);
    server_start(&s, script);
    q = attach(&s);
    assert_int_equal(qmp_sync_command(q, big, NULL, -1, 20, NULL), -ETIMEDOUT);
    assert_int_equal(qmp_sync_command(q, "x", NULL, -1, 20, NULL), -ETIMEDOUT);
    free(big);
    qmp_sync_close(q);
    server_stop(&s);
}

static void a_reply_of_two_megabytes_comes_whole(void **state)
{
    const char *script[] = {GREETING, "{\"return\": {}, \"id\": 1}", NULL, NULL};
    size_t len = 2u << 20;
    char *big = calloc(1, len + 64);
    struct server s = {.keep_open = true};
    struct json_object *data = NULL;
    struct qmp_sync *q;

    (void)state;
    assert_non_null(big);
    strcpy(big, "{\"id\": 2, \"return\": \"");
    memset(big + strlen(big), 'a', len);
    strcat(big, "\"}\r\n");
    script[2] = big;
    server_start(&s, script);
    q = attach(&s);
    assert_int_equal(qmp_sync_command(q, "x", NULL, -1, PATIENCE_MS, &data), 0);
    assert_int_equal(json_object_get_string_len(data), len);
    json_object_put(data);
    qmp_sync_close(q);
    server_stop(&s);
    free(big);
}

static void events_nobody_waits_for_are_bounded(void **state)
{
    enum { NR = QMP_SYNC_EVENTS_MAX + 44 };
    const char *script[] = {GREETING, "{\"return\": {}, \"id\": 1}", NULL, NULL};
    char *flood = calloc(NR + 2, 32);
    struct server s = {.keep_open = true};
    struct qmp_message m;
    struct qmp_sync *q;
    size_t at = 0;

    (void)state;
    assert_non_null(flood);
    for (int i = 0; i < NR; i++)
        at += (size_t)sprintf(flood + at, "{\"event\": \"E%d\"}\r\n", i);
    sprintf(flood + at, "{\"return\": {}, \"id\": 2}");
    script[2] = flood;
    server_start(&s, script);
    q = attach(&s);
    assert_int_equal(qmp_sync_command(q, "x", NULL, -1, PATIENCE_MS, NULL), 0);
    assert_int_equal(qmp_sync_dropped(q), 44);
    assert_int_equal(qmp_sync_wait_event(q, "E43", 0, &m), -ETIMEDOUT);
    assert_int_equal(qmp_sync_wait_event(q, NULL, 0, &m), 0);
    assert_string_equal(m.name, "E44");
    qmp_message_fini(&m);
    qmp_sync_close(q);
    server_stop(&s);
    free(flood);
}

static void garbage_instead_of_a_greeting_is_a_protocol_error(void **state)
{
    static const char *const script[] = {"SSH-2.0-OpenSSH_9.2\r\n", NULL};
    struct server s = {.keep_open = true};
    struct qmp_sync *q = NULL;

    (void)state;
    server_start(&s, script);
    assert_int_equal(qmp_sync_attach(s.client_fd, PATIENCE_MS, &q), -EPROTO);
    assert_null(q);
    assert_int_equal(close(s.client_fd), 0); /* untouched on an error */
    server_stop(&s);
}

static void a_socket_that_is_held_absent_or_full_has_its_own_error(void **state)
{
    char dir[] = "/tmp/test_qmp_sync.XXXXXX", long_path[200];
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct qmp_sync *q = NULL;
    int fds, lfd, waiting;

    (void)state;
    fds = open_fds();
    assert_non_null(mkdtemp(dir));
    snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/s", dir);
    memset(long_path, 'a', sizeof(long_path));
    long_path[sizeof(long_path) - 1] = '\0';
    assert_int_equal(qmp_sync_connect(long_path, 20, &q), -ENAMETOOLONG);
    assert_int_equal(qmp_sync_connect(sa.sun_path, -1, &q), -EINVAL);
    assert_int_equal(qmp_sync_connect(sa.sun_path, 20, &q), -ENOENT);
    lfd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(lfd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    assert_int_equal(qmp_sync_connect(sa.sun_path, 20, &q), -ECONNREFUSED);
    assert_int_equal(listen(lfd, 0), 0);
    assert_int_equal(qmp_sync_connect(sa.sun_path, 20, &q), -EBUSY); /* connected, no greeting */
    /* a listener whose queue is full: connect itself would block */
    waiting = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    connect(waiting, (struct sockaddr *)&sa, sizeof(sa));
    assert_int_equal(qmp_sync_connect(sa.sun_path, 20, &q), -EBUSY);
    assert_null(q);
    close(waiting);
    close(lfd);
    unlink(sa.sun_path);
    rmdir(dir);
    assert_int_equal(open_fds(), fds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commands_and_events_come_through),
        cmocka_unit_test(a_passed_descriptor_is_the_same_file),
        cmocka_unit_test(descriptors_from_the_other_side_are_not_taken),
        cmocka_unit_test(a_server_that_dies_in_mid_reply_is_an_error_at_once),
        cmocka_unit_test(what_was_said_before_the_end_is_still_heard),
        cmocka_unit_test(a_command_past_its_deadline_leaves_the_connection_usable),
        cmocka_unit_test(a_server_that_does_not_read_cannot_block_us),
        cmocka_unit_test(a_reply_of_two_megabytes_comes_whole),
        cmocka_unit_test(events_nobody_waits_for_are_bounded),
        cmocka_unit_test(garbage_instead_of_a_greeting_is_a_protocol_error),
        cmocka_unit_test(a_socket_that_is_held_absent_or_full_has_its_own_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
