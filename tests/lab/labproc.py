# SPDX-License-Identifier: GPL-2.0-or-later
"""labproc.py - processes of a lab: started, recognised, waited for, ended

A process is known by its pid and its start time (field 22 of /proc/PID/stat), so that a pid that
was given to somebody else is never signalled, or by being inside one of the lab's network
namespaces. Never looks for a process by its name.
"""
import os
import select
import signal
import subprocess
import time

import labnet
from labstate import LabError

END_DEADLINE_S = 10
_children = set()  # pids that this very process started and that nobody else waits for


def start_time(pid):
    """Clock ticks since boot at which the process started, or None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(record):
    return start_time(record["pid"]) == record["start"]


def reap():
    """Collects those daemons of ours that ended, so that none stays as a zombie of this process."""
    for pid in list(_children):
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                _children.discard(pid)
        except ChildProcessError:
            _children.discard(pid)


def by_namespace(identities):
    """(pid, identity) of every process in network namespaces that are known by (device, inode)."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            info = os.stat(f"/proc/{entry}/ns/net")
        except OSError:
            continue
        identity = (info.st_dev, info.st_ino)
        if identity in identities and start_time(int(entry)) is not None:
            yield int(entry), identity


def in_any_host(spaces):
    """{namespace: pids} of those that exist, in one walk over /proc."""
    wanted = {}
    for space in spaces:
        try:
            info = os.stat(labnet.namespace_path(space))
            wanted[info.st_dev, info.st_ino] = space
        except FileNotFoundError:
            pass
    result = {space: [] for space in wanted.values()}
    for pid, identity in by_namespace(wanted):
        result[wanted[identity]].append(pid)
    return result


def in_host(space):
    """Pids of all processes in a namespace (by the identity of the namespace, not by any name)."""
    return in_any_host([space]).get(space, [])


def signal_host(space, number, deadline_s=END_DEADLINE_S):
    """Signals every process in a namespace, also those it forks meanwhile. Returns the pids.

    SIGKILL and SIGSTOP: goes on until no process is left that has not had it.
    """
    signalled = []
    deadline = time.monotonic() + deadline_s
    while True:
        fresh = [pid for pid in in_host(space) if pid not in signalled and pid != os.getpid()]
        if not fresh:
            return signalled
        for pid in fresh:
            try:
                os.kill(pid, number)
                signalled.append(pid)
            except ProcessLookupError:
                pass
        if time.monotonic() > deadline:
            raise LabError(f"processes go on appearing in {space}: {fresh}")


def wait_host_empty(space, deadline_s=END_DEADLINE_S):
    """Waits until no process is in the namespace; they must have been signalled."""
    wait_gone(in_host(space), deadline_s)
    left = in_host(space)
    if left:
        raise LabError(f"processes in {space} do not end: {left}")


def wait_gone(pids, deadline_s=END_DEADLINE_S):
    """Waits (by pidfd) until all are gone or are zombies that only wait for their parent."""
    deadline = time.monotonic() + deadline_s
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise LabError(f"process {pid} did not end within {deadline_s} s")
        finally:
            os.close(fd)
    reap()


def kill_record(record):
    """SIGKILL to a recorded process if it still is the one."""
    if alive(record):
        try:
            os.kill(record["pid"], signal.SIGKILL)
        except ProcessLookupError:
            return
        wait_gone([record["pid"]])


def spawn(space, argv, log, directory):
    """Starts a daemon in a namespace, in a session of its own, output to a log file. Returns (pid,
    start).
    """
    with open(log, "ab", buffering=0) as out:
        child = subprocess.Popen(
            labnet.inside(space, *argv),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=directory,
            start_new_session=True,
        )
    child.returncode = 0  # it may outlive this command; if not, reap() collects it
    _children.add(child.pid)
    return child.pid, start_time(child.pid)


def tail(path, lines=15):
    """The last lines of a log, for an error message."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16384))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return "  (it does not exist)"
    kept = [line.rstrip() for line in text.replace("\r", "").split("\n") if line.strip()][-lines:]
    return "\n".join("  | " + line for line in kept) or "  (it is empty)"
