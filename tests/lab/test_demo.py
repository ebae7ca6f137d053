#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_demo.py - the demo's verdict: what it must call lost is called lost, from evidence made here

Owns temporary files only: no lab, no guest, no root. Every case that must be called bad stands
beside one that differs in that alone and is good.
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "clients")]

import http_client  # noqa: E402
import labnet  # noqa: E402
import labproc  # noqa: E402
import labqemu  # noqa: E402
import labround  # noqa: E402
import labstate  # noqa: E402

MS = 1_000_000


class Evidence(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def write(self, lines):
        path = os.path.join(self.folder.name, "evidence.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
        return path

    def judge(
        self, values, survivor, unanswered=False, reconnects=0, repeated=None, connections=None
    ):
        lines = [
            {"event": "connected", "at_ns": 0, "local_port": 1000 + i}
            for i in range(1 + reconnects if connections is None else connections)
        ]
        lines += [
            {"value": v, "sent_ns": i * 10 * MS, "received_ns": i * 10 * MS + MS}
            for i, v in enumerate(values)
        ]
        if repeated is None:
            repeated = sum(max(0, a + 1 - b) for a, b in zip(values, values[1:]))
        summary = {
            "acked": len(values),
            "repeated": repeated,
            "skipped": 0,
            "reconnects": reconnects,
            "unanswered": unanswered,
        }
        verdict = labround.judge_redis(labround.Work("redis", self.write(lines), summary), survivor)
        return verdict

    def is_good(self, verdict):
        return labround.good(verdict)

    def test_a_survivor_with_the_last_reply_is_good(self):
        verdict = self.judge([1, 2, 3], 3)
        self.assertTrue(self.is_good(verdict), verdict)
        self.assertEqual((verdict["acked"], verdict["lost"]), (3, 0))

    def test_a_survivor_below_the_last_reply_has_lost_the_difference(self):
        verdict = self.judge([1, 2, 3], 1)
        self.assertEqual(verdict["lost"], 2)
        self.assertFalse(self.is_good(verdict))

    def test_a_survivor_without_the_key_has_lost_everything(self):
        verdict = self.judge([1, 2, 3], None)
        self.assertEqual(verdict["lost"], 3)
        self.assertTrue(verdict["faults"])

    def test_a_survivor_may_be_ahead_by_the_one_unanswered_command_and_by_no_more(self):
        self.assertTrue(self.is_good(self.judge([1, 2, 3], 4, unanswered=True)))
        self.assertFalse(self.is_good(self.judge([1, 2, 3], 4)))
        self.assertFalse(self.is_good(self.judge([1, 2, 3], 5, unanswered=True)))

    def test_values_given_out_twice_are_lost_even_if_the_survivor_caught_up(self):
        verdict = self.judge([1, 2, 3, 2, 3, 4], 4, reconnects=1)
        self.assertEqual((verdict["lost"], verdict["reconnects"]), (2, 1))
        self.assertFalse(self.is_good(verdict))

    def test_a_second_connection_alone_is_not_good(self):
        self.assertFalse(self.is_good(self.judge([1, 2, 3], 3, reconnects=1)))
        verdict = self.judge([1, 2, 3], 3, connections=2)
        self.assertFalse(self.is_good(verdict), "a connection that the client did not count")

    def test_a_client_whose_tally_differs_from_its_file_is_not_believed(self):
        self.assertFalse(self.is_good(self.judge([1, 2, 3], 3, repeated=1)))

    def test_a_counter_that_did_not_begin_at_one_is_not_ours(self):
        self.assertFalse(self.is_good(self.judge([5, 6, 7], 7)))

    def test_phases_and_the_longest_wait_come_from_the_time_stamps(self):
        lines = [
            {"value": i + 1, "sent_ns": at * MS, "received_ns": (at + 1) * MS}
            for i, at in enumerate((0, 10, 100, 900, 910))
        ]
        work = labround.Work("redis", self.write(lines), {})
        self.assertEqual(work.between(0, 20 * MS), [MS, MS])
        self.assertEqual(work.between(5 * MS, 901 * MS), [MS, MS, MS])
        self.assertEqual(work.gap_ms(200 * MS), 800.0)
        self.assertEqual(work.gap_ms(905 * MS), 10.0)
        self.assertIsNone(work.gap_ms(2000 * MS))

    def test_the_guests_next_packet_is_no_announcement_and_not_from_before_the_link_went_down(self):
        frames = [
            {"at_ns": 990 * MS, "type": "tcp"},
            {"at_ns": 1001 * MS, "type": "tcp"},
            {"at_ns": 1050 * MS, "type": "rarp"},
            {"at_ns": 1051 * MS, "type": "arp-announce"},
            {"at_ns": 1060 * MS, "type": "icmp"},
            {"at_ns": 1200 * MS, "type": "tcp"},
        ]
        self.assertEqual(
            labround.first_frames(self.write(frames), 1002 * MS, 1000 * MS), (60.0, 50.0)
        )
        self.assertEqual(
            labround.first_frames(self.write(frames[:4]), 1002 * MS, 1000 * MS), (None, 50.0)
        )
        self.assertEqual(
            labround.first_frames(self.write(frames[:2]), 1002 * MS, 1000 * MS), (None, None)
        )

    def test_a_failed_request_is_lost(self):
        path = self.write([{"page": 1, "at_ns": 5 * MS, "ns": MS, "error": None}])
        bad = {"requests": 3, "failed": 1, "failures": [{"error": "status 000"}]}
        fine = {"requests": 3, "failed": 0, "failures": []}
        self.assertTrue(labround.good(labround.judge_nginx(labround.Work("nginx", path, fine))))
        verdict = labround.judge_nginx(labround.Work("nginx", path, bad))
        self.assertEqual((verdict["acked"], verdict["lost"], labround.good(verdict)), (2, 1, False))


class Totals(unittest.TestCase):
    def detail(self, **changes):
        return {
            "round": 1,
            "seed": 1,
            "acked": 100,
            "lost": 0,
            "skipped": 0,
            "reconnects": 0,
            "faults": [],
            "failover_ms": 120.0,
            "client_gap_ms": 220.0,
            "epochs": 10,
            "bytes": 1000,
            "pause_us": {"p50": 100, "p99": 200, "max": 300, "count": 10},
            "hold_us": {"p50": 1, "p99": 2, "max": 3, "count": 4},
            **changes,
        }

    def report(self, *details):
        return labround.totals(list(details), {"unprotected": [MS], "protected": []}, 1)

    def test_sums_medians_and_worst_cases_are_over_all_rounds(self):
        report = self.report(
            self.detail(),
            self.detail(
                failover_ms=300.0, pause_us={"p50": 300, "p99": 900, "max": 1000, "count": 5}
            ),
            self.detail(failover_ms=130.0),
        )
        self.assertEqual(
            (report["acked"], report["lost"], report["good_rounds"], report["rounds"]),
            (300, 0, 3, 3),
        )
        self.assertEqual((report["failover_ms"], report["failover_ms_max"]), (130.0, 300.0))
        self.assertEqual(report["pause_us"], {"p50": 100, "p99": 900, "max": 1000, "count": 25})
        self.assertEqual(report["rtt_us"]["unprotected"]["p50"], 1000.0)
        for field in (
            "acked",
            "lost",
            "reconnects",
            "failover_ms",
            "epochs",
            "pause_us",
            "hold_us",
            "rtt_us",
            "bytes",
            "seed",
            "rounds_detail",
        ):
            self.assertIn(field, report)

    def test_a_round_that_could_not_be_carried_out_is_not_a_good_one(self):
        report = self.report(self.detail(), {"round": 2, "seed": 2, "error": "no guest"})
        self.assertEqual((report["good_rounds"], report["rounds"], report["lost"]), (1, 2, 0))

    def test_each_fault_alone_makes_a_round_not_good(self):
        self.assertTrue(labround.good(self.detail()))
        for change in (
            {"lost": 1},
            {"skipped": 1},
            {"reconnects": 1},
            {"faults": ["x"]},
            {"error": "x"},
        ):
            self.assertFalse(labround.good(self.detail(**change)), change)


class CommandLine(unittest.TestCase):
    def demo(self, **environment):
        with tempfile.TemporaryDirectory() as build:
            return subprocess.run(
                [sys.executable, os.path.join(HERE, "demo")],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={**os.environ, "POLLUX_BUILD": build, **environment},
            )

    def test_a_wrong_setting_is_named(self):
        for name, value in (
            ("ROUNDS", "0"),
            ("ROUNDS", "many"),
            ("WORKLOAD", "postgres"),
            ("SEED", "-1"),
            ("MACHINE", "z80"),
            ("MEMORY", "8"),
        ):
            done = self.demo(**{name: value})
            self.assertEqual(done.returncode, 64, name)
            self.assertIn(f"{name}={value}", done.stderr)

    def test_missing_programs_are_no_success(self):
        if os.geteuid() != 0:
            self.skipTest("needs root to get so far")
        environment = {
            name: "" for name in ("POLLUX_QEMU", "POLLUX_POLLUXD", "POLLUX_WITNESS", "POLLUX_CLI")
        }
        done = self.demo(ROUNDS="5", **environment)
        self.assertEqual(done.returncode, 2, done.stdout)
        self.assertIn("could not be carried out", done.stdout)
        self.assertIn("giving up", done.stdout)
        self.assertNotIn("Nothing was lost", done.stdout)

    def test_ctrl_c_while_the_guest_boots_leaves_nothing(self):
        if os.geteuid() != 0:
            self.skipTest("needs root to make a lab")
        with tempfile.TemporaryDirectory() as runtime, tempfile.TemporaryDirectory() as build:
            # The programs are where they are, but the report goes to a folder of its own.
            programs = {
                "POLLUX_QEMU": labqemu.qemu_program(),
                "POLLUX_GUEST": os.path.dirname(labqemu.guest_file("vmlinuz")),
                "POLLUX_POLLUXD": labqemu.program("polluxd", "POLLUX_POLLUXD"),
                "POLLUX_WITNESS": labqemu.program("witness", "POLLUX_WITNESS"),
                "POLLUX_CLI": labqemu.program("pollux", "POLLUX_CLI"),
            }
            environment = {
                **os.environ,
                **programs,
                "POLLUX_BUILD": build,
                "XDG_RUNTIME_DIR": runtime,
            }
            demo = subprocess.Popen(
                [sys.executable, os.path.join(HERE, "demo")],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self.addCleanup(lambda: (demo.kill(), demo.communicate()))
            state = self.wait_for_qemu(runtime, demo)
            demo.send_signal(signal.SIGINT)
            self.assertEqual(demo.wait(30), 130)
            self.assertEqual(os.listdir(runtime), [])
            self.assertEqual([r for r in state["processes"] if labproc.alive(r)], [])
            spaces = [s for s in labnet.namespaces() if s.startswith(f"plx-{state['name']}-")]
            self.assertEqual(spaces, [])

    def wait_for_qemu(self, runtime, demo):
        """The state of the one lab below `runtime`, once a QEMU is in it."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and demo.poll() is None:
            for entry in os.listdir(runtime):
                try:
                    state = labstate.State(os.path.join(runtime, entry)).read()
                except labstate.LabError:
                    continue
                if any(r["role"] == "qemu" for r in state["processes"]):
                    return state
            time.sleep(0.01)
        self.fail("no QEMU was started")

    def test_the_pages_that_curl_must_bring_are_4096_bytes(self):
        page = http_client.expected_page(7)
        self.assertEqual(len(page), 4096)
        self.assertTrue(page.startswith(b"page 007 line 000 pollux-guest.\n"))


if __name__ == "__main__":
    unittest.main()
