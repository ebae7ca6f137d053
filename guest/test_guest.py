#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_guest.py - the guests work, and find what they are there to find

Usage: test_guest.py BUILD_GUEST_DIR [unittest arguments]; QEMU=PROGRAM in the environment for the
tests with a real QEMU (QEMU_FIRMWARE: colon-separated folders for -L). Needs root: it runs in a
network namespace of its own, which takes every tap with it when it ends. Exit status 77: not root.
"""
import json
import os
import re
import select
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import bootsector_watch as bw  # noqa: E402  (the path above makes it importable from anywhere)

WATCH = os.path.join(HERE, "bootsector_watch.py")
FIRMWARE = os.environ.get(
    "QEMU_FIRMWARE", "/usr/share/seabios:/usr/share/qemu:/usr/lib/ipxe/qemu").split(":")
QEMU = os.environ.get("QEMU")
BUILD = None
MAC = "52:54:00:77:00:0b"


def frame(counter, error=0, stride=8):
    return bw.FRAME.pack(b"\xff" * 6, bytes.fromhex(MAC.replace(":", "")), b"\x88\xb5", bw.MAGIC,
                         error, counter, stride) + bytes(26)


def wait_for(condition, seconds, what):
    """Polls an outside state that has no event to wait for; returns what condition returned."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        select.select([], [], [], 0.02)
    raise AssertionError(f"{what}: not within {seconds} s")


class TestSequence(unittest.TestCase):
    def feed(self, *frames):
        seq = bw.Sequence()
        return seq, [seq.feed(*f, at) for at, f in enumerate(frames)]

    def test_rising_counter_is_good(self):
        seq, faults = self.feed((0, 8, 8), (0, 16, 8), (0, 24, 8))
        self.assertEqual(faults, [[], [], []])
        self.assertTrue(seq.good())
        self.assertEqual(seq.summary()["max_silence_ms"], 1000)

    def test_repeated_counter_is_a_fault(self):
        seq, faults = self.feed((0, 8, 8), (0, 16, 8), (0, 16, 8))
        self.assertEqual(faults[2], ["backwards"])
        self.assertFalse(seq.good(max_gaps=9))

    def test_gap_is_a_fault_unless_allowed(self):
        seq, faults = self.feed((0, 8, 8), (0, 32, 8))
        self.assertEqual((faults[1], seq.missing), (["gap"], 2))
        self.assertFalse(seq.good())
        self.assertTrue(seq.good(max_gaps=1))

    def test_error_word_is_a_fault(self):
        seq, faults = self.feed((0x100004, 8, 8))
        self.assertEqual(faults[0], ["error"])
        self.assertFalse(seq.good())

    def test_foreign_and_short_frames_are_ignored(self):
        good = frame(8)
        self.assertEqual(bw.parse_frame(good), (MAC, 0, 8, 8))
        self.assertIsNone(bw.parse_frame(good[:bw.FRAME.size - 1]))
        self.assertIsNone(bw.parse_frame(good.replace(b"PLXB", b"PLXC")))


class TestDisk(unittest.TestCase):
    def image(self, counters):
        disk = tempfile.NamedTemporaryFile()
        for sector, counter in counters.items():
            disk.seek(sector * 512)
            disk.write(frame(counter))
        disk.truncate(1 << 20)
        disk.flush()
        self.addCleanup(disk.close)
        return disk.name

    def writes(self, last):
        return {1 + n % 64: n * 1024 for n in range(last + 1)}

    def test_complete_disk_is_good(self):
        self.assertEqual(bw.check_disk(self.image(self.writes(100)), 100 * 1024 + 8), [])
        self.assertEqual(bw.check_disk(self.image(self.writes(3)), 3 * 1024), [])

    def test_lost_last_write_is_found(self):
        self.assertTrue(bw.check_disk(self.image(self.writes(99)), 100 * 1024))

    def test_stale_sector_is_found(self):
        counters = self.writes(100)
        counters[1 + 90 % 64] = 26 * 1024
        self.assertTrue(bw.check_disk(self.image(counters), 100 * 1024))

    def test_empty_disk_is_found(self):
        self.assertTrue(bw.check_disk(self.image({}), 0))


class TestDirty(unittest.TestCase):
    NR_PAGES = 4096

    def start(self, *args):
        load = subprocess.Popen([os.path.join(BUILD, "dirty"), *args])
        self.addCleanup(load.wait)
        self.addCleanup(load.kill)
        return load

    def ask(self, number):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.2)
            sock.connect(("127.0.0.1", 7070))
            try:
                sock.send(str(number).encode())
                return json.loads(sock.recv(512))
            except (ConnectionRefusedError, socket.timeout):
                return None

    def ask_until(self, condition, what):
        def poll():
            report = self.ask(7)
            return report if report and condition(report) else None
        return wait_for(poll, 10, what)

    def test_untouched_memory_has_no_errors_and_wrong_memory_has(self):
        for pattern in ("word", "line", "page"):
            with self.subTest(pattern=pattern):
                load = self.start(str(self.NR_PAGES), "100000", pattern)
                report = self.ask_until(lambda r: r["pages"] > 3 * self.NR_PAGES, "pages rewritten")
                self.assertEqual((report["errors"], report["id"]), (0, 7))
                self.corrupt(load.pid)
                self.ask_until(lambda r: r["errors"] > 0, "the planted damage")
                load.kill()
                load.wait()

    def test_tcp_answers_one_line(self):
        self.start("16", "max")
        self.ask_until(lambda r: True, "the port")
        with socket.create_connection(("127.0.0.1", 7070), 5) as conn:
            self.assertGreater(json.loads(conn.makefile().read())["pages"], 0)

    def test_rate_is_kept(self):
        self.start("64", "1000")
        first = self.ask_until(lambda r: True, "the port")
        last = self.ask_until(lambda r: r["guest_us"] > first["guest_us"] + 500000, "half a second")
        rate = (last["pages"] - first["pages"]) * 1e6 / (last["guest_us"] - first["guest_us"])
        self.assertTrue(600 < rate < 1100, rate)

    def test_bad_arguments_are_refused(self):
        for args in ([], ["0", "1"], ["1", "-1"], ["1", "1", "words"], ["1x", "1"],
                     ["9" * 30, "1"]):
            done = subprocess.run([os.path.join(BUILD, "dirty"), *args], stderr=subprocess.PIPE)
            self.assertEqual(done.returncode, 64, args)

    def corrupt(self, pid):
        """Zeroes half of the pages behind the load's back; the area starts its largest mapping."""
        sizes = {}
        with open(f"/proc/{pid}/maps") as maps:
            for line in maps:
                begin, end = (int(x, 16) for x in re.match(r"(\w+)-(\w+)", line).groups())
                sizes[begin] = end - begin
        area = max(sizes, key=sizes.get)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as mem:
            for page in range(0, self.NR_PAGES, 2):
                mem.seek(area + page * 4096)
                mem.write(bytes(8))


class Qemu:
    """One QEMU with a tap in this namespace, its serial line in a file, killed at the end."""

    def __init__(self, test, *args):
        self.dir = tempfile.TemporaryDirectory()
        test.addCleanup(self.dir.cleanup)
        self.serial = os.path.join(self.dir.name, "serial")
        self.gdb = os.path.join(self.dir.name, "gdb")
        command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none"]
        for folder in FIRMWARE:
            command += ["-L", folder]
        command += ["-chardev", f"file,id=ser,path={self.serial}", "-serial", "chardev:ser",
                    "-gdb", f"unix:{self.gdb},server=on,wait=off",
                    "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no", *args]
        self.log = open(os.path.join(self.dir.name, "stderr"), "w+")
        test.addCleanup(self.log.close)
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=self.log)
        test.addCleanup(self.stop)
        wait_for(lambda: any(name == "tap0" for _, name in socket.if_nameindex()), 10,
                 "tap0: " + shlex.join(command))
        subprocess.run(["ip", "link", "set", "tap0", "up"], check=True)

    def stop(self):
        self.process.kill()
        self.process.wait()

    def write_memory(self, address, data):
        """Through the gdb stub: the guest stops, memory is written, the guest goes on."""
        def packet(text):
            stub.sendall(f"${text}#{sum(text.encode()) & 255:02x}".encode())
            reply = b""
            while not re.search(rb"\$.*#..", reply):
                reply += stub.recv(4096)
            stub.sendall(b"+")
            return re.search(rb"\$(.*)#..", reply)[1]
        with socket.socket(socket.AF_UNIX) as stub:
            stub.settimeout(10)
            stub.connect(self.gdb)
            assert packet(f"M{address:x},{len(data):x}:{data.hex()}") == b"OK"
            assert packet("D") == b"OK"

    def serial_text(self):
        with open(self.serial, errors="replace") as text:
            return text.read()


@unittest.skipUnless(QEMU, "QEMU is not set")
class TestBootsector(unittest.TestCase):
    def boot(self, accel, machine):
        disk = tempfile.NamedTemporaryFile()
        self.addCleanup(disk.close)
        with open(os.path.join(BUILD, "bootsector.img"), "rb") as image:
            disk.write(image.read())
        disk.flush()
        device = {"pc": "ide-hd,drive=d0,bus=ide.0,unit=0", "q35": "virtio-blk-pci,drive=d0",
                  "microvm": "virtio-blk-device,drive=d0"}[machine]
        qemu = Qemu(self, "-accel", accel, "-M", machine, "-m", "64",
                    "-drive", f"if=none,id=d0,file={disk.name},format=raw", "-device", device,
                    "-device", f"ne2k_isa,netdev=n0,mac={MAC}")
        return qemu, disk.name

    def watch(self, *args):
        done = subprocess.run([sys.executable, WATCH, "tap0", "--quiet", "--seconds", "25", *args],
                              stdout=subprocess.PIPE, text=True)
        return done.returncode, json.loads(done.stdout.splitlines()[-1])

    def scenario(self, accel, machine):
        qemu, disk = self.boot(accel, machine)
        # 600 frames: 4,800 steps, 18 laps of memory, 4 disk writes
        extra = ["--disk", disk] if machine == "pc" else []
        status, summary = self.watch("--frames", "600", *extra)
        self.assertEqual((status, summary["mac"], summary["backwards"]), (0, MAC, 0), summary)
        qemu.write_memory(0x100000 + 77 * 4096 + 40, b"\xde\xad")
        status, summary = self.watch("--frames", "100")
        self.assertEqual(status, 1, summary)
        self.assertGreater(summary["errors"], 0, "the guest did not find the planted damage")
        self.assertRegex(qemu.serial_text(), r"(?m)^00000000$")

    def test_tcg(self):
        for machine in ("pc", "q35", "microvm"):
            with self.subTest(machine=machine):
                self.scenario("tcg", machine)
                self.doCleanups()

    @unittest.skipUnless(os.access("/dev/kvm", os.R_OK | os.W_OK), "no /dev/kvm")
    def test_kvm(self):
        for machine in ("pc", "q35", "microvm"):
            with self.subTest(machine=machine):
                self.scenario("kvm", machine)
                self.doCleanups()

    def test_silence_is_no_verdict(self):
        Qemu(self, "-accel", "tcg", "-M", "pc", "-S")
        status, summary = self.watch("--seconds", "0.2")
        self.assertEqual((status, summary["frames"]), (2, 0))


@unittest.skipUnless(QEMU, "QEMU is not set")
class TestLinux(unittest.TestCase):
    def boot(self, machine, words):
        bus = "pci"
        if machine == "microvm":
            bus = "device"
            khz = subprocess.check_output([os.path.join(BUILD, "tsckhz")], text=True)
            words += " tsc_early_khz=" + khz.strip()
        qemu = Qemu(self, "-accel", "tcg", "-M", machine, "-m", "256",
                    "-kernel", os.path.join(BUILD, "vmlinuz"),
                    "-initrd", os.path.join(BUILD, "initrd.img"), "-device",
                    f"virtio-net-{bus},netdev=n0,mac={MAC}", "-append",
                    "console=ttyS0 quiet pollux.ip0=10.77.0.10/24 pollux.ip6_0=fd77::10/64 "
                    + words)
        subprocess.run(["ip", "addr", "add", "10.77.0.1/24", "dev", "tap0"], check=True)
        subprocess.run(["ip", "addr", "add", "fd77::1/64", "dev", "tap0", "nodad"], check=True)
        try:
            return wait_for(lambda: re.search(r"(?m)^.*POLLUX-GUEST-.*\n", qemu.serial_text()), 60,
                            f"{machine}: ready line")[0]
        except AssertionError:
            print(qemu.serial_text()[-2000:], file=sys.stderr)
            raise

    def talk(self, address, port, request, size):
        with socket.create_connection((address, port), 5) as conn:
            conn.sendall(request)
            reply = b""
            while len(reply) < size:
                part = conn.recv(65536)
                if not part:
                    break
                reply += part
            return reply

    def test_redis_on_each_machine(self):
        for machine in ("pc", "q35", "microvm"):
            with self.subTest(machine=machine):
                self.assertRegex(self.boot(machine, "pollux.workload=redis"),
                                 r"^POLLUX-GUEST-READY workload=redis ip=10\.77\.0\.10 ")
                self.assertEqual(self.talk("10.77.0.10", 6379, b"PING\r\n", 7), b"+PONG\r\n")
                self.assertEqual(self.talk("fd77::10", 6379, b"INCR x\r\n", 4), b":1\r\n")
                self.doCleanups()

    def test_nginx(self):
        self.assertRegex(self.boot("pc", "pollux.workload=nginx"), "READY workload=nginx")

        def get(path):
            request = f"GET /{path} HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n"
            return self.talk("10.77.0.10", 80, request.encode(), 1 << 20)
        body = get("137.html").split(b"\r\n\r\n", 1)[1]
        lines = [b"page 137 line %03d pollux-guest.\n" % i for i in range(128)]
        self.assertEqual(body, b"".join(lines))
        self.assertIn(b" 404 ", get("200.html"))
        self.assertRegex(get("seq"), rb"\n\d+ 1\n$")

    def test_dirty(self):
        self.boot("pc", "pollux.workload=dirty pollux.dirty_rate=max pollux.dirty_pages=1000")
        report = json.loads(self.talk("10.77.0.10", 7070, b"", 1 << 20))
        self.assertEqual((report["errors"], report["set"], report["rate_hz"]), (0, 1000, 0))

    def test_unknown_workload_says_so(self):
        line = self.boot("pc", "pollux.workload=mysql")
        self.assertIn("FAILED unknown pollux.workload=mysql", line)


def main():
    global BUILD
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        sys.exit(64)
    if os.geteuid() != 0:
        print("SKIP: needs root for a network namespace")
        sys.exit(77)
    if os.environ.get("POLLUX_TEST_GUEST_NETNS") != "1":
        os.environ["POLLUX_TEST_GUEST_NETNS"] = "1"
        again = [sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--net", *again])
    BUILD = os.path.abspath(sys.argv.pop(1))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    unittest.main()


if __name__ == "__main__":
    main()
