#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""stream_writer - makes records of the Pollux stream, valid ones and deliberately broken ones

For tests: a hostile or old peer, and a cross-check of the readers. Knows docs/PROTOCOL.md, shares digests with
stream_reader.py and nothing with the C side. As a module:

    s = Stream(generation=3)
    sock.sendall(s.hello(role=2, vm="db1") + s.layout({"cpus": "2"}) + s.refuse(6, "busy"))
    sock.sendall(s.record(PAGES, payload, epoch=1, checksum=0))     # any header field can be forced

As a program: --sample writes a valid stream of an active; --broken-list writes, for each broken stream,
u32 name length, name, u32 length, bytes (all little endian), for a reader's test to walk over.
"""
import argparse
import struct
import sys

from stream_reader import HEADER, MAGIC, align8, xxh32, xxh64

HELLO, LAYOUT, REFUSE, HEARTBEAT, EPOCH_BEGIN, PAGES, STATE, EPOCH_END, ACK, GUEST_GONE, GUEST_ENDED = range(1, 12)
DISK_WRITE, APPLIED, ARB_ASK, ARB_ANSWER = 12, 13, 32, 33
ZERO, RAW, LZ4 = 0, 1, 2


def pad8(data):
    """Zero pad to a multiple of 8."""
    return data + bytes(align8(len(data)) - len(data))


def lz4_run(value, count=4096):
    """A legal lz4 block that decodes to count times one byte: one literal, one match, five literals."""
    match = count - 6 - 4
    out = bytearray([0x1F, value, 1, 0])
    match -= 15
    while match >= 255:
        out.append(255)
        match -= 255
    out.append(match)
    return bytes(out) + bytes([0x50]) + bytes([value]) * 5


def pages_payload(entries, **forced):
    """PAGES payload. entries: (index, kind, data); forced: nr_pages, codec, data_bytes, reserved, sizes, pad (bytes)."""
    data = b"".join(d for _, _, d in entries)
    sizes = forced.get("sizes", [len(d) for _, _, d in entries])
    head = struct.pack("<IIII", forced.get("nr_pages", len(entries)), forced.get("codec", 1),
                       forced.get("data_bytes", len(data)), forced.get("reserved", 0))
    index = b"".join(struct.pack("<Q", i) for i, _, _ in entries)
    kinds = pad8(bytes(k for _, k, _ in entries))
    out = head + index + kinds + pad8(b"".join(struct.pack("<H", s) for s in sizes)) + pad8(data)
    return out + forced.get("pad", b"")


def state_payload(offset, raw, kind=RAW, data=None, **forced):
    """STATE payload. forced: raw_bytes, data_bytes."""
    data = raw if data is None else data
    return struct.pack("<IIII", offset, forced.get("raw_bytes", len(raw)), kind,
                       forced.get("data_bytes", len(data))) + pad8(data)


def hello_payload(**f):
    """HELLO payload; any field by name."""
    return struct.pack("<HHI16s48sIHHQ", f.get("version_min", 1), f.get("version_max", 1), f.get("role", 1),
                       f.get("instance", b"A" * 16), f.get("vm", "vm").encode(), f.get("features", 0),
                       f.get("flags", 0), f.get("listen_port", 7460), f.get("boot", 1))


def layout_payload(pairs):
    """LAYOUT payload of a dict, sorted by key as it must be."""
    lines = sorted((k.encode(), v.encode()) for k, v in pairs.items())
    return b"".join(k + b"=" + v + b"\n" for k, v in lines)


def ask_payload(**f):
    """ARB_ASK payload; any field by name."""
    return struct.pack("<II48sQQ16s16sQ", f.get("op", 2), f.get("reserved", 0), f.get("vm", "vm").encode(),
                       f.get("expect", 0), f.get("next", 1), f.get("holder", b"H" * 16), f.get("nonce", b"N" * 16),
                       f.get("tag", 1))


def answer_payload(**f):
    """ARB_ANSWER payload; any field by name."""
    return struct.pack("<II48sQQ16s16sQ", f.get("result", 2), f.get("reserved", 0), f.get("vm", "vm").encode(),
                       f.get("generation", 1), f.get("reserved2", 0), f.get("holder", b"H" * 16),
                       f.get("nonce", b"N" * 16), f.get("tag", 1))


class Stream:
    """One direction of one connection: numbers the records, keeps the epoch's digest."""

    def __init__(self, generation=1):
        self.generation = generation
        self.sequence = 0
        self.sums = b""
        self.pages_sent = self.state_sent = 0

    def record(self, kind, payload=b"", epoch=0, **forced):
        """One record; forced: magic, flags, length, checksum, generation, sequence, pad (False: none)."""
        if forced.get("pad", True):
            payload = pad8(payload)
        fields = [forced.get("magic", MAGIC), kind, forced.get("flags", 0), forced.get("length", len(payload)), 0,
                  forced.get("generation", self.generation), epoch, forced.get("sequence", self.sequence)]
        checksum = xxh32(HEADER.pack(*fields) + payload)
        fields[4] = forced.get("checksum", checksum)
        self.sequence += 1
        if kind in (PAGES, STATE):
            self.sums += struct.pack("<I", fields[4])
        return HEADER.pack(*fields) + payload

    def hello(self, epoch=0, **fields):
        """HELLO."""
        return self.record(HELLO, hello_payload(**fields), epoch)

    def layout(self, pairs):
        """LAYOUT of a dict."""
        return self.record(LAYOUT, layout_payload(pairs))

    def refuse(self, code, text):
        """REFUSE."""
        return self.record(REFUSE, struct.pack("<II", code, 0) + text.encode())

    def guest(self, kind, code, text, epoch):
        """GUEST_GONE or GUEST_ENDED."""
        return self.record(kind, struct.pack("<II", code, 0) + text.encode(), epoch)

    def heartbeat(self, sent_ns=1, echo_ns=0, state=0, epoch=0):
        """HEARTBEAT."""
        return self.record(HEARTBEAT, struct.pack("<QQII", sent_ns, echo_ns, state, 0), epoch)

    def epoch_begin(self, epoch, full):
        """EPOCH_BEGIN."""
        self.sums = b""
        self.pages_sent = self.state_sent = 0
        return self.record(EPOCH_BEGIN, struct.pack("<IIQ", 1 if full else 0, 0, 0), epoch)

    def pages(self, epoch, entries):
        """PAGES of (index, kind, data)."""
        self.pages_sent += len(entries)
        return self.record(PAGES, pages_payload(entries), epoch)

    def state(self, epoch, raw, kind=RAW, data=None):
        """STATE: the next part."""
        payload = state_payload(self.state_sent, raw, kind, data)
        self.state_sent += len(raw)
        return self.record(STATE, payload, epoch)

    def epoch_end(self, epoch, **forced):
        """EPOCH_END; forced: pages, state_bytes, digest."""
        return self.record(EPOCH_END, struct.pack(
            "<5Q", forced.get("pages", self.pages_sent), forced.get("state_bytes", self.state_sent),
            forced.get("digest", xxh64(self.sums, epoch)), 0, 0), epoch)

    def arb_ask(self, **fields):
        """ARB_ASK."""
        return self.record(ARB_ASK, ask_payload(**fields), generation=0)

    def arb_answer(self, **fields):
        """ARB_ANSWER."""
        return self.record(ARB_ANSWER, answer_payload(**fields), generation=0)


SAMPLE_LAYOUT = {"cpus": "1", "machine": "pc-i440fx-10.0", "qemu": "10.0.13", "ram:pc.ram": "1048576",
                 "section:timer:0": "2", "nic:0": "virtio-net-pci 52:54:00:12:34:56"}


def sample(s=None):
    """A valid stream of an active: greeting, a FULL epoch, a second one, the end of the guest."""
    s = s or Stream(generation=3)
    noise = bytes(xxh32(struct.pack("<I", i)) & 0xFF for i in range(4096))
    return b"".join([
        s.hello(role=1), s.layout(SAMPLE_LAYOUT), s.epoch_begin(1, True),
        s.pages(1, [(i, ZERO, b"") for i in range(64)]),
        s.pages(1, [(3, RAW, noise), (4, LZ4, lz4_run(7)), (255, ZERO, b"")]),
        s.pages(1, [(3, LZ4, lz4_run(9))]),
        s.state(1, noise), s.state(1, b"x" * 1000, LZ4, lz4_run(ord("x"), 1000)),
        s.epoch_end(1), s.heartbeat(epoch=1), s.epoch_begin(2, False), s.pages(2, [(5, RAW, noise[::-1])]),
        s.state(2, b"abc"), s.epoch_end(2), s.guest(GUEST_ENDED, 1, "shut down by itself", 2)])


def greeted():
    """A stream whose greeting is done, and the bytes of it."""
    s = Stream(generation=3)
    return s, s.hello(role=1) + s.layout(SAMPLE_LAYOUT)


def broken_records():
    """Broken streams of an active, each breaking one rule that a single record can break. @return [(name, bytes)]"""
    out = []

    def add(name, make):
        s, head = greeted()
        out.append((name, head + make(s)))

    def page(**forced):
        return pages_payload([(1, ZERO, b""), (2, RAW, b"r" * 4096)], **forced)

    def first(name, **fields):
        out.append((name, Stream().hello(**fields)))

    add("magic", lambda s: s.record(HEARTBEAT, bytes(24), magic=MAGIC ^ 1))
    add("type 0", lambda s: s.record(0))
    add("type 14", lambda s: s.record(14))
    add("type 34", lambda s: s.record(34))
    add("type 65535", lambda s: s.record(65535))
    add("type DISK_WRITE", lambda s: s.record(DISK_WRITE, bytes(64), 1))
    add("type of the other side", lambda s: s.record(ACK, b"", 1))
    add("type of the witness", lambda s: s.arb_answer())
    add("flags", lambda s: s.record(HEARTBEAT, bytes(24), flags=1))
    add("length not a multiple of 8", lambda s: s.record(HEARTBEAT, bytes(25), pad=False))
    add("length over the cap", lambda s: s.record(HEARTBEAT, bytes(72)))
    add("length over any cap", lambda s: s.record(PAGES, b"", 1, length=0xFFFFFFF8))
    add("checksum", lambda s: s.record(HEARTBEAT, bytes(24), checksum=1))
    add("sequence repeated", lambda s: s.record(HEARTBEAT, bytes(24), sequence=1))
    add("sequence skipped", lambda s: s.record(HEARTBEAT, bytes(24), sequence=3))
    add("HELLO again", lambda s: s.hello())
    add("LAYOUT again", lambda s: s.layout({}))
    out.append(("no HELLO first", Stream().heartbeat()))
    s = Stream()
    out.append(("no LAYOUT second", s.hello() + s.heartbeat()))
    s = Stream()
    out.append(("LAYOUT with an epoch", s.hello() + s.record(LAYOUT, b"a=b\n", 1)))
    first("HELLO version 0", version_min=0)
    first("HELLO versions empty", version_min=2)
    first("HELLO role 0", role=0)
    first("HELLO role 3", role=3)
    first("HELLO vm empty", vm="")
    first("HELLO vm first character", vm="-vm")
    first("HELLO vm character", vm="a/b")
    first("HELLO vm not ended", vm="v" * 48)
    first("HELLO vm padding", vm="vm\0x")
    first("HELLO flags", flags=2)
    out.append(("HELLO size", Stream().record(HELLO, hello_payload() + bytes(8))))
    add("HEARTBEAT size", lambda s: s.record(HEARTBEAT, bytes(32)))
    add("HEARTBEAT reserved", lambda s: s.record(HEARTBEAT, struct.pack("<QQII", 1, 0, 0, 1)))
    add("EPOCH_BEGIN epoch 0", lambda s: s.record(EPOCH_BEGIN, struct.pack("<IIQ", 1, 0, 0), 0))
    add("EPOCH_BEGIN flags", lambda s: s.record(EPOCH_BEGIN, struct.pack("<IIQ", 3, 0, 0), 1))
    add("EPOCH_BEGIN reserved", lambda s: s.record(EPOCH_BEGIN, struct.pack("<IIQ", 1, 1, 0), 1))
    add("EPOCH_BEGIN reserved2", lambda s: s.record(EPOCH_BEGIN, struct.pack("<IIQ", 1, 0, 1), 1))
    for name, code, text in (("code 0", 0, b"x"), ("code 11", 11, b"x"), ("UTF-8", 1, b"\xc3("),
                             ("overlong", 1, b"\xc0\xaf"), ("surrogate", 1, b"\xed\xa0\x80"),
                             ("control", 1, b"a\x1b[0m"), ("C1 control", 1, b"\xc2\x9b"), ("line feed", 1, b"a\nb"),
                             ("zero in text", 1, b"a\0b"), ("padding of 8", 1, b"abcdefgh" + bytes(8))):
        add("REFUSE " + name, lambda s, c=code, t=text: s.record(REFUSE, struct.pack("<II", c, 0) + t))
    add("REFUSE reserved", lambda s: s.record(REFUSE, struct.pack("<II", 1, 1) + b"x"))
    add("REFUSE epoch", lambda s: s.record(REFUSE, struct.pack("<II", 1, 0) + b"x", 1))
    add("REFUSE too short", lambda s: s.record(REFUSE))
    add("GUEST_GONE code 3", lambda s: s.guest(GUEST_GONE, 3, "x", 1))
    add("GUEST_ENDED code 0", lambda s: s.guest(GUEST_ENDED, 0, "x", 1))

    def in_epoch(name, make):
        add(name, lambda s: s.epoch_begin(1, True) + make(s))

    def pages(name, payload):
        in_epoch("PAGES " + name, lambda s: s.record(PAGES, payload, 1))

    pages("too short", b"")
    pages("nr_pages 0", pages_payload([]) + bytes(24))
    pages("nr_pages 65", pages_payload([(i, ZERO, b"") for i in range(65)]))
    pages("nr_pages over the payload", page(nr_pages=64))
    pages("codec", page(codec=2))
    pages("reserved", page(reserved=1))
    pages("data_bytes", page(data_bytes=4088))
    pages("data_bytes huge", page(data_bytes=0xFFFFFFF8))
    pages("sizes", page(sizes=[0, 4095]))
    pages("trailing bytes", page(pad=bytes(8)))
    pages("block", pages_payload([(1 << 40, ZERO, b"")]))
    pages("page", pages_payload([(256, ZERO, b"")]))
    pages("kind 3", pages_payload([(1, 3, b"")]))
    pages("zero with data", pages_payload([(1, ZERO, bytes(8))]))
    pages("raw short", pages_payload([(1, RAW, b"r" * 4088)]))
    pages("lz4 empty", pages_payload([(1, LZ4, b"")]))
    pages("lz4 of 4096", pages_payload([(1, LZ4, b"r" * 4096)]))
    pages("lz4 short page", pages_payload([(1, LZ4, lz4_run(1, 4095))]))
    pages("lz4 long page", pages_payload([(1, LZ4, lz4_run(1, 4097))]))
    pages("lz4 garbage", pages_payload([(1, LZ4, b"\xff" * 100)]))
    pages("lz4 offset before start", pages_payload([(1, LZ4, b"\x1f\x01\x02\x00" + lz4_run(1)[4:])]))
    for name, at in (("kinds", 16 + 16 + 2), ("sizes", 16 + 16 + 8 + 4)):
        dirty = bytearray(page())
        dirty[at] = 1
        pages("padding of " + name, bytes(dirty))
    dirty = bytearray(pages_payload([(1, LZ4, lz4_run(1, 4096))]))
    dirty[-1] = 1
    pages("padding of data", bytes(dirty))

    def state(name, payload):
        in_epoch("STATE " + name, lambda s: s.record(STATE, payload, 1))

    state("too short", b"")
    state("raw_bytes 0", state_payload(0, b"x" * 8, raw_bytes=0))
    state("raw_bytes over", state_payload(0, b"x" * 8, LZ4, raw_bytes=262145))
    state("gap", state_payload(8, b"x" * 8))
    state("kind 0", state_payload(0, b"x" * 8, 0))
    state("kind 3", state_payload(0, b"x" * 8, 3))
    state("raw of another size", state_payload(0, b"x" * 8, raw_bytes=16))
    state("lz4 of another size", state_payload(0, b"x" * 999, LZ4, lz4_run(1, 1000)))
    state("data_bytes over the payload", state_payload(0, b"x" * 8, data_bytes=100))
    state("padding", state_payload(0, b"x" * 3)[:-1] + b"\1")
    add("EPOCH_END state over 64 MiB",
        lambda s: s.epoch_begin(1, True) + s.epoch_end(1, state_bytes=(64 << 20) + 1))
    return out


def broken_epochs():
    """Broken streams whose single records are fine: what a session has to see. @return [(name, bytes)]"""
    out = []

    def add(name, make):
        s, head = greeted()
        out.append((name, head + make(s)))

    one = [(1, ZERO, b"")]
    add("first epoch is not 1", lambda s: s.epoch_begin(2, True))
    add("first epoch is not FULL", lambda s: s.epoch_begin(1, False))
    add("epoch skipped", lambda s: s.epoch_begin(1, True) + s.epoch_end(1) + s.epoch_begin(3, False))
    add("epoch within epoch", lambda s: s.epoch_begin(1, True) + s.epoch_begin(2, False))
    add("pages outside an epoch", lambda s: s.pages(1, one))
    add("pages of another epoch", lambda s: s.epoch_begin(1, True) + s.pages(2, one))
    add("page twice", lambda s: s.epoch_begin(1, True) + s.epoch_end(1) + s.epoch_begin(2, False) +
        s.pages(2, one) + s.pages(2, one))
    add("pages count", lambda s: s.epoch_begin(1, True) + s.pages(1, one) + s.epoch_end(1, pages=2))
    add("state count", lambda s: s.epoch_begin(1, True) + s.state(1, b"x") + s.epoch_end(1, state_bytes=2))
    add("digest", lambda s: s.epoch_begin(1, True) + s.pages(1, one) + s.epoch_end(1, digest=1))
    add("end without begin", lambda s: s.epoch_end(1))
    return out


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description="make Pollux streams for tests")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sample", action="store_true", help="a valid stream of an active")
    what.add_argument("--broken-list", action="store_true", help="every stream with a broken record")
    args = parser.parse_args()
    if args.sample:
        sys.stdout.buffer.write(sample())
        return 0
    for name, data in broken_records():
        sys.stdout.buffer.write(struct.pack("<I", len(name)) + name.encode() + struct.pack("<I", len(data)) + data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
