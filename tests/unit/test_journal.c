/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_journal.c - what is told to people is bounded in time, says what it leaves out, and never leaves out a move
 */
#include <json-c/json.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "replicator/daemon.h"

#define SECOND (1000 * MS)
#define HOUR (3600 * SECOND)

static unsigned lines, published, notes, left_out;
static char last_line[600];

/* In place of the log and of the control socket's subscribers. */
void log_line(enum log_level level, const char *format, ...)
{
    const char *count;
    va_list args;

    (void)level;
    va_start(args, format);
    vsnprintf(last_line, sizeof(last_line), format, args);
    va_end(args);
    lines++;
    count = strstr(last_line, "x: ");
    if (count && strstr(last_line, "were left out"))
        left_out += (unsigned)strtoul(count + 3, NULL, 10);
    else
        notes++;
}

void control_publish(struct control *c, struct json_object *o)
{
    (void)c;
    (void)o;
    published++;
}

void control_send(struct control *c, unsigned client, struct json_object *o)
{
    (void)c;
    (void)client;
    json_object_put(o);
}

static int setup(void **state)
{
    struct daemon *d = calloc(1, sizeof(*d));

    if (!d)
        return -1;
    strcpy(d->options.vm, "x");
    d->now_ns = 5 * HOUR;
    lines = published = notes = left_out = 0;
    *state = d;
    return 0;
}

static int teardown(void **state)
{
    struct daemon *d = *state;

    for (unsigned i = 0; i < JOURNAL_EVENTS; i++)
        free(d->journal[i].line);
    free(d);
    return 0;
}

/* The loop's turn at the journal, for as long as there is one. */
static void let_time_pass(struct daemon *d)
{
    for (int64_t at; (at = journal_tick(d)) != INT64_MAX;) {
        assert_true(at > d->now_ns);
        d->now_ns = at;
    }
}

static void the_same_note_again_is_told_once_a_minute(void **state)
{
    struct daemon *d = *state;

    for (unsigned i = 0; i < 600; i++, d->now_ns += SECOND / 2)
        journal_note(d, LOG_WARNING, "refused", "again");
    assert_int_equal(lines, 5);
}

/* Two strangers with different faults in turn wrote two lines a knock. */
static void two_notes_in_turn_for_an_hour_are_bounded_and_counted(void **state)
{
    struct daemon *d = *state;
    const unsigned all = 3600 * 20;

    for (unsigned i = 0; i < all; i++, d->now_ns += SECOND / 20) {
        journal_tick(d);
        journal_note(d, LOG_WARNING, "refused", i % 2 ? "refused the peer a: no" : "refused the peer b: no");
    }
    let_time_pass(d);
    assert_in_range(lines, JOURNAL_NOTES, 2 * (JOURNAL_NOTES + HOUR / JOURNAL_NOTE_NS) + 2);
    assert_int_equal(lines, published);
    assert_int_equal(notes + left_out, all); /* each is told or counted */
}

static void what_was_left_out_is_told_when_it_is_over(void **state)
{
    struct daemon *d = *state;
    char text[32];

    for (unsigned i = 0; i < JOURNAL_NOTES + 7; i++) {
        snprintf(text, sizeof(text), "note %u", i);
        journal_note(d, LOG_WARNING, "note", text);
    }
    assert_int_equal(lines, JOURNAL_NOTES);
    let_time_pass(d);
    assert_int_equal(lines, JOURNAL_NOTES + 1);
    assert_int_equal(left_out, 7);
    assert_int_equal(journal_tick(d), INT64_MAX);
    assert_int_equal(lines, JOURNAL_NOTES + 1);
}

static void one_type_leaves_the_others_their_lines(void **state)
{
    struct daemon *d = *state;
    char text[32];

    for (unsigned i = 0; i < 1000; i++) {
        snprintf(text, sizeof(text), "stranger %u", i);
        journal_note(d, LOG_WARNING, "refused", text);
    }
    lines = 0;
    journal_note(d, LOG_WARNING, "note", "frozen");
    journal_note(d, LOG_INFO, "arbiter", "the arbiter answers");
    journal_note(d, LOG_WARNING, "layout", "one differs");
    assert_int_equal(lines, 3);
}

static void moves_are_all_told(void **state)
{
    struct daemon *d = *state;
    struct session_action a = { .type = SA_MOVED, .from = ST_ALONE, .to = ST_SYNCING, .text = "full sync" };

    for (unsigned i = 0; i < 1000; i++) {
        journal_note(d, LOG_WARNING, "note", i % 2 ? "one" : "two");
        lines = 0;
        journal_state(d, &a);
        assert_int_equal(lines, 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_same_note_again_is_told_once_a_minute, setup, teardown),
        cmocka_unit_test_setup_teardown(two_notes_in_turn_for_an_hour_are_bounded_and_counted, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_left_out_is_told_when_it_is_over, setup, teardown),
        cmocka_unit_test_setup_teardown(one_type_leaves_the_others_their_lines, setup, teardown),
        cmocka_unit_test_setup_teardown(moves_are_all_told, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
