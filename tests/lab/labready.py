# SPDX-License-Identifier: GPL-2.0-or-later
"""labready.py - waiting until what was started is ready, or telling why it never will be

Owns nothing. Every wait ends at a deadline, or at once when the process waited for has ended, with
the end of the log that says why.
"""
import os
import select
import socket
import time

import labnet
import labproc
import labqmp
from labstate import LabError

SOCKET_DEADLINE_S = 20
FAILED_MARKS = (b"POLLUX-GUEST-FAILED", b"Kernel panic")
READY_MARK = b"POLLUX-GUEST-READY"


def listening(pid, path):
    """Does a process's host listen on this unix socket? Looks without connecting, since a
    connection is an event to QEMU.
    """
    if not os.path.exists(path):
        return False
    try:
        with open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        return False
    for line in lines[1:]:
        fields = line.rstrip("\n").split(maxsplit=7)
        # Flags 00010000: SO_ACCEPTCON
        if len(fields) == 8 and fields[7] == path and int(fields[3], 16) & 0x10000:
            return True
    return False


def pidfd(record):
    """A pidfd of a recorded process, or -1 when it is gone."""
    if not labproc.alive(record):
        return -1
    try:
        return os.pidfd_open(record["pid"])
    except ProcessLookupError:
        return -1


def drain(sock):
    """Reads what is there; False at the end of the connection."""
    try:
        return bool(sock.recv(65536))
    except OSError:
        return False


def log_of(lab, record):
    return lab.path(record["host"], f"{record['role']}.log")


def wait_until(lab, record, ready, what):
    """Polls ready() until it is true, ended at once when the process dies."""
    deadline = time.monotonic() + SOCKET_DEADLINE_S
    log = log_of(lab, record)
    fd = pidfd(record)
    try:
        while not ready():
            left = deadline - time.monotonic()
            if fd < 0 or select.select([fd], [], [], min(0.01, max(0.0, left)))[0]:
                raise LabError(
                    f"{record['role']} on host {record['host']} ended before {what}. "
                    f"The end of {log}:\n{labproc.tail(log)}"
                )
            if left <= 0:
                raise LabError(
                    f"{record['role']} on host {record['host']}: no {what} after "
                    f"{SOCKET_DEADLINE_S} s. "
                    f"The end of {log}:\n{labproc.tail(log)}"
                )
    finally:
        if fd >= 0:
            os.close(fd)


def wait_socket(lab, record, path):
    wait_until(lab, record, lambda: listening(record["pid"], path), f"it listened on {path}")


def wait_port(lab, record, address, port):
    def answers():
        try:
            labnet.in_namespace(
                lab.space(record["host"]), lambda: socket.create_connection((address, port), 1)
            ).close()
            return True
        except OSError:
            return False

    wait_until(lab, record, answers, f"it listened on {address}:{port}")


def wait_guest_ready(lab, host, timeout_s):
    """Waits for the guest's own word that its service answers (boot sector: its first frame)."""
    options = lab.options
    if options["workload"] == "bootsector":
        return wait_first_frame(lab, host, timeout_s)
    begin = time.monotonic()
    log = lab.path(host, "serial.log")
    record = lab.records(host, "qemu")
    fd = pidfd(record[0]) if record else -1
    if fd < 0:
        raise LabError(
            f"QEMU on host {host} ended. The end of {lab.path(host, 'qemu.log')}:\n"
            f"{labproc.tail(lab.path(host, 'qemu.log'))}"
        )
    # The console socket only tells when to look: what counts is the log, which has everything.
    console = labqmp.connect_unix(lab.path(host, "serial.sock"), begin + SOCKET_DEADLINE_S)
    said = begin
    watched = [fd, console]
    try:
        while True:
            with open(log, "rb") as file:
                text = file.read().rpartition(b"\n")[0]  # whole lines only
            if READY_MARK in text:
                break
            now = time.monotonic()
            bad = next((mark for mark in FAILED_MARKS if mark in text), None)
            if bad or now - begin > timeout_s:
                why = f"said {bad.decode()}" if bad else f"was not ready after {timeout_s:g} s"
                raise LabError(
                    f"the guest on host {host} {why}. The end of {log}:\n{labproc.tail(log)}"
                )
            if now - said >= 5:
                lab.progress(f"{host}: guest boots ({now - begin:.0f} s)")
                said = now
            ready = select.select(watched, [], [], 0.5)[0]
            if fd in ready:
                raise LabError(
                    f"QEMU on host {host} ended while the guest booted. The end of "
                    f"{lab.path(host, 'qemu.log')}:\n{labproc.tail(lab.path(host, 'qemu.log'))}"
                )
            if console in ready and not drain(console):
                watched.remove(console)  # QEMU is about to end: its pidfd will say so
    finally:
        os.close(fd)
        console.close()
    line = [x for x in text.decode("utf-8", "replace").splitlines() if READY_MARK.decode() in x][-1]
    lab.progress(f"{host}: guest is ready ({line.strip()})")


def wait_first_frame(lab, host, timeout_s):
    mac = bytes.fromhex(labnet.guest_mac().replace(":", ""))
    log = lab.path(host, "qemu.log")
    record = lab.records(host, "qemu")
    fd = pidfd(record[0]) if record else -1
    sock = labnet.packet_socket(lab.space("client"), "lan0")
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            left = deadline - time.monotonic()
            ready = select.select([sock] + ([fd] if fd >= 0 else []), [], [], max(0.0, left))[0]
            if fd < 0 or fd in ready:
                raise LabError(
                    f"QEMU on host {host} ended before the first frame. The end of "
                    f"{log}:\n{labproc.tail(log)}"
                )
            if not ready or left <= 0:
                raise LabError(
                    f"no frame from the guest within {timeout_s:g} s. The end of "
                    f"{log}:\n{labproc.tail(log)}"
                )
            if sock.recv(64)[6:12] == mac:
                break
    finally:
        sock.close()
        if fd >= 0:
            os.close(fd)
    lab.progress(f"{host}: guest is ready (first frame on the client's network)")
