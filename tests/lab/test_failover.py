#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_failover.py - the active host dies under a client's hands: nothing is lost, no connection
breaks

Redis on pc, there and back again; nginx on q35 with two processors; two NICs on microvm; the
boot-sector guest under TCG and KVM. A failover that goes well says nothing at level error.
"""
import os

from scenario import Frames, Increments, Pages, Scenario


class Redis(Scenario):
    def test_redis_on_pc_there_and_back(self):
        lab = self.make(workload="redis", memory=256)
        client = self.follow(Increments(lab))
        client.flow(50)
        with self.fact("a running guest under load becomes protected"):
            self.pair(lab)
            client.flow(100)
        with self.fact("status tells times, sizes, peer and arbiter of a protected guest"):
            status = self.wait(
                lab,
                "a",
                lambda s: s["pause_us"]["count"] > 20 and s["hold_us"]["count"] > 20,
                "measured",
            )
            self.assertEqual(
                (status["role"], status["state"], status["output"], status["peer"]["connected"]),
                ("active", "protected", "hold", True),
            )
            for key in (
                "pause_us",
                "epoch_us",
                "hold_us",
                "ack_us",
                "pages_per_epoch",
                "bytes_per_epoch",
            ):
                self.assertTrue(
                    0 < status[key]["p50"] <= status[key]["p99"] <= status[key]["max"],
                    f"{key}: {status[key]}",
                )
            self.assertTrue(status["arbiter"]["holder_is_me"], status["arbiter"])
            self.assertEqual(
                self.wait_state(lab, "b", "standby-ready")["generation"], status["generation"]
            )
        with self.fact("after kill of host a the client goes on, on the same connection"):
            lab.kill("a")
            client.flow(200)
            self.assertTrue(self.running(lab, "b"))
        with self.fact("the promotion is recorded with its times and its reason"):
            event = self.wait_promoted(lab, "b")
            self.assertEqual(event["arbiter"], "granted")
            record = self.wait_state(lab, "b", "alone", "syncing")["last_promotion"]
            self.assertEqual(record["generation"], 2)
            self.assertGreater(record["total_ms"], 0)
        with self.fact("a clean failover prints no line at error level"):
            self.assertEqual(self.error_lines(lab), [])
        with self.fact("a host that is started again becomes the standby without a command"):
            lab.start("a")
            self.wait_state(lab, "b", "protected", timeout_s=60)
            client.flow(100)
        with self.fact("the second failover, back to a, loses nothing either"):
            lab.kill("b")
            client.flow(200)
            self.assertEqual(self.wait_state(lab, "a", "alone")["generation"], 3)
        with self.fact(
            "redis: no reply lost, repeated or skipped over two failovers, one connection"
        ):
            summary = client.end()
            self.assertTrue(summary["good"], summary)
            self.assertEqual(
                (summary["repeated"], summary["skipped"], summary["reconnects"]), (0, 0, 0)
            )


class Nginx(Scenario):
    def test_nginx_on_q35_with_two_processors(self):
        lab = self.make(workload="nginx", machine="q35", smp=2, memory=256)
        self.pair(lab)
        client = self.follow(Pages(lab))
        client.flow(30)
        with self.fact("nginx on q35 with two processors: no request fails in a failover"):
            lab.kill("a")
            client.flow(60)
            summary = client.end()
            self.assertTrue(summary["good"], summary)


class TwoNics(Scenario):
    def test_two_nics_on_microvm(self):
        lab = self.make(workload="redis", machine="microvm", nics=2, memory=256)
        self.pair(lab)
        clients = [self.follow(Increments(lab, nic, f"nic{nic}")) for nic in (0, 1)]
        for client in clients:
            client.flow(50)
        with self.fact("two NICs on microvm: both connections survive a failover, nothing lost"):
            lab.kill("a")
            for client in clients:
                client.flow(100)
            for client in clients:
                summary = client.end()
                self.assertTrue(summary["good"], summary)


class BootSector(Scenario):
    def one(self, machine, accel):
        lab = self.make(workload="bootsector", machine=machine, accel=accel)
        frames = self.follow(Frames(lab))
        self.pair(lab)
        frames.flow(200)
        with self.fact(
            f"boot sector on {machine} under {accel}: no counter repeated, "
            "no memory error after a failover"
        ):
            lab.kill("a")
            frames.flow(200)
            self.assert_nothing_lost(frames.end(), failovers=1)

    def test_boot_sector_tcg(self):
        self.one("pc", "tcg")

    def test_boot_sector_q35(self):
        self.one("q35", "tcg")

    def test_boot_sector_microvm(self):
        self.one("microvm", "tcg")

    def test_boot_sector_kvm(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.skipTest("no /dev/kvm here")
        self.one("pc", "kvm")
