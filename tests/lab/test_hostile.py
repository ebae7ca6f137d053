#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_hostile.py - peers, arbiter's clients and operators that send garbage: dropped, said once,
nothing of it stays

The hostile side speaks from the host that could be the peer, with records made by
tests/tools/stream_writer.py.
"""
import json
import os
import socket
import struct
import time

import labdaemon
import labnet
import labqmp
from labstate import LabError
from scenario import STEP_S, Frames, Scenario
from stream_reader import HEADER
from stream_writer import (
    EPOCH_BEGIN,
    HEARTBEAT,
    HELLO,
    LAYOUT,
    PAGES,
    RAW,
    REFUSE,
    ZERO,
    Stream,
    pages_payload,
)

VM = labdaemon.VM


class Peer:
    """A TCP connection to a polluxd from another host of the lab."""

    def __init__(self, lab, source="witness", target="b", port=labnet.REPLICATION_PORT):
        self.sock = labnet.in_namespace(
            lab.space(source), lambda: socket.create_connection((labnet.REP[target], port), STEP_S)
        )
        self.stream = Stream(generation=1)
        self.data = b""

    def send(self, data):
        """Sends; that the other side has closed already is part of the game."""
        try:
            self.sock.sendall(data)
        except OSError:
            pass

    def record(self, timeout_s=STEP_S):
        """The next record as (type, payload), or None when the other side has closed."""
        deadline = time.monotonic() + timeout_s
        while True:
            if len(self.data) >= HEADER.size:
                length = HEADER.unpack_from(self.data)[3]
                if len(self.data) >= HEADER.size + length:
                    kind = HEADER.unpack_from(self.data)[1]
                    payload = self.data[HEADER.size : HEADER.size + length]
                    self.data = self.data[HEADER.size + length :]
                    return kind, payload
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                part = self.sock.recv(1 << 20)
            except (ConnectionResetError, BrokenPipeError):
                return None
            except socket.timeout:
                raise LabError(
                    f"the peer neither answered nor closed within {timeout_s} s"
                ) from None
            if not part:
                return None
            self.data += part

    def wait_closed(self, timeout_s=STEP_S):
        """Reads until the other side closes. Returns the REFUSE texts it sent."""
        texts = []
        while True:
            got = self.record(timeout_s)
            if got is None:
                return texts
            if got[0] == REFUSE:
                texts.append(got[1][8:].rstrip(b"\0").decode())

    def greet(self, change=(b"", b""), **hello):
        """Introduces itself as an active with exactly the layout that the other side has, or with
        one change in it.
        """
        self.send(self.stream.hello(role=1, vm=VM, instance=b"hostile peer....", **hello))
        layout = None
        while layout is None:
            got = self.record()
            if got is None:
                raise LabError("closed during the introduction")
            if got[0] == LAYOUT:
                layout = got[1]
        self.send(self.stream.record(LAYOUT, layout.replace(*change)))

    def close(self):
        self.sock.close()


class HostilePeers(Scenario):
    def test_hostile_peers(self):
        lab = self.make(workload="bootsector")
        self.frames = self.follow(Frames(lab))
        self.wait_state(lab, "b", "standby-wait")
        self.wait(lab, "b", lambda s: s["arbiter"]["reachable"], "connected to the arbiter")
        descriptors = self.descriptors(lab, "b")

        def raw(data):
            return lambda peer: peer.send(data)

        def made(make):
            return lambda peer: peer.send(make(peer.stream))

        def in_epoch(make):
            def act(peer):
                peer.greet()
                peer.send(peer.stream.epoch_begin(1, True) + make(peer.stream))

            return act

        page = [(0, RAW, b"x" * 4096)]
        hello = {"role": 1, "vm": VM, "instance": b"hostile peer...."}
        cases = (
            ("garbage", raw(b"GET / HTTP/1.1\r\nHost: pollux\r\n\r\n" + bytes(range(256))), "PLXR"),
            ("records before HELLO", made(lambda s: s.heartbeat()), "HELLO"),
            ("a wrong magic", made(lambda s: s.record(HELLO, bytes(88), magic=0x12345678)), "PLXR"),
            (
                "the HELLO of another version",
                made(
                    lambda s: s.hello(version_min=9, version_max=9, **hello) + s.layout({"a": "b"})
                ),
                "version",
            ),
            (
                "the HELLO of another VM",
                made(lambda s: s.hello(role=1, vm="db1") + s.layout({"a": "b"})),
                "another VM",
            ),
            (
                "the HELLO of a standby",
                made(lambda s: s.hello(**{**hello, "role": 2}) + s.layout({"a": "b"})),
                "standby",
            ),
            (
                "the HELLO of an outdated active",
                lambda p: p.send(Stream(generation=0).hello(**hello)),
                "generation",
            ),
            (
                "a record that is too long",
                made(lambda s: s.hello(**hello) + s.record(HEARTBEAT, bytes(72))),
                "longer than its type",
            ),
            (
                "a wrong checksum",
                made(lambda s: s.hello(**hello) + s.record(LAYOUT, b"a=b\n", checksum=1)),
                "checksum",
            ),
            (
                "a length beyond any record",
                made(lambda s: s.hello(**hello) + s.record(PAGES, b"", 1, length=0xFFFFFFF8)),
                "longer than",
            ),
            (
                "a wrong sequence",
                made(lambda s: s.hello(**hello) + s.record(LAYOUT, b"a=b\n", sequence=7)),
                "sequence",
            ),
            (
                "a layout that differs",
                lambda p: p.greet((b"cpus=1\n", b"cpus=9\n")),
                "number of processors: 1 here, 9 there",
            ),
            (
                "a page outside of RAM",
                in_epoch(lambda s: s.pages(1, [(1 << 30, ZERO, b"")])),
                "page",
            ),
            (
                "a broken batch",
                in_epoch(lambda s: s.record(PAGES, pages_payload(page, nr_pages=65), 1)),
                "PAGES",
            ),
            (
                "a wrong epoch digest",
                in_epoch(
                    lambda s: s.pages(1, page) + s.state(1, b"abc") + s.epoch_end(1, digest=1)
                ),
                "digest",
            ),
            (
                "an epoch out of order",
                lambda p: (p.greet(), p.send(p.stream.epoch_begin(7, True))),
                "epoch",
            ),
            (
                "records of another generation",
                lambda p: (
                    p.greet(),
                    p.send(
                        p.stream.record(EPOCH_BEGIN, struct.pack("<IIQ", 1, 0, 0), 1, generation=77)
                    ),
                ),
                "generation",
            ),
        )
        untold = ("an epoch out of order",)  # the peer only sees the end of the connection
        for name, act, word in cases:
            with self.fact(f"{name} from a peer: dropped, with one line that says why"):
                since = self.log_size(lab, "b")
                peer = Peer(lab)
                try:
                    act(peer)
                    texts = peer.wait_closed()
                finally:
                    peer.close()
                self.wait_state(lab, "b", "standby-wait")
                if name in untold:
                    self.assertIn(word, self.log(lab, "b", since=since))
                    continue
                self.assertTrue(
                    any(word.lower() in text.lower() for text in texts), f"REFUSE says why: {texts}"
                )
                said = [
                    line
                    for line in self.log(lab, "b", since=since).splitlines()
                    if ": info: " not in line
                ]
                self.assertIn(word.lower(), " ".join(said).lower())
                self.assertEqual(len(said), 1, self.log(lab, "b", since=since))

        with self.fact(
            "half an epoch and then silence: given up after the time-out, the part thrown away"
        ):
            peer = self.half_an_epoch(lab, page)
            peer.wait_closed()
            peer.close()
            self.assertIn("the peer is silent", self.wait_state(lab, "b", "standby-wait")["reason"])
        with self.fact(
            "half an epoch and then close: back to waiting at once, the part thrown away"
        ):
            peer = self.half_an_epoch(lab, page)
            peer.close()
            self.wait_state(lab, "b", "standby-wait")
        with self.fact(
            "half a record and then silence holds the place no longer than an introduction may take"
        ):
            peer = Peer(lab)
            peer.send(peer.stream.hello(**hello)[:50])
            peer.wait_closed(timeout_s=15)
            peer.close()
        with self.fact("two hundred connections at once: all but one are turned away, none stays"):
            peers = [Peer(lab, "a" if i % 2 else "witness") for i in range(200)]
            for peer in peers:
                peer.close()
            self.wait(
                lab,
                "b",
                lambda s: s["state"] == "standby-wait" and not s["peer"]["connected"],
                "rid of all peers",
            )
        with self.fact("no descriptor is left of any of them"):
            deadline = time.monotonic() + STEP_S
            while len(self.descriptors(lab, "b")) > len(
                descriptors
            ):  # that of the last question may be closing
                self.assertLess(
                    time.monotonic(),
                    deadline,
                    f"{self.descriptors(lab, 'b')} now, {descriptors} before",
                )
                self.frames.flow(1)
        with self.fact("after all of them an honest pairing works"):
            self.pair(lab)
            self.frames.flow()
            self.assertEqual(self.error_lines(lab), [])
        with self.fact(
            "during protection a further peer is turned away as busy, on both sides, "
            "and protection goes on"
        ):
            acked = lab.status_of("a")["acked"]
            for target in ("b", "a"):
                peer = Peer(lab, target=target)
                self.assertEqual(len(peer.wait_closed()), 1)
                peer.close()
            self.wait(
                lab,
                "a",
                lambda s: s["state"] == "protected" and s["acked"] > acked,
                "protected and at work",
            )
        with self.fact("the pair that hostile peers have met still fails over without a loss"):
            lab.kill("a")
            self.frames.flow(200)
            self.assert_nothing_lost(self.frames.end(), failovers=1)

    def half_an_epoch(self, lab, page):
        """A peer that b takes for its active, and that has sent a part of epoch 1."""
        since_ns = time.monotonic_ns()
        peer = Peer(lab)
        peer.greet()
        peer.send(peer.stream.epoch_begin(1, True) + peer.stream.pages(1, page))
        self.wait_moved(lab, "b", "standby-syncing", since_ns)
        return peer

    def descriptors(self, lab, host):
        """What polluxd has open, by kind; its epoch store is gone as soon as it waits again."""
        folder = f"/proc/{lab.records(host, 'polluxd')[0]['pid']}/fd"
        return sorted(
            os.readlink(os.path.join(folder, fd)).split("[")[0].split(":")[0]
            for fd in os.listdir(folder)
        )


class HostileClients(Scenario):
    def test_witness_and_control_socket(self):
        lab = self.make(workload="bootsector")
        frames = self.follow(Frames(lab))
        with self.fact(
            "the witness survives garbage, a megabyte, half a record and a hundred clients, "
            "and still grants"
        ):
            peers = []
            for data in (
                b"\0" * 64,
                b"hello\n",
                bytes(1 << 20),
                Stream().arb_ask(vm=VM)[:60],
                Stream().hello(vm=VM),
            ):
                peers.append(Peer(lab, "b", "witness", labnet.WITNESS_PORT))
                peers[-1].send(data)
            for _ in range(100):
                peers.append(Peer(lab, "b", "witness", labnet.WITNESS_PORT))
            self.pair(lab)
            self.assertEqual(self.wait_state(lab, "a", "protected")["arbiter"]["generation"], 1)
            for peer in peers:
                peer.close()
        with self.fact("and grants when it matters, with those clients still connected"):
            peers = [Peer(lab, "b", "witness", labnet.WITNESS_PORT) for _ in range(100)]
            lab.kill("a")
            frames.flow()
            for peer in peers:
                peer.close()
            lab.start("a")
            self.wait_state(lab, "b", "protected", timeout_s=60)

        path = lab.path("b", "control.sock")
        for name, data, word in (
            ("garbage", b"\x00\xff\xfe garbage\n", "JSON"),
            ("a command that is no object", b"[1,2]\n", "JSON"),
            ("an unknown command", b'{"cmd": "dance"}\n', "unknown command"),
            ("a value of the wrong type", b'{"cmd": 7}\n', "unknown command"),
            ("a deep nest", b"[" * 5000 + b"\n", "JSON"),
            ("a line of a megabyte", b"x" * (1 << 20) + b"\n", "65535 bytes"),
        ):
            with self.fact(f"the control socket answers {name} with code 64 and a sentence"):
                answer = self.say(path, data)
                self.assertEqual((answer["ok"], answer["code"]), (False, 64))
                self.assertIn(word, answer["error"])
        with self.fact(
            "a hundred clients of the control socket: polluxd stays in service, "
            "and answers when they are gone"
        ):
            sockets = []
            deadline = time.monotonic() + 2 * STEP_S
            while len(sockets) < 100:
                self.assertLess(time.monotonic(), deadline, f"only {len(sockets)} could connect")
                try:
                    sockets.append(labqmp.connect_unix(path, time.monotonic() + STEP_S))
                except BlockingIOError:  # the queue is full; a frame later polluxd has had its turn
                    frames.flow(1)
            frames.flow(50)
            for sock in sockets:
                sock.close()
            acked = self.wait_state(lab, "b", "protected")["acked"]
            self.wait(lab, "b", lambda s: s["acked"] > acked, "at work")
        with self.fact("a subscriber that does not read holds nothing up"):
            sock = labqmp.connect_unix(path, time.monotonic() + STEP_S)
            sock.sendall(b'{"cmd": "events", "since": 0}\n')
            frames.flow()
            sock.close()
            self.wait_state(lab, "b", "protected")
        with self.fact("through all of it no frame was repeated"):
            self.assert_nothing_lost(frames.end(), failovers=1)

    @staticmethod
    def say(path, data):
        """Sends bytes to a control socket, returns its answer."""
        sock = labqmp.connect_unix(path, time.monotonic() + STEP_S)
        with sock:
            sock.settimeout(STEP_S)
            try:
                sock.sendall(data)
            except OSError:
                pass  # it has stopped reading: its answer is there
            return json.loads(labqmp.LineReader(sock).line(time.monotonic() + STEP_S))
