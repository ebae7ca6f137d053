#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_partition.py - cuts, a missing witness and a host that stands still: one side runs, none
without a grant

Boot-sector guests: their watcher sees every frame that leaves, whichever host it comes from.
"""
import time

from scenario import Frames, Scenario

FREEZE_MS = 1500


class Partition(Scenario):
    def survivors(self, lab):
        """Waits until exactly one side is alone and the other has given up.

        Returns (winner, loser).
        """
        return self.decided(lab, ("alone",), ("outdated", "standby-wait"))

    def reunited(self, lab):
        """As survivors(), but they reach each other: a loser that is a standby is filled again."""
        return self.decided(
            lab,
            ("alone", "syncing", "entering", "protected"),
            ("outdated", "standby-wait", "standby-syncing", "standby-ready"),
        )

    def decided(self, lab, winning, losing):
        def decided(status):
            return status["state"] in winning + losing

        states = {host: self.wait(lab, host, decided, "decided")["state"] for host in ("a", "b")}
        winners = [host for host, state in states.items() if state in winning]
        self.assertEqual(len(winners), 1, f"exactly one side goes on: {states}")
        winner = winners[0]
        return winner, "b" if winner == "a" else "a"

    def repair(self, lab, winner, loser):
        """Brings the loser back as a standby."""
        if lab.status_of(loser)["state"] == "outdated":
            self.fresh_standby(lab, loser)
        self.wait_state(lab, winner, "protected", timeout_s=60)

    def make_active(self, lab, frames, winner):
        """Makes `a` the active one again, by a failover that is not what is tested.

        Returns failovers done.
        """
        if winner == "a":
            return 0
        lab.kill("b")
        self.wait_state(lab, "a", "alone")
        lab.start("b")
        self.wait_state(lab, "a", "protected", timeout_s=60)
        frames.flow()
        return 1

    def test_partitions(self):
        lab = self.make(workload="bootsector", polluxd_arg=["--hold-freeze-ms", str(FREEZE_MS)])
        frames = self.follow(Frames(lab))
        self.pair(lab)
        frames.flow()
        failovers = 0

        with self.fact(
            "a cut between a and b: exactly one side runs afterwards, the client loses nothing"
        ):
            lab.cut("a", "b")
            winner, loser = self.survivors(lab)
            self.wait(lab, loser, lambda s: not s["guest"]["running"], "stopped")
            self.assert_one_runs(lab, winner)
            frames.flow()
            failovers += winner == "b"
        with self.fact("after the cut is healed the winner is protected again"):
            lab.heal()
            self.repair(lab, winner, loser)
            frames.flow()
            self.assert_one_runs(lab, winner)
        failovers += self.make_active(lab, frames, winner)

        with self.fact(
            "a and b cut from each other and from the witness: nothing is released, "
            "and the guest freezes"
        ):
            self.cut_all(lab)
            self.wait_state(lab, "a", "claiming")
            moment = time.monotonic()
            status = self.wait(lab, "a", lambda s: s["frozen"], "frozen")
            self.assertEqual((status["state"], status["output"]), ("claiming", "hold"))
            self.wait(lab, "a", lambda s: not s["guest"]["running"], "stopped")
            self.wait_state(lab, "b", "standby-asking")
            self.assertFalse(
                self.running(lab, "a") or self.running(lab, "b"), "nobody runs the guest"
            )
            self.assertEqual(frames.since(moment), 0, "frames left although nobody had granted it")
        with self.fact("without a grant promote is refused, and says what --force would risk"):
            code, text = self.pollux(lab, "b", "promote")
            self.assertEqual(code, 107, text)
            self.assertIn("--force", text)
        with self.fact("healed: one side is granted and goes on"):
            lab.heal()
            winner, loser = self.reunited(lab)
            frames.flow()
            self.assert_one_runs(lab, winner)
            self.repair(lab, winner, loser)
            failovers += winner == "b"
        failovers += self.make_active(lab, frames, winner)

        with self.fact("the witness dies during protection: protection goes on"):
            lab.kill("witness")
            acked = self.wait_state(lab, "a", "protected")["acked"]
            frames.flow(300)
            self.wait(
                lab,
                "a",
                lambda s: s["state"] == "protected" and s["acked"] > acked + 10,
                "protected and at work",
            )
        with self.fact("then the active dies: the standby waits for the witness"):
            killed = lab.kill("a")
            self.wait_state(lab, "b", "standby-asking")
            self.assert_not_promoted(lab, "b", killed["monotonic_ns"], 1)
        with self.fact("the witness comes back: the standby is promoted"):
            lab.start("witness")
            self.wait_promoted(lab, "b", killed["monotonic_ns"])
            failovers += 1
            frames.flow()
            lab.start("a")
            self.wait_state(lab, "b", "protected", timeout_s=60)
        failovers += self.make_active(lab, frames, "b")

        with self.fact("a host that stands still is replaced"):
            frames.flow()
            paused = lab.pause("a")
            self.wait_promoted(lab, "b", paused["monotonic_ns"])
            failovers += 1
            frames.flow()
        with self.fact("when it goes on it sends nothing, and ends outdated and stopped"):
            lab.resume("a")
            self.wait_state(lab, "a", "outdated")
            self.wait(lab, "a", lambda s: not s["guest"]["running"], "stopped")
            self.assert_one_runs(lab, "b")
            frames.flow()
        with self.fact(
            "through all partitions no frame was repeated, and only failovers cost a gap"
        ):
            self.assert_nothing_lost(frames.end(), failovers, late=True)

    def test_polluxd_restarted_while_frozen(self):
        lab = self.make(workload="bootsector", polluxd_arg=["--hold-freeze-ms", str(FREEZE_MS)])
        frames = self.follow(Frames(lab))
        self.pair(lab)
        frames.flow()
        with self.fact(
            "a polluxd that is killed while its guest is frozen, and started again, "
            "releases nothing"
        ):
            self.cut_all(lab)
            self.wait(lab, "a", lambda s: s["frozen"], "frozen")
            self.wait(lab, "a", lambda s: not s["guest"]["running"], "stopped")
            moment = time.monotonic()
            self.kill(lab, "a", "polluxd")
            lab._start_polluxd("a")
            self.wait_state(lab, "a", "claiming")
            self.wait(
                lab,
                "a",
                lambda s: s["arbiter"]["last_answer"] == "none" and s["uptime_s"] >= 1,
                "asking in vain",
            )
            self.assertEqual(frames.since(moment), 0)
        with self.fact("granted, it lets the guest go on"):
            self.let_reach_witness(lab, "a")
            self.wait_state(lab, "a", "alone")
            frames.flow()
            self.assert_one_runs(lab, "a")
            lab.heal()
            self.wait_state(lab, "a", "protected", timeout_s=60)
            self.assert_nothing_lost(frames.end())
