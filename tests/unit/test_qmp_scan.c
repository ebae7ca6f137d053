/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_qmp_scan.c - the scanner finds where a message ends, and refuses what must not be parsed
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "qmp-client/qmp.h"
#include "qmp-client/qmp_scan.h"

static int scan(const char *bytes, size_t len, size_t *ret_used)
{
    struct qmp_scan s = {0};

    return qmp_scan(&s, bytes, len, ret_used);
}

/* piece by piece, at every possible cut */
static void assert_scan(const char *text, size_t len, int expected, size_t expected_used)
{
    for (size_t cut = 0; cut <= len; cut++) {
        struct qmp_scan s = {0};
        size_t a = 0, b = 0;
        int r = qmp_scan(&s, text, cut, &a);

        if (r == 0) {
            assert_int_equal(a, cut);
            r = qmp_scan(&s, text + cut, len - cut, &b);
        }
        if (r != expected)
            fail_msg("%s cut at %zu: %d, not %d", text, cut, r, expected);
        if (r >= 0)
            assert_int_equal(a + b, expected_used);
    }
}

static void ends_at_the_bracket_that_opened_it(void **state)
{
    static const char *const texts[] = {
        "{}",
        "{\"a\": [1, -2.5e+3, true, false, null, {}, []]}",
        "{\"}\": \"]}\\\"}\\\\\"}",
        "{\"a\": \"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xed\x9f\xbf \xee\x80\x80 "
        "\xf4\x8f\xbf\xbf\"}",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        char more[128];
        size_t len = strlen(texts[i]);

        strcpy(more, texts[i]);
        strcpy(more + len, "{\"next\"");
        assert_scan(more, len, 1, len);
    }
}

static void more_is_wanted_until_then(void **state)
{
    static const char *const texts[] = {"",     "{",          "{\"a",       "{\"a\\",
                                        "{\"}", "{\"a\": [}", "{\"\xe2\x82"};

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        assert_scan(texts[i], strlen(texts[i]), 0, strlen(texts[i]));
}

static void what_is_not_an_object_in_utf8_is_refused(void **state)
{
    static const struct {
        const char *text;
        size_t len;
    } bad[] = {
#define BAD(s) {s, sizeof(s) - 1}
        BAD("[]"),
        BAD("x"),
        BAD("1"),
        BAD("\"a\""),
        BAD("\0"),
        BAD(" {}"),
        BAD("}"),
        BAD("{\0"),
        BAD("{\"\0"),
        BAD("{\"a\nb\"}"),
        BAD("{\"\x1f\"}"),
        BAD("{\"\\\n\"}"),
        BAD("{\"a\": NaN}"),
        BAD("{\"a\": Infinity}"),
        BAD("{/* */}"),
        BAD("{'a': 1}"),
        BAD("{\x7f}"),
        BAD("{\"\x80\"}"),
        BAD("{\"\xc0\xaf\"}"),
        BAD("{\"\xc1\xbf\"}"),
        BAD("{\"\xe0\x9f\xbf\"}"),
        BAD("{\"\xed\xa0\x80\"}"),
        BAD("{\"\xf0\x8f\xbf\xbf\"}"),
        BAD("{\"\xf4\x90\x80\x80\"}"),
        BAD("{\"\xf5\x80\x80\x80\"}"),
        BAD("{\"\xff\"}"),
        BAD("{\"\xe2\x82\"}"),
        BAD("{\"\xc3\\\"}"),
        BAD("{\"\\\xc3\xa9\"}"),
        BAD("{\"a\": \xc3\xa9}"),
        BAD("{\"a\": 11111111111111111111111111111111111111111111111111111111111111111}"),
#undef BAD
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_scan(bad[i].text, bad[i].len, -EPROTO, 0);
}

static void the_limits_are_where_the_header_says(void **state)
{
    size_t len = QMP_MESSAGE_MAX_BYTES + 1, used = 0;
    char *text = malloc(len);

    (void)state;
    assert_non_null(text);
    /* size */
    memset(text, 'a', len);
    memcpy(text, "{\"", 2);
    memcpy(text + QMP_MESSAGE_MAX_BYTES - 2, "\"}", 2);
    assert_int_equal(scan(text, len, &used), 1);
    assert_int_equal(used, QMP_MESSAGE_MAX_BYTES);
    memset(text + QMP_MESSAGE_MAX_BYTES - 2, 'a', 3);
    assert_int_equal(scan(text, len, &used), -EMSGSIZE);
    /* depth */
    memset(text, '{', len);
    assert_int_equal(scan(text, QMP_MESSAGE_MAX_DEPTH, &used), 0);
    assert_int_equal(scan(text, QMP_MESSAGE_MAX_DEPTH + 1, &used), -EMSGSIZE);
    /* memory once parsed: 4 MiB of empty objects would be a gigabyte */
    for (size_t i = 0; i + 3 <= len; i += 3)
        memcpy(text + i, "{},", 3);
    text[0] = '{';
    text[1] = '[';
    text[2] = ' ';
    assert_int_equal(scan(text, 100000, &used), 0);
    assert_int_equal(scan(text, len - len % 3, &used), -EMSGSIZE);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ends_at_the_bracket_that_opened_it),
        cmocka_unit_test(more_is_wanted_until_then),
        cmocka_unit_test(what_is_not_an_object_in_utf8_is_refused),
        cmocka_unit_test(the_limits_are_where_the_header_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
