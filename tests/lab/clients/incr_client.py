#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""incr_client.py - one connection to Redis, INCR after INCR, every reply noted and checked

Runs in the lab's client host. Owns one TCP connection and one JSON-lines file. The next command is
sent only when the last one is answered, so each reply must be the last one plus 1, and at the end
at most one command is without an answer.

Each line of --out is {"value", "sent_ns", "received_ns"} (monotonic) or {"event", "at_ns", ...}. A
connection that breaks is never replaced silently: it is an event, and it ends the run, unless
--reconnect says that the client shall connect again; each time is counted. A reply that does not
come within --reply-timeout counts as a broken connection.

What is wrong is counted in the summary: `repeated`, acknowledged increments that the server later
gave out again, so they had been lost; `skipped`, values that nobody was told. After a reconnect
one value may be missing: that of the command whose reply never came.

--progress N prints {"acked": ...} after every N replies. Ends by --count, --seconds, SIGTERM or
SIGINT; the last line on stdout is the summary. Exit status: 0 every reply as it must be on one
connection, 1 not so, 2 no reply at all, 64 wrong usage.
"""
import argparse
import json
import select
import signal
import socket
import sys
import time

MAX_REPLY = 4096


def percentile(values, share):
    """The smallest value that at least `share` of the sorted values are not above."""
    return values[min(len(values) - 1, max(0, -(-len(values) * share // 100) - 1))]


def distribution_us(values_ns):
    """{p50, p99, max, count} in microseconds."""
    if not values_ns:
        return {"p50": None, "p99": None, "max": None, "count": 0}
    values = sorted(values_ns)
    return {
        "p50": round(percentile(values, 50) / 1000, 1),
        "p99": round(percentile(values, 99) / 1000, 1),
        "max": round(values[-1] / 1000, 1),
        "count": len(values),
    }


class Tally:
    """What the replies say: feed() each value, in the order of arrival."""

    def __init__(self):
        self.acked = 0
        self.first = None
        self.last = None  # the newest value
        self.highest = None
        self.repeated = 0
        self.skipped = 0
        self.reconnects = 0
        self._may_skip = 0

    def reconnected(self, in_flight):
        self.reconnects += 1
        self._may_skip += 1 if in_flight else 0

    def feed(self, value):
        """Returns a word if the value is wrong: 'repeated' or 'skipped'."""
        fault = None
        self.acked += 1
        if self.last is None:
            self.first = self.highest = value
        else:
            expected = self.last + 1
            if value < expected:
                self.repeated += expected - value
                fault = "repeated"
            elif value > expected + self._may_skip:
                self.skipped += value - expected - self._may_skip
                fault = "skipped"
        self._may_skip = 0
        self.last = value
        self.highest = max(self.highest, value)
        return fault

    def good(self):
        return self.acked > 0 and not (self.repeated or self.skipped or self.reconnects)


class Broken(Exception):
    """The connection is of no more use."""


class Connection:
    """One RESP connection; replies are integers. `stop` is looked at while waiting."""

    def __init__(self, args, stop):
        self.args = args
        self.stop = stop
        try:
            self.sock = socket.create_connection((args.host, args.port), args.reply_timeout)
        except OSError as error:
            raise Broken(f"connect: {error}") from None
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)

    def close(self):
        self.sock.close()

    def ask(self, *words):
        """Sends one command; returns (reply, sent_ns, received_ns), reply None when told to stop
        meanwhile.
        """
        data = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
        sent = time.monotonic_ns()
        deadline = sent + int(self.args.reply_timeout * 1e9)
        try:
            self.sock.send(
                data.encode()
            )  # some tens of bytes into an empty buffer: all or an error
            reply = b""
            while not reply.endswith(b"\r\n"):
                left = (deadline - time.monotonic_ns()) / 1e9
                if left <= 0:
                    raise Broken(f"no reply within {self.args.reply_timeout:g} s")
                if not select.select([self.sock], [], [], min(left, 0.2))[0]:
                    if self.stop and time.monotonic() > self.stop[0] + self.args.grace:
                        return None, sent, None
                    continue
                part = self.sock.recv(MAX_REPLY)
                if not part:
                    raise Broken("the server closed the connection")
                reply += part
                if len(reply) > MAX_REPLY:
                    raise Broken("a reply longer than any this command has")
            received = time.monotonic_ns()
        except OSError as error:
            raise Broken(str(error)) from None
        if not reply.startswith(b":") or reply.count(b"\r\n") != 1:
            raise Broken(f"not an integer reply: {reply[:60]!r}")
        return int(reply[1:-2]), sent, received


def run(args, out, stop):
    """The loop; returns the summary."""
    tally = Tally()
    rtts = []
    faults = []
    errors = []
    max_gap_ns = 0
    unanswered = False
    end = time.monotonic() + args.seconds
    connection = None
    last_received = None

    def note(**event):
        out.write(json.dumps(event) + "\n")

    def broken(error, in_flight):
        """Notes a broken connection; says whether to go on."""
        errors.append(str(error))
        note(event="broken", at_ns=time.monotonic_ns(), error=str(error))
        if (
            args.reconnect
            and len(errors) <= args.max_reconnects
            and not stop
            and time.monotonic() < end
        ):
            if tally.acked:
                tally.reconnected(in_flight)
            return True
        return False

    while not stop and time.monotonic() < end and (args.count is None or tally.acked < args.count):
        if connection is None:
            try:
                connection = Connection(args, stop)
                note(
                    event="connected",
                    at_ns=time.monotonic_ns(),
                    local_port=connection.sock.getsockname()[1],
                )
            except Broken as error:
                if not broken(error, False):
                    break
                continue
        try:
            value, sent, received = connection.ask("INCR", args.key)
        except Broken as error:
            connection.close()
            connection = None
            unanswered = True
            if not broken(error, True):
                break
            continue
        if value is None:
            unanswered = True
            note(event="unanswered", at_ns=time.monotonic_ns(), sent_ns=sent)
            break
        unanswered = False
        out.write(f'{{"value": {value}, "sent_ns": {sent}, "received_ns": {received}}}\n')
        fault = tally.feed(value)
        if fault:
            faults.append({"fault": fault, "value": value, "at_ns": received})
            note(event=fault, at_ns=received, value=value)
        rtts.append(received - sent)
        if last_received is not None:
            max_gap_ns = max(max_gap_ns, received - last_received)
        last_received = received
        if args.progress and tally.acked % args.progress == 0:
            out.flush()
            print(
                json.dumps(
                    {
                        "acked": tally.acked,
                        "value": value,
                        "at_ns": received,
                        "reconnects": tally.reconnects,
                    }
                ),
                flush=True,
            )
    if connection:
        connection.close()
    return {
        "acked": tally.acked,
        "first": tally.first,
        "last": tally.last,
        "highest": tally.highest,
        "repeated": tally.repeated,
        "skipped": tally.skipped,
        "reconnects": tally.reconnects,
        "faults": faults[:20],
        "errors": errors[:20],
        "unanswered": unanswered,
        "max_gap_ms": round(max_gap_ns / 1e6, 1),
        "rtt_us": distribution_us(rtts),
        "good": tally.good() and not errors,
    }


def parse(parser):
    """The arguments; ends the program with 64 where they are wrong."""
    try:
        return parser.parse_args()
    except SystemExit as stop:
        sys.exit(64 if stop.code else 0)


def main():
    parser = argparse.ArgumentParser(
        description="INCR on one connection to Redis; every reply noted and checked."
    )
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--key", default="pollux")
    parser.add_argument(
        "--out", default="/dev/null", metavar="FILE", help="JSON lines, one per reply"
    )
    parser.add_argument("--count", type=int, help="end after so many replies")
    parser.add_argument("--seconds", type=float, default=120, help="deadline for all (default 120)")
    parser.add_argument(
        "--reply-timeout", type=float, default=30, metavar="S", help="for one reply (default 30)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=5,
        metavar="S",
        help="for the last reply after a signal (default 5)",
    )
    parser.add_argument(
        "--reconnect",
        action="store_true",
        help="connect again when the connection breaks, and count it",
    )
    parser.add_argument("--max-reconnects", type=int, default=100)
    parser.add_argument(
        "--progress", type=int, metavar="N", help="print a line after every N replies"
    )
    args = parse(parser)
    stop = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.append(time.monotonic()))
    with open(args.out, "w", encoding="utf-8") as out:
        summary = run(args, out, stop)
    print(json.dumps(summary), flush=True)
    sys.exit(0 if summary["good"] else 2 if not summary["acked"] else 1)


if __name__ == "__main__":
    main()
