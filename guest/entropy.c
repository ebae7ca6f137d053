/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * entropy - tells the guest kernel that its random pool is ready
 *
 * A guest without RDRAND spends more than a second of its boot collecting jitter before getrandom
 * answers, and Redis waits for that. This guest keeps no secrets, so it credits 32 bytes of clock
 * readings as if they were random. Never use it in a guest that does keep secrets.
 */
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
    struct {
        struct rand_pool_info info;
        unsigned char bytes[32];
    } seed = {.info = {.entropy_count = 256, .buf_size = sizeof(seed.bytes)}};
    int fd = open("/dev/random", O_WRONLY | O_CLOEXEC);
    struct timespec now;

    for (size_t i = 0; i < sizeof(seed.bytes); i++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        seed.bytes[i] = (unsigned char)now.tv_nsec;
    }
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &seed) < 0) {
        perror("entropy");
        return 1;
    }
    close(fd);
    return 0;
}
