/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * registers.c - the witness's memory: one compare-and-swap register for each VM, on disk
 */
#include "registers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../replicator/keyfile.h"
#include "../replicator/wire.h"

#define SUFFIX ".register"
#define REGISTER_BYTES 512 /* a sector: written whole or not at all */
#define FILE_NAME_BYTES (WIRE_VM_BYTES + sizeof(SUFFIX))

/* clang-format off */
static const struct keyfile_field register_fields[] = {
    { "vm",         KEYFILE_TEXT,    offsetof(struct arb_register, vm), WIRE_VM_BYTES, NULL },
    { "generation", KEYFILE_U64,     offsetof(struct arb_register, generation), 8, NULL },
    { "holder",     KEYFILE_BYTES16, offsetof(struct arb_register, holder), 16, NULL },
    { "nonce",      KEYFILE_BYTES16, offsetof(struct arb_register, nonce), 16, NULL },
};
/* clang-format on */

static const struct keyfile_schema register_schema = {
    .title = "pollux-register 1",
    .fields = register_fields,
    .nr_fields = sizeof(register_fields) / sizeof(register_fields[0]),
};

static bool ends_with(const char *name, const char *end)
{
    size_t len = strlen(name), end_len = strlen(end);

    return len >= end_len && strcmp(name + len - end_len, end) == 0;
}

/* ---- one file ---- */

static int format(const struct arb_register *reg, char ret_text[REGISTER_BYTES])
{
    ssize_t len = keyfile_format(&register_schema, reg, ret_text, REGISTER_BYTES);

    if (len < 0)
        return (int)len;
    memset(ret_text + len, '\n', REGISTER_BYTES - (size_t)len);
    return 0;
}

static int parse(const char *text, size_t len, struct arb_register *ret,
                 char why[KEYFILE_WHY_BYTES])
{
    if (len != REGISTER_BYTES) {
        snprintf(why, KEYFILE_WHY_BYTES, "it is cut off: it does not have %d bytes",
                 REGISTER_BYTES);
        return -EPROTO;
    }
    while (len >= 2 && text[len - 1] == '\n' && text[len - 2] == '\n')
        len--;
    return keyfile_parse(&register_schema, text, len, ret, why);
}

/* Overwrite in place. Returns 0, -errno with nothing changed, or -errno with *ret_unsure. */
static int overwrite(int dirfd, const char *name, const char text[REGISTER_BYTES], bool *ret_unsure)
{
    int fd = openat(dirfd, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
    int ret = 0;
    ssize_t n;

    *ret_unsure = false;
    if (fd < 0)
        return -errno;
    do
        n = pwrite(fd, text, REGISTER_BYTES, 0);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        ret = -errno;
    } else if (n != REGISTER_BYTES) {
        ret = -EIO;
        *ret_unsure = true; /* part of it stands in the file */
    } else if (fdatasync(fd)) {
        ret = -errno;
        *ret_unsure = true;
    }
    close(fd);
    return ret;
}

/* ---- start ---- */

static int load_one(struct registers *r, const char *dir, const char *name,
                    char ret_why[REGISTERS_WHY_BYTES])
{
    char text[KEYFILE_MAX_BYTES], why[KEYFILE_WHY_BYTES], want[FILE_NAME_BYTES];
    struct arb_register one = {.generation = 0};
    ssize_t len;

    len = keyfile_read(r->dirfd, name, text);
    if (len == -EINVAL)
        snprintf(why, sizeof(why), "it is not a plain file");
    else if (len == -EFBIG)
        snprintf(why, sizeof(why), "it is longer than a register can be");
    else if (len < 0)
        snprintf(why, sizeof(why), "%s", strerror((int)-len));
    if (len >= 0 && !parse(text, (size_t)len, &one, why)) {
        snprintf(want, sizeof(want), "%.47s" SUFFIX, one.vm);
        if (!wire_vm_name_valid(one.vm) || strcmp(want, name) != 0)
            snprintf(why, sizeof(why), "it is the register of another VM, \"%s\"", one.vm);
        else if (!one.generation)
            snprintf(why, sizeof(why), "its generation is 0");
        else if (r->nr == REGISTERS_MAX)
            snprintf(why, sizeof(why), "it is one more than the %d that are possible",
                     REGISTERS_MAX);
        else
            goto good;
    }
    snprintf(ret_why, REGISTERS_WHY_BYTES,
             "%s/%s: %s. The witness does not guess who may run a guest. Find the highest "
             "generation that "
             "\"pollux status\" shows on the two hosts of this VM, and say \"witness --state-dir "
             "%s --restore "
             "VM=GENERATION\" (see witness(8), RECOVERY)",
             dir, name, why, dir);
    return len < 0 && len != -EINVAL && len != -EFBIG ? (int)len : -EPROTO;
good:
    r->list[r->nr++] = one;
    return 0;
}

static int load_all(struct registers *r, const char *dir, char ret_why[REGISTERS_WHY_BYTES])
{
    struct dirent *entry;
    DIR *stream = NULL;
    int fd, ret = 0;

    fd = openat(r->dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        stream = fdopendir(fd);
    if (!stream) {
        ret = -errno;
        snprintf(ret_why, REGISTERS_WHY_BYTES, "cannot list %s: %s", dir, strerror(-ret));
        if (fd >= 0)
            close(fd);
        return ret;
    }
    while (!ret) {
        errno = 0;
        entry = readdir(stream);
        if (!entry) {
            ret = -errno;
            if (ret)
                snprintf(ret_why, REGISTERS_WHY_BYTES, "cannot list %s: %s", dir, strerror(-ret));
            break;
        }
        if (entry->d_name[0] == '.' && ends_with(entry->d_name, SUFFIX ".new"))
            unlinkat(r->dirfd, entry->d_name, 0); /* of a crash before rename: was never answered */
        else if (entry->d_name[0] != '.' && ends_with(entry->d_name, SUFFIX))
            ret = load_one(r, dir, entry->d_name, ret_why);
    }
    closedir(stream);
    return ret;
}

/* Open and lock the directory. */
static int open_dir(struct registers *r, const char *dir, char ret_why[REGISTERS_WHY_BYTES])
{
    int ret = 0;

    *r = (struct registers){.dirfd = -1};
    if (mkdir(dir, 0700) && errno != EEXIST)
        ret = -errno;
    if (!ret) {
        r->dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (r->dirfd < 0)
            ret = -errno;
    }
    if (ret) {
        snprintf(ret_why, REGISTERS_WHY_BYTES, "cannot use the state directory %s: %s", dir,
                 strerror(-ret));
        return ret;
    }
    if (flock(r->dirfd, LOCK_EX | LOCK_NB)) {
        ret = -errno;
        snprintf(
            ret_why, REGISTERS_WHY_BYTES,
            ret == -EWOULDBLOCK
                ? "another witness uses the state directory %s: stop it first, or name another "
                  "directory with --state-dir"
                : "cannot lock the state directory %s",
            dir);
        registers_close(r);
    }
    return ret;
}

int registers_open(struct registers *r, const char *dir, char ret_why[REGISTERS_WHY_BYTES])
{
    int ret = open_dir(r, dir, ret_why);

    if (ret)
        return ret;
    r->list = calloc(REGISTERS_MAX, sizeof(*r->list));
    if (!r->list) {
        ret = -ENOMEM;
        snprintf(ret_why, REGISTERS_WHY_BYTES, "no memory for %d registers", REGISTERS_MAX);
        goto out;
    }
    ret = load_all(r, dir, ret_why);
    if (!ret && syncfs(r->dirfd)) {
        ret = -errno;
        snprintf(ret_why, REGISTERS_WHY_BYTES, "cannot sync the file system of %s: %s", dir,
                 strerror(-ret));
    }
out:
    if (ret)
        registers_close(r);
    return ret;
}

void registers_close(struct registers *r)
{
    if (r->dirfd >= 0)
        close(r->dirfd);
    free(r->list);
    *r = (struct registers){.dirfd = -1};
}

int registers_restore(const char *dir, const char vm[WIRE_VM_BYTES], uint64_t generation,
                      char ret_why[REGISTERS_WHY_BYTES])
{
    char text[REGISTER_BYTES], name[FILE_NAME_BYTES], aside[FILE_NAME_BYTES + 16],
        why[REGISTERS_WHY_BYTES];
    struct arb_register one = {.generation = generation};
    struct arb_register old = {.generation = 0};
    struct registers r;
    bool unsure;
    int ret;

    ret = open_dir(&r, dir, ret_why);
    if (ret)
        return ret;
    memcpy(one.vm, vm, sizeof(one.vm));
    snprintf(name, sizeof(name), "%.47s" SUFFIX, vm);
    snprintf(aside, sizeof(aside), "%s.damaged", name);
    r.list = &old; /* room for the one */
    ret =
        faccessat(r.dirfd, name, F_OK, AT_SYMLINK_NOFOLLOW) ? -errno : load_one(&r, dir, name, why);
    r.list = NULL;
    if (!ret) {
        snprintf(ret_why, REGISTERS_WHY_BYTES,
                 "%s/%s is not damaged and at generation %llu: it is left alone", dir, name,
                 (unsigned long long)old.generation);
        ret = -EEXIST;
        goto out;
    }
    if (ret != -ENOENT && renameat(r.dirfd, name, r.dirfd, aside)) {
        ret = -errno;
        goto cannot;
    }
    ret = format(&one, text);
    if (!ret)
        ret = keyfile_write(r.dirfd, name, text, REGISTER_BYTES, &unsure);
cannot:
    if (ret)
        snprintf(ret_why, REGISTERS_WHY_BYTES, "cannot write %s/%s: %s", dir, name, strerror(-ret));
out:
    registers_close(&r);
    return ret;
}

/* ---- use ---- */

static struct arb_register *find(const struct registers *r, const char vm[WIRE_VM_BYTES])
{
    for (unsigned i = 0; i < r->nr; i++) {
        if (memcmp(r->list[i].vm, vm, WIRE_VM_BYTES) == 0)
            return &r->list[i];
    }
    return NULL;
}

const struct arb_register *registers_find(const struct registers *r, const char vm[WIRE_VM_BYTES])
{
    return find(r, vm);
}

static bool is_exactly(const struct arb_register *reg, const struct wire_arb_ask *ask)
{
    return reg->generation == ask->next && memcmp(reg->holder, ask->holder, 16) == 0 &&
           memcmp(reg->nonce, ask->nonce, 16) == 0;
}

int registers_cas(struct registers *r, const struct wire_arb_ask *ask, int *ret_error)
{
    struct arb_register *old = find(r, ask->vm);
    struct arb_register new = {.generation = ask->next};
    char text[REGISTER_BYTES], name[FILE_NAME_BYTES];
    bool unsure;

    *ret_error = 0;
    if (old && is_exactly(old, ask))
        return WIRE_ARB_GRANTED; /* a repeated ask: its first answer was lost */
    if ((old ? old->generation : 0) != ask->expect)
        return WIRE_ARB_REFUSED;
    if (!old && r->nr == REGISTERS_MAX) {
        *ret_error = -ENOSPC;
        return WIRE_ARB_ERROR;
    }
    memcpy(new.vm, ask->vm, sizeof(new.vm));
    memcpy(new.holder, ask->holder, sizeof(new.holder));
    memcpy(new.nonce, ask->nonce, sizeof(new.nonce));
    snprintf(name, sizeof(name), "%.47s" SUFFIX, new.vm);
    *ret_error = format(&new, text);
    if (*ret_error)
        return WIRE_ARB_ERROR;
    *ret_error = old ? overwrite(r->dirfd, name, text, &unsure)
                     : keyfile_write(r->dirfd, name, text, REGISTER_BYTES, &unsure);
    if (*ret_error)
        return unsure ? -EIO : WIRE_ARB_ERROR;
    if (!old)
        old = &r->list[r->nr++];
    *old = new;
    return WIRE_ARB_GRANTED;
}
