/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fuzz_qmp.c - a hostile QEMU and an erratic caller, for libFuzzer
 *
 * The input is a list of steps: an opcode byte, then for a feed a length byte and that many bytes.
 * After each step the promises of qmp.h are checked: one answer for each command, QMP_CLOSED last
 * and once.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "qmp-client/qmp.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct run {
    struct qmp_client *c;
    int64_t now;
    uint64_t accepted, answered;
    uint64_t open[QMP_IN_FLIGHT_MAX * 2]; /* ids waiting for their one answer */
    size_t open_nr;
    bool ready, closed;
};

static void check(bool holds)
{
    if (!holds)
        abort();
}

static void answer(struct run *r, uint64_t id)
{
    for (size_t i = 0; i < r->open_nr; i++) {
        if (r->open[i] == id) {
            r->open[i] = r->open[--r->open_nr];
            return;
        }
    }
    abort();
}

static void take(struct run *r)
{
    struct qmp_message m;

    while (qmp_next(r->c, &m)) {
        check(!r->closed);
        switch (m.type) {
        case QMP_READY:
            check(!r->ready && m.version);
            r->ready = true;
            break;
        case QMP_REPLY:
            check(r->ready);
            answer(r, m.id);
            break;
        case QMP_ERROR:
            check(r->ready && m.error < 0 && strlen(m.name) < SIZE_MAX && m.desc);
            answer(r, m.id);
            break;
        case QMP_EVENT:
            check(m.name && m.timestamp_us >= -1);
            break;
        case QMP_CLOSED:
            check(m.error < 0 && m.error == qmp_error(r->c) && m.desc && !r->open_nr);
            r->closed = true;
            break;
        default:
            abort();
        }
        qmp_message_fini(&m);
    }
    check(!qmp_error(r->c) || r->closed);
}

static void feed(struct run *r, const void *bytes, size_t len, bool lazy)
{
    const char *p = bytes;

    while (len) {
        ssize_t n = qmp_feed(r->c, p, len);

        check(n <= (ssize_t)len);
        if (!lazy)
            take(r);
        if (n <= 0) {
            check(lazy || n < 0);
            return;
        }
        p += n;
        len -= (size_t)n;
    }
}

static void command(struct run *r, uint8_t arg)
{
    uint64_t id;
    int e = qmp_command(r->c, "x", NULL, arg & 1 ? 0 : -1, r->now + arg, &id);

    if (e) {
        check(e == -EAGAIN || e == -EBUSY || e == qmp_error(r->c));
        return;
    }
    check(r->ready && r->open_nr < QMP_IN_FLIGHT_MAX * 2);
    r->open[r->open_nr++] = id;
}

static void output(struct run *r, uint8_t arg)
{
    static volatile char sink;
    const void *p;
    size_t len;
    int fd;

    if (!qmp_output(r->c, &p, &len, &fd))
        return;
    check(len > 0);
    sink = ((const char *)p)[len - 1];
    (void)sink;
    if (arg & 1) /* else it stays lent */
        check(qmp_output_done(r->c, arg / 2 > len ? len : arg / 2u) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char hello[] =
        "{\"QMP\":{\"version\":{\"qemu\":{\"major\":10,\"minor\":0,\"micro\":0}}}}";
    struct run r = {0};

    check(qmp_new(1000, &r.c) == 0);
    if (size && data[0] & 1) { /* half of the inputs begin past the handshake */
        feed(&r, hello, sizeof(hello) - 1, false);
        output(&r, 255);
        feed(&r, "{\"return\":{},\"id\":1}", 20, false);
        for (int i = 0; i < 3; i++)
            command(&r, (uint8_t)(2 * i));
    }
    for (size_t i = 1; i + 1 < size;) {
        uint8_t op = data[i], arg = data[i + 1];
        size_t len = arg < size - i - 2 ? arg : size - i - 2;

        i += 2;
        switch (op % 8) {
        case 0:
        case 1:
        case 2:
            feed(&r, data + i, len, op % 8 == 2);
            i += len;
            break;
        case 3:
            command(&r, arg);
            break;
        case 4:
            output(&r, arg);
            break;
        case 5:
            r.now += arg;
            qmp_expire(r.c, r.now);
            check(qmp_next_deadline(r.c) > r.now);
            break;
        case 6:
            if (arg < 8)
                qmp_closed(r.c, -(int)arg);
            break;
        case 7:
            qmp_output_done(r.c, arg);
            break;
        }
        if (op % 8 != 2)
            take(&r);
    }
    qmp_closed(r.c, 0);
    take(&r);
    check(r.closed && !r.open_nr);
    qmp_free(r.c);
    return 0;
}
