#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_refused.py - what cannot be protected is refused with a sentence that names the difference;
the guest goes on

One boot-sector guest on a; its would-be standby is replaced by one that differs, again and again. In
the end an equal one is paired, so that none of the refusals has left anything behind.
"""
import json
import os
import socket
import threading

from scenario import Frames, Scenario

STOCK = "/usr/bin/qemu-system-x86_64"


class OtherBuild:
    """Stands between a polluxd and its QEMU and calls the QEMU another build; passes everything else
    on.
    """

    def __init__(self, path, qmp_path, package):
        self.package = package
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.qmp_path = qmp_path
        self.sockets = [self.listener]
        self.threads = []
        self._start(self._serve)

    def _start(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        self.threads.append(thread)

    def _serve(self):
        while True:
            try:
                client = self.listener.accept()[0]
                qemu = socket.socket(socket.AF_UNIX)
                qemu.connect(self.qmp_path)
            except OSError:
                return
            self.sockets += [client, qemu]
            self._start(self._copy, qemu, client, True)
            self._start(self._copy, client, qemu, False)

    def _copy(self, source, sink, greeting):
        try:
            while True:
                data = source.recv(65536)
                if greeting and data:
                    while not data.endswith(b"\n"):
                        part = source.recv(65536)
                        if not part:
                            raise OSError("no greeting")
                        data += part
                    message = json.loads(data)
                    message["QMP"]["version"]["package"] = self.package
                    data = json.dumps(message).encode() + b"\n"
                    greeting = False
                if not data:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        for sock in self.sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
        for thread in self.threads:
            thread.join(5)


class Refused(Scenario):
    def stock(self):
        """A QEMU without our patches, if this machine has one."""
        for path in (os.environ.get("POLLUX_STOCK_QEMU"), STOCK):
            if path and os.access(path, os.X_OK):
                return path
        return None

    def expect(self, lab, words, *anywhere):
        """Pairs, and waits until a says why it does not: all words in its reason. The guest runs
        on.
        """
        code, text = self.try_pair(lab)
        self.assertEqual(
            code, 0, text
        )  # the arbiter grants; whether the two fit together shows afterwards
        status = self.wait(
            lab,
            "a",
            lambda s: s["state"] == "alone" and all(w in s["reason"] for w in words),
            f"alone because of {words}",
        )
        self.assertFalse(status["protected"])
        for word in anywhere:
            self.assertIn(word, self.log(lab, "a") + self.log(lab, "b"))
        self.frames.flow(50)
        self.pollux(lab, "a", "unpair")
        self.wait_state(lab, "a", "none")

    def differ(self, lab, **overrides):
        """A standby QEMU with other options; its polluxd attaches to it."""
        if lab.records("b", "qemu"):
            self.kill(lab, "b", "qemu")
            self.wait_state(lab, "b", "ended")
        self.start_qemu(lab, "b", **overrides)
        self.wait_state(lab, "b", "standby-wait")

    def test_refused(self):
        lab = self.make(workload="bootsector", disk="ro")
        self.frames = self.follow(Frames(lab))
        self.frames.flow()
        for fact, overrides, words in (
            (
                "other RAM size",
                {"standby_memory": 96},
                ("RAM block pc.ram", "67108864 bytes here", "100663296 bytes there"),
            ),
            (
                "other machine type",
                {"standby_machine": "q35"},
                ("machine type", "pc-i440fx", "pc-q35"),
            ),
            (
                "another number of processors",
                {"standby_smp": 2},
                ("number of processors: 1 here, 2 there",),
            ),
            (
                "a device more",
                {"standby_device": ["virtio-rng-pci"]},
                ("device section", "virtio-rng", "missing here"),
            ),
        ):
            with self.fact(f"{fact}: refused, the difference named"):
                self.differ(lab, **overrides)
                self.expect(lab, words)
        with self.fact("another QEMU build: refused, both builds named"):
            self.differ(lab)
            self.kill(lab, "b", "polluxd")
            path = lab.path("b", "other.sock")
            other = OtherBuild(path, lab.path("b", "qmp-pollux.sock"), " (another 1:2.3-4)")
            self.addCleanup(other.close)
            self.start_polluxd(lab, "b", change={"--qmp": path})
            self.wait_state(lab, "b", "standby-wait")
            self.expect(lab, ("QEMU", "another 1:2.3-4 there"))
        with self.fact("another VM's standby: refused, both names said"):
            self.kill(lab, "b", "polluxd")
            state = lab.path("b", "state-of-other")
            self.start_polluxd(lab, "b", change={"--vm": "other", "--state-dir": state})
            self.wait_state(lab, "b", "standby-wait")
            self.expect(lab, ("another VM", "guest", "other"))
            self.kill(lab, "b", "polluxd")
        with self.fact(
            "no polluxd at the peer's address: said so, tried again, and paired when it is there"
        ):
            code, text = self.try_pair(lab)
            self.assertEqual(code, 0, text)
            self.wait(
                lab,
                "a",
                lambda s: s["state"] == "alone"
                and "refused" in s["reason"]
                and "10.78.0.2" in s["reason"],
                "alone because the peer cannot be reached",
            )
            self.frames.flow(50)
            lab._start_polluxd("b")
            self.wait_state(lab, "a", "protected", timeout_s=60)
            self.frames.flow(50)
            code, text = self.pollux(lab, "a", "unpair")
            self.assertEqual(code, 0, text)
            self.wait_state(lab, "a", "none")
        with self.fact(
            "a peer whose host does not answer: said so, tried again, and paired when it answers"
        ):
            lab.cut("a", "b")
            code, text = self.try_pair(lab)
            self.assertEqual(code, 0, text)
            self.wait(
                lab,
                "a",
                lambda s: s["state"] == "alone" and "10.78.0.2" in s["reason"],
                "alone because the peer's host cannot be reached",
            )
            self.frames.flow(50)
            lab.heal()
            self.wait_state(lab, "a", "protected", timeout_s=60)
            self.assertEqual(self.pollux(lab, "a", "unpair")[0], 0)
            self.wait_state(lab, "a", "none")
        with self.fact("the witness cannot be reached: pair fails with code 69, the guest goes on"):
            lab.kill("witness")
            code, text = self.try_pair(lab)
            self.assertEqual(code, 69, text)
            self.assertIn("arbiter does not answer", text)
            self.frames.flow(50)
            lab.start("witness")
        with self.fact(
            "the register belongs to another history: pair fails and names --adopt; --adopt pairs"
        ):
            self.kill(lab, "a", "polluxd")
            os.unlink(lab.path("a", "state", "state"))
            lab._start_polluxd("a")
            self.wait(lab, "a", lambda s: s["guest"]["attached"], "attached")
            code, text = self.try_pair(lab)
            self.assertEqual(code, 106, text)
            self.assertIn("--adopt", text)
            self.frames.flow(50)
            code, text = self.try_pair(lab, "a", "--adopt")
            self.assertEqual(code, 0, text)
            self.wait_state(lab, "a", "protected", timeout_s=60)
        with self.fact("after all refusals: frames never stopped, none was repeated"):
            self.assert_nothing_lost(self.frames.end())

    def test_writable_disk(self):
        lab = self.make(workload="bootsector", disk="rw")
        self.frames = self.follow(Frames(lab))
        with self.fact("a writable disk: refused, the disk named"):
            self.expect(lab, ("writable", "blk0", "read-only"))
            self.assert_nothing_lost(self.frames.end())

    def test_unpatched_qemu(self):
        stock = self.stock()
        if not stock:
            self.skipTest(f"no unpatched QEMU: neither POLLUX_STOCK_QEMU nor {STOCK}")
        lab = self.make(workload="bootsector", no_pollux=True, qemu=stock)
        self.frames = self.follow(Frames(lab))
        with self.fact("a QEMU without the patch: said so, what to do too, and the guest goes on"):
            with lab.state.change() as state:
                state["options"]["no_pollux"] = False
            lab._start_witness()
            lab._start_polluxd("a")
            self.wait_log(
                lab,
                "a",
                "this QEMU has no checkpoint commands: start the guest with the patched QEMU",
            )
            code, text = self.try_pair(lab)
            self.assertNotEqual(code, 0, text)
            self.frames.flow(50)
            self.assert_nothing_lost(self.frames.end())
        with self.fact("that is said once, not at every attempt to attach"):
            self.wait(lab, "a", lambda s: s["uptime_s"] >= 2, "up for some attempts")
            self.assertEqual(self.log(lab, "a").count("no checkpoint commands"), 1)
