/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * test_layout - LAYOUT's text: its grammar, its order, and how differences are told
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "replicator/layout.h"
#include "replicator/wire.h"
#include "seed.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static char told[WIRE_TEXT_MAX_BYTES + 1];

static int diff(const char *here, const char *there, size_t cap)
{
    const char *why = "";

    memset(told, 0x5a, sizeof(told));
    return layout_diff(here, strlen(here), there, strlen(there), told, cap, &why);
}

static void broken_texts_are_refused(void **state)
{
    static const struct {
        const char *text;
        size_t len;
        const char *why; /* NULL: fine */
    } texts[] = {
        {"", 0, NULL},
        {"a=b\n\0\0\0\0", 8, NULL},
        {"a=b\n", 4, NULL},
        {"a=b\nxyz", 4, NULL}, /* what follows the text is not looked at */
        {"a=\nb==\n\0", 8, NULL},
        {"\0\0\0\0\0\0\0", 7, NULL},
        {"ram:a=1\nram:a-b=2\n", 18, NULL}, /* sorted by key; by line it would be the other way round */
        {"ram:a-b=2\nram:a=1\n", 18, "LAYOUT's keys are not sorted, each once"},
        {"b=1\na=1\n", 8, "LAYOUT's keys are not sorted, each once"},
        {"a=1\na=2\n", 8, "LAYOUT's keys are not sorted, each once"},
        {"a=1\nb=2", 7, "LAYOUT's last line is not ended"},
        {"a=1\nb\n", 6, "LAYOUT has a line without '='"},
        {"a=1\n\n", 5, "LAYOUT has a line without '='"},
        {"=1\n", 3, "LAYOUT has a line without a key"},
        {"a\x1b=1\n", 5, "LAYOUT is not printable UTF-8"},
        {"a=\xff\n", 4, "LAYOUT is not printable UTF-8"},
        {"a=\xc3\n", 4, "LAYOUT is not printable UTF-8"},
        {"a=b\0c\n", 6, "LAYOUT is not printable UTF-8"},
        {"a=b\n\0c=d", 8, "LAYOUT is not padded with at most 7 zero bytes"},
        {"a=b\n\0\0\0\0\0\0\0\0", 12, "LAYOUT is not padded with at most 7 zero bytes"},
        {"\0\0\0\0\0\0\0\0", 8, "LAYOUT is not padded with at most 7 zero bytes"},
    };
    static const char large[LAYOUT_MAX_BYTES + 8];
    const char *why = NULL;

    (void)state;
    for (size_t i = 0; i < COUNT(texts); i++) {
        int ret;

        why = NULL;
        ret = layout_check(texts[i].text, texts[i].len, &why);
        assert_int_equal(ret < 0, texts[i].why != NULL);
        if (texts[i].why && (!why || strcmp(why, texts[i].why) != 0))
            fail_msg("text %zu: said \"%s\", not \"%s\"", i, why, texts[i].why);
        why = NULL; /* neither side may be broken */
        assert_int_equal(layout_diff("a=1\n", 4, texts[i].text, texts[i].len, told, sizeof(told), &why) < 0,
                         texts[i].why != NULL);
        assert_int_equal(layout_diff(texts[i].text, texts[i].len, "a=1\n", 4, told, sizeof(told), &why) < 0,
                         texts[i].why != NULL);
    }
    assert_int_equal(layout_check(large, sizeof(large), &why), -EPROTO);
    assert_string_equal(why, "LAYOUT is over 262144 bytes");
}

static void lines_come_out_in_order(void **state)
{
    const char text[] = "cpus=2\nnic:0=virtio 52:54=x\nqemu=\n\0\0\0";
    const char *why = NULL;
    struct layout_iter it;
    struct layout_line line;

    (void)state;
    layout_iter_init(&it, text, sizeof(text) - 1);
    assert_int_equal(layout_next(&it, &line, &why), 1);
    assert_int_equal(line.key_len, 4);
    assert_memory_equal(line.key, "cpus", 4);
    assert_int_equal(line.value_len, 1);
    assert_int_equal(layout_next(&it, &line, &why), 1);
    assert_memory_equal(line.value, "virtio 52:54=x", line.value_len);
    assert_int_equal(layout_next(&it, &line, &why), 1);
    assert_int_equal(line.value_len, 0);
    assert_int_equal(layout_next(&it, &line, &why), 0);
    assert_int_equal(layout_next(&it, &line, &why), 0);
}

#define LINE(k, v) {.key = k, .key_len = strlen(k), .value = v, .value_len = strlen(v)}

static void building_sorts_and_checks(void **state)
{
    struct layout_line lines[] = {LINE("ram:a-b", "3"), LINE("qemu", "10=0"), LINE("ram:a", "")};
    struct layout_line twice[] = {LINE("a", "1"), LINE("b", "1"), LINE("a", "2")};
    struct layout_line equals[] = {LINE("a=b", "1")};
    struct layout_line nameless[] = {LINE("", "1")};
    struct layout_line control[] = {LINE("a", "1\n")};
    const char want[] = "qemu=10=0\nram:a=\nram:a-b=3\n";
    const char *why = NULL;
    static char value[LAYOUT_MAX_BYTES], large[LAYOUT_MAX_BYTES + 100];
    struct layout_line longest[] = {{.key = "k", .key_len = 1, .value = value, .value_len = LAYOUT_MAX_BYTES - 3}};
    char text[64];

    (void)state;
    memset(value, 'v', sizeof(value));
    assert_int_equal(layout_build(longest, 1, large, sizeof(large)), LAYOUT_MAX_BYTES);
    longest[0].value_len++;
    assert_int_equal(layout_build(longest, 1, large, sizeof(large)), -ENOSPC);
    assert_int_equal(layout_build(lines, 3, text, sizeof(text)), strlen(want));
    assert_memory_equal(text, want, strlen(want));
    assert_int_equal(layout_check(text, strlen(want), &why), 3);
    assert_int_equal(layout_build(lines, 3, text, strlen(want)), strlen(want));
    assert_int_equal(layout_build(lines, 3, text, strlen(want) - 1), -ENOSPC);
    assert_int_equal(layout_build(lines, 0, text, sizeof(text)), 0);
    assert_int_equal(layout_build(twice, 3, text, sizeof(text)), -EINVAL);
    assert_int_equal(layout_build(equals, 1, text, sizeof(text)), -EINVAL);
    assert_int_equal(layout_build(nameless, 1, text, sizeof(text)), -EINVAL);
    assert_int_equal(layout_build(control, 1, text, sizeof(text)), -EINVAL);
}

static void every_kind_of_difference_is_told_in_words(void **state)
{
    static const struct {
        const char *here, *there, *words;
    } pairs[] = {
        {"ram:pc.ram=536870912\n", "ram:pc.ram=268435456\n",
         "RAM block pc.ram: 536870912 bytes here, 268435456 bytes there"},
        {"section:0000:00:03.0/virtio-net:0=11\n", "section:0000:00:03.0/virtio-net:0=12\n",
         "device section 0000:00:03.0/virtio-net:0: version 11 here, version 12 there"},
        {"section:0000:00:03.0/virtio-net:0=11\n", "",
         "device section 0000:00:03.0/virtio-net:0: version 11 here, missing there"},
        {"", "nic:0=e1000 52:54:00:12:34:56\n", "network card 0: missing here, e1000 52:54:00:12:34:56 there"},
        {"cpus=2\n", "cpus=4\n", "number of processors: 2 here, 4 there"},
        {"machine=pc\n", "machine=q35\n", "machine type: pc here, q35 there"},
        {"qemu=10.0.2\n", "qemu=10.0.13\n", "QEMU: 10.0.2 here, 10.0.13 there"},
        {"qemux=1\n", "qemux=2\n", "qemux: 1 here, 2 there"},
        {"x=a\n", "x=\n", "x: a here,  there"},
        {"a=1\nc=1\n", "b=1\nc=1\n", "a: 1 here, missing there; b: missing here, 1 there"},
        {"a=1\n", "a=1\n", ""},
        {"", "", ""},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(pairs); i++) {
        int nr = diff(pairs[i].here, pairs[i].there, sizeof(told));

        assert_string_equal(told, pairs[i].words);
        assert_int_equal(nr, pairs[i].words[0] ? 1 + (strstr(pairs[i].words, "; ") != NULL) : 0);
    }
}

static void at_most_ten_are_told_and_all_are_counted(void **state)
{
    char here[1000] = "", there[1000] = "";
    int separators = 0;

    (void)state;
    for (int i = 0; i < 26; i++) {
        snprintf(here + 4 * i, 5, "%c=1\n", 'a' + i);
        snprintf(there + 4 * i, 5, "%c=%d\n", 'a' + i, i < 13 ? 2 : 1);
    }
    assert_int_equal(diff(here, there, sizeof(told)), 13);
    for (const char *p = told; *p; p++)
        separators += *p == ';';
    assert_int_equal(separators, 10);
    assert_non_null(strstr(told, "j: 1 here, 2 there; and 3 more"));
    assert_null(strstr(told, "k: "));
}

static void what_is_told_fits(void **state)
{
    static char here[20000], there[20000];
    const char *why;
    size_t n = 0;

    (void)state;
    for (int i = 0; i < 12; i++) /* long names and values, of characters that may not be cut */
        n += (size_t)snprintf(here + n, sizeof(here) - n, "section:%c%0200d=\xe2\x82\xac%0300d\n", 'a' + i, 0, 0);
    memcpy(there, here, n);
    for (char *p = there; (p = strstr(p, "=\xe2")); p++)
        p[4] = '9';
    for (size_t cap = 1; cap <= sizeof(told); cap++) {
        memset(told, 0x5a, sizeof(told));
        assert_int_equal(layout_diff(here, n, there, n, told, cap, &why), 12);
        assert_non_null(memchr(told, '\0', cap));
        assert_true(wire_text_valid(told, strlen(told)));
        if (cap < sizeof(told))
            assert_int_equal(told[cap], 0x5a);
    }
    assert_non_null(strstr(told, "..."));
    assert_non_null(strstr(told, "; and 2 more"));
}

static void random_changes_stay_in_bounds(void **state)
{
    static const char base[] = "cpus=2\nmachine=pc\nnic:0=virtio 52\nram:a=1\nsection:x:0=3\n";
    int refused = 0, differ = 0, same = 0;

    (void)state;
    seed_start("random changes");
    for (int round = 0; round < 20000; round++) {
        char text[sizeof(base)];
        const char *why = NULL;
        int ret;

        memcpy(text, base, sizeof(base));
        for (size_t n = seed_below(3); n; n--)
            text[seed_below(sizeof(base) - 1)] = (char)(seed_below(2) ? "=\n\0a"[seed_below(4)] : (char)seed_next());
        ret = layout_diff(base, sizeof(base) - 1, text, sizeof(base) - 1, told, sizeof(told), &why);
        refused += ret < 0;
        differ += ret > 0;
        same += ret == 0;
        assert_int_equal(ret == 0, memcmp(text, base, sizeof(base) - 1) == 0);
    }
    assert_true(refused > 2000 && differ > 2000 && same > 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_texts_are_refused),
        cmocka_unit_test(lines_come_out_in_order),
        cmocka_unit_test(building_sorts_and_checks),
        cmocka_unit_test(every_kind_of_difference_is_told_in_words),
        cmocka_unit_test(at_most_ten_are_told_and_all_are_counted),
        cmocka_unit_test(what_is_told_fits),
        cmocka_unit_test(random_changes_stay_in_bounds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
