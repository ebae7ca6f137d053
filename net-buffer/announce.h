/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * announce.h - telling the network where a guest lives now
 *
 * Owns the frames sent after a promotion: RARP (switches learn the MAC's port), gratuitous ARP and
 * unsolicited neighbour advertisements (neighbours and routers drop stale entries), their schedule,
 * the operator's description of a guest's addresses, and a bounded table of addresses learned from
 * what the guest sends. Pure: no I/O, no clock, no log, no allocation. Never sends anything itself:
 * the caller hands frames to QEMU's checkpoint-inject.
 */
#ifndef POLLUX_ANNOUNCE_H
#define POLLUX_ANNOUNCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ANNOUNCE_ADDRS_MAX 16u  /* addresses of one MAC */
#define ANNOUNCE_GUESTS_MAX 16u /* MACs of one VM that are learned from */
#define ANNOUNCE_TEXT_MAX 1024u /* bytes of one description, '\0' included */
#define ANNOUNCE_FRAME_MAX 96u  /* no frame built here is longer: 90 with a VLAN tag */
#define ANNOUNCE_VLAN_NONE 0u

/* How far an address is to be believed: higher is stronger. */
enum announce_proof {
    ANNOUNCE_SEEN = 0, /* source of an IP packet: of others, too, if the guest routes */
    ANNOUNCE_CLAIMED,  /* the guest itself claimed it by ARP or neighbour discovery */
    ANNOUNCE_TOLD,     /* the operator said so */
};

struct announce_addr {
    bool ip6;
    uint8_t ip[16]; /* IPv4 in the first four bytes, the rest zero */
    uint16_t vlan;  /* 1..4094, or ANNOUNCE_VLAN_NONE */
    enum announce_proof proof;
    uint64_t used; /* order of last use, for replacing the oldest */
};

/* One NIC of the guest: its MAC and the addresses behind it. */
struct announce_guest {
    uint8_t mac[6];
    uint16_t vlan; /* tag of the RARP, and of addresses an operator wrote */
    unsigned nr_addrs;
    struct announce_addr addr[ANNOUNCE_ADDRS_MAX];
};

/* Everything learned about one VM. */
struct announce_table {
    unsigned nr_guests;
    uint64_t turn; /* counts learning steps; orders announce_addr.used */
    struct announce_guest guest[ANNOUNCE_GUESTS_MAX];
};

/* When to repeat: all sends of one promotion. */
struct announce_schedule {
    uint32_t initial_ms; /* between the first send and the second */
    uint32_t step_ms;    /* each further gap is longer by this */
    uint32_t max_ms;     /* and never longer than this */
    uint32_t rounds;     /* sends in all, the first at once */
};

/* QEMU's own values for announce-self: sends at 0, 50, 200, 450 and 800 ms. */
extern const struct announce_schedule announce_schedule_default;

/**
 * Read a MAC address, six pairs of hexadecimal digits with colons.
 * @param text ends with '\0'
 * @param ret_mac six bytes
 * @return 0, or -EINVAL for anything else, and for a group or all-zero address
 */
int announce_parse_mac(const char *text, uint8_t ret_mac[6]);

/**
 * Read a guest's description: `MAC[@VLAN][=ADDRESS[,ADDRESS...]]`, for example
 * `52:54:00:12:34:56=10.0.0.5,fd00::5`. Addresses are IPv4 or IPv6, without prefix length.
 * @param text ends with '\0', shorter than ANNOUNCE_TEXT_MAX
 * @param ret_guest the result
 * @return 0; -EINVAL malformed; -E2BIG too long or too many addresses; -EADDRNOTAVAIL an address
 *         that no host can own (unspecified, loopback, multicast, broadcast); -EEXIST given twice
 */
int announce_parse_guest(const char *text, struct announce_guest *ret_guest);

/**
 * Build a RARP request as QEMU's announce-self does: moves the MAC in every switch.
 * @param mac of the guest's NIC
 * @param vlan tag, or ANNOUNCE_VLAN_NONE
 * @param frame where to
 * @param size bytes there, ANNOUNCE_FRAME_MAX is always enough
 * @return length of the frame; -EINVAL for a VLAN above 4094, -ENOSPC when it does not fit
 */
int announce_build_rarp(const uint8_t mac[6], uint16_t vlan, uint8_t *frame, size_t size);

/**
 * Build a gratuitous ARP for one IPv4 address (RFC 5227 section 2.3 for the request form, RFC 5944
 * section 4.6 for both). Some stacks only heed requests, some only replies: send both.
 * @param mac of the guest's NIC
 * @param vlan tag, or ANNOUNCE_VLAN_NONE
 * @param ip four bytes
 * @param reply false: request form, true: reply form
 * @param frame where to
 * @param size bytes there
 * @return length, or as announce_build_rarp()
 */
int announce_build_arp(const uint8_t mac[6], uint16_t vlan, const uint8_t ip[4], bool reply,
                       uint8_t *frame, size_t size);

/**
 * Build an unsolicited neighbour advertisement with the override flag (RFC 4861 section 7.2.6).
 * @param mac of the guest's NIC
 * @param vlan tag, or ANNOUNCE_VLAN_NONE
 * @param ip sixteen bytes, source and target
 * @param frame where to
 * @param size bytes there
 * @return length, or as announce_build_rarp()
 */
int announce_build_na(const uint8_t mac[6], uint16_t vlan, const uint8_t ip[16], uint8_t *frame,
                      size_t size);

/**
 * The frames of one round for one NIC, by number: a RARP, then for each address that is proven well
 * enough a request and a reply (IPv4) or an advertisement (IPv6).
 * @param guest the NIC
 * @param proof least proof an address must have; ANNOUNCE_CLAIMED is right unless told otherwise
 * @param index 0, 1, 2...
 * @param frame where to
 * @param size bytes there
 * @return length; 0 when there are no more; -errno as announce_build_rarp()
 */
int announce_frame(const struct announce_guest *guest, enum announce_proof proof, unsigned index,
                   uint8_t *frame, size_t size);

/**
 * When the next round is due.
 * @param schedule rounds and gaps
 * @param sent rounds sent so far, the one at @p last_ns included
 * @param last_ns when the last round was sent
 * @param ret_next_ns when to send the next one
 * @return false when all rounds are sent; true with @p ret_next_ns unchanged if none was: send now
 */
bool announce_next(const struct announce_schedule *schedule, unsigned sent, uint64_t last_ns,
                   uint64_t *ret_next_ns);

/**
 * Add a NIC to learn about, or an operator's description of it.
 * @param table begins as all zero bytes
 * @param guest its MAC, and any addresses already known
 * @return 0, -ENOSPC when the table is full, -EEXIST when the MAC is already there
 */
int announce_add(struct announce_table *table, const struct announce_guest *guest);

/**
 * Learn from one Ethernet frame (no vnet header) that the guest sent. Frames from a MAC that was
 * not added are ignored, and so is anything malformed: the guest is not trusted.
 * @param table of the VM
 * @param frame begins with the destination MAC
 * @param len bytes
 * @return true when an address was new or is better proven than before
 *
 * When a NIC's addresses are full the least proven, longest unused one makes way; what the
 * operator told stays.
 */
bool announce_learn(struct announce_table *table, const uint8_t *frame, size_t len);

#endif
