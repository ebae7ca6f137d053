# SPDX-License-Identifier: GPL-2.0-or-later
"""labqmp.py - a small QMP client for tests and people, each wait with a deadline

Owns one connection to QEMU's QMP socket for tests (polluxd has another). Bounded: a reply longer
than MAX_LINE is refused. Not the product's client: that is qmp-client/, in C.
"""
import json
import select
import socket
import time

from labstate import LabError

MAX_LINE = 16 << 20


class QmpError(LabError):
    """QEMU refused a command; the text is QEMU's sentence."""


def connect_unix(path, deadline):
    """Connects to a unix socket; ConnectionError or FileNotFoundError when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect(path)
        return sock
    except BaseException:
        sock.close()
        raise


class LineReader:
    """Lines from a socket, with a deadline for each."""

    def __init__(self, sock):
        self.sock = sock
        self._data = b""

    def line(self, deadline):
        while b"\n" not in self._data:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.sock], [], [], left)[0]:
                raise TimeoutError("no complete line came in time")
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the other side closed the connection")
            self._data += data
            if len(self._data) > MAX_LINE:
                raise LabError(f"a line longer than {MAX_LINE} bytes came")
        line, _, self._data = self._data.partition(b"\n")
        return line


class Qmp:
    """`with Qmp(path) as qmp: qmp.command("query-status")`."""

    def __init__(self, path, timeout_s=10):
        self.path = path
        self.timeout_s = timeout_s
        self.events = []
        deadline = time.monotonic() + timeout_s
        try:
            self.sock = connect_unix(path, deadline)
        except OSError as error:
            raise LabError(f"no QEMU answers on {path} ({error})") from None
        self._reader = LineReader(self.sock)
        try:
            json.loads(self._reader.line(deadline))
        except TimeoutError:
            self.close()
            raise LabError(
                f"QEMU did not greet on {path} within {timeout_s} s: another client holds this "
                "socket, or the host is paused"
            ) from None
        except (OSError, ValueError) as error:
            self.close()
            raise LabError(f"{path} does not speak QMP: {error}") from None
        try:
            self.command("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def _message(self, deadline, what):
        try:
            return json.loads(self._reader.line(deadline))
        except TimeoutError:
            raise LabError(f"QEMU on {self.path} did not answer {what} in time") from None
        except (OSError, ValueError) as error:
            raise LabError(f"QMP on {self.path} broke during {what}: {error}") from None

    def command(self, name, arguments=None, timeout_s=None):
        """Runs a command and returns what it returns; events met on the way are kept in .events."""
        request = {"execute": name}
        if arguments:
            request["arguments"] = arguments
        deadline = time.monotonic() + (timeout_s or self.timeout_s)
        try:
            self.sock.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise LabError(f"QMP on {self.path} broke before {name}: {error}") from None
        while True:
            message = self._message(deadline, name)
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(f"{name}: {message['error'].get('desc', message['error'])}")
            else:
                return message.get("return")

    def wait_event(self, name, timeout_s):
        """The next event of that name, also one that came before; LabError when the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(i)
            message = self._message(deadline, f"event {name}")
            if "event" in message:
                self.events.append(message)
