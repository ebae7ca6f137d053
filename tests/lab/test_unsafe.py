#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_unsafe.py - negative control of the failover tests: with output not held, the same checks
must find losses
"""
from scenario import Frames, Increments, Scenario

ROUNDS_MAX = 8


class NotHeld(Scenario):
    def test_boot_sector(self):
        lab = self.make(workload="bootsector", unsafe_no_hold=True)
        self.pair(lab)
        with self.fact(
            "with output not held, the watcher of the boot sector reports repeated counters"
        ):
            self.assertEqual(
                self.lost(lab, lambda: Frames(lab), lambda summary: summary["repeated"]), "found"
            )
        with self.fact("an unsafe daemon says so when it starts"):
            self.assertIn("started UNSAFE", self.log(lab, "a"))
            self.assertTrue(self.wait_state(lab, *self.active(lab))["unsafe_release"])

    def test_redis(self):
        lab = self.make(workload="redis", memory=256, unsafe_no_hold=True)
        self.pair(lab)
        with self.fact(
            "with output not held, the Redis client reports lost replies or a broken connection"
        ):
            self.assertEqual(
                self.lost(
                    lab,
                    lambda: Increments(lab),
                    lambda summary: summary["repeated"]
                    or summary["reconnects"]
                    or summary["errors"],
                ),
                "found",
            )

    def active(self, lab):
        return (
            ("a", "protected")
            if lab.power("a") == "on" and self.running(lab, "a")
            else ("b", "protected")
        )

    def lost(self, lab, make_client, is_loss):
        """Kills the active again and again until the client reports a loss."""
        active, other = "a", "b"
        for _ in range(ROUNDS_MAX):
            client = self.follow(make_client())
            client.flow(50)
            lab.kill(active)
            self.wait_state(lab, other, "alone", "syncing")
            try:
                client.flow(100, timeout_s=10)
            except Exception:  # a connection that does not go on is what this looks for
                pass
            summary = client.end()
            lab.start(active)
            active, other = other, active
            self.wait_state(lab, active, "protected", timeout_s=60)
            if is_loss(summary):
                return "found"
        return f"no loss in {ROUNDS_MAX} kills"
