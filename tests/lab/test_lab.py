#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_lab.py - the lab itself and its clients, without polluxd: every test's name is the fact it
proves

Owns the labs it makes, all named t-PID-N. Needs root, QEMU (stock or patched) and the guest image.
Waits for events with deadlines; that something does not arrive is shown by a later frame on
another path that does.
"""
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "clients")]

import incr_client  # noqa: E402
import labnet  # noqa: E402
import labproc  # noqa: E402
import labround  # noqa: E402
import labstate  # noqa: E402
import sniff  # noqa: E402
from lablib import Lab, Progress  # noqa: E402
from labstate import HOSTS, LabError  # noqa: E402

LAB = os.path.join(HERE, "lab")
CLIENTS = os.path.join(HERE, "clients")
ETHERTYPE = 0x88B6  # local experimental
ARRIVAL_S = 20
ABSENCE_S = 0.3
UP_S = 60
MIGRATION_S = 120
number = iter(range(1000))


def fresh_name():
    return f"t-{os.getpid() % 100000}-{next(number)}"


def root_links():
    return {link["ifname"] for link in json.loads(labnet.run(["ip", "-json", "link"]))}


class Remains:
    """What a lab may leave behind; taken while it is up, asked after `down`."""

    def __init__(self, lab_name, directory):
        self.name = lab_name
        self.directory = directory
        self.fds = []
        self.inodes = set()
        for space in self.spaces():
            fd = os.open(labnet.namespace_path(space), os.O_RDONLY)
            self.fds.append(fd)  # keeps the inode number from being used again
            info = os.fstat(fd)
            self.inodes.add((info.st_dev, info.st_ino))

    def spaces(self):
        return [s for s in labnet.namespaces() if s.startswith(f"plx-{self.name}-")]

    def processes(self):
        labproc.reap()
        return [pid for pid, _ in labproc.by_namespace(self.inodes)]

    def sentences(self):
        left = [f"namespace {s}" for s in self.spaces()]
        left += [f"process {pid}" for pid in self.processes()]
        left += [self.directory] if os.path.exists(self.directory) else []
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
            left += [f"socket {line.split()[-1]}" for line in file if self.directory + "/" in line]
        for fd in self.fds:
            os.close(fd)
        return left


def packet_socket(lab, host, net):
    device = "rep0" if net == "rep" else "br0" if host in ("a", "b") else "lan0"
    return labnet.packet_socket(lab.space(host), device, ETHERTYPE)


def send_frame(lab, host, net, tag):
    """Broadcasts a frame with a tag from a host into a network."""
    with packet_socket(lab, host, net) as sock:
        source = sock.getsockname()[4]
        sock.send(
            b"\xff" * 6 + source + ETHERTYPE.to_bytes(2, "big") + tag.encode().ljust(46, b"\0")
        )


def receive_tags(sock, until, timeout_s=ARRIVAL_S):
    """Tags of the frames that arrive, up to `until` or the deadline."""
    tags = []
    deadline = time.monotonic() + timeout_s
    while until not in tags:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        sock.settimeout(left)
        try:
            tags.append(sock.recv(2048)[14:].rstrip(b"\0").decode())
        except socket.timeout:
            break
    return tags


def ping(lab, host, address, timeout_s=ARRIVAL_S):
    """ICMP echoes from a host, four a second as one alone may meet a port that was plugged in just
    now; whether an answer came.
    """
    body = b"\x12\x34\0\1pollux!!"
    echo = b"\x08\0" + sniff.checksum(b"\x08\0\0\0" + body).to_bytes(2, "big") + body
    deadline = time.monotonic() + timeout_s

    def make():
        return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)

    with labnet.in_namespace(lab.space(host), make) as sock:
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(min(left, 0.25))
            try:
                sock.sendto(echo, (address, 0))
                data = sock.recv(2048)
            except OSError:  # also no answer yet
                continue
            if data[20] == 0 and data[24:26] == b"\x12\x34":
                return True
    return False


def start_in(lab, host, *argv, **kwargs):
    """The process, once it is on its host: before that, a signal to the host would miss it.

    Its pipes are not buffered, so that next_line() sees all that came.
    """
    process = subprocess.Popen(lab.command(host, list(argv)), bufsize=0, **kwargs)
    deadline = time.monotonic() + ARRIVAL_S
    while process.pid not in labproc.in_host(lab.space(host)):
        if time.monotonic() > deadline:
            raise AssertionError(f"{argv[0]} did not get to host {host}")
    return process


def next_line(process, timeout_s=ARRIVAL_S):
    """The next line that a process of start_in() prints, b"" at its end."""
    line = b""
    deadline = time.monotonic() + timeout_s
    while not line.endswith(b"\n"):
        left = max(0.0, deadline - time.monotonic())
        if not select.select([process.stdout], [], [], left)[0]:
            raise AssertionError(f"no line within {timeout_s} s, only {line!r}")
        part = process.stdout.read(1)
        if not part:
            break
        line += part
    return line


def run_lab(*arguments, timeout_s=120, **kwargs):
    return subprocess.run(
        [sys.executable, LAB, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        **kwargs,
    )


class LabCase(unittest.TestCase):
    def make(self, **options):
        """A lab of this test; taken down at its end, with a look at what is left."""
        lab = Lab.make(
            name=options.pop("name", None) or fresh_name(),
            progress=Progress(quiet=True),
            **{"no_pollux": True, **options},
        )
        remains = Remains(lab.name, lab.directory)

        def end():
            if os.path.exists(lab.directory):
                lab.down()
            self.assertEqual(remains.sentences(), [])

        self.addCleanup(end)
        return lab

    def make_hosts(self, **options):
        return self.make(no_guest=True, **options)


class Networks(LabCase):
    def test_every_pair_of_hosts_on_a_network_can_talk(self):
        lab = self.make_hosts()
        for host, address in (
            ("a", labnet.REP["b"]),
            ("b", labnet.REP["witness"]),
            ("witness", labnet.REP["a"]),
            ("client", labnet.LAN["a"]),
            ("client", labnet.LAN["b"]),
            ("a", labnet.LAN["b"]),
        ):
            self.assertTrue(ping(lab, host, address), f"{host} to {address}")

    def test_a_cut_stops_broadcasts_and_ip_both_ways_and_only_between_its_pair_and_heal_ends_it(
        self,
    ):
        lab = self.make_hosts()
        for net, third in (("lan", "client"), ("rep", "witness")):
            for sender, receiver in (("a", "b"), ("b", "a")):
                with packet_socket(lab, receiver, net) as sock:
                    send_frame(lab, sender, net, "before")
                    self.assertEqual(receive_tags(sock, "before"), ["before"])
                    lab.cut("a", "b")
                    send_frame(lab, sender, net, "while-cut")
                    send_frame(lab, third, net, "other-path")
                    self.assertEqual(receive_tags(sock, "other-path"), ["other-path"])
                    lab.heal()
                    send_frame(lab, sender, net, "after")
                    self.assertEqual(receive_tags(sock, "after"), ["after"])
        lab.cut("b", "a")
        self.assertFalse(ping(lab, "a", labnet.REP["b"], ABSENCE_S))
        self.assertTrue(ping(lab, "a", labnet.REP["witness"]))
        self.assertTrue(ping(lab, "client", labnet.LAN["b"]))
        lab.cut("a", "witness")
        self.assertFalse(ping(lab, "a", labnet.REP["witness"], ABSENCE_S))
        self.assertTrue(ping(lab, "b", labnet.REP["witness"]))
        lab.heal()
        self.assertTrue(ping(lab, "a", labnet.REP["b"]))
        self.assertTrue(ping(lab, "a", labnet.REP["witness"]))

    def test_a_cut_of_hosts_without_a_common_network_is_refused(self):
        lab = self.make_hosts()
        with self.assertRaisesRegex(LabError, "share no network"):
            lab.cut("client", "witness")

    def test_two_labs_with_the_same_addresses_do_not_hear_each_other(self):
        one, two = self.make_hosts(), self.make_hosts()
        with packet_socket(two, "b", "rep") as sock:
            send_frame(one, "a", "rep", "lab-one")
            send_frame(two, "a", "rep", "lab-two")
            self.assertEqual(receive_tags(sock, "lab-two"), ["lab-two"])
        one.cut("a", "b")
        self.assertTrue(ping(two, "a", labnet.REP["b"]))
        one.down()
        self.assertTrue(ping(two, "a", labnet.REP["b"]))

    def test_nothing_is_made_in_the_root_namespace(self):
        before = root_links()
        self.make_hosts(nics=2)
        self.assertEqual(
            {x for x in root_links() - before if x.startswith(("lan", "rep", "tap", "br0"))}, set()
        )


class Faults(LabCase):
    def connect(self, lab, server_host, client_host, address):
        """A TCP connection between two hosts: (server process that only waits, client socket)."""
        program = (
            "import "
            "socket,sys;s=socket.create_server(('0.0.0.0',7000));print('listens',flush=True);"
            "c=s.accept()[0];print('accepted',flush=True);c.recv(1)"
        )
        server = start_in(lab, server_host, sys.executable, "-c", program, stdout=subprocess.PIPE)
        self.addCleanup(server.wait)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.kill)
        self.assertEqual(next_line(server), b"listens\n")
        client = labnet.in_namespace(
            lab.space(client_host), lambda: socket.create_connection((address, 7000), ARRIVAL_S)
        )
        self.addCleanup(client.close)
        self.assertEqual(next_line(server), b"accepted\n")
        return server, client

    def test_power_loss_leaves_no_process_no_link_and_sends_no_fin_or_reset(self):
        lab = self.make_hosts()
        server, client = self.connect(lab, "a", "b", labnet.REP["a"])
        before = time.monotonic_ns()
        result = lab.kill("a")
        self.assertLess(before, result["monotonic_ns"])
        self.assertLess(result["monotonic_ns"], result["link_down_ns"])
        self.assertLess(result["link_down_ns"], time.monotonic_ns())
        self.assertEqual(server.wait(ARRIVAL_S), -signal.SIGKILL)
        self.assertEqual(labproc.in_host(lab.space("a")), [])
        status = lab.status()["hosts"]["a"]
        self.assertEqual(status["power"], "off")
        self.assertEqual(
            [link["up"] for link in status["links"] if link["name"] in ("lan0", "rep0")],
            [False, False],
        )
        client.settimeout(ABSENCE_S)
        with self.assertRaises(socket.timeout):
            client.recv(1)
        with self.assertRaisesRegex(LabError, "off already"):
            lab.kill("a")

    def test_control_a_process_killed_without_power_loss_does_send_its_fin(self):
        lab = self.make_hosts()
        server, client = self.connect(lab, "a", "b", labnet.REP["a"])
        server.kill()
        client.settimeout(ARRIVAL_S)
        self.assertEqual(client.recv(1), b"")

    def test_a_host_started_again_has_a_new_kernel_and_reachable_addresses(self):
        lab = self.make_hosts()
        _, client = self.connect(lab, "a", "b", labnet.REP["a"])
        with self.assertRaisesRegex(LabError, "not off"):
            lab.start("a")
        lab.kill("a")
        lab.start("a")
        self.assertTrue(ping(lab, "b", labnet.REP["a"]))
        self.assertTrue(ping(lab, "client", labnet.LAN["a"]))
        client.send(b"x")  # the old connection is unknown to the new kernel
        client.settimeout(ARRIVAL_S)
        with self.assertRaises(ConnectionResetError):
            client.recv(1)

    def test_a_paused_host_stands_still_and_is_silent_and_goes_on_after_resume(self):
        lab = self.make_hosts()
        counter = start_in(
            lab,
            "a",
            sys.executable,
            "-c",
            "import sys\nfor line in sys.stdin: print(line, end='', flush=True)",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(counter.wait)
        self.addCleanup(counter.communicate)
        self.addCleanup(counter.kill)
        counter.stdin.write(b"1\n")
        self.assertEqual(next_line(counter), b"1\n")
        with packet_socket(lab, "a", "rep") as sock:
            lab.pause("a")
            self.assertEqual(self.process_state(counter.pid, "T"), "T")
            self.assertFalse(ping(lab, "b", labnet.REP["a"], ABSENCE_S))
            send_frame(lab, "b", "rep", "to-the-paused")
            lab.resume("a")
            send_frame(lab, "b", "rep", "to-the-resumed")
            self.assertEqual(receive_tags(sock, "to-the-resumed"), ["to-the-resumed"])
        counter.stdin.write(b"2\n")
        self.assertEqual(next_line(counter), b"2\n")
        self.assertTrue(ping(lab, "b", labnet.REP["a"]))

    def test_a_pause_of_processes_only_leaves_the_hosts_kernel_answering(self):
        lab = self.make_hosts()
        sleeper = start_in(lab, "a", "sleep", "60")
        self.addCleanup(sleeper.wait)
        self.addCleanup(sleeper.kill)
        lab.pause("a", processes_only=True)
        self.assertEqual(self.process_state(sleeper.pid, "T"), "T")
        self.assertTrue(ping(lab, "b", labnet.REP["a"]))
        lab.resume("a")
        self.assertIn(self.process_state(sleeper.pid, "SR"), "SR")

    @staticmethod
    def process_state(pid, awaited):
        """State letter; a signal is asynchronous, so a moment is given to it."""
        deadline = time.monotonic() + ARRIVAL_S
        while True:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                state = file.read().rpartition(")")[2].split()[0]
            if state in awaited or time.monotonic() > deadline:
                return state


class EndOfLabs(LabCase):
    def check_gone(self, name):
        self.assertEqual([s for s in labnet.namespaces() if s.startswith(f"plx-{name}-")], [])
        self.assertFalse(os.path.exists(os.path.join(labstate.base_dir(), f"pollux-lab-{name}")))

    def start_up(self, name, *arguments):
        child = subprocess.Popen(
            [sys.executable, LAB, "up", "--no-pollux", "--name", name, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(lambda: (child.poll() is None and child.kill(), child.communicate()))
        return child

    def wait_line(self, child, word):
        timer = threading.Timer(UP_S, child.kill)  # ends the loop with the last line
        timer.start()
        try:
            for line in child.stderr:
                if word in line:
                    return
        finally:
            timer.cancel()
        self.fail(f"'lab up' ended, or was ended after {UP_S} s, without saying '{word}'")

    def record(self, lab, pid, start):
        """Makes the lab believe that a process is its QEMU on host a."""
        with lab.state.change() as state:
            state["processes"].append({"host": "a", "role": "qemu", "pid": pid, "start": start})

    def test_ctrl_c_in_the_middle_of_up_leaves_nothing(self):
        for number_, word in ((signal.SIGINT, "hosts"), (signal.SIGTERM, "a: QEMU runs")):
            name = fresh_name()
            child = self.start_up(name)
            self.wait_line(child, word)
            remains = Remains(name, os.path.join(labstate.base_dir(), f"pollux-lab-{name}"))
            child.send_signal(number_)
            self.assertEqual(child.wait(30), 130)
            self.assertEqual(remains.sentences(), [])
            self.check_gone(name)

    def test_down_cleans_up_after_a_lab_command_that_was_killed(self):
        name = fresh_name()
        child = self.start_up(name)
        self.wait_line(child, "a: QEMU runs")
        remains = Remains(name, os.path.join(labstate.base_dir(), f"pollux-lab-{name}"))
        child.kill()
        child.wait()
        self.assertEqual(len(remains.processes()), 2, "two QEMUs outlive the killed command")
        self.assertEqual(run_lab("down", "--name", name).returncode, 0)
        self.assertEqual(remains.sentences(), [])

    def test_down_never_signals_a_process_whose_pid_was_given_to_another(self):
        lab = self.make_hosts()
        bystander = subprocess.Popen(["sleep", "60"])
        self.addCleanup(bystander.wait)
        self.addCleanup(bystander.kill)
        self.record(lab, bystander.pid, labproc.start_time(bystander.pid) - 1)
        lab.down()
        self.assertIsNone(bystander.poll())

    def test_control_down_does_end_a_recorded_process_outside_the_namespaces(self):
        lab = self.make_hosts()
        stray = subprocess.Popen(["sleep", "60"])
        self.addCleanup(stray.wait)
        self.record(lab, stray.pid, labproc.start_time(stray.pid))
        lab.down()
        self.assertIsNone(labproc.start_time(stray.pid))

    def test_down_ends_paused_hosts_and_powerless_hosts_too(self):
        lab = self.make_hosts()
        sleeper = start_in(lab, "b", "sleep", "60")
        self.addCleanup(sleeper.wait)
        lab.pause("b")
        lab.kill("a")
        lab.cut("b", "witness")
        lab.down()
        self.check_gone(lab.name)


class CommandLine(LabCase):
    def test_a_missing_qemu_is_named_and_nothing_is_made(self):
        name = fresh_name()
        done = run_lab("up", "--name", name, "--no-pollux", "--qemu", "/nowhere/qemu")
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nowhere/qemu", done.stderr)
        self.assertFalse(os.path.exists(os.path.join(labstate.base_dir(), f"pollux-lab-{name}")))

    def test_a_name_in_use_a_bad_name_and_a_wrong_option_are_refused(self):
        lab = self.make_hosts()
        done = run_lab("up", "--no-guest", "--no-pollux", "--name", lab.name)
        self.assertEqual(done.returncode, 1)
        self.assertIn("exists already", done.stderr)
        self.assertTrue(ping(lab, "a", labnet.REP["b"]), "the lab that had the name is untouched")
        self.assertEqual(run_lab("up", "--no-guest", "--name", "../x").returncode, 1)
        self.assertEqual(run_lab("up", "--machine", "z80").returncode, 64)
        self.assertEqual(run_lab("kill", "moon", "--name", lab.name).returncode, 64)

    def test_a_run_directory_that_is_not_private_is_not_touched(self):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            done = run_lab("down", "--dir", folder)
            self.assertEqual(done.returncode, 1)
            self.assertIn("not a private directory", done.stderr)
            self.assertTrue(os.path.isdir(folder))

    def test_in_runs_the_command_in_the_host_with_its_exit_status(self):
        lab = self.make_hosts()
        done = run_lab(
            "in", "--name", lab.name, "witness", "sh", "-c", "ip -o addr show rep0; exit 7"
        )
        self.assertEqual(done.returncode, 7)
        self.assertIn(labnet.REP["witness"], done.stdout)

    def test_kill_prints_the_moment_and_status_shows_the_power(self):
        lab = self.make_hosts()
        before = time.monotonic_ns()
        result = json.loads(run_lab("kill", "b", "--json", "--name", lab.name).stdout)
        self.assertTrue(before < result["monotonic_ns"] < time.monotonic_ns())
        status = json.loads(run_lab("status", "--json", "--name", lab.name).stdout)
        self.assertEqual(
            {host: entry["power"] for host, entry in status["hosts"].items()},
            {"a": "on", "b": "off", "witness": "on", "client": "on"},
        )
        self.assertEqual(set(status["hosts"]), set(HOSTS))

    def test_a_dir_can_be_chosen(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "run")
            done = run_lab("up", "--no-guest", "--no-pollux", "--quiet", "--dir", path)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o700)
            self.assertEqual(run_lab("down", "--dir", path).returncode, 0)
            self.assertFalse(os.path.exists(path))


class Guests(LabCase):
    def follow(self, *arguments):
        """A client program that runs beside the test; see ClientProcess."""
        process = labround.ClientProcess(*arguments)
        self.addCleanup(process.close)
        return process

    def watch(self, lab, wire):
        """Notes the guest's frames in a file, and pings it."""
        watcher = self.follow(
            *(lab, "sniff", "sniff.py", "lan0", "--mac", labnet.guest_mac(), "--out", wire),
            *("--probe", labnet.guest_ip()),
        )
        watcher.wait(lambda line: line.get("ready"), "start")
        return watcher

    def client(self, lab, program, *arguments):
        return subprocess.run(
            lab.command("client", [sys.executable, os.path.join(CLIENTS, program), *arguments]),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test_redis_answers_and_a_cut_client_waits_and_loses_nothing(self):
        lab = self.make(workload="redis")
        wire = os.path.join(lab.directory, "wire.jsonl")
        watcher = self.watch(lab, wire)
        client = self.follow(
            *(lab, "incr", "incr_client.py", labnet.guest_ip(), "--progress", "50"),
        )
        client.wait(lambda line: line["acked"] >= 50, "50 replies")
        lab.cut("a", "client")
        self.assertFalse(ping(lab, "client", labnet.guest_ip(), ABSENCE_S))
        self.assertTrue(ping(lab, "b", labnet.guest_ip()), "the guest answers others meanwhile")
        healed = lab.heal()
        first = client.wait(lambda line: line["at_ns"] > healed, "a reply after the cut")
        client.wait(lambda line: line["acked"] >= first["acked"] + 300, "300 more replies")
        summary = client.finish()
        self.assertTrue(summary["good"], summary)
        self.assertEqual(summary["acked"], summary["last"])
        self.assertGreater(summary["max_gap_ms"], ABSENCE_S * 900)
        with lab.qmp("b") as qmp:
            self.assertEqual(qmp.command("query-status")["running"], False)
        seen = watcher.finish()
        self.assertEqual(seen["dropped"], 0)
        self.assertGreaterEqual(seen["types"]["tcp"], summary["acked"])
        self.assertGreater(seen["types"]["icmp"], 0)
        result = lab.kill("a")
        self.assertEqual(labproc.in_host(lab.space("a")), [])
        self.assertEqual(lab.records("a"), [])
        self.assertTrue(lab.records("b", "qemu"), "the standby's host is untouched")
        with open(wire, encoding="utf-8") as file:
            self.assertLess(json.loads(file.readlines()[-1])["at_ns"], result["link_down_ns"])
        lab.start("a")
        with lab.qmp("a") as qmp:
            self.assertEqual(qmp.command("query-status")["status"], "prelaunch")

    def test_a_guest_that_moved_to_the_other_host_keeps_its_connection_and_the_move_is_seen(self):
        """A stock live migration, then power loss: all that the demo measures, without polluxd."""
        lab = self.make(memory=256, standby_qemu_arg=["-incoming", "defer"])
        wire, replies = (os.path.join(lab.directory, x) for x in ("wire.jsonl", "replies.jsonl"))
        watcher = self.watch(lab, wire)
        worker = self.follow(
            *(lab, "incr", "incr_client.py", labnet.guest_ip(), "--key", labround.KEY),
            *("--out", replies, "--progress", "10"),
        )
        worker.wait(lambda line: line["acked"] >= 100, "100 replies")
        uri = f"tcp:{labnet.REP['b']}:4444"
        with lab.qmp("b") as standby, lab.qmp("a") as active:
            standby.command("migrate-incoming", {"uri": uri})
            active.command("migrate", {"uri": uri})
            active.wait_event("STOP", MIGRATION_S)
            deadline = time.monotonic() + MIGRATION_S
            while standby.command("query-status")["status"] == "inmigrate":
                self.assertLess(time.monotonic(), deadline, "the migration did not end")
                time.sleep(0.01)
            kill = lab.kill("a")
            standby.command("cont")
        first = worker.wait(lambda line: line["at_ns"] > kill["link_down_ns"], "a reply from b")
        worker.wait(lambda line: line["acked"] >= first["acked"] + 100, "100 more replies")
        work = labround.Work("redis", replies, worker.finish())
        watcher.finish()
        verdict = labround.judge_redis(work, labround.redis_get(lab, labround.KEY))
        self.assertTrue(labround.good(verdict), verdict)
        own, announced = labround.first_frames(wire, kill["link_down_ns"], kill["monotonic_ns"])
        self.assertGreater(own, 0)
        self.assertLess(own, labround.PHASE_DEADLINE_S * 1000)
        self.assertLessEqual(announced, own)
        self.assertGreater(work.gap_ms(kill["link_down_ns"]), 0)

    def test_nginx_serves_every_page_and_a_request_that_cannot_succeed_is_counted(self):
        lab = self.make(workload="nginx", machine="q35")
        done = self.client(lab, "http_client.py", labnet.guest_ip(), "--count", "60")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(json.loads(done.stdout.splitlines()[-1])["requests"], 60)
        lab.cut("a", "client")
        done = self.client(
            lab, "http_client.py", labnet.guest_ip(), "--count", "1", "--request-timeout", "0.3"
        )
        self.assertEqual(done.returncode, 1)
        self.assertEqual(json.loads(done.stdout.splitlines()[-1])["failed"], 1)

    def test_microvm_boots_with_two_nics_and_two_processors(self):
        lab = self.make(workload="idle", machine="microvm", nics=2, smp=2, disk="rw")
        self.assertTrue(ping(lab, "client", labnet.guest_ip(0)))
        self.assertTrue(ping(lab, "client", labnet.guest_ip(1)))
        with lab.qmp("a") as qmp:
            self.assertEqual(len(qmp.command("query-cpus-fast")), 2)
            self.assertEqual([d["qdev"] for d in qmp.command("query-block")], ["blk0"])

    def test_the_boot_sector_guest_runs_on_every_machine(self):
        for machine in ("pc", "q35", "microvm"):
            with self.subTest(machine=machine):
                lab = self.make(
                    workload="bootsector", machine=machine
                )  # ready: its first frame was seen
                done = subprocess.run(
                    lab.command(
                        "client",
                        [
                            sys.executable,
                            os.path.join(HERE, "..", "..", "guest", "bootsector_watch.py"),
                            "lan0",
                            "--max-gaps",
                            "1",
                            "--frames",
                            "100",
                            "--seconds",
                            "60",
                            "--quiet",
                            "--mac",
                            labnet.guest_mac(),
                        ],
                    ),
                    capture_output=True,
                    text=True,
                    timeout=90,
                    check=False,
                )
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                lab.down()

    def test_the_boot_sector_guest_runs_under_kvm(self):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.skipTest("no /dev/kvm here")
        lab = self.make(workload="bootsector", accel="kvm")
        with lab.qmp("a") as qmp:
            self.assertTrue(qmp.command("query-kvm")["enabled"])

    def test_a_guest_that_fails_is_reported_with_its_log_and_nothing_is_left(self):
        name = fresh_name()
        done = run_lab(
            "up",
            "--no-pollux",
            "--name",
            name,
            "--append",
            "pollux.workload=nonsense",
            timeout_s=240,
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn("POLLUX-GUEST-FAILED", done.stderr)
        self.assertIn("unknown pollux.workload=nonsense", done.stderr)
        kept = done.stderr.rpartition("kept in ")[2].strip()
        with open(os.path.join(kept, "a-serial.log"), "rb") as file:
            self.assertIn(b"POLLUX-GUEST-FAILED", file.read())
        subprocess.run(["rm", "-r", kept], check=True)
        self.assertEqual([s for s in labnet.namespaces() if s.startswith(f"plx-{name}-")], [])

    def test_a_qemu_that_refuses_its_arguments_is_reported_at_once(self):
        begin = time.monotonic()
        with self.assertRaisesRegex(LabError, "no-such-device") as caught:
            self.make(workload="idle", device=["no-such-device"])
        self.assertLess(time.monotonic() - begin, 15)
        kept = str(caught.exception).rpartition("kept in ")[2].strip()
        subprocess.run(["rm", "-r", kept], check=True)

    def test_a_standby_can_be_made_to_differ(self):
        lab = self.make(
            workload="bootsector",
            standby_memory=96,
            standby_machine="q35",
            standby_device=["virtio-rng-pci"],
        )
        sizes, machines = [], []
        for host in ("a", "b"):
            with lab.qmp(host) as qmp:
                sizes.append(qmp.command("query-memory-size-summary")["base-memory"] >> 20)
                machines.append(qmp.command("qom-get", {"path": "/machine", "property": "type"}))
        self.assertEqual(sizes, [64, 96])
        self.assertTrue(
            machines[0].startswith("pc-i440fx") and machines[1].startswith("pc-q35"), machines
        )


class FakeRedis:
    """Answers each command with the next prepared reply; None closes. On loopback."""

    def __init__(self, replies):
        self.replies = list(replies)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while self.replies:
            try:
                connection = self.server.accept()[0]
            except OSError:
                return
            with connection:
                while self.replies:
                    try:
                        if not connection.recv(4096):
                            break
                    except OSError:
                        break
                    reply = self.replies.pop(0)
                    if reply is None:
                        break
                    connection.sendall(reply if isinstance(reply, bytes) else b":%d\r\n" % reply)
        self.server.close()


class Clients(unittest.TestCase):
    """The clients must be able to say that something was lost."""

    def incr(self, replies, *arguments):
        server = FakeRedis(replies)
        done = subprocess.run(
            [
                sys.executable,
                os.path.join(CLIENTS, "incr_client.py"),
                "127.0.0.1",
                "--port",
                str(server.port),
                "--seconds",
                "40",
                "--reply-timeout",
                "20",
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, json.loads(done.stdout.splitlines()[-1])

    def test_replies_in_order_are_good(self):
        status, summary = self.incr([5, 6, 7], "--count", "3")
        self.assertEqual(
            (status, summary["good"], summary["first"], summary["last"]), (0, True, 5, 7)
        )

    def test_a_repeated_value_is_a_lost_increment(self):
        status, summary = self.incr([5, 6, 7, 6, 7, 8], "--count", "6")
        self.assertEqual(
            (status, summary["good"], summary["repeated"], summary["skipped"]), (1, False, 2, 0)
        )

    def test_a_skipped_value_is_a_fault(self):
        status, summary = self.incr([5, 6, 8], "--count", "3")
        self.assertEqual((status, summary["repeated"], summary["skipped"]), (1, 0, 1))

    def test_a_broken_connection_ends_the_run_and_is_told(self):
        status, summary = self.incr([5, 6, None, 7], "--count", "4")
        self.assertEqual(
            (status, summary["acked"], len(summary["errors"]), summary["good"]), (1, 2, 1, False)
        )

    def test_with_reconnect_the_break_is_counted_and_one_value_may_be_missing(self):
        status, summary = self.incr([5, 6, None, 8, 9], "--count", "4", "--reconnect")
        self.assertEqual(
            (status, summary["reconnects"], summary["skipped"], summary["good"]), (1, 1, 0, False)
        )
        status, summary = self.incr([5, 6, None, 9], "--count", "3", "--reconnect")
        self.assertEqual((summary["reconnects"], summary["skipped"]), (1, 1))
        status, summary = self.incr([5, 6, None, 3], "--count", "3", "--reconnect")
        self.assertEqual((summary["reconnects"], summary["repeated"]), (1, 4))

    def test_an_error_reply_and_garbage_are_no_replies(self):
        for reply in (b"-ERR no\r\n", b":1\r\n:2\r\n", b"hello\r\n"):
            status, summary = self.incr([5, reply], "--count", "2")
            self.assertEqual((status, summary["acked"], len(summary["errors"])), (1, 1, 1))

    def test_no_server_is_no_success(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        done = subprocess.run(
            [
                sys.executable,
                os.path.join(CLIENTS, "incr_client.py"),
                "127.0.0.1",
                "--port",
                str(port),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        self.assertEqual(done.returncode, 2)

    def test_percentiles_are_the_nearest_rank(self):
        values = list(range(1, 101))
        self.assertEqual(
            [incr_client.percentile(values, share) for share in (50, 99, 100)], [50, 99, 100]
        )
        self.assertEqual(incr_client.percentile([7], 50), 7)

    def test_wrong_usage_is_64(self):
        for program in ("incr_client.py", "http_client.py", "sniff.py"):
            done = subprocess.run(
                [sys.executable, os.path.join(CLIENTS, program), "--nonsense"],
                capture_output=True,
                timeout=30,
                check=False,
            )
            self.assertEqual(done.returncode, 64, program)

    def test_frames_are_named_by_who_sent_them_and_why(self):
        mac = bytes(12)
        ip = bytes.fromhex("0a4d000a")
        arp = mac + b"\x08\x06" + bytes(14)
        self.assertEqual(sniff.frame_type(mac + b"\x80\x35" + bytes(46)), "rarp")
        self.assertEqual(sniff.frame_type(arp + ip + bytes(6) + ip), "arp-announce")
        self.assertEqual(sniff.frame_type(arp + ip + bytes(6) + b"\x0a\x4d\0\x64"), "arp")
        v6 = mac + b"\x86\xdd" + bytes(6)
        self.assertEqual(
            sniff.frame_type(v6 + b"\x3a" + bytes(33) + b"\x88\0\0\0\x20\0\0\0"), "nd-announce"
        )
        self.assertEqual(sniff.frame_type(v6 + b"\x3a" + bytes(33) + b"\x88\0\0\0\x60\0\0\0"), "nd")
        self.assertEqual(sniff.frame_type(v6 + b"\x06" + bytes(41)), "tcp")
        self.assertEqual(sniff.frame_type(mac + b"\x08\0" + bytes(9) + b"\x06" + bytes(30)), "tcp")
        self.assertEqual(sniff.frame_type(mac + b"\x08\0"), "ipv4")


if __name__ == "__main__":
    unittest.main()
