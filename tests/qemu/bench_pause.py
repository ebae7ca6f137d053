#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
#
# bench_pause.py - how long a capture pauses the guest, against copying the same pages with memcpy
#
# Usage: POLLUX_QEMU=... tests/qemu/bench_pause.py [--json] [--epochs N] [--accel tcg|kvm]
#        [--machine M] [--linux] [--interval-ms MS] [--pages N...]
# Prints, for an idle guest and for guests that dirty N pages per epoch, the pause (p50, p99) and
# where its time goes; and the ratio of the pause to (idle pause + N x one thread's 4 KiB memcpy),
# where the memcpy is measured between the captures, on cold pages, in this process.  On a machine
# that does other work meanwhile the medians say little; then compare the ratio of the two p10.

import argparse
import ctypes
import json
import mmap
import os
import random
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from support import Test, capture_all, initial_sync, linux  # noqa: E402
from vm import PAGE, Shadow  # noqa: E402

PARTS = ("stop-ns", "sync-ns", "copy-ns", "state-ns", "start-ns")
MEMCPY_PAGES = 2048


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]


class Memcpy:
    """One thread copies scattered cold pages into cold memory, 4 KiB at a time."""

    def __init__(self, mib=128):
        self.pages = mib * 256
        self.source = mmap.mmap(-1, mib << 20)
        self.target = mmap.mmap(-1, mib << 20)
        for memory in (self.source, self.target):
            for at in range(0, mib << 20, PAGE):
                memory[at] = 1
        self.address = [ctypes.addressof(ctypes.c_char.from_buffer(m))
                        for m in (self.source, self.target)]
        libc = ctypes.CDLL(None)
        libc.memcpy.restype = None
        libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self.memcpy = libc.memcpy
        self.rng = random.Random(1)
        # What calling through ctypes costs is not memcpy's: it is measured and taken off.
        self.overhead_ns = min(self._run(0) for _ in range(5))

    def _run(self, size):
        first = self.rng.randrange(self.pages - MEMCPY_PAGES)
        begin = time.perf_counter_ns()
        for page in range(first, first + MEMCPY_PAGES):
            self.memcpy(self.address[1] + page * PAGE, self.address[0] + page * PAGE, size)
        return (time.perf_counter_ns() - begin) / MEMCPY_PAGES

    def page_ns(self):
        return max(self._run(PAGE) - self.overhead_ns, 1.0)


def boot_sector(options, t, pages):
    """A guest that dirties `pages` pages again and again (0: it only waits)."""
    guest = {"pages": pages or 1, "lines": 1 << 24 if pages else 1, "idle": 0 if pages else 1 << 24}
    # It prints one line at most, so nobody waits for it: see measure().
    return t.vm(machine=options.machine, accel=options.accel, mem_mib=256, guest=guest)


def measure(options, pages, memcpy):
    """Captures of a guest, and memcpy between them; see Memcpy."""
    directory = tempfile.mkdtemp(prefix="pollux-bench-")
    t = Test(directory)
    try:
        linux_idle = options.linux and not pages
        vm = linux(t, 1, "idle") if linux_idle else boot_sector(options, t, pages)
        arena = t.arena(slots=2, slot_pages=max(16384, 2 * pages))
        shadow = Shadow(vm.start("active", arena))
        initial_sync(vm, arena, shadow)
        results, copies = [], []
        epoch, have = 2, 0
        deadline = time.monotonic() + 60 + options.epochs * 0.5
        while have < options.epochs:
            if time.monotonic() > deadline:
                raise TimeoutError("the guest did not dirty the pages it should")
            time.sleep(options.interval_ms / 1000)
            result = capture_all(vm, arena, shadow, epoch, slot=epoch % 2)
            epoch += 1
            # Until the boot sector runs, the BIOS does; Linux is never quite idle.
            if pages <= result["pages"] <= pages + (500 if linux_idle else 64):
                have += 1
                if have > 5:
                    results.append(result)
            if have % 4 == 0:
                copies.append(memcpy.page_ns())
        return results, copies
    finally:
        t.close()
        shutil.rmtree(directory)


def summary(pages, results, copies, idle_line):
    pauses = [r["pause-ns"] for r in results]
    line = {"dirty_pages": pages, "epochs": len(results),
            "pause_p50_us": percentile(pauses, 50) / 1000,
            "pause_p99_us": percentile(pauses, 99) / 1000,
            "pause_p10_us": percentile(pauses, 10) / 1000,
            "state_bytes": results[-1]["state-bytes"],
            "memcpy_page_ns": percentile(copies, 50),
            "memcpy_page_p10_ns": percentile(copies, 10)}
    for part in PARTS:
        line[part.replace("-ns", "_p50_us")] = percentile([r[part] for r in results], 50) / 1000
    if pages:
        for p, idle, page, name in ((50, "pause_p50_us", "memcpy_page_ns", "ratio"),
                                    (10, "pause_p10_us", "memcpy_page_p10_ns", "ratio_p10")):
            line[name] = percentile(pauses, p) / (idle_line[idle] * 1000 + pages * line[page])
    return line


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--interval-ms", type=float, default=25)
    parser.add_argument("--accel", default="tcg")
    parser.add_argument("--machine", default="pc")
    parser.add_argument("--linux", action="store_true",
                        help="the idle guest is Linux (POLLUX_GUEST_DIR), its drivers at work")
    parser.add_argument("--pages", type=int, nargs="*", default=[2000, 16000])
    options = parser.parse_args()
    memcpy = Memcpy()
    lines = []
    idle_line = None
    for pages in [0] + options.pages:
        results, copies = measure(options, pages, memcpy)
        line = summary(pages, results, copies, idle_line)
        if not pages:
            idle_line = line
        lines.append(line)
        if not options.json:
            print("%6d pages: pause p10 %6.0f p50 %6.0f p99 %6.0f us; stop %4.0f sync %4.0f copy "
                  "%6.0f state %4.0f start %4.0f; state %d bytes; memcpy %.0f ns/page%s" %
                  (pages, line["pause_p10_us"], line["pause_p50_us"], line["pause_p99_us"],
                   line["stop_p50_us"], line["sync_p50_us"], line["copy_p50_us"],
                   line["state_p50_us"], line["start_p50_us"], line["state_bytes"],
                   line["memcpy_page_ns"],
                   "; ratio %.2f, at p10 %.2f" % (line["ratio"], line["ratio_p10"])
                   if pages else ""), flush=True)
    if options.json:
        print(json.dumps({"machine": options.machine, "accel": options.accel, "results": lines},
                         indent=1))
    return 0


sys.exit(main())
