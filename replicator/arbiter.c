/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * arbiter.c - the client of the witness: a state machine without I/O and without a clock
 */
#include "arbiter.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#ifdef ARBITER_MUTANTS
enum arbiter_mutant arbiter_mutant;
#define MUTANT(name) (arbiter_mutant == ARBITER_MUTANT_##name)
#else
#define MUTANT(name) false
#endif

#define MS INT64_C(1000000)
#define BIT(state) (1u << (state))

/* clang-format off */
static const struct {
    const char *name;
    unsigned next;
} states[ARBITER_STATE_NUM] = {
    [ARBITER_DOWN] =       { "down",       BIT(ARBITER_CONNECTING) },
    [ARBITER_CONNECTING] = { "connecting", BIT(ARBITER_IDLE) | BIT(ARBITER_DOWN) },
    [ARBITER_IDLE] =       { "idle",       BIT(ARBITER_WAITING) | BIT(ARBITER_DOWN) },
    [ARBITER_WAITING] =    { "waiting",    BIT(ARBITER_IDLE) | BIT(ARBITER_DOWN) },
};
/* clang-format on */

const char *arbiter_state_name(enum arbiter_state state)
{
    return state < ARBITER_STATE_NUM ? states[state].name : "?";
}

bool arbiter_may_move(enum arbiter_state from, enum arbiter_state to)
{
    return from < ARBITER_STATE_NUM && to < ARBITER_STATE_NUM && states[from].next & BIT(to);
}

void arbiter_config_default(struct arbiter_config *config)
{
    memset(config, 0, sizeof(*config));
    config->ask_ns = 2000 * MS;
    config->heartbeat_ns = 1000 * MS;
    config->reconnect_ns = 500 * MS;
}

int arbiter_init(struct arbiter *a, const struct arbiter_config *config, int64_t now_ns)
{
    if (!wire_vm_name_valid(config->vm) || config->ask_ns <= 0 || config->heartbeat_ns <= 0 ||
        config->reconnect_ns <= 0)
        return -EINVAL;
    memset(a, 0, sizeof(*a));
    a->config = *config;
    a->connect_at_ns = now_ns;
    a->now_ns = now_ns;
    snprintf(a->why, sizeof(a->why), "not connected yet");
    return 0;
}

/* ---- moving ---- */

static void move(struct arbiter *a, enum arbiter_state to)
{
    if (a->state != to && arbiter_may_move(a->state, to))
        a->state = to;
}

/* A direct move back to where the number of unanswered asks says. */
static void settle(struct arbiter *a)
{
    bool waits = a->nr_asks && a->asks[0].sent;

    if (a->state == ARBITER_IDLE || a->state == ARBITER_WAITING)
        move(a, waits ? ARBITER_WAITING : ARBITER_IDLE);
}

static void set_reach(struct arbiter *a, enum arbiter_reach reach, const char *why)
{
    if (a->reach != reach)
        a->want_changed = true;
    a->reach = reach;
    snprintf(a->why, sizeof(a->why), "%s", why);
}

static void start_connect(struct arbiter *a)
{
    move(a, ARBITER_CONNECTING);
    a->link++;
    a->counts.connects++;
    a->want_connect = true;
    /* An attempt that says nothing ends like an ask that is not answered; arbiter_tick() sees to it. */
    a->connect_at_ns = a->now_ns + a->config.ask_ns;
}

/* ---- asks ---- */

static struct arbiter_ask *find_own(struct arbiter *a)
{
    for (unsigned i = 0; i < a->nr_asks; i++) {
        if (!a->asks[i].heartbeat)
            return &a->asks[i];
    }
    return NULL;
}

static void remove_ask(struct arbiter *a, const struct arbiter_ask *ask)
{
    unsigned i = (unsigned)(ask - a->asks);

    a->nr_asks--;
    memmove(&a->asks[i], &a->asks[i + 1], (a->nr_asks - i) * sizeof(a->asks[0]));
}

static void finish(struct arbiter *a, const struct arbiter_ask *ask, enum session_grant grant,
                   const struct arbiter_register *reg, const char *why)
{
    if (!ask->heartbeat) {
        a->outcome = (struct arbiter_outcome){
            .op = ask->op, .grant = grant, .took_ns = a->now_ns - ask->asked_ns};
        if (reg) {
            a->outcome.reg = *reg;
            a->outcome.holder_is_me =
                memcmp(reg->holder, a->config.holder, sizeof(reg->holder)) == 0;
        }
        if (grant == GRANT_UNREACHABLE) {
            a->counts.unreachable++;
            snprintf(a->outcome.why, sizeof(a->outcome.why), "%s", why);
        }
        a->want_outcome = true;
    }
    remove_ask(a, ask);
}

/*
 * The connection is over. The operator's ask is repeated once if the connection had stood before (it may
 * have been dead for long); heartbeats are forgotten.
 */
static void lose(struct arbiter *a, const char *why, bool may_repeat)
{
    bool stood = a->state == ARBITER_IDLE || a->state == ARBITER_WAITING;
    struct arbiter_ask *own;

    move(a, ARBITER_DOWN);
    a->connect_at_ns = a->now_ns + a->config.reconnect_ns;
    set_reach(a, ARBITER_REACH_NO, why);
    own = find_own(a);
    if (own && stood && may_repeat && !own->repeated && !MUTANT(NO_REPEAT)) {
        a->asks[0] = *own;
        a->asks[0].sent = false;
        a->asks[0].repeated = true;
        a->nr_asks = 1;
        start_connect(a);
        return;
    }
    if (own)
        finish(a, own, GRANT_UNREACHABLE, NULL, why);
    a->nr_asks = 0;
}

/* As lose(), and the caller must close the connection. */
static void hang_up(struct arbiter *a, const char *why, bool may_repeat)
{
    a->want_close = true;
    a->close_link = a->link;
    a->want_connect = false;
    lose(a, why, may_repeat);
}

int arbiter_ask(struct arbiter *a, enum wire_arb_op op, uint64_t expect, uint64_t next,
                const uint8_t *nonce, int64_t now_ns)
{
    struct arbiter_ask *ask;

    if ((op != WIRE_ARB_READ && op != WIRE_ARB_CAS) ||
        (op == WIRE_ARB_CAS && (next <= expect || !nonce)))
        return -EINVAL;
    if (find_own(a) || a->want_outcome)
        return -EBUSY;
    a->now_ns = now_ns;
    ask = &a->asks[a->nr_asks++];
    *ask = (struct arbiter_ask){
        .op = op, .tag = ++a->tag, .asked_ns = now_ns, .deadline_ns = now_ns + a->config.ask_ns};
    if (op == WIRE_ARB_CAS) {
        ask->expect = expect;
        ask->next = next;
        memcpy(ask->nonce, nonce, sizeof(ask->nonce));
    }
    a->counts.asks++;
    if (a->state == ARBITER_DOWN)
        start_connect(a);
    return 0;
}

static void ask_heartbeat(struct arbiter *a)
{
    a->heartbeat_at_ns = a->now_ns + a->config.heartbeat_ns;
    if (a->nr_asks)
        return; /* an unanswered ask shows the same */
    a->asks[a->nr_asks++] = (struct arbiter_ask){.op = WIRE_ARB_READ,
                                                 .tag = ++a->tag,
                                                 .heartbeat = true,
                                                 .asked_ns = a->now_ns,
                                                 .deadline_ns = a->now_ns + a->config.ask_ns};
    a->counts.heartbeats++;
}

/* ---- answers ---- */

/* A rule that the answer breaks for this question, or NULL. */
static const char *check_answer(const struct arbiter *a, const struct arbiter_ask *ask,
                                const struct wire_arb_answer *w)
{
    bool holds_ours = w->generation == ask->next && memcmp(w->holder, a->config.holder, 16) == 0 &&
                      memcmp(w->nonce, ask->nonce, 16) == 0;
    static const uint8_t zero[16];

    if (w->tag != ask->tag && !MUTANT(ANY_TAG))
        return "it answered another question";
    if (memcmp(w->vm, a->config.vm, sizeof(w->vm)) != 0 && !MUTANT(ANY_VM))
        return "it answered about another VM";
    if (!w->generation && (memcmp(w->holder, zero, 16) != 0 || memcmp(w->nonce, zero, 16) != 0))
        return "it named a holder of generation 0";
    if (w->result == WIRE_ARB_ERROR)
        return NULL;
    if ((ask->op == WIRE_ARB_READ) != (w->result == WIRE_ARB_VALUE))
        return "it gave an answer that does not fit the question";
    if (w->result == WIRE_ARB_GRANTED && !holds_ours && !MUTANT(GRANTED_UNSEEN))
        return "it said granted, and its register says otherwise";
    if (w->result == WIRE_ARB_REFUSED && (holds_ours || w->generation == ask->expect) &&
        !MUTANT(REFUSED_UNSEEN))
        return "it said refused, and its register says otherwise";
    return NULL;
}

/*
 * A register only ever rises, and changes hands only when it rises. One that does otherwise was restored
 * from an old copy, or is another witness's. But one that is held by nobody was written anew by an operator
 * (witness --restore), who has vouched for its generation.
 */
static void learn(struct arbiter *a, const struct arbiter_register *reg)
{
    static const uint8_t nobody[16];
    bool vouched = memcmp(reg->holder, nobody, 16) == 0 && memcmp(reg->nonce, nobody, 16) == 0;
    bool changed_hands = memcmp(reg->holder, a->known.holder, sizeof(reg->holder)) != 0 ||
                         memcmp(reg->nonce, a->known.nonce, sizeof(reg->nonce)) != 0;
    bool forgetful =
        a->known_valid && (reg->generation < a->known.generation ||
                           (reg->generation == a->known.generation && changed_hands && !vouched));

    if (forgetful != a->forgetful)
        a->want_changed = true;
    a->forgetful = forgetful;
    if (forgetful)
        return;
    a->known = *reg;
    a->known_valid = true;
}

static void conclude(struct arbiter *a, const struct arbiter_ask *ask,
                     const struct wire_arb_answer *w)
{
    struct arbiter_register reg = {.generation = w->generation};
    char text[ARBITER_WHY_BYTES];
    bool forgot;

    memcpy(reg.holder, w->holder, sizeof(reg.holder));
    memcpy(reg.nonce, w->nonce, sizeof(reg.nonce));
    if (w->result == WIRE_ARB_ERROR) {
        finish(a, ask, MUTANT(ERROR_IS_NO) ? GRANT_NO : GRANT_UNREACHABLE, NULL,
               "the witness cannot write its register; see its log");
        return;
    }
    learn(a, &reg);
    forgot = ask->op == WIRE_ARB_CAS && (a->forgetful || reg.generation < ask->expect);
    if (forgot && !MUTANT(AMNESIA_COUNTS)) {
        snprintf(text, sizeof(text),
                 "the witness is at generation %" PRIu64 " and we know of %" PRIu64
                 ": it lost its memory, or is another one",
                 reg.generation,
                 ask->expect > a->known.generation ? ask->expect : a->known.generation);
        finish(a, ask, GRANT_UNREACHABLE, NULL, text);
    } else {
        finish(a, ask, w->result == WIRE_ARB_GRANTED ? GRANT_YES : GRANT_NO, &reg, "");
    }
}

/* Returns a broken rule, or NULL. */
static const char *take_record(struct arbiter *a, const struct wire_record *record)
{
    struct wire_arb_answer answer;
    struct arbiter_ask ask;
    const char *why;

    if (wire_decode_arb_answer(record, &answer))
        return "it sent something else than an answer";
    if (!a->nr_asks || !a->asks[0].sent)
        return "it answered and was not asked";
    ask = a->asks[0];
    why = check_answer(a, &ask, &answer);
    if (why)
        return why;
    a->rtt_ns = a->now_ns - ask.asked_ns;
    set_reach(a, ARBITER_REACH_YES, "");
    conclude(a, &a->asks[0], &answer);
    return NULL;
}

/* ---- what happens ---- */

static bool is_stale(struct arbiter *a, uint32_t link)
{
    bool up = a->state != ARBITER_DOWN;

    if (up && (link == a->link || MUTANT(STALE_LINK)))
        return false;
    a->counts.stale_calls++;
    return true;
}

void arbiter_connected(struct arbiter *a, uint32_t link, int64_t now_ns)
{
    a->now_ns = now_ns;
    if (is_stale(a, link) || a->state != ARBITER_CONNECTING)
        return;
    move(a, ARBITER_IDLE);
    a->writer = (struct wire_writer){.sequence = 0};
    wire_reader_init(&a->reader, WIRE_PEER_WITNESS, a->in, sizeof(a->in));
    ask_heartbeat(a); /* reachable is what has answered, not what was connected */
}

static void garbage(struct arbiter *a, const char *why)
{
    char text[ARBITER_WHY_BYTES];

    a->counts.garbage++;
    snprintf(text, sizeof(text), "the witness broke the protocol: %s", why);
    hang_up(a, text, false);
}

void arbiter_feed(struct arbiter *a, uint32_t link, const void *bytes, size_t len, int64_t now_ns)
{
    const uint8_t *from = bytes;
    struct wire_record record;
    const char *why = NULL;
    int got;

    a->now_ns = now_ns;
    if (is_stale(a, link) || (a->state != ARBITER_IDLE && a->state != ARBITER_WAITING))
        return;
    while (len && !why) {
        size_t room;
        void *to = wire_reader_space(&a->reader, &room);

        if (room > len)
            room = len;
        memcpy(to, from, room);
        wire_reader_commit(&a->reader, room);
        from += room;
        len -= room;
        while (!why && (got = wire_next(&a->reader, &record)) != 0)
            why = got == 1 ? take_record(a, &record) : a->reader.why;
    }
    if (why)
        garbage(a, why);
    settle(a);
}

void arbiter_closed(struct arbiter *a, uint32_t link, const char *why, int64_t now_ns)
{
    a->now_ns = now_ns;
    if (is_stale(a, link))
        return;
    a->want_connect = false;
    lose(a, why && *why ? why : "the witness closed the connection", true);
}

void arbiter_tick(struct arbiter *a, int64_t now_ns)
{
    a->now_ns = now_ns;
    for (unsigned i = 0; i < a->nr_asks; i++) {
        if (a->asks[i].deadline_ns > now_ns)
            continue;
        if (MUTANT(SILENCE_IS_YES) && !a->asks[i].heartbeat) {
            finish(a, &a->asks[i], GRANT_YES, &a->known, "");
            break;
        }
        /* An ask of our own still within its time is repeated when the heartbeat before it was not answered. */
        hang_up(a, "the witness did not answer in time", a->asks[i].heartbeat);
        break;
    }
    if (a->state == ARBITER_CONNECTING && a->connect_at_ns <= now_ns)
        hang_up(a, "no connection to the witness in time", false);
    if (a->state == ARBITER_DOWN && a->connect_at_ns <= now_ns)
        start_connect(a);
    if (a->state == ARBITER_IDLE && a->heartbeat_at_ns <= now_ns)
        ask_heartbeat(a);
}

int64_t arbiter_deadline(const struct arbiter *a)
{
    int64_t at = INT64_MAX;

    if (a->state == ARBITER_DOWN || a->state == ARBITER_CONNECTING)
        at = a->connect_at_ns;
    else if (a->state == ARBITER_IDLE)
        at = a->heartbeat_at_ns;
    for (unsigned i = 0; i < a->nr_asks; i++) {
        if (a->asks[i].deadline_ns < at)
            at = a->asks[i].deadline_ns;
    }
    return at;
}

/* ---- what to do ---- */

static bool send_next(struct arbiter *a, struct arbiter_action *ret)
{
    struct wire_arb_ask w = {.reserved = 0};
    struct arbiter_ask *ask = NULL;
    ssize_t len;

    if (a->state != ARBITER_IDLE && a->state != ARBITER_WAITING)
        return false;
    for (unsigned i = 0; i < a->nr_asks && !ask; i++) {
        if (!a->asks[i].sent)
            ask = &a->asks[i];
    }
    if (!ask)
        return false;
    w.op = ask->op;
    w.expect = ask->expect;
    w.next = ask->next;
    w.tag = ask->tag;
    memcpy(w.vm, a->config.vm, sizeof(w.vm));
    memcpy(w.nonce, ask->nonce, sizeof(w.nonce));
    if (ask->op == WIRE_ARB_CAS)
        memcpy(w.holder, a->config.holder, sizeof(w.holder));
    len = wire_put(&a->writer, ret->bytes, sizeof(ret->bytes), WIRE_ARB_ASK, 0, 0, &w, sizeof(w));
    if (len < 0) /* arbiter_init() and arbiter_ask() have checked every field */
        return false;
    ret->type = ARBITER_SEND;
    ret->link = a->link;
    ret->len = (size_t)len;
    ask->sent = true;
    settle(a);
    return true;
}

static void describe_change(const struct arbiter *a, char ret[ARBITER_WHY_BYTES])
{
    if (a->forgetful)
        snprintf(ret, ARBITER_WHY_BYTES,
                 "the arbiter has forgotten generation %" PRIu64
                 ": it can grant nothing until its register is restored",
                 a->known.generation);
    else if (a->reach == ARBITER_REACH_YES)
        snprintf(ret, ARBITER_WHY_BYTES, "the arbiter answers");
    else
        snprintf(ret, ARBITER_WHY_BYTES, "the arbiter cannot be reached: %.100s", a->why);
}

bool arbiter_next_action(struct arbiter *a, struct arbiter_action *ret)
{
    if (a->want_close) {
        a->want_close = false;
        ret->type = ARBITER_CLOSE;
        ret->link = a->close_link;
        return true;
    }
    if (a->want_connect) {
        a->want_connect = false;
        ret->type = ARBITER_CONNECT;
        ret->link = a->link;
        return true;
    }
    if (send_next(a, ret))
        return true;
    if (a->want_outcome) {
        a->want_outcome = false;
        ret->type = ARBITER_OUTCOME;
        ret->outcome = a->outcome;
        return true;
    }
    if (a->want_changed) {
        a->want_changed = false;
        ret->type = ARBITER_CHANGED;
        describe_change(a, ret->text);
        return true;
    }
    return false;
}
