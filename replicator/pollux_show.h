/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * pollux_show.h - status and events in words for people; never talks to anybody but the terminal
 */
#ifndef POLLUX_POLLUX_SHOW_H
#define POLLUX_POLLUX_SHOW_H

#include <json-c/json.h>
#include <stdbool.h>

/**
 * Print a status: one clear line, then details. Fields that are missing are left out.
 * @param status  "result" of the status command
 */
void show_status(struct json_object *status);

/** Print one event as a line. */
void show_event(struct json_object *event);

/** Print what is known before a forced promotion: this side, the peer, the arbiter. */
void show_risk(struct json_object *status);

/** @return whether this side is active and protected, or a standby that could take over now */
bool show_is_protected(struct json_object *status);

/** @return a string member, or other if there is none; lives as long as the object */
const char *show_text(struct json_object *o, const char *key, const char *other);

#endif
