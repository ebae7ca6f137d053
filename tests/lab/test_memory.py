#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_memory.py - memory is exact: after a quiet stop of a loaded guest, RAM on both sides is equal
to the byte

The guest is stopped through QEMU, not through polluxd; once an epoch that was captured wholly after
the stop has been applied, every page of every RAM block is compared by checkpoint-digest. The
control leaves one page out.
"""
import base64
import signal

from scenario import Increments, Scenario

PAGE = 4096
PART = 65536
TRIES = 8


class Exact(Scenario):
    def settle(self, lab, active="a", standby="b"):
        """Waits until what was captured after now is applied. The guest is stopped, so nothing
        changes later.
        """
        begun = lab.status_of(active)
        goal = self.wait(
            lab, active, lambda s: s["acked"] >= begun["epoch"] + 1, "two epochs further"
        )["acked"]
        self.wait(lab, standby, lambda s: s["applied"] >= goal, "done with applying")

    def digests(self, lab, host):
        """{block: digests of all its pages} of a host's QEMU."""
        result = {}
        with lab.qmp(host) as qmp:
            for block in qmp.command("query-checkpoint")["blocks"]:
                pages = block["size"] // PAGE
                data = b""
                for first in range(0, pages, PART):
                    answer = qmp.command(
                        "checkpoint-digest",
                        {"block": block["id"], "first": first, "pages": min(PART, pages - first)},
                        timeout_s=60,
                    )
                    data += base64.b64decode(answer["digests"])
                self.assertEqual(len(data), pages * 8, block["id"])
                result[block["id"]] = data
        return result

    def differing(self, lab):
        """Pages in which the two sides differ, as (block, page)."""
        left, right = self.digests(lab, "a"), self.digests(lab, "b")
        self.assertEqual(sorted(left), sorted(right))
        self.assertGreater(sum(len(d) for d in left.values()), 0)
        return [
            (block, i // 8)
            for block, data in left.items()
            for i in range(0, len(data), 8)
            if data[i : i + 8] != right[block][i : i + 8]
        ]

    def check_exact(self, lab, epochs=15, timeout_s=60):
        """Lets epochs of a loaded guest pass, stops it, compares."""
        begun = lab.status_of("a")
        status = self.wait(
            lab,
            "a",
            lambda s: s["acked"] >= begun["acked"] + epochs,
            f"{epochs} epochs further",
            timeout_s,
        )
        self.assertGreater(
            status["totals"]["pages"], begun["totals"]["pages"], "the load writes to memory"
        )
        with lab.qmp("a") as qmp:
            qmp.command("stop")
        self.settle(lab)
        self.assertEqual(self.differing(lab), [])
        with lab.qmp("a") as qmp:
            qmp.command("cont")

    def test_pc_redis(self):
        lab = self.make(workload="redis", memory=256)
        client = self.follow(Increments(lab))
        client.flow(20)
        with self.fact("memory is exact on pc under Redis"):
            self.pair(lab)
            self.check_exact(lab)
        with self.fact("memory is exact again after more epochs of the same pair"):
            self.check_exact(lab)
            client.flow(20)
            self.assertTrue(client.end()["good"])

    def test_q35_dirty_two_processors_two_nics(self):
        lab = self.make(workload="dirty", machine="q35", smp=2, nics=2, memory=256)
        with self.fact(
            "memory is exact on q35 with two processors and two NICs under a memory load"
        ):
            self.pair(lab)
            self.check_exact(lab)

    def test_microvm_dirty(self):
        lab = self.make(workload="dirty", machine="microvm", memory=256)
        with self.fact("memory is exact on microvm under a memory load"):
            self.pair(lab)
            self.check_exact(lab)

    def test_small_slots(self):
        lab = self.make(
            workload="dirty",
            memory=256,
            append=["pollux.dirty_rate=8000"],
            polluxd_arg=["--slot-pages", "256"],
        )
        with self.fact("memory is exact when epochs take several slots of the arena"):
            self.pair(lab)
            self.check_exact(lab)
            self.assertGreater(
                lab.status_of("a")["pages_per_epoch"]["max"], 256, "an epoch was larger than a slot"
            )

    def test_control_one_page_left_out(self):
        lab = self.make(workload="dirty", memory=256)
        with self.fact("a page that is left out is found, and nothing else differs"):
            self.assertEqual(self.leave_one_out(lab), 1)

    def leave_one_out(self, lab):
        """How many pages differ when polluxd leaves out one.

        The guest may write it again before it is stopped, and so heal it: then once more.
        """
        found = []
        for _ in range(TRIES):
            self.kill(lab, "a", "polluxd", signal.SIGTERM)
            with lab.qmp("a") as qmp:
                qmp.command("stop")
            self.start_polluxd(lab, "a", "--unsafe-drop-page")
            self.become_protected(lab)
            before = lab.status_of("a")["acked"]
            with lab.qmp("a") as qmp:
                qmp.command("cont")
                self.wait(lab, "a", lambda s: s["acked"] > before + 1, "at work")
                qmp.command("stop")
            self.settle(lab)
            found = self.differing(lab)
            with lab.qmp("a") as qmp:
                qmp.command("cont")
            if found:
                break
        return len(found)

    def become_protected(self, lab):
        """The first time by an operator's command; later polluxd pairs by itself."""
        self.wait(lab, "a", lambda s: s["guest"]["attached"], "attached")
        if (
            self.wait_state(lab, "a", "none", "alone", "syncing", "entering", "protected")["state"]
            == "none"
        ):
            self.pair(lab)
        self.wait_state(lab, "a", "protected", timeout_s=60)
