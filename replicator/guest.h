/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * guest.h - the local QEMU: what it is, and the commands that carry out the session's actions
 *
 * Owns: the QMP connection, what is known of the guest, and which answer belongs to which action. Answers
 * become session events in the mailbox; figures go to the observer. A lost connection means a lost guest:
 * whether QEMU died or only closed its monitor, we cannot capture any more, and only the arbiter decides
 * who runs.
 */
#ifndef POLLUX_GUEST_H
#define POLLUX_GUEST_H

#include <stdbool.h>
#include <sys/un.h>

#include "../qmp-client/qmp.h"
#include "arena.h"
#include "layout.h"
#include "loop.h"
#include "mailbox.h"

#define GUEST_BLOCKS_MAX 256
#define GUEST_NICS_MAX 32
#define GUEST_COMMANDS_MAX QMP_IN_FLIGHT_MAX
#define GUEST_NAME_BYTES 64
#define GUEST_WHY_BYTES 512

enum guest_state { GUEST_DETACHED, GUEST_CONNECTING, GUEST_GREETING, GUEST_ASKING, GUEST_KNOWN };

/* What a pending QMP command was for. */
enum guest_kind {
    GUEST_FREE,
    GUEST_QUERY_STATUS,
    GUEST_QUERY_CHECKPOINT,
    GUEST_STEP,    /* part of an action whose last command answers it */
    GUEST_DONE,    /* answers SE_DONE with .serial */
    GUEST_COVERED, /* query-checkpoint after a start: as DONE, if every NIC has its buffer */
    GUEST_CAPTURE,
    GUEST_APPLY,   /* .slot, .serial: of the store */
    GUEST_LOAD,    /* SE_DONE */
    GUEST_RELEASE, /* .epoch */
    GUEST_QUIET,   /* only an error is worth a line */
};

struct guest_pending {
    uint64_t id;
    enum guest_kind kind;
    uint64_t serial, epoch;
    unsigned slot;
    bool precopy;
    int64_t begun_ns;
};

struct guest_nic {
    char netdev[GUEST_NAME_BYTES];
    char model[GUEST_NAME_BYTES];
    char mac[18];
    bool vhost, buffered;
};

/* Figures of one finished capture. */
struct guest_capture {
    uint64_t epoch;
    unsigned slot;
    bool precopy, complete, running;
    uint64_t pages, remaining, state_bytes, held_packets, held_bytes;
    int64_t stop_ns, sync_ns, copy_ns, state_ns, start_ns, pause_ns;
};

struct guest;

/* Whom to tell what is not the session's business: called from guest_on_event() only. */
struct guest_observer {
    void *opaque;
    void (*captured)(void *opaque, const struct guest_capture *capture);
    void (*applied)(void *opaque, unsigned slot, uint64_t store);
    void (*released)(void *opaque, uint64_t epoch, uint64_t packets, uint64_t bytes);
    void (*warn)(void *opaque, const char *text);
};

struct guest {
    struct loop *loop;
    unsigned slot;
    struct mailbox *box;
    struct guest_observer observer;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct sockaddr_un address;
    enum guest_state state;
    struct qmp_client *qmp;
    struct qmp_client *leaving; /* of the connection before, while its slot drains */
    bool recv_busy, send_busy;
    char rx[16384];
    struct qmp_output_msg out;
    int64_t retry_at_ns;
    int64_t now_ns;
    bool complained;  /* about not reaching QEMU */
    bool ended;       /* the guest or the operator ended QEMU in good order */
    struct guest_pending pending[GUEST_COMMANDS_MAX];
    char step_why[GUEST_WHY_BYTES]; /* first failed step of the action in progress */
    /* known after GUEST_KNOWN */
    char qemu[GUEST_NAME_BYTES * 2];
    char machine[GUEST_NAME_BYTES];
    char run_state[GUEST_NAME_BYTES];
    bool running;
    uint64_t cpus;
    uint64_t memory_bytes;
    unsigned nr_blocks;
    uint64_t block_pages[GUEST_BLOCKS_MAX];
    unsigned nr_nics;
    struct guest_nic nic[GUEST_NICS_MAX];
    char disk[GUEST_NAME_BYTES];  /* a writable disk, which we cannot replicate yet; "" none */
    char *layout;                 /* LAYOUT_MAX_BYTES */
    size_t layout_len;
    uint64_t hold_max_bytes, hold_max_packets;
};

/** @return 0, -ENAMETOOLONG or -ENOMEM */
int guest_init(struct guest *g, struct loop *loop, unsigned slot, struct mailbox *box,
               const struct guest_observer *observer, const char *qmp_path);
void guest_fini(struct guest *g);

/** Connect when it is time to, expire what is overdue. @return when to call again */
int64_t guest_tick(struct guest *g, int64_t now_ns);

/** Take a completion of the slot. */
void guest_on_event(struct guest *g, const struct loop_event *event, int64_t now_ns);

/**
 * Carry out one action of the session that concerns QEMU. Its answer comes as an event; so does a failure
 * to ask, so that the session never waits in vain.
 */
void guest_checkpoint_start(struct guest *g, bool active, const struct arena *arena, int wake_fd, uint64_t serial);
void guest_checkpoint_stop(struct guest *g, uint64_t serial);
void guest_capture(struct guest *g, uint64_t epoch, unsigned slot, bool precopy, bool append);
void guest_output(struct guest *g, enum session_output mode, uint64_t serial);
void guest_release(struct guest *g, uint64_t epoch);
/** @param store  number of the store that the slot is of: told again when it was applied, since stores come and go */
void guest_apply(struct guest *g, unsigned slot, uint64_t nr_pages, uint64_t store);
void guest_load(struct guest *g, unsigned slot, uint32_t state_bytes, uint64_t serial);
void guest_run(struct guest *g, uint64_t serial);
void guest_stop(struct guest *g, uint64_t serial);
void guest_announce(struct guest *g);
void guest_inject(struct guest *g, const char *netdev, const void *frame, size_t len);

#endif
