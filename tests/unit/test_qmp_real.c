/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_qmp_real.c - the QMP client against a real QEMU, named by POLLUX_QEMU (skipped without)
 *
 * Starts QEMU with machine "none": no firmware, no guest, up in well under a second. QEMU is given
 * a socket that already listens, so nothing waits for a file to appear. Each QEMU dies with its
 * test.
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
#include <fcntl.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "qmp-client/qmp.h"
#include "qmp-client/qmp_sync.h"

#define PATIENCE_MS 20000

struct fixture {
    char dir[64], path[80];
    pid_t pid; /* 0 once it was waited for */
    struct qmp_sync *q;
};

static int start(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    const char *qemu = getenv("POLLUX_QEMU");
    char chardev[80];
    int lfd;

    *state = f;
    strcpy(f->dir, "/tmp/test_qmp_real.XXXXXX");
    if (!mkdtemp(f->dir))
        return -1;
    snprintf(f->path, sizeof(f->path), "%s/qmp", f->dir);
    strcpy(sa.sun_path, f->path);
    lfd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(lfd, (struct sockaddr *)&sa, sizeof(sa)) || listen(lfd, 1))
        return -1;
    snprintf(chardev, sizeof(chardev), "socket,id=m,fd=%d,server=on,wait=off", lfd);
    f->pid = fork();
    if (f->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl(qemu, qemu, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none",
              "-chardev", chardev, "-mon", "chardev=m,mode=control", (char *)NULL);
        _exit(127);
    }
    close(lfd);
    return f->pid < 0 || qmp_sync_connect(f->path, PATIENCE_MS, &f->q);
}

static int reap(struct fixture *f)
{
    int status = 0;

    waitpid(f->pid, &status, 0);
    f->pid = 0;
    return status;
}

static int stop(void **state)
{
    struct fixture *f = *state;

    qmp_sync_close(f->q);
    if (f->pid > 0) {
        kill(f->pid, SIGKILL);
        reap(f);
    }
    unlink(f->path);
    rmdir(f->dir);
    free(f);
    return 0;
}

static struct json_object *name_args(const char *key, const char *name)
{
    struct json_object *args = json_object_new_object();

    json_object_object_add(args, key, json_object_new_string(name));
    return args;
}

/* @return how many of the process's descriptors are the memfd of that name */
static int qemu_has(pid_t pid, const char *memfd)
{
    char path[64], link[128], wanted[80];
    struct dirent *e;
    int nr = 0;
    DIR *d;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
    snprintf(wanted, sizeof(wanted), "/memfd:%s (deleted)", memfd);
    d = opendir(path);
    assert_non_null(d);
    while ((e = readdir(d))) {
        ssize_t n = readlinkat(dirfd(d), e->d_name, link, sizeof(link) - 1);

        if (n > 0) {
            link[n] = '\0';
            nr += !strcmp(link, wanted);
        }
    }
    closedir(d);
    return nr;
}

static void the_handshake_tells_the_version(void **state)
{
    struct fixture *f = *state;
    struct json_object *data = NULL;

    assert_true(qmp_sync_version(f->q)->major >= 7);
    assert_int_equal(qmp_sync_command(f->q, "query-status", NULL, -1, PATIENCE_MS, &data), 0);
    assert_true(json_object_object_get_ex(data, "running", NULL));
    json_object_put(data);
}

static void its_biggest_reply_is_far_from_our_limits(void **state)
{
    struct fixture *f = *state;
    struct json_object *data = NULL;
    size_t len;

    assert_int_equal(qmp_sync_command(f->q, "query-qmp-schema", NULL, -1, PATIENCE_MS, &data), 0);
    json_object_to_json_string_length(data, JSON_C_TO_STRING_PLAIN, &len);
    print_message("query-qmp-schema: %zu bytes, %zu entries\n", len,
                  json_object_array_length(data));
    assert_in_range(len, 50000, QMP_MESSAGE_MAX_BYTES / 4);
    json_object_put(data);
}

static void its_refusals_come_in_its_own_words(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(qmp_sync_command(f->q, "no-such-command", NULL, -1, PATIENCE_MS, NULL),
                     -EREMOTEIO);
    assert_string_equal(qmp_sync_error(f->q),
                        "CommandNotFound: The command no-such-command has not been found");
    assert_int_equal(
        qmp_sync_command(f->q, "getfd", name_args("fdname", "a"), -1, PATIENCE_MS, NULL),
        -EREMOTEIO);
    assert_string_equal(qmp_sync_error(f->q),
                        "GenericError: No file descriptor supplied via SCM_RIGHTS");
}

static void events_arrive(void **state)
{
    struct fixture *f = *state;
    struct qmp_message m;

    assert_int_equal(qmp_sync_command(f->q, "stop", NULL, -1, PATIENCE_MS, NULL), 0);
    assert_int_equal(qmp_sync_wait_event(f->q, "STOP", PATIENCE_MS, &m), 0);
    assert_true(m.timestamp_us > 0);
    qmp_message_fini(&m);
    assert_int_equal(qmp_sync_command(f->q, "cont", NULL, -1, PATIENCE_MS, NULL), 0);
    assert_int_equal(qmp_sync_wait_event(f->q, "RESUME", PATIENCE_MS, &m), 0);
    qmp_message_fini(&m);
}

static void quit_is_answered_before_the_end(void **state)
{
    struct fixture *f = *state;
    struct qmp_message m;
    int status, r;

    assert_int_equal(qmp_sync_command(f->q, "quit", NULL, -1, PATIENCE_MS, NULL), 0);
    assert_int_equal(qmp_sync_wait_event(f->q, "SHUTDOWN", PATIENCE_MS, &m), 0);
    qmp_message_fini(&m);
    r = qmp_sync_wait_event(f->q, "NEVER", PATIENCE_MS, &m);
    assert_true(r == -EPIPE || r == -ECONNRESET);
    status = reap(f);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void getfd_hands_the_file_over(void **state)
{
    struct fixture *f = *state;
    int fd = memfd_create("pollux-a", MFD_CLOEXEC);

    assert_int_equal(qemu_has(f->pid, "pollux-a"), 0);
    assert_int_equal(
        qmp_sync_command(f->q, "getfd", name_args("fdname", "a"), fd, PATIENCE_MS, NULL), 0);
    assert_int_equal(qemu_has(f->pid, "pollux-a"), 1);
    assert_int_equal(
        qmp_sync_command(f->q, "closefd", name_args("fdname", "a"), -1, PATIENCE_MS, NULL), 0);
    assert_int_equal(qemu_has(f->pid, "pollux-a"), 0);
    assert_int_equal(
        qmp_sync_command(f->q, "closefd", name_args("fdname", "a"), -1, PATIENCE_MS, NULL),
        -EREMOTEIO);
    close(fd);
}

/* what the header says about QEMU: a surprise for whoever passes an eventfd */
static void qemu_makes_a_passed_descriptor_blocking(void **state)
{
    struct fixture *f = *state;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    assert_int_equal(
        qmp_sync_command(f->q, "getfd", name_args("fdname", "e"), fd, PATIENCE_MS, NULL), 0);
    assert_false(fcntl(fd, F_GETFL) & O_NONBLOCK);
    close(fd);
}

static int64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The core alone, on a blocking socket of the test's own. */
struct core {
    struct qmp_client *c;
    int sock;
    int64_t deadline_ns;
};

static void core_write(struct core *k)
{
    struct qmp_output_msg out;

    while (qmp_output_msg(k->c, &out)) {
        ssize_t n = sendmsg(k->sock, &out.msg, MSG_NOSIGNAL);

        assert_true(n > 0);
        assert_int_equal(qmp_output_done(k->c, (size_t)n), 0);
    }
}

/* Waits for the next message, reading a few bytes at a time. */
static struct qmp_message core_next(struct core *k)
{
    struct qmp_message m;
    char bytes[13];

    while (!qmp_next(k->c, &m)) {
        struct pollfd p = {.fd = k->sock, .events = POLLIN};
        ssize_t n;

        core_write(k);
        assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
        n = recv(k->sock, bytes, sizeof(bytes), 0);
        if (n > 0)
            assert_int_equal(qmp_feed(k->c, bytes, (size_t)n), n);
        else
            qmp_closed(k->c, n ? -errno : 0);
    }
    return m;
}

/* Takes the place of the fixture's connection. */
static void core_open(struct fixture *f, struct core *k)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    struct qmp_message m;

    qmp_sync_close(f->q);
    f->q = NULL;
    strcpy(sa.sun_path, f->path);
    k->sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(k->sock, (struct sockaddr *)&sa, sizeof(sa)), 0);
    k->deadline_ns = now_ns() + (int64_t)PATIENCE_MS * 1000000;
    assert_int_equal(qmp_new(k->deadline_ns, &k->c), 0);
    m = core_next(k);
    assert_int_equal(m.type, QMP_READY);
    qmp_message_fini(&m);
}

static void core_close(struct core *k)
{
    qmp_free(k->c);
    close(k->sock);
}

/* 32 descriptors written before the first answer is read: each reaches its own name. */
static void descriptors_in_flight_do_not_mix(void **state)
{
    enum { NR = 32 };
    struct fixture *f = *state;
    struct qmp_message m;
    struct core k;
    char name[32];

    core_open(f, &k);
    for (int i = 0; i < NR; i++) {
        int fd;

        snprintf(name, sizeof(name), "many-%d", i);
        fd = memfd_create(name, MFD_CLOEXEC);
        assert_int_equal(
            qmp_command(k.c, "getfd", name_args("fdname", name), fd, k.deadline_ns, NULL), 0);
        close(fd);
    }
    core_write(&k);
    for (int i = 0; i < NR; i++) {
        m = core_next(&k);
        assert_int_equal(m.type, QMP_REPLY);
        qmp_message_fini(&m);
    }
    for (int i = 0; i < NR; i++) { /* closing by name closes the file that was sent under it */
        snprintf(name, sizeof(name), "many-%d", i);
        assert_int_equal(qemu_has(f->pid, name), 1);
        assert_int_equal(
            qmp_command(k.c, "closefd", name_args("fdname", name), -1, k.deadline_ns, NULL), 0);
        m = core_next(&k);
        assert_int_equal(m.type, QMP_REPLY);
        qmp_message_fini(&m);
        assert_int_equal(qemu_has(f->pid, name), 0);
    }
    core_close(&k);
}

static void a_second_client_is_told_that_the_socket_is_held(void **state)
{
    struct fixture *f = *state;
    struct qmp_sync *second = NULL;

    assert_int_equal(qmp_sync_connect(f->path, 100, &second), -EBUSY);
    assert_int_equal(qmp_sync_command(f->q, "query-status", NULL, -1, PATIENCE_MS, NULL), 0);
    qmp_sync_close(f->q);
    f->q = NULL;
    assert_int_equal(qmp_sync_connect(f->path, PATIENCE_MS, &second), 0);
    f->q = second;
}

static void a_stopped_qemu_is_a_time_out_and_its_late_answer_does_no_harm(void **state)
{
    struct fixture *f = *state;
    struct json_object *data = NULL;

    kill(f->pid, SIGSTOP);
    assert_int_equal(waitpid(f->pid, NULL, WUNTRACED), f->pid);
    assert_int_equal(qmp_sync_command(f->q, "query-version", NULL, -1, 50, NULL), -ETIMEDOUT);
    kill(f->pid, SIGCONT);
    assert_int_equal(qmp_sync_command(f->q, "query-status", NULL, -1, PATIENCE_MS, &data), 0);
    assert_true(json_object_object_get_ex(data, "running", NULL));
    assert_int_equal(qmp_sync_counters(f->q)->late, 1);
    json_object_put(data);
}

static void a_killed_qemu_fails_the_command_in_flight(void **state)
{
    struct fixture *f = *state;
    struct qmp_message m;
    struct core k;
    uint64_t id;

    core_open(f, &k);
    kill(f->pid, SIGSTOP); /* so that the command is in flight for certain */
    assert_int_equal(waitpid(f->pid, NULL, WUNTRACED), f->pid);
    assert_int_equal(qmp_command(k.c, "query-status", NULL, -1, k.deadline_ns, &id), 0);
    core_write(&k);
    kill(f->pid, SIGKILL);
    reap(f);
    m = core_next(&k);
    assert_int_equal(m.type, QMP_ERROR);
    assert_int_equal(m.id, id);
    if (m.error != -EPIPE && m.error != -ECONNRESET)
        fail_msg("%s", strerror(-m.error));
    qmp_message_fini(&m);
    m = core_next(&k);
    assert_int_equal(m.type, QMP_CLOSED);
    qmp_message_fini(&m);
    core_close(&k);
}

int main(void)
{
#define REAL(test) cmocka_unit_test_setup_teardown(test, start, stop)
    const struct CMUnitTest tests[] = {
        REAL(the_handshake_tells_the_version),
        REAL(its_biggest_reply_is_far_from_our_limits),
        REAL(its_refusals_come_in_its_own_words),
        REAL(events_arrive),
        REAL(quit_is_answered_before_the_end),
        REAL(getfd_hands_the_file_over),
        REAL(qemu_makes_a_passed_descriptor_blocking),
        REAL(descriptors_in_flight_do_not_mix),
        REAL(a_second_client_is_told_that_the_socket_is_held),
        REAL(a_stopped_qemu_is_a_time_out_and_its_late_answer_does_no_harm),
        REAL(a_killed_qemu_fails_the_command_in_flight),
    };

    if (!getenv("POLLUX_QEMU")) {
        fprintf(stderr, "skipped: POLLUX_QEMU names no QEMU\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
