/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fault_disk.h - wraps the system calls that make a file last: notes their order, lets one of them fail
 *
 * For tests linked with $(FAULT_DISK_LDFLAGS). A test includes it once.
 */
#ifndef POLLUX_TEST_FAULT_DISK_H
#define POLLUX_TEST_FAULT_DISK_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char disk_order
    [4096]; /* names of the calls, each followed by a blank; "fsync-dir" for a directory */
static const char *disk_fails; /* this one fails once with disk_errno */
static int disk_errno;

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_syncfs(int fd);
int __wrap_syncfs(int fd);
ssize_t __real_pwrite(int fd, const void *data, size_t len, off_t at);
ssize_t __wrap_pwrite(int fd, const void *data, size_t len, off_t at);
int __real_fsync(int fd);
int __wrap_fsync(int fd);
ssize_t __real_write(int fd, const void *data, size_t len);
ssize_t __wrap_write(int fd, const void *data, size_t len);
int __real_renameat(int from_fd, const char *from, int to_fd, const char *to);
int __wrap_renameat(int from_fd, const char *from, int to_fd, const char *to);
int __real_openat(int dirfd, const char *name, int flags, ...);
int __wrap_openat(int dirfd, const char *name, int flags, ...);

static bool disk_note(const char *name)
{
    size_t len = strlen(disk_order);

    snprintf(disk_order + len, sizeof(disk_order) - len, "%s ", name);
    if (!disk_fails || strcmp(disk_fails, name) != 0)
        return false;
    disk_fails = NULL;
    errno = disk_errno;
    return true;
}

int __wrap_fsync(int fd)
{
    struct stat st;

    if (fstat(fd, &st))
        return -1;
    return disk_note(S_ISDIR(st.st_mode) ? "fsync-dir" : "fsync") ? -1 : __real_fsync(fd);
}

ssize_t __wrap_write(int fd, const void *data, size_t len)
{
    if (fd <= 2)
        return __real_write(fd, data, len);
    /* in two halves: whoever takes a short write for a whole one is found */
    return disk_note("write") ? -1 : __real_write(fd, data, len > 1 ? len / 2 : len);
}

int __wrap_renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    return disk_note("rename") ? -1 : __real_renameat(from_fd, from, to_fd, to);
}

int __wrap_openat(int dirfd, const char *name, int flags, ...)
{
    mode_t mode = 0;
    va_list args;

    va_start(args, flags);
    if (flags & O_CREAT)
        mode = va_arg(args, mode_t);
    va_end(args);
    if (flags & O_CREAT && disk_note("create"))
        return -1;
    return __real_openat(dirfd, name, flags, mode);
}

int __wrap_fdatasync(int fd)
{
    return disk_note("fdatasync") ? -1 : __real_fdatasync(fd);
}

int __wrap_syncfs(int fd)
{
    return disk_note("syncfs") ? -1 : __real_syncfs(fd);
}

ssize_t __wrap_pwrite(int fd, const void *data, size_t len, off_t at)
{
    if (disk_fails && strcmp(disk_fails, "half a pwrite") == 0) {
        disk_fails = NULL;
        return __real_pwrite(fd, data, len / 2, at);
    }
    return disk_note("pwrite") ? -1 : __real_pwrite(fd, data, len, at);
}

static void disk_begin(const char *fails, int error)
{
    disk_order[0] = 0;
    disk_fails = fails;
    disk_errno = error;
}

#endif
