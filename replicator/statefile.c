/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * statefile.c - what polluxd must still know after it was killed: one small file in its state directory
 */
#include "statefile.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keyfile.h"

#define NAME "state"

static const char *const role_names[] = {
    [ROLE_NONE] = "none",
    [ROLE_ACTIVE_ALONE] = "active-alone",
    [ROLE_ACTIVE_PROTECTING] = "active-protecting",
    [ROLE_STANDBY] = "standby",
    [ROLE_OUTDATED] = "outdated",
    [ROLE_ACTIVE_FORCED] = "active-forced",
    [ROLE_NUM] = NULL,
};
static const char *const yes_no_names[] = {"no", "yes", NULL};

#define AT(member) offsetof(struct statefile_contents, member)

/* clang-format off */
static const struct keyfile_field fields[] = {
    { "vm",         KEYFILE_TEXT,    AT(vm),                 WIRE_VM_BYTES,              NULL },
    { "instance",   KEYFILE_BYTES16, AT(instance),           16,                         NULL },
    { "generation", KEYFILE_U64,     AT(persist.generation), 8,                          NULL },
    { "role",       KEYFILE_CHOICE,  AT(persist.role),       sizeof(enum session_role),  role_names },
    { "nonce",      KEYFILE_BYTES16, AT(persist.nonce),      16,                         NULL },
    { "paired",     KEYFILE_CHOICE,  AT(paired),             sizeof(bool),               yes_no_names },
    { "peer",       KEYFILE_TEXT,    AT(peer),               STATEFILE_PEER_BYTES,       NULL },
};
/* clang-format on */

static const struct keyfile_schema schema = {
    .title = "pollux-state 1",
    .fields = fields,
    .nr_fields = sizeof(fields) / sizeof(fields[0]),
};

static int open_dir(const char *dir, int *ret_fd, char *ret_why)
{
    int fd;

    if (mkdir(dir, 0700) && errno != EEXIST) {
        int error = errno;

        snprintf(ret_why, STATEFILE_WHY_BYTES, "cannot make the state directory %s: %s%s", dir,
                 strerror(error), error == ENOENT ? ": make the directory above it first" : "");
        return -error;
    }
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        int error = errno;

        snprintf(ret_why, STATEFILE_WHY_BYTES, "cannot open the state directory %s: %s", dir,
                 strerror(error));
        return -error;
    }
    *ret_fd = fd;
    return 0;
}

int statefile_open(const char *dir, struct statefile *ret_file, char *ret_why)
{
    struct statefile file = {.dirfd = -1};
    int ret;

    if (!*dir || strlen(dir) >= sizeof(file.dir)) {
        snprintf(ret_why, STATEFILE_WHY_BYTES,
                 "the path of the state directory must have 1 to %d bytes",
                 STATEFILE_DIR_BYTES - 1);
        return -EINVAL;
    }
    memcpy(file.dir, dir, strlen(dir) + 1);
    ret = open_dir(dir, &file.dirfd, ret_why);
    if (ret)
        return ret;
    if (flock(file.dirfd, LOCK_EX | LOCK_NB)) {
        ret = errno == EWOULDBLOCK ? -EBUSY : -errno;
        snprintf(ret_why, STATEFILE_WHY_BYTES,
                 ret == -EBUSY ? "another polluxd uses the state directory %s: this VM is being "
                                 "looked after already; "
                                 "stop that one first, or give each VM a --state-dir of its own"
                               : "cannot lock the state directory %s",
                 dir);
        goto out;
    }
    /*
     * The one before us may have been killed between rename and fsync: what we are about to read and act
     * upon must not go back after a power cut.
     */
    if (faccessat(file.dirfd, ".", W_OK | X_OK, AT_EACCESS) || fsync(file.dirfd)) {
        ret = -errno;
        snprintf(ret_why, STATEFILE_WHY_BYTES,
                 "cannot write to the state directory %s: %s: polluxd must be able to keep its "
                 "generation there",
                 dir, strerror(-ret));
        goto out;
    }
    *ret_file = file;
out:
    if (ret)
        close(file.dirfd);
    return ret;
}

void statefile_close(struct statefile *file)
{
    if (file->dirfd >= 0)
        close(file->dirfd);
    file->dirfd = -1;
}

static int refuse(const struct statefile *file, const char *why, char *ret_why)
{
    snprintf(ret_why, STATEFILE_WHY_BYTES,
             "%s/" NAME ": %s. polluxd does not guess whether this side may run the guest. Move "
             "the file away and start "
             "again: this side then knows of no pairing; say \"pollux pair\" on the side whose "
             "guest is to be "
             "kept (see polluxd(8), FILES)",
             file->dir, why);
    return -EPROTO;
}

int statefile_load(const struct statefile *file, struct statefile_contents *ret_contents,
                   char *ret_why)
{
    static const uint8_t zero[16];
    struct statefile_contents contents;
    char text[KEYFILE_MAX_BYTES], why[KEYFILE_WHY_BYTES];
    ssize_t len = keyfile_read(file->dirfd, NAME, text);

    if (len == -ENOENT)
        return -ENOENT;
    if (len == -EFBIG)
        return refuse(file, "it is longer than any state file", ret_why);
    if (len == -EINVAL)
        return refuse(file, "it is not a plain file", ret_why);
    if (len < 0) {
        snprintf(ret_why, STATEFILE_WHY_BYTES, "cannot read %s/" NAME ": %s", file->dir,
                 strerror((int)-len));
        return (int)len;
    }
    memset(&contents, 0, sizeof(contents));
    if (keyfile_parse(&schema, text, (size_t)len, &contents, why))
        return refuse(file, why, ret_why);
    if (memcmp(contents.instance, zero, sizeof(zero)) == 0)
        return refuse(file, "its instance is all zero", ret_why);
    *ret_contents = contents;
    return 0;
}

int statefile_save(const struct statefile *file, const struct statefile_contents *contents,
                   char *ret_why)
{
    char text[KEYFILE_MAX_BYTES];
    bool unsure;
    ssize_t len = keyfile_format(&schema, contents, text, sizeof(text));
    int ret;

    if (len < 0) {
        snprintf(ret_why, STATEFILE_WHY_BYTES,
                 "%s/" NAME ": the state has a value that the file cannot hold", file->dir);
        return -EINVAL;
    }
    ret = keyfile_write(file->dirfd, NAME, text, (size_t)len, &unsure);
    if (ret && unsure) {
        snprintf(ret_why, STATEFILE_WHY_BYTES,
                 "%s/" NAME ": its directory could not be fsynced (%s): after a power cut it may "
                 "be the old or the new "
                 "one; see to the disk",
                 file->dir, strerror(-ret));
        return -EIO;
    }
    if (ret) {
        snprintf(ret_why, STATEFILE_WHY_BYTES,
                 "cannot write %s/" NAME ": %s: %s; the file of before is untouched", file->dir,
                 strerror(-ret),
                 ret == -ENOSPC || ret == -EDQUOT ? "make room on that file system"
                 : ret == -EROFS                  ? "that file system is read-only"
                                                  : "see to that directory");
        return ret == -EIO ? -EREMOTEIO : ret;
    }
    return 0;
}
