#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_limits.py - too many of one kind, places that are taken, disks that are full: a sentence
each, the guest goes on
"""
import errno
import os
import signal
import time

import labdaemon
import labproc
import labqmp
from scenario import STEP_S, Frames, Scenario

SMALL_DISK_BYTES = 16384


class Taken(Scenario):
    def test_taken_places(self):
        lab = self.make(workload="bootsector")
        frames = self.follow(Frames(lab))
        self.pair(lab)
        with self.fact("a second polluxd with the same state directory ends and says why"):
            code, text = self.run_polluxd(
                lab, "a", {"--control": lab.path("a", "second.sock"), "--listen": "10.78.0.1:7999"}
            )
            self.assertEqual(code, 1, text)
            self.assertIn("another polluxd uses the state directory", text)
        with self.fact("a second polluxd with the same control socket ends and says why"):
            code, text = self.run_polluxd(
                lab, "a", {"--state-dir": lab.path("a", "state2"), "--listen": "10.78.0.1:7999"}
            )
            self.assertEqual(code, 1, text)
            self.assertIn("another polluxd serves this control socket", text)
        with self.fact("a second polluxd at the same address ends and says why"):
            code, text = self.run_polluxd(
                lab,
                "a",
                {"--state-dir": lab.path("a", "state3"), "--control": lab.path("a", "third.sock")},
            )
            self.assertEqual(code, 1, text)
            self.assertIn(os.strerror(errno.EADDRINUSE), text)
            self.assertIn("7460", text)
        with self.fact(
            "a second polluxd that would use the same QMP socket is told that it is held, "
            "and harms nothing"
        ):
            record = self.second(lab)
            self.wait_log(lab, "a", "is held by another client", role="second")
            self.end(record)
        with self.fact("the pair has not noticed any of them"):
            self.wait_state(lab, "a", "protected")
            frames.flow()
        with self.fact("a second pair command is refused while paired"):
            code, text = self.try_pair(lab, "a", peer="10.78.0.3:7460")
            self.assertEqual(code, 64, text)
            self.assertIn("unpair first", text)
        with self.fact("pair on the standby is refused, and says why"):
            code, text = self.try_pair(lab, "b")
            self.assertNotEqual(code, 0, text)
            self.assertTrue("standby" in text or "paired already" in text, text)
        with self.fact("a stale control socket is taken over"):
            self.kill(lab, "b", "polluxd")
            self.assertTrue(os.path.exists(lab.path("b", "control.sock")))
            lab._start_polluxd("b")
            self.wait_state(lab, "a", "protected", timeout_s=60)
        with self.fact("a state directory of another VM is refused, and both are named"):
            self.kill(lab, "b", "polluxd")
            code, text = self.run_polluxd(lab, "b", {"--vm": "another"})
            self.assertEqual(code, 1, text)
            self.assertIn(f'is that of the VM "{labdaemon.VM}", not of "another"', text)
            lab._start_polluxd("b")
            self.wait_state(lab, "a", "protected", timeout_s=60)
        with self.fact("a control path that is a plain file is left alone, and named"):
            path = lab.path("b", "plain.sock")
            with open(path, "w", encoding="ascii") as file:
                file.write("precious")
            code, text = self.run_polluxd(
                lab,
                "b",
                {
                    "--control": path,
                    "--state-dir": lab.path("b", "state2"),
                    "--listen": "10.78.0.2:7999",
                },
            )
            self.assertEqual(code, 1, text)
            self.assertIn(path, text)
            self.assertIn("not a socket", text)
            with open(path, encoding="ascii") as file:
                self.assertEqual(file.read(), "precious")
        with self.fact(
            "a state file that was damaged is refused, the file named, and not written over"
        ):
            os.makedirs(lab.path("b", "state4"), 0o700)
            path = lab.path("b", "state4", "state")
            with open(path, "w", encoding="ascii") as file:
                file.write("generation=banana\n")
            code, text = self.run_polluxd(
                lab,
                "b",
                {
                    "--control": lab.path("b", "x.sock"),
                    "--state-dir": lab.path("b", "state4"),
                    "--listen": "10.78.0.2:7999",
                },
            )
            self.assertEqual(code, 1, text)
            self.assertIn("does not guess", text)
            with open(path, encoding="ascii") as file:
                self.assertEqual(file.read(), "generation=banana\n")
        with self.fact("after all of it the pair fails over without a loss"):
            frames.flow()
            lab.kill("a")
            frames.flow()
            self.assert_nothing_lost(frames.end(), failovers=1)

    def second(self, lab):
        """A further polluxd on a, with places of its own but the QMP socket."""
        argv = labdaemon.polluxd_argv("a", lab.options, lab.path("a"))
        for option, value in (
            ("--control", lab.path("a", "second.sock")),
            ("--state-dir", lab.path("a", "state5")),
            ("--listen", "10.78.0.1:7998"),
        ):
            argv[argv.index(option) + 1] = value
        return lab._spawn("a", "second", argv)

    def end(self, record):
        os.kill(record["pid"], signal.SIGTERM)
        labproc.wait_gone([record["pid"]])

    def test_qmp_socket_held_from_the_start(self):
        lab = self.make(workload="bootsector", no_pollux=True)
        frames = self.follow(Frames(lab))
        with lab.state.change() as state:
            state["options"]["no_pollux"] = False
        with self.fact(
            "a QMP socket that another client holds: said so; attached as soon as it is free"
        ):
            held = labqmp.connect_unix(lab.path("a", "qmp-pollux.sock"), time.monotonic() + STEP_S)
            lab._start_witness()
            lab._start_polluxd("a")
            line = self.wait_log(lab, "a", "is held by another client")
            self.assertIn(lab.path("a", "qmp-pollux.sock"), line)
            code, text = self.try_pair(lab)
            self.assertNotEqual(code, 0, text)
            held.close()
            self.wait(lab, "a", lambda s: s["guest"]["attached"], "attached")
            frames.flow(50)
            self.assertEqual(self.log(lab, "a").count("is held by another client"), 1)


class HeldOutput(Scenario):
    def test_limit_of_held_output(self):
        lab = self.make(
            workload="bootsector",
            polluxd_arg=["--hold-max-packets", "64", "--hold-freeze-ms", "60000"],
        )
        frames = self.follow(Frames(lab))
        self.pair(lab)
        frames.flow()
        with self.fact("held output at its limit: the guest is frozen, nothing is dropped"):
            self.cut_all(lab)
            self.wait_state(lab, "a", "claiming")
            self.wait(
                lab, "a", lambda s: s["frozen"] and not s["guest"]["running"], "frozen at the limit"
            )
            with lab.qmp("a") as qmp:
                self.assertGreaterEqual(qmp.command("query-checkpoint")["held-packets"], 64)
            seen = frames.lines
        with self.fact("when the side is granted the guest goes on, and every held frame comes"):
            self.let_reach_witness(lab, "a")
            self.wait_state(lab, "a", "alone")
            frames.wait_more(1)
            frames.flow()
            self.assertGreater(frames.lines, seen + 64)
            self.assert_one_runs(lab, "a")
            self.assert_nothing_lost(frames.end())
        with self.fact("the other side, healed too, is refused and becomes the standby again"):
            lab.heal()
            self.wait_state(lab, "a", "protected", timeout_s=60)


class FullDisk(Scenario):
    def start_on_small_disk(self, lab, host):
        """polluxd with a state directory on a file system of its own, as small as one can be."""
        argv = labdaemon.polluxd_argv(host, lab.options, lab.path(host))
        state = lab.path(host, "state")
        record = lab._spawn(
            host,
            "polluxd",
            [
                "unshare",
                "-m",
                "sh",
                "-c",
                f'mount -t tmpfs -o size={SMALL_DISK_BYTES},mode=0700 tmpfs "$0" && exec "$@"',
                state,
                *argv,
            ],
        )
        lab._wait_socket(record, lab.path(host, "control.sock"))
        return f"/proc/{record['pid']}/root{state}"

    @staticmethod
    def fill(folder):
        """Fills a file system to the last byte; one that is not small is left alone."""
        status = os.statvfs(folder)
        if status.f_blocks * status.f_frsize > SMALL_DISK_BYTES:
            raise AssertionError(f"{folder} is not on the small disk")
        path = os.path.join(folder, "filler")
        with open(path, "wb", buffering=0) as file:
            for size in (4096, 1):
                try:
                    for _ in range(SMALL_DISK_BYTES):
                        file.write(b"x" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        return path

    def test_full_disk(self):
        lab = self.make(workload="bootsector")
        frames = self.follow(Frames(lab))
        self.wait_state(lab, "b", "standby-wait")
        with self.fact(
            "state files on a full disk: pair fails and says so, the guest goes on; "
            "with room it pairs"
        ):
            self.kill(lab, "a", "polluxd")
            folder = self.start_on_small_disk(lab, "a")
            self.wait(lab, "a", lambda s: s["guest"]["attached"], "attached")
            filler = self.fill(folder)
            code, text = self.try_pair(lab)
            self.assertEqual(code, 1, text)
            self.assertIn("state file could not be written", text)
            self.assertIn("make room", self.log(lab, "a"))
            self.assertEqual(self.wait_state(lab, "a", "none")["output"], "pass")
            frames.flow(50)
            os.unlink(filler)
            self.pair(lab)
            frames.flow(50)
        with self.fact(
            "a standby whose disk is full refuses to be one, and says so; with room it becomes one"
        ):
            self.kill(lab, "b", "polluxd")
            self.wait_state(lab, "a", "alone")
            lab.cut("a", "b")  # so that they do not meet before the disk is full
            folder = self.start_on_small_disk(lab, "b")
            filler = self.fill(folder)
            since = self.log_size(lab, "b")
            lab.heal()
            self.wait_log(lab, "b", "make room", since=since)
            self.wait(
                lab,
                "a",
                lambda s: s["state"] == "alone"
                and "state file could not be written" in s["reason"],
                "refused",
            )
            frames.flow(50)
            os.unlink(filler)
            self.wait_state(lab, "a", "protected", timeout_s=60)
        with self.fact(
            "an active whose disk is full when protection is lost still goes on alone, in service"
        ):
            filler = self.fill(
                f"/proc/{lab.records('a', 'polluxd')[0]['pid']}/root{lab.path('a', 'state')}"
            )
            lab.kill("b")
            self.wait_state(lab, "a", "alone")
            frames.flow()
            os.unlink(filler)
            self.assert_nothing_lost(frames.end())
