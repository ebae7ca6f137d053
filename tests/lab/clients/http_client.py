#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""http_client.py - curl in a loop against the guest's nginx: every page fetched, each on a
connection of its own

Runs in the lab's client host. Owns curl processes, one at a time, each fetching --batch pages with
"Connection: close" and no retries, and a folder for the pages. Every page is compared with what it
must be (guest/build makes them: 128 lines "page NNN line LLL pollux-guest."). A failure is a
transfer that curl reports as failed, a status other than 200, or a wrong page.

Each line of --out is {"page", "at_ns" (its end, monotonic), "ns" (its length), "status", "error"}.
--progress N prints {"requests": ...} after every N requests. Ends by --count, --seconds, SIGTERM
or SIGINT (after the transfer in hand); the last line on stdout is the summary. Exit status: 0 no
request failed, 1 some did, 2 none was made, 64 wrong usage.
"""
import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from incr_client import distribution_us, parse

PAGES = 200
WRITE_OUT = "%{stderr}%{http_code} %{exitcode} %{time_total} %{num_connects} %{urlnum}\\n"


def expected_page(number):
    return "".join(
        f"page {number:03} line {line:03} pollux-guest.\n" for line in range(128)
    ).encode()


class Run:
    """All requests of one run."""

    def __init__(self, args, out, folder, stop):
        self.args = args
        self.out = out
        self.folder = folder
        self.stop = stop
        self.requests = 0
        self.failed = 0
        self.reused = 0
        self.failures = []
        self.seconds_ns = []
        self.max_gap_ns = 0
        self.last_good_ns = None

    def batch(self, pages, deadline):
        """One curl with these pages; returns when it ended, or after the page in hand when told to
        stop.
        """
        lines = []
        for number in pages:
            lines += [
                f'url = "http://{self.args.host}:{self.args.port}/{number:03}.html"',
                f'output = "{self.folder}/{number:03}.html"',
            ]
        argv = [
            "curl",
            "--silent",
            "--no-progress-meter",
            "--header",
            "Connection: close",
            "--max-time",
            str(self.args.request_timeout),
            "--write-out",
            WRITE_OUT,
            "--config",
            "-",
        ]
        curl = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            curl.stdin.write("\n".join(lines).encode())
            curl.stdin.close()
            pending = list(pages)
            data = b""
            while pending and not self.stop:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([curl.stderr], [], [], min(left, 0.2))[0]:
                    if left <= 0:
                        break
                    continue
                part = os.read(curl.stderr.fileno(), 65536)
                if not part:
                    break
                *complete, data = (data + part).split(b"\n")
                for line in complete:
                    if pending:
                        self.take(pending.pop(0), line.decode("ascii", "replace").split())
            if pending and not self.stop and time.monotonic() < deadline:
                self.fail(pending[0], f"curl ended without fetching it: {data[:100]!r}")
        finally:
            curl.kill()
            curl.wait()
            curl.stderr.close()

    def take(self, number, fields):
        """One transfer ended: what curl said of it."""
        at = time.monotonic_ns()
        self.requests += 1
        error = None
        path = f"{self.folder}/{number:03}.html"
        if len(fields) != 5:
            error = f"curl said {fields}"
        elif fields[0] != "200" or fields[1] != "0":
            error = f"status {fields[0]}, curl's exit code {fields[1]}"
        else:
            with open(path, "rb") as file:
                if file.read() != expected_page(number):
                    error = "wrong content"
        if os.path.exists(path):
            os.unlink(path)  # so that no later transfer is judged by this one's page
        spent_ns = None if error else int(float(fields[2]) * 1e9)
        self.out.write(
            json.dumps(
                {"page": number, "at_ns": at, "ns": spent_ns, "status": fields[:1], "error": error}
            )
            + "\n"
        )
        if error:
            self.requests -= 1
            self.fail(number, error)
        else:
            self.seconds_ns.append(spent_ns)
            self.reused += fields[3] != "1"
            if self.last_good_ns is not None:
                self.max_gap_ns = max(self.max_gap_ns, at - self.last_good_ns)
            self.last_good_ns = at
        if self.args.progress and self.requests % self.args.progress == 0:
            self.out.flush()
            print(
                json.dumps({"requests": self.requests, "failed": self.failed, "at_ns": at}),
                flush=True,
            )

    def fail(self, number, error):
        self.requests += 1
        self.failed += 1
        if len(self.failures) < 20:
            self.failures.append({"page": number, "at_ns": time.monotonic_ns(), "error": error})

    def summary(self):
        return {
            "requests": self.requests,
            "failed": self.failed,
            "failures": self.failures,
            "reused_connections": self.reused,
            "max_gap_ms": round(self.max_gap_ns / 1e6, 1),
            "request_us": distribution_us(self.seconds_ns),
            "good": self.requests > 0 and not self.failed and not self.reused,
        }


def main():
    parser = argparse.ArgumentParser(description="curl in a loop against the guest's nginx.")
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument(
        "--out", default="/dev/null", metavar="FILE", help="JSON lines, one per request"
    )
    parser.add_argument("--count", type=int, help="end after so many requests")
    parser.add_argument("--seconds", type=float, default=120, help="deadline for all (default 120)")
    parser.add_argument(
        "--request-timeout",
        type=float,
        default=30,
        metavar="S",
        help="for one request (default 30)",
    )
    parser.add_argument(
        "--batch", type=int, default=PAGES, help="requests per curl process (default 200)"
    )
    parser.add_argument(
        "--progress", type=int, metavar="N", help="print a line after every N requests"
    )
    args = parse(parser)
    if not shutil.which("curl"):
        print("http_client: curl is missing (Debian package curl)", file=sys.stderr)
        sys.exit(2)
    stop = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.append(1))
    deadline = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory(prefix="pollux-http-") as folder, open(
        args.out, "w", encoding="utf-8"
    ) as out:
        run = Run(args, out, folder, stop)
        next_page = 0
        while (
            not stop
            and time.monotonic() < deadline
            and (args.count is None or run.requests < args.count)
        ):
            size = args.batch if args.count is None else min(args.batch, args.count - run.requests)
            run.batch([(next_page + i) % PAGES for i in range(min(size, PAGES))], deadline)
            next_page = (next_page + size) % PAGES
        summary = run.summary()
    print(json.dumps(summary), flush=True)
    sys.exit(2 if not summary["requests"] else 0 if summary["good"] else 1)


if __name__ == "__main__":
    main()
