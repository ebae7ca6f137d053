#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""bootsector_watch.py - follows the boot-sector guest on the wire: was anything lost?

Owns: one AF_PACKET socket on one interface. Never sends.

Every frame of bootsector.S carries a counter that rises by a fixed stride, and an error word that
the guest sets when its own memory is not what it wrote. Three things are wrong:

  backwards  a counter not above one already seen: a state that had been seen outside was lost
  error      the guest found its memory wrong
  gap        frames are missing. Ethernet may lose frames, and a host that dies between commit and
             release loses the held ones, so a failover may cost a gap: --max-gaps says how many

Prints one JSON object per frame (--quiet: only faults) and a summary as the last line.
Exit status: 0 all well, 1 a fault, 2 too few frames before the deadline or frames lost by this
reader itself (no verdict), 64 wrong usage.
"""
import argparse
import json
import signal
import socket
import struct
import sys
import time

ETHERTYPE = 0x88B5
FRAME = struct.Struct("<6s6s2s4sIQI")  # as in bootsector.S
MAGIC = b"PLXB"
SECTOR_BYTES = 512
DISK_EVERY = 1024  # steps from one sector write to the next
DISK_SECTORS = 64
SOL_PACKET = 263
PACKET_STATISTICS = 6


def parse_frame(data):
    """A frame or a sector's start as (mac, error, counter, stride); None if it is not ours."""
    if len(data) < FRAME.size:
        return None
    _, mac, ethertype, magic, error, counter, stride = FRAME.unpack_from(data)
    if ethertype != b"\x88\xb5" or magic != MAGIC:
        return None
    return mac.hex(":"), error, counter, stride


class Sequence:
    """What has been seen of one guest's counter, and what was wrong with it."""

    def __init__(self):
        self.frames = 0
        self.first = None
        self.last = None  # highest counter seen
        self.gaps = 0
        self.missing = 0  # frames that the gaps are made of
        self.backwards = 0
        self.errors = 0
        self.max_silence_ms = 0.0
        self._last_at = None

    def feed(self, error, counter, stride, at):
        """Takes one frame seen at second `at`; returns the faults in it, a list of words."""
        faults = []
        if error or stride == 0 or counter % stride:
            self.errors += 1
            faults.append("error")
        if self.last is None:
            self.first = self.last = counter
        elif counter <= self.last:
            self.backwards += 1
            faults.append("backwards")
        else:
            if stride and counter - self.last != stride:
                self.gaps += 1
                self.missing += (counter - self.last) // stride - 1
                faults.append("gap")
            self.last = counter
        if self._last_at is not None:
            self.max_silence_ms = max(self.max_silence_ms, (at - self._last_at) * 1000)
        self._last_at = at
        self.frames += 1
        return faults

    def good(self, max_gaps=0):
        return not self.backwards and not self.errors and self.gaps <= max_gaps

    def summary(self):
        return {
            "frames": self.frames, "first": self.first, "last": self.last, "gaps": self.gaps,
            "missing": self.missing, "backwards": self.backwards, "errors": self.errors,
            "max_silence_ms": round(self.max_silence_ms, 1),
        }


def check_disk(path, last):
    """Checks the sectors the guest wrote against the last counter seen on the wire.

    A sector is written before the frame with its counter leaves, so the disk must hold the newest
    multiple of DISK_EVERY at or below `last`, and every sector the newest write of its turn.
    Returns a list of sentences, empty when all is well.
    """
    found = {}
    with open(path, "rb") as disk:
        for i in range(DISK_SECTORS):
            disk.seek((1 + i) * SECTOR_BYTES)
            parsed = parse_frame(disk.read(SECTOR_BYTES))
            if parsed:
                found[i] = parsed[2]
    due = last // DISK_EVERY
    if not found:
        return ["no sector of the guest's on the disk"]
    newest = max(found.values()) // DISK_EVERY
    faults = []
    if newest < due:
        faults.append(f"newest sector holds write {newest}, but a frame after write {due} was seen")
    for i in range(DISK_SECTORS):
        want = newest - (newest - i) % DISK_SECTORS
        have = found.get(i)
        if want >= 0 and have != want * DISK_EVERY:
            faults.append(f"sector {1 + i} holds counter {have}, not {want * DISK_EVERY}")
    return faults


def watch(args, stop):
    """Follows the wire until enough was seen, the deadline or a signal; returns the exit status."""
    # Protocol 0: bind() puts it on the wire, once; taken off and put on again, it would miss the frames between.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((args.interface, ETHERTYPE))
    seq = Sequence()
    mac = args.mac.lower() if args.mac else None
    begin = time.monotonic()
    deadline = begin + args.seconds
    while not stop and (args.frames is None or seq.frames < args.frames):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock.settimeout(min(left, 0.5))
        try:
            data = sock.recv(2048)
        except socket.timeout:
            continue
        at = time.monotonic()
        parsed = parse_frame(data)
        if parsed is None or (mac is not None and parsed[0] != mac):
            continue
        mac = parsed[0]
        faults = seq.feed(*parsed[1:], at)
        if faults or not args.quiet:
            print(json.dumps({"t": round(at - begin, 6), "counter": parsed[2], "error": parsed[1],
                              "faults": faults}), flush=bool(faults))
    dropped = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    summary = seq.summary()
    summary.update(mac=mac, dropped_by_reader=dropped, disk=None)
    status = 0 if seq.good(args.max_gaps) else 1
    if args.disk and seq.last is not None:
        summary["disk"] = check_disk(args.disk, seq.last)
        if summary["disk"]:
            status = 1
    enough = seq.frames >= (args.min_frames if args.frames is None else args.frames)
    if status == 0 and (dropped or not enough):
        status = 2
    summary["verdict"] = {0: "good", 1: "fault", 2: "no verdict"}[status]
    print(json.dumps(summary), flush=True)
    return status


def main():
    parser = argparse.ArgumentParser(description="Follow the boot-sector guest on an interface.")
    parser.add_argument("interface")
    parser.add_argument("--seconds", type=float, default=10, help="deadline (default 10)")
    parser.add_argument("--frames", type=int, help="stop after so many frames")
    parser.add_argument("--min-frames", type=int, default=100,
                        help="fewer than this by the deadline is no verdict (default 100)")
    parser.add_argument("--max-gaps", type=int, default=0, help="gaps allowed (default 0)")
    parser.add_argument("--mac", help="the guest's address (default: that of the first frame)")
    parser.add_argument("--disk", help="raw image of the guest's ATA disk, checked at the end")
    parser.add_argument("--quiet", action="store_true", help="print faults and the summary only")
    try:
        args = parser.parse_args()
    except SystemExit as stop:
        sys.exit(64 if stop.code else 0)
    stop = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.append(1))
    sys.exit(watch(args, stop))


if __name__ == "__main__":
    main()
