/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dirty - rewrites random pages at a rate, checks them, and tells how far it got
 *
 * Usage: dirty PAGES RATE_HZ|max [word|line|page]
 *
 * Owns: a memory area of PAGES pages and port 7070. Each step picks a page at random, checks that
 * it still says what this program wrote there last, and rewrites it: one 8-byte word (word), the
 * first 64 bytes (line), or all 4096 bytes with values that do not compress (page). A page that
 * says anything else counts as an error: memory that was lost or mixed up by a failover is found
 * here.
 *
 * On request (a UDP datagram, or a TCP connection, to port 7070) it answers with one line of JSON,
 * so that work done per wall second can be measured from outside; the guest's clock stands still in
 * pauses and is no measure. A datagram that is a decimal number comes back as "id".
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))
#define PAGES_MAX (1u << 22) /* 16 GiB: above any guest the lab makes */
#define RATE_MAX 100000000ull
#define PORT 7070
#define BATCH_PAGES 1024 /* between two looks at the sockets */
#define IDLE_MS 5        /* how long a rate-limited load sleeps between batches */
#define NS_PER_S 1000000000ull

enum pattern { PATTERN_WORD, PATTERN_LINE, PATTERN_PAGE, PATTERN_NUM };

static const struct {
    const char *name;
    size_t nr_words; /* written from the start of the page */
} patterns[PATTERN_NUM] = {
    [PATTERN_WORD] = {"word", 1},
    [PATTERN_LINE] = {"line", 8},
    [PATTERN_PAGE] = {"page", PAGE_WORDS},
};

struct load {
    uint64_t *area;    /* nr_pages pages, mapped */
    uint32_t *laps;    /* how often each page was rewritten: what its content must follow from */
    uint32_t nr_pages; /* > 0 */
    uint64_t rate_hz;  /* pages per second; 0 = as fast as it goes */
    enum pattern pattern;
    uint64_t random;   /* xorshift state, never 0 */
    uint64_t written;  /* pages rewritten since the start */
    uint64_t errors;   /* pages that did not hold what was written there last */
    uint64_t start_ns;
};

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
}

/* What word w of page i holds after its lap-th rewriting (lap 0: the fresh, zero page). */
static uint64_t expected(uint32_t i, uint32_t lap, size_t w)
{
    return lap ? mix(((uint64_t)i << 32 | lap) + w * 0x9e3779b97f4a7c15ull) : 0;
}

static void rewrite_page(struct load *load)
{
    size_t nr_words = patterns[load->pattern].nr_words;
    uint32_t i, lap;
    uint64_t *page;
    size_t w;

    load->random ^= load->random << 13;
    load->random ^= load->random >> 7;
    load->random ^= load->random << 17;
    i = (uint32_t)((load->random >> 32) * load->nr_pages >> 32);
    page = load->area + (size_t)i * PAGE_WORDS;
    lap = load->laps[i];
    /* First and last word: a page that was only half taken over shows too. */
    if (page[0] != expected(i, lap, 0) || page[nr_words - 1] != expected(i, lap, nr_words - 1))
        load->errors++;
    lap = lap + 1 ? lap + 1 : 1;
    load->laps[i] = lap;
    for (w = 0; w < nr_words; w++)
        page[w] = expected(i, lap, w);
    load->written++;
}

static int format_report(const struct load *load, const char *id, char *buf, size_t size)
{
    uint64_t up_us = (now_ns() - load->start_ns) / 1000;

    return snprintf(buf, size,
                    "{\"pages\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"set\": %" PRIu32
                    ", \"rate_hz\": %" PRIu64 ", \"pattern\": \"%s\", \"guest_us\": %" PRIu64
                    "%s%s}\n",
                    load->written, load->errors, load->nr_pages, load->rate_hz,
                    patterns[load->pattern].name, up_us, *id ? ", \"id\": " : "", id);
}

static void answer_udp(const struct load *load, int fd)
{
    struct sockaddr_in6 from;
    socklen_t from_len = sizeof(from);
    char id[20] = "", report[320];
    ssize_t len;

    len = recvfrom(fd, id, sizeof(id) - 1, MSG_DONTWAIT, (struct sockaddr *)&from, &from_len);
    if (len < 0)
        return;
    id[len] = '\0';
    if (len > 1 && id[len - 1] == '\n')
        id[--len] = '\0';
    if (strspn(id, "0123456789") != (size_t)len || (len > 1 && id[0] == '0'))
        id[0] = '\0';
    len = format_report(load, id, report, sizeof(report));
    (void)!sendto(fd, report, (size_t)len, MSG_DONTWAIT, (struct sockaddr *)&from, from_len);
}

static void answer_tcp(const struct load *load, int fd)
{
    char report[320];
    int conn = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    int len;

    if (conn < 0)
        return;
    len = format_report(load, "", report, sizeof(report));
    (void)!send(conn, report, (size_t)len, MSG_NOSIGNAL);
    shutdown(conn, SHUT_WR);
    close(conn);
}

static int open_port(int type, int *ret_fd)
{
    struct sockaddr_in6 addr = {.sin6_family = AF_INET6, .sin6_port = htons(PORT)};
    int fd = socket(AF_INET6, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    int err;

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
        (type == SOCK_STREAM && listen(fd, 16) < 0)) {
        err = -errno;
        close(fd);
        return err;
    }
    *ret_fd = fd;
    return 0;
}

/* Pages due at now_ns. Time that the guest did not run is not made up for in one burst. */
static uint64_t pages_due(const struct load *load, uint64_t *last_ns, double *credit)
{
    uint64_t now = now_ns();

    if (!load->rate_hz)
        return BATCH_PAGES;
    *credit += (double)(now - *last_ns) * (double)load->rate_hz / (double)NS_PER_S;
    *last_ns = now;
    if (*credit > (double)load->rate_hz / 10.0 + 1.0)
        *credit = (double)load->rate_hz / 10.0 + 1.0;
    return (uint64_t)*credit;
}

static void run(struct load *load, int udp, int tcp)
{
    struct pollfd fds[] = {{.fd = udp, .events = POLLIN}, {.fd = tcp, .events = POLLIN}};
    uint64_t last_ns = now_ns();
    double credit = 0;

    for (;;) {
        uint64_t due = pages_due(load, &last_ns, &credit);
        uint64_t todo = due < BATCH_PAGES ? due : BATCH_PAGES;

        credit -= load->rate_hz ? (double)todo : 0;
        for (uint64_t n = 0; n < todo; n++)
            rewrite_page(load);
        if (poll(fds, 2, due > todo || !load->rate_hz ? 0 : IDLE_MS) <= 0)
            continue;
        if (fds[0].revents)
            answer_udp(load, udp);
        if (fds[1].revents)
            answer_tcp(load, tcp);
    }
}

static bool parse_number(const char *text, uint64_t max, uint64_t *ret)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno || end == text || *end || *text == '-' || value < 1 || value > max)
        return false;
    *ret = value;
    return true;
}

static bool parse_args(int argc, char **argv, struct load *load)
{
    uint64_t nr_pages;
    int p;

    if (argc < 3 || argc > 4 || !parse_number(argv[1], PAGES_MAX, &nr_pages))
        return false;
    load->nr_pages = (uint32_t)nr_pages;
    load->rate_hz = 0;
    if (strcmp(argv[2], "max") && !parse_number(argv[2], RATE_MAX, &load->rate_hz))
        return false;
    load->pattern = PATTERN_WORD;
    if (argc < 4)
        return true;
    for (p = 0; p < PATTERN_NUM; p++) {
        if (!strcmp(argv[3], patterns[p].name)) {
            load->pattern = (enum pattern)p;
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    struct load load = {.random = 0x706f6c6c7578ull};
    int udp, tcp, err;

    if (!parse_args(argc, argv, &load)) {
        fprintf(stderr, "usage: dirty PAGES RATE_HZ|max [word|line|page]\n");
        return 64;
    }
    load.laps = calloc(load.nr_pages, sizeof(*load.laps));
    load.area = mmap(NULL, (size_t)load.nr_pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (!load.laps || load.area == MAP_FAILED) {
        fprintf(stderr, "dirty: no memory for %" PRIu32 " pages\n", load.nr_pages);
        return 1;
    }
    err = open_port(SOCK_DGRAM, &udp);
    if (!err)
        err = open_port(SOCK_STREAM, &tcp);
    if (err) {
        fprintf(stderr, "dirty: port %d: %s\n", PORT, strerror(-err));
        return 1;
    }
    load.start_ns = now_ns();
    run(&load, udp, tcp);
}
