/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_json_strict.c - what is JSON is taken, what is not is refused, and the version of json-c does not show
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <json-c/json.h>

#include "../../qmp-client/json_strict.h"

#define NR(array) (sizeof(array) / sizeof((array)[0]))

static struct json_object *parse(const char *text, size_t len)
{
    struct json_tokener *t = json_strict_new(8);
    struct json_object *o;

    assert_non_null(t);
    o = json_strict_parse(t, text, len);
    json_tokener_free(t);
    return o;
}

static void text_is_taken_as_it_is_written(void **state)
{
    static const char *const words[] = { "", "plain", "\xc2\x80", "gr\xc3\xbc\xc3\x9f", "\xe2\x82\xac", "\xef\xbf\xbf",
                                         "\xf0\x90\x80\x80", "a\xf0\x9f\x98\x80z", "\xf4\x8f\xbf\xbf" };

    (void)state;
    for (size_t i = 0; i < NR(words); i++) {
        char text[64];
        int len = snprintf(text, sizeof(text), "{\"k\\u20ac\": \"%s\"}", words[i]);
        struct json_object *o = parse(text, (size_t)len), *value = NULL;

        assert_non_null(o);
        assert_true(json_object_object_get_ex(o, "k\xe2\x82\xac", &value));
        assert_string_equal(json_object_get_string(value), words[i]);
        json_object_put(o);
    }
}

static void what_is_no_utf8_is_refused(void **state)
{
    static const char *const bad[] = { "\x80", "\xc3", "\xc0\xaf", "\xc1\xbf", "\xe2\x82", "\xe0\x80\x80", "\xed\xa0\x80",
                                       "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xff", "\xe2\x28\xa1" };

    (void)state;
    for (size_t i = 0; i < NR(bad); i++) {
        char text[64];
        int len = snprintf(text, sizeof(text), "{\"k\": \"%s\"}", bad[i]);

        assert_null(parse(text, (size_t)len));
    }
    assert_null(parse("{\"k\": \"\xe2\x82\xac", 10)); /* cut in a character */
}

static void what_is_not_one_json_object_is_refused(void **state)
{
    static const char *const bad[] = { "", "{", "[]", "1", "\"a\"", "null", "{}{}", "{} x", "{\"a\": 1,}",
                                       "{\"a\": 01}", "{\"a\": /* c */ 1}", "{\xe2\x82\xac: 1}",
                                       "{\"a\":[[[[[[[[[1]]]]]]]]]}" };

    (void)state;
    for (size_t i = 0; i < NR(bad); i++) {
        struct json_object *o = parse(bad[i], strlen(bad[i]));
        if (o)
            fail_msg("taken: %s", bad[i]);
    }
}

static void a_tokener_is_ready_again_after_a_refusal(void **state)
{
    struct json_tokener *t = json_strict_new(8);
    struct json_object *o;

    (void)state;
    assert_null(json_strict_parse(t, "{\"a\": ", 6));
    o = json_strict_parse(t, "{\"b\": 1}", 8);
    assert_non_null(o);
    assert_int_equal(json_object_object_length(o), 1);
    json_object_put(o);
    json_tokener_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_taken_as_it_is_written),
        cmocka_unit_test(what_is_no_utf8_is_refused),
        cmocka_unit_test(what_is_not_one_json_object_is_refused),
        cmocka_unit_test(a_tokener_is_ready_again_after_a_refusal),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
