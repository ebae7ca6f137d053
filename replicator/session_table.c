/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session_table.c - names and legal moves of the session's states
 *
 * Owns: the table that says which state may follow which. Never decides when.
 */
#include "session.h"

#define TO(state) (1u << (state))

struct state_row {
    const char *name;
    unsigned next;
};

/* clang-format off */
static const struct state_row states[ST_NUM] = {
    [ST_NONE] = { "none",
        TO(ST_CLAIMING) | TO(ST_ALONE) | TO(ST_OUTDATED) | TO(ST_STANDBY_WAIT) },
    [ST_CLAIMING] = { "claiming",
        TO(ST_ALONE) | TO(ST_OUTDATED) | TO(ST_NONE) | TO(ST_ENDED) },
    [ST_ALONE] = { "alone",
        TO(ST_SYNCING) | TO(ST_CLAIMING) | TO(ST_NONE) | TO(ST_ENDED) },
    [ST_SYNCING] = { "syncing",
        TO(ST_ENTERING) | TO(ST_ALONE) | TO(ST_ENDED) },
    [ST_ENTERING] = { "entering",
        TO(ST_PROTECTED) | TO(ST_CLAIMING) | TO(ST_ALONE) | TO(ST_ENDED) },
    [ST_PROTECTED] = { "protected",
        TO(ST_CLAIMING) | TO(ST_ENDED) },
    [ST_OUTDATED] = { "outdated",
        TO(ST_CLAIMING) | TO(ST_ENDED) },
    [ST_STANDBY_WAIT] = { "standby-wait",
        TO(ST_STANDBY_SYNCING) | TO(ST_NONE) | TO(ST_ALONE) | TO(ST_OUTDATED) | TO(ST_ENDED) },
    [ST_STANDBY_SYNCING] = { "standby-syncing",
        TO(ST_STANDBY_READY) | TO(ST_STANDBY_WAIT) | TO(ST_ENDED) },
    [ST_STANDBY_READY] = { "standby-ready",
        TO(ST_STANDBY_ASKING) | TO(ST_STANDBY_WAIT) | TO(ST_ENDED) },
    [ST_STANDBY_ASKING] = { "standby-asking",
        TO(ST_PROMOTING) | TO(ST_STANDBY_WAIT) | TO(ST_ENDED) },
    [ST_PROMOTING] = { "promoting",
        TO(ST_ALONE) | TO(ST_BROKEN) | TO(ST_ENDED) },
    [ST_ENDED] = { "ended",
        TO(ST_NONE) | TO(ST_CLAIMING) | TO(ST_ALONE) | TO(ST_OUTDATED) | TO(ST_STANDBY_WAIT) },
    [ST_BROKEN] = { "broken",
        TO(ST_ENDED) },
};

static const char *const event_names[SE_NUM] = {
    [SE_START] = "start", [SE_TICK] = "tick", [SE_GUEST_ATTACHED] = "guest-attached",
    [SE_GUEST_LOST] = "guest-lost", [SE_GUEST_ENDED] = "guest-ended",
    [SE_GUEST_STOPPED] = "guest-stopped", [SE_GUEST_RESUMED] = "guest-resumed",
    [SE_OP_PAIR] = "op-pair", [SE_OP_UNPAIR] = "op-unpair", [SE_OP_PROMOTE] = "op-promote",
    [SE_OP_SHUTDOWN] = "op-shutdown", [SE_LINK_UP] = "link-up", [SE_LINK_DOWN] = "link-down",
    [SE_PEER_ALIVE] = "peer-alive", [SE_PEER_HELLO] = "peer-hello",
    [SE_PEER_LAYOUT] = "peer-layout", [SE_PEER_REFUSED] = "peer-refused",
    [SE_PEER_GONE] = "peer-gone", [SE_PEER_ENDED] = "peer-ended", [SE_PEER_ERROR] = "peer-error",
    [SE_OUTPUT_WAITS] = "output-waits", [SE_CAPTURED] = "captured",
    [SE_CAPTURE_FAILED] = "capture-failed", [SE_SLOT_FREE] = "slot-free", [SE_ACK] = "ack",
    [SE_RX_BEGIN] = "rx-begin", [SE_RX_COMPLETE] = "rx-complete", [SE_APPLIED] = "applied",
    [SE_RELEASED] = "released", [SE_RX_PAUSED] = "rx-paused", [SE_ARBITER] = "arbiter",
    [SE_DONE] = "done",
};

static const char *const action_names[SA_NUM] = {
    [SA_MOVED] = "moved", [SA_NOTE] = "note", [SA_OP_REPLY] = "op-reply",
    [SA_CONNECT] = "connect", [SA_DISCONNECT] = "disconnect", [SA_SEND_HELLO] = "send-hello",
    [SA_SEND_REFUSE] = "send-refuse", [SA_SEND_HEARTBEAT] = "send-heartbeat",
    [SA_SEND_ACK] = "send-ack", [SA_SEND_APPLIED] = "send-applied", [SA_SEND_GONE] = "send-gone",
    [SA_SEND_ENDED] = "send-ended", [SA_CHECKPOINT_START] = "checkpoint-start",
    [SA_CHECKPOINT_STOP] = "checkpoint-stop", [SA_CAPTURE] = "capture",
    [SA_SEND_SLOT] = "send-slot", [SA_OUTPUT] = "output", [SA_RELEASE] = "release",
    [SA_APPLY] = "apply", [SA_LOAD] = "load", [SA_RUN] = "run", [SA_STOP_GUEST] = "stop-guest",
    [SA_ANNOUNCE] = "announce", [SA_SAVE] = "save", [SA_ASK] = "ask", [SA_EXIT] = "exit",
};
/* clang-format on */

bool session_may_move(enum session_state from, enum session_state to)
{
    if (from >= ST_NUM || to >= ST_NUM)
        return false;
    return states[from].next & TO(to);
}

const char *session_state_name(enum session_state state)
{
    return state < ST_NUM ? states[state].name : "?";
}

const char *session_event_name(enum session_event_type type)
{
    return type < SE_NUM ? event_names[type] : "?";
}

const char *session_action_name(enum session_action_type type)
{
    return type < SA_NUM ? action_names[type] : "?";
}
