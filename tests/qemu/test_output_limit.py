#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# test_output_limit.py - at the limit the guest is stopped, and nothing it sent is lost
#
# Frames are counted from the guest's side to the network's. virtio-net must stop to the packet;
# other models may overshoot by one burst.

import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from output_lab import E1000, Machine, Rtl8139, Virtio, frame, number_of, run_tests
from vm import Deadline


def machine(model, limits, *more):
    return Machine("-netdev", "sink:n0", "-device", model.DEVICE + ",netdev=n0,addr=4",
                   "-object", "checkpoint-buffer,id=cb0,netdev=n0," + limits, *more)


class Limit(unittest.TestCase):
    def full(self, m):
        """STOP and then CHECKPOINT_OUTPUT_FULL."""
        event = m.qmp.event("CHECKPOINT_OUTPUT_FULL")
        names = [e["event"] for e in m.qmp.events]
        self.assertIn("STOP", names)
        m.qmp.event("STOP")
        self.assertEqual(m.qmp("query-status"), {"status": "paused", "running": False})
        return event["data"]

    def go_on(self, m, sink):
        """Releases all, takes it off the network (or it would still count), lets the guest run."""
        count = m.qmp("checkpoint-release", epoch=0)["packets"]
        got = [number_of(f) for f in sink.frames(count)]
        m.qmp("cont")
        return got

    def test_virtio_net_stops_exactly_at_the_limit_and_loses_nothing(self):
        for limits, most in (("max-packets=10", 10), ("max-bytes=1000", 17)):
            with self.subTest(limits=limits), machine(Virtio, limits) as m:
                nic, sink = Virtio(m, 4), m.sinks["n0"]
                nic.send(*[frame(i) for i in range(100)], wait=False)
                got, stops = [], 0
                deadline = Deadline("100 frames")
                while len(got) < 100 and deadline:
                    held = m.held()
                    self.assertLessEqual(held, most)
                    if len(got) + held < 100 or held == most:
                        data = self.full(m)
                        stops += 1
                        self.assertEqual(data["packets"], most)
                        self.assertEqual(data["bytes"], most * 60)
                    got += self.go_on(m, sink)
                    m.qmp("query-status")
                self.assertEqual(got, list(range(100)))
                self.assertGreaterEqual(stops, 5)
                nic.wait_used(100)

    def test_cont_while_still_full_stops_again_and_takes_nothing(self):
        with machine(Virtio, "max-packets=4") as m:
            Virtio(m, 4).send(*[frame(i) for i in range(9)], wait=False)
            for _ in range(3):
                self.assertEqual(self.full(m)["packets"], 4)
                m.qmp("cont")
            self.full(m)
            self.assertEqual(m.held(), 4)
            self.assertFalse(m.sinks["n0"].ready())

    def test_other_models_overshoot_by_a_burst_and_lose_nothing(self):
        with machine(E1000, "max-packets=10") as m:
            nic, sink = E1000(m, 4), m.sinks["n0"]
            nic.send(*[frame(i) for i in range(40)])
            self.assertEqual(self.full(m)["packets"], 40)
            self.assertEqual(m.held(), 40)
            self.assertEqual(self.go_on(m, sink), list(range(40)))
            nic.send(*[frame(i) for i in range(9)])
            self.assertTrue(m.running())

    def test_the_limit_counts_all_buffers(self):
        with machine(E1000, "max-packets=10", "-netdev", "sink:n1", "-device",
                     "rtl8139,netdev=n1,addr=5", "-object",
                     "checkpoint-buffer,id=cb1,netdev=n1") as m:
            a, b = E1000(m, 4, 0), Rtl8139(m, 5, 1)
            a.send(*[frame(i) for i in range(9)])
            self.assertTrue(m.running())
            b.send(frame(9))
            self.assertEqual(self.full(m)["packets"], 10)

    def test_the_last_bound_discards_and_counts(self):
        """A guest that sends without end although it should be stopped: here one that is resumed
        again and again. Negative control of "nothing is lost": beyond the bound, counted."""
        with machine(E1000, "max-packets=1") as m:
            nic = E1000(m, 4)
            big = [frame(i, 16000) for i in range(60)]
            discarded = 0
            for _ in range(100):
                nic.send(*big)
                self.full(m)
                m.qmp("cont")
                discarded = m.qmp("qom-get", path="/objects/cb0", property="discarded-packets")
                if discarded:
                    break
            self.assertGreater(discarded, 0)
            self.assertLess(m.buffers("held-bytes"), (16 + 64 + 1) << 20)

    def test_inject_is_refused_when_full(self):
        with machine(E1000, "max-packets=2") as m:
            E1000(m, 4).send(frame(0), frame(1))
            self.full(m)
            m.qmp.fails("full", "checkpoint-inject", netdev="n0", frame="A" * 80)

    def test_released_output_that_the_network_does_not_take_still_counts(self):
        with machine(Virtio, "max-packets=2000") as m:
            nic, sink = Virtio(m, 4), m.sinks["n0"]
            sent = 0
            deadline = Deadline("the limit, and then every frame")
            while m.running() and deadline:
                nic.send(*[frame(sent + i) for i in range(100)], wait=False)
                sent += 100
                while nic.used() < sent and m.running() and deadline:
                    pass
                m.qmp("checkpoint-release", epoch=0)
                self.assertLess(sent, 5000)
            self.full(m)
            self.assertEqual(m.held(), 2000)
            got = []
            while len(got) < sent and deadline:
                m.qmp("checkpoint-release", epoch=0)
                if sink.ready(0.05):
                    got += [number_of(f) for f in sink.all_now()]
                elif not m.running():
                    m.qmp("cont")
            self.assertEqual(got, list(range(sent)))

    def test_a_stop_in_pass_mode_never_happens(self):
        with machine(Virtio, "max-packets=2,mode=pass") as m:
            nic, sink = Virtio(m, 4), m.sinks["n0"]
            nic.send(*[frame(i) for i in range(50)], wait=False)
            self.assertEqual([number_of(f) for f in sink.frames(50)], list(range(50)))
            self.assertTrue(m.running())


if __name__ == "__main__":
    run_tests()
