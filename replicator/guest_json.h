/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * guest_json.h - take QEMU's answers apart, trusting none of their types or sizes
 */
#ifndef POLLUX_GUEST_JSON_H
#define POLLUX_GUEST_JSON_H

#include "guest.h"

struct json_object;

/** @return the member's number, or 0 when it is missing, negative or none */
uint64_t guest_json_u64(struct json_object *o, const char *key);
bool guest_json_bool(struct json_object *o, const char *key);

/** Copy the member's string, cut to fit; "" when it is missing or none. */
void guest_json_text(struct json_object *o, const char *key, char *ret, size_t cap);

/** Take query-checkpoint's answer. @return 0 or -EPROTO when it does not describe a guest we can handle; g->step_why says why */
int guest_json_identity(struct guest *g, struct json_object *o);

/**
 * Take query-checkpoint's answer after a start: do the guest's NICs still stand as we know them, and are they all covered by
 * a checkpoint-buffer? If not, g->step_why says why, unless it says something already. Learns which are covered.
 */
void guest_json_covered(struct guest *g, struct json_object *o);

/** Take checkpoint-capture's answer. */
void guest_json_capture(struct json_object *o, struct guest_capture *ret);

#endif
