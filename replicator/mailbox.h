/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mailbox.h - session events that wait for their turn
 *
 * Owns: a bounded queue and the events' texts. The daemon's parts put events in as they come; the loop
 * takes them out one by one, so that no part is ever called back from within itself.
 */
#ifndef POLLUX_MAILBOX_H
#define POLLUX_MAILBOX_H

#include "session.h"

/* A turn of the loop takes at most LOOP_EVENTS_MAX completions; a receive buffer holds at most some thousand
 * empty records, and link.c stops taking records while the box is more than half full. */
#define MAILBOX_EVENTS 4096

struct mailbox {
    unsigned head, nr;
    struct session_event event[MAILBOX_EVENTS];
    char text[MAILBOX_EVENTS][SESSION_TEXT_BYTES];
};

/** Append an event; its text is copied. The queue's bound is our own promise: full is a bug. */
void mailbox_put(struct mailbox *box, const struct session_event *event);

/** Append an event that has only a type and perhaps a text (NULL: none). */
void mailbox_say(struct mailbox *box, enum session_event_type type, const char *text);

/** @return false when empty; *ret_event's text is valid until the next put */
bool mailbox_take(struct mailbox *box, struct session_event *ret_event);

static inline bool mailbox_half_full(const struct mailbox *box)
{
    return box->nr > MAILBOX_EVENTS / 2;
}

#endif
