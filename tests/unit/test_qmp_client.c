/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_qmp_client.c - the QMP client as a pure machine: bytes and times in, messages and bytes out
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <malloc.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "qmp-client/qmp.h"

#define GREETING                                                                                   \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 13, \"minor\": 0, \"major\": 10}, "            \
    "\"package\": \"Debian\"}, \"capabilities\": [\"oob\"]}}\r\n"
#define CAPABILITIES_DONE "{\"return\": {}, \"id\": 1}\r\n"
#define NR(a) (sizeof(a) / sizeof(*(a)))

static struct qmp_client *client_new(void)
{
    struct qmp_client *c = NULL;

    assert_int_equal(qmp_new(1000, &c), 0);
    return c;
}

static ssize_t feed(struct qmp_client *c, const char *text)
{
    return qmp_feed(c, text, strlen(text));
}

static void feed_all(struct qmp_client *c, const char *text)
{
    assert_int_equal(feed(c, text), strlen(text));
}

/* @return a copy of all output there is, each command written whole */
static char *write_all(struct qmp_client *c)
{
    static char text[4096];
    const void *p;
    size_t len, at = 0;
    int fd;

    while (qmp_output(c, &p, &len, &fd) == 1) {
        assert_true(len > 0 && at + len < sizeof(text));
        memcpy(text + at, p, len);
        at += len;
        assert_int_equal(qmp_output_done(c, len), 0);
    }
    text[at] = '\0';
    return text;
}

static void expect_nothing(struct qmp_client *c)
{
    struct qmp_message m;

    assert_int_equal(qmp_next(c, &m), 0);
}

static void expect_reply(struct qmp_client *c, uint64_t id, const char *data)
{
    struct qmp_message m;

    assert_int_equal(qmp_next(c, &m), 1);
    assert_int_equal(m.type, QMP_REPLY);
    assert_int_equal(m.id, id);
    assert_string_equal(json_object_to_json_string_ext(m.data, JSON_C_TO_STRING_PLAIN), data);
    qmp_message_fini(&m);
}

static void expect_error(struct qmp_client *c, uint64_t id, int error, const char *class)
{
    struct qmp_message m;

    assert_int_equal(qmp_next(c, &m), 1);
    assert_int_equal(m.type, QMP_ERROR);
    assert_int_equal(m.id, id);
    assert_int_equal(m.error, error);
    assert_string_equal(m.name, class);
    assert_true(strlen(m.desc) > 0);
    qmp_message_fini(&m);
}

static void expect_event(struct qmp_client *c, const char *name)
{
    struct qmp_message m;

    assert_int_equal(qmp_next(c, &m), 1);
    assert_int_equal(m.type, QMP_EVENT);
    assert_string_equal(m.name, name);
    qmp_message_fini(&m);
}

static void expect_closed(struct qmp_client *c, int error, const char *words)
{
    struct qmp_message m;

    assert_int_equal(qmp_error(c), error);
    assert_int_equal(qmp_next(c, &m), 1);
    assert_int_equal(m.type, QMP_CLOSED);
    assert_int_equal(m.error, error);
    if (!strstr(m.desc, words))
        fail_msg("\"%s\" does not say \"%s\"", m.desc, words);
    qmp_message_fini(&m);
    expect_nothing(c);
    assert_int_equal(feed(c, "{\"event\": \"X\"}"), error);
    assert_int_equal(qmp_command(c, "stop", NULL, -1, 5000, NULL), error);
    expect_nothing(c);
    assert_true(qmp_next_deadline(c) == INT64_MAX);
}

static struct qmp_client *client_ready(void)
{
    struct qmp_client *c = client_new();
    struct qmp_message m;

    feed_all(c, GREETING);
    write_all(c);
    feed_all(c, CAPABILITIES_DONE);
    assert_int_equal(qmp_next(c, &m), 1);
    assert_int_equal(m.type, QMP_READY);
    qmp_message_fini(&m);
    return c;
}

static uint64_t command(struct qmp_client *c, const char *name, int64_t deadline_ns)
{
    uint64_t id = 0;

    assert_int_equal(qmp_command(c, name, NULL, -1, deadline_ns, &id), 0);
    assert_int_not_equal(id, 0);
    return id;
}

/* --- handshake --- */

static void handshake_ends_in_ready_with_the_version(void **state)
{
    struct qmp_client *c = client_new();
    struct qmp_message m;

    (void)state;
    assert_string_equal(write_all(c), "");
    assert_int_equal(qmp_command(c, "stop", NULL, -1, 5000, NULL), -EAGAIN);
    feed_all(c, GREETING);
    expect_nothing(c);
    assert_int_equal(qmp_command(c, "stop", NULL, -1, 5000, NULL), -EAGAIN);
    assert_string_equal(write_all(c), "{\"execute\":\"qmp_capabilities\",\"id\":1}\n");
    feed_all(c, CAPABILITIES_DONE);
    assert_int_equal(qmp_next(c, &m), 1);
    assert_int_equal(m.type, QMP_READY);
    assert_int_equal(m.version->major, 10);
    assert_int_equal(m.version->minor, 0);
    assert_int_equal(m.version->micro, 13);
    assert_string_equal(m.version->package, "Debian");
    qmp_message_fini(&m);
    expect_nothing(c);
    assert_true(qmp_next_deadline(c) == INT64_MAX);
    qmp_free(c);
}

static void no_greeting_in_time_is_busy_and_half_of_one_is_a_time_out(void **state)
{
    struct qmp_client *c = client_new();

    (void)state;
    assert_int_equal(qmp_next_deadline(c), 1000);
    assert_int_equal(qmp_expire(c, 999), 0);
    assert_int_equal(qmp_error(c), 0);
    assert_int_equal(qmp_expire(c, 1000), 1);
    expect_closed(c, -EBUSY, "another client");
    qmp_free(c);

    c = client_new();
    feed_all(c, "{\"QMP\"");
    qmp_expire(c, 1000);
    expect_closed(c, -ETIMEDOUT, "handshake");
    qmp_free(c);

    c = client_new(); /* greeted, but qmp_capabilities not answered: our own command is not told of
                       */
    feed_all(c, GREETING);
    write_all(c);
    assert_int_equal(qmp_next_deadline(c), 1000);
    qmp_expire(c, 2000);
    expect_closed(c, -ETIMEDOUT, "handshake");
    qmp_free(c);
}

static void an_endless_deadline_is_refused(void **state)
{
    struct qmp_client *c = NULL;

    (void)state;
    assert_int_equal(qmp_new(INT64_MAX, &c), -EINVAL);
    assert_null(c);
    c = client_ready();
    assert_int_equal(qmp_command(c, "stop", NULL, -1, INT64_MAX, NULL), -EINVAL);
    qmp_free(c);
}

static void what_breaks_the_handshake_ends_it(void **state)
{
    static const struct {
        const char *text, *words;
    } bad[] = {
        {"{\"event\": \"RESUME\"}", "before the greeting"},
        {"{\"return\": {}, \"id\": 1}", "before the greeting"},
        {"{\"QMP\": 1}", "no QEMU version"},
        {"{\"QMP\": null}", "no QEMU version"},
        {"{\"QMP\": {\"version\": []}}", "no QEMU version"},
        {"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 1e9, \"minor\": 0, \"micro\": 0}}}}",
         "no QEMU"},
        {"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 99999999999, \"minor\": 0, \"micro\": "
         "0}}}}",
         "no QEMU"},
        {"{\"QMP\": {\"version\": {\"qemu\": {\"major\": -1, \"minor\": 0, \"micro\": 0}}}}",
         "no QEMU"},
        {GREETING GREETING, "twice"},
    };
    struct qmp_client *c;

    (void)state;
    for (size_t i = 0; i < NR(bad); i++) {
        c = client_new();
        assert_int_equal(feed(c, bad[i].text), -EPROTO);
        expect_closed(c, -EPROTO, bad[i].words);
        qmp_free(c);
    }
    c = client_new();
    feed_all(c, GREETING);
    write_all(c);
    assert_int_equal(feed(c, "{\"error\": {\"class\": \"C\", \"desc\": \"d\"}, \"id\": 1}"),
                     -EPROTO);
    expect_closed(c, -EPROTO, "refused qmp_capabilities");
    qmp_free(c);
}

static void an_event_between_greeting_and_ready_is_not_lost(void **state)
{
    struct qmp_client *c = client_new();
    struct qmp_message m;

    (void)state;
    feed_all(c, GREETING);
    write_all(c);
    feed_all(c, "{\"event\": \"SHUTDOWN\"}" CAPABILITIES_DONE);
    expect_event(c, "SHUTDOWN");
    assert_int_equal(qmp_next(c, &m), 1);
    assert_int_equal(m.type, QMP_READY);
    qmp_message_fini(&m);
    qmp_free(c);
}

/* --- input --- */

static void any_cut_of_the_input_gives_the_same_messages(void **state)
{
    static const char text[] =
        "{\"return\": {\"s\": \"\xe2\x82\xac\\u20ac\", \"n\": -12.5}, \"id\": 2}\r\n"
        "{\"event\": \"A\"}{\"event\": \"B\"} \n {\"id\": 3, \"return\": [true]}";
    size_t len = sizeof(text) - 1;

    (void)state;
    for (size_t cut = 0; cut <= len; cut++) {
        struct qmp_client *c = client_ready();

        command(c, "one", 5000);
        command(c, "two", 5000);
        write_all(c);
        if (cut == 0) { /* one by one */
            for (size_t i = 0; i < len; i++)
                assert_int_equal(qmp_feed(c, text + i, 1), 1);
        } else {
            assert_int_equal(qmp_feed(c, text, cut), cut);
            assert_int_equal(qmp_feed(c, text + cut, len - cut), len - cut);
        }
        expect_reply(c, 2, "{\"s\":\"\xe2\x82\xac\xe2\x82\xac\",\"n\":-12.5}");
        expect_event(c, "A");
        expect_event(c, "B");
        expect_reply(c, 3, "[true]");
        expect_nothing(c);
        qmp_free(c);
    }
}

static void what_is_not_qmp_ends_the_connection(void **state)
{
    static const char *const bad[] = {
        "garbage",
        "[]",
        "{]",
        "{\"a\":}",
        "{} {",
        "{\"event\": \"E\",}",
        "{\"event\": 5}",
        "{\"event\": null}",
        "{\"event\": \"a\\u0000b\"}",
        "{\"event\": \"E\", \"data\": 7}",
        "{\"event\": \"E\" \"x\": 1}",
        "{\"event\": \"E\", \"return\": {}}",
        "{\"return\": {}, \"error\": {}}",
        "{\"error\": 1, \"id\": 2}",
        "{\"error\": null, \"id\": 2}",
        "{\"error\": {\"class\": 1, \"desc\": \"d\"}, \"id\": 2}",
        "{\"error\": {\"class\": \"C\"}, \"id\": 2}",
        "{\"event\": \"\\x\"}",
        "{\"event\": \"\xff\"}",
        "{\"event\": 1.2.3}",
        "{\"event\": nul}",
        "{\"a\": ,}",
        "\x01{}",
        GREETING,
    };

    (void)state;
    for (size_t i = 0; i < NR(bad); i++) {
        struct qmp_client *c = client_ready();
        uint64_t id = command(c, "stop", 5000);

        write_all(c);
        feed_all(c, "{\"event\": \"BEFORE\"}");
        if (feed(c, bad[i]) != -EPROTO)
            fail_msg("accepted: %s", bad[i]);
        expect_event(c, "BEFORE"); /* what came whole before it counts */
        expect_error(c, id, -EPROTO, "Closed");
        expect_closed(c, -EPROTO, "");
        qmp_free(c);
    }
}

static void endless_strings_and_nesting_end_in_bounded_memory(void **state)
{
    static const struct {
        const char *start, *again;
    } floods[] = {
        {"{\"event\": \"", "a"},    {"{\"return\": ", "["},     {"{\"return\": ", "{\"a\":"},
        {"{\"return\": [0", ",{}"}, {"{\"return\": [0", ",[]"}, {"{\"return\": [0", ",1"},
        {"{\"a\": 1", ",\"a\":{}"}, {"{\"", "\\u0001"},         {"{", " "},
    };
    size_t total = 100u << 20;
    static char chunk[65536];

    (void)state;
    for (size_t i = 0; i < NR(floods); i++) {
        struct qmp_client *c = client_ready();
        size_t fed = 0, n = strlen(floods[i].again), whole = sizeof(chunk) / n * n;
        size_t before = mallinfo2().uordblks + mallinfo2().hblkhd, peak = 0;
        ssize_t r = 0;

        for (size_t at = 0; at < whole; at += n)
            memcpy(chunk + at, floods[i].again, n);
        feed_all(c, floods[i].start);
        while (fed < total && (r = qmp_feed(c, chunk, whole)) > 0) {
            size_t now = mallinfo2().uordblks + mallinfo2().hblkhd;

            fed += (size_t)r;
            if (now > before && now - before > peak)
                peak = now - before;
        }
        assert_int_equal(r, -EMSGSIZE);
        assert_true(fed <= QMP_MESSAGE_MAX_BYTES);
        if (peak > (size_t)QMP_MESSAGE_MAX_COST)
            fail_msg("%s...%s: %zu bytes of memory", floods[i].start, floods[i].again, peak);
        expect_closed(c, -EMSGSIZE, "too big");
        qmp_free(c);
    }
}

static void feeding_stops_while_too_many_messages_wait(void **state)
{
    struct qmp_client *c = client_ready();
    char text[16 * 1000 + 1];
    size_t done = 0, nr = 0, turns = 0;

    (void)state;
    for (int i = 0; i < 1000; i++)
        sprintf(text + i * 16, "{\"event\":\"E%03d\"}", i);
    assert_int_equal(qmp_feed(c, text, sizeof(text) - 1), 16 * QMP_WAITING_MAX);
    assert_int_equal(qmp_feed(c, text, 16), 0);
    done = 16 * QMP_WAITING_MAX;
    while (nr < 1000) {
        struct qmp_message m;
        char name[8];

        while (qmp_next(c, &m) == 1) {
            snprintf(name, sizeof(name), "E%03zu", nr++);
            assert_string_equal(m.name, name);
            qmp_message_fini(&m);
        }
        done += (size_t)qmp_feed(c, text + done, sizeof(text) - 1 - done);
        assert_true(turns++ < 1000);
    }
    assert_int_equal(qmp_counters(c)->events, 1000);
    qmp_free(c);
}

static void waiting_messages_are_bounded_by_memory_too(void **state)
{
    struct qmp_client *c = client_ready();
    size_t len = 3u << 20, nr;
    char *text = malloc(len);

    (void)state;
    assert_non_null(text);
    /* each 12,000 empty objects, 12 MB as estimated: the sixth passes the limit */
    len = (size_t)sprintf(text, "{\"event\": \"BIG\", \"data\": {\"a\": [0");
    for (int i = 0; i < 10000; i++)
        len += (size_t)sprintf(text + len, ",{}");
    len += (size_t)sprintf(text + len, "]}}");
    for (nr = 0; nr < QMP_WAITING_MAX && qmp_feed(c, text, len) == (ssize_t)len; nr++)
        ;
    assert_true(nr >= 4 && nr <= 6);
    free(text);
    qmp_free(c);
}

/* --- commands --- */

static void replies_are_matched_by_id_not_by_order(void **state)
{
    struct qmp_client *c = client_ready();
    uint64_t a = command(c, "a", 5000), b = command(c, "b", 5000);

    (void)state;
    assert_string_equal(write_all(c),
                        "{\"execute\":\"a\",\"id\":2}\n{\"execute\":\"b\",\"id\":3}\n");
    feed_all(c, "{\"return\": 7, \"id\": 3}{\"error\": {\"class\": \"GenericError\", \"desc\": "
                "\"no\"}, \"id\": 2}");
    expect_reply(c, b, "7");
    expect_error(c, a, -EREMOTEIO, "GenericError");
    expect_nothing(c);
    assert_int_equal(qmp_counters(c)->replies, 2);
    qmp_free(c);
}

static void answers_nobody_waits_for_are_dropped_and_counted(void **state)
{
    static const char *const stray[] = {
        "{\"return\": {}, \"id\": 77}",
        "{\"return\": {}}",
        "{\"return\": {}, \"id\": \"2\"}",
        "{\"return\": {}, \"id\": 2.0}",
        "{\"return\": {}, \"id\": -2}",
        "{\"return\": {}, \"id\": null}",
        "{\"return\": {}, \"id\": 0}",
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}",
        "{\"return\": {}, \"id\": 1}",
        "{\"return\": {}, \"id\": {\"id\": 2}}",
        "{\"return\": {}, \"id\": 3}", /* queued, not a byte of it written */
    };
    struct qmp_client *c = client_ready();
    uint64_t id = command(c, "a", 5000);

    (void)state;
    write_all(c);
    command(c, "b", 5000);
    for (size_t i = 0; i < NR(stray); i++)
        feed_all(c, stray[i]);
    assert_int_equal(qmp_counters(c)->unknown, NR(stray));
    expect_nothing(c);
    feed_all(c, "{\"return\": {}, \"id\": 2}{\"return\": {}, \"id\": 2}");
    expect_reply(c, id, "{}");
    expect_nothing(c);
    assert_int_equal(qmp_counters(c)->unknown, NR(stray) + 1);
    qmp_free(c);
}

/* json-c before 0.17 takes the nearest number that fits, later ones refuse the message: nobody's answer both ways. */
static void a_number_beyond_64_bits_is_nobodys_id(void **state)
{
    static const char text[] = "{\"return\": {}, \"id\": 99999999999999999999}";
    struct qmp_client *c = client_ready();
    ssize_t r;

    (void)state;
    command(c, "a", 5000);
    write_all(c);
    r = qmp_feed(c, text, sizeof(text) - 1);
    if (r < 0)
        assert_int_equal(r, -EPROTO);
    else
        assert_int_equal(qmp_counters(c)->unknown, 1);
    assert_int_equal(qmp_counters(c)->replies, 0);
    qmp_free(c);
}

static void commands_in_flight_are_bounded(void **state)
{
    struct qmp_client *c = client_ready();

    (void)state;
    for (int i = 0; i < QMP_IN_FLIGHT_MAX; i++)
        command(c, "stop", 5000);
    assert_int_equal(qmp_command(c, "stop", NULL, -1, 5000, NULL), -EBUSY);
    write_all(c);
    assert_int_equal(qmp_command(c, "stop", NULL, -1, 5000, NULL), -EBUSY);
    feed_all(c, "{\"return\": {}, \"id\": 9}");
    command(c, "stop", 5000);
    assert_int_equal(qmp_command(c, "stop", NULL, -1, 5000, NULL), -EBUSY);
    /* expired ones still count: QEMU has them in hand */
    assert_int_equal(qmp_expire(c, 5000), QMP_IN_FLIGHT_MAX);
    expect_reply(c, 9, "{}");
    for (uint64_t i = 0; i < QMP_IN_FLIGHT_MAX; i++) {
        struct qmp_message m;

        assert_int_equal(qmp_next(c, &m), 1);
        assert_int_equal(m.error, -ETIMEDOUT);
    }
    /* all but the last were written; the last, not begun, is over at once */
    command(c, "stop", 9000);
    assert_int_equal(qmp_command(c, "stop", NULL, -1, 9000, NULL), -EBUSY);
    feed_all(c, "{\"return\": {}, \"id\": 10}");
    command(c, "stop", 9000);
    qmp_free(c);
}

static void what_cannot_be_said_is_refused(void **state)
{
    struct qmp_client *c = client_ready();
    char *big = calloc(1, QMP_COMMAND_MAX_BYTES + 1);
    struct json_object *args = json_object_new_object(), *nan = json_object_new_object();

    (void)state;
    assert_non_null(big);
    memset(big, 'a', QMP_COMMAND_MAX_BYTES);
    assert_int_equal(qmp_command(c, "", NULL, -1, 5000, NULL), -EINVAL);
    assert_int_equal(qmp_command(c, NULL, NULL, -1, 5000, NULL), -EINVAL);
    assert_int_equal(qmp_command(c, "\xff", NULL, -1, 5000, NULL), -EINVAL);
    assert_int_equal(qmp_command(c, big, NULL, -1, 5000, NULL), -E2BIG);
    assert_int_equal(qmp_command(c, "a", json_object_new_array(), -1, 5000, NULL), -EINVAL);
    assert_int_equal(qmp_command(c, "a", json_object_new_int(1), -1, 5000, NULL), -EINVAL);
    json_object_object_add(nan, "d", json_object_new_double(0.0 / 0.0));
    assert_int_equal(qmp_command(c, "a", nan, -1, 5000, NULL), -EINVAL);
    assert_int_equal(qmp_command(c, "a", NULL, 1 << 20, 5000, NULL), -EBADF);
    assert_string_equal(write_all(c), "");
    json_object_object_add(args, "x\"y", json_object_new_string("\n"));
    assert_int_equal(qmp_command(c, "a\"b", args, -1, 5000, NULL), 0);
    assert_string_equal(write_all(c),
                        "{\"execute\":\"a\\\"b\",\"arguments\":{\"x\\\"y\":\"\\n\"},\"id\":2}\n");
    free(big);
    qmp_free(c);
}

/* --- deadlines --- */

static void a_deadline_fails_its_command_once_and_the_late_answer_is_dropped(void **state)
{
    struct qmp_client *c = client_ready();
    uint64_t late = command(c, "a", 2000), fine = command(c, "b", 3000);

    (void)state;
    write_all(c);
    assert_int_equal(qmp_next_deadline(c), 2000);
    assert_int_equal(qmp_expire(c, 1999), 0);
    expect_nothing(c);
    assert_int_equal(qmp_expire(c, 2000), 1);
    assert_int_equal(qmp_expire(c, 2001), 0);
    assert_int_equal(qmp_next_deadline(c), 3000);
    expect_error(c, late, -ETIMEDOUT, "Deadline");
    expect_nothing(c);
    feed_all(c, "{\"return\": 1, \"id\": 2}{\"return\": 2, \"id\": 3}");
    expect_reply(c, fine, "2");
    expect_nothing(c);
    assert_int_equal(qmp_counters(c)->late, 1);
    assert_int_equal(qmp_counters(c)->expired, 1);
    assert_int_equal(qmp_counters(c)->unknown, 0);
    feed_all(c, "{\"return\": 1, \"id\": 2}"); /* and again: now it is unknown */
    assert_int_equal(qmp_counters(c)->late, 1);
    assert_int_equal(qmp_counters(c)->unknown, 1);
    qmp_free(c);
}

static void a_late_answer_before_the_failure_was_taken_does_not_undo_it(void **state)
{
    struct qmp_client *c = client_ready();
    uint64_t id = command(c, "a", 2000);

    (void)state;
    write_all(c);
    qmp_expire(c, 2000);
    feed_all(c, "{\"return\": 1, \"id\": 2}");
    qmp_closed(c, 0);
    expect_error(c, id, -ETIMEDOUT, "Deadline");
    expect_closed(c, -EPIPE, "closed the connection");
    qmp_free(c);
}

static void an_expired_command_not_yet_begun_is_never_sent(void **state)
{
    struct qmp_client *c = client_ready();
    uint64_t id = command(c, "system_reset", 2000);

    (void)state;
    qmp_expire(c, 2000);
    assert_string_equal(write_all(c), "");
    expect_error(c, id, -ETIMEDOUT, "Deadline");
    qmp_free(c);
}

static void bytes_being_written_stay_in_place_when_their_command_expires(void **state)
{
    static const char text[] = "{\"execute\":\"stop\",\"id\":2}\n";
    struct qmp_client *c = client_ready();
    uint64_t id = command(c, "stop", 2000), given_up = command(c, "cont", 2000);
    const void *p, *again;
    size_t len;
    int fd;

    (void)state;
    assert_int_equal(qmp_output(c, &p, &len, &fd), 1);
    qmp_expire(c, 2000);
    expect_error(c, id, -ETIMEDOUT, "Deadline");
    expect_error(c, given_up, -ETIMEDOUT, "Deadline");
    assert_int_equal(qmp_output(c, &again, &len, &fd), 1);
    assert_ptr_equal(p, again);
    assert_memory_equal(p, text, len);
    assert_int_equal(qmp_output_done(c, 4),
                     0); /* begun: the rest must follow, or the stream is broken */
    assert_string_equal(write_all(c), text + 4);
    feed_all(c, "{\"return\": {}, \"id\": 2}");
    assert_int_equal(qmp_counters(c)->late, 1);

    /* lent, expired, and then the write was given up without a byte: nothing leaves */
    id = command(c, "stop", 3000);
    assert_int_equal(qmp_output(c, &p, &len, &fd), 1);
    qmp_expire(c, 3000);
    assert_int_equal(qmp_output_done(c, 0), 0);
    assert_string_equal(write_all(c), "");
    expect_error(c, id, -ETIMEDOUT, "Deadline");
    qmp_free(c);
}

/* --- output --- */

static void output_is_taken_in_pieces_of_any_size(void **state)
{
    struct qmp_client *c = client_ready();
    const void *p;
    size_t len, at = 0;
    char text[128] = "";
    int fd;

    (void)state;
    assert_int_equal(qmp_output_done(c, 0), -EINVAL);
    command(c, "stop", 5000);
    command(c, "cont", 5000);
    while (qmp_output(c, &p, &len, &fd) == 1) {
        assert_int_equal(fd, -1);
        text[at++] = *(const char *)p;
        assert_int_equal(qmp_output_done(c, len + 1), -EINVAL);
        assert_int_equal(qmp_output_done(c, 1), 0);
    }
    assert_string_equal(text, "{\"execute\":\"stop\",\"id\":2}\n{\"execute\":\"cont\",\"id\":3}\n");
    qmp_free(c);
}

static void an_answer_may_be_seen_before_its_write_is_done(void **state)
{
    struct qmp_client *c = client_ready();
    uint64_t id = command(c, "stop", 5000);
    const void *p;
    size_t len;
    int fd;

    (void)state;
    assert_int_equal(qmp_output(c, &p, &len, &fd), 1);
    feed_all(c, "{\"return\": {}, \"id\": 2}");
    expect_reply(c, id, "{}");
    assert_int_equal(((const char *)p)[len - 1], '\n'); /* still there: ASan would tell */
    feed_all(c, "{\"return\": {}, \"id\": 2}");         /* once more: an answer to nothing */
    expect_nothing(c);
    assert_int_equal(qmp_counters(c)->unknown, 1);
    assert_int_equal(qmp_output_done(c, len), 0);
    assert_string_equal(write_all(c), "");
    qmp_free(c);
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static void a_descriptor_goes_with_the_first_byte_and_is_closed_then(void **state)
{
    struct qmp_client *c = client_ready();
    int mine = eventfd(0, EFD_CLOEXEC), fd, kept;
    struct qmp_output_msg out;
    const void *p;
    size_t len;

    (void)state;
    assert_int_equal(qmp_command(c, "getfd", NULL, mine, 5000, NULL), 0);
    assert_int_equal(qmp_output(c, &p, &len, &kept), 1);
    assert_true(kept >= 0 && kept != mine);
    assert_true(fcntl(kept, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(qmp_output_done(c, 0), 0); /* nothing went, so the descriptor did not either */
    assert_true(is_open(kept));
    assert_int_equal(qmp_output_msg(c, &out), 1);
    assert_int_equal(out.msg.msg_controllen, CMSG_SPACE(sizeof(int)));
    assert_memory_equal(CMSG_DATA(CMSG_FIRSTHDR(&out.msg)), &kept, sizeof(int));
    assert_int_equal(qmp_output_done(c, 1), 0);
    assert_false(is_open(kept));
    assert_int_equal(qmp_output_msg(c, &out), 1);
    assert_int_equal(out.msg.msg_controllen, 0);
    assert_int_equal(qmp_output_done(c, out.iov.iov_len), 0);

    /* never to be sent: expired, or the connection ended, or the client freed */
    assert_int_equal(qmp_command(c, "getfd", NULL, mine, 6000, NULL), 0);
    assert_int_equal(qmp_output(c, &p, &len, &kept), 1);
    assert_int_equal(qmp_output_done(c, 0), 0);
    qmp_expire(c, 6000);
    assert_false(is_open(kept));
    assert_int_equal(qmp_command(c, "getfd", NULL, mine, 7000, NULL), 0);
    assert_int_equal(qmp_output(c, &p, &len, &kept), 1);
    qmp_closed(c, 0);
    assert_true(is_open(kept)); /* lent */
    assert_int_equal(qmp_output_done(c, 0), 0);
    assert_false(is_open(kept));
    assert_int_equal(qmp_output(c, &p, &len, &fd), 0);
    qmp_free(c);
    assert_true(is_open(mine));
    close(mine);
}

/* --- the end --- */

static void an_end_fails_each_command_once(void **state)
{
    static const struct {
        const char *half;
        int given, error;
        const char *words;
    } ends[] = {
        {"", 0, -EPIPE, "closed the connection"},
        {"{\"return\": {\"status\": \"runn", 0, -EPIPE, "middle of a message"},
        {"", -ECONNRESET, -ECONNRESET, "closed the connection"},
        {"{", -ECONNRESET, -ECONNRESET, "middle of a message"},
        {"", -EIO, -EIO, "failed"},
    };

    (void)state;
    for (size_t i = 0; i < NR(ends); i++) {
        struct qmp_client *c = client_ready();
        uint64_t a = command(c, "a", 5000), b = command(c, "b", 5000), d;
        const void *p;
        size_t len;
        int fd;

        write_all(c);
        d = command(c, "d", 5000);
        assert_int_equal(qmp_output(c, &p, &len, &fd), 1);
        feed_all(c, "{\"return\": {}, \"id\": 3}");
        feed_all(c, ends[i].half);
        qmp_closed(c, ends[i].given);
        qmp_closed(c, -EBADF);
        assert_int_equal(qmp_expire(c, 9999), 0);
        expect_reply(c, b, "{}");
        expect_error(c, a, ends[i].error, "Closed");
        expect_error(c, d, ends[i].error, "Closed");
        expect_closed(c, ends[i].error, ends[i].words);
        assert_int_equal(((const char *)p)[len - 1], '\n');
        assert_int_equal(qmp_output_done(c, len), 0);
        expect_nothing(c);
        qmp_free(c);
    }
}

static void an_end_before_the_greeting_is_told_apart(void **state)
{
    struct qmp_client *c = client_new();

    (void)state;
    qmp_closed(c, 0);
    expect_closed(c, -EPIPE, "before its greeting");
    qmp_free(c);
    qmp_free(NULL);
}

/* --- events --- */

static void events_carry_name_data_and_time(void **state)
{
    static const struct {
        const char *stamp;
        int64_t us;
    } stamps[] = {
        {"{\"seconds\": 1700000000, \"microseconds\": 5}", 1700000000000005},
        {"{\"seconds\": -1, \"microseconds\": -1}", -1},
        {"{\"seconds\": 9223372036854775807, \"microseconds\": 0}", -1},
        {"{\"seconds\": 1, \"microseconds\": 1000000}", -1},
        {"{\"seconds\": \"1\", \"microseconds\": 0}", -1},
        {"7", -1},
    };
    struct qmp_client *c = client_ready();
    struct json_object *kept;
    struct qmp_message m;

    (void)state;
    for (size_t i = 0; i < NR(stamps); i++) {
        char text[256];

        snprintf(text, sizeof(text), "{\"timestamp\": %s, \"event\": \"STOP\"}", stamps[i].stamp);
        feed_all(c, text);
        assert_int_equal(qmp_next(c, &m), 1);
        assert_true(m.timestamp_us == stamps[i].us);
        assert_null(m.data);
        qmp_message_fini(&m);
    }
    feed_all(c, "{\"event\": \"E\", \"data\": {\"a\": 1}}");
    assert_int_equal(qmp_next(c, &m), 1);
    kept = json_object_get(m.data);
    qmp_message_fini(&m);
    qmp_message_fini(&m);
    qmp_free(c);
    assert_string_equal(json_object_to_json_string_ext(kept, JSON_C_TO_STRING_PLAIN), "{\"a\":1}");
    json_object_put(kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(handshake_ends_in_ready_with_the_version),
        cmocka_unit_test(no_greeting_in_time_is_busy_and_half_of_one_is_a_time_out),
        cmocka_unit_test(an_endless_deadline_is_refused),
        cmocka_unit_test(what_breaks_the_handshake_ends_it),
        cmocka_unit_test(an_event_between_greeting_and_ready_is_not_lost),
        cmocka_unit_test(any_cut_of_the_input_gives_the_same_messages),
        cmocka_unit_test(what_is_not_qmp_ends_the_connection),
        cmocka_unit_test(endless_strings_and_nesting_end_in_bounded_memory),
        cmocka_unit_test(feeding_stops_while_too_many_messages_wait),
        cmocka_unit_test(waiting_messages_are_bounded_by_memory_too),
        cmocka_unit_test(replies_are_matched_by_id_not_by_order),
        cmocka_unit_test(answers_nobody_waits_for_are_dropped_and_counted),
        cmocka_unit_test(a_number_beyond_64_bits_is_nobodys_id),
        cmocka_unit_test(commands_in_flight_are_bounded),
        cmocka_unit_test(what_cannot_be_said_is_refused),
        cmocka_unit_test(a_deadline_fails_its_command_once_and_the_late_answer_is_dropped),
        cmocka_unit_test(a_late_answer_before_the_failure_was_taken_does_not_undo_it),
        cmocka_unit_test(an_expired_command_not_yet_begun_is_never_sent),
        cmocka_unit_test(bytes_being_written_stay_in_place_when_their_command_expires),
        cmocka_unit_test(output_is_taken_in_pieces_of_any_size),
        cmocka_unit_test(an_answer_may_be_seen_before_its_write_is_done),
        cmocka_unit_test(a_descriptor_goes_with_the_first_byte_and_is_closed_then),
        cmocka_unit_test(an_end_fails_each_command_once),
        cmocka_unit_test(an_end_before_the_greeting_is_told_apart),
        cmocka_unit_test(events_carry_name_data_and_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
