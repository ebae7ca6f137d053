# SPDX-License-Identifier: GPL-2.0-or-later
"""labround.py - one round of the demo: boot, pair, work, power loss, and what the client saw

Theory of operation. One client in the `client` host works from before the pairing until some
hundred replies after the failover, on one connection (redis), so the same connection lives through
everything; its replies are sorted into phases by their time stamps. A second process notes when
frames of the guest pass the client's interface and, from the kill on, sends it a ping every 20 ms,
so that the guest's first own packet is seen as such, and not only when a TCP retransmission happens
to ask for one. The kill comes at a random moment after protection began, taken from the round's
seed.

The kill's moment is taken before the first link is told to go down, so a failover time is never
too short. Owns a round's lab, its client processes and its folder of evidence. What is good and
what is not is said by judge_redis, judge_nginx and good, and nowhere else.
"""
import json
import os
import random
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time

import labnet
from lablib import Lab, deaf_to_signals
from labstate import LabError

CLIENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clients")
sys.path.append(CLIENTS)
from incr_client import distribution_us  # noqa: E402
from sniff import ANNOUNCEMENTS  # noqa: E402

KEY = "pollux"
KILL_AFTER_S = (0.5, 2.0)
PHASE_DEADLINE_S = 60
REPLIES = {
    "redis": {"before": 500, "after": 300, "progress": 25},
    "nginx": {"before": 50, "after": 50, "progress": 5},
}
END_DEADLINE_S = 15


class ClientProcess:
    """A client program in the client host that prints JSON lines."""

    def __init__(self, lab, name, program, *arguments):
        self.name = name
        self.errors = os.path.join(lab.path("client"), f"{name}.log")
        with open(self.errors, "wb") as log:
            self.process = subprocess.Popen(
                lab.command("client", [sys.executable, os.path.join(CLIENTS, program), *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._data = b""

    def line(self, timeout_s):
        """The next line as an object, None if none came in time; LabError at the program's end."""
        deadline = time.monotonic() + timeout_s
        fd = self.process.stdout.fileno()
        while b"\n" not in self._data:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            part = os.read(fd, 65536)
            if not part:
                with open(self.errors, encoding="utf-8", errors="replace") as log:
                    raise LabError(
                        f"client {self.name} ended early: "
                        f"{log.read()[-500:].strip() or 'it said nothing'}"
                    )
            self._data += part
        line, _, self._data = self._data.partition(b"\n")
        return json.loads(line)

    def wait(self, wanted, what, timeout_s=PHASE_DEADLINE_S):
        """Reads lines until wanted(line); returns that line."""
        deadline = time.monotonic() + timeout_s
        seen = None
        while True:
            left = deadline - time.monotonic()
            line = self.line(left) if left > 0 else None
            if line is None:
                raise LabError(
                    f"client {self.name}: {what} did not happen within {timeout_s:g} s; its last "
                    f"word was {seen}"
                )
            seen = line
            if "good" in line:
                raise LabError(f"client {self.name} ended before {what}: {json.dumps(line)[:600]}")
            if wanted(line):
                return line

    def finish(self, timeout_s=END_DEADLINE_S):
        """SIGTERM, and its summary, the last line."""
        self.process.send_signal(signal.SIGTERM)
        try:
            rest, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.close()
            raise LabError(f"client {self.name} did not end within {timeout_s:g} s") from None
        lines = [x for x in (self._data + rest).split(b"\n") if x]
        if not lines:
            raise LabError(
                f"client {self.name} ended without a summary (exit status "
                f"{self.process.returncode})"
            )
        return json.loads(lines[-1])

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def redis_get(lab, key):
    """GET on a connection of its own, from the client host: what the survivor holds. None when
    there is no such key.
    """

    def ask():
        with socket.create_connection((labnet.guest_ip(), 6379), 10) as sock:
            sock.settimeout(10)
            sock.sendall(f"*2\r\n$3\r\nGET\r\n${len(key)}\r\n{key}\r\n".encode())
            data = b""
            while data != b"$-1\r\n" and (not data.startswith(b"$") or data.count(b"\r\n") < 2):
                part = sock.recv(4096)
                if not part or len(data) > 4096:
                    raise LabError(f"the survivor's redis answered GET with {data!r}")
                data += part
            return None if data == b"$-1\r\n" else int(data.split(b"\r\n")[1])

    try:
        return labnet.in_namespace(lab.space("client"), ask)
    except OSError as error:
        raise LabError(f"the survivor's redis does not answer a new connection: {error}") from None


class Work:
    """The client's work as evidence: times of the replies, and what was lost of them."""

    def __init__(self, workload, path, summary):
        self.workload = workload
        self.summary = summary
        lines = read_lines(path)
        if workload == "redis":
            self.replies = [
                (x["received_ns"], x["received_ns"] - x["sent_ns"])
                for x in lines
                if "value" in x and "sent_ns" in x
            ]
            self.values = [x["value"] for x in lines if "value" in x and "sent_ns" in x]
            self.connections = [x["local_port"] for x in lines if x.get("event") == "connected"]
        else:
            self.replies = [(x["at_ns"], x["ns"]) for x in lines if x.get("error") is None]
            self.values, self.connections = [], []

    def between(self, begin_ns, end_ns):
        """Round-trip times of replies that were asked and received in a phase."""
        return [rtt for at, rtt in self.replies if at - rtt >= begin_ns and at <= end_ns]

    def gap_ms(self, moment_ns):
        """The longest wait from one reply to the next that ended after a moment."""
        times = [at for at, _ in self.replies]
        gaps = [later - earlier for earlier, later in zip(times, times[1:]) if later > moment_ns]
        return round(max(gaps) / 1e6, 1) if gaps else None


def judge_redis(work, value):
    """{lost, repeated, skipped, reconnects, faults}: replies against each other and against the
    survivor's value.

    Counts from the file of replies itself; the client's own tally must agree.
    """
    faults = []
    values = work.values
    summary = work.summary
    last = values[-1] if values else 0
    repeated = sum(max(0, a + 1 - b) for a, b in zip(values, values[1:]))
    missing = max(0, last - (value or 0))
    if value is None or value > last + (1 if summary["unanswered"] else 0) + summary["reconnects"]:
        faults.append(f"the survivor holds {value} after the last reply {last}")
    if values and values[0] != 1:
        faults.append(f"the first reply was {values[0]}, not 1")
    if repeated != summary["repeated"] or len(values) != summary["acked"]:
        faults.append("the client's tally and its file do not agree")
    if summary["reconnects"] != max(0, len(work.connections) - 1):
        faults.append(
            f"{len(work.connections)} connections were made, {summary['reconnects']} reconnects "
            f"counted"
        )
    return {
        "acked": len(values),
        "lost": repeated + missing,
        "repeated": repeated,
        "skipped": summary["skipped"],
        "reconnects": summary["reconnects"],
        "survivor_value": value,
        "last_acked": last,
        "faults": faults,
    }


def judge_nginx(work):
    summary = work.summary
    return {
        "acked": summary["requests"] - summary["failed"],
        "lost": summary["failed"],
        "repeated": 0,
        "skipped": 0,
        "reconnects": 0,
        "faults": [f["error"] for f in summary["failures"]],
    }


def first_frames(path, link_down_ns, kill_ns):
    """(failover_ms, announce_ms): the guest's first packet of its own, and the first frame at all,
    after the kill.
    """
    own = announced = None
    for frame in read_lines(path):
        if frame["at_ns"] <= link_down_ns:
            continue
        if announced is None:
            announced = frame["at_ns"]
        if frame["type"] not in ANNOUNCEMENTS:
            own = frame["at_ns"]
            break
    return tuple(None if at is None else round((at - kill_ns) / 1e6, 1) for at in (own, announced))


class Round:
    """One round; run() returns its detail for the report."""

    def __init__(self, settings, number, seed, folder, say):
        self.settings = settings
        self.workload = settings["workload"]
        self.number = number
        self.seed = seed
        self.folder = folder
        self.say = say
        self.clients = []
        self.rtts = {"unprotected": [], "protected": []}

    def run(self):
        os.makedirs(self.folder, exist_ok=True)
        self.say("boots the guest on host a")
        lab = Lab.make(
            workload=self.workload,
            unsafe_no_hold=self.settings["unsafe"],
            accel=self.settings["accel"],
            machine=self.settings["machine"],
            memory=self.settings["memory"],
            peer_timeout_ms=self.settings["peer_timeout_ms"],
        )
        try:
            return self._work(lab)
        except LabError as error:
            raise LabError(f"{error}\n{self._what_hosts_say(lab)}") from None
        finally:
            with deaf_to_signals():
                for client in self.clients:
                    client.close()
                self._keep_evidence(lab)
                lab.down()

    def _what_hosts_say(self, lab):
        """A line for each host that can still be asked, for a round that went wrong."""
        lines = []
        for host in ("a", "b"):
            if lab.power(host) != "on":
                lines.append(f"host {host}: {lab.power(host)}")
                continue
            try:
                status = lab.status_of(host)
                text = f"{status['state']} ({status['reason']}), epoch {status['epoch']}"
                with lab.qmp(host) as qmp:
                    text += f", guest {qmp.command('query-status')['status']}"
            except LabError as error:
                text = str(error)
            lines.append(f"host {host}: {text}")
        return "\n".join([*lines, f"logs: {self.folder}"])

    def _start(self, lab, *arguments):
        self.clients.append(ClientProcess(lab, *arguments))
        return self.clients[-1]

    def _start_worker(self, lab, out):
        progress = str(REPLIES[self.workload]["progress"])
        common = (labnet.guest_ip(), "--out", out, "--seconds", "600", "--progress", progress)
        if self.workload == "nginx":
            return self._start(lab, "http", "http_client.py", *common)
        timeout_s = "3" if self.settings["unsafe"] else "30"
        return self._start(
            *(lab, "incr", "incr_client.py", *common, "--key", KEY, "--reconnect"),
            *("--reply-timeout", timeout_s),
        )

    def _work(self, lab):
        counts = REPLIES[self.workload]
        counter = "acked" if self.workload == "redis" else "requests"
        wire = os.path.join(self.folder, "wire.jsonl")
        replies = os.path.join(self.folder, "replies.jsonl")
        sniff = self._start(
            lab,
            "sniff",
            "sniff.py",
            "lan0",
            "--mac",
            labnet.guest_mac(),
            "--out",
            wire,
            "--probe",
            labnet.guest_ip(),
            "--probe-on-signal",
        )
        sniff.wait(lambda line: line.get("ready"), "start")
        begin_ns = time.monotonic_ns()
        worker = self._start_worker(lab, replies)
        worker.wait(lambda line: line[counter] >= counts["before"], f"reply {counts['before']}")
        pair_ns = time.monotonic_ns()
        self.say("pairs it with host b while the client works")
        lab.progress = lambda text: self.say(text, detail=True)
        lab.pair("a")
        protected_ns = time.monotonic_ns()
        wait_s = random.Random(self.seed).uniform(*KILL_AFTER_S)
        self.say(f"is protected; power loss of host a in {wait_s:.2f} s")
        self._drain_until(worker, protected_ns + int((wait_s - 0.1) * 1e9))
        before = lab.status_of("a")
        self._drain_until(worker, protected_ns + int(wait_s * 1e9))
        sniff.process.send_signal(signal.SIGUSR1)
        kill = lab.kill("a")
        self.say("lost host a; the client goes on and waits for its reply")
        first = worker.wait(
            lambda line: line["at_ns"] > kill["link_down_ns"], "a reply after the power loss"
        )
        # Progress lines come every few replies, so `first` is at most that many replies late.
        worker.wait(
            lambda line: line[counter] >= first[counter] + counts["after"],
            f"{counts['after']} more replies",
        )
        summary = worker.finish()
        self.say("checks what the survivor holds")
        value = redis_get(lab, KEY) if self.workload == "redis" else None
        after = lab.status_of("b")
        with lab.qmp("b") as qmp:
            running = qmp.command("query-status")["running"]
        seen = sniff.finish()
        work = Work(self.workload, replies, summary)
        failover_ms, announce_ms = first_frames(wire, kill["link_down_ns"], kill["monotonic_ns"])
        self.rtts = {
            "unprotected": work.between(begin_ns, pair_ns),
            "protected": work.between(protected_ns, kill["monotonic_ns"]),
        }
        verdict = judge_redis(work, value) if self.workload == "redis" else judge_nginx(work)
        if seen["dropped"]:
            verdict["faults"].append(f"{seen['dropped']} frames were lost by the reader")
        if failover_ms is None:
            verdict["faults"].append("no packet of the guest was seen after the kill")
        if not running:
            verdict["faults"].append("QEMU on host b says that its guest does not run")
        if not self.rtts["protected"]:
            verdict["faults"].append(
                "no reply came while the guest was protected: nothing was tried"
            )
        return {
            "round": self.number,
            "seed": self.seed,
            "workload": self.workload,
            "unsafe": self.settings["unsafe"],
            **verdict,
            "failover_ms": failover_ms,
            "announce_ms": announce_ms,
            "client_gap_ms": work.gap_ms(kill["link_down_ns"]),
            "kill_after_s": round(wait_s, 3),
            "sync_s": round((protected_ns - pair_ns) / 1e9, 2),
            "epochs": before["totals"]["epochs"],
            "pause_us": before.get("pause_us"),
            "hold_us": before.get("hold_us"),
            "bytes": before["totals"]["bytes_sent"],
            "rtt_us": {phase: distribution_us(values) for phase, values in self.rtts.items()},
            "promotion": after.get("last_promotion"),
            "survivor_state": after.get("state"),
            "frames": seen["types"],
        }

    @staticmethod
    def _drain_until(worker, moment_ns):
        """Reads the client's progress until a moment, so that its pipe never fills and its death is
        seen.
        """
        while (left := moment_ns - time.monotonic_ns()) > 0:
            worker.line(left / 1e9)

    def _keep_evidence(self, lab):
        for host in ("a", "b", "witness", "client"):
            for entry in os.listdir(lab.path(host)):
                if entry.endswith(".log"):
                    shutil.copyfile(
                        lab.path(host, entry), os.path.join(self.folder, f"{host}-{entry}")
                    )


def median(values):
    values = [v for v in values if v is not None]
    return round(statistics.median(values), 1) if values else None


def merge_distributions(parts):
    """Of several {p50, p99, max, count}: the median p50, the worst p99 and max, the sum of the
    counts.
    """
    parts = [p for p in parts if p and p.get("count")]
    if not parts:
        return {"p50": None, "p99": None, "max": None, "count": 0}
    return {
        "p50": median([p["p50"] for p in parts]),
        "p99": max(p["p99"] for p in parts),
        "max": max(p["max"] for p in parts),
        "count": sum(p["count"] for p in parts),
    }


def good(detail):
    """Whether a round shows that nothing was lost."""
    return "error" not in detail and not (
        detail["lost"] or detail["reconnects"] or detail["skipped"] or detail["faults"]
    )


def totals(details, rtts, seed):
    """The report: sums and medians over all rounds, and the rounds."""
    done = [d for d in details if "error" not in d]
    return {
        "version": 1,
        "rounds": len(details),
        "good_rounds": sum(good(d) for d in details),
        "acked": sum(d["acked"] for d in done),
        "lost": sum(d["lost"] for d in done),
        "skipped": sum(d["skipped"] for d in done),
        "reconnects": sum(d["reconnects"] for d in done),
        "failover_ms": median([d["failover_ms"] for d in done]),
        "failover_ms_max": max(
            (d["failover_ms"] for d in done if d["failover_ms"] is not None), default=None
        ),
        "client_gap_ms": median([d["client_gap_ms"] for d in done]),
        "epochs": sum(d["epochs"] for d in done),
        "bytes": sum(d["bytes"] for d in done),
        "pause_us": merge_distributions([d["pause_us"] for d in done]),
        "hold_us": merge_distributions([d["hold_us"] for d in done]),
        "rtt_us": {phase: distribution_us(values) for phase, values in rtts.items()},
        "seed": seed,
        "rounds_detail": details,
    }
