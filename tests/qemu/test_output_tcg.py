#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# test_output_tcg.py - a guest with a processor: what iPXE sends from the option ROM is held
#
# No image is needed: the NIC's boot ROM asks for an address by DHCP as soon as the machine starts.
# The send comes from a processor's thread, which qtest cannot show.

import os
import struct
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from output_lab import Machine, run_tests
from vm import Deadline

MAC = bytes.fromhex("525400123456")


def is_dhcp_discover(data):
    """An IPv4 UDP broadcast from port 68 to port 67 with our hardware address in it."""
    return (data[6:14] == MAC + b"\x08\x00" and data[23] == 17
            and struct.unpack(">HH", data[34:38]) == (68, 67) and data[70:76] == MAC)


class Tcg(unittest.TestCase):
    def boot(self, model, options):
        return Machine("-netdev", "sink:n0", "-device",
                       model + ",netdev=n0,bootindex=0,mac=52:54:00:12:34:56", "-object",
                       "checkpoint-buffer,id=cb0,netdev=n0" + options, accel="tcg")

    def test_a_real_send_is_held_stops_the_guest_at_the_limit_and_is_released(self):
        for model in ("e1000", "virtio-net-pci", "rtl8139", "ne2k_pci"):
            with self.subTest(model=model), self.boot(model, ",max-packets=1") as m:
                sink = m.sinks["n0"]
                full = m.qmp.event("CHECKPOINT_OUTPUT_FULL", 60)
                self.assertGreaterEqual(full["data"]["packets"], 1)
                self.assertEqual([e["event"] for e in m.qmp.events].count("STOP"), 1)
                self.assertFalse(m.running())
                held = m.held()
                self.assertFalse(sink.ready())
                self.assertEqual(m.qmp("checkpoint-release", epoch=0)["packets"], held)
                frames = sink.frames(held)
                m.qmp("cont")
                deadline = Deadline("a DHCP discover")
                while not any(is_dhcp_discover(f) for f in frames) and deadline:
                    m.qmp.event("CHECKPOINT_OUTPUT_FULL", 60)
                    frames += sink.frames(m.qmp("checkpoint-release", epoch=0)["packets"])
                    m.qmp("cont")

    def test_control_mode_pass_shows_the_send_at_once(self):
        with self.boot("e1000", ",mode=pass") as m:
            deadline = Deadline("a DHCP discover")
            while not is_dhcp_discover(m.sinks["n0"].frame(60)) and deadline:
                pass
            self.assertTrue(m.running())


if __name__ == "__main__":
    run_tests()
