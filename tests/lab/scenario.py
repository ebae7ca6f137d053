# SPDX-License-Identifier: GPL-2.0-or-later
"""scenario.py - what the scenario tests share: labs with pairs, watchers of the guest, waiting, and
what is left behind

Theory of operation. A scenario is a story told to one lab: set-up, then facts, each
`with self.fact("..."):`. A fact that fails prints the logs of all daemons and ends its story, since
what follows would rest on it. Every lab is in LIVE from before it is made until nothing is left of
it, so that a signal, too, ends all of them.

Owns: the labs and processes it starts. Waits for events with deadlines, never for time alone.
"""
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [
    path
    for path in (HERE, os.path.join(HERE, "clients"), os.path.join(ROOT, "tests", "tools"))
    if path not in sys.path
]

import labdaemon  # noqa: E402
import labnet  # noqa: E402
import labproc  # noqa: E402
from lablib import Lab, Progress  # noqa: E402
from labstate import HOSTS, LabError  # noqa: E402
from test_lab import Remains  # noqa: E402

CLIENTS = os.path.join(HERE, "clients")
BOOTSECTOR_WATCH = os.path.join(ROOT, "guest", "bootsector_watch.py")
STEP_S = 30  # for one thing to happen on a busy machine
CALM_TIMEOUT_MS = (
    1000  # peer time-out where time is not what is tested: two labs may share two cores
)
FORBIDDEN = ("bug:", "ASSERT", "Assertion", "Sanitizer", "stack smashing")
LIVE = []
_number = iter(range(1000))


def down_all():
    """Ends every lab that is still there; called at the very end, also after a signal."""
    for lab in list(LIVE):
        with contextlib.suppress(LabError, OSError):
            if os.path.exists(lab.directory):
                lab.down()
        LIVE.remove(lab)


class Reported(AssertionError):
    """A fact failed and has been told."""


class Follower:
    """A program in the client host that prints JSON lines; they are counted and the last kept."""

    def __init__(self, lab, argv, key):
        self.key = key
        self.last = None
        self.lines = 0
        self.changed = threading.Condition()
        self.errors = open(
            lab.path("client", f"follower-{next(_number)}.log"), "w+", encoding="utf-8"
        )
        self.process = subprocess.Popen(
            lab.command("client", [sys.executable, "-u", *argv]),
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.summary = None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            with self.changed:
                if self.key in value:
                    self.note(value)
                    self.last = value
                    self.lines += 1
                self.summary = value
                self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def note(self, value):
        """Called for every line with the key."""

    def _wait(self, come, timeout_s, complaint):
        """Waits, holding `changed`, until come() is true."""
        deadline = time.monotonic() + timeout_s
        while not come():
            left = deadline - time.monotonic()
            if left <= 0 or not self.thread.is_alive():
                raise LabError(f"{complaint()} within {timeout_s} s, the last: {self.last}")
            self.changed.wait(left)

    def wait_more(self, count, timeout_s=STEP_S, what="lines"):
        """Waits until `count` more lines than now have come."""
        with self.changed:
            goal = self.lines + count
            self._wait(
                lambda: self.lines >= goal,
                timeout_s,
                lambda: f"only {self.lines + count - goal} of {count} {what} came",
            )

    def wait_last(self, good, what, timeout_s=STEP_S):
        """Waits until the newest line is good(line)."""
        with self.changed:
            self._wait(
                lambda: self.last is not None and good(self.last),
                timeout_s,
                lambda: f"no line with {what} came",
            )

    def end(self, timeout_s=STEP_S):
        """Ends it (SIGTERM) and returns its summary, the last line."""
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.thread.join(timeout_s)
        self.process.stdout.close()
        self.errors.close()
        return self.summary


class Frames(Follower):
    """The boot-sector guest as the client sees it: counter after counter."""

    def __init__(self, lab):
        self.counters = set()
        self.times_s = []
        self.begin_s = float("inf")
        self.faults = []
        self.repeated = 0
        super().__init__(
            lab,
            [
                BOOTSECTOR_WATCH,
                "lan0",
                "--seconds",
                "600",
                "--min-frames",
                "1",
                "--mac",
                labnet.guest_mac(),
            ],
            "counter",
        )

    def note(self, value):
        """Which frames came twice: one that only came late was seen once. And when they came."""
        self.times_s.append(value["t"])
        # The watcher's clock begins with it: as early as the line that was read soonest says.
        self.begin_s = min(self.begin_s, time.monotonic() - value["t"])
        self.repeated += value["counter"] in self.counters
        self.counters.add(value["counter"])
        if value["faults"]:
            self.faults.append(value)

    def since(self, moment_s):
        """How many frames have come after a moment of time.monotonic(), however late they are read.

        To some milliseconds; so the moment must not be one at which frames may still leave.
        """
        with self.changed:
            return sum(self.begin_s + t > moment_s for t in self.times_s)

    def flow(self, count=100, timeout_s=STEP_S):
        """The guest is in service: `count` more frames come."""
        self.wait_more(count, timeout_s, "frames")

    def end(self, timeout_s=STEP_S):
        summary = super().end(timeout_s)
        if summary:
            summary.update(repeated=self.repeated, faults=self.faults[:10])
        return summary


class Client(Follower):
    """A client of the guest's service that prints a line after every so many answers."""

    def __init__(self, lab, program, progress, nic=0, more=()):
        self.progress = progress
        path = os.path.join(CLIENTS, program)
        common = ["--seconds", "600", "--progress", str(progress)]
        super().__init__(lab, [path, labnet.guest_ip(nic), *common, *more], "at_ns")

    def flow(self, count=100, timeout_s=STEP_S):
        """The guest is in service: about `count` more answers come."""
        lines = max(1, count // self.progress)
        self.wait_more(lines, timeout_s, f"lines of {self.progress} answers")


class Increments(Client):
    """INCR on one connection, every reply checked."""

    def __init__(self, lab, nic=0, key="pollux"):
        super().__init__(lab, "incr_client.py", 10, nic, ("--key", key))


class Pages(Client):
    """curl in a loop, every page compared."""

    def __init__(self, lab):
        super().__init__(lab, "http_client.py", 5)


class Scenario(unittest.TestCase):
    """Base of all scenario tests."""

    lab = None
    ok_errors = ()  # parts of error lines that a story provokes

    # --- telling ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def fact(self, name):
        """Reports the block as one fact; a failure ends the story."""
        file = sys.modules[type(self).__module__].__file__
        name = f"{os.path.splitext(os.path.basename(file))[0]}: {name}"
        begin = time.monotonic()
        self.told = True
        try:
            yield
        except unittest.SkipTest as skip:
            print(f"skip {name} ({skip})", flush=True)
        except Exception as error:  # told here, with what is needed to understand it
            print(f"not ok {name}", flush=True)
            print(f"  {type(error).__name__}: {error}", flush=True)
            self.print_logs()
            raise Reported(str(error)) from error
        else:
            print(f"ok {name}", flush=True)
            if os.environ.get("V"):
                print(f"  {time.monotonic() - begin:.1f} s", flush=True)

    def print_logs(self):
        """What the daemons of every lab said, and where they stand."""
        for lab in LIVE:
            for host in HOSTS:
                for role in ("polluxd", "witness", "qemu"):
                    path = lab.path(host, f"{role}.log")
                    if os.path.exists(path):
                        print(f"  --- {lab.name} {host} {role}\n{labproc.tail(path, 60)}")
                if host in ("a", "b"):
                    try:
                        status = json.dumps(lab.status_of(host, 2))
                    except (LabError, OSError) as error:
                        status = error
                    print(f"  --- {lab.name} {host} status: {status}")
        sys.stdout.flush()

    # --- labs -------------------------------------------------------------------------------------

    def make(self, **options):
        """A lab of this story; at its end it is taken down and nothing may be left of it."""
        options.setdefault("peer_timeout_ms", CALM_TIMEOUT_MS)
        lab = Lab.make(
            name=f"s-{os.getpid() % 1000000}-{next(_number)}",
            progress=Progress(quiet=True),
            **options,
        )
        LIVE.append(lab)
        self.lab = self.lab or lab
        remains = Remains(lab.name, lab.directory)

        def end():
            words = self.forbidden_words(lab)
            lab.down()
            LIVE.remove(lab)
            self.assertEqual(remains.sentences(), [], "left behind by the lab")
            self.assertEqual(words, [], "forbidden words in the logs")

        self.addCleanup(end)
        return lab

    def forbidden_words(self, lab):
        found = []
        for host in HOSTS:
            for role in ("polluxd", "witness"):
                found += [
                    f"{host}: {line}"
                    for line in self.log(lab, host, role).splitlines()
                    if any(x in line for x in FORBIDDEN)
                ]
        return found

    def follow(self, follower):
        """Registers a follower, so that it ends with the test."""
        self.addCleanup(follower.end)
        return follower

    # --- daemons ----------------------------------------------------------------------------------

    @staticmethod
    def log(lab, host, role="polluxd", since=0):
        """What a daemon has said, from a byte offset on."""
        try:
            with open(lab.path(host, f"{role}.log"), "rb") as file:
                file.seek(since)
                return file.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    @staticmethod
    def log_size(lab, host, role="polluxd"):
        try:
            return os.path.getsize(lab.path(host, f"{role}.log"))
        except FileNotFoundError:
            return 0

    def error_lines(self, lab):
        """Lines at level error of all daemons."""
        return [
            line
            for host in HOSTS
            for role in ("polluxd", "witness")
            for line in self.log(lab, host, role).splitlines()
            if ": error: " in line
        ]

    def wait(self, lab, host, good, what, timeout_s=STEP_S):
        """Waits until good(status of the host's polluxd); woken by its events."""
        return labdaemon.wait_status(lab.path(host), good, what, timeout_s)

    def wait_state(self, lab, host, *states, timeout_s=STEP_S):
        return self.wait(lab, host, lambda s: s["state"] in states, " or ".join(states), timeout_s)

    def wait_log(self, lab, host, text, role="polluxd", since=0, timeout_s=STEP_S):
        """Waits until a daemon's log has a text; the log grows by whole lines. Returns the line."""
        deadline = time.monotonic() + timeout_s
        fresh = threading.Event()
        while True:
            for line in self.log(lab, host, role, since).splitlines():
                if text in line:
                    return line
            if time.monotonic() > deadline:
                raise LabError(f"{role} on {host} did not say '{text}' within {timeout_s} s")
            fresh.wait(0.02)

    def wait_event(self, lab, host, good, what, timeout_s=STEP_S, since_ns=0):
        """The first event of a host's polluxd after a monotonic moment that is good(event)."""
        deadline = time.monotonic() + timeout_s
        with labdaemon.Control(lab.path(host, "control.sock")) as control:
            control.ask("events", since=0)
            while True:
                try:
                    event = control.line(deadline)
                except LabError:
                    raise LabError(
                        f"polluxd on {host} had no event '{what}' within {timeout_s} s"
                    ) from None
                if event.get("mono_ns", 0) > since_ns and good(event):
                    return event

    def wait_moved(self, lab, host, state, since_ns, timeout_s=STEP_S):
        """Waits until polluxd has come into a state, also one that it has left again meanwhile."""
        return self.wait_event(
            lab, host, lambda e: e.get("to") == state, state, timeout_s, since_ns=since_ns
        )

    def wait_promoted(self, lab, host, since_ns=0, timeout_s=STEP_S):
        return self.wait_event(
            lab, host, lambda e: e["type"] == "promoted", "promoted", timeout_s, since_ns
        )

    def assert_not_promoted(self, lab, host, since_ns, during_s):
        """No promotion since a moment, nor for some time from now on."""
        with self.assertRaises(LabError):
            self.wait_promoted(lab, host, since_ns, during_s)
        lab.status_of(host)  # it is there, and says nothing
        self.assertFalse(self.running(lab, host))

    def pair(self, lab, host="a", timeout_s=60):
        for side in ("a", "b"):  # a guest may be ready before polluxd has tried again to attach
            self.wait(lab, side, lambda s: s["guest"]["attached"], "attached to its QEMU")
        return lab.pair(host, timeout_s)

    def try_pair(self, lab, host="a", *words, peer=None):
        """Runs `pollux pair`; returns (exit status, what it said)."""
        peer = peer or labdaemon.peer_address(host)
        done = subprocess.run(
            lab.pollux(host, "pair", "--peer", peer, *words),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def pollux(self, lab, host, *words):
        done = subprocess.run(
            lab.pollux(host, *words), capture_output=True, text=True, timeout=90, check=False
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def kill(self, lab, host, role, number=signal.SIGKILL):
        """Signals one process of a host and waits until it is gone. Returns the moment, monotonic
        ns.
        """
        record = lab.records(host, role)[0]
        at = time.monotonic_ns()
        os.kill(record["pid"], number)
        labproc.wait_gone([record["pid"]])
        if role == "polluxd":
            self.wait_silent(lab, host)
        return at

    def wait_silent(self, lab, host):
        """Waits until nobody listens on a control socket: io_uring lets go of sockets a moment after
        its process died.
        """
        path = lab.path(host, "control.sock")

        def listens():
            with open("/proc/thread-self/net/unix", encoding="utf-8", errors="replace") as file:
                return any(
                    line.rstrip("\n").endswith(" " + path) and line.split()[3] == "00010000"
                    for line in file
                )

        deadline = time.monotonic() + STEP_S
        fresh = threading.Event()
        while labnet.in_namespace(lab.space(host), listens):
            if time.monotonic() > deadline:
                raise LabError(f"{path} is still listened on")
            fresh.wait(0.005)

    def start_polluxd(self, lab, host, *extra, change=None):
        """Starts a host's polluxd with more (or other) arguments than the lab's own."""
        argv = labdaemon.polluxd_argv(host, lab.options, lab.path(host)) + list(extra)
        for option, value in (change or {}).items():
            argv[argv.index(option) + 1] = value
        record = lab._spawn(host, "polluxd", argv)
        lab._wait_socket(record, argv[argv.index("--control") + 1])
        return record

    def run_polluxd(self, lab, host, change=None, timeout_s=STEP_S):
        """Runs a further polluxd that must refuse to start. Returns (exit status, what it said)."""
        argv = labdaemon.polluxd_argv(host, lab.options, lab.path(host))
        for option, value in (change or {}).items():
            argv[argv.index(option) + 1] = value
        done = subprocess.run(
            lab.command(host, argv), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        return done.returncode, done.stderr.strip()

    def start_qemu(self, lab, host, standby=True, **overrides):
        """Starts a host's QEMU again, with options of its own for this time; the old one must be
        gone.
        """
        before = lab.options
        with lab.state.change() as state:
            state["options"] = {**before, **overrides}
        try:
            lab._start_qemu(host, standby=standby)
        finally:
            with lab.state.change() as state:
                state["options"] = before

    def fresh_standby(self, lab, host):
        """A host whose guest is of no more use gets a QEMU that has not run, as an operator would
        give it.
        """
        if lab.records(host, "qemu"):
            self.kill(lab, host, "qemu")
        self.start_qemu(lab, host)

    def power_cycle(self, lab, host):
        if lab.power(host) != "off":
            lab.kill(host)
        lab.start(host)

    def cut_all(self, lab):
        """a, b and the witness can reach nobody; the client still can be reached."""
        for pair in (("a", "b"), ("a", "witness"), ("b", "witness")):
            lab.cut(*pair)

    def let_reach_witness(self, lab, host):
        """Ends the cut between a host and the witness; other cuts stay."""
        with lab.state.change() as state:
            state["cuts"].remove(sorted((host, "witness")))
        lab._apply_rules()

    # --- guests -----------------------------------------------------------------------------------

    def running(self, lab, host):
        """Whether a host's QEMU executes its guest; False too when it is gone."""
        if not lab.records(host, "qemu"):
            return False
        with lab.qmp(host) as qmp:
            return qmp.command("query-status")["running"]

    def held_packets(self, lab, host):
        with lab.qmp(host) as qmp:
            return qmp.command("query-checkpoint")["held-packets"]

    def assert_one_runs(self, lab, host):
        other = "b" if host == "a" else "a"
        self.assertTrue(self.running(lab, host), f"the guest runs on {host}")
        self.assertFalse(self.running(lab, other), f"the guest does not run on {other}")

    def assert_nothing_lost(self, summary, failovers=0, late=False):
        """The boot-sector guest's frames: none repeated, no memory error, at most a gap for each
        failover.

        late: the old active lived on, and what the standby had acked may leave it after the first
        frames of the new one.
        """
        self.assertIsNotNone(summary, "the watcher ended without a summary")
        self.assertGreater(summary["frames"], 0)
        self.assertEqual(
            (summary["repeated"], summary["errors"]),
            (0, 0),
            f"a state that was seen is lost: {summary}",
        )
        if not late:
            self.assertEqual(summary["backwards"], 0, f"a state that was seen is lost: {summary}")
        self.assertLessEqual(
            summary["gaps"], failovers, f"frames are missing without a failover: {summary}"
        )
        self.assertEqual(summary["dropped_by_reader"], 0, f"no verdict: {summary}")


class Result(unittest.TestResult):
    """Prints `ok NAME`, `not ok NAME`, `skip NAME`; a story's facts have been printed by itself."""

    def __init__(self, prefix):
        super().__init__()
        self.prefix = prefix

    def name(self, test):
        words = getattr(test, "_testMethodName", None) or str(test)
        return f"{self.prefix}: {words.removeprefix('test_').replace('_', ' ')}"

    def addSuccess(self, test):
        super().addSuccess(test)
        if not getattr(test, "told", False):
            print(f"ok {self.name(test)}", flush=True)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"skip {self.name(test)} ({reason})", flush=True)

    def _bad(self, test, error):
        if isinstance(error[1], Reported):
            return
        print(f"not ok {self.name(test)}", flush=True)
        print(
            "  " + self._exc_info_to_string(error, test).strip().replace("\n", "\n  "), flush=True
        )
        if hasattr(test, "print_logs"):
            test.print_logs()

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._bad(test, err)

    def addError(self, test, err):
        super().addError(test, err)
        self._bad(test, err)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self._bad(test, err)


def run_file(path, pattern=None):
    """Runs one test file; returns the exit status. SIGTERM ends it through the clean-up."""

    def stop(*_):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the clean-up is not interrupted
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    name = os.path.splitext(os.path.basename(path))[0]
    loader = unittest.TestLoader()
    if pattern:
        loader.testNamePatterns = [f"*{pattern}*"]
    suite = loader.loadTestsFromName(name)
    result = Result(name)
    try:
        suite.run(result)
    except KeyboardInterrupt:
        print(f"not ok {name}: interrupted", flush=True)
        return 130
    finally:
        down_all()
    if loader.errors:
        print("\n".join(loader.errors))
        return 1
    if not result.testsRun:
        print(f"not ok {name}: has no test {pattern or ''}")
        return 1
    return 0 if result.wasSuccessful() else 1
