# SPDX-License-Identifier: GPL-2.0-or-later
#
# output_lab.py - what the tests of held output share: a QEMU, a guest without software, a network
#
# Owns the processes and sockets it makes and ends them all in close(). The guest is driven through
# QEMU's qtest protocol: drivers of a few lines program the NIC models as a real driver would, so a
# test decides to the byte what the guest sends and when. Never waits without a deadline.

import array
import base64
import ctypes
import fcntl
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

from vm import Deadline

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIRMWARE = ["/usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu"]
DEADLINE_S = 30
CLONE_NEWNET = 0x40000000
GUEST_MAC = bytes.fromhex("525400123456")


def qemu_program():
    """The QEMU under test: $POLLUX_QEMU, else the one that `make qemu` leaves in build/."""
    return (os.environ.get("POLLUX_QEMU")
            or os.path.join(ROOT, "build", "qemu", "bin", "qemu-system-x86_64"))


def run_tests():
    """Runs the tests of the calling program; exit 77 (skipped) without a patched QEMU."""
    if not os.access(qemu_program(), os.X_OK):
        print("skipped: no QEMU at %s (set POLLUX_QEMU, or make qemu)" % qemu_program())
        raise SystemExit(77)
    unittest.main(testRunner=Runner(stream=sys.stderr, verbosity=0))


class Result(unittest.TextTestResult):
    """Says "ok NAME", "not ok NAME" or "skip NAME" for each test, as tests/run counts them."""

    def say(self, verdict, test):
        test = getattr(test, "test_case", test)  # a part of a test counts as the test
        print(verdict, test.id().split(".", 1)[1], flush=True)

    def stopTest(self, test):
        bad = {getattr(t, "test_case", t) for t, _ in self.errors + self.failures}
        if test not in [t for t, _ in self.skipped]:
            self.say("not ok" if test in bad else "ok", test)
        super().stopTest(test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.say("skip", test)


class Runner(unittest.TextTestRunner):
    resultclass = Result


def own_netns():
    """Move this process to a network namespace of its own, loopback up. Needs root."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


class QmpError(Exception):
    pass


class Lines:
    """Reads lines from a stream socket, each with a deadline."""

    def __init__(self, sock):
        self.sock = sock
        self.data = b""

    def read(self, timeout):
        end = time.monotonic() + timeout
        while b"\n" not in self.data:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.sock], [], [], left)[0]:
                raise TimeoutError("no line within %.1f s" % timeout)
            got = self.sock.recv(65536)
            if not got:
                raise EOFError("the other side closed")
            self.data += got
        line, self.data = self.data.split(b"\n", 1)
        return line.decode()


class Qmp:
    def __init__(self, sock):
        self.sock = sock
        self.lines = Lines(sock)
        self.events = []
        json.loads(self.lines.read(DEADLINE_S))
        self("qmp_capabilities")

    def __call__(self, command, fds=(), **arguments):
        text = json.dumps({"execute": command, "arguments":
                           {k.replace("_", "-"): v for k, v in arguments.items()}})
        data = (text + "\n").encode()
        if fds:
            self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                                        array.array("i", fds))])
        else:
            self.sock.sendall(data)
        while True:
            reply = json.loads(self.lines.read(DEADLINE_S))
            if "event" in reply:
                self.events.append(reply)
            elif "error" in reply:
                raise QmpError(reply["error"]["desc"])
            else:
                return reply["return"]

    def fails(self, part, command, **arguments):
        """The command must fail, with a sentence that contains part."""
        try:
            self(command, **arguments)
        except QmpError as error:
            assert part in str(error), "%r is not in %r" % (part, str(error))
            return
        raise AssertionError("%s %r did not fail" % (command, arguments))

    def event(self, name, timeout=DEADLINE_S):
        """The next event of this name; earlier ones of other names stay."""
        end = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            self.events.append(json.loads(self.lines.read(end - time.monotonic())))

    def getfd(self, name, fd):
        self("getfd", fds=[fd], fdname=name)


class Sink:
    """The far end of `-netdev dgram` over unix sockets: one datagram is one frame."""

    def __init__(self, directory, name):
        self.near = os.path.join(directory, name + ".qemu")
        self.far = os.path.join(directory, name + ".far")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.far)

    def netdev(self, name):
        return ("dgram,id=%s,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s"
                % (name, self.near, self.far))

    def ready(self, timeout=0):
        return bool(select.select([self.sock], [], [], timeout)[0])

    def frame(self, timeout=DEADLINE_S):
        if not self.ready(timeout):
            raise TimeoutError("no frame")
        return self.sock.recv(1 << 17)

    def frames(self, count):
        return [self.frame() for _ in range(count)]

    def all_now(self):
        out = []
        while self.ready():
            out.append(self.sock.recv(1 << 17))
        return out

    def close(self):
        self.sock.close()


class Tap:
    """A tap in our own network namespace with a packet socket that sees what QEMU wrote to it."""

    TUNSETIFF = 0x400454CA
    TUNSETOFFLOAD = 0x400454D0
    IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 2, 0x1000, 0x4000, 0x100
    PACKET_VNET_HDR = 15

    def __init__(self, name, queues=1):
        flags = self.IFF_TAP | self.IFF_NO_PI | self.IFF_VNET_HDR
        if queues > 1:
            flags |= self.IFF_MULTI_QUEUE
        self.name = name
        self.fds = []
        for _ in range(queues):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(fd, self.TUNSETIFF, struct.pack("16sH14x", name.encode(), flags))
            self.fds.append(fd)
        with open("/proc/sys/net/ipv6/conf/%s/disable_ipv6" % name, "w", encoding="ascii") as f:
            f.write("1")
        subprocess.run(["ip", "link", "set", name, "up", "mtu", "9000"], check=True)
        self.sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.sock.setsockopt(263, self.PACKET_VNET_HDR, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self.sock.bind((name, 0))

    def frame(self):
        """(vnet header of 10 bytes, frame)"""
        if not select.select([self.sock], [], [], DEADLINE_S)[0]:
            raise TimeoutError("no frame on " + self.name)
        data = self.sock.recv(1 << 17)
        return data[:10], data[10:]

    def ready(self, timeout=0):
        return bool(select.select([self.sock], [], [], timeout)[0])

    def close(self):
        self.sock.close()
        for fd in self.fds:
            os.close(fd)


class Machine:
    """One QEMU. With accel "qtest" the guest does nothing but what the test's drivers do."""

    def __init__(self, *args, accel="qtest", pass_fds=(), machine="pc"):
        program = qemu_program()
        self.dir = tempfile.mkdtemp(prefix="pollux-output.")
        self.sinks = {}
        qmp_listen = socket.socketpair()
        qtest_listen = socket.socketpair()
        argv = [program, "-nodefaults", "-display", "none", "-machine", machine, "-m", "64",
                "-chardev", "socket,id=qmp,fd=%d" % qmp_listen[1].fileno(),
                "-mon", "chardev=qmp,mode=control", "-accel", accel]
        for path in FIRMWARE:
            argv += ["-L", path]
        fds = [qmp_listen[1].fileno(), *pass_fds]
        if accel == "qtest":
            argv += ["-chardev", "socket,id=qt,fd=%d" % qtest_listen[1].fileno(),
                     "-qtest", "chardev:qt", "-qtest-log", "none"]
            fds.append(qtest_listen[1].fileno())
        self.log_path = os.path.join(self.dir, "log")
        self.argv = argv + [str(a) for a in args]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(self._with_sinks(self.argv), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, pass_fds=fds)
        qmp_listen[1].close()
        qtest_listen[1].close()
        try:
            self.qtest = Lines(qtest_listen[0])
            self.qmp = Qmp(qmp_listen[0])
        except (OSError, EOFError):
            text = self.log()
            self.close()
            raise AssertionError("QEMU did not start: " + text) from None

    def _with_sinks(self, argv):
        """Replaces sink:NAME in arguments by a dgram netdev of that name."""
        out = []
        for arg in argv:
            if arg.startswith("sink:"):
                name = arg[5:]
                self.sinks[name] = Sink(self.dir, name)
                arg = self.sinks[name].netdev(name)
            out.append(arg)
        return out

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        for sink in self.sinks.values():
            sink.close()
        self.qtest.sock.close()
        if hasattr(self, "qmp"):
            self.qmp.sock.close()
        shutil.rmtree(self.dir)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- qtest -------------------------------------------------------------------------------

    def _qtest(self, text):
        self.qtest.sock.sendall((text + "\n").encode())
        while True:
            line = self.qtest.read(DEADLINE_S)
            if line.startswith("OK"):
                return line[3:]
            if not line.startswith("IRQ"):
                raise AssertionError("qtest: %s: %s" % (text[:80], line))

    def out(self, size, port, value):
        self._qtest("out%s 0x%x 0x%x" % (size, port, value))

    def inp(self, size, port):
        return int(self._qtest("in%s 0x%x" % (size, port)), 0)

    def mmio_write(self, address, value):
        self._qtest("writel 0x%x 0x%x" % (address, value))

    def mmio_read(self, address):
        return int(self._qtest("readl 0x%x" % address), 0)

    def mem_write(self, address, data):
        self._qtest("b64write 0x%x 0x%x %s" % (address, len(data),
                                               base64.b64encode(data).decode()))

    def mem_read(self, address, size):
        return base64.b64decode(self._qtest("b64read 0x%x 0x%x" % (address, size)))

    def pci_read(self, slot, reg):
        self.out("l", 0xCF8, 0x80000000 | slot << 11 | reg)
        return self.inp("l", 0xCFC)

    def pci_write(self, slot, reg, value):
        self.out("l", 0xCF8, 0x80000000 | slot << 11 | reg)
        self.out("l", 0xCFC, value)

    def buffers(self, name):
        """Sum of a property over all checkpoint-buffers."""
        return sum(self.qmp("qom-get", path="/objects/" + o["name"], property=name)
                   for o in self.qmp("qom-list", path="/objects")
                   if o["type"] == "child<checkpoint-buffer>")

    def held(self):
        return self.buffers("held-packets")

    def running(self):
        return self.qmp("query-status")["running"]


def frame(number, size=60, mac=GUEST_MAC):
    """A broadcast frame of a private EtherType with its number in it, at least 24 bytes."""
    head = b"\xff" * 6 + mac + b"\x88\xb5" + struct.pack("<Q", number)
    return head + bytes((number + i) & 0xFF for i in range(size - len(head)))


def number_of(data):
    return struct.unpack("<Q", data[14:22])[0]


# --- drivers: just enough to send ----------------------------------------------------------------

class E1000:
    DEVICE, SLOTS = "e1000", 64
    CTRL, TCTL, TDBAL, TDLEN, TDH, TDT = 0, 0x400, 0x3800, 0x3808, 0x3810, 0x3818

    def __init__(self, m, slot, index=0):
        self.m = m
        self.bar = 0xE0000000 + index * 0x100000
        self.ring = 0x100000 + index * 0x200000
        self.buffers = self.ring + 0x10000
        self.tail = 0
        m.pci_write(slot, 0x10, self.bar)
        m.pci_write(slot, 4, 0x7)
        self.start()

    def start(self):
        self.tail = 0
        for reg, value in ((self.TDBAL, self.ring), (self.TDLEN, self.SLOTS * 16), (self.TDH, 0),
                           (self.TDT, 0), (self.TCTL, 0x2)):
            self.m.mmio_write(self.bar + reg, value)

    def send(self, *frames):
        """All frames in one burst: one write of the tail register."""
        assert len(frames) < self.SLOTS
        for data in frames:
            at = self.buffers + self.tail * 4096
            self.m.mem_write(at, data)
            self.m.mem_write(self.ring + self.tail * 16,
                             struct.pack("<QHBBBBH", at, len(data), 0, 0x1 | 0x8, 0, 0, 0))
            self.tail = (self.tail + 1) % self.SLOTS
        self.m.mmio_write(self.bar + self.TDT, self.tail)


class Rtl8139:
    DEVICE = "rtl8139"

    def __init__(self, m, slot, index=0):
        self.m = m
        self.io = 0xC000 + index * 0x100
        self.buffers = 0x100000 + index * 0x200000
        self.next = 0
        m.pci_write(slot, 0x10, self.io)
        m.pci_write(slot, 4, 0x7)
        m.out("b", self.io + 0x37, 0x04)

    def send(self, *frames):
        for data in frames:
            at = self.buffers + self.next * 4096
            self.m.mem_write(at, data)
            self.m.out("l", self.io + 0x20 + self.next * 4, at)
            self.m.out("l", self.io + 0x10 + self.next * 4, len(data))
            self.next = (self.next + 1) % 4


class Ne2k:
    DEVICE = "ne2k_pci"

    def __init__(self, m, slot, index=0):
        self.m = m
        self.io = 0xC000 + index * 0x100
        m.pci_write(slot, 0x10, self.io)
        m.pci_write(slot, 4, 0x7)
        m.inp("b", self.io + 0x1F)
        m.out("b", self.io + 0x0E, 0x49)

    def send(self, *frames):
        for data in frames:
            data += bytes(len(data) & 1)
            self.m.out("b", self.io, 0x22)
            for reg, value in ((0x0A, len(data) & 0xFF), (0x0B, len(data) >> 8), (8, 0),
                               (9, 0x40)):
                self.m.out("b", self.io + reg, value)
            self.m.out("b", self.io, 0x12)
            for i in range(0, len(data), 2):
                self.m.out("w", self.io + 0x10, data[i] | data[i + 1] << 8)
            for reg, value in ((4, 0x40), (5, len(data) & 0xFF), (6, len(data) >> 8)):
                self.m.out("b", self.io + reg, value)
            self.m.out("b", self.io, 0x26)


class Virtio:
    """Legacy (port) virtio-net."""

    DEVICE = "virtio-net-pci,disable-modern=on,disable-legacy=off"
    MRG_RXBUF, CTRL_VQ, MQ = 1 << 15, 1 << 17, 1 << 22
    OFFLOADS = 1 << 0 | 1 << 11 | 1 << 12

    def __init__(self, m, slot, index=0, features=0):
        self.m = m
        self.io = 0xC000 + index * 0x100
        self.base = 0x100000 + index * 0x1000000
        self.slot = slot
        m.pci_write(slot, 0x10, self.io)
        m.pci_write(slot, 4, 0x7)
        self.start(features)

    def start(self, features):
        m = self.m
        self.queues = {}
        m.out("b", self.io + 18, 0)
        m.out("b", self.io + 18, 3)
        offered = m.inp("l", self.io)
        assert features & ~offered == 0, "not offered: %x" % (features & ~offered)
        m.out("l", self.io + 4, features)
        self.header = 12 if features & self.MRG_RXBUF else 10
        self.queue(1)
        if features & self.MQ:
            self.queue(3)
            self.queue(4)
        m.out("b", self.io + 18, 7)
        if features & self.MQ:
            ack = self.base + 0xF00000
            m.mem_write(ack, b"\xff" * 8)
            m.mem_write(ack + 16, struct.pack("<BBH", 4, 0, 2))
            self.chain(4, [(ack + 16, 2, 0), (ack + 18, 2, 0), (ack, 1, 2)])
            self.kick(4)
            assert m.mem_read(ack, 1) == b"\0", "the second queue pair was refused"

    def queue(self, number):
        self.m.out("w", self.io + 14, number)
        size = self.m.inp("w", self.io + 12)
        at = self.base + number * 0x8000
        self.m.mem_write(at, bytes(0x8000))
        self.m.out("l", self.io + 8, at >> 12)
        used = (at + 16 * size + 6 + 2 * size + 4095) & ~4095
        self.queues[number] = {"size": size, "desc": at, "avail": at + 16 * size, "used": used,
                               "next": 0, "free": 0}

    def chain(self, number, parts):
        """Makes one chain of (address, length, flags) available, without telling the device."""
        q = self.queues[number]
        first = q["free"]
        for i, (address, length, flags) in enumerate(parts):
            last = i == len(parts) - 1
            here = (first + i) % q["size"]
            self.m.mem_write(q["desc"] + 16 * here,
                             struct.pack("<QIHH", address, length, flags | (0 if last else 1),
                                         (here + 1) % q["size"]))
        self.m.mem_write(q["avail"] + 4 + 2 * (q["next"] % q["size"]), struct.pack("<H", first))
        q["free"] = (first + len(parts)) % q["size"]
        q["next"] = (q["next"] + 1) & 0xFFFF
        self.m.mem_write(q["avail"] + 2, struct.pack("<H", q["next"]))

    def kick(self, number):
        self.m.out("w", self.io + 16, number)

    def used(self, number=1):
        return struct.unpack("<H", self.m.mem_read(self.queues[number]["used"] + 2, 2))[0]

    def send(self, *frames, number=1, header=None, wait=True):
        """All frames made available, then one kick; waits until the device has taken them."""
        for data in frames:
            slot = self.queues[number]["free"]
            at = self.base + 0x100000 + (slot + 256 * (number // 2)) * 0x1000
            if len(data) > 4000:
                at = self.base + 0x800000 + (slot % 8) * 0x20000
            head = header if header is not None else bytes(self.header)
            self.m.mem_write(at, head + data)
            self.chain(number, [(at, len(head) + len(data), 0)])
        self.kick(number)
        if wait:
            self.wait_used(self.queues[number]["next"], number)

    def wait_used(self, count, number=1):
        deadline = Deadline("%d buffers used" % count)
        while self.used(number) != count & 0xFFFF and deadline:
            pass


# --- a checkpoint session -------------------------------------------------------------------------

class Session:
    """An active checkpoint session on a machine: its arena and its eventfd."""

    SLOTS, SLOT_PAGES, STATE_MAX = 2, 17000, 1 << 20

    def __init__(self, m, pause_timeout_ms=2000, slot_pages=SLOT_PAGES):
        self.m = m
        self.epoch = 1
        index = (8 * slot_pages + 4095) & ~4095
        size = 4096 + self.SLOTS * (index + 4096 * slot_pages + self.STATE_MAX)
        self.arena = os.memfd_create("arena", os.MFD_ALLOW_SEALING)
        os.ftruncate(self.arena, size)
        os.pwrite(self.arena, b"PLXARENA" + struct.pack("<IIQQQ", 1, 4096, self.SLOTS, slot_pages,
                                                        self.STATE_MAX), 0)
        fcntl.fcntl(self.arena, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.wakeup = ctypes.CDLL(None).eventfd(0, os.O_CLOEXEC)
        m.qmp.getfd("arena", self.arena)
        m.qmp.getfd("wakeup", self.wakeup)
        m.qmp("checkpoint-start", role="active", arena="arena", slots=self.SLOTS,
              slot_pages=slot_pages, state_max=self.STATE_MAX, wakeup="wakeup",
              pause_timeout_ms=pause_timeout_ms)

    def capture(self, slot=None, **arguments):
        """Captures the running epoch; returns QEMU's answer."""
        slot = self.epoch % 2 if slot is None else slot
        answer = self.m.qmp("checkpoint-capture", slot=slot, epoch=self.epoch, **arguments)
        if answer["complete"] and not arguments.get("precopy"):
            self.epoch += 1
        return answer

    def wakeups(self):
        """How often the eventfd was written since the last call."""
        # QEMU makes every descriptor it is given blocking, and that flag is shared with us.
        if not select.select([self.wakeup], [], [], 0)[0]:
            return 0
        return struct.unpack("<Q", os.read(self.wakeup, 8))[0]

    def header(self):
        """(epoch, held packets, held bytes) as the arena's header has them."""
        return struct.unpack("<QQQ", os.pread(self.arena, 24, 40))

    def close(self):
        os.close(self.arena)
        os.close(self.wakeup)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
