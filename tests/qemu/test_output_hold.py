#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# test_output_hold.py - the checkpoint-buffer filter: hold, release, pass, drop, inject, removal
#
# Every fact is shown on a real QEMU, most of them for each NIC model. The negative control is
# mode=pass: the same frames then arrive at once, so "nothing arrived" can fail.

import base64
import os
import socket
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from output_lab import (DEADLINE_S, E1000, GUEST_MAC, Machine, Ne2k, QmpError, Rtl8139, Virtio,
                        frame, number_of, run_tests)

MODELS = [E1000, Rtl8139, Ne2k, Virtio]
BUFFER = "checkpoint-buffer,id=cb0,netdev=n0"


def machine(model, *more, buffer=BUFFER):
    args = ["-netdev", "sink:n0", "-device",
            model.DEVICE + ",netdev=n0,addr=4,mac=52:54:00:12:34:56", *more]
    if buffer:
        args += ["-object", buffer]
    return Machine(*args)


def each_model(buffer=BUFFER):
    """Runs a test once for each NIC model, as test(self, machine, nic, sink)."""
    def decorate(test):
        def run(self):
            for model in MODELS:
                with self.subTest(model=model.DEVICE), machine(model, buffer=buffer) as m:
                    test(self, m, model(m, 4), m.sinks["n0"])
        run.__name__ = test.__name__
        return run
    return decorate


class Hold(unittest.TestCase):
    @each_model()
    def test_output_is_held_until_released_in_the_order_sent(self, m, nic, sink):
        sent = [frame(i, 60 + i % 1400) for i in range(200)]
        for i in range(0, 200, 10):
            nic.send(*sent[i:i + 10])
        self.assertEqual(m.held(), 200)
        self.assertFalse(sink.ready())
        result = m.qmp("checkpoint-release", epoch=0)
        self.assertEqual(result["packets"], 200)
        got = sink.frames(200)
        self.assertEqual([number_of(f) for f in got], list(range(200)))
        for have, want in zip(got, sent):
            self.assertEqual(have[:len(want)], want)
        self.assertFalse(sink.ready())
        self.assertEqual((m.held(), m.buffers("held-bytes")), (0, 0))

    @each_model(buffer=BUFFER + ",mode=pass")
    def test_control_mode_pass_shows_frames_at_once(self, m, nic, sink):
        nic.send(frame(1))
        self.assertEqual(number_of(sink.frame()), 1)

    @each_model()
    def test_pass_releases_everything_in_order_and_then_holds_nothing(self, m, nic, sink):
        nic.send(*[frame(i) for i in range(3)])
        self.assertEqual(m.qmp("checkpoint-output", mode="pass")["packets"], 3)
        nic.send(frame(3))
        self.assertEqual([number_of(f) for f in sink.frames(4)], [0, 1, 2, 3])
        m.qmp("checkpoint-output", mode="hold")
        nic.send(frame(4))
        self.assertFalse(sink.ready())
        self.assertEqual(m.qmp("checkpoint-release", epoch=0)["packets"], 1)
        self.assertEqual(number_of(sink.frame()), 4)

    @each_model()
    def test_drop_discards_what_is_held_and_what_comes(self, m, nic, sink):
        nic.send(frame(0), frame(1))
        self.assertEqual(m.qmp("checkpoint-output", mode="drop")["packets"], 2)
        nic.send(frame(2))
        self.assertEqual(m.qmp("qom-get", path="/objects/cb0", property="discarded-packets"), 3)
        m.qmp("checkpoint-output", mode="pass")
        nic.send(frame(3))
        self.assertEqual(number_of(sink.frame()), 3)

    @each_model(buffer=None)
    def test_a_buffer_added_to_a_running_machine_holds_from_then_on(self, m, nic, sink):
        nic.send(frame(0))
        self.assertEqual(number_of(sink.frame()), 0)
        m.qmp("object-add", qom_type="checkpoint-buffer", id="cb0", netdev="n0")
        nic.send(frame(1))
        self.assertFalse(sink.ready())
        m.qmp("checkpoint-release", epoch=0)
        self.assertEqual(number_of(sink.frame()), 1)

    @each_model()
    def test_release_works_while_the_machine_is_stopped(self, m, nic, sink):
        nic.send(frame(0), frame(1))
        m.qmp("stop")
        self.assertFalse(sink.ready())
        m.qmp("checkpoint-release", epoch=0)
        self.assertEqual([number_of(f) for f in sink.frames(2)], [0, 1])

    def test_held_output_survives_stop_reset_and_unplug(self):
        with machine(Virtio) as m:
            nic, sink = Virtio(m, 4), m.sinks["n0"]
            nic.send(frame(0))
            m.qmp("stop")
            m.qmp("cont")
            m.qmp("system_reset")
            m.qmp.event("RESET")
            nic = Virtio(m, 4)
            nic.send(frame(1))
            m.qmp("query-status")
            self.assertFalse(sink.ready())
            self.assertEqual(m.qmp("checkpoint-release", epoch=0)["packets"], 2)
            self.assertEqual([number_of(f) for f in sink.frames(2)], [0, 1])

    def test_held_output_survives_hot_unplug_of_the_nic(self):
        with Machine("-netdev", "sink:n0", "-device", "usb-ehci,id=usb", "-device",
                     "virtio-net-pci,netdev=n0,id=nic,addr=4,disable-modern=on,"
                     "disable-legacy=off", "-object", BUFFER) as m:
            nic, sink = Virtio(m, 4), m.sinks["n0"]
            nic.send(frame(7), frame(8))
            m.qmp("device_del", id="nic")
            m.qmp("system_reset")  # a guest without ACPI lets go of a device at reset
            m.qmp.event("DEVICE_DELETED")
            self.assertFalse(sink.ready())
            self.assertEqual(m.qmp("checkpoint-release", epoch=0)["packets"], 2)
            self.assertEqual([number_of(f) for f in sink.frames(2)], [7, 8])

    @each_model()
    def test_a_full_network_neither_reorders_nor_loses(self, m, nic, sink):
        """The socket takes a few frames; the rest waits, also through stop and reset."""
        for i in range(0, 900, 30):
            nic.send(*[frame(j) for j in range(i, i + 30)])
        self.assertEqual(m.qmp("checkpoint-release", epoch=0)["packets"], 900)
        waiting = m.held()
        self.assertGreater(waiting, 300, "the socket was never full")
        nic.send(frame(900))
        m.qmp("stop")
        m.qmp("cont")
        self.assertEqual([number_of(f) for f in sink.frames(900)], list(range(900)))
        self.assertEqual(m.held(), 1)
        m.qmp("checkpoint-output", mode="pass")
        self.assertEqual(number_of(sink.frame()), 900)
        self.assertEqual(m.qmp("qom-get", path="/objects/cb0", property="lost-packets"), 0)

    @each_model()
    def test_pass_keeps_order_while_the_network_is_full(self, m, nic, sink):
        for i in range(0, 900, 30):
            nic.send(*[frame(j) for j in range(i, i + 30)])
        m.qmp("checkpoint-output", mode="pass")
        self.assertGreater(m.held(), 300)
        nic.send(frame(900))
        self.assertEqual([number_of(f) for f in sink.frames(901)], list(range(901)))
        nic.send(frame(901))
        self.assertEqual(number_of(sink.frame()), 901)

    def test_stream_netdev_gets_all_in_order(self):
        """A byte stream that stalls in the middle of a frame."""
        near, far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        with Machine("-netdev", "socket,id=n0,fd=%d" % near.fileno(), "-device",
                     "e1000,netdev=n0,addr=4", "-object", BUFFER, pass_fds=[near.fileno()]) as m:
            near.close()
            nic = E1000(m, 4)
            for i in range(0, 300, 30):
                nic.send(*[frame(j, 1400) for j in range(i, i + 30)])
            m.qmp("checkpoint-release", epoch=0)
            self.assertGreater(m.held(), 0)
            data = b""
            far.settimeout(DEADLINE_S)
            while len(data) < 300 * 1404:
                part = far.recv(65536)
                self.assertTrue(part, "QEMU closed the connection")
                data += part
            got = [data[i + 4:i + 1404] for i in range(0, len(data), 1404)]
            self.assertEqual(got, [frame(j, 1400) for j in range(300)])
        far.close()


class SeveralNics(unittest.TestCase):
    def test_each_nic_keeps_its_order_and_all_are_released(self):
        args = []
        for i, model in enumerate((E1000, Virtio, E1000)):
            args += ["-netdev", "sink:n%d" % i, "-device",
                     "%s,netdev=n%d,addr=%d" % (model.DEVICE, i, 4 + i),
                     "-object", "checkpoint-buffer,id=cb%d,netdev=n%d" % (i, i)]
        with Machine(*args) as m:
            nics = [E1000(m, 4, 0), Virtio(m, 5, 1), E1000(m, 6, 2)]
            for i in range(30):
                nics[i % 3].send(frame(i))
            self.assertEqual(m.held(), 30)
            self.assertEqual(m.qmp("checkpoint-release", epoch=0)["packets"], 30)
            for i in range(3):
                self.assertEqual([number_of(f) for f in m.sinks["n%d" % i].frames(10)],
                                 list(range(i, 30, 3)))

    def test_query_checkpoint_says_what_is_held_and_where(self):
        with Machine("-netdev", "sink:n0", "-device", "e1000,netdev=n0", "-netdev", "sink:n1",
                     "-device", "e1000,netdev=n1", "-object", BUFFER) as m:
            nics = {n["netdev"]: n["buffered"] for n in m.qmp("query-checkpoint")["nics"]}
            self.assertEqual(nics, {"n0": True, "n1": False})
            E1000(m, 2).send(frame(0, 100))
            for mode, held in (("hold", (1, 100)), ("drop", (0, 0)), ("pass", (0, 0))):
                m.qmp("checkpoint-output", mode=mode)
                state = m.qmp("query-checkpoint")
                self.assertEqual((state["held-packets"], state["held-bytes"]), held)
                self.assertEqual(state["output"], mode)
            m.qmp("object-del", id="cb0")
            self.assertEqual(m.qmp("query-checkpoint")["output"], "pass")


class Inject(unittest.TestCase):
    def send(self, m, data, netdev="n0"):
        return m.qmp("checkpoint-inject", netdev=netdev, frame=base64.b64encode(data).decode())

    def test_injected_frames_go_behind_what_is_held_and_through_the_mode(self):
        with machine(Virtio) as m:
            nic, sink = Virtio(m, 4), m.sinks["n0"]
            nic.send(frame(0))
            self.send(m, frame(1))
            nic.send(frame(2))
            self.assertFalse(sink.ready())
            m.qmp("checkpoint-output", mode="pass")
            m.qmp("stop")
            self.send(m, frame(3))  # also while stopped, as on a standby
            self.assertEqual([number_of(f) for f in sink.frames(4)], [0, 1, 2, 3])
            m.qmp("checkpoint-output", mode="drop")
            self.send(m, frame(4))
            self.assertFalse(sink.ready())

    def test_bad_frames_are_refused(self):
        with machine(E1000) as m:
            for size in (0, 1, 13, 9217, 65536):
                with self.assertRaisesRegex(QmpError, "14 to 9216"):
                    self.send(m, bytes(size))
            self.send(m, bytes(14))
            self.send(m, bytes(9216))
            m.qmp.fails("Base64", "checkpoint-inject", netdev="n0", frame="!!!!")
            m.qmp.fails("no checkpoint-buffer", "checkpoint-inject", netdev="n9",
                        frame=base64.b64encode(bytes(60)).decode())

    def test_announce_self_obeys_the_mode(self):
        for mode in ("hold", "pass", "drop"):
            with self.subTest(mode=mode), machine(E1000, buffer=BUFFER + ",mode=" + mode) as m:
                sink = m.sinks["n0"]
                m.qmp("announce-self", initial=50, max=50, rounds=1, step=50)
                held = m.held()
                self.assertEqual(held, 1 if mode == "hold" else 0)
                if mode == "hold":
                    self.assertFalse(sink.ready())
                    m.qmp("checkpoint-release", epoch=0)
                if mode == "drop":
                    self.assertFalse(sink.ready())
                else:
                    got = sink.frame()
                    self.assertEqual((got[6:12], got[12:14]), (GUEST_MAC, b"\x80\x35"))


class Objects(unittest.TestCase):
    def add(self, m, **arguments):
        return m.qmp("object-add", qom_type="checkpoint-buffer", **arguments)

    def refused(self, m, part, **arguments):
        with self.assertRaises(QmpError) as caught:
            self.add(m, **arguments)
        self.assertIn(part, str(caught.exception))

    def test_bad_properties_get_a_sentence_and_the_guest_goes_on(self):
        with machine(E1000, buffer=None) as m:
            nic, sink = E1000(m, 4), m.sinks["n0"]
            self.refused(m, "'netdev'", id="a")
            self.refused(m, "no netdev 'x'", id="a", netdev="x")
            self.refused(m, "receive side", id="a", netdev="n0", queue="tx")
            self.refused(m, "receive side", id="a", netdev="n0", queue="all")
            self.refused(m, "mode=pass", id="a", netdev="n0", status="off")
            self.refused(m, "positive", id="a", netdev="n0", max_bytes=0)
            self.refused(m, "positive", id="a", netdev="n0", max_packets=0)
            self.refused(m, "'head' or 'tail'", id="a", netdev="n0", position="id=b")
            self.refused(m, "mode", id="a", netdev="n0", mode="maybe")
            nic.send(frame(1))
            self.assertEqual(number_of(sink.frame()), 1)
            self.add(m, id="a", netdev="n0", queue="rx")
            self.refused(m, "already has", id="b", netdev="n0")
            nic.send(frame(2))
            m.qmp("checkpoint-release", epoch=0)
            self.assertEqual(number_of(sink.frame()), 2)

    def test_holding_buffer_cannot_be_removed_or_switched_off(self):
        with machine(E1000) as m:
            nic, sink = E1000(m, 4), m.sinks["n0"]
            m.qmp.fails("in use", "object-del", id="cb0")
            nic.send(frame(0))
            m.qmp.fails("in use", "object-del", id="cb0")
            m.qmp.fails("cannot be switched off", "qom-set", path="/objects/cb0",
                        property="status", value="off")
            m.qmp.fails("checkpoint-output", "qom-set", path="/objects/cb0", property="mode",
                        value="pass")
            nic.send(frame(1))
            self.assertFalse(sink.ready())
            m.qmp("checkpoint-output", mode="pass")
            self.assertEqual([number_of(f) for f in sink.frames(2)], [0, 1])
            m.qmp("object-del", id="cb0")
            nic.send(frame(2))
            self.assertEqual(number_of(sink.frame()), 2)
            self.add(m, id="cb0", netdev="n0")
            nic.send(frame(3))
            self.assertFalse(sink.ready())

    def test_removing_the_netdev_discards_and_says_so(self):
        with machine(E1000) as m:
            nic = E1000(m, 4)
            nic.send(frame(0), frame(1))
            m.qmp("netdev_del", id="n0")
            self.assertFalse(m.sinks["n0"].ready())
            self.assertIn("2 packets it held are discarded", m.log())
            m.qmp("checkpoint-release", epoch=0)
            nic.send(frame(2))

    def test_quitting_lets_nothing_out(self):
        with machine(E1000) as m:
            E1000(m, 4).send(frame(0))
            m.qmp("quit")
            m.process.wait(DEADLINE_S)
            self.assertFalse(m.sinks["n0"].ready())

    def test_another_filter_sees_output_only_when_released(self):
        with machine(E1000, "-object", "filter-dump,id=d0,netdev=n0,position=head,file=/dev/null"
                     ) as m:
            path = os.path.join(m.dir, "dump")
            m.qmp("object-add", qom_type="filter-dump", id="d1", netdev="n0", file=path,
                  position="head", queue="rx")
            E1000(m, 4).send(frame(0, 100))
            self.assertEqual(os.path.getsize(path), 24)
            m.qmp("checkpoint-release", epoch=0)
            self.assertEqual(os.path.getsize(path), 24 + 16 + 100)
            self.assertEqual(number_of(m.sinks["n0"].frame()), 0)


if __name__ == "__main__":
    run_tests()
