# SPDX-License-Identifier: GPL-2.0-or-later
"""labdaemon.py - command lines of polluxd and witness, and talking to a polluxd (docs/CONTROL.md)

Owns the connection to a control socket, each wait with a deadline. The sockets are in the file
system, so the daemon of any host can be asked from anywhere.
"""
import json
import os
import time

import labnet
import labqemu
import labqmp
from labstate import LabError

VM = "guest"
ANSWER_DEADLINE_S = 15


def check_programs():
    """Names what is missing before anything is started."""
    for name, variable in (
        ("polluxd", "POLLUX_POLLUXD"),
        ("witness", "POLLUX_WITNESS"),
        ("pollux", "POLLUX_CLI"),
    ):
        labqemu.program(name, variable)


def polluxd_argv(host, options, directory):
    argv = [
        labqemu.program("polluxd", "POLLUX_POLLUXD"),
        "--vm",
        VM,
        "--qmp",
        f"{directory}/qmp-pollux.sock",
        "--control",
        f"{directory}/control.sock",
        "--state-dir",
        f"{directory}/state",
        "--listen",
        f"{labnet.REP[host]}:{labnet.REPLICATION_PORT}",
        "--arbiter",
        f"witness:{labnet.REP['witness']}:{labnet.WITNESS_PORT}",
    ]
    if options["peer_timeout_ms"] is not None:
        argv += ["--peer-timeout-ms", str(options["peer_timeout_ms"])]
    if options["unsafe_no_hold"]:
        argv += ["--unsafe-release-before-ack"]
    return argv + list(options["polluxd_arg"])


def witness_argv(directory):
    return [
        labqemu.program("witness", "POLLUX_WITNESS"),
        "--listen",
        f"{labnet.REP['witness']}:{labnet.WITNESS_PORT}",
        "--state-dir",
        f"{directory}/state",
    ]


def peer_address(host):
    """Where the other side of `host` listens."""
    return f"{labnet.REP['b' if host == 'a' else 'a']}:{labnet.REPLICATION_PORT}"


class Control:
    """One connection to a polluxd's control socket."""

    def __init__(self, path, timeout_s=ANSWER_DEADLINE_S):
        self.path = path
        self.timeout_s = timeout_s
        try:
            self.sock = labqmp.connect_unix(path, time.monotonic() + timeout_s)
        except OSError as error:
            raise LabError(f"no polluxd answers on {path} ({error.strerror or error})") from None
        self._reader = labqmp.LineReader(self.sock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def line(self, deadline):
        try:
            return json.loads(self._reader.line(deadline))
        except TimeoutError:
            raise LabError(f"polluxd on {self.path} did not answer in time") from None
        except (OSError, ValueError) as error:
            raise LabError(f"polluxd on {self.path}: {error}") from None

    def ask(self, cmd, **arguments):
        self.sock.sendall(json.dumps({"cmd": cmd, **arguments}).encode() + b"\n")
        answer = self.line(time.monotonic() + self.timeout_s)
        if not answer.get("ok"):
            raise LabError(
                f"polluxd refused {cmd}: {answer.get('error', answer)} (code {answer.get('code')})"
            )
        return answer.get("result")


def status(directory, timeout_s=ANSWER_DEADLINE_S):
    """polluxd's status object."""
    with Control(os.path.join(directory, "control.sock"), timeout_s) as control:
        return control.ask("status")


def wait_status(directory, good, what, timeout_s, progress=None):
    """Waits until good(status); woken by polluxd's own events. Returns the status.

    @param good      function of a status object
    @param what      words for the error message
    @param progress  function called with each status seen, or None
    """
    deadline = time.monotonic() + timeout_s
    seen = None
    with Control(os.path.join(directory, "control.sock")) as events:
        events.ask("events", since=0)
        while True:
            seen = status(directory)
            if progress:
                progress(seen)
            if good(seen):
                return seen
            if time.monotonic() > deadline:
                raise LabError(
                    f"polluxd did not become {what} within {timeout_s:g} s: it is "
                    f"'{seen.get('state')}' "
                    f"({seen.get('reason')})"
                )
            try:
                # An event, or half a second for what has no event (the percentage of the sync).
                events._reader.line(min(deadline, time.monotonic() + 0.5))
            except TimeoutError:
                pass
            except OSError as error:
                raise LabError(
                    f"polluxd in {directory} ended while it was to become {what}: {error}"
                ) from None
