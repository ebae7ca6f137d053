/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz_layout - any two texts as LAYOUTs
 *
 * First byte: room for the words; second: where the input is cut into two texts (in 256ths). What is told must be printable,
 * ended, within its room, and empty exactly when the texts have the same lines; and telling it from the other side
 * must find as many differences. Lines that pass must come back from layout_build().
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "replicator/layout.h"
#include "replicator/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LINES_MAX 64

static void rebuild(const char *text, size_t len)
{
    static char again[LAYOUT_MAX_BYTES];
    struct layout_line lines[LINES_MAX];
    struct layout_iter it;
    const char *why;
    size_t nr = 0;
    ssize_t n;

    layout_iter_init(&it, text, len);
    while (nr < LINES_MAX && layout_next(&it, &lines[nr], &why) == 1)
        nr++;
    for (size_t i = 0; i < nr / 2; i++) { /* backwards, so that there is something to sort */
        struct layout_line swap = lines[i];

        lines[i] = lines[nr - 1 - i];
        lines[nr - 1 - i] = swap;
    }
    n = layout_build(lines, nr, again, sizeof(again));
    assert(n >= 0 && (size_t)n <= len && !memcmp(again, text, (size_t)n));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t cap, cut;
    const char *why = NULL;
    char *here, *there, *told;
    int a, b;

    if (size < 2)
        return 0;
    cap = 1 + (size_t)data[0] * 16;
    cut = (size - 2) * data[1] / 256;
    here = malloc(cut + 1);
    there = malloc(size - 2 - cut + 1);
    told = malloc(cap);
    assert(here && there && told);
    memcpy(here, data + 2, cut);
    memcpy(there, data + 2 + cut, size - 2 - cut);
    here = realloc(here, cut ? cut : 1); /* no byte to spare */
    there = realloc(there, size - 2 - cut ? size - 2 - cut : 1);
    assert(here && there);
    a = layout_diff(here, cut, there, size - 2 - cut, told, cap, &why);
    if (a < 0) {
        assert(why);
    } else {
        size_t len = strnlen(told, cap);

        assert(len < cap && wire_text_valid(told, len));
        assert(a > 0 || !len);
        b = layout_diff(there, size - 2 - cut, here, cut, told, cap, &why);
        assert(a == b);
        rebuild(here, cut);
        rebuild(there, size - 2 - cut);
    }
    free(told);
    free(there);
    free(here);
    return 0;
}
