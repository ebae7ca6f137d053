/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session.c - the dispatcher of a session: one event in, actions out, one mover, one deadline
 *
 * Owns: the state and the link's introduction. What each side does with epochs stands in
 * session_capture.c (active) and session_standby.c, generations in session_claim.c.
 */
#include <string.h>

#include "session_private.h"

#ifdef SESSION_MUTANTS
enum session_mutant session_mutant;
#endif

void session_config_default(struct session_config *c)
{
    *c = (struct session_config){
        .heartbeat_ns = 20000000,
        .peer_timeout_ns = 120000000,
        .hello_timeout_ns = 5000000000,
        .reconnect_ns = 500000000,
        .arbiter_retry_ns = 200000000,
        .yield_ns = 2000000000,
        .operator_ns = 10000000000,
        .hold_freeze_ns = 5000000000,
        .epoch_max_ns = 100000000,
        .pause_permille = 100,
        .nr_slots = 3,
        .inflight_max = 3,
        .precopy_pages = 1024,
        .sync_rounds_max = 30,
        .sync_pages = 2048,
    };
}

void session_init(struct session *s, const struct session_config *config)
{
    memset(s, 0, sizeof(*s));
    s->config = *config;
    ASSERT(config->nr_slots >= 2 && config->nr_slots <= SESSION_SLOTS_MAX);
    ASSERT(config->pause_permille >= 1 && config->pause_permille <= 1000);
    s->connect_at_ns = s->ask_at_ns = s->end_at_ns = s->output_at_ns = s->operator_at_ns = NEVER;
    s->output = OUTPUT_PASS;
}

struct session_action *session_act(struct session *s, enum session_action_type type)
{
    struct session_action *a;

    ASSERT(s->out->nr < SESSION_ACTIONS_MAX);
    a = &s->out->list[s->out->nr++];
    memset(a, 0, sizeof(*a));
    a->type = type;
    return a;
}

struct session_action *session_act_done(struct session *s, enum session_action_type type,
                                        uint64_t *ret_wait)
{
    struct session_action *a = session_act(s, type);

    a->serial = *ret_wait = ++s->serial;
    return a;
}

void session_move(struct session *s, enum session_state to, const char *reason)
{
    struct session_action *a = session_act(s, SA_MOVED);

    ASSERT(session_may_move(s->state, to));
    a->from = s->state;
    a->to = to;
    snprintf(a->text, sizeof(a->text), "%s", reason);
    if (reason != s->reason)
        snprintf(s->reason, sizeof(s->reason), "%s", reason);
    s->state = to;
}

bool session_alone(const struct session *s)
{
    return s->state == ST_ALONE || s->state == ST_SYNCING;
}

void session_disconnect(struct session *s)
{
    if (s->link_up)
        session_act(s, SA_DISCONNECT);
    s->link_up = s->peer_hello = s->peer_layout = s->rx_paused = false;
}

void session_connect_after(struct session *s, int64_t delay_ns)
{
    bool wanted = s->paired && !s->ending && !s->unpairing;

    s->connect_at_ns = wanted ? s->now_ns + delay_ns : NEVER;
}

static void refuse(struct session *s, int code, const char *text)
{
    struct session_action *a = session_act(s, SA_SEND_REFUSE);

    a->code = code;
    snprintf(a->text, sizeof(a->text), "%s", text);
    s->link_up = s->peer_hello = s->peer_layout = s->rx_paused = false;
}

void session_lose_peer(struct session *s, const char *reason)
{
    if (MUTANT(ACK_WHILE_ASKING) && s->state == ST_STANDBY_READY)
        s->last_rx_ns = s->now_ns + s->config.hello_timeout_ns; /* goes on listening */
    else
        session_disconnect(s);
    switch (s->state) {
    case ST_ALONE:
        snprintf(s->reason, sizeof(s->reason), "%s", reason);
        session_connect_after(s, s->config.reconnect_ns);
        break;
    case ST_SYNCING:
        session_stop_checkpoint(s);
        session_move(s, ST_ALONE, reason);
        session_connect_after(s, s->config.reconnect_ns);
        break;
    case ST_ENTERING:
    case ST_PROTECTED:
        session_claim(s, reason);
        if (s->state == ST_ALONE)
            session_connect_after(s, s->config.reconnect_ns);
        break;
    case ST_STANDBY_SYNCING:
        session_standby_leave(s, reason);
        break;
    case ST_STANDBY_READY:
        session_move(s, ST_STANDBY_ASKING, reason);
        s->rx_asked = s->rx_acked;
        if (MUTANT(PROMOTE_WITHOUT_GRANT)) {
            s->generation++;
            session_standby_promote(s, reason);
        } else {
            session_ask(s);
        }
        break;
    default:
        break;
    }
}

/* A QEMU is there: what we are follows from what was saved and from whether its guest has run. */
static void adopt_guest(struct session *s, bool booted_anew)
{
    /* A polluxd before us may have left QEMU in a checkpoint session: a new one could not start. */
    s->started = s->persist.role != ROLE_NONE;
    session_stop_checkpoint(s);
    /* The copy that an operator wanted is gone, and with it his word; the register was never told of its generation. */
    if (s->persist.role == ROLE_ACTIVE_FORCED && (booted_anew || s->guest == GUEST_FRESH)) {
        session_forget_force(s);
        session_save(s, ROLE_STANDBY);
    }
    if (s->guest == GUEST_FRESH) {
        session_move(s, ST_STANDBY_WAIT, "the guest has not run here");
        return;
    }
    if (booted_anew && (s->persist.role == ROLE_ACTIVE_PROTECTING || s->persist.role == ROLE_STANDBY)) {
        /* Whatever was protected is not in this QEMU, so it must not even ask. */
        session_outdated(s, "QEMU was started anew, and the state that was protected is not in it");
        session_save(s, ROLE_OUTDATED);
        return;
    }
    s->maybe_stopped = true;
    switch (s->persist.role) {
    case ROLE_NONE:
    case ROLE_NUM:
        session_move(s, ST_NONE, "not paired");
        break;
    case ROLE_ACTIVE_ALONE:
        session_move(s, ST_ALONE, "no standby since before polluxd started");
        session_pass_and_run(s);
        session_connect_after(s, 0);
        break;
    case ROLE_ACTIVE_FORCED:
        session_move(s, ST_ALONE, "forced by the operator before polluxd started");
        session_pass_and_run(s);
        s->forced = true;
        s->ask_at_ns = s->now_ns;
        break;
    case ROLE_ACTIVE_PROTECTING:
    case ROLE_STANDBY:
        /* Another side may have been promoted meanwhile: hold until the arbiter has answered. */
        session_output(s, OUTPUT_HOLD);
        session_claim(s, "polluxd started while the guest ran");
        break;
    case ROLE_OUTDATED:
        session_outdated(s, "another side was granted the guest before");
        break;
    }
}

static void on_guest(struct session *s, const struct session_event *e)
{
    s->guest = e->guest;
    if (s->guest == GUEST_NONE)
        return;
    /* SA_MOVED needs a change; NONE is where a session begins, so say it from there. */
    if (s->state == ST_NONE && s->guest == GUEST_RUNNING &&
        (s->persist.role == ROLE_NONE || s->persist.role == ROLE_NUM))
        return;
    if (s->state == ST_NONE || s->state == ST_ENDED)
        adopt_guest(s, e->type == SE_GUEST_ATTACHED && e->flag);
}

static void on_start(struct session *s, const struct session_event *e)
{
    s->persist = e->persist;
    s->generation = e->persist.generation;
    s->paired = e->flag;
    on_guest(s, e);
}

static void on_guest_over(struct session *s, const struct session_event *e)
{
    bool lost = e->type == SE_GUEST_LOST;
    bool told = s->state == ST_PROTECTED || s->state == ST_ENTERING;

    s->guest = lost ? GUEST_NONE : s->guest;
    if (s->state == ST_NONE || s->state == ST_ENDED)
        return;
    if (told) {
        struct session_action *a = session_act(s, lost ? SA_SEND_GONE : SA_SEND_ENDED);
        a->code = 1;
    }
    s->started = s->pipe.capturing = s->frozen = false;
    s->first_claim = s->unpairing = s->adopt = false;
    /* Nothing that this QEMU was asked will be answered. */
    s->wait_output = s->wait_start = s->wait_stop = s->wait_load = s->wait_run = 0;
    s->connect_at_ns = s->ask_at_ns = s->output_at_ns = NEVER;
    s->generation = s->persist.generation; /* of a sync or a promotion that did not end nothing is left */
    if (!lost)
        session_forget_force(s); /* a QEMU that was lost may be found again */
    s->forced = false;
    session_reply(s, 1, "the guest ended meanwhile");
    session_move(s, ST_ENDED,
                 !lost  ? "the guest shut itself down"
                 : told ? "QEMU is gone; the standby was told to take over"
                        : "QEMU is gone");
    if (!lost)
        session_save(s, ROLE_NONE);
    if (!told)
        session_disconnect(s);
    if (s->ending)
        session_act(s, SA_EXIT);
}

static void on_link_up(struct session *s, const struct session_event *e)
{
    /* An active takes calls too: so a stale active that calls learns of the newer generation. */
    bool wanted = s->state == ST_ALONE || (e->flag && (s->state == ST_STANDBY_WAIT || s->state == ST_STANDBY_ASKING));
    struct session_action *a;

    s->link_up = true;
    s->peer_hello = s->peer_layout = s->rx_paused = false;
    s->link_up_ns = s->last_rx_ns = s->last_tx_ns = s->now_ns;
    s->connect_at_ns = NEVER;
    if (!wanted) {
        char text[SESSION_TEXT_BYTES];
        snprintf(text, sizeof(text), "this side is %s and takes no peer now",
                 session_state_name(s->state));
        refuse(s, s->state == ST_ENDED || s->state == ST_NONE ? 7 : 3, text);
        return;
    }
    a = session_act(s, SA_SEND_HELLO);
    a->generation = s->generation;
    a->epoch = s->rx_acked;
    a->flag = s->state == ST_ALONE;
}

/* Somebody holds a newer generation than ours while our guest runs: only the arbiter can tell. */
static void suspect_outdated(struct session *s)
{
    refuse(s, 5, "the peer knows a newer generation than this active side");
    session_doubt(s);
}

static void on_peer_hello(struct session *s, const struct session_event *e)
{
    if (!s->link_up || s->peer_hello)
        return;
    if (e->generation > GENERATION_MAX) {
        refuse(s, 8, "a generation that no pair can have reached");
        session_lose_peer(s, "the peer is in a generation that no pair can have reached");
    } else if (s->state == ST_ALONE) {
        if (e->generation > s->generation) {
            suspect_outdated(s);
        } else if (s->forced) {
            refuse(s, 3, "this side was promoted by force, and the arbiter does not know of it yet");
        } else if (e->flag) {
            refuse(s, 3, "both sides are active");
            session_lose_peer(s, "the peer is active too");
        } else {
            s->peer_hello = true;
        }
    } else if (s->state == ST_STANDBY_WAIT) {
        if (!e->flag) {
            refuse(s, 3, "both sides are standby");
        } else if (e->generation < s->generation || e->generation == 0) {
            refuse(s, 5, "this standby knows a newer generation than the active: the active is outdated");
        } else {
            s->peer_hello = true;
            s->hello_generation = e->generation;
        }
    } else if (s->state == ST_STANDBY_ASKING) {
        if (e->flag && e->generation > s->generation) {
            s->peer_hello = true;
            s->hello_generation = e->generation;
        } else {
            refuse(s, 3, "this standby asks the arbiter whether it may run, and takes no older active meanwhile");
        }
    }
}

static void on_peer_layout(struct session *s, const struct session_event *e)
{
    if (!s->link_up || !s->peer_hello || s->peer_layout)
        return;
    if (!e->flag) {
        refuse(s, 4, e->text ? e->text : "the two virtual machines differ");
        session_lose_peer(s, e->text ? e->text : "the two virtual machines differ");
        return;
    }
    s->peer_layout = true;
    if (s->state == ST_ALONE) {
        session_move(s, ST_SYNCING, "full sync");
        session_pipe_reset(s);
        s->started = true;
        session_act_done(s, SA_CHECKPOINT_START, &s->wait_start)->flag = true;
    } else {
        /* An active in a newer generation than we asked for: whatever the arbiter will say, it is not yes. */
        if (s->state == ST_STANDBY_ASKING)
            session_standby_leave(s, "the active goes on in a newer generation");
        if (s->state == ST_STANDBY_WAIT)
            session_standby_begin(s, s->hello_generation);
    }
}

static void on_peer_refused(struct session *s, const struct session_event *e)
{
    char text[SESSION_TEXT_BYTES];

    snprintf(text, sizeof(text), "the peer refused: %s", e->text ? e->text : "");
    if (e->code == 5 && s->state == ST_ALONE) {
        session_disconnect(s);
        session_doubt(s);
        return;
    }
    s->connect_slowly = true; /* an operator must act */
    session_lose_peer(s, text);
    if (s->state == ST_ALONE)
        session_connect_after(s, 4 * s->config.reconnect_ns);
}

static void on_peer_ended(struct session *s)
{
    if (s->state == ST_STANDBY_READY || s->state == ST_STANDBY_SYNCING) {
        session_disconnect(s);
        session_standby_leave(s, "the active's guest ended, or was unpaired");
        session_save(s, ROLE_STANDBY);
    }
}

static void start_failed(struct session *s, const char *what)
{
    refuse(s, 7, what);
    session_lose_peer(s, what);
    if (s->state == ST_ALONE)
        session_connect_after(s, 10 * s->config.reconnect_ns);
}

static void on_save_done(struct session *s, int error)
{
    if (s->state == ST_CLAIMING && s->first_claim) {
        if (!error) {
            session_ask(s);
            return;
        }
        session_drop_first_claim(s, "the state file could not be written", 1,
                                 "the state file could not be written; see the log for path and cause");
    } else if (error && s->state == ST_ENTERING && !s->pipe.sent) {
        start_failed(s, "the state file could not be written");
    } else if (error && (s->state == ST_STANDBY_SYNCING || s->state == ST_STANDBY_READY)) {
        start_failed(s, "the standby's state file could not be written");
    } else if (error) {
        snprintf(session_act(s, SA_NOTE)->text, SESSION_TEXT_BYTES,
                 "the state file could not be written; protection starts only when it can");
    } else {
        session_standby_ack(s);
    }
    if (s->state == ST_CLAIMING ? s->ask_at_ns == NEVER : session_forced(s))
        session_ask(s); /* it waited for the nonce to be on disk */
}

static bool take(uint64_t *wait, const struct session_event *e)
{
    if (!*wait || *wait != e->serial)
        return false;
    *wait = 0;
    return true;
}

static void on_done(struct session *s, const struct session_event *e)
{
    if (take(&s->wait_save, e)) {
        on_save_done(s, e->error);
    } else if (take(&s->wait_output, e)) {
        if (e->error && s->state == ST_ENTERING && !s->pipe.sent)
            start_failed(s, "the guest's output could not be held");
        else if (e->error && s->guest != GUEST_NONE)
            s->output_at_ns = s->now_ns + OUTPUT_RETRY_NS;
    } else if (take(&s->wait_start, e)) {
        if (e->error)
            start_failed(s, e->text ? e->text : "QEMU refused to start checkpoints");
        else
            session_standby_ack(s);
    } else if (take(&s->wait_stop, e)) {
        if (e->error && s->state == ST_OUTDATED && s->guest != GUEST_NONE)
            s->output_at_ns = s->now_ns + OUTPUT_RETRY_NS;
    } else if (take(&s->wait_load, e)) {
        session_on_load_done(s, e->error);
    } else if (take(&s->wait_run, e)) {
        session_on_run_done(s, e->error);
    }
}

static void on_released(struct session *s, const struct session_event *e)
{
    if (s->frozen && e->code && s->state == ST_PROTECTED && !s->wait_run)
        session_act_done(s, SA_RUN, &s->wait_run);
}

static void on_guest_stopped(struct session *s)
{
    s->frozen = true;
    session_on_output_waits(s);
    /* It was on its way while we became alone: nothing is held any more, and nobody else would resume it. */
    if (session_alone(s) && !s->wait_run)
        session_act_done(s, SA_RUN, &s->wait_run);
}

static void on_guest_resumed(struct session *s)
{
    /* Until QEMU has answered our stop, a resume is older than it. */
    if (!s->wait_stop)
        s->frozen = false;
    if (s->state != ST_STANDBY_WAIT && !session_standby_holds(s))
        return;
    /* libvirt starts QEMU with -S and resumes it: it booted, and was a standby only in our eyes. */
    session_disconnect(s);
    if (session_standby_holds(s))
        session_standby_leave(s, "the standby's guest was resumed by somebody else");
    s->guest = GUEST_RUNNING;
    adopt_guest(s, true);
}

static void on_rx_paused(struct session *s, const struct session_event *e)
{
    s->rx_paused = e->flag;
    s->last_rx_ns = s->now_ns; /* what the peer said meanwhile has not been read yet */
}

static void dispatch(struct session *s, const struct session_event *e)
{
    switch (e->type) {
    case SE_START: on_start(s, e); break;
    case SE_TICK: break;
    case SE_GUEST_ATTACHED: on_guest(s, e); break;
    case SE_GUEST_LOST:
    case SE_GUEST_ENDED: on_guest_over(s, e); break;
    case SE_GUEST_STOPPED: on_guest_stopped(s); break;
    case SE_GUEST_RESUMED: on_guest_resumed(s); break;
    case SE_OP_PAIR: session_on_pair(s, e); break;
    case SE_OP_UNPAIR: session_on_unpair(s); break;
    case SE_OP_PROMOTE: session_on_promote(s, e); break;
    case SE_OP_SHUTDOWN: session_on_shutdown(s); break;
    case SE_LINK_UP: on_link_up(s, e); break;
    case SE_LINK_DOWN:
        s->link_up = false;
        session_lose_peer(s, e->text ? e->text : "the connection to the peer ended");
        break;
    case SE_PEER_ALIVE: break;
    case SE_PEER_HELLO: on_peer_hello(s, e); break;
    case SE_PEER_LAYOUT: on_peer_layout(s, e); break;
    case SE_PEER_REFUSED: on_peer_refused(s, e); break;
    case SE_PEER_GONE: session_lose_peer(s, "the active's QEMU is gone or hangs"); break;
    case SE_PEER_ENDED: on_peer_ended(s); break;
    case SE_PEER_ERROR:
        refuse(s, e->code ? e->code : 8, e->text ? e->text : "protocol error");
        session_lose_peer(s, e->text ? e->text : "the peer broke the protocol");
        break;
    case SE_OUTPUT_WAITS: session_on_output_waits(s); break;
    case SE_CAPTURED: session_on_captured(s, e); break;
    case SE_CAPTURE_FAILED:
        session_on_capture_failed(s, e);
        break;
    case SE_SLOT_FREE: session_on_slot_free(s, e); break;
    case SE_ACK: session_on_ack(s, e); break;
    case SE_RX_BEGIN: session_on_rx_begin(s, e); break;
    case SE_RX_COMPLETE: session_on_rx_complete(s, e); break;
    case SE_APPLIED: session_on_applied(s, e); break;
    case SE_RELEASED: on_released(s, e); break;
    case SE_RX_PAUSED: on_rx_paused(s, e); break;
    case SE_ARBITER: session_on_arbiter(s, e); break;
    case SE_DONE: on_done(s, e); break;
    case SE_NUM: break;
    }
}

/* When silence counts as loss: the introduction may take longer, our own backpressure never counts. */
static int64_t silence_at(const struct session *s)
{
    if (!s->link_up || s->rx_paused)
        return NEVER;
    if (!s->peer_layout)
        return s->link_up_ns + s->config.hello_timeout_ns;
    if (s->state == ST_SYNCING || s->state == ST_STANDBY_SYNCING) /* nothing to lose yet, and much to do */
        return s->last_rx_ns + s->config.hello_timeout_ns;
    if (s->state == ST_ENTERING) /* the standby has a backlog; giving up would cost more than waiting */
        return s->last_rx_ns + s->config.hello_timeout_ns / 5;
    return s->last_rx_ns + s->config.peer_timeout_ns;
}

/* A standby that lives but does not ack holds our output for nothing. */
static int64_t unacked_at(const struct session *s)
{
    bool waits = s->state == ST_ENTERING || (s->state == ST_PROTECTED && s->pipe.sent > s->pipe.acked);

    return waits ? s->pipe.waits_since_ns + s->config.hold_freeze_ns : NEVER;
}

static int64_t freeze_at(const struct session *s)
{
    if (s->state != ST_CLAIMING || s->frozen || s->output != OUTPUT_HOLD)
        return NEVER;
    return s->claiming_since_ns + s->config.hold_freeze_ns;
}

static int64_t heartbeat_at(const struct session *s)
{
    return s->link_up && s->peer_layout ? s->last_tx_ns + s->config.heartbeat_ns : NEVER;
}

static void timers(struct session *s)
{
    if (silence_at(s) <= s->now_ns)
        session_lose_peer(s, s->peer_layout ? "the peer is silent" : "the peer did not introduce itself");
    if (unacked_at(s) <= s->now_ns) {
        s->connect_slowly = true;
        session_lose_peer(s, "the standby does not ack: it hangs, or the link is too slow for what the guest writes");
    }
    if (freeze_at(s) <= s->now_ns) {
        s->frozen = true;
        session_act_done(s, SA_STOP_GUEST, &s->wait_stop);
        snprintf(session_act(s, SA_NOTE)->text, SESSION_TEXT_BYTES,
                 "frozen: output is held and neither the standby nor the arbiter answers");
    }
    if (heartbeat_at(s) <= s->now_ns) {
        session_act(s, SA_SEND_HEARTBEAT);
        s->last_tx_ns = s->now_ns;
    }
    if (s->connect_at_ns <= s->now_ns) {
        s->connect_at_ns = NEVER;
        if (s->state == ST_ALONE && s->paired && !s->forced && !s->link_up)
            session_act(s, SA_CONNECT);
    }
    if (s->ask_at_ns <= s->now_ns) {
        s->ask_at_ns = NEVER;
        if (s->state == ST_CLAIMING || s->state == ST_STANDBY_ASKING || session_forced(s))
            session_ask(s);
    }
    if (s->output_at_ns <= s->now_ns) { /* what is wanted of the guest's output still stands */
        s->output_at_ns = NEVER;
        if (s->state == ST_OUTDATED)
            session_act_done(s, SA_STOP_GUEST, &s->wait_stop);
        if (session_alone(s))
            session_pass_and_run(s);
        else if (s->guest != GUEST_NONE)
            session_output(s, s->output);
    }
    if (s->operator_at_ns <= s->now_ns)
        session_reply(s, 1, "this takes long and goes on; pollux status tells how far it is, polluxd's log what it waits for");
    if (s->end_at_ns <= s->now_ns) {
        s->end_at_ns = NEVER;
        session_act(s, SA_EXIT);
    }
}

void session_step(struct session *s, const struct session_event *event, int64_t now_ns,
                  struct session_actions *ret)
{
    ret->nr = 0;
    s->out = ret;
    s->now_ns = now_ns;
    /* Stepped long after it was due, we ourselves stood still (stopped, starved): that silence was ours, not the peer's. */
    if (s->due_ns && s->due_ns != NEVER && now_ns - s->due_ns > s->config.peer_timeout_ns / 2)
        s->last_rx_ns = now_ns;
    if (event->type >= SE_LINK_UP && event->type <= SE_PEER_ERROR)
        s->last_rx_ns = now_ns;
    dispatch(s, event);
    timers(s);
    session_pipe_pump(s);
    if (s->ending || s->unpairing)
        session_finish_alone(s);
    s->out = NULL;
    s->due_ns = session_deadline(s);
}

int64_t session_deadline(const struct session *s)
{
    int64_t at[] = { silence_at(s),   unacked_at(s), freeze_at(s),  heartbeat_at(s),   s->connect_at_ns,
                     s->output_at_ns, s->ask_at_ns,  s->end_at_ns,  s->operator_at_ns, session_pipe_due(s) };
    int64_t first = NEVER;

    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++)
        first = at[i] < first ? at[i] : first;
    return first;
}
