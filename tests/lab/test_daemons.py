#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_daemons.py - polluxd or QEMU die alone, on either side: the guest stays in service, nothing
seen is lost

One pair of boot-sector guests, followed from beginning to end by one watcher.
"""
import signal

from scenario import Frames, Scenario

LONG_TIMEOUT_MS = 20000


class DaemonsDie(Scenario):
    def test_daemons_die(self):
        lab = self.make(workload="bootsector", peer_timeout_ms=LONG_TIMEOUT_MS)
        frames = self.follow(Frames(lab))
        self.pair(lab)
        frames.flow()

        with self.fact(
            "kill -9 of the standby's polluxd: the active goes on alone with a grant, output flows"
        ):
            self.kill(lab, "b", "polluxd")
            generation = self.wait_state(lab, "a", "alone")["generation"]
            self.assertEqual(generation, 2)
            frames.flow()
            self.assert_one_runs(lab, "a")
        with self.fact(
            "a new polluxd on the standby, with a fresh QEMU, is synced without a command"
        ):
            self.fresh_standby(lab, "b")
            lab._start_polluxd("b")
            self.wait_state(lab, "a", "protected", timeout_s=60)
            frames.flow()
        with self.fact("a new polluxd on the standby, with the QEMU of before, is synced too"):
            self.kill(lab, "b", "polluxd")
            self.wait_state(lab, "a", "alone")
            lab._start_polluxd("b")
            self.wait_state(lab, "a", "protected", timeout_s=60)
            frames.flow()

        with self.fact(
            "SIGTERM of the active's polluxd: the guest runs on, unprotected, in service"
        ):
            self.kill(lab, "a", "polluxd", signal.SIGTERM)
            frames.flow()
            self.assert_one_runs(lab, "a")
            self.wait_state(lab, "b", "standby-wait")
        with self.fact("the active's polluxd, started again, pairs again by itself"):
            lab._start_polluxd("a")
            self.wait_state(lab, "a", "protected", timeout_s=60)
            frames.flow()

        with self.fact("SIGTERM of the standby's polluxd: the active goes on alone at once"):
            self.kill(lab, "b", "polluxd", signal.SIGTERM)
            self.wait_state(lab, "a", "alone")
            frames.flow()
            lab._start_polluxd("b")
            self.wait_state(lab, "a", "protected", timeout_s=60)

        with self.fact(
            "kill -9 of the active's QEMU: the peer is told, "
            "and takes over long before its time-out"
        ):
            frames.flow()
            killed = self.kill(lab, "a", "qemu")
            event = self.wait_promoted(lab, "b")
            self.assertIn("QEMU is gone", event["reason"])
            self.assertLess((event["mono_ns"] - killed) / 1e6, LONG_TIMEOUT_MS / 2)
            frames.flow()
            self.wait_state(lab, "a", "ended")
        with self.fact("a fresh QEMU beside the polluxd that lost its own becomes the standby"):
            self.start_qemu(lab, "a")
            self.wait_state(lab, "b", "protected", timeout_s=60)
            frames.flow()

        with self.fact(
            "kill -9 of the active's polluxd: the standby takes over, "
            "the old guest's output never appears"
        ):
            self.kill(lab, "b", "polluxd")
            self.wait_promoted(lab, "a")
            frames.flow()
            self.assertTrue(
                self.running(lab, "b"), "nobody stops the old guest before a polluxd is there again"
            )
        with self.fact(
            "a new polluxd learns from the arbiter that its guest is outdated, and stops it"
        ):
            lab._start_polluxd("b")
            status = self.wait_state(lab, "b", "outdated")
            self.assertEqual(status["output"], "drop")
            self.assertIn("granted to the other side", status["reason"])
            self.wait(lab, "b", lambda s: not s["guest"]["running"], "stopped")
            self.assert_one_runs(lab, "a")
            frames.flow()
        with self.fact("an outdated side with a fresh QEMU becomes the standby again"):
            self.fresh_standby(lab, "b")
            self.wait_state(lab, "a", "protected", timeout_s=60)
            frames.flow()

        with self.fact("a standby whose QEMU dies is missed, and its next QEMU is synced"):
            self.fresh_standby(lab, "b")
            self.wait_event(
                lab,
                "a",
                lambda e: e.get("to") == "protected" and e["generation"] > status["generation"] + 1,
                "protected again",
                timeout_s=60,
            )
            frames.flow()
        with self.fact("through all of it no frame was repeated and only failovers cost a gap"):
            self.assert_nothing_lost(frames.end(), failovers=2)
