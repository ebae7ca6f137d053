/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mailbox.c - session events that wait for their turn; see mailbox.h
 */
#include "mailbox.h"

#include <stdio.h>

#include "bug.h"

void mailbox_put(struct mailbox *box, const struct session_event *event)
{
    unsigned at = (box->head + box->nr) % MAILBOX_EVENTS;

    ASSERT(box->nr < MAILBOX_EVENTS);
    box->event[at] = *event;
    if (event->text) {
        snprintf(box->text[at], SESSION_TEXT_BYTES, "%s", event->text);
        box->event[at].text = box->text[at];
    }
    box->nr++;
}

void mailbox_say(struct mailbox *box, enum session_event_type type, const char *text)
{
    mailbox_put(box, &(struct session_event){ .type = type, .text = text });
}

bool mailbox_take(struct mailbox *box, struct session_event *ret_event)
{
    if (box->nr == 0)
        return false;
    *ret_event = box->event[box->head];
    box->head = (box->head + 1) % MAILBOX_EVENTS;
    box->nr--;
    return true;
}
