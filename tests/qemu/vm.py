# SPDX-License-Identifier: GPL-2.0-or-later
#
# vm.py - a QEMU, an arena and a shadow of guest memory, for tests
#
# Owns the processes and files of one test.  Knows the contract in docs/QEMU-INTERFACE.md, and
# nothing of polluxd.

import base64
import fcntl
import mmap
import os
import struct
import subprocess
import sys
import time

from qmp import Qmp

PAGE = 4096
ZERO = bytes(PAGE)
BLOCK_SHIFT = 40
PAGE_MASK = (1 << BLOCK_SHIFT) - 1
HERE = os.path.dirname(os.path.abspath(__file__))
FIRMWARE = ["-L", "/usr/share/seabios", "-L", "/usr/share/qemu", "-L", "/usr/lib/ipxe/qemu"]

# -nodefaults everywhere: the devices are those that are named here.
MACHINES = {
    "pc": ["-M", "pc", "-device", "virtio-blk-pci,drive=d0",
           "-device", "virtio-net-pci,netdev=n0,romfile="],
    "q35": ["-M", "q35", "-device", "virtio-blk-pci,drive=d0",
            "-device", "virtio-net-pci,netdev=n0,romfile="],
    # A disk served by another thread, and memory that others could share.
    "pc-iothread": ["-M", "pc,memory-backend=m0", "-object",
                    "memory-backend-memfd,id=m0,size=64M,share=on", "-object", "iothread,id=io0",
                    "-device", "virtio-blk-pci,drive=d0,iothread=io0",
                    "-device", "virtio-net-pci,netdev=n0,romfile="],
    "microvm": ["-M", "microvm", "-device", "virtio-blk-device,drive=d0",
                "-device", "virtio-net-device,netdev=n0"],
    "pc-vga": ["-M", "pc", "-vga", "std", "-device", "virtio-blk-pci,drive=d0",
               "-device", "virtio-net-pci,netdev=n0,romfile=",
               "-netdev", "user,id=n1,restrict=on", "-device", "e1000,netdev=n1,romfile="],
}


class Deadline:
    """True until its time is over, then it raises: the condition of a loop that waits.

    Only against a hang: far more time than a slow and busy machine needs.
    """

    def __init__(self, what, timeout_s=120):
        self.what = what
        self.timeout_s = timeout_s
        self.end = time.monotonic() + timeout_s

    def __bool__(self):
        if time.monotonic() > self.end:
            raise TimeoutError("not within %g s: %s" % (self.timeout_s, self.what))
        return True


def qemu_binary():
    return os.environ.get("POLLUX_QEMU", "qemu-system-x86_64")


def build_guest(directory, pages=256, lines=4096, idle=0):
    """Assemble the boot sector and return the path of an image with it."""
    obj, image = os.path.join(directory, "guest.o"), os.path.join(directory, "guest.img")
    subprocess.run(["as", "--32", "-o", obj, os.path.join(HERE, "guest.S")], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-Ttext", "0x7c00", "-e", "start",
                    "--oformat", "binary", "-o", image, obj], check=True)
    with open(image, "r+b") as f:
        f.seek(498)
        f.write(struct.pack("<III", pages, lines, idle))
        f.truncate(1 << 20)
    return image


class Vm:
    def __init__(self, directory, name, machine="pc", accel="tcg", cpus=1, mem_mib=64, image=None,
                 paused=False, extra=(), pass_fds=()):
        self.directory = directory
        self.name = name
        self.serial_path = os.path.join(directory, name + ".serial")
        self.log_path = os.path.join(directory, name + ".log")
        qmp_path = os.path.join(directory, name + ".qmp")
        command = [qemu_binary(), *FIRMWARE, *MACHINES[machine], "-nodefaults", "-no-user-config",
                   "-display", "none", "-accel", accel, "-smp", str(cpus), "-m", str(mem_mib),
                   "-chardev", "file,id=s0,path=" + self.serial_path, "-serial", "chardev:s0",
                   "-qmp", "unix:%s,server=on,wait=off" % qmp_path,
                   "-netdev", "user,id=n0,restrict=on", *extra]
        if image:
            command += ["-drive", "if=none,id=d0,format=raw,snapshot=on,file=" + image]
        if paused:
            command += ["-S"]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, pass_fds=pass_fds)
        try:
            self.qmp = Qmp(qmp_path)
        except Exception:
            self.kill()
            sys.stderr.write(self.log())
            raise

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def close(self):
        if hasattr(self, "qmp"):
            self.qmp.close()
        self.kill()

    def serial(self):
        with open(self.serial_path, "rb") as f:
            return f.read()

    def counters(self):
        """The numbers that the boot sector has printed in whole lines."""
        lines = self.serial().split(b"\n")[:-1]
        return [int(line[-8:], 16) for line in lines if len(line) >= 8 and
                all(c in b"0123456789abcdef" for c in line[-8:])]

    def wait_serial(self, fact, timeout_s=60):
        """Wait until fact() is true; the serial port has no event to wait for."""
        deadline = time.monotonic() + timeout_s
        while not fact():
            if time.monotonic() > deadline:
                raise TimeoutError("the guest did not get there: %r" % self.serial()[-200:])
            if self.process.poll() is not None:
                raise ConnectionError("QEMU has ended: " + self.log())
            time.sleep(0.02)

    def wait_counting(self, lines=3, timeout_s=60):
        have = len(self.counters())
        self.wait_serial(lambda: len(self.counters()) >= have + lines, timeout_s)

    def start(self, role, arena, **more):
        """checkpoint-start; returns the blocks.

        A guest that waits for the next slot waits for this program, which may be slow: only the
        tests of that time-out have a short one.
        """
        if role == "active":
            more.setdefault("pause_timeout_ms", 60000)
        self.qmp.execute("getfd", fd=arena.fd, fdname="arena")
        return self.qmp.execute("checkpoint-start", role=role, arena="arena", slots=arena.slots,
                                slot_pages=arena.slot_pages, state_max=arena.state_max,
                                **more)["blocks"]

    def capture(self, slot, epoch, **more):
        return self.qmp.execute("checkpoint-capture", slot=slot, epoch=epoch, **more)

    def digests(self, block):
        """Digest of each page of a block."""
        result = []
        pages = block["size"] // PAGE
        for first in range(0, pages, 65536):
            count = min(65536, pages - first)
            text = self.qmp.execute("checkpoint-digest", block=block["id"], first=first,
                                    pages=count, timeout_s=60)["digests"]
            data = base64.b64decode(text)
            assert len(data) == 8 * count
            result += struct.unpack("<%dQ" % count, data)
        return result


class Arena:
    def __init__(self, slots=2, slot_pages=4096, state_max=1 << 20, seal=True, size=None):
        self.slots, self.slot_pages, self.state_max = slots, slot_pages, state_max
        self.index_size = (8 * slot_pages + PAGE - 1) // PAGE * PAGE
        self.slot_size = self.index_size + PAGE * slot_pages + state_max
        self.size = PAGE + slots * self.slot_size if size is None else size
        self.fd = os.memfd_create("arena", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        if seal:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.map = mmap.mmap(self.fd, self.size)
        self.write_header()

    def write_header(self, magic=b"PLXARENA", version=1, page_size=PAGE):
        self.map[:64] = struct.pack("<8sIIQQQQQQ", magic, version, page_size, self.slots,
                                    self.slot_pages, self.state_max, 0, 0, 0)

    def close(self):
        self.map.close()
        os.close(self.fd)

    @property
    def epoch(self):
        return struct.unpack_from("<Q", self.map, 40)[0]

    def _base(self, slot):
        return PAGE + slot * self.slot_size

    def index(self, slot, pages):
        return struct.unpack_from("<%dQ" % pages, self.map, self._base(slot))

    def set_index(self, slot, entries):
        struct.pack_into("<%dQ" % len(entries), self.map, self._base(slot), *entries)

    def page(self, slot, position):
        at = self._base(slot) + self.index_size + position * PAGE
        return self.map[at:at + PAGE]

    def set_page(self, slot, position, data):
        at = self._base(slot) + self.index_size + position * PAGE
        self.map[at:at + PAGE] = data

    def state(self, slot, size):
        at = self._base(slot) + self.index_size + PAGE * self.slot_pages
        return self.map[at:at + size]

    def set_state(self, slot, data):
        at = self._base(slot) + self.index_size + PAGE * self.slot_pages
        self.map[at:at + len(data)] = data


class Shadow:
    """What a standby would hold: memory made of nothing but captured pages."""

    def __init__(self, blocks):
        self.blocks = blocks
        self.pages = [{} for _ in blocks]

    def take(self, arena, slot, count, skip=()):
        """Apply a slot; positions in skip are left out (a planted fault)."""
        seen = set()
        for position, entry in enumerate(arena.index(slot, count)):
            assert entry not in seen, "a page is twice in a slot"
            seen.add(entry)
            block, page = entry >> BLOCK_SHIFT, entry & PAGE_MASK
            assert page < self.blocks[block]["size"] // PAGE
            if position not in skip:
                data = arena.page(slot, position)
                self.pages[block][page] = ZERO if data == ZERO else data
        return len(seen)

    def differences(self, vm):
        """Pages that differ from the VM's, as (block id, page); compares every page."""
        wrong = []
        for block, pages in zip(self.blocks, self.pages):
            for number, digest in enumerate(vm.digests(block)):
                if digest_page(pages.get(number)) != digest:
                    wrong.append((block["id"], number))
        return wrong

    def bytes(self, block_id):
        number = [b["id"] for b in self.blocks].index(block_id)
        data = bytearray(self.blocks[number]["size"])
        for page, content in self.pages[number].items():
            data[page * PAGE:(page + 1) * PAGE] = content
        return bytes(data)


_MASK = (1 << 64) - 1
_ODD = 0x9e3779b97f4a7c15
_digest_cache = {}


def digest_page(page):
    """The digest of checkpoint-digest, written again from its description."""
    if page is None:
        page = bytes(PAGE)
    known = _digest_cache.get(page)
    if known is not None:
        return known
    h = [1, 2, 3, 4]
    words = struct.unpack("<512Q", page)
    for i in range(0, 512, 4):
        for lane in range(4):
            x = (h[lane] ^ words[i + lane]) * _ODD & _MASK
            h[lane] = x ^ (x >> 29)
    digest = h[0]
    for lane in range(1, 4):
        digest = (digest ^ h[lane]) * _ODD & _MASK
        digest ^= digest >> 32
    _digest_cache[page] = digest
    return digest
