/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * guest_json.c - take QEMU's answers apart, trusting none of their types or sizes; see guest_json.h
 */
#include "guest_json.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINES_MAX 4096
#define KEY_BYTES 192
#define VALUE_BYTES 160

uint64_t guest_json_u64(struct json_object *o, const char *key)
{
    struct json_object *v;

    if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_int) ||
        json_object_get_int64(v) < 0)
        return 0;
    return json_object_get_uint64(v);
}

bool guest_json_bool(struct json_object *o, const char *key)
{
    struct json_object *v;

    return json_object_object_get_ex(o, key, &v) && json_object_is_type(v, json_type_boolean) &&
           json_object_get_boolean(v);
}

void guest_json_text(struct json_object *o, const char *key, char *ret, size_t cap)
{
    struct json_object *v;

    ret[0] = '\0';
    if (json_object_object_get_ex(o, key, &v) && json_object_is_type(v, json_type_string))
        snprintf(ret, cap, "%s", json_object_get_string(v));
}

static struct json_object *list(struct json_object *o, const char *key, size_t *ret_nr)
{
    struct json_object *v;

    *ret_nr = 0;
    if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_array))
        return NULL;
    *ret_nr = json_object_array_length(v);
    return v;
}

/* Lines of the layout in the making: keys and values in one allocation, freed by the caller. */
struct lines {
    size_t nr;
    struct layout_line line[LINES_MAX];
    char key[LINES_MAX][KEY_BYTES];
    char value[LINES_MAX][VALUE_BYTES];
};

__attribute__((format(printf, 2, 3))) static char *add_key(struct lines *l, const char *format, ...)
{
    va_list ap;
    size_t i = l->nr;

    if (i == LINES_MAX)
        return NULL;
    va_start(ap, format);
    vsnprintf(l->key[i], KEY_BYTES, format, ap);
    va_end(ap);
    l->line[i].key = l->key[i];
    l->line[i].key_len = strlen(l->key[i]);
    l->line[i].value = l->value[i];
    l->nr++;
    return l->value[i];
}

static int take_blocks(struct guest *g, struct json_object *o, struct lines *l)
{
    size_t nr;
    struct json_object *blocks = list(o, "blocks", &nr);

    if (nr == 0 || nr > GUEST_BLOCKS_MAX)
        return -EPROTO;
    g->memory_bytes = 0;
    g->nr_blocks = (unsigned)nr;
    for (size_t i = 0; i < nr; i++) {
        struct json_object *b = json_object_array_get_idx(blocks, i);
        char id[KEY_BYTES - 8];
        uint64_t bytes = guest_json_u64(b, "size");
        char *value;
        guest_json_text(b, "id", id, sizeof(id));
        if (bytes == 0 || bytes % 4096 || bytes / 4096 > 1ull << 32)
            return -EPROTO;
        g->block_pages[i] = bytes / 4096;
        g->memory_bytes += bytes;
        value = add_key(l, "ram:%s", id);
        if (!value)
            return -EPROTO;
        snprintf(value, VALUE_BYTES, "%llu", (unsigned long long)bytes);
    }
    return 0;
}

static int take_sections(struct json_object *o, struct lines *l)
{
    size_t nr;
    struct json_object *sections = list(o, "sections", &nr);

    for (size_t i = 0; i < nr; i++) {
        struct json_object *s = json_object_array_get_idx(sections, i);
        char id[KEY_BYTES - 40];
        char *value;
        guest_json_text(s, "id", id, sizeof(id));
        value = add_key(l, "section:%s:%llu", id, (unsigned long long)guest_json_u64(s, "instance"));
        if (!value)
            return -EPROTO;
        snprintf(value, VALUE_BYTES, "%llu", (unsigned long long)guest_json_u64(s, "version"));
    }
    return nr ? 0 : -EPROTO;
}

static int take_nics(struct guest *g, struct json_object *o, struct lines *l)
{
    size_t nr;
    struct json_object *nics = list(o, "nics", &nr);

    if (nr > GUEST_NICS_MAX)
        return -EPROTO;
    g->nr_nics = (unsigned)nr;
    for (size_t i = 0; i < nr; i++) {
        struct json_object *n = json_object_array_get_idx(nics, i);
        struct guest_nic *nic = &g->nic[i];
        char *value;
        guest_json_text(n, "netdev", nic->netdev, sizeof(nic->netdev));
        guest_json_text(n, "model", nic->model, sizeof(nic->model));
        guest_json_text(n, "mac", nic->mac, sizeof(nic->mac));
        nic->vhost = guest_json_bool(n, "vhost");
        nic->buffered = guest_json_bool(n, "buffered");
        value = add_key(l, "nic:%zu", i);
        if (!value)
            return -EPROTO;
        snprintf(value, VALUE_BYTES, "%s %s", nic->model, nic->mac);
    }
    return 0;
}

/* Disks are not replicated yet: a guest that could write one must not be called protected. */
static void take_disks(struct guest *g, struct json_object *o)
{
    size_t nr;
    struct json_object *disks = list(o, "disks", &nr);

    g->disk[0] = '\0';
    for (size_t i = 0; i < nr; i++) {
        struct json_object *d = json_object_array_get_idx(disks, i);
        if (guest_json_bool(d, "writable")) {
            guest_json_text(d, "device", g->disk, sizeof(g->disk));
            if (!g->disk[0])
                guest_json_text(d, "node", g->disk, sizeof(g->disk));
            return;
        }
    }
}

int guest_json_identity(struct guest *g, struct json_object *o)
{
    struct lines *l = calloc(1, sizeof(*l));
    char *value;
    ssize_t len = -EPROTO;

    snprintf(g->step_why, sizeof(g->step_why), "QEMU's query-checkpoint answer describes no guest that polluxd can handle");
    if (!l)
        return -ENOMEM;
    guest_json_text(o, "machine", g->machine, sizeof(g->machine));
    g->cpus = guest_json_u64(o, "cpus");
    if (guest_json_u64(o, "target-page-size") != 4096 || take_blocks(g, o, l) < 0 ||
        take_sections(o, l) < 0 || take_nics(g, o, l) < 0)
        goto out;
    take_disks(g, o);
    value = add_key(l, "machine");
    if (value)
        snprintf(value, VALUE_BYTES, "%s", g->machine);
    value = add_key(l, "cpus");
    if (value)
        snprintf(value, VALUE_BYTES, "%llu", (unsigned long long)g->cpus);
    value = add_key(l, "qemu");
    if (value)
        snprintf(value, VALUE_BYTES, "%s", g->qemu);
    for (size_t i = 0; i < l->nr; i++)
        l->line[i].value_len = strlen(l->value[i]);
    len = layout_build(l->line, l->nr, g->layout, LAYOUT_MAX_BYTES);
    if (len >= 0) {
        g->layout_len = (size_t)len;
        g->step_why[0] = '\0';
    }
out:
    free(l);
    return len < 0 ? -EPROTO : 0;
}

__attribute__((format(printf, 2, 3))) static void step_failed(struct guest *g, const char *format, ...)
{
    va_list ap;

    if (g->step_why[0])
        return;
    va_start(ap, format);
    vsnprintf(g->step_why, sizeof(g->step_why), format, ap);
    va_end(ap);
}

void guest_json_covered(struct guest *g, struct json_object *o)
{
    size_t nr;
    struct json_object *nics = list(o, "nics", &nr);

    if (nr != g->nr_nics) {
        step_failed(g, "the guest has %zu NICs now, and had %u when polluxd attached: restart polluxd", nr, g->nr_nics);
        return;
    }
    for (size_t i = 0; i < nr; i++) {
        struct json_object *n = json_object_array_get_idx(nics, i);
        struct guest_nic *nic = &g->nic[i];
        char netdev[GUEST_NAME_BYTES], mac[sizeof(nic->mac)];
        guest_json_text(n, "netdev", netdev, sizeof(netdev));
        guest_json_text(n, "mac", mac, sizeof(mac));
        nic->buffered = guest_json_bool(n, "buffered");
        if (strcmp(netdev, nic->netdev) != 0 || strcmp(mac, nic->mac) != 0)
            step_failed(g, "the guest has other NICs than when polluxd attached: restart polluxd");
        else if (netdev[0] && !nic->buffered)
            step_failed(g, "the output of NIC %s could not be held: it has no checkpoint-buffer", netdev);
    }
}

void guest_json_capture(struct json_object *o, struct guest_capture *ret)
{
    ret->complete = guest_json_bool(o, "complete");
    ret->running = guest_json_bool(o, "running");
    ret->pages = guest_json_u64(o, "pages");
    ret->remaining = guest_json_u64(o, "remaining");
    ret->state_bytes = guest_json_u64(o, "state-bytes");
    ret->held_packets = guest_json_u64(o, "held-packets");
    ret->held_bytes = guest_json_u64(o, "held-bytes");
    ret->stop_ns = (int64_t)guest_json_u64(o, "stop-ns");
    ret->sync_ns = (int64_t)guest_json_u64(o, "sync-ns");
    ret->copy_ns = (int64_t)guest_json_u64(o, "copy-ns");
    ret->state_ns = (int64_t)guest_json_u64(o, "state-ns");
    ret->start_ns = (int64_t)guest_json_u64(o, "start-ns");
    ret->pause_ns = (int64_t)guest_json_u64(o, "pause-ns");
}
