#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# test_output_vnet.py - packets with a vnet header on taps: re-injected unchanged, on every queue
#
# Runs as root in a network namespace of its own. The judge is a packet socket that sees what the
# kernel made of the vnet header that QEMU wrote to the tap.

import os
import socket
import struct
import subprocess
import sys
import threading
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from output_lab import (DEADLINE_S, GUEST_MAC, Machine, QmpError, Tap, Virtio, frame, number_of,
                        own_netns, run_tests)

NEEDS_CSUM, GSO_TCPV4 = 1, 1


def tcp_segment(size):
    """A TCP packet of size bytes that the receiver is to cut up: (vnet header, frame)."""
    payload = bytes(i * 7 & 0xFF for i in range(size - 54))
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size - 14, 1, 0x4000, 64, 6, 0, bytes([10, 0, 0, 1]),
                     bytes([10, 0, 0, 2]))
    total = sum(struct.unpack(">10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack(">H", ~total & 0xFFFF) + ip[12:]
    tcp = struct.pack(">HHIIBBHHH", 1000, 80, 1, 1, 0x50, 0x10, 1000, 0, 0)
    header = struct.pack("<BBHHHH", NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16)
    return header, b"\xff" * 6 + GUEST_MAC + b"\x08\x00" + ip + tcp + payload


def vhost_user_backend(listener):
    """A vhost-user back end that offers nothing: enough for QEMU to take it for one."""
    listener.settimeout(DEADLINE_S)
    with listener:
        sock, _ = listener.accept()
    with sock:
        sock.settimeout(DEADLINE_S)
        while True:
            head = sock.recv(12)
            if len(head) < 12:
                return
            request, _, size = struct.unpack("<III", head)
            if size:
                sock.recv(size)
            if request in (1, 15, 17):  # GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM
                sock.sendall(struct.pack("<IIIQ", request, 5, 8, 0))


class Vnet(unittest.TestCase):
    def machine(self, tap, *more, device=""):
        netdev = "tap,id=n0,fd%s=%s" % ("s" if len(tap.fds) > 1 else "",
                                                   ":".join(map(str, tap.fds)))
        return Machine("-netdev", netdev, "-device", Virtio.DEVICE + ",netdev=n0,addr=4" + device,
                       *more, pass_fds=tap.fds)

    def hold(self, m):
        m.qmp("object-add", qom_type="checkpoint-buffer", id="cb0", netdev="n0")

    def tap(self, queues=1):
        tap = Tap("tap%d" % os.getpid(), queues)
        self.addCleanup(tap.close)
        return tap

    def test_a_64_kib_segment_passes_hold_and_release_unchanged(self):
        """The same packet with and without the filter must come out the same."""
        tap = self.tap()
        with self.machine(tap) as m:
            for features in (Virtio.OFFLOADS, Virtio.OFFLOADS | Virtio.MRG_RXBUF):
                nic = Virtio(m, 4, features=features)
                header, data = tcp_segment(65000)
                header += bytes(nic.header - 10)
                nic.send(data, header=header)
                plain = tap.frame()
                self.assertEqual(plain[0][1], GSO_TCPV4)
                self.assertEqual(len(plain[1]), 65000)
                self.hold(m)
                nic.send(data, header=header)
                self.assertFalse(tap.ready())
                self.assertEqual(m.buffers("held-bytes"), 65000 + nic.header)
                m.qmp("checkpoint-output", mode="pass")
                self.assertEqual(tap.frame(), plain)
                m.qmp("object-del", id="cb0")

    def test_a_packet_keeps_its_meaning_when_the_header_changes_before_release(self):
        """A firmware speaks the 10-byte header, the system after it 12 bytes; and back."""
        tap = self.tap()
        with self.machine(tap) as m:
            for first, then in ((0, Virtio.MRG_RXBUF), (Virtio.MRG_RXBUF, 0)):
                nic = Virtio(m, 4, features=Virtio.OFFLOADS | first)
                header, data = tcp_segment(9000)
                nic.send(data, header=header + bytes(nic.header - 10))
                plain = tap.frame()
                self.hold(m)
                nic.send(data, header=header + bytes(nic.header - 10))
                nic.start(Virtio.OFFLOADS | then)
                nic.send(frame(5))
                self.assertEqual(m.held(), 2)
                m.qmp("checkpoint-output", mode="pass")
                self.assertEqual(tap.frame(), plain)
                self.assertEqual(number_of(tap.frame()[1]), 5)
                m.qmp("object-del", id="cb0")

    def test_all_queues_are_held_and_released_in_the_order_sent(self):
        tap = self.tap(queues=2)
        with self.machine(tap, device=",mq=on,vectors=0") as m:
            nic = Virtio(m, 4, features=Virtio.CTRL_VQ | Virtio.MQ)
            for number in (1, 3):
                nic.send(frame(number), number=number)
                self.assertEqual(number_of(tap.frame()[1]), number)
            self.hold(m)
            for i in range(40):
                nic.send(frame(i), number=1 if i % 3 else 3)
            self.assertFalse(tap.ready())
            self.assertEqual(m.held(), 40)
            # The second pair is switched off before the release: its packets must still go.
            nic.start(Virtio.CTRL_VQ)
            self.assertEqual(m.qmp("checkpoint-release", epoch=0)["packets"], 40)
            self.assertEqual([number_of(tap.frame()[1]) for _ in range(40)], list(range(40)))
            self.assertEqual(m.buffers("lost-packets"), 0)
            m.qmp("checkpoint-output", mode="pass")
            m.qmp("object-del", id="cb0")
            nic.send(frame(99))
            self.assertEqual(number_of(tap.frame()[1]), 99)
            self.hold(m)
            nic.send(frame(100))
            m.qmp("netdev_del", id="n0")
            self.assertFalse(tap.ready())

    def test_a_tap_that_is_down_is_counted(self):
        tap = self.tap()
        with self.machine(tap) as m:
            nic = Virtio(m, 4)
            self.hold(m)
            nic.send(frame(0), frame(1))
            subprocess.run(["ip", "link", "set", tap.name, "down"], check=True)
            m.qmp("checkpoint-release", epoch=0)
            self.assertEqual((m.held(), m.buffers("lost-packets")), (0, 2))

    @unittest.skipUnless(os.path.exists("/dev/vhost-net"), "no /dev/vhost-net here")
    def test_vhost_is_refused_with_a_sentence(self):
        tap = self.tap()
        with Machine("-netdev", "tap,id=n0,fd=%d,vhost=on" % tap.fds[0], "-device",
                     "virtio-net-pci,netdev=n0", pass_fds=tap.fds) as m:
            with self.assertRaisesRegex(QmpError, "vhost=off"):
                self.hold(m)

    def test_vhost_user_is_refused_with_a_sentence(self):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = "\0pollux-vhost-user-%d" % os.getpid()
        listener.bind(name)
        listener.listen()
        backend = threading.Thread(target=vhost_user_backend, args=(listener,), daemon=True)
        backend.start()
        with Machine("-chardev", "socket,id=c0,abstract=on,tight=on,path=" + name[1:],
                     "-netdev", "vhost-user,id=n0,chardev=c0") as m:
            with self.assertRaisesRegex(QmpError, "vhost=off"):
                self.hold(m)
        backend.join(2 * DEADLINE_S)
        self.assertFalse(backend.is_alive())


if __name__ == "__main__":
    if os.geteuid() != 0:
        print("skipped: needs root for a tap in its own network namespace")
        sys.exit(77)
    own_netns()
    run_tests()
