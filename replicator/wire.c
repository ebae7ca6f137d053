/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * wire.c - records of the stream: make them, take them apart, refuse the broken ones
 *
 * Owns the table of types, one row per record of docs/PROTOCOL.md, and the checks of every fixed
 * structure. Never does I/O, reads a clock, logs or allocates. Every -EPROTO comes with a constant
 * sentence that names the broken rule; tests compare those sentences, so each rule has its own.
 */
#include "wire.h"

#include <errno.h>
#include <string.h>

#define BIT(n) (1u << (n))
#define FROM_ACTIVE BIT(WIRE_PEER_ACTIVE)
#define FROM_STANDBY BIT(WIRE_PEER_STANDBY)
#define FROM_BOTH (FROM_ACTIVE | FROM_STANDBY)
#define FROM_CLIENT BIT(WIRE_PEER_CLIENT)
#define FROM_WITNESS BIT(WIRE_PEER_WITNESS)

/* What the header's generation and epoch have to be. */
enum number_rule {
    NUMBERS_ANY,
    NUMBERS_NO_EPOCH,   /* epoch 0 */
    NUMBERS_EPOCH,      /* epoch 1 or more */
    NUMBERS_NONE        /* both 0 */
};

typedef const char *check_fn(const void *payload, size_t len); /* NULL, or the broken rule */

static check_fn check_hello, check_heartbeat, check_epoch_begin, check_epoch_end, check_refuse,
    check_code_1_to_2, check_arb_ask, check_arb_answer;

struct type_rule {
    const char *name;
    unsigned from;     /* FROM_*; 0: not legal in version 1 */
    uint32_t min_bytes;
    uint32_t max_bytes; /* what version 1 knows: a fixed structure's size, or the cap */
    uint32_t cap_bytes;
    enum number_rule numbers;
    check_fn *check;   /* NULL: nothing that is checked here */
};

/* clang-format off */
static const struct type_rule type_rules[WIRE_TYPE_NUM] = {
    [WIRE_HELLO]       = {"HELLO", FROM_BOTH, 88, 88, 256, NUMBERS_ANY, check_hello},
    [WIRE_LAYOUT]      = {"LAYOUT", FROM_BOTH, 0, 262144, 262144, NUMBERS_NO_EPOCH, NULL},
    [WIRE_REFUSE]      = {"REFUSE", FROM_BOTH, 8, 4096, 4096, NUMBERS_NO_EPOCH, check_refuse},
    [WIRE_HEARTBEAT]   = {"HEARTBEAT", FROM_BOTH, 24, 24, 64, NUMBERS_ANY, check_heartbeat},
    [WIRE_EPOCH_BEGIN] = {"EPOCH_BEGIN", FROM_ACTIVE, 16, 16, 64, NUMBERS_EPOCH, check_epoch_begin},
    [WIRE_PAGES]       = {"PAGES", FROM_ACTIVE, 40, 278528, 278528, NUMBERS_EPOCH, NULL},
    [WIRE_STATE]       = {"STATE", FROM_ACTIVE, 24, 262160, 262208, NUMBERS_EPOCH, NULL},
    [WIRE_EPOCH_END]   = {"EPOCH_END", FROM_ACTIVE, 40, 40, 64, NUMBERS_EPOCH, check_epoch_end},
    [WIRE_ACK]         = {"ACK", FROM_STANDBY, 0, 0, 0, NUMBERS_EPOCH, NULL},
    [WIRE_GUEST_GONE]  = {"GUEST_GONE", FROM_ACTIVE, 8, 4096, 4096, NUMBERS_ANY, check_code_1_to_2},
    [WIRE_GUEST_ENDED] = {"GUEST_ENDED", FROM_ACTIVE, 8, 4096, 4096, NUMBERS_ANY, check_code_1_to_2},
    [WIRE_DISK_WRITE]  = {"DISK_WRITE", 0, 0, 0, 0, NUMBERS_ANY, NULL},
    [WIRE_APPLIED]     = {"APPLIED", FROM_STANDBY, 0, 0, 0, NUMBERS_EPOCH, NULL},
    [WIRE_ARB_ASK]     = {"ARB_ASK", FROM_CLIENT, 112, 112, 256, NUMBERS_NONE, check_arb_ask},
    [WIRE_ARB_ANSWER]  = {"ARB_ANSWER", FROM_WITNESS, 112, 112, 256, NUMBERS_NONE, check_arb_answer},
};
/* clang-format on */

static const struct type_rule *rule_of(unsigned type)
{
    return type < WIRE_TYPE_NUM && type_rules[type].from ? &type_rules[type] : NULL;
}

const char *wire_type_name(unsigned type)
{
    return type < WIRE_TYPE_NUM && type_rules[type].name ? type_rules[type].name : "unknown";
}

uint32_t wire_type_cap(unsigned type)
{
    const struct type_rule *rule = rule_of(type);

    return rule ? rule->cap_bytes : 0;
}

/* ---- text ---- */

size_t wire_text_char(const char *text, size_t len)
{
    const uint8_t *t = (const uint8_t *)text;
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    uint32_t c;
    size_t n;

    if (!len)
        return 0;
    if (t[0] < 0x80)
        return t[0] >= 0x20 && t[0] != 0x7f;
    n = t[0] >= 0xf0 ? 4 : t[0] >= 0xe0 ? 3 : 2;
    if (t[0] < 0xc2 || t[0] > 0xf4 || n > len)
        return 0;
    c = t[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((t[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (t[i] & 0x3f);
    }
    /* overlong forms, surrogates, beyond Unicode, C1 controls (which act on terminals) */
    if (c < least[n] || (c >= 0xd800 && c < 0xe000) || c > 0x10ffff || c < 0xa0)
        return 0;
    return n;
}

bool wire_text_valid(const char *text, size_t len)
{
    while (len) {
        size_t n = wire_text_char(text, len);

        if (!n)
            return false;
        text += n;
        len -= n;
    }
    return true;
}

static bool vm_char(char c, bool first)
{
    if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
        return true;
    return !first && (c == '.' || c == '_' || c == '-');
}

static bool all_zero(const void *p, size_t len)
{
    const uint8_t *b = p;

    for (size_t i = 0; i < len; i++) {
        if (b[i])
            return false;
    }
    return true;
}

bool wire_vm_name_valid(const char vm[WIRE_VM_BYTES])
{
    size_t n = 0;

    while (n < WIRE_VM_BYTES && vm_char(vm[n], n == 0))
        n++;
    return n > 0 && n < WIRE_VM_BYTES && all_zero(vm + n, WIRE_VM_BYTES - n);
}

int wire_vm_name(const char *name, char ret_vm[WIRE_VM_BYTES])
{
    char vm[WIRE_VM_BYTES] = {0};
    size_t n = strnlen(name, WIRE_VM_BYTES);

    memcpy(vm, name, n); /* of 48 bytes or more: no zero at the end, so not valid */
    if (!wire_vm_name_valid(vm))
        return -EINVAL;
    memcpy(ret_vm, vm, sizeof(vm));
    return 0;
}

/* ---- what each fixed structure must hold ---- */

static const char *check_hello(const void *payload, size_t len)
{
    struct wire_hello h;

    (void)len;
    memcpy(&h, payload, sizeof(h));
    if (h.version_min == 0 || h.version_min > h.version_max)
        return "HELLO's range of versions is empty";
    if (h.role != WIRE_ROLE_ACTIVE && h.role != WIRE_ROLE_STANDBY)
        return "HELLO's role is neither active nor standby";
    if (!wire_vm_name_valid(h.vm))
        return "HELLO's VM name is not a legal name";
    if (h.flags & ~1)
        return "HELLO has a reserved flag set";
    return NULL;
}

static const char *check_heartbeat(const void *payload, size_t len)
{
    struct wire_heartbeat h;

    (void)len;
    memcpy(&h, payload, sizeof(h));
    return h.reserved ? "HEARTBEAT's reserved field is not zero" : NULL;
}

static const char *check_epoch_begin(const void *payload, size_t len)
{
    struct wire_epoch_begin b;

    (void)len;
    memcpy(&b, payload, sizeof(b));
    if (b.flags & ~(uint32_t)WIRE_EPOCH_FULL)
        return "EPOCH_BEGIN has a reserved flag set";
    if (b.reserved || b.reserved2)
        return "EPOCH_BEGIN's reserved fields are not zero";
    return NULL;
}

static const char *check_epoch_end(const void *payload, size_t len)
{
    struct wire_epoch_end e;

    (void)len;
    memcpy(&e, payload, sizeof(e));
    return e.state_bytes > WIRE_STATE_MAX_BYTES ? "EPOCH_END's device state is over 64 MiB" : NULL;
}

static const char *check_reason(const void *payload, size_t len, uint32_t code_max)
{
    const char *text = (const char *)payload + sizeof(struct wire_reason);
    size_t room = len - sizeof(struct wire_reason);
    struct wire_reason r;
    size_t n;

    memcpy(&r, payload, sizeof(r));
    if (r.code < 1 || r.code > code_max)
        return "the reason's code is not one of its type";
    if (r.reserved)
        return "the reason's reserved field is not zero";
    n = strnlen(text, room);
    if (room - n > 7 || !all_zero(text + n, room - n))
        return "the reason's text is not padded with at most 7 zero bytes";
    return wire_text_valid(text, n) ? NULL : "the reason's text is not printable UTF-8";
}

static const char *check_refuse(const void *payload, size_t len)
{
    return check_reason(payload, len, WIRE_REFUSE_ITSELF);
}

static const char *check_code_1_to_2(const void *payload, size_t len)
{
    return check_reason(payload, len, 2);
}

static const char *check_arb_ask(const void *payload, size_t len)
{
    struct wire_arb_ask a;

    (void)len;
    memcpy(&a, payload, sizeof(a));
    if (a.op != WIRE_ARB_READ && a.op != WIRE_ARB_CAS)
        return "ARB_ASK's operation is neither READ nor CAS";
    if (a.reserved)
        return "ARB_ASK's reserved field is not zero";
    if (!wire_vm_name_valid(a.vm))
        return "ARB_ASK's VM name is not a legal name";
    if (a.op == WIRE_ARB_CAS && a.next <= a.expect)
        return "ARB_ASK's next generation is not greater than the expected one";
    return NULL;
}

static const char *check_arb_answer(const void *payload, size_t len)
{
    struct wire_arb_answer a;

    (void)len;
    memcpy(&a, payload, sizeof(a));
    if (a.result < WIRE_ARB_VALUE || a.result > WIRE_ARB_ERROR)
        return "ARB_ANSWER's result is not one of the four";
    if (a.reserved || a.reserved2)
        return "ARB_ANSWER's reserved fields are not zero";
    return wire_vm_name_valid(a.vm) ? NULL : "ARB_ANSWER's VM name is not a legal name";
}

/* ---- one record ---- */

static const char *check_size(const struct type_rule *rule, size_t len)
{
    if (len % 8)
        return "the record's length is not a multiple of 8";
    if (len > rule->cap_bytes)
        return "the record is longer than its type's cap";
    if (len < rule->min_bytes || len > rule->max_bytes)
        return "the record does not have the size of its type's structure";
    return NULL;
}

static const char *check_numbers(const struct type_rule *rule, uint64_t generation, uint64_t epoch)
{
    switch (rule->numbers) {
    case NUMBERS_NO_EPOCH:
        return epoch ? "the header names an epoch, and its type has none" : NULL;
    case NUMBERS_EPOCH:
        return epoch ? NULL : "the header names epoch 0, and epochs are numbered from 1";
    case NUMBERS_NONE:
        return generation || epoch ? "the header names a generation or epoch, and its type has none"
                                   : NULL;
    case NUMBERS_ANY:
        break;
    }
    return NULL;
}

int wire_check_payload(enum wire_type type, const void *payload, size_t len, const char **ret_why)
{
    const struct type_rule *rule = rule_of(type);
    const char *why;

    if (!rule)
        why = "the type is not legal in version 1";
    else
        why = check_size(rule, len);
    if (!why && rule->check)
        why = rule->check(payload, len);
    if (!why)
        return 0;
    *ret_why = why;
    return -EPROTO;
}

uint32_t wire_record_checksum(const void *buf)
{
    uint32_t sum;

    memcpy(&sum, (const uint8_t *)buf + offsetof(struct wire_header, checksum), sizeof(sum));
    return sum;
}

ssize_t wire_seal(struct wire_writer *w, void *buf, enum wire_type type, uint64_t generation,
                  uint64_t epoch, size_t len)
{
    const struct type_rule *rule = rule_of(type);
    uint8_t *payload = (uint8_t *)buf + WIRE_HEADER_BYTES;
    struct wire_header h = {.magic = WIRE_MAGIC,
                            .type = (uint16_t)type,
                            .generation = generation,
                            .epoch = epoch,
                            .sequence = w->sequence};
    const char *why;
    size_t bytes;

    if (!rule || len > rule->max_bytes || check_numbers(rule, generation, epoch))
        return -EINVAL;
    bytes = wire_record_bytes(len);
    memset(payload + len, 0, bytes - WIRE_HEADER_BYTES - len);
    if (wire_check_payload(type, payload, bytes - WIRE_HEADER_BYTES, &why))
        return -EINVAL;
    h.length = (uint32_t)(bytes - WIRE_HEADER_BYTES);
    memcpy(buf, &h, sizeof(h));
    h.checksum = XXH32(buf, bytes, 0);
    memcpy(buf, &h, sizeof(h));
    w->sequence++;
    return (ssize_t)bytes;
}

ssize_t wire_put(struct wire_writer *w, void *buf, size_t cap, enum wire_type type,
                 uint64_t generation, uint64_t epoch, const void *payload, size_t len)
{
    const struct type_rule *rule = rule_of(type);

    if (!rule || len > rule->max_bytes)
        return -EINVAL;
    if (wire_record_bytes(len) > cap)
        return -ENOSPC;
    if (len)
        memcpy((uint8_t *)buf + WIRE_HEADER_BYTES, payload, len);
    return wire_seal(w, buf, type, generation, epoch, len);
}

ssize_t wire_put_reason(struct wire_writer *w, void *buf, size_t cap, enum wire_type type,
                        uint64_t generation, uint64_t epoch, uint32_t code, const char *text)
{
    struct wire_reason r = {.code = code};
    size_t len = text ? strlen(text) : 0;
    size_t max = sizeof(r) + (len < WIRE_TEXT_MAX_BYTES ? len : WIRE_TEXT_MAX_BYTES);
    uint8_t *payload = (uint8_t *)buf + WIRE_HEADER_BYTES;
    size_t used = sizeof(r);

    if (type != WIRE_REFUSE && type != WIRE_GUEST_GONE && type != WIRE_GUEST_ENDED)
        return -EINVAL;
    if (wire_record_bytes(max) > cap)
        return -ENOSPC;
    memcpy(payload, &r, sizeof(r));
    while (len) {
        size_t n = wire_text_char(text, len);

        if (used + (n ? n : 1) > max)
            break;
        if (n)
            memcpy(payload + used, text, n);
        else
            payload[used] = '?';
        n = n ? n : 1;
        used += n;
        text += n;
        len -= n;
    }
    return wire_seal(w, buf, type, generation, epoch, used);
}

/* ---- reading ---- */

size_t wire_reader_min_bytes(enum wire_peer peer)
{
    size_t max = 0;

    for (unsigned type = 0; type < WIRE_TYPE_NUM; type++) {
        if (type_rules[type].from & BIT(peer) && type_rules[type].max_bytes > max)
            max = type_rules[type].max_bytes;
    }
    return WIRE_HEADER_BYTES + max;
}

static bool buffer_fits(const struct wire_reader *r, const void *buf, size_t cap)
{
    return buf && (uintptr_t)buf % 8 == 0 && cap >= wire_reader_min_bytes(r->peer);
}

int wire_reader_init(struct wire_reader *r, enum wire_peer peer, void *buf, size_t cap)
{
    struct wire_reader fresh = {.buf = buf, .cap_bytes = cap, .peer = peer};

    if (!buffer_fits(&fresh, buf, cap))
        return -EINVAL;
    *r = fresh;
    return 0;
}

int wire_reader_move(struct wire_reader *r, void *buf, size_t cap)
{
    size_t left = r->tail - r->head;

    if (!buffer_fits(r, buf, cap) || left > cap)
        return -EINVAL;
    memmove(buf, r->buf + r->head, left);
    r->buf = buf;
    r->cap_bytes = cap;
    r->head = 0;
    r->tail = left;
    return 0;
}

void *wire_reader_space(struct wire_reader *r, size_t *ret_len)
{
    size_t left = r->tail - r->head;
    size_t want = r->header_seen ? WIRE_HEADER_BYTES + r->header.length : WIRE_HEADER_BYTES;

    if (r->why) {
        *ret_len = 0;
        return r->buf;
    }
    /*
     * Move what is left to the front when it is nothing, when the record in hand would not fit, or when
     * so little room is left that receiving would go by crumbs.
     */
    if (r->head && (!left || r->cap_bytes - r->head < want || r->cap_bytes - r->tail < r->cap_bytes / 8)) {
        memmove(r->buf, r->buf + r->head, left);
        r->head = 0;
        r->tail = left;
    }
    *ret_len = r->cap_bytes - r->tail;
    return r->buf + r->tail;
}

int wire_reader_commit(struct wire_reader *r, size_t n)
{
    if (n > r->cap_bytes - r->tail)
        return -EINVAL;
    r->tail += n;
    return 0;
}

bool wire_reader_at_boundary(const struct wire_reader *r)
{
    return r->head == r->tail;
}

/* HELLO first, LAYOUT second, neither of them ever again; or a refusal at once. */
static const char *check_order(const struct wire_reader *r, unsigned type)
{
    if (r->peer != WIRE_PEER_ACTIVE && r->peer != WIRE_PEER_STANDBY)
        return NULL;
    if (r->sequence == 0)
        return type == WIRE_HELLO || type == WIRE_REFUSE ? NULL : "the first record is neither HELLO nor REFUSE";
    if (type == WIRE_HELLO)
        return "HELLO came again";
    if (r->sequence == 1)
        return type == WIRE_LAYOUT || type == WIRE_REFUSE ? NULL
                                                          : "the second record is neither LAYOUT nor REFUSE";
    return type == WIRE_LAYOUT ? "LAYOUT came again" : NULL;
}

static const char *check_header(const struct wire_reader *r, const struct wire_header *h)
{
    const struct type_rule *rule = rule_of(h->type);
    const char *why;

    if (h->magic != WIRE_MAGIC)
        return "the record does not start with PLXR";
    if (!rule)
        return "the type is not legal in version 1";
    if (!(rule->from & BIT(r->peer)))
        return "the type is not for this side to send";
    if (h->flags)
        return "the header's reserved flags are not zero";
    why = check_size(rule, h->length);
    if (why)
        return why;
    if (h->sequence != r->sequence)
        return "the sequence number is not the next one";
    why = check_order(r, h->type);
    return why ? why : check_numbers(rule, h->generation, h->epoch);
}

int wire_next(struct wire_reader *r, struct wire_record *ret)
{
    uint8_t *buf = r->buf + r->head;
    size_t left = r->tail - r->head;
    size_t bytes;

    if (r->why)
        return -EPROTO;
    if (!r->header_seen) {
        if (left < WIRE_HEADER_BYTES)
            return 0;
        memcpy(&r->header, buf, sizeof(r->header));
        r->why = check_header(r, &r->header);
        if (r->why)
            return -EPROTO;
        r->header_seen = true;
    }
    bytes = WIRE_HEADER_BYTES + r->header.length;
    if (left < bytes)
        return 0;
    memset(buf + offsetof(struct wire_header, checksum), 0, sizeof(r->header.checksum));
    if (XXH32(buf, bytes, 0) != r->header.checksum) {
        r->why = "the checksum is wrong";
        return -EPROTO;
    }
    memcpy(buf, &r->header, sizeof(r->header)); /* puts the checksum back */
    if (wire_check_payload(r->header.type, buf + WIRE_HEADER_BYTES, r->header.length, &r->why))
        return -EPROTO;
    r->header_seen = false;
    r->head += bytes;
    r->sequence++;
    *ret = (struct wire_record){.type = r->header.type,
                                .len = r->header.length,
                                .checksum = r->header.checksum,
                                .generation = r->header.generation,
                                .epoch = r->header.epoch,
                                .sequence = r->header.sequence,
                                .payload = buf + WIRE_HEADER_BYTES};
    return 1;
}

/* ---- typed views ---- */

static int copy_out(const struct wire_record *rec, enum wire_type type, void *ret, size_t bytes)
{
    if (rec->type != type || rec->len != bytes)
        return -EINVAL;
    memcpy(ret, rec->payload, bytes);
    return 0;
}

int wire_decode_hello(const struct wire_record *rec, struct wire_hello *ret)
{
    return copy_out(rec, WIRE_HELLO, ret, sizeof(*ret));
}

int wire_decode_heartbeat(const struct wire_record *rec, struct wire_heartbeat *ret)
{
    return copy_out(rec, WIRE_HEARTBEAT, ret, sizeof(*ret));
}

int wire_decode_epoch_begin(const struct wire_record *rec, struct wire_epoch_begin *ret)
{
    return copy_out(rec, WIRE_EPOCH_BEGIN, ret, sizeof(*ret));
}

int wire_decode_epoch_end(const struct wire_record *rec, struct wire_epoch_end *ret)
{
    return copy_out(rec, WIRE_EPOCH_END, ret, sizeof(*ret));
}

int wire_decode_arb_ask(const struct wire_record *rec, struct wire_arb_ask *ret)
{
    return copy_out(rec, WIRE_ARB_ASK, ret, sizeof(*ret));
}

int wire_decode_arb_answer(const struct wire_record *rec, struct wire_arb_answer *ret)
{
    return copy_out(rec, WIRE_ARB_ANSWER, ret, sizeof(*ret));
}

int wire_decode_reason(const struct wire_record *rec, uint32_t *ret_code, const char **ret_text,
                       int *ret_text_len)
{
    const char *payload = rec->payload;
    struct wire_reason r;

    if (rec->type != WIRE_REFUSE && rec->type != WIRE_GUEST_GONE && rec->type != WIRE_GUEST_ENDED)
        return -EINVAL;
    memcpy(&r, payload, sizeof(r));
    *ret_code = r.code;
    *ret_text = payload + sizeof(r);
    *ret_text_len = (int)strnlen(payload + sizeof(r), rec->len - sizeof(r));
    return 0;
}

/* ---- the epoch's digest ---- */

void wire_digest_begin(struct wire_digest *d, uint64_t epoch)
{
    XXH64_reset(&d->state, epoch);
}

void wire_digest_add(struct wire_digest *d, uint32_t checksum)
{
    XXH64_update(&d->state, &checksum, sizeof(checksum)); /* little endian as it stands */
}

uint64_t wire_digest_value(const struct wire_digest *d)
{
    return XXH64_digest(&d->state);
}
