#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# test_output_epochs.py - held output carries its epoch: release by epoch, wake-ups, sessions

import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from output_lab import (E1000, Machine, Ne2k, Rtl8139, Session, Virtio, frame, number_of,
                        run_tests)
from vm import Deadline

BUFFER = "checkpoint-buffer,id=cb0,netdev=n0"


def machine(model, buffer=BUFFER, more=()):
    return Machine("-netdev", "sink:n0", "-device", model.DEVICE + ",netdev=n0,addr=4", "-object",
                   buffer, *more)


class Epochs(unittest.TestCase):
    def test_a_release_lets_go_of_its_epoch_and_older_ones_only(self):
        for model in (E1000, Rtl8139, Ne2k, Virtio):
            with self.subTest(model=model.DEVICE), machine(model) as m, Session(m) as s:
                nic, sink = model(m, 4), m.sinks["n0"]
                for i in range(12):  # two frames in each of six epochs
                    nic.send(frame(i))
                    if i % 2:
                        answer = s.capture()
                        self.assertEqual(answer["held-packets"], i + 1)
                        self.assertFalse(sink.ready())
                self.assertEqual(s.epoch, 7)
                self.assertEqual(m.qmp("checkpoint-release", epoch=1)["packets"], 2)
                self.assertEqual([number_of(f) for f in sink.frames(2)], [0, 1])
                self.assertFalse(sink.ready())
                self.assertEqual(m.qmp("checkpoint-release", epoch=4)["packets"], 6)
                self.assertEqual([number_of(f) for f in sink.frames(6)], [2, 3, 4, 5, 6, 7])
                self.assertFalse(sink.ready())
                self.assertEqual(m.qmp("checkpoint-release", epoch=3)["packets"], 0)
                self.assertEqual(m.qmp("checkpoint-release", epoch=6)["packets"], 4)
                self.assertEqual([number_of(f) for f in sink.frames(4)], [8, 9, 10, 11])

    def test_an_epoch_that_was_not_captured_is_not_released(self):
        with machine(Virtio) as m, Session(m) as s:
            nic = Virtio(m, 4)
            nic.send(frame(0))
            m.qmp.fails("has not been captured", "checkpoint-release", epoch=1)
            m.qmp.fails("has not been captured", "checkpoint-release", epoch=2 ** 64 - 1)
            self.assertFalse(m.sinks["n0"].ready())
            s.capture()
            nic.send(frame(1))
            m.qmp.fails("has not been captured", "checkpoint-release", epoch=2)
            self.assertEqual(m.qmp("checkpoint-release", epoch=1)["packets"], 1)
            self.assertEqual(number_of(m.sinks["n0"].frame()), 0)
            self.assertFalse(m.sinks["n0"].ready())

    def test_the_eventfd_is_written_once_per_epoch_with_output(self):
        with machine(Virtio) as m, Session(m) as s:
            nic = Virtio(m, 4)
            self.assertEqual(s.wakeups(), 0)
            for epoch in range(1, 6):
                for i in range(5):
                    nic.send(frame(i))
                    self.assertEqual(s.wakeups(), 1 if i == 0 else 0)
                self.assertEqual(s.header(), (epoch, epoch * 5, epoch * 300))
                s.capture()
                self.assertEqual(s.wakeups(), 0)
            s.capture()  # an epoch without output
            self.assertEqual(s.wakeups(), 0)
            m.qmp("checkpoint-release", epoch=6)
            m.sinks["n0"].frames(25)
            m.qmp("query-status")
            self.assertEqual(s.header(), (7, 0, 0))
            m.qmp("checkpoint-output", mode="pass")
            nic.send(frame(0))
            m.sinks["n0"].frame()
            self.assertEqual(s.wakeups(), 0)

    def test_half_full_wakes_once_more(self):
        with machine(E1000, BUFFER + ",max-packets=20") as m, Session(m) as s:
            nic = E1000(m, 4)
            nic.send(frame(0))
            self.assertEqual(s.wakeups(), 1)
            nic.send(*[frame(i) for i in range(1, 9)])
            self.assertEqual(s.wakeups(), 0)
            nic.send(frame(9))
            self.assertEqual(s.wakeups(), 1)
            nic.send(*[frame(i) for i in range(10, 15)])
            self.assertEqual(s.wakeups(), 0)
            s.capture()
            m.qmp("checkpoint-release", epoch=1)
            self.assertEqual([number_of(f) for f in m.sinks["n0"].frames(15)], list(range(15)))
            nic.send(*[frame(i) for i in range(12)])
            self.assertEqual(s.wakeups(), 2)

    def test_output_held_before_a_session_belongs_to_its_first_epoch(self):
        with machine(E1000) as m:
            nic, sink = E1000(m, 4), m.sinks["n0"]
            nic.send(frame(0))
            with Session(m) as s:
                self.assertEqual(s.wakeups(), 1)
                self.assertEqual(s.header(), (1, 1, 60))
                for i in range(1, 5):
                    s.capture()
                    nic.send(frame(i))
                m.qmp("checkpoint-stop")
            self.assertEqual(m.held(), 5)
            with Session(m) as s:
                self.assertEqual(s.header(), (1, 5, 300))
                nic.send(frame(5))
                s.capture()
                nic.send(frame(6))
                self.assertFalse(sink.ready())
                self.assertEqual(m.qmp("checkpoint-release", epoch=1)["packets"], 6)
                self.assertEqual([number_of(f) for f in sink.frames(6)], list(range(6)))
                self.assertFalse(sink.ready())
                m.qmp("checkpoint-stop")
            self.assertEqual(m.qmp("checkpoint-release", epoch=2)["packets"], 1)

    def test_a_frozen_guest_is_captured_released_and_goes_on(self):
        with machine(Virtio, BUFFER + ",max-packets=8") as m, Session(m) as s:
            nic, sink = Virtio(m, 4), m.sinks["n0"]
            nic.send(*[frame(i) for i in range(50)], wait=False)
            got = []
            deadline = Deadline("50 frames")
            while len(got) < 50 and deadline:
                if len(got) < 48:
                    self.assertEqual(m.qmp.event("CHECKPOINT_OUTPUT_FULL")["data"]["packets"], 8)
                answer = s.capture()
                self.assertEqual(answer["running"], len(got) >= 48)
                count = m.qmp("checkpoint-release", epoch=s.epoch - 1)["packets"]
                got += [number_of(f) for f in sink.frames(count)]
                m.qmp("cont")
                m.qmp("query-status")
            self.assertEqual(got, list(range(50)))
            nic.wait_used(50)

    def test_a_capture_while_the_network_is_full_loses_nothing(self):
        with machine(Virtio) as m, Session(m) as s:
            nic, sink = Virtio(m, 4), m.sinks["n0"]
            for epoch in range(1, 6):
                for i in range(4):
                    first = ((epoch - 1) * 4 + i) * 50
                    nic.send(*[frame(j) for j in range(first, first + 50)])
                s.capture()
                m.qmp("checkpoint-release", epoch=epoch)
            self.assertGreater(m.held(), 300)
            self.assertEqual([number_of(f) for f in sink.frames(1000)], list(range(1000)))
            self.assertEqual((m.held(), m.buffers("lost-packets")), (0, 0))

    def test_release_works_while_a_capture_has_the_guest_paused(self):
        """Slots that are too small: the guest stays paused between two captures of an epoch."""
        with machine(E1000) as m, Session(m, pause_timeout_ms=20000) as s:
            nic, sink = E1000(m, 4), m.sinks["n0"]
            nic.send(frame(0))
            s.capture()
            m.qmp("checkpoint-stop")
            with Session(m, pause_timeout_ms=20000, slot_pages=12000) as s:
                answer = s.capture(slot=0)
                self.assertEqual((answer["complete"], answer["running"]), (False, False))
                self.assertFalse(sink.ready())
                m.qmp("checkpoint-output", mode="pass")
                self.assertEqual(number_of(sink.frame()), 0)
                answer = s.capture(slot=1)
                self.assertEqual((answer["complete"], answer["running"]), (True, True))

    def test_several_nics_share_the_epoch_and_the_wakeup(self):
        more = ("-netdev", "sink:n1", "-device", Virtio.DEVICE + ",netdev=n1,addr=5", "-object",
                "checkpoint-buffer,id=cb1,netdev=n1")
        with machine(E1000, more=more) as m, Session(m) as s:
            nics = [E1000(m, 4, 0), Virtio(m, 5, 1)]
            for i in range(6):
                nics[i % 2].send(frame(i))
                m.qmp("query-status")
                if i % 2:
                    self.assertEqual(s.wakeups(), 1)
                    s.capture()
            self.assertEqual(m.qmp("checkpoint-release", epoch=2)["packets"], 4)
            self.assertEqual([number_of(f) for f in m.sinks["n0"].frames(2)], [0, 2])
            self.assertEqual([number_of(f) for f in m.sinks["n1"].frames(2)], [1, 3])
            self.assertFalse(m.sinks["n0"].ready() or m.sinks["n1"].ready())


if __name__ == "__main__":
    run_tests()
