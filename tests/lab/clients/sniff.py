#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""sniff.py - notes when frames of one MAC address pass an interface, to the microsecond

Runs in the lab's client host. Owns one AF_PACKET socket with a filter for the source address in
the kernel, and, with --probe, one raw socket that sends an ICMP echo request every --probe-ms: the
guest's answers show when it lives, more finely than a TCP client whose retransmission waits for
200 ms and more.

Each line of --out is {"at_ns", "type", "length"}: the kernel's time stamp as monotonic
nanoseconds, and one of
  rarp           the switch is told of a new place, by who promoted the guest or by the guest
  arp-announce, nd-announce
                 an address is announced: gratuitous ARP, unsolicited advertisement
  arp nd icmp tcp udp ipv4 ipv6 test other
                 the guest talks (test: the boot sector's ethertype 0x88b5)
The last line on stdout is the summary with counts by type; `dropped` frames were lost by this
reader. Ends by --count, --seconds, SIGTERM or SIGINT. Exit status: 0, 2 no frame seen, 64 wrong
usage.
"""
import argparse
import ctypes
import json
import select
import signal
import socket
import struct
import sys
import time

ETH_P_ALL = 3
SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
SOL_PACKET = 263
PACKET_STATISTICS = 6
ANNOUNCEMENTS = ("rarp", "arp-announce", "nd-announce")


def frame_type(data):
    """The word for a frame, from its first bytes."""
    kind = data[12:14]
    if kind == b"\x80\x35":
        return "rarp"
    if kind == b"\x08\x06":
        # Sender and target protocol address the same: gratuitous, request or reply.
        return "arp-announce" if len(data) >= 42 and data[28:32] == data[38:42] else "arp"
    if kind == b"\x08\x00":
        return {1: "icmp", 6: "tcp", 17: "udp"}.get(data[23] if len(data) > 23 else None, "ipv4")
    if kind == b"\x86\xdd":
        if len(data) < 62 or data[20] != 58:
            return {6: "tcp", 17: "udp"}.get(data[20] if len(data) > 20 else None, "ipv6")
        if data[54] == 136:
            return "nd" if data[58] & 0x40 else "nd-announce"  # flag S: solicited
        return "icmp" if data[54] in (128, 129) else "nd"
    return "test" if kind == b"\x88\xb5" else "other"


def attach_source_filter(sock, mac):
    """Lets only frames with this source address through (classic BPF), so that nothing else costs
    time.
    """
    high, low = struct.unpack(">IH", mac)
    program = [
        (0x20, 0, 0, 6),  # ld  [6]
        (0x15, 0, 3, high),  # jeq high, else drop
        (0x28, 0, 0, 10),  # ldh [10]
        (0x15, 0, 1, low),  # jeq low, else drop
        (0x06, 0, 0, 0x40000),  # accept
        (0x06, 0, 0, 0),
    ]  # drop
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    sock.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code))
    )


def realtime_to_monotonic_ns():
    """What to add to a CLOCK_REALTIME stamp: the best of several pairs of readings."""
    best = None
    for _ in range(20):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        if best is None or after - before < best[0]:
            best = (after - before, (before + after) // 2 - real)
    return best[1]


def open_socket(interface, mac):
    sock = socket.socket(
        socket.AF_PACKET, socket.SOCK_RAW, 0
    )  # protocol 0: nothing arrives before the filter is there
    attach_source_filter(sock, mac)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    sock.bind((interface, ETH_P_ALL))
    return sock


def stamp_ns(ancillary):
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", data[:16])
            return seconds * 1_000_000_000 + nanoseconds
    return None


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Probe:
    """ICMP echo requests at a fixed pace; answers are seen on the wire, not read here."""

    def __init__(self, address, period_ms):
        self.period_ns = int(period_ms * 1e6)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # answers are not wanted here
        self.sock.setblocking(False)
        self.address = address
        self.next_ns = time.monotonic_ns()
        self.sent = 0

    def wait_s(self):
        return max(0.0, (self.next_ns - time.monotonic_ns()) / 1e9)

    def send_if_due(self):
        now = time.monotonic_ns()
        if now < self.next_ns:
            return
        self.next_ns = max(self.next_ns + self.period_ns, now)
        body = struct.pack(">HH8s", 0x504C, self.sent & 0xFFFF, b"pollux\0\0")
        head = struct.pack(">BBH", 8, 0, checksum(b"\x08\0\0\0" + body))
        try:
            self.sock.sendto(head + body, (self.address, 0))
            self.sent += 1
        except OSError:
            pass  # no neighbour entry at the moment: the next one may go


def run(args, out, stop, wakeup, probing):
    sock = open_socket(args.interface, bytes.fromhex(args.mac.replace(":", "")))
    probe = Probe(args.probe, args.probe_ms) if args.probe else None
    offset = realtime_to_monotonic_ns()
    counts = {}
    frames = 0
    end = time.monotonic() + args.seconds
    print(json.dumps({"ready": True}), flush=True)
    while not stop and (args.count is None or frames < args.count):
        left = end - time.monotonic()
        if left <= 0:
            break
        if probe and probing:
            probe.send_if_due()
            left = min(left, probe.wait_s())
        ready = select.select([sock, wakeup], [], [], left)[0]
        if wakeup in ready:
            wakeup.recv(64)
        if sock not in ready:
            continue
        data, ancillary, _, _ = sock.recvmsg(128, 256)
        kind = frame_type(data)
        at = stamp_ns(ancillary)
        at = time.monotonic_ns() if at is None else at + offset
        out.write(f'{{"at_ns": {at}, "type": "{kind}", "length": {len(data)}}}\n')
        counts[kind] = counts.get(kind, 0) + 1
        frames += 1
    dropped = struct.unpack("II", sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    return {
        "frames": frames,
        "types": counts,
        "dropped": dropped,
        "probes": probe.sent if probe else 0,
    }


def main():
    parser = argparse.ArgumentParser(
        description="Note when frames of one MAC address pass an interface."
    )
    parser.add_argument("interface")
    parser.add_argument("--mac", required=True, help="source address of the frames")
    parser.add_argument(
        "--out", default="/dev/null", metavar="FILE", help="JSON lines, one per frame"
    )
    parser.add_argument("--count", type=int, help="end after so many frames")
    parser.add_argument("--seconds", type=float, default=600, help="deadline (default 600)")
    parser.add_argument(
        "--probe", metavar="ADDRESS", help="send ICMP echo requests to this IPv4 address"
    )
    parser.add_argument(
        "--probe-ms", type=float, default=20, help="one in so many milliseconds (default 20)"
    )
    parser.add_argument(
        "--probe-on-signal",
        action="store_true",
        help="begin with the probes at SIGUSR1, not before",
    )
    try:
        args = parser.parse_args()
        bytes.fromhex(args.mac.replace(":", ""))
    except SystemExit as stop:
        sys.exit(64 if stop.code else 0)
    stop, probing = [], [] if args.probe_on_signal else [1]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.append(1))
    signal.signal(signal.SIGUSR1, lambda *_: probing.append(1))
    wakeup, signalled = socket.socketpair()  # so that a signal ends the wait at once
    signalled.setblocking(False)
    signal.set_wakeup_fd(signalled.fileno())
    with open(args.out, "w", encoding="utf-8") as out:
        summary = run(args, out, stop, wakeup, probing)
    print(json.dumps(summary), flush=True)
    sys.exit(0 if summary["frames"] else 2)


if __name__ == "__main__":
    main()
