/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session_claim.c - generations: asking the arbiter, what its answers mean, the operator's commands
 *
 * Owns: the generation, the nonce and what is saved of them. A time-out leads here and decides when
 * to ask; only the answer decides who runs.
 */
#include <errno.h>
#include <string.h>

#include "session_private.h"

/* Unique among our asks: a random number of this start of polluxd, and a count within it. */
static void make_nonce(struct session *s, uint8_t nonce[16])
{
    s->nonce_count++;
    memcpy(nonce, &s->config.boot, 8);
    memcpy(nonce + 8, &s->nonce_count, 8);
}

void session_save(struct session *s, enum session_role role)
{
    s->persist.generation = s->generation;
    s->persist.role = role;
    make_nonce(s, s->persist.nonce);
    session_act_done(s, SA_SAVE, &s->wait_save)->persist = s->persist;
}

void session_save_alone(struct session *s)
{
    session_save(s, s->forced ? ROLE_ACTIVE_FORCED : ROLE_ACTIVE_ALONE);
}

void session_forget_force(struct session *s)
{
    if (s->persist.role == ROLE_ACTIVE_FORCED)
        s->generation--;
    s->forced = false;
}

void session_output(struct session *s, enum session_output mode)
{
    s->output = mode;
    session_act_done(s, SA_OUTPUT, &s->wait_output)->code = mode;
}

void session_pass_and_run(struct session *s)
{
    session_output(s, OUTPUT_PASS);
    if (s->frozen || s->maybe_stopped)
        session_act_done(s, SA_RUN, &s->wait_run);
    s->maybe_stopped = false;
}

void session_stop_checkpoint(struct session *s)
{
    if (!s->started)
        return;
    s->started = false;
    s->wait_start = 0;
    s->pipe.capturing = false;
    session_act_done(s, SA_CHECKPOINT_STOP, &s->wait_stop);
}

void session_reply(struct session *s, int code, const char *text)
{
    struct session_action *a;

    if (!s->op_pending)
        return;
    s->op_pending = false;
    s->operator_at_ns = NEVER;
    a = session_act(s, SA_OP_REPLY);
    a->code = code;
    snprintf(a->text, sizeof(a->text), "%s", text);
}

static void operator_waits(struct session *s)
{
    s->op_pending = true;
    s->operator_at_ns = s->now_ns + s->config.operator_ns;
}

bool session_forced(const struct session *s)
{
    return s->forced && session_alone(s);
}

/* The generation that the register should have: a forced side asks for the one that it took already. */
static uint64_t expected(const struct session *s)
{
    return s->generation - session_forced(s);
}

void session_ask(struct session *s)
{
    bool saved_first = s->state == ST_CLAIMING || session_forced(s);
    struct session_action *a;

    /* A grant whose nonce is not on disk could not be asked for again by the polluxd after us. */
    if (s->asking || (s->wait_save && saved_first))
        return;
    s->asking = true;
    s->ask_at_ns = NEVER;
    s->asked_expect = expected(s);
    memcpy(s->asked_nonce, s->persist.nonce, sizeof(s->asked_nonce));
    a = session_act(s, SA_ASK);
    a->expect = s->asked_expect;
    a->next = s->asked_expect + 1;
    memcpy(a->nonce, s->persist.nonce, sizeof(a->nonce));
}

/* The last part of epoch 1 was not sent, so no standby can have it: the right to run alone was never given up. */
static void alone_again(struct session *s, const char *reason)
{
    session_move(s, ST_ALONE, reason);
    session_pass_and_run(s);
    session_save_alone(s);
}

/* We run the guest but may no longer (or not yet) call ourselves alone: ask, after the standby's head start. */
static void claim_after(struct session *s, const char *reason, int64_t delay_ns)
{
    session_stop_checkpoint(s);
    if (s->state == ST_ENTERING && !s->pipe.sent) {
        alone_again(s, reason);
        return;
    }
    session_move(s, ST_CLAIMING, reason);
    s->claiming_since_ns = s->now_ns;
    s->connect_at_ns = s->ask_at_ns = NEVER;
    if (MUTANT(PASS_WITHOUT_GRANT))
        session_output(s, OUTPUT_PASS);
    if (delay_ns)
        s->ask_at_ns = s->now_ns + delay_ns;
    else
        session_ask(s);
}

void session_claim(struct session *s, const char *reason)
{
    claim_after(s, reason, 0);
}

/* The peer says that the right to run alone was won by somebody later than us: only the arbiter can tell. */
void session_doubt(struct session *s)
{
    if (s->forced) { /* the operator has decided already: only the register has still to be told */
        s->ask_at_ns = s->now_ns;
        return;
    }
    session_output(s, OUTPUT_HOLD);
    session_save(s, ROLE_ACTIVE_PROTECTING); /* a polluxd after us must doubt it as well */
    session_claim(s, "the peer knows a newer generation");
}

/* Alone for good or on the way out: what an operator's unpair or a shutdown waits for. */
void session_finish_alone(struct session *s)
{
    if (s->state != ST_ALONE || s->wait_save || s->wait_output || s->wait_stop)
        return;
    if (s->ending) {
        s->end_at_ns = NEVER;
        session_act(s, SA_EXIT);
    } else if (s->unpairing) {
        s->unpairing = false;
        s->paired = false;
        session_forget_force(s);
        s->ask_at_ns = NEVER;
        session_move(s, ST_NONE, "unpaired by the operator");
        session_save(s, ROLE_NONE);
        session_reply(s, 0, "unpaired; the guest runs unprotected");
    }
}

static void granted_alone(struct session *s, const char *reason)
{
    s->first_claim = false;
    session_move(s, ST_ALONE, reason);
    session_pass_and_run(s);
    session_save_alone(s);
    session_connect_after(s, s->connect_slowly ? 10 * s->config.reconnect_ns : 0);
    s->connect_slowly = s->adopt = false;
    if (!s->unpairing)
        session_reply(s, 0, s->forced ? "forced: this side runs the guest without a grant"
                                      : "the arbiter granted this side; syncing goes on in the background");
}

void session_drop_first_claim(struct session *s, const char *reason, int code, const char *text)
{
    s->first_claim = s->paired = false;
    s->ask_at_ns = NEVER;
    session_move(s, ST_NONE, reason);
    session_reply(s, code, text);
}

void session_outdated(struct session *s, const char *reason)
{
    session_move(s, ST_OUTDATED, reason);
    session_act_done(s, SA_STOP_GUEST, &s->wait_stop);
    session_output(s, OUTPUT_DROP);
}

static void refused(struct session *s, const struct session_event *e)
{
    char text[SESSION_TEXT_BYTES];

    snprintf(text, sizeof(text), "generation %llu was granted to %s",
             (unsigned long long)e->generation, e->flag ? "this side in another life" : "the other side");
    if (s->state == ST_STANDBY_ASKING) {
        session_standby_leave(s, text);
        return;
    }
    if (s->first_claim) {
        session_drop_first_claim(s, "the arbiter refused the first generation", 106,
                                 "the arbiter already has a history of this VM; if this guest is the copy to keep, say "
                                 "pair --adopt");
        return;
    }
    s->unpairing = s->adopt = false;
    if (MUTANT(REFUSED_GOES_ON)) {
        session_move(s, ST_ALONE, text);
        session_output(s, OUTPUT_PASS);
        return;
    }
    session_outdated(s, text);
    session_save(s, ROLE_OUTDATED);
    session_reply(s, 106, "the arbiter granted the other side; this guest was stopped");
    if (s->ending)
        session_act(s, SA_EXIT);
}

/* An outdated side asks again only because an operator said so, and only as long as he waits. */
static bool overruling(const struct session *s)
{
    return s->state == ST_CLAIMING && s->persist.role == ROLE_OUTDATED;
}

static void unreachable(struct session *s)
{
    s->ask_at_ns = s->now_ns + s->config.arbiter_retry_ns;
    if (overruling(s) && !s->adopt) {
        session_reply(s, 106,
                      "the arbiter did not answer; it may have granted this copy already, so it is asked until it does");
    } else if (overruling(s)) { /* asked only for the generation after ours, which another side has as a rule */
        s->adopt = false;
        s->ask_at_ns = NEVER;
        session_move(s, ST_OUTDATED, "the arbiter did not answer, so this copy stays stopped");
        session_reply(s, 106,
                      "the arbiter does not answer, so this copy stays stopped: start the witness (or another one with "
                      "--restore), and say it again");
    } else if (s->first_claim) {
        session_drop_first_claim(s, "the arbiter did not answer", 69,
                                 "the arbiter does not answer; see that the witness runs and can be reached");
    } else {
        session_reply(s, 106,
                      "the arbiter does not answer; it is asked until it does. promote --force now runs this copy "
                      "without its grant");
    }
}

/*
 * The register is ours to continue if we hold it: the guest runs here, so it has run here since that grant, and
 * the grant is the last. (The file that would have known of it was not written.) A first claim may also continue
 * a register of others, and an outdated guest that of its successor, if the operator says so.
 */
static bool continue_claim(struct session *s, const struct session_event *e)
{
    if (s->state != ST_CLAIMING || e->generation <= s->generation || !(e->flag || s->adopt))
        return false;
    s->adopt = false;
    s->generation = e->generation;
    session_save(s, s->first_claim || overruling(s) ? s->persist.role : ROLE_ACTIVE_PROTECTING); /* the ask follows */
    return true;
}

/*
 * The register is told of a generation that an operator took by force. Whoever was granted meanwhile is overruled: the
 * operator has said which copy to keep, and that side learns of it and stops when it asks or meets us.
 */
static void on_forced_answer(struct session *s, const struct session_event *e, bool yes)
{
    char text[SESSION_TEXT_BYTES];

    if (yes || (e->code == GRANT_NO && e->flag && e->generation == s->generation)) {
        s->forced = false;
        session_save_alone(s);
        session_connect_after(s, 0);
        snprintf(text, sizeof(text), "the arbiter knows now that the operator forced generation %llu",
                 (unsigned long long)s->generation);
    } else if (e->code == GRANT_NO) {
        snprintf(text, sizeof(text), "the arbiter is at generation %llu of %s: overruled by promote --force",
                 (unsigned long long)e->generation, e->flag ? "this side" : "the other side");
        s->generation = e->generation + 1;
        session_save(s, ROLE_ACTIVE_FORCED); /* asked when the new nonce is on disk */
    } else {
        s->ask_at_ns = s->now_ns + s->config.arbiter_retry_ns;
        return;
    }
    snprintf(session_act(s, SA_NOTE)->text, SESSION_TEXT_BYTES, "%s", text);
}

void session_on_arbiter(struct session *s, const struct session_event *e)
{
    bool wanted = s->state == ST_CLAIMING || s->state == ST_STANDBY_ASKING || session_forced(s);
    bool yes = e->code == GRANT_YES || (MUTANT(UNREACHABLE_IS_YES) && e->code == GRANT_UNREACHABLE);

    s->asking = false;
    if (!wanted)
        return;
    if (s->asked_expect != expected(s) || memcmp(s->asked_nonce, s->persist.nonce, sizeof(s->asked_nonce)) != 0) {
        session_ask(s); /* that answer was to a question of before */
        return;
    }
    if (session_forced(s)) {
        on_forced_answer(s, e, yes);
    } else if (yes) {
        s->generation++;
        s->ask_at_ns = NEVER;
        if (s->state == ST_CLAIMING)
            granted_alone(s, s->first_claim ? "first generation granted, no standby yet" : s->reason);
        else
            session_standby_promote(s, s->reason);
    } else if (e->code == GRANT_NO) {
        s->ask_at_ns = NEVER;
        if (!continue_claim(s, e))
            refused(s, e);
    } else {
        unreachable(s);
    }
}

void session_on_pair(struct session *s, const struct session_event *e)
{
    operator_waits(s);
    if (s->unpairing) {
        session_reply(s, 1, "an unpair is under way; pair again when pollux status says \"none\"");
    } else if (s->state == ST_OUTDATED) {
        session_reply(s, 107, "another side was granted this guest; promote --force runs this copy all the same");
    } else if (s->state == ST_ALONE || s->state == ST_SYNCING) {
        s->paired = true;
        if (s->state == ST_ALONE)
            s->connect_at_ns = s->now_ns;
        session_reply(s, 0, "pairing; the sync goes on in the background");
    } else if (s->state != ST_NONE) {
        session_reply(s, 1, "this VM is paired or a standby already; see pollux status");
    } else if (s->guest == GUEST_NONE) {
        session_reply(s, 1, "no guest: polluxd is not attached to a QEMU that it can protect; its log says why");
    } else if (s->guest != GUEST_RUNNING) {
        session_reply(s, 1, "the guest has not run here: say pair on the host whose guest runs");
    } else {
        s->paired = s->first_claim = true;
        s->adopt = e->flag;
        session_move(s, ST_CLAIMING, "pairing");
        s->claiming_since_ns = s->now_ns;
        s->ask_at_ns = NEVER;
        session_save(s, s->persist.role); /* the ask follows when its nonce is on disk */
    }
}

static void leave_protection(struct session *s, const char *reason)
{
    session_act(s, SA_SEND_ENDED)->code = 2;
    session_disconnect(s);
    session_claim(s, reason);
}

/*
 * A QEMU that only refused: our guest is whole and runs. The standby is told not to take over, so that it does not
 * compete for a grant that would stop a healthy guest. A QEMU that does not answer at all may hang: then the standby's
 * copy is the better one, and it gets a head start. If that does not arrive, the arbiter decides as ever.
 */
void session_on_capture_failed(struct session *s, const struct session_event *e)
{
    const char *reason = e->text ? e->text : "a capture failed";

    s->pipe.capturing = false;
    s->connect_slowly = true;
    if (session_standby_holds(s)) {
        /* A standby's QEMU ended its session (a device was plugged, the guest was started): the copy is of no use. */
        session_disconnect(s);
        session_standby_leave(s, reason);
    } else if (!s->link_up || !(s->state == ST_PROTECTED || (s->state == ST_ENTERING && s->pipe.sent))) {
        session_lose_peer(s, reason);
    } else if (e->error == -ETIMEDOUT) {
        session_act(s, SA_SEND_GONE)->code = 2;
        session_disconnect(s);
        claim_after(s, reason, s->config.yield_ns);
    } else {
        leave_protection(s, reason);
    }
}

static void leave_sync(struct session *s, const char *reason)
{
    session_disconnect(s);
    s->connect_at_ns = NEVER;
    if (s->state == ST_SYNCING) {
        session_stop_checkpoint(s);
        session_move(s, ST_ALONE, reason);
    }
}

void session_on_unpair(struct session *s)
{
    operator_waits(s);
    switch (s->state) {
    case ST_PROTECTED:
    case ST_ENTERING:
        s->unpairing = true;
        leave_protection(s, "unpaired by the operator");
        break;
    case ST_ALONE:
    case ST_SYNCING:
        s->unpairing = true;
        leave_sync(s, "unpaired by the operator");
        session_finish_alone(s);
        break;
    case ST_NONE:
        session_reply(s, 0, "not paired");
        break;
    default:
        session_reply(s, 1, "only the side that runs the guest can unpair, when it may run alone");
    }
}

static void promote_forced(struct session *s)
{
    s->forced = true;
    s->generation++;
    s->ask_at_ns = NEVER;
    if (s->state == ST_CLAIMING)
        granted_alone(s, "forced by the operator");
    else
        session_standby_promote(s, "forced by the operator");
}

/* The other side was granted the guest, and its copy is gone or not wanted: ask for the generation after that. */
static void overrule(struct session *s)
{
    s->adopt = s->maybe_stopped = true;
    session_move(s, ST_CLAIMING, "the operator wants this copy, not the other side's");
    s->claiming_since_ns = s->now_ns;
    s->ask_at_ns = NEVER;
    session_save(s, ROLE_OUTDATED); /* outdated it stays until the grant is on disk; the ask follows */
}

void session_on_promote(struct session *s, const struct session_event *e)
{
    bool waits = s->state == ST_STANDBY_ASKING || (s->state == ST_CLAIMING && !overruling(s));

    operator_waits(s);
    if (s->state == ST_OUTDATED && e->flag && s->guest != GUEST_NONE) {
        overrule(s);
    } else if (s->state == ST_OUTDATED) {
        session_reply(s, 107,
                      "another side was granted this guest; --force would run this copy instead and lose what the "
                      "other side did since");
    } else if (overruling(s)) {
        session_reply(s, 106, "the arbiter is being asked for this copy already; see pollux status");
    } else if (waits && e->flag && !s->first_claim) {
        promote_forced(s);
    } else if (waits) {
        session_reply(s, 107, "the arbiter has not answered; --force would run this copy without its grant");
    } else if (s->state == ST_STANDBY_READY && e->flag) {
        session_lose_peer(s, "promoted by the operator"); /* the arbiter's answer is the operator's */
    } else if (s->state == ST_STANDBY_READY) {
        session_reply(s, 107, "the active is alive; --force would stop it and run this copy instead");
    } else if (s->state == ST_ALONE || s->state == ST_SYNCING || s->state == ST_PROTECTED ||
               s->state == ST_ENTERING) {
        session_reply(s, 0, "this side is active already");
    } else {
        session_reply(s, 1, "this side has no committed state that could run");
    }
}

void session_on_shutdown(struct session *s)
{
    s->ending = true;
    s->end_at_ns = s->now_ns + 2000000000;
    if (s->state == ST_PROTECTED || s->state == ST_ENTERING) {
        leave_protection(s, "polluxd is ending");
    } else if (s->state == ST_ALONE || s->state == ST_SYNCING) {
        leave_sync(s, "polluxd is ending");
        session_finish_alone(s);
    } else if (s->state != ST_CLAIMING && s->state != ST_PROMOTING) {
        session_disconnect(s);
        session_act(s, SA_EXIT);
    }
}
