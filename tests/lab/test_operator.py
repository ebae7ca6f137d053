#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_operator.py - what only a person can decide, and a QEMU that hangs: afterwards the pair is
whole again

Boot-sector guests: their watcher sees every frame that leaves, whichever host it comes from.
"""
import os
import signal

import labdaemon
from scenario import Frames, Scenario


class Operator(Scenario):
    def force(self, lab, host):
        return self.pollux(
            lab, host, "promote", "--force", "--yes-i-accept-data-loss", labdaemon.VM
        )

    def hang(self, lab, host):
        """QEMU stands still, as one whose main loop waits for a dead storage; returns its pid."""
        pid = lab.records(host, "qemu")[0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        return pid

    def test_a_qemu_that_hangs(self):
        lab = self.make(workload="bootsector")
        frames = self.follow(Frames(lab))
        self.pair(lab)
        frames.flow()
        with self.fact("a QEMU that hangs on the active is noticed, and the standby takes over"):
            pid = self.hang(lab, "a")
            self.wait_promoted(lab, "b")
            self.wait_log(lab, "b", "the active's QEMU is gone or hangs")
            frames.flow()
            self.wait_state(lab, "a", "outdated")
        with self.fact("when it goes on it is stopped, and nothing of it leaves"):
            os.kill(pid, signal.SIGCONT)
            self.wait(lab, "a", lambda s: not s["guest"]["running"], "stopped")
            self.assert_one_runs(lab, "b")
            frames.flow()
        with self.fact("with a fresh QEMU there the pair is whole again, and no frame was repeated"):
            self.fresh_standby(lab, "a")
            self.wait_state(lab, "b", "protected", timeout_s=60)
            frames.flow()
            self.assert_nothing_lost(frames.end(), failovers=1, late=True)

    def test_the_granted_standby_is_lost(self):
        lab = self.make(workload="bootsector")
        frames = self.follow(Frames(lab))
        self.pair(lab)
        frames.flow()
        with self.fact("a standby that wins and is lost before its guest runs: the old active stops"):
            # It hangs when it has applied all and asks: before that it would not ask.
            self.cut_all(lab)
            self.wait_state(lab, "b", "standby-asking")
            self.hang(lab, "b")
            self.let_reach_witness(lab, "b")
            self.wait_state(lab, "b", "promoting")
            self.wait_state(lab, "a", "claiming")
            lab.kill("b")
            lab.heal()
            self.wait_state(lab, "a", "outdated")
            self.assertFalse(self.running(lab, "a"))
        with self.fact("promote says what it would take, and promote --force brings that copy back"):
            code, text = self.pollux(lab, "a", "promote")
            self.assertEqual(code, 107, text)
            self.assertIn("--force", text)
            code, text = self.force(lab, "a")
            self.assertEqual(code, 0, text)
            self.wait_state(lab, "a", "alone")
            frames.flow()
        with self.fact("it is protected again, and the next failover works"):
            lab.start("b")
            self.wait_state(lab, "a", "protected", timeout_s=60)
            frames.flow()
            lab.kill("a")
            self.wait_promoted(lab, "b")
            frames.flow()
        with self.fact("no frame of the copy that was brought back was repeated"):
            self.assert_nothing_lost(frames.end(), failovers=2)

    def test_force_without_an_arbiter(self):
        lab = self.make(workload="bootsector")
        frames = self.follow(Frames(lab))
        self.pair(lab)
        frames.flow()
        lab.kill("witness")
        lab.kill("a")
        with self.fact("without an arbiter promote --force runs the standby's copy"):
            self.wait_state(lab, "b", "standby-asking")
            code, text = self.force(lab, "b")
            self.assertEqual(code, 0, text)
            status = self.wait_state(lab, "b", "alone")
            self.assertTrue(status["forced"])
            frames.flow()
        with self.fact("it outlives a restart of polluxd"):
            self.kill(lab, "b", "polluxd")
            self.start_polluxd(lab, "b")
            self.wait(lab, "b", lambda s: s["state"] == "alone" and s["forced"], "forced")
            frames.flow()
        with self.fact("the arbiter is told when it is back, and the pair is whole again"):
            lab.start("witness")
            self.wait(lab, "b", lambda s: not s["forced"], "known to the arbiter")
            lab.start("a")
            self.wait_state(lab, "b", "protected", timeout_s=60)
            status = lab.status_of("b")
            self.assertEqual(status["arbiter"]["generation"], status["generation"])
        with self.fact("the next failover works without force"):
            frames.flow()
            lab.kill("b")
            self.wait_promoted(lab, "a")
            frames.flow()
            self.assert_nothing_lost(frames.end(), failovers=2)

    def test_two_sides_forced_apart(self):
        lab = self.make(workload="bootsector")
        self.pair(lab)
        with self.fact("a standby that is forced while the active was granted: both run, apart"):
            lab.cut("b", "witness")
            lab.cut("a", "b")
            self.wait_state(lab, "a", "alone")
            self.wait_state(lab, "b", "standby-asking")
            code, text = self.force(lab, "b")
            self.assertEqual(code, 0, text)
            self.wait_state(lab, "b", "alone")
        with self.fact("when they meet again the one that was not forced stops"):
            lab.heal()
            self.wait_state(lab, "a", "outdated")
            self.wait(lab, "a", lambda s: not s["guest"]["running"], "stopped")
            self.assert_one_runs(lab, "b")
            self.fresh_standby(lab, "a")
            self.wait_state(lab, "b", "protected", timeout_s=60)

    def test_a_guest_that_is_started_and_resumed(self):
        lab = self.make(workload="bootsector")
        with self.fact("a guest that was started with -S and then resumed can be paired (libvirt)"):
            self.kill(lab, "a", "qemu")
            self.start_qemu(lab, "a", standby=True)
            self.wait_state(lab, "a", "standby-wait")
            with lab.qmp("a") as qmp:
                qmp.command("cont")
            self.wait_state(lab, "a", "none")
            self.pair(lab)
            self.wait_state(lab, "a", "protected", timeout_s=60)
