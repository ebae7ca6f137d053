#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""stream_reader - a second reader of the Pollux stream, written from docs/PROTOCOL.md alone

Owns every rule of that document, in Python and with its own XXH32, XXH64 and LZ4 block decoder, so that a
misreading in replicator/wire.c cannot hide in both. Never writes a stream (stream_writer.py does) and shares no
code with the C side.

    stream_reader.py [--active FILE] [--standby FILE] [--client FILE] [--witness FILE] [--summary] [--cut]

Each FILE holds the bytes that side sent on one connection ("-": standard input). With both sides of a connection, what
one says is held against the other. --cut: the connection was cut, so the last record may be incomplete and an epoch may
lack its end. Exit 0: every rule holds; 1: one is broken (it is printed); 2: usage.
"""
import argparse
import json
import re
import struct
import sys

MAGIC = 0x52584C50
HEADER = struct.Struct("<IHHIIQQQ")
PAGE = 4096
STATE_MAX = 64 << 20
VM_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]*\0+")
M32 = 0xFFFFFFFF
M64 = 0xFFFFFFFFFFFFFFFF


class StreamError(Exception):
    """A rule of the document that the stream breaks."""


def require(holds, rule):
    """Raise StreamError(rule) unless it holds."""
    if not holds:
        raise StreamError(rule)


# ---- digests and lz4, from their specifications ----

def xxh32(data, seed=0):
    """XXH32 as in the xxHash specification."""
    p1, p2, p3, p4, p5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
    n = len(data)
    whole = n & ~15
    if n >= 16:
        a, b, c, d = (seed + p1 + p2) & M32, (seed + p2) & M32, seed & M32, (seed - p1) & M32
        for w, x, y, z in struct.iter_unpack("<4I", memoryview(data)[:whole]):
            a = (a + w * p2) & M32
            a = ((a << 13 | a >> 19) & M32) * p1 & M32
            b = (b + x * p2) & M32
            b = ((b << 13 | b >> 19) & M32) * p1 & M32
            c = (c + y * p2) & M32
            c = ((c << 13 | c >> 19) & M32) * p1 & M32
            d = (d + z * p2) & M32
            d = ((d << 13 | d >> 19) & M32) * p1 & M32
        h = sum((v << r | v >> (32 - r)) & M32 for v, r in ((a, 1), (b, 7), (c, 12), (d, 18))) & M32
    else:
        h = (seed + p5) & M32
    h = (h + n) & M32
    while whole + 4 <= n:
        h = (h + int.from_bytes(data[whole:whole + 4], "little") * p3) & M32
        h = ((h << 17 | h >> 15) & M32) * p4 & M32
        whole += 4
    for byte in data[whole:]:
        h = (h + byte * p5) & M32
        h = ((h << 11 | h >> 21) & M32) * p1 & M32
    h = (h ^ h >> 15) * p2 & M32
    h = (h ^ h >> 13) * p3 & M32
    return h ^ h >> 16


def xxh64(data, seed=0):
    """XXH64 as in the xxHash specification."""
    p1, p2, p3, p4, p5 = (11400714785074694791, 14029467366897019727, 1609587929392839161,
                          9650029242287828579, 2870177450012600261)

    def rol(v, r):
        return (v << r | v >> (64 - r)) & M64

    def step(acc, lane):
        return rol((acc + lane * p2) & M64, 31) * p1 & M64

    n = len(data)
    at = n & ~31
    if n >= 32:
        acc = [(seed + p1 + p2) & M64, (seed + p2) & M64, seed & M64, (seed - p1) & M64]
        for lanes in struct.iter_unpack("<4Q", memoryview(data)[:at]):
            acc = [step(a, lane) for a, lane in zip(acc, lanes)]
        h = sum(rol(a, r) for a, r in zip(acc, (1, 7, 12, 18))) & M64
        for a in acc:
            h = ((h ^ step(0, a)) * p1 + p4) & M64
    else:
        h = (seed + p5) & M64
    h = (h + n) & M64
    while at + 8 <= n:
        h = (rol(h ^ step(0, int.from_bytes(data[at:at + 8], "little")), 27) * p1 + p4) & M64
        at += 8
    if at + 4 <= n:
        h = (rol(h ^ int.from_bytes(data[at:at + 4], "little") * p1 & M64, 23) * p2 + p3) & M64
        at += 4
    for byte in data[at:]:
        h = rol(h ^ byte * p5 & M64, 11) * p1 & M64
    h = (h ^ h >> 33) * p2 & M64
    h = (h ^ h >> 29) * p3 & M64
    return h ^ h >> 32


def lz4_decode(src, want):
    """Decode one lz4 block that must give exactly want bytes."""
    out = bytearray()
    at = 0

    def byte():
        nonlocal at
        require(at < len(src), "lz4: the block ends in the middle")
        at += 1
        return src[at - 1]

    def length(nibble):
        total = nibble
        while nibble == 15:
            more = byte()
            total += more
            if more != 255:
                break
        return total

    while True:
        token = byte()
        literals = length(token >> 4)
        require(at + literals <= len(src), "lz4: literals reach over the end of the block")
        out += src[at:at + literals]
        at += literals
        require(len(out) <= want, "lz4: the block decodes to more than it should")
        if at == len(src):
            break
        offset = byte() | byte() << 8
        require(0 < offset <= len(out), "lz4: a match reaches before the start")
        match = length(token & 15) + 4
        require(len(out) + match <= want, "lz4: the block decodes to more than it should")
        start = len(out) - offset
        if offset >= match:
            out += out[start:start + match]
        else:
            out += (bytes(out[start:]) * (match // offset + 1))[:match]
    require(len(out) == want, "lz4: the block decodes to less than it should")
    return bytes(out)


# ---- pieces that several records have ----

def align8(n):
    """Next multiple of 8."""
    return (n + 7) & ~7


def printable(text):
    """Whether decoded text has no control characters."""
    return not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text)


def vm_name(field):
    """The name in a 48-byte field."""
    require(VM_NAME.fullmatch(field), "VM name: [A-Za-z0-9][A-Za-z0-9._-]*, at most 47 bytes, zero padded")
    return field.rstrip(b"\0").decode()


def padded_text(data, what):
    """UTF-8 text with at most 7 zero bytes after it."""
    text = data.rstrip(b"\0")
    require(len(data) - len(text) <= 7, what + ": more padding than needed")
    require(b"\0" not in text, what + ": a zero byte in the text")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        raise StreamError(what + ": not UTF-8") from None


def zero(data, what):
    """Padding is zero."""
    require(not any(data), what + ": padding is not zero")


class Side:
    """One direction of one connection: checks record after record, keeps what later rules need."""

    # type: (name, senders, cap, exact size or None, what the header's numbers must be)
    TYPES = {
        1: ("HELLO", "as", 256, 88, ""), 2: ("LAYOUT", "as", 262144, None, "no epoch"),
        3: ("REFUSE", "as", 4096, None, "no epoch"), 4: ("HEARTBEAT", "as", 64, 24, ""),
        5: ("EPOCH_BEGIN", "a", 64, 16, "epoch"), 6: ("PAGES", "a", 278528, None, "epoch"),
        7: ("STATE", "a", 262208, None, "epoch"), 8: ("EPOCH_END", "a", 64, 40, "epoch"),
        9: ("ACK", "s", 0, 0, "epoch"), 10: ("GUEST_GONE", "a", 4096, None, ""),
        11: ("GUEST_ENDED", "a", 4096, None, ""), 13: ("APPLIED", "s", 0, 0, "epoch"),
        32: ("ARB_ASK", "c", 256, 112, "none"), 33: ("ARB_ANSWER", "w", 256, 112, "none"),
    }

    def __init__(self, side, decode_pages=True):
        self.side = side
        self.letter = side[0]
        self.decode_pages = decode_pages
        self.sequence = 0
        self.counts = {}
        self.bytes = 0
        self.hello = None
        self.layout = None
        self.blocks = []        # sizes in LAYOUT's ram: lines, in pages
        self.refused = None
        self.epoch = 0          # last begun or, for a standby, last acked
        self.generation = None  # of the epochs
        self.open_epoch = None
        self.complete = []      # epochs ended (active), acked (standby)
        self.applied = 0
        self.arb = []           # asks or answers
        self.pages = self.zero_pages = self.lz4_pages = self.raw_pages = 0

    def record(self, header, payload):
        """Check one record. @return what it says, for printing."""
        magic, kind, flags, length, checksum, generation, epoch, sequence = HEADER.unpack(header)
        require(magic == MAGIC, "header: magic")
        require(kind in self.TYPES, f"type {kind} is not legal in version 1")
        name, senders, cap, exact, numbers = self.TYPES[kind]
        require(self.letter in senders, f"{name} is not sent by the {self.side}")
        require(flags == 0, "header: flags are reserved")
        require(length % 8 == 0, "header: length is not a multiple of 8")
        require(length <= cap, f"{name}: longer than its cap")
        require(len(payload) == length, "the stream ends within a record")
        require(xxh32(header[:12] + b"\0\0\0\0" + header[16:] + payload) == checksum, "header: checksum")
        require(sequence == self.sequence, f"header: sequence {sequence}, expected {self.sequence}")
        require(exact is None or length == exact, f"{name}: size is not {exact}")
        require(numbers not in ("no epoch", "none") or epoch == 0, f"{name}: has no epoch")
        require(numbers != "none" or generation == 0, f"{name}: has no generation")
        require(numbers != "epoch" or epoch > 0, f"{name}: epochs are numbered from 1")
        self.order(name)
        self.sequence += 1
        self.counts[name] = self.counts.get(name, 0) + 1
        self.bytes += len(header) + length
        said = {"seq": sequence, "type": name, "generation": generation, "epoch": epoch, "length": length}
        more = getattr(self, "on_" + name.lower())(payload, generation, epoch, checksum)
        said.update(more or {})
        return said

    def order(self, name):
        """HELLO first, LAYOUT second, neither ever again; or a refusal at once; nothing after a refusal."""
        if self.letter in "cw":
            return
        require(self.refused is None, "a record after REFUSE")
        if self.sequence == 0:
            require(name in ("HELLO", "REFUSE"), "the first record is neither HELLO nor REFUSE")
        elif self.sequence == 1:
            require(name in ("LAYOUT", "REFUSE"), "the second record is not LAYOUT")
        else:
            require(name not in ("HELLO", "LAYOUT"), f"{name} came again")

    def on_hello(self, p, generation, epoch, _checksum):
        """HELLO."""
        low, high, role, instance, vm, features, flags, listen_port, boot = struct.unpack("<HHI16s48sIHHQ", p)
        require(1 <= low <= high, "HELLO: range of versions")
        require(role in (1, 2), "HELLO: role")
        require(role == (1 if self.letter == "a" else 2), "HELLO: role is not that of the sender")
        require(flags & ~1 == 0, "HELLO: reserved flags")
        self.hello = {"versions": [low, high], "role": role, "instance": instance.hex(), "vm": vm_name(vm),
                      "features": features, "flags": flags, "listen_port": listen_port, "boot": boot, "generation": generation,
                      "epoch": epoch}
        return self.hello

    def on_layout(self, p, *_):
        """LAYOUT."""
        text = padded_text(p, "LAYOUT")
        require(text == "" or text.endswith("\n"), "LAYOUT: last line is not ended")
        self.layout = {}
        last = None
        for line in text.split("\n")[:-1]:
            key, equals, value = line.partition("=")
            require(equals and key, "LAYOUT: a line is not key=value")
            require(printable(line), "LAYOUT: control characters")
            require(last is None or last < key.encode(), "LAYOUT: keys are not sorted, each once")
            last = key.encode()
            self.layout[key] = value
        self.blocks = [int(v) // PAGE for k, v in self.layout.items() if k.startswith("ram:")]
        return {"lines": len(self.layout)}

    def reason(self, p, name, codes):
        """u32 code, u32 reserved, text."""
        require(len(p) >= 8, name + ": too short")
        code, reserved = struct.unpack_from("<II", p)
        require(1 <= code <= codes, name + ": code")
        require(reserved == 0, name + ": reserved field")
        text = padded_text(p[8:], name)
        require(printable(text), name + ": control characters")
        return {"code": code, "text": text}

    def on_refuse(self, p, *_):
        """REFUSE."""
        self.refused = self.reason(p, "REFUSE", 10)
        return self.refused

    def on_guest_gone(self, p, *_):
        """GUEST_GONE."""
        return self.reason(p, "GUEST_GONE", 2)

    def on_guest_ended(self, p, *_):
        """GUEST_ENDED."""
        return self.reason(p, "GUEST_ENDED", 2)

    def on_heartbeat(self, p, *_):
        """HEARTBEAT."""
        sent, echo, state, reserved = struct.unpack("<QQII", p)
        require(reserved == 0, "HEARTBEAT: reserved field")
        return {"sent_ns": sent, "echo_ns": echo, "state": state}

    def on_epoch_begin(self, p, generation, epoch, _checksum):
        """EPOCH_BEGIN."""
        flags, reserved, reserved2 = struct.unpack("<IIQ", p)
        require(flags & ~1 == 0, "EPOCH_BEGIN: reserved flags")
        require(reserved == 0 and reserved2 == 0, "EPOCH_BEGIN: reserved fields")
        require(self.open_epoch is None, "EPOCH_BEGIN: the epoch before was not ended")
        require(self.generation in (None, generation), "EPOCH_BEGIN: generation changed on the connection")
        require(epoch == self.epoch + 1, "EPOCH_BEGIN: not one more than the last (the first is 1)")
        require(epoch > 1 or flags & 1, "EPOCH_BEGIN: the first after a connect is not FULL")
        self.generation = generation
        self.epoch = epoch
        self.open_epoch = {"full": bool(flags & 1), "pages": 0, "state": 0, "sums": bytearray(), "seen": set()}
        return {"full": bool(flags & 1)}

    def in_epoch(self, name, generation, epoch):
        """PAGES, STATE and EPOCH_END belong to the epoch that is open."""
        require(self.open_epoch is not None, name + ": outside an epoch")
        require(epoch == self.epoch and generation == self.generation, name + ": of another epoch")
        return self.open_epoch

    def on_pages(self, p, generation, epoch, checksum):
        """PAGES."""
        now = self.in_epoch("PAGES", generation, epoch)
        require(len(p) >= 16, "PAGES: too short")
        nr, codec, data_bytes, reserved = struct.unpack_from("<IIII", p)
        require(1 <= nr <= 64, "PAGES: nr_pages")
        require(codec == 1, "PAGES: codec")
        require(reserved == 0, "PAGES: reserved field")
        kinds_at = 16 + 8 * nr
        sizes_at = kinds_at + align8(nr)
        data_at = sizes_at + align8(2 * nr)
        end = data_at + data_bytes
        require(len(p) == align8(end), "PAGES: length does not follow from its fields")
        zero(p[kinds_at + nr:sizes_at] + p[sizes_at + 2 * nr:data_at] + p[end:], "PAGES")
        index = struct.unpack_from(f"<{nr}Q", p, 16)
        sizes = struct.unpack_from(f"<{nr}H", p, sizes_at)
        require(sum(sizes) == data_bytes, "PAGES: sizes do not add up to data_bytes")
        at = data_at
        for entry, kind, size in zip(index, p[kinds_at:kinds_at + nr], sizes):
            self.page(entry, kind, size, p[at:at + size], now)
            at += size
        now["pages"] += nr
        now["sums"] += struct.pack("<I", checksum)
        return {"pages": nr, "data": data_bytes}

    def page(self, entry, kind, size, data, now):
        """One page of a batch."""
        block, page = entry >> 40, entry & ((1 << 40) - 1)
        require(block < len(self.blocks), "PAGES: no such block")
        require(page < max(self.blocks), "PAGES: page is outside every block")
        require(now["full"] or entry not in now["seen"], "PAGES: a page twice in an epoch that is not FULL")
        now["seen"].add(entry)
        require(kind in (0, 1, 2), "PAGES: kind")
        require(kind != 0 or size == 0, "PAGES: a zero page has data")
        require(kind != 1 or size == PAGE, "PAGES: a raw page is not 4096 bytes")
        require(kind != 2 or 1 <= size <= 4095, "PAGES: an lz4 page is not 1 to 4095 bytes")
        if kind == 2 and self.decode_pages:
            lz4_decode(data, PAGE)
        self.pages += 1
        self.zero_pages += kind == 0
        self.raw_pages += kind == 1
        self.lz4_pages += kind == 2

    def on_state(self, p, generation, epoch, checksum):
        """STATE."""
        now = self.in_epoch("STATE", generation, epoch)
        require(len(p) >= 16, "STATE: too short")
        offset, raw, kind, data_bytes = struct.unpack_from("<IIII", p)
        require(1 <= raw <= 262144, "STATE: raw_bytes")
        require(offset == now["state"], "STATE: a gap or a repetition")
        require(offset + raw <= STATE_MAX, "STATE: over 64 MiB")
        require(kind in (1, 2), "STATE: kind")
        require(kind != 1 or data_bytes == raw, "STATE: raw, but not as long as it says")
        require(len(p) == 16 + align8(data_bytes), "STATE: length does not follow from its fields")
        zero(p[16 + data_bytes:], "STATE")
        if kind == 2:
            lz4_decode(p[16:16 + data_bytes], raw)
        now["state"] += raw
        now["sums"] += struct.pack("<I", checksum)
        return {"offset": offset, "raw_bytes": raw}

    def on_epoch_end(self, p, generation, epoch, _checksum):
        """EPOCH_END."""
        now = self.in_epoch("EPOCH_END", generation, epoch)
        pages, state, digest, packets, held = struct.unpack("<5Q", p)
        require(pages == now["pages"], f"EPOCH_END: says {pages} pages, {now['pages']} came")
        require(state == now["state"], f"EPOCH_END: says {state} bytes of state, {now['state']} came")
        require(digest == xxh64(bytes(now["sums"]), epoch), "EPOCH_END: digest")
        self.open_epoch = None
        self.complete.append(epoch)
        return {"pages": pages, "state_bytes": state, "held_packets": packets, "held_bytes": held}

    def on_ack(self, _p, generation, epoch, _checksum):
        """ACK."""
        require(self.generation in (None, generation), "ACK: generation changed on the connection")
        require(epoch == self.epoch + 1, "ACK: not one more than the last")
        self.generation = generation
        self.epoch = epoch
        self.complete.append(epoch)

    def on_applied(self, _p, generation, epoch, _checksum):
        """APPLIED."""
        require(generation == self.generation, "APPLIED: of another generation")
        require(self.applied < epoch <= self.epoch, "APPLIED: not acked, or not after the last one")
        self.applied = epoch

    def on_arb_ask(self, p, *_):
        """ARB_ASK."""
        op, reserved, vm, expect, following, holder, nonce, tag = struct.unpack("<II48sQQ16s16sQ", p)
        require(op in (1, 2), "ARB_ASK: op")
        require(reserved == 0, "ARB_ASK: reserved field")
        require(op != 2 or following > expect, "ARB_ASK: next is not greater than expect")
        said = {"op": op, "vm": vm_name(vm), "expect": expect, "next": following, "holder": holder.hex(),
                "nonce": nonce.hex(), "tag": tag}
        self.arb.append(said)
        return said

    def on_arb_answer(self, p, *_):
        """ARB_ANSWER."""
        result, reserved, vm, generation, reserved2, holder, nonce, tag = struct.unpack("<II48sQQ16s16sQ", p)
        require(1 <= result <= 4, "ARB_ANSWER: result")
        require(reserved == 0 and reserved2 == 0, "ARB_ANSWER: reserved fields")
        said = {"result": result, "vm": vm_name(vm), "register": generation, "holder": holder.hex(),
                "nonce": nonce.hex(), "tag": tag}
        self.arb.append(said)
        return said

    def summary(self):
        """What came, in one object."""
        return {"side": self.side, "bytes": self.bytes, "records": self.sequence, "types": self.counts,
                "epochs": len(self.complete), "last_epoch": self.epoch, "applied": self.applied,
                "pages": self.pages, "zero": self.zero_pages, "lz4": self.lz4_pages, "raw": self.raw_pages}


def read_side(side, stream, cut=False, each=None, decode_pages=True):
    """Read one direction to its end.

    @param side    "active", "standby", "client" or "witness": who sent it
    @param stream  binary file object
    @param cut     the connection was cut: incomplete ends are fine
    @param each    called with (side, what a record says), or None
    @return Side; raises StreamError with the record's place in its text
    """
    state = Side(side, decode_pages)
    while True:
        header = stream.read(HEADER.size)
        if not header or (cut and len(header) < HEADER.size):
            break
        place = f"record {state.sequence} at byte {state.bytes}"
        try:
            require(len(header) == HEADER.size, "the stream ends within a header")
            length = HEADER.unpack(header)[3]
            payload = stream.read(min(length, 1 << 21))
            if cut and len(payload) < length <= 278528:
                break
            said = state.record(header, payload)
        except StreamError as e:
            raise StreamError(f"{side}, {place}: {e}") from None
        if each:
            each(side, said)
    require(cut or state.open_epoch is None, f"{side}: the stream ends within an epoch")
    return state


def check_pair(active, standby):
    """Hold one side's words against the other's."""
    a, s = active.hello, standby.hello
    if a and s and not (active.refused or standby.refused):
        require(a["vm"] == s["vm"], "pair: two VM names and no REFUSE")
        require(a["instance"] != s["instance"], "pair: equal instances and no REFUSE")
        require(a["versions"][0] <= s["versions"][1] and s["versions"][0] <= a["versions"][1],
                "pair: no common version and no REFUSE")
        require(a["generation"] >= s["generation"], "pair: the standby is ahead and no REFUSE")
        if active.layout is not None and standby.layout is not None and active.complete:
            require(active.layout == standby.layout, "pair: layouts differ and epochs were sent")
    require(not standby.complete or standby.generation == active.generation, "pair: ACK of another generation")
    require(standby.epoch <= (active.complete[-1] if active.complete else 0), "pair: ACK of an epoch never ended")


def check_arbiter(client, witness):
    """One answer per ask, in order."""
    require(len(witness.arb) <= len(client.arb), "arbiter: more answers than asks")
    for ask, answer in zip(client.arb, witness.arb):
        require(ask["tag"] == answer["tag"] and ask["vm"] == answer["vm"], "arbiter: answer to another ask")
        require(answer["result"] != 1 or ask["op"] == 1, "arbiter: VALUE to a CAS")
        require(answer["result"] != 2 or ask["op"] == 2, "arbiter: GRANTED to a READ")
        if answer["result"] == 2:
            require((answer["register"], answer["holder"], answer["nonce"]) ==
                    (ask["next"], ask["holder"], ask["nonce"]), "arbiter: GRANTED, but not what was asked for")


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description="check a captured Pollux stream against docs/PROTOCOL.md")
    for side in ("active", "standby", "client", "witness"):
        parser.add_argument("--" + side, metavar="FILE", help=f"bytes that the {side} sent")
    parser.add_argument("--summary", action="store_true", help="one JSON object per side, not one per record")
    parser.add_argument("--cut", action="store_true", help="the connection was cut: incomplete ends are fine")
    args = parser.parse_args()
    paths = {s: getattr(args, s) for s in ("active", "standby", "client", "witness") if getattr(args, s)}
    if not paths:
        parser.error("no stream given")

    def show(side, said):
        print(json.dumps({"from": side, **said}))

    sides = {}
    try:
        for side, path in paths.items():
            stream = sys.stdin.buffer if path == "-" else open(path, "rb")
            with stream:
                sides[side] = read_side(side, stream, args.cut, None if args.summary else show)
        if "active" in sides and "standby" in sides:
            check_pair(sides["active"], sides["standby"])
        if "client" in sides and "witness" in sides:
            check_arbiter(sides["client"], sides["witness"])
    except StreamError as e:
        print(json.dumps({"error": str(e)}))
        return 1
    if args.summary:
        for state in sides.values():
            print(json.dumps(state.summary()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
