#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_cli - the real pollux against a scripted polluxd on a unix socket

Runs $B/pollux (B: the build directory, "build" unless set). The fake daemon answers each connection from a list
of scripts; every wait has a deadline; every process started here ends here.
"""
import json
import os
import pty
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tools"))
import facts  # noqa: E402  pylint: disable=wrong-import-position
BUILD = os.environ.get("B", os.path.join(HERE, "..", "..", "build"))
POLLUX = os.path.abspath(os.path.join(BUILD, "pollux"))
DEADLINE = 20.0

PROTECTED = {
    "version": 1, "vm": "db", "role": "active", "state": "protected", "protected": True,
    "reason": "the standby holds a committed epoch", "frozen": False, "forced": False, "generation": 3, "epoch": 120,
    "acked": 119, "released": 119, "output": "hold", "unsafe_release": False, "sync_percent": 100,
    "pause_us": {"p50": 310, "p99": 800, "max": 2100, "count": 120}, "hold_us": {"p50": 900, "p99": 1500, "max": 3000, "count": 80},
    "epoch_us": {"p50": 0, "p99": 0, "max": 0, "count": 0},
    "totals": {"epochs": 120, "pages": 5000, "bytes_sent": 1048576, "bytes_raw": 20480000},
    "guest": {"attached": True, "running": True, "qemu": "10.0.13", "machine": "pc-i440fx-10.0", "memory_bytes": 268435456,
              "cpus": 2, "nics": []},
    "memory": {"arena_bytes": 1048576, "stream_bytes": 2097152, "limit_bytes": 4194304},
    "peer": {"address": "10.0.0.2:7460", "connected": True, "rtt_us": 210, "last_seen_ms": 12, "state": "standby-ready"},
    "arbiter": {"kind": "witness", "address": "witness:10.0.0.3:7461", "reachable": True, "last_answer": "granted",
                "generation": 3, "holder_is_me": True},
    "last_promotion": None, "uptime_s": 100}


def state_event(seq, before, after, reason="because"):
    """One event of a move."""
    return {"seq": seq, "time": "2026-11-21T12:00:00.123456Z", "mono_ns": seq, "vm": "db", "type": "state", "from": before,
            "to": after, "reason": reason, "generation": 3, "epoch": 7}


class Daemon(threading.Thread):
    """A fake polluxd: scripts[i](connection, file) serves connection i; the last one serves all later ones."""

    def __init__(self, path, *scripts):
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self.scripts = scripts
        self.seen = []
        self.errors = []
        self.start()

    def serve(self, number, connection):
        """One connection."""
        connection.settimeout(DEADLINE)
        try:
            with connection, connection.makefile("rb") as lines:
                self.scripts[min(number, len(self.scripts) - 1)](self, connection, lines)
        except (BrokenPipeError, ConnectionResetError):
            pass
        except Exception as e:  # pylint: disable=broad-except
            self.errors.append(e)

    def run(self):
        number = 0
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(number, connection), daemon=True).start()
            number += 1

    def stop(self):
        """End; connections end with their clients."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join(DEADLINE)


def take(daemon, lines):
    """The next command."""
    line = lines.readline()
    assert line.endswith(b"\n") and len(line) <= 65536
    command = json.loads(line)
    daemon.seen.append(command)
    return command


def say(*objects, then_close=True):
    """A script: take a command, send these."""
    def script(daemon, connection, lines):
        take(daemon, lines)
        for o in objects:
            connection.sendall(o if isinstance(o, bytes) else json.dumps(o).encode() + b"\n")
        if not then_close:
            lines.read(1)  # until the client hangs up
    return script


def good(result):
    """A script: a good answer."""
    return say({"ok": True, "result": result})


def fails(code, text):
    """A script: an answer that says no."""
    return say({"ok": False, "code": code, "error": text})


class CliTest(unittest.TestCase):
    """One fact a test."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="cli-test-")
        self.path = os.path.join(self.dir, "db.sock")

    def tearDown(self):
        shutil.rmtree(self.dir)

    def daemon(self, *scripts):
        """A fake daemon, ended with the test."""
        d = Daemon(self.path, *scripts)
        self.addCleanup(lambda: (d.stop(), self.assertEqual(d.errors, [])))
        return d

    def pollux(self, *args, code=None, control=True, program=POLLUX, **kw):
        """Run pollux; check its exit code."""
        where = ["--control", self.path] if control else []
        r = subprocess.run([program, *where, *args], capture_output=True, text=True, timeout=DEADLINE, check=False,
                           stdin=kw.pop("stdin", subprocess.DEVNULL), **kw)
        if code is not None:
            self.assertEqual(r.returncode, code, f"{args}: {r.stdout}{r.stderr}")
        return r

    # ---- nobody there ----

    def test_no_socket_says_that_polluxd_was_not_started(self):
        r = self.pollux("status", code=69)
        self.assertIn("there is no control socket", r.stderr)
        self.assertIn(self.path, r.stderr)
        self.assertEqual(r.stdout, "")

    def test_stale_socket_says_that_polluxd_is_gone(self):
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(self.path)
        r = self.pollux("status", code=69)
        self.assertIn("is stale", r.stderr)
        self.assertIn("start polluxd again", r.stderr)

    def test_file_that_is_no_socket_is_said(self):
        with open(self.path, "w", encoding="ascii"):
            pass
        self.assertIn("is not a socket", self.pollux("status", code=78).stderr)

    def test_full_backlog_is_said(self):
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(self.path)
            s.listen(0)
            waiting = []
            for _ in range(4):
                c = socket.socket(socket.AF_UNIX)
                c.setblocking(False)
                waiting.append(c)
                try:
                    c.connect(self.path)
                except BlockingIOError:
                    break
            self.assertIn("takes no more clients", self.pollux("status", code=69).stderr)
            for c in waiting:
                c.close()

    def test_forbidden_socket_is_said(self):
        if os.geteuid():
            self.skipTest("needs root, to be nobody")
        self.daemon(good(PROTECTED))
        os.chmod(self.path, 0o600)
        os.chmod(self.dir, 0o755)
        program = shutil.copy(POLLUX, self.dir)  # nobody may not go through a clone in root's home
        r = self.pollux("status", code=1, program=program, user=65534, group=65534, extra_groups=[])
        self.assertIn("may not use the control socket", r.stderr)

    def test_too_long_path_is_said(self):
        r = self.pollux("--control", "/" + "x" * 200, "status", control=False, code=78)
        self.assertIn("too long", r.stderr)

    # ---- bad answers ----

    def test_bad_answers_each_have_their_words(self):
        cases = (
            (b"garbage\n", "something else than a JSON object"), (b"\n", "something else than a JSON object"),
            (b"[1,2]\n", "something else than a JSON object"), (b"{\"ok\": true} x\n", "something else"),
            (b"{\"ok\": true\n", "something else"), (b"{\"ok\": true, \"x\": \"\xff\xfe\"}\n", "something else"),
            (b"{\"ok\": true}\0\n", "something else"), (b"[" * 5000 + b"\n", "something else"),
            (b"{}\n", "no \"ok\""), (b"{\"ok\": \"yes\"}\n", "no \"ok\""), (b"{\"ok\": true}\n", "no status"),
            (b"{\"ok\": true, \"result\": 7}\n", "no status"),
            (b"{\"ok\": tr", "ended in the middle of an answer"), (b"", "closed the connection"),
            (b"x" * 70000 + b"\n", "a line of more than 65536 bytes"), (b"x" * 65536, "a line of more than 65536 bytes"),
        )
        for data, words in cases:
            d = Daemon(self.path, say(data))
            r = self.pollux("status", code=69)
            self.assertIn(words, r.stderr, data[:40])
            self.assertEqual(r.stdout, "")
            d.stop()
            os.unlink(self.path)

    def test_silent_daemon_is_left_after_the_time(self):
        self.daemon(say(then_close=False))
        start = time.monotonic()
        for verb in (["status"], ["unpair"], ["pair", "--peer", "h:1"], ["promote"], ["wait", "--state", "alone"]):
            r = self.pollux(*verb, "--timeout", "1", code=124)
            self.assertIn("did not answer in time", r.stderr)
        self.assertLess(time.monotonic() - start, DEADLINE)

    def test_dripping_daemon_is_left_after_the_time(self):
        def drip(daemon, connection, lines):
            take(daemon, lines)
            while True:
                connection.sendall(b" ")
                select.select([], [], [], 0.05)
        self.daemon(drip)
        self.pollux("status", "--timeout", "1", code=124)

    def test_line_of_exactly_the_limit_is_taken(self):
        empty = len(json.dumps({"ok": True, "result": {**PROTECTED, "pad": ""}}))
        line = json.dumps({"ok": True, "result": {**PROTECTED, "pad": "x" * (65535 - empty)}}).encode() + b"\n"
        self.assertEqual(len(line), 65536)
        self.daemon(say(line))
        self.pollux("status", code=0)

    def test_errors_carry_the_daemons_code_and_sentence(self):
        for code in (1, 64, 69, 78, 106, 107, 124):
            d = Daemon(self.path, fails(code, "a sentence that says what to do"))
            r = self.pollux("unpair", code=code)
            self.assertEqual(r.stderr, "pollux: a sentence that says what to do\n")
            d.stop()
            os.unlink(self.path)

    def test_unknown_codes_and_missing_sentences_are_failures(self):
        for answer in ({"ok": False}, {"ok": False, "code": 0, "error": ""}, {"ok": False, "code": 5000},
                       {"ok": False, "code": "107"}):
            d = Daemon(self.path, say(answer))
            self.pollux("unpair", code=1)
            d.stop()
            os.unlink(self.path)

    def test_control_characters_do_not_reach_the_terminal(self):
        evil = "\x1b[2Jgone\x07\x9b1m"
        d = Daemon(self.path, fails(1, evil))
        self.assertEqual(self.pollux("unpair", code=1).stderr, "pollux: ?[2Jgone???1m\n")
        d.stop()
        os.unlink(self.path)
        self.daemon(good({**PROTECTED, "vm": evil, "reason": evil, "state": evil, "peer": {"address": evil, "connected": True,
                                                                                           "state": evil}}))
        out = self.pollux("status", code=0).stdout
        self.assertNotIn("\x1b", out)
        self.assertIn("?[2Jgone", out)

    # ---- status ----

    def test_status_of_a_protected_vm(self):
        d = self.daemon(good(PROTECTED))
        r = self.pollux("status", code=0)
        self.assertEqual(r.stdout.splitlines()[0], "db: PROTECTED: protected (the standby holds a committed epoch)")
        for words in ("generation 3, epoch 120, acked 119, released 119", "10.0.0.2:7460, standby-ready, round trip 0.21 ms",
                      "witness:10.0.0.3:7461, answers; generation 3, this side holds it", "p50 0.31 ms, p99 0.80 ms",
                      "pc-i440fx-10.0, 2 processors, 256 MiB"):
            self.assertIn(words, r.stdout)
        self.assertEqual(d.seen, [{"cmd": "status"}])

    def test_not_protected_is_loud(self):
        for change, words in (
                ({"state": "syncing", "sync_percent": 42, "reason": "filling"}, "db: NOT PROTECTED: syncing 42 % (filling)"),
                ({"state": "alone", "reason": "the standby is lost"}, "db: NOT PROTECTED: alone (the standby is lost)"),
                ({"state": "claiming", "frozen": True, "reason": "x"}, "db: NOT PROTECTED: claiming, FROZEN (x)")):
            d = Daemon(self.path, good({**PROTECTED, "protected": False, **change}))
            r = self.pollux("status", code=1)
            self.assertEqual(r.stdout.splitlines()[0], words)
            d.stop()
            os.unlink(self.path)

    def test_lost_peer_and_arbiter_and_unsafe_are_loud(self):
        self.daemon(good({**PROTECTED, "unsafe_release": True, "forced": True, "peer": {"address": "p:1", "connected": False},
                          "arbiter": {"address": "w:1", "reachable": False, "why": "Connection refused"}}))
        out = self.pollux("status", code=0).stdout
        for words in ("NOT CONNECTED", "CANNOT BE REACHED: Connection refused", "UNSAFE", "FORCED"):
            self.assertIn(words, out)

    def test_status_json_is_the_daemons_object(self):
        for protected in (True, False):
            d = Daemon(self.path, good({**PROTECTED, "protected": protected}))
            r = self.pollux("status", "--json", code=0 if protected else 1)
            self.assertEqual(json.loads(r.stdout), {**PROTECTED, "protected": protected})
            self.assertEqual(r.stdout.count("\n"), 1)
            d.stop()
            os.unlink(self.path)

    def test_status_with_missing_and_wrong_members_does_not_crash(self):
        broken = [{}] + [{**PROTECTED, k: v} for k in PROTECTED for v in (None, 1, "x", [], {}, True)]
        feed = iter(broken)

        def script(daemon, connection, lines):
            take(daemon, lines)
            connection.sendall(json.dumps({"ok": True, "result": next(feed)}).encode() + b"\n")
        self.daemon(script)
        for o in broken:
            self.pollux("status", code=0 if o.get("protected") is True else 1)

    def test_last_promotion_is_shown(self):
        self.daemon(good({**PROTECTED, "last_promotion": {
            "time": "2026-11-21T12:00:00Z", "generation": 3, "epoch": 99, "detected": "silence", "detect_ms": 100.5,
            "grant_ms": 2.0, "load_ms": 30, "run_ms": 1.5, "total_ms": 134.0}}))
        self.assertIn("detected in 100.5 ms, grant 2.0 ms, load 30.0 ms, run 1.5 ms: 134.0 ms in all",
                      self.pollux("status", code=0).stdout)

    # ---- pair, unpair, promote ----

    def test_pair_sends_peer_and_adopt(self):
        d = self.daemon(good({"state": "alone"}))
        out = self.pollux("pair", "--peer", "10.0.0.2:7460", code=0).stdout
        self.assertIn("NOT yet", out)
        self.pollux("pair", "--adopt", "--peer=[fd00::2]:7460", code=0)
        self.assertEqual(d.seen, [{"cmd": "pair", "peer": "10.0.0.2:7460", "adopt": False},
                                  {"cmd": "pair", "peer": "[fd00::2]:7460", "adopt": True}])

    def test_pair_without_peer_is_usage(self):
        self.assertIn("--peer HOST:PORT", self.pollux("pair", code=64).stderr)

    def test_unpair(self):
        d = self.daemon(good({}))
        self.pollux("unpair", code=0)
        self.assertEqual(d.seen, [{"cmd": "unpair"}])

    def test_promote_without_force_asks_no_words(self):
        d = self.daemon(good({"text": "this side is active already"}))
        self.assertEqual(self.pollux("promote", code=0).stdout, "this side is active already\n")
        self.assertEqual(d.seen, [{"cmd": "promote", "force": False}])

    def test_forced_promote_without_words_is_not_sent(self):
        d = self.daemon(good(PROTECTED))
        r = self.pollux("promote", "--force", code=107)
        self.assertIn("will have to be thrown away", r.stderr)
        self.assertIn("--yes-i-accept-data-loss VMNAME", r.stderr)
        r = self.pollux("promote", "--force", "--yes-i-accept-data-loss", "web", code=107)
        self.assertIn('VM is "db", not "web"', r.stderr)
        self.assertEqual(d.seen, [{"cmd": "status"}] * 2)

    def test_the_risk_of_an_outdated_copy_is_told_as_what_it_is(self):
        self.daemon(good({**PROTECTED, "state": "outdated"}))
        r = self.pollux("promote", "--force", code=107)
        self.assertIn("granted the guest to the other side", r.stderr)
        self.assertNotIn("the safe way", r.stderr)

    def test_forced_promote_with_the_name_is_sent(self):
        d = self.daemon(good(PROTECTED), good({}))
        self.pollux("promote", "--force", "--yes-i-accept-data-loss", "db", code=0)
        self.assertEqual(d.seen, [{"cmd": "status"}, {"cmd": "promote", "force": True}])

    def test_words_without_force_are_usage(self):
        self.pollux("promote", "--yes-i-accept-data-loss", "db", code=64)

    def on_terminal(self, typed):
        """pollux promote --force on a terminal; returns (exit code, what the terminal showed)."""
        pid, fd = pty.fork()
        if not pid:
            os.execv(POLLUX, [POLLUX, "--control", self.path, "promote", "--force"])
        shown = b""
        end = time.monotonic() + DEADLINE
        answered = False
        while time.monotonic() < end:
            if not select.select([fd], [], [], 0.5)[0]:
                continue
            try:
                data = os.read(fd, 4096)
            except OSError:
                break
            shown += data
            if not data:
                break
            if not answered and b"type the VM's name" in shown and shown.endswith(b": "):
                os.write(fd, typed)
                answered = True
        os.close(fd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()

    def test_terminal_asks_for_the_name(self):
        d = self.daemon(good({**PROTECTED, "state": "standby-asking", "arbiter": {"address": "w:1", "reachable": False},
                              "peer": {"address": "p:1", "connected": False, "last_seen_ms": 4200}}), good({}))
        code, shown = self.on_terminal(b"db\n")
        self.assertEqual(code, 0, shown)
        self.assertIn("last heard 4.2 s ago", shown)
        self.assertIn("cannot be reached", shown)
        self.assertEqual(d.seen[1:], [{"cmd": "promote", "force": True}])

    def test_other_words_on_the_terminal_change_nothing(self):
        for typed in (b"yes\n", b"\n", b"d\n", b"dbb\n", b"x" * 300 + b"\n", b"\x04"):
            d = Daemon(self.path, good(PROTECTED), good({}))
            code, shown = self.on_terminal(typed)
            self.assertEqual(code, 107, shown)
            self.assertEqual(d.seen, [{"cmd": "status"}])
            d.stop()
            os.unlink(self.path)

    # ---- events, wait ----

    def test_events_are_lines(self):
        d = self.daemon(say({"ok": True}, state_event(1, "none", "claiming"),
                            {"seq": 2, "time": "t", "vm": "db", "type": "note", "text": "a note"}, then_close=False))
        r = self.pollux("events", "--count", "2", code=0)
        self.assertEqual(r.stdout.splitlines(), [
            "2026-11-21T12:00:00.123456Z db 1 none -> claiming (because) generation 3 epoch 7", "t db 2 note: a note"])
        r = self.pollux("events", "--json", "--since", "41", "--count", "1", code=0)
        self.assertEqual(json.loads(r.stdout), state_event(1, "none", "claiming"))
        self.assertEqual(d.seen, [{"cmd": "events", "since": 0}, {"cmd": "events", "since": 41}])

    def test_events_until_a_state(self):
        moves = ["claiming", "alone", "syncing", "entering", "protected", "claiming"]
        events = [state_event(i, "x", to) for i, to in enumerate(moves, 1)]
        self.daemon(say({"ok": True}, *events, then_close=False))
        self.assertEqual(len(self.pollux("events", "--until", "protected", code=0).stdout.splitlines()), 5)
        self.assertEqual(len(self.pollux("events", "--until", "broken,syncing", code=0).stdout.splitlines()), 3)
        r = self.pollux("events", "--until", "broken", "--timeout", "1", code=124)
        self.assertEqual(len(r.stdout.splitlines()), 6)
        self.assertIn("the time is over", r.stderr)

    def test_events_end_with_the_daemon(self):
        self.daemon(say({"ok": True}, state_event(1, "a", "b")))
        r = self.pollux("events", code=69)
        self.assertEqual(len(r.stdout.splitlines()), 1)
        self.assertIn("closed the connection", r.stderr)

    def test_events_come_as_they_happen(self):
        """Not when a buffer is full: each line is seen before the next event is sent."""
        more = threading.Event()

        def script(daemon, connection, lines):
            take(daemon, lines)
            connection.sendall(json.dumps({"ok": True}).encode() + b"\n" + json.dumps(state_event(1, "a", "b")).encode() + b"\n")
            assert more.wait(DEADLINE)
            connection.sendall(json.dumps(state_event(2, "b", "c")).encode() + b"\n")
            lines.read(1)
        self.daemon(script)
        with subprocess.Popen([POLLUX, "--control", self.path, "events", "--new", "--count", "2"], stdout=subprocess.PIPE) as p:
            self.assertTrue(select.select([p.stdout], [], [], DEADLINE)[0])
            self.assertIn(b" 1 a -> b", p.stdout.readline())
            more.set()
            self.assertIn(b" 2 b -> c", p.stdout.readline())
            self.assertEqual(p.wait(DEADLINE), 0)

    def test_many_events_in_one_piece(self):
        events = [state_event(i, "x", "y", "r" * 300) for i in range(1, 1001)]
        self.daemon(say({"ok": True}, *events, then_close=False))
        out = self.pollux("events", "--json", "--count", "1000", code=0).stdout
        self.assertEqual([json.loads(line)["seq"] for line in out.splitlines()], list(range(1, 1001)))

    def test_wait_in_the_state_already(self):
        d = self.daemon(say({"ok": True}, then_close=False), good(PROTECTED))
        self.pollux("wait", "--state", "alone,protected", code=0)
        self.assertEqual(d.seen, [{"cmd": "events", "since": 9223372036854775807}, {"cmd": "status"}])

    def test_wait_for_a_move_however_short(self):
        self.daemon(say({"ok": True}, state_event(1, "syncing", "entering"), state_event(2, "entering", "protected"),
                        state_event(3, "protected", "claiming"), then_close=False),
                    good({**PROTECTED, "state": "syncing", "protected": False}))
        self.pollux("wait", "--state", "protected", code=0)

    def test_wait_ends_with_124(self):
        self.daemon(say({"ok": True}, state_event(1, "a", "alone"), then_close=False),
                    good({**PROTECTED, "state": "syncing"}))
        r = self.pollux("wait", "--state", "protected", "--timeout", "1", code=124)
        self.assertIn("in none of these states", r.stderr)

    def test_wait_ends_when_the_daemon_does(self):
        self.daemon(say({"ok": True}), good({**PROTECTED, "state": "syncing"}))
        self.pollux("wait", "--state", "protected", code=69)

    # ---- the command line ----

    def test_usage(self):
        for args, words in (
                ((), "say what to do"), (("dance",), "unknown verb"), (("--loud", "status"), "unknown option"),
                (("status", "--loud"), "unknown option"), (("status", "x"), "unexpected argument"), (("-j", "status"), "unknown"),
                (("status", "--timeout", "0"), "whole number"), (("status", "--timeout"), "needs a value"),
                (("wait",), "--state"), (("wait", "--state", "happy"), '"happy" is none'), (("wait", "--state", "alone,"), "is none"),
                (("events", "--until", ""), "is none"), (("events", "--count", "-1"), "whole number"),
                (("events", "--new", "--since", "3"), "exclude each other"), (("--vm", "../x", "status"), "must be a VM's name"),
                (("--vm", "", "status"), "must be a VM's name"), (("pair", "--peer", ""), "must not be empty"),
                (("--vm", "a", "--control", "b", "status"), "exclude each other"), (("status", "--json=1"), "takes no value")):
            r = self.pollux(*args, control=False, code=64)
            self.assertIn(words, r.stderr, args)
            self.assertEqual(r.stdout, "")

    def test_every_verb_has_help(self):
        out = self.pollux("--help", control=False, code=0).stdout
        for verb in ("pair", "unpair", "status", "promote", "events", "wait"):
            self.assertIn(f"  {verb} ", out)
            text = self.pollux(verb, "--help", control=False, code=0).stdout
            self.assertIn("Usage: pollux", text)
            self.assertIn("--timeout S", text)
        self.assertRegex(self.pollux("--version", control=False, code=0).stdout, r"^pollux \S+\n$")

    def test_vm_gives_the_usual_path(self):
        r = self.pollux("--vm", "no-such-vm-9", "status", control=False, code=69)
        self.assertIn("/run/pollux/no-such-vm-9.sock", r.stderr)

    def test_only_vm_of_the_host_needs_no_name(self):
        """In a mount namespace of its own, where /run/pollux is this test's directory."""
        script = 'mkdir -p /run/pollux && mount --bind "$0" /run/pollux && exec "$@"'
        run = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs /run && ' + script, self.dir]
        if subprocess.run([*run, "true"], check=False, capture_output=True).returncode:
            self.skipTest("needs root for mounts of its own")

        def here(*args):
            return subprocess.run([*run, POLLUX, *args], capture_output=True, text=True, timeout=DEADLINE, check=False)
        self.assertEqual(here("status").returncode, 69)
        self.assertIn("no polluxd is known on this host", here("status").stderr)
        self.daemon(good(PROTECTED))
        self.assertEqual(here("status").returncode, 0)
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.join(self.dir, "web.sock"))
            r = here("status")
            self.assertEqual(r.returncode, 64)
            self.assertIn("/run/pollux/web.sock", r.stderr)
            self.assertEqual(here("--vm", "db", "status").returncode, 0)


if __name__ == "__main__":
    facts.main()
