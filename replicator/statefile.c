/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * statefile.c - what one polluxd must remember across restarts; see statefile.h
 */
#include "statefile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "keyfile.h"

#define NAME "state"

static const char *const roles[] = { "none", "active-alone", "active-protecting", "standby", "outdated", NULL };
static const char *const bools[] = { "no", "yes", NULL };

#define FIELD(key, type, member, choices)                                                        \
    {                                                                                            \
        key, type, offsetof(struct statefile_contents, member),                                  \
            sizeof(((struct statefile_contents *)0)->member), choices                            \
    }

static const struct keyfile_field fields[] = {
    FIELD("instance", KEYFILE_BYTES16, instance, NULL),
    FIELD("generation", KEYFILE_U64, persist.generation, NULL),
    FIELD("role", KEYFILE_CHOICE, persist.role, roles),
    FIELD("nonce", KEYFILE_BYTES16, persist.nonce, NULL),
    FIELD("paired", KEYFILE_CHOICE, paired, bools),
    FIELD("peer", KEYFILE_TEXT, peer, NULL),
};

static const struct keyfile_schema schema = { "pollux state 1", fields, sizeof(fields) / sizeof(fields[0]) };

_Static_assert(sizeof(enum session_role) == sizeof(unsigned), "keyfile keeps a choice in an unsigned");
_Static_assert(ROLE_NUM == 5, "a word for every role");

int statefile_open(const char *dir, struct statefile *ret_file, char *ret_why)
{
    struct statefile f = { .dirfd = -1, .lockfd = -1 };
    int rc;

    if ((size_t)snprintf(f.dir, sizeof(f.dir), "%s", dir) >= sizeof(f.dir))
        return -ENAMETOOLONG;
    if (mkdir(dir, 0700) < 0 && errno != EEXIST) {
        rc = -errno;
        snprintf(ret_why, STATEFILE_WHY_BYTES, "state directory %s cannot be made: %s", dir, strerror(-rc));
        return rc;
    }
    f.dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f.dirfd >= 0)
        f.lockfd = openat(f.dirfd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f.lockfd < 0) {
        rc = -errno;
        snprintf(ret_why, STATEFILE_WHY_BYTES, "state directory %s cannot be used: %s", dir, strerror(-rc));
        statefile_close(&f);
        return rc;
    }
    if (flock(f.lockfd, LOCK_EX | LOCK_NB) < 0) {
        rc = -errno;
        snprintf(ret_why, STATEFILE_WHY_BYTES,
                 "state directory %s is in use by another polluxd for this VM: only one may run on a host", dir);
        statefile_close(&f);
        return rc;
    }
    *ret_file = f;
    return 0;
}

void statefile_close(struct statefile *file)
{
    if (file->lockfd >= 0)
        close(file->lockfd);
    if (file->dirfd >= 0)
        close(file->dirfd);
    file->lockfd = file->dirfd = -1;
}

int statefile_load(const struct statefile *file, struct statefile_contents *ret_contents, char *ret_why)
{
    char text[KEYFILE_MAX_BYTES], why[KEYFILE_WHY_BYTES];
    struct statefile_contents c = { 0 };
    ssize_t len = keyfile_read(file->dirfd, NAME, text);
    int rc;

    if (len < 0) {
        snprintf(ret_why, STATEFILE_WHY_BYTES, "%s/%s cannot be read: %s", file->dir, NAME, strerror((int)-len));
        return (int)len;
    }
    rc = keyfile_parse(&schema, text, (size_t)len, &c, why);
    if (rc < 0) {
        snprintf(ret_why, STATEFILE_WHY_BYTES,
                 "%s/%s: %s. It tells which generation this side had, so it is not guessed: restore it, or see RECOVERY in polluxd(8)",
                 file->dir, NAME, why);
        return rc;
    }
    *ret_contents = c;
    return 0;
}

int statefile_save(const struct statefile *file, const struct statefile_contents *contents, char *ret_why)
{
    char text[KEYFILE_MAX_BYTES];
    bool unsure = false;
    ssize_t len = keyfile_format(&schema, contents, text, sizeof(text));
    int rc = len < 0 ? (int)len : keyfile_write(file->dirfd, NAME, text, (size_t)len, &unsure);

    if (rc < 0)
        snprintf(ret_why, STATEFILE_WHY_BYTES, "%s/%s cannot be written: %s%s", file->dir, NAME, strerror(-rc),
                 unsure ? " (nobody knows which version a power cut would leave)" : "");
    return rc;
}
