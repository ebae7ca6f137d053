/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * session_private.h - what the session's own files share; nobody else includes it
 */
#ifndef POLLUX_SESSION_PRIVATE_H
#define POLLUX_SESSION_PRIVATE_H

#include <stdio.h>

#include "bug.h"
#include "session.h"

#define NEVER INT64_MAX
#define OUTPUT_RETRY_NS INT64_C(200000000)
#define GENERATION_MAX (UINT64_C(1) << 48) /* one failover a microsecond for nine years */

#ifdef SESSION_MUTANTS
#define MUTANT(name) (session_mutant == MUTANT_##name)
#else
#define MUTANT(name) 0
#endif

/** Append an action. @return it, zeroed but for its type; valid until the next call */
struct session_action *session_act(struct session *s, enum session_action_type type);

/** Append an action that is answered by SE_DONE; its serial is put in *ret_wait. */
struct session_action *session_act_done(struct session *s, enum session_action_type type,
                                        uint64_t *ret_wait);

/** The one way to change the state: checks the table, tells the caller. */
void session_move(struct session *s, enum session_state to, const char *reason);

/** Hang up, if there is a link. */
void session_disconnect(struct session *s);

/** The peer is called again that much later, if this side wants one. */
void session_connect_after(struct session *s, int64_t delay_ns);

/** The peer is lost, refused or broken: what follows depends on the state. */
void session_lose_peer(struct session *s, const char *reason);

/** Both halves of giving up "alone" are done. */
bool session_gave_up_alone(const struct session *s);

/* session_capture.c: the active side's epochs */
void session_pipe_reset(struct session *s);
void session_pipe_pump(struct session *s);
int64_t session_pipe_due(const struct session *s);
void session_on_captured(struct session *s, const struct session_event *e);
void session_on_slot_free(struct session *s, const struct session_event *e);
void session_on_ack(struct session *s, const struct session_event *e);
void session_on_output_waits(struct session *s);
void session_enter(struct session *s);

/* session_standby.c: the standby's side */
void session_on_rx_begin(struct session *s, const struct session_event *e);
void session_on_rx_complete(struct session *s, const struct session_event *e);
void session_on_applied(struct session *s, const struct session_event *e);
void session_standby_begin(struct session *s, uint64_t generation);
void session_standby_ack(struct session *s);
void session_standby_promote(struct session *s, const char *reason);
void session_standby_leave(struct session *s, const char *reason);

/** A copy, whole or not yet, is in our QEMU. */
bool session_standby_holds(const struct session *s);
void session_on_load_done(struct session *s, int error);
void session_on_run_done(struct session *s, int error);

/* session_claim.c: generations, the arbiter, the operator */
void session_save(struct session *s, enum session_role role);
void session_output(struct session *s, enum session_output mode);

/** Alone: what is held goes out, and a guest that was stopped for it goes on. */
void session_pass_and_run(struct session *s);
void session_stop_checkpoint(struct session *s);
void session_claim(struct session *s, const char *reason);

/** Alone, as the file should say it: with the arbiter's knowledge, or by force. */
void session_save_alone(struct session *s);

/** Another side runs the guest: ours is stopped, and what it held is dropped. Saving it is the caller's. */
void session_outdated(struct session *s, const char *reason);

/** The first claim came to nothing: as if pair had not been said, which is answered. */
void session_drop_first_claim(struct session *s, const char *reason, int code, const char *text);

/** Back to the generation that the register may know, when what was forced is over. The caller saves it. */
void session_forget_force(struct session *s);

/** Alone by the operator's force, and the register does not know of it. */
bool session_forced(const struct session *s);
void session_doubt(struct session *s);
void session_ask(struct session *s);
void session_on_arbiter(struct session *s, const struct session_event *e);
void session_reply(struct session *s, int code, const char *text);
void session_on_pair(struct session *s, const struct session_event *e);
void session_on_unpair(struct session *s);
void session_on_promote(struct session *s, const struct session_event *e);
void session_on_shutdown(struct session *s);
void session_on_capture_failed(struct session *s, const struct session_event *e);
void session_finish_alone(struct session *s);

#endif
