# SPDX-License-Identifier: GPL-2.0-or-later
#
# qmp.py - a small QMP client for tests
#
# Owns one connection.  Every wait has a deadline; an error reply is an exception with its sentence.

import array
import json
import socket
import time


class QmpError(Exception):
    """An error reply; its text is QEMU's sentence."""


class Qmp:
    def __init__(self, path, timeout_s=30):
        self.timeout_s = timeout_s
        self.events = []
        self._buffer = b""
        self._next_id = 0
        deadline = time.monotonic() + timeout_s
        while True:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._sock.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                self._sock.close()
                if time.monotonic() > deadline:
                    raise
                # There is nothing to wait on before the socket exists.
                time.sleep(0.01)
        self._read_object(deadline)
        self.execute("qmp_capabilities")

    def close(self):
        self._sock.close()

    def _read_object(self, deadline):
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("QEMU did not answer in time")
            self._sock.settimeout(left)
            data = self._sock.recv(1 << 20)
            if not data:
                raise ConnectionError("QEMU closed the connection")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def send(self, command, fd=None, **arguments):
        """Send a command and return its id; names with '_' are written with '-'."""
        self._next_id += 1
        message = {"execute": command, "id": self._next_id}
        if arguments:
            message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()
                                    if v is not None}
        data = json.dumps(message).encode() + b"\n"
        ancillary = []
        if fd is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._sock.sendmsg([data], ancillary)
        return self._next_id

    def reply(self, ident, timeout_s=None):
        deadline = time.monotonic() + (timeout_s or self.timeout_s)
        while True:
            message = self._read_object(deadline)
            if "event" in message:
                self.events.append(message)
            elif message.get("id") == ident:
                if "error" in message:
                    raise QmpError(message["error"]["desc"])
                return message["return"]

    def execute(self, command, fd=None, timeout_s=None, **arguments):
        return self.reply(self.send(command, fd, **arguments), timeout_s)

    def wait_event(self, name, timeout_s=None):
        """Return the next event of that name, and forget it."""
        deadline = time.monotonic() + (timeout_s or self.timeout_s)
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(i)
            message = self._read_object(deadline)
            if "event" in message:
                self.events.append(message)

    def event_names(self):
        """Names of the events that have arrived, after one round trip."""
        self.execute("query-name")
        return [event["event"] for event in self.events]
