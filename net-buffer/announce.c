/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * announce.c - telling the network where a guest lives now
 *
 * Frames are written byte by byte in network order, so that they are the same on every host and a
 * test can compare them with vectors written by hand. Learning reads only what it has checked to be
 * there: every length comes from the guest.
 */
#include "announce.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

enum {
    ETH_BYTES = 14,
    VLAN_BYTES = 4,
    ARP_BYTES = 28,
    ETH_MIN_BYTES = 60, /* without the checksum that hardware adds */
    IP6_BYTES = 40,
    NA_BYTES = 32, /* ICMPv6 neighbour advertisement with its target link-layer option */
    NS_MIN_BYTES = 24,

    TYPE_IP4 = 0x0800,
    TYPE_ARP = 0x0806,
    TYPE_RARP = 0x8035,
    TYPE_VLAN = 0x8100,
    TYPE_IP6 = 0x86dd,

    OP_REQUEST = 1,
    OP_REPLY = 2,
    OP_RARP_REQUEST = 3,

    PROTO_ICMP6 = 58,
    ICMP6_NS = 135,
    ICMP6_NA = 136,
    ND_OPT_SOURCE = 1,
    ND_OPT_TARGET = 2,
    VLAN_MAX = 4094,
};

const struct announce_schedule announce_schedule_default = {
    .initial_ms = 50, .step_ms = 100, .max_ms = 550, .rounds = 5};

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
static const uint8_t zeros[16];

static uint8_t *put16(uint8_t *p, unsigned value)
{
    p[0] = (uint8_t)(value >> 8);
    p[1] = (uint8_t)value;
    return p + 2;
}

static uint8_t *put(uint8_t *p, const void *bytes, size_t len)
{
    memcpy(p, bytes, len);
    return p + len;
}

static unsigned get16(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}

/* --- addresses ------------------------------------------------------------------------------- */

static bool mac_is_usable(const uint8_t mac[6])
{
    return !(mac[0] & 1) && memcmp(mac, zeros, 6);
}

static bool ip4_is_usable(const uint8_t ip[4])
{
    /* 0/8 is "this network", 127/8 loopback, 224/4 multicast, 240/4 reserved with broadcast. */
    return ip[0] != 0 && ip[0] != 127 && ip[0] < 224;
}

static bool ip6_is_usable(const uint8_t ip[16])
{
    /* ::/8 holds the unspecified and the loopback address and all mapped forms. */
    return ip[0] != 0 && ip[0] != 0xff;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int announce_parse_mac(const char *text, uint8_t ret_mac[6])
{
    uint8_t mac[6];
    int i, high, low;

    for (i = 0; i < 6; i++, text += 3) {
        high = hex_digit(text[0]);
        low = high < 0 ? -1 : hex_digit(text[1]);
        if (low < 0 || text[2] != (i < 5 ? ':' : '\0'))
            return -EINVAL;
        mac[i] = (uint8_t)(high << 4 | low);
    }
    if (!mac_is_usable(mac))
        return -EINVAL;
    memcpy(ret_mac, mac, 6);
    return 0;
}

static int parse_vlan(const char *text, uint16_t *ret_vlan)
{
    unsigned vlan = 0;

    if (*text < '1' || *text > '9')
        return -EINVAL;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return -EINVAL;
        vlan = vlan * 10 + (unsigned)(*text - '0');
        if (vlan > VLAN_MAX)
            return -EINVAL;
    }
    *ret_vlan = (uint16_t)vlan;
    return 0;
}

static int parse_ip(const char *text, struct announce_addr *ret_addr)
{
    struct announce_addr addr = {.proof = ANNOUNCE_TOLD};

    if (inet_pton(AF_INET, text, addr.ip) == 1) {
        if (!ip4_is_usable(addr.ip))
            return -EADDRNOTAVAIL;
    } else if (inet_pton(AF_INET6, text, addr.ip) == 1) {
        addr.ip6 = true;
        if (!ip6_is_usable(addr.ip))
            return -EADDRNOTAVAIL;
    } else {
        return -EINVAL;
    }
    *ret_addr = addr;
    return 0;
}

static struct announce_addr *find_addr(struct announce_guest *guest,
                                       const struct announce_addr *addr)
{
    unsigned i;

    for (i = 0; i < guest->nr_addrs; i++) {
        struct announce_addr *a = &guest->addr[i];

        if (a->ip6 == addr->ip6 && a->vlan == addr->vlan && !memcmp(a->ip, addr->ip, 16))
            return a;
    }
    return NULL;
}

int announce_parse_guest(const char *text, struct announce_guest *ret_guest)
{
    struct announce_guest guest = {0};
    struct announce_addr addr;
    char copy[ANNOUNCE_TEXT_MAX];
    char *list, *vlan, *next;
    size_t len = strnlen(text, sizeof(copy));
    int err;

    if (len == sizeof(copy))
        return -E2BIG;
    memcpy(copy, text, len + 1);
    list = strchr(copy, '=');
    if (list)
        *list++ = '\0';
    vlan = strchr(copy, '@');
    if (vlan)
        *vlan++ = '\0';
    err = announce_parse_mac(copy, guest.mac);
    if (!err && vlan)
        err = parse_vlan(vlan, &guest.vlan);
    for (; !err && list; list = next) {
        next = strchr(list, ',');
        if (next)
            *next++ = '\0';
        err = parse_ip(list, &addr);
        if (err)
            break;
        addr.vlan = guest.vlan;
        if (find_addr(&guest, &addr))
            err = -EEXIST;
        else if (guest.nr_addrs == ANNOUNCE_ADDRS_MAX)
            err = -E2BIG;
        else
            guest.addr[guest.nr_addrs++] = addr;
    }
    if (!err)
        *ret_guest = guest;
    return err;
}

/* --- frames ---------------------------------------------------------------------------------- */

static uint8_t *put_eth(uint8_t *p, const uint8_t to[6], const uint8_t from[6], uint16_t vlan,
                        unsigned type)
{
    p = put(p, to, 6);
    p = put(p, from, 6);
    if (vlan != ANNOUNCE_VLAN_NONE) {
        p = put16(p, TYPE_VLAN);
        p = put16(p, vlan);
    }
    return put16(p, type);
}

static int check_room(uint16_t vlan, size_t len, size_t size)
{
    if (vlan > VLAN_MAX)
        return -EINVAL;
    return len > size ? -ENOSPC : 0;
}

static size_t vlan_bytes(uint16_t vlan)
{
    return vlan == ANNOUNCE_VLAN_NONE ? 0 : VLAN_BYTES;
}

struct arp {
    unsigned type;
    unsigned op;
    const uint8_t *sender_ip;
    const uint8_t *target_mac;
    const uint8_t *target_ip;
};

static int build_arp(const uint8_t mac[6], uint16_t vlan, const struct arp *arp, uint8_t *frame,
                     size_t size)
{
    /* A tagged frame is padded to 64 so that it is still long enough once a switch untags it. */
    size_t len = ETH_MIN_BYTES + vlan_bytes(vlan);
    int err = check_room(vlan, len, size);
    uint8_t *p = frame;

    if (err)
        return err;
    memset(frame, 0, len);
    p = put_eth(p, broadcast, mac, vlan, arp->type);
    p = put16(p, 1); /* Ethernet */
    p = put16(p, TYPE_IP4);
    *p++ = 6;
    *p++ = 4;
    p = put16(p, arp->op);
    p = put(p, mac, 6);
    p = put(p, arp->sender_ip, 4);
    p = put(p, arp->target_mac, 6);
    put(p, arp->target_ip, 4);
    return (int)len;
}

int announce_build_rarp(const uint8_t mac[6], uint16_t vlan, uint8_t *frame, size_t size)
{
    const struct arp arp = {.type = TYPE_RARP,
                            .op = OP_RARP_REQUEST,
                            .sender_ip = zeros,
                            .target_mac = mac,
                            .target_ip = zeros};

    return build_arp(mac, vlan, &arp, frame, size);
}

int announce_build_arp(const uint8_t mac[6], uint16_t vlan, const uint8_t ip[4], bool reply,
                       uint8_t *frame, size_t size)
{
    const struct arp arp = {.type = TYPE_ARP,
                            .op = reply ? OP_REPLY : OP_REQUEST,
                            .sender_ip = ip,
                            .target_mac = reply ? mac : zeros,
                            .target_ip = ip};

    return build_arp(mac, vlan, &arp, frame, size);
}

static uint32_t sum16(const uint8_t *p, size_t len, uint32_t sum)
{
    size_t i;

    for (i = 0; i + 1 < len; i += 2)
        sum += get16(p + i);
    if (len & 1)
        sum += (uint32_t)p[len - 1] << 8;
    return sum;
}

/* RFC 4443 section 2.3: over the pseudo header (RFC 8200 section 8.1) and the message. */
static unsigned icmp6_checksum(const uint8_t *ip6, const uint8_t *message, size_t len)
{
    uint32_t sum = sum16(ip6 + 8, 32, (uint32_t)len + PROTO_ICMP6);

    sum = sum16(message, len, sum);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return ~sum & 0xffff;
}

int announce_build_na(const uint8_t mac[6], uint16_t vlan, const uint8_t ip[16], uint8_t *frame,
                      size_t size)
{
    static const uint8_t all_nodes_mac[6] = {0x33, 0x33, 0, 0, 0, 1};
    static const uint8_t all_nodes[16] = {0xff, 0x02, [15] = 1};
    size_t len = ETH_BYTES + vlan_bytes(vlan) + IP6_BYTES + NA_BYTES;
    int err = check_room(vlan, len, size);
    uint8_t *ip6, *na, *p = frame;

    if (err)
        return err;
    memset(frame, 0, len);
    ip6 = p = put_eth(p, all_nodes_mac, mac, vlan, TYPE_IP6);
    p = put16(p, 0x6000);
    p = put16(p, 0);
    p = put16(p, NA_BYTES);
    *p++ = PROTO_ICMP6;
    *p++ = 255; /* receivers drop neighbour discovery that crossed a router */
    p = put(p, ip, 16);
    na = p = put(p, all_nodes, 16);
    *p++ = ICMP6_NA;
    *p++ = 0;
    p = put16(p, 0);
    p = put16(p, 0x2000); /* override, not solicited, not known to be a router */
    p = put16(p, 0);
    p = put(p, ip, 16);
    *p++ = ND_OPT_TARGET;
    *p++ = 1; /* in units of eight bytes */
    put(p, mac, 6);
    put16(na + 2, icmp6_checksum(ip6, na, NA_BYTES));
    return (int)len;
}

int announce_frame(const struct announce_guest *guest, enum announce_proof proof, unsigned index,
                   uint8_t *frame, size_t size)
{
    const struct announce_addr *a;
    unsigned i, nr;

    if (!index)
        return announce_build_rarp(guest->mac, guest->vlan, frame, size);
    index--;
    for (i = 0; i < guest->nr_addrs; i++) {
        a = &guest->addr[i];
        if (a->proof < proof)
            continue;
        nr = a->ip6 ? 1 : 2;
        if (index >= nr) {
            index -= nr;
            continue;
        }
        if (a->ip6)
            return announce_build_na(guest->mac, a->vlan, a->ip, frame, size);
        return announce_build_arp(guest->mac, a->vlan, a->ip, index == 1, frame, size);
    }
    return 0;
}

bool announce_next(const struct announce_schedule *schedule, unsigned sent, uint64_t last_ns,
                   uint64_t *ret_next_ns)
{
    uint64_t gap_ms;

    if (sent >= schedule->rounds)
        return false;
    if (!sent)
        return true;
    gap_ms = schedule->initial_ms + (uint64_t)(sent - 1) * schedule->step_ms;
    if (gap_ms > schedule->max_ms)
        gap_ms = schedule->max_ms;
    *ret_next_ns = last_ns + gap_ms * 1000000u;
    return true;
}

/* --- learning -------------------------------------------------------------------------------- */

static struct announce_guest *find_guest(struct announce_table *table, const uint8_t mac[6])
{
    unsigned i;

    for (i = 0; i < table->nr_guests; i++) {
        if (!memcmp(table->guest[i].mac, mac, 6))
            return &table->guest[i];
    }
    return NULL;
}

int announce_add(struct announce_table *table, const struct announce_guest *guest)
{
    if (find_guest(table, guest->mac))
        return -EEXIST;
    if (table->nr_guests == ANNOUNCE_GUESTS_MAX)
        return -ENOSPC;
    table->guest[table->nr_guests++] = *guest;
    return 0;
}

/* The address that makes way for a new one of proof @proof; NULL when all are worth more. */
static struct announce_addr *find_victim(struct announce_guest *guest, enum announce_proof proof)
{
    struct announce_addr *victim = NULL;
    unsigned i;

    for (i = 0; i < guest->nr_addrs; i++) {
        struct announce_addr *a = &guest->addr[i];

        if (a->proof == ANNOUNCE_TOLD || a->proof > proof)
            continue;
        if (!victim || a->proof < victim->proof ||
            (a->proof == victim->proof && a->used < victim->used))
            victim = a;
    }
    return victim;
}

static bool learn_addr(struct announce_table *table, struct announce_guest *guest,
                       const struct announce_addr *seen)
{
    struct announce_addr *a = find_addr(guest, seen);
    bool better = true;

    if (a) {
        better = seen->proof > a->proof;
        if (better)
            a->proof = seen->proof;
    } else {
        a = guest->nr_addrs < ANNOUNCE_ADDRS_MAX ? &guest->addr[guest->nr_addrs++]
                                                 : find_victim(guest, seen->proof);
        if (!a)
            return false;
        *a = *seen;
    }
    a->used = ++table->turn;
    return better;
}

static bool read_arp(const uint8_t *p, size_t len, const uint8_t mac[6], struct announce_addr *addr)
{
    static const uint8_t head[6] = {0, 1, TYPE_IP4 >> 8, TYPE_IP4 & 0xff, 6, 4};
    unsigned op;

    if (len < ARP_BYTES || memcmp(p, head, sizeof(head)))
        return false;
    op = get16(p + 6);
    /* A proxy answers with another's MAC, a probe (RFC 5227) with address zero: neither claims. */
    if ((op != OP_REQUEST && op != OP_REPLY) || memcmp(p + 8, mac, 6) || !ip4_is_usable(p + 14))
        return false;
    memcpy(addr->ip, p + 14, 4);
    addr->proof = ANNOUNCE_CLAIMED;
    return true;
}

static bool read_ip4(const uint8_t *p, size_t len, struct announce_addr *addr)
{
    if (len < 20 || p[0] >> 4 != 4 || !ip4_is_usable(p + 12))
        return false;
    memcpy(addr->ip, p + 12, 4);
    addr->proof = ANNOUNCE_SEEN;
    return true;
}

/* True when the options of a neighbour discovery message say @mac in option @type. */
static bool option_says(const uint8_t *p, size_t len, unsigned type, const uint8_t mac[6])
{
    size_t bytes;

    while (len >= 8) {
        bytes = (size_t)p[1] * 8;
        if (!bytes || bytes > len)
            return false;
        if (p[0] == type)
            return bytes == 8 && !memcmp(p + 2, mac, 6);
        p += bytes;
        len -= bytes;
    }
    return false;
}

static bool read_ip6(const uint8_t *p, size_t len, const uint8_t mac[6], struct announce_addr *addr)
{
    const uint8_t *nd, *ip;
    size_t nd_len;

    if (len < IP6_BYTES || p[0] >> 4 != 6)
        return false;
    nd = p + IP6_BYTES;
    ip = p + 8;
    nd_len = get16(p + 4);
    addr->proof = ANNOUNCE_SEEN;
    if (p[6] == PROTO_ICMP6 && p[7] == 255 && nd_len >= NS_MIN_BYTES && nd_len <= len - IP6_BYTES) {
        if (nd[0] == ICMP6_NA && option_says(nd + 24, nd_len - 24, ND_OPT_TARGET, mac)) {
            ip = nd + 8;
            addr->proof = ANNOUNCE_CLAIMED;
        } else if (nd[0] == ICMP6_NS && option_says(nd + 24, nd_len - 24, ND_OPT_SOURCE, mac)) {
            addr->proof = ANNOUNCE_CLAIMED;
        }
    }
    if (!ip6_is_usable(ip))
        return false;
    memcpy(addr->ip, ip, 16);
    addr->ip6 = true;
    return true;
}

bool announce_learn(struct announce_table *table, const uint8_t *frame, size_t len)
{
    struct announce_addr addr = {0};
    struct announce_guest *guest;
    const uint8_t *p;
    unsigned type;
    bool found = false;

    if (len < ETH_BYTES)
        return false;
    guest = find_guest(table, frame + 6);
    if (!guest)
        return false;
    type = get16(frame + 12);
    p = frame + ETH_BYTES;
    len -= ETH_BYTES;
    if (type == TYPE_VLAN) {
        if (len < VLAN_BYTES)
            return false;
        addr.vlan = get16(p) & 0xfff; /* 0 is a priority tag: no VLAN */
        if (addr.vlan > VLAN_MAX)
            return false;
        type = get16(p + 2);
        p += VLAN_BYTES;
        len -= VLAN_BYTES;
    }
    if (type == TYPE_ARP)
        found = read_arp(p, len, guest->mac, &addr);
    else if (type == TYPE_IP4)
        found = read_ip4(p, len, &addr);
    else if (type == TYPE_IP6)
        found = read_ip6(p, len, guest->mac, &addr);
    return found && learn_addr(table, guest, &addr);
}
