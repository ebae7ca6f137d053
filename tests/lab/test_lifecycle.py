#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_lifecycle.py - what a guest and an operator do in the course of time: reboot, power off,
unpair and pair again
"""
import time

import labdaemon
from labstate import LabError
from scenario import Frames, Increments, Scenario

TRIES = 8
POWER_OFF_S = 90  # for Linux to go down


class Lifecycle(Scenario):
    def test_reboot_and_unpair(self):
        lab = self.make(workload="bootsector")
        self.pair(lab)
        with self.fact("a guest that reboots stays protected"):
            frames = self.follow(Frames(lab))
            frames.flow()
            before = frames.last["counter"]
            status = lab.status_of("a")
            with lab.qmp("a") as qmp:
                qmp.command("system_reset")
            # Its counter begins again; and frames come in order, so none of before comes now.
            frames.wait_last(lambda line: line["counter"] < before, "a counter that began again")
            frames.end()
            frames = self.follow(Frames(lab))
            frames.flow()
            after = self.wait(lab, "a", lambda s: s["acked"] > status["acked"] + 3, "at work")
            self.assertEqual(
                (after["state"], after["generation"]), ("protected", status["generation"])
            )
        with self.fact("and what the standby takes over is the guest after the reboot"):
            lab.kill("a")
            frames.flow(200)
            self.assert_nothing_lost(frames.end(), failovers=1)
            lab.start("a")
            self.wait_state(lab, "b", "protected", timeout_s=60)

        frames = self.follow(Frames(lab))
        with self.fact(
            "unpair: the guest goes on unprotected, and the standby forgets that it could take over"
        ):
            frames.flow()
            code, text = self.pollux(lab, "b", "unpair")
            self.assertEqual(code, 0, text)
            self.assertEqual(self.wait_state(lab, "b", "none")["output"], "pass")
            self.wait_state(lab, "a", "standby-wait")
            frames.flow()
        with self.fact("unpair once more does no harm, and on the standby it is refused"):
            self.assertEqual(self.pollux(lab, "b", "unpair")[0], 0)
            self.assertNotEqual(self.pollux(lab, "a", "unpair")[0], 0)
        with self.fact("pair again: protected, in a newer generation"):
            generation = lab.status_of("b")["generation"]
            self.pair(lab, "b")
            self.assertGreater(lab.status_of("b")["generation"], generation)
            frames.flow()
        with self.fact(
            "promote --force on a standby whose active lives: a failover without a loss, "
            "the old active stopped"
        ):
            code, text = self.pollux(lab, "a", "promote")
            self.assertEqual(code, 107, text)
            code, text = self.pollux(lab, "a", "promote", "--force")
            self.assertEqual(code, 107, text)
            self.assertIn("--yes-i-accept-data-loss", text)
            self.wait_state(lab, "b", "protected")
            self.promote(lab, "a", "b")
            self.wait_state(lab, "b", "outdated")
            self.wait(lab, "b", lambda s: not s["guest"]["running"], "stopped")
            self.assert_one_runs(lab, "a")
            frames.flow()
            self.assert_nothing_lost(frames.end(), failovers=1, late=True)

    def promote(self, lab, host, other):
        """Says promote --force until it is done: the active is asked away, and may win the arbiter's
        answer itself.
        """
        for _ in range(TRIES):
            code, text = self.pollux(
                lab, host, "promote", "--force", "--yes-i-accept-data-loss", labdaemon.VM
            )
            if code == 0:
                self.assertTrue(self.running(lab, host), text)
                return
            self.assertEqual(code, 106, text)  # the active was granted
            self.wait_state(lab, other, "protected", timeout_s=60)
        raise LabError(f"{host} was not promoted in {TRIES} tries")

    def test_power_off(self):
        lab = self.make(workload="redis", memory=256)
        client = self.follow(Increments(lab))
        self.pair(lab)
        client.flow(30)
        with self.fact("a guest that powers itself off is not taken over by the standby"):
            since_ns = time.monotonic_ns()
            with lab.qmp("a") as qmp:
                qmp.command("system_powerdown")
            self.wait_state(lab, "a", "ended", timeout_s=POWER_OFF_S)
            status = self.wait_state(lab, "b", "standby-wait")
            self.assertIn("guest ended", status["reason"])
            self.assert_not_promoted(lab, "b", since_ns, 1.5)
            self.assertIsNone(lab.status_of("b")["last_promotion"])
