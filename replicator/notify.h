/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * notify.h - tell the service manager how we are: the sd_notify protocol, without its library
 */
#ifndef POLLUX_NOTIFY_H
#define POLLUX_NOTIFY_H

/**
 * Send lines such as "READY=1\nSTATUS=..." to the socket named by NOTIFY_SOCKET. Never blocks.
 * @param state  lines, each NAME=VALUE
 * @return 1 sent; 0 nobody asked to be told; -errno
 */
int notify_send(const char *state);

#endif
