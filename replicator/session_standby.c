/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session_standby.c - the standby's side: receive, ack, apply, and become active when granted
 *
 * Owns: the order ack after whole, promote after grant. An epoch is acked when all of it is in our
 * memory, and whatever was acked is applied before the guest may run here: so what the active
 * released because of an ack is never missing.
 */
#include "session_private.h"

void session_standby_begin(struct session *s, uint64_t generation)
{
    s->generation = generation;
    s->rx_complete = s->rx_acked = s->rx_applied = 0;
    session_move(s, ST_STANDBY_SYNCING, "an active began a full sync");
    session_act_done(s, SA_CHECKPOINT_START, &s->wait_start)->flag = false;
    s->started = true;
}

bool session_standby_holds(const struct session *s)
{
    return s->state == ST_STANDBY_SYNCING || s->state == ST_STANDBY_READY || s->state == ST_STANDBY_ASKING;
}

void session_standby_leave(struct session *s, const char *reason)
{
    session_stop_checkpoint(s);
    if (MUTANT(ACK_WHILE_ASKING))
        session_disconnect(s);
    s->rx_complete = s->rx_acked = s->rx_applied = 0;
    s->generation = s->persist.generation; /* what a sync that did not end told of itself counts for nothing */
    s->ask_at_ns = NEVER;
    session_move(s, ST_STANDBY_WAIT, reason);
    session_reply(s, 106, "the arbiter granted the active: it goes on, and this side stays its standby");
}

void session_on_rx_begin(struct session *s, const struct session_event *e)
{
    bool good = s->state == ST_STANDBY_SYNCING ? e->flag && e->epoch == 1 && s->rx_complete == 0
                : s->state == ST_STANDBY_READY || MUTANT(ACK_WHILE_ASKING) ? !e->flag && e->epoch == s->rx_complete + 1
                                                                           : false;

    if (!good)
        session_lose_peer(s, "the active sent an epoch out of order");
    else if (MUTANT(ACK_BEFORE_COMPLETE) && !e->flag)
        session_act(s, SA_SEND_ACK)->epoch = e->epoch;
}

/* Acks wait for the state file: without the nonce in it we could not ask for what we acked. */
void session_standby_ack(struct session *s)
{
    bool may = s->state == ST_STANDBY_SYNCING || s->state == ST_STANDBY_READY ||
               (MUTANT(ACK_WHILE_ASKING) && s->state == ST_STANDBY_ASKING);

    if (!may || s->wait_save || s->wait_start)
        return;
    while (s->rx_acked < s->rx_complete) {
        s->rx_acked++;
        if (s->state == ST_STANDBY_SYNCING)
            session_move(s, ST_STANDBY_READY, "epoch 1 is whole");
        if (!MUTANT(ACK_BEFORE_COMPLETE) || s->rx_acked == 1) {
            session_act(s, SA_SEND_ACK)->epoch = s->rx_acked;
            s->last_tx_ns = s->now_ns;
        }
        session_act(s, SA_APPLY)->epoch = s->rx_acked;
    }
}

void session_on_rx_complete(struct session *s, const struct session_event *e)
{
    bool receiving = s->state == ST_STANDBY_SYNCING || s->state == ST_STANDBY_READY ||
                     (MUTANT(ACK_WHILE_ASKING) && s->state == ST_STANDBY_ASKING);

    if (!receiving)
        return;
    if (e->epoch != s->rx_complete + 1) {
        session_lose_peer(s, "the active completed an epoch out of order");
        return;
    }
    s->rx_complete = e->epoch;
    if (e->epoch == 1)
        session_save(s, ROLE_STANDBY); /* with the nonce; the ack follows when both are on disk */
    session_standby_ack(s);
}

void session_on_applied(struct session *s, const struct session_event *e)
{
    if (s->state != ST_STANDBY_READY || e->epoch > s->rx_acked || e->epoch <= s->rx_applied)
        return;
    s->rx_applied = e->epoch;
    session_act(s, SA_SEND_APPLIED)->epoch = e->epoch;
}

void session_standby_promote(struct session *s, const char *reason)
{
    session_disconnect(s);
    session_move(s, ST_PROMOTING, reason);
    session_act_done(s, SA_LOAD, &s->wait_load)->epoch =
        MUTANT(PROMOTE_STALE) && s->rx_acked > 1 ? s->rx_acked - 1
        : MUTANT(ACK_WHILE_ASKING)               ? s->rx_asked
                                                 : s->rx_acked;
}

void session_on_load_done(struct session *s, int error)
{
    if (s->state != ST_PROMOTING)
        return;
    if (error) {
        session_move(s, ST_BROKEN, "granted, but the device state could not be loaded");
        session_reply(s, 1, "granted, but the device state could not be loaded; see polluxd's log");
        return;
    }
    s->started = false; /* checkpoint-load ended the standby role */
    session_output(s, OUTPUT_PASS);
    session_act_done(s, SA_RUN, &s->wait_run);
}

void session_on_run_done(struct session *s, int error)
{
    s->guest = error ? s->guest : GUEST_RUNNING;
    if (s->state != ST_PROMOTING) {
        s->frozen = error ? s->frozen : false;
        if (error && session_alone(s))
            s->output_at_ns = s->now_ns + OUTPUT_RETRY_NS;
        return;
    }
    if (error) {
        session_move(s, ST_BROKEN, "granted and loaded, but the guest did not start");
        session_reply(s, 1, "granted and loaded, but the guest did not start; see polluxd's log");
        return;
    }
    if (MUTANT(ACK_WHILE_ASKING))
        session_disconnect(s);
    session_act(s, SA_ANNOUNCE);
    session_move(s, ST_ALONE, s->forced ? "promoted by force, no standby" : "promoted, no standby");
    session_save_alone(s);
    s->paired = true;
    session_connect_after(s, s->config.reconnect_ns);
    session_reply(s, 0, s->forced ? "forced: this side runs the guest without a grant" : "granted: this side runs the guest");
}
