#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_fake_qemu - pairs of polluxd with a QEMU that fails when it is told to, and what else real hosts do not do on demand

Two real polluxd and a real witness (of $B, "build" unless set); each QEMU is a thread that speaks QMP and knows just
enough of docs/QEMU-INTERFACE.md to be protected. Real QEMUs do not fail on demand; this one does. Every wait has a
deadline; every process started here ends here.
"""
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tools"))
import facts  # noqa: E402

BUILD = os.path.abspath(os.environ.get("B", os.path.join(HERE, "..", "..", "build")))
DEADLINE = 30.0
PAGES = 4096
HOSTS = ("a", "b")


class FakeQemu:
    """One QEMU as its QMP shows it. `failing` holds commands that fail once; `deaf` those that succeed and do nothing;
    `mute` those that are never answered; before the one in `resumed_before` somebody says cont."""

    def __init__(self, path, run_state):
        self.run_state = run_state
        self.role = "none"
        self.epoch = 0
        self.left = PAGES
        self.output = None
        self.failing, self.deaf, self.mute = set(), set(), set()
        self.resumed_before = None
        self.sync_noise = 0  # pages of noise, which no compression makes smaller, in the full sync
        self.noise = 0       # and in each epoch
        self.said = []
        self.fds, self.named = [], {}
        self.slots = None
        self.nic = {"netdev": "net0", "type": "tap", "model": "virtio-net-pci", "mac": "52:54:00:77:00:0a",
                    "vhost": False, "buffered": False}
        self.client = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(2)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        """One client after the other, until close()."""
        while True:
            try:
                self.client = self.listener.accept()[0]
            except OSError:
                return
            with contextlib.suppress(OSError), self.client:
                self.talk()

    def send(self, message):
        self.client.sendall(json.dumps(message).encode() + b"\r\n")

    def talk(self):
        version = {"qemu": {"major": 10, "minor": 0, "micro": 13}, "package": "fake"}
        self.send({"QMP": {"version": version, "capabilities": []}})
        buffer = b""
        while True:
            data, fds, _, _ = socket.recv_fds(self.client, 65536, 8)
            self.fds += fds
            if not data:
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                if line.strip():
                    self.answer(json.loads(line))

    def answer(self, command):
        name, arguments = command["execute"], command.get("arguments", {})
        self.said.append(name)
        if name in self.mute:
            return
        if name == self.resumed_before:
            self.run_state, self.resumed_before = "running", None
            self.send({"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}})
        try:
            if name in self.failing:
                self.failing.discard(name)
                raise ValueError(f"planted failure of {name}")
            method = None if name in self.deaf else getattr(self, name.replace("-", "_"), None)
            result = (method(arguments) if method else None) or {}
        except ValueError as e:
            self.send({"id": command["id"], "error": {"class": "GenericError", "desc": str(e)}})
        else:
            self.send({"id": command["id"], "return": result})

    def query_status(self, _arguments):
        return {"status": self.run_state, "running": self.run_state == "running"}

    def query_checkpoint(self, _arguments):
        return {"role": self.role, "epoch": self.epoch, "failed": False, "output": "pass", "held-packets": 0,
                "held-bytes": 0, "target-page-size": 4096, "machine": "pc", "cpus": 1,
                "blocks": [{"id": "pc.ram", "size": PAGES * 4096}],
                "sections": [{"id": "ram", "instance": 0, "version": 4}], "nics": [self.nic], "disks": []}

    def getfd(self, arguments):
        old = self.named.pop(arguments["fdname"], None)
        if old is not None:
            os.close(old)
        self.named[arguments["fdname"]] = self.fds.pop(0)

    def object_add(self, arguments):
        if self.nic["buffered"]:
            raise ValueError("attempt to add duplicate property")
        self.nic["buffered"] = True
        self.output = arguments["mode"]

    def checkpoint_start(self, arguments):
        if self.role != "none":
            raise ValueError("there is a session already")
        self.role = arguments["role"]
        self.slots = (arguments["slot-pages"], arguments["state-max"])
        self.epoch, self.left = 1, PAGES
        os.pwrite(self.named["pollux-arena"], struct.pack("<Q", 1), 40)

    def checkpoint_stop(self, _arguments):
        self.role = "none"

    def checkpoint_capture(self, arguments):
        pages, state_max = self.slots
        index_bytes = (8 * pages + 4095) // 4096 * 4096
        at = 4096 + arguments["slot"] * (index_bytes + 4096 * pages + state_max)
        if self.role != "active" or arguments["epoch"] != self.epoch:
            raise ValueError("wrong epoch")
        count = min(self.left, pages) if arguments["precopy"] else max(1, self.noise)
        arena = self.named["pollux-arena"]
        os.pwrite(arena, b"".join(struct.pack("<Q", PAGES - 1 - i) for i in range(count)), at)
        noise = self.sync_noise if arguments["precopy"] else self.noise
        os.pwrite(arena, os.urandom(4096 * min(noise, count)), at + index_bytes)
        if arguments["precopy"]:
            self.left -= count
            return {"pages": count, "remaining": self.left, "complete": self.left == 0, "state-bytes": 0, "pause-ns": 0}
        os.pwrite(arena, b"S" * 512, at + index_bytes + 4096 * pages)
        self.epoch += 1
        os.pwrite(arena, struct.pack("<Q", self.epoch), 40)
        return {"pages": count, "remaining": 0, "complete": True, "state-bytes": 512, "pause-ns": 100000}

    def checkpoint_output(self, arguments):
        self.output = arguments["mode"]

    def close(self):
        for sock in (self.listener, self.client):
            with contextlib.suppress(OSError, AttributeError):
                sock.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError, AttributeError):
                sock.close()
        self.thread.join(DEADLINE)
        for fd in [*self.fds, *self.named.values()]:
            os.close(fd)


class Relay:
    """Stands between a polluxd that calls and the port where the other one waits; both ways, one call at a time."""

    def __init__(self, port, bits_per_s=None):
        self.target = port
        self.pace = bits_per_s / 8 if bits_per_s else None  # bytes a second, each way
        self.socks, self.closing, self.lock = [], threading.Event(), threading.Lock()
        self.listener = self.keep(socket.socket())
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(2)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def keep(self, sock):
        """So that close() ends whoever waits on it. Small buffers, as what fills them is on no way; but some of loopback's
        segments of 64 KB."""
        with self.lock:
            self.socks.append(sock)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 262144)
        return sock

    def serve(self):
        while not self.closing.is_set():
            try:
                near = self.keep(self.listener.accept()[0])
                far = self.keep(socket.create_connection(("127.0.0.1", self.target), DEADLINE))
            except OSError:
                continue
            ways = [threading.Thread(target=self.forward, args=way, daemon=True) for way in ((near, far), (far, near))]
            for way in ways:
                way.start()
            for way in ways:
                way.join()

    def forward(self, source, sink):
        """Until one of the two ends, which ends both."""
        due = time.monotonic()
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if self.pace:
                    due = max(due, time.monotonic() - 0.01) + len(data) / self.pace
                    self.closing.wait(max(0.0, due - time.monotonic()))
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.closing.set()
        with self.lock:
            for sock in self.socks:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(DEADLINE)
        for sock in self.socks:
            sock.close()


def free_ports(count):
    """Ports that nobody has; all are taken at once, so that they differ."""
    socks = [socket.socket() for _ in range(count)]
    for sock in socks:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


class Pair(unittest.TestCase):
    """The pair and its witness, and no test yet."""
    OPTIONS = ("--peer-timeout-ms", "3000")

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="pollux-fake-")
        self.addCleanup(shutil.rmtree, self.dir)
        self.ports = dict(zip((*HOSTS, "witness"), free_ports(3)))
        self.witness = self.run_program("witness", "--listen", f"127.0.0.1:{self.ports['witness']}",
                                        "--state-dir", os.path.join(self.dir, "witness"))
        self.qemu, self.polluxd = {}, {}
        for host, run_state in zip(HOSTS, ("running", "prelaunch")):
            os.makedirs(self.path(host, "state"))
            self.qemu[host] = FakeQemu(self.path(host, "qmp"), run_state)
            self.addCleanup(self.qemu[host].close)
            self.polluxd[host] = self.run_program(
                "polluxd", "--vm", "x", "--qmp", self.path(host, "qmp"), "--control", self.path(host, "ctl"),
                "--state-dir", self.path(host, "state"), "--listen", f"127.0.0.1:{self.ports[host]}",
                "--arbiter", f"witness:127.0.0.1:{self.ports['witness']}", *self.OPTIONS)
        for host, state in zip(HOSTS, ("none", "standby-wait")):
            self.wait(host, state, also=lambda status: status["arbiter"]["reachable"])

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def run_program(self, name, *arguments):
        log = open(self.path(name + ".log"), "ab")
        process = subprocess.Popen([os.path.join(BUILD, name), *arguments], stdout=log, stderr=log)
        log.close()
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            self.assertIn(process.wait(DEADLINE), (0, -signal.SIGTERM), "a daemon did not end well")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def connect(self, host):
        sock = socket.socket(socket.AF_UNIX)
        self.addCleanup(sock.close)
        sock.settimeout(DEADLINE)
        sock.connect(self.path(host, "ctl"))
        return sock

    def ask(self, host, **command):
        sock = self.connect(host)
        sock.sendall(json.dumps(command).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            part = sock.recv(65536)
            self.assertTrue(part, "polluxd closed the control connection")
            line += part
        sock.close()
        return json.loads(line)

    def wait(self, host, state, reason="", also=lambda status: True):
        """Until the session's state is this; daemons may still be starting."""
        end, last = time.monotonic() + DEADLINE, None
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                last = self.ask(host, cmd="status")["result"]
                if last["state"] == state and reason in last["reason"] and also(last):
                    return last
            threading.Event().wait(0.02)
        self.fail(f"{host} is not {state} ({reason}): {last and (last['state'], last['reason'])}\n{self.log()}")
        return None

    def log(self):
        """What both polluxd have said."""
        with open(self.path("polluxd.log"), encoding="utf-8") as log:
            return log.read()

    def wait_log(self, text):
        """Until one of the two has said it."""
        end = time.monotonic() + DEADLINE
        while text not in self.log():
            self.assertLess(time.monotonic(), end, f"nobody said {text!r}:\n{self.log()}")
            threading.Event().wait(0.02)

    def pair(self, port=None):
        answer = self.ask("a", cmd="pair", peer=f"127.0.0.1:{port or self.ports['b']}")
        self.assertTrue(answer["ok"], answer)

    def call(self, host):
        """A stranger's connection to the port where a polluxd waits for its peer."""
        sock = socket.create_connection(("127.0.0.1", self.ports[host]), DEADLINE)
        self.addCleanup(sock.close)
        return sock


class FailingQemu(Pair):
    def test_a_buffer_that_could_not_be_added_is_added_before_protection(self):
        self.qemu["a"].failing.add("object-add")
        self.pair()
        self.wait("a", "alone", "planted failure of object-add")
        self.wait("a", "protected")
        self.assertTrue(self.qemu["a"].nic["buffered"])
        self.assertEqual(self.qemu["a"].said.count("object-add"), 2)
        self.assertEqual(self.qemu["a"].output, "hold")

    def test_no_protection_while_qemu_says_that_a_nic_is_not_covered(self):
        self.qemu["a"].deaf.add("object-add")
        self.pair()
        self.wait("a", "alone", "no checkpoint-buffer")
        self.assertNotIn("checkpoint-capture", self.qemu["a"].said)
        self.assertNotEqual(self.qemu["a"].output, "hold")

    def test_a_failed_apply_costs_the_standby_its_copy_and_not_its_life(self):
        self.pair()
        self.wait("a", "protected")
        generation = self.ask("a", cmd="status")["result"]["generation"]
        self.qemu["b"].failing.add("checkpoint-apply")
        end = time.monotonic() + DEADLINE
        while self.ask("a", cmd="status")["result"]["generation"] == generation:
            self.assertLess(time.monotonic(), end, "the active did not notice")
        self.wait("a", "protected")
        self.wait("b", "standby-ready")

    def test_a_guest_that_is_resumed_while_we_attach_is_not_taken_for_fresh(self):
        qemu = self.qemu["b"]
        qemu.resumed_before = "query-checkpoint"  # query-status was answered with prelaunch
        qemu.client.shutdown(socket.SHUT_RDWR)
        self.wait("b", "none")
        self.assertTrue(self.ask("b", cmd="status")["result"]["guest"]["running"])

    def test_an_active_whose_qemu_does_not_answer_leaves_the_guest_to_the_standby(self):
        self.pair()
        self.wait("a", "protected")
        self.qemu["a"].mute.add("checkpoint-capture")
        status = self.wait("b", "alone", "promoted")
        self.assertIn("hangs", status["last_promotion"]["detected"])
        self.wait("a", "outdated")
        self.assertEqual(self.qemu["a"].output, "drop")

    def test_an_answer_is_for_nobody_but_who_asked(self):
        self.witness.send_signal(signal.SIGSTOP)
        asker = self.connect("a")
        asker.sendall(json.dumps({"cmd": "pair", "peer": f"127.0.0.1:{self.ports['b']}"}).encode() + b"\n")
        self.wait("a", "claiming")
        asker.close()
        self.ask("a", cmd="status")
        other = self.connect("a")  # takes the place that the asker had
        self.wait("a", "none")     # the witness did not answer: that was the asker's answer
        other.setblocking(False)
        self.assertRaises(BlockingIOError, other.recv, 1)


class Doors(Pair):
    def test_a_full_table_of_descriptors_is_said_once_and_callers_are_served_when_it_is_over(self):
        process = self.polluxd["b"]
        _, most = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, most))
        self.call("b").recv(1)  # the accept that was begun before
        self.wait_log("no connection can be taken: Too many open files")
        caller = self.call("b")
        caller.settimeout(0.5)  # some naps long
        self.assertRaises(TimeoutError, caller.recv, 1)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
        caller.settimeout(DEADLINE)
        self.assertTrue(caller.recv(1), "the caller was not served")
        self.assertEqual(self.log().count("no connection can be taken"), 1)

    def test_a_hang_up_meant_for_the_connection_before_does_not_reach_the_one_after(self):
        relay = Relay(self.ports["b"])
        self.addCleanup(relay.close)
        self.pair(relay.port)
        self.wait("b", "standby-ready")
        self.polluxd["b"].send_signal(signal.SIGSTOP)
        # All of it comes in one turn, in this order: a cause to hang up, the end of the connection, a new caller.
        self.qemu["b"].client.shutdown(socket.SHUT_RDWR)
        relay.close()
        caller = self.call("b")
        self.polluxd["b"].send_signal(signal.SIGCONT)
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while part := caller.recv(4096):
                said += part
        self.assertIn(b"takes no peer now", said, self.log())


class SlowLink(Pair):
    """A relay between the two, and no test yet."""

    def protect(self, mbits_per_s, epochs, sync_noise=0, noise=0):
        """Until so many epochs were acked, all in the protection that began first."""
        relay = Relay(self.ports["b"], mbits_per_s * 1e6)
        self.addCleanup(relay.close)
        self.qemu["a"].sync_noise, self.qemu["a"].noise = sync_noise, noise
        self.pair(relay.port)
        self.wait("a", "protected", also=lambda status: status["acked"] >= epochs)
        self.assertEqual(self.log().count("-> entering"), 1, self.log())


class SlowRecords(SlowLink):
    """At 8 Mbit/s a record of 64 pages takes 260 ms, and the peer time-out is 150 ms."""
    OPTIONS = ()

    def test_a_record_that_takes_longer_than_the_peer_time_out_is_no_silence(self):
        self.protect(8, 12, noise=64)


class ManyHeartbeats(SlowLink):
    """Six megabytes may wait to be sent: that takes 800 ms here, the time of 160 heartbeats."""
    OPTIONS = ("--heartbeat-ms", "5")

    def test_heartbeats_leave_room_for_the_epoch_while_much_waits_to_be_sent(self):
        self.protect(60, 4, noise=2000)


class Backlog(SlowLink):
    """At 40 Mbit/s the full sync takes 3.4 s; the standby must ack epoch 1 within a second from when output is held."""
    OPTIONS = ("--hold-freeze-ms", "1000")

    def test_output_is_not_held_while_the_full_sync_still_waits_to_be_sent(self):
        self.protect(40, 12, sync_noise=PAGES)


if __name__ == "__main__":
    facts.main()
