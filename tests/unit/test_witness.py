#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""test_witness - the real witness against clients made from docs/PROTOCOL.md

Runs $B/witness (B: the build directory, "build" unless set). Speaks to it with tests/tools/stream_writer.py,
which shares nothing with the C side. Every wait has a deadline; every process started here ends here.
"""
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tools"))
import facts  # noqa: E402
from stream_reader import HEADER, MAGIC, xxh32  # noqa: E402
from stream_writer import ARB_ANSWER, Stream, ask_payload  # noqa: E402

BUILD = os.environ.get("B", os.path.join(HERE, "..", "..", "build"))
WITNESS = os.path.abspath(os.path.join(BUILD, "witness"))
DEADLINE = 20.0
READ, CAS = 1, 2
VALUE, GRANTED, REFUSED, ERROR = 1, 2, 3, 4
ANSWER = struct.Struct("<II48sQQ16s16sQ")
SEED = int(os.environ.get("SEED", str(random.SystemRandom().randrange(1 << 32))))


class Gone(Exception):
    """The witness closed the connection or died."""


class Answer:
    """One ARB_ANSWER, checked."""

    def __init__(self, payload):
        (self.result, zero1, vm, self.generation, zero2, self.holder, self.nonce, self.tag) = ANSWER.unpack(payload)
        assert zero1 == 0 and zero2 == 0
        self.vm = vm.rstrip(b"\0").decode()

    def register(self):
        """What the register is."""
        return self.generation, self.holder, self.nonce


class Client:
    """One connection to the witness."""

    def __init__(self, port, host="127.0.0.1"):
        self.sock = socket.create_connection((host, port), timeout=DEADLINE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = Stream(generation=0)
        self.sequence = 0
        self.tag = 0
        self.buf = b""

    def send(self, **ask):
        """Send an ask."""
        self.tag += 1
        self.raw(self.stream.arb_ask(tag=self.tag, **ask))

    def raw(self, data):
        """Send any bytes."""
        try:
            self.sock.sendall(data)
        except OSError as e:
            raise Gone from e

    def receive(self):
        """The next answer, checked against the document."""
        want = HEADER.size + ANSWER.size
        while len(self.buf) < want:
            try:
                data = self.sock.recv(65536)
            except socket.timeout:
                raise AssertionError("no answer within the deadline") from None
            except OSError as e:
                raise Gone from e
            if not data:
                raise Gone
            self.buf += data
        record, self.buf = self.buf[:want], self.buf[want:]
        magic, kind, flags, length, checksum, generation, epoch, sequence = HEADER.unpack_from(record)
        assert (magic, kind, flags, length) == (MAGIC, ARB_ANSWER, 0, ANSWER.size)
        assert (generation, epoch, sequence) == (0, 0, self.sequence)
        assert checksum == xxh32(record[:12] + bytes(4) + record[16:])
        self.sequence += 1
        return Answer(record[HEADER.size:])

    def ask(self, **ask):
        """Send an ask and wait for its answer."""
        self.send(**ask)
        answer = self.receive()
        assert answer.tag == self.tag and answer.vm == ask.get("vm", "vm")
        return answer

    def read(self, vm="vm"):
        """The register of a VM: (generation, holder, nonce)."""
        answer = self.ask(op=READ, vm=vm, expect=0, next=0, holder=bytes(16), nonce=bytes(16))
        assert answer.result == VALUE
        return answer.register()

    def wait_closed(self):
        """Return once the other side has closed; anything it sends first is dropped."""
        try:
            while self.sock.recv(65536):
                pass
        except socket.timeout:
            raise AssertionError("not closed within the deadline") from None
        except OSError:
            pass

    def close(self):
        """Close."""
        self.sock.close()


class Witness:
    """A running witness; its log goes to a file."""

    def __init__(self, state_dir, *options, prefix=(), env=None, listen="127.0.0.1:0"):
        # pylint: disable=consider-using-with
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen([*prefix, WITNESS, "--state-dir", state_dir, "--listen", listen, *options],
                                        stdin=subprocess.DEVNULL, stderr=self.log, env=env)
        self.port = None

    def lines(self):
        """The log so far."""
        return os.pread(self.log.fileno(), 1 << 24, 0).decode()

    def wait_for(self, pattern):
        """Wait until the log has a match."""
        end = time.monotonic() + DEADLINE
        while True:
            found = re.search(pattern, self.lines())
            if found:
                return found
            dead = self.process.poll() is not None
            if dead and not re.search(pattern, self.lines()):
                raise AssertionError(f"witness ended before it said {pattern}: {self.lines()}")
            if time.monotonic() > end:
                raise AssertionError(f"witness never said {pattern}: {self.lines()}")
            select.select([], [], [], 0.002)

    def ready(self):
        """Wait until it serves."""
        self.wait_for(r"ready: ")
        self.port = int(self.wait_for(r"listening on \S+:(\d+)").group(1))
        return self

    def end(self, sig=signal.SIGTERM):
        """End it; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(DEADLINE)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end(signal.SIGKILL)
        self.log.close()


class WitnessTest(unittest.TestCase):
    """One fact a test."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="witness-test-")
        self.state = os.path.join(self.dir, "state")

    def tearDown(self):
        shutil.rmtree(self.dir)

    def start(self, *options, **kw):
        """A witness on this test's state directory, ended with the test."""
        w = Witness(self.state, *options, **kw)
        self.addCleanup(w.__exit__)
        return w.ready()

    def client(self, w, **kw):
        """A client, closed with the test."""
        c = Client(w.port, **kw)
        self.addCleanup(c.close)
        return c

    def test_unknown_vm_reads_as_generation_zero(self):
        c = self.client(self.start())
        self.assertEqual(c.read("never-seen"), (0, bytes(16), bytes(16)))
        self.assertEqual(os.listdir(self.state), [])

    def test_first_cas_is_granted_and_read_back(self):
        c = self.client(self.start())
        a = c.ask(op=CAS, vm="db", expect=0, next=1, holder=b"A" * 16, nonce=b"1" * 16)
        self.assertEqual((a.result, a.register()), (GRANTED, (1, b"A" * 16, b"1" * 16)))
        self.assertEqual(c.read("db"), (1, b"A" * 16, b"1" * 16))
        self.assertEqual(c.read("db2")[0], 0)

    def test_second_side_is_refused_and_told_the_register(self):
        w = self.start()
        a, b = self.client(w), self.client(w)
        self.assertEqual(a.ask(op=CAS, expect=0, next=1, holder=b"A" * 16).result, GRANTED)
        no = b.ask(op=CAS, expect=0, next=1, holder=b"B" * 16)
        self.assertEqual((no.result, no.register()), (REFUSED, (1, b"A" * 16, b"N" * 16)))

    def test_repeated_ask_is_granted_again_but_not_with_another_nonce(self):
        w = self.start()
        ask = {"op": CAS, "expect": 0, "next": 1, "holder": b"A" * 16, "nonce": b"1" * 16}
        self.assertEqual(self.client(w).ask(**ask).result, GRANTED)
        self.assertEqual(self.client(w).ask(**ask).result, GRANTED)
        self.assertEqual(self.client(w).ask(**{**ask, "nonce": b"2" * 16}).result, REFUSED)
        self.assertEqual(self.client(w).ask(**{**ask, "holder": b"B" * 16}).result, REFUSED)

    def test_old_and_future_expectations_are_refused(self):
        c = self.client(self.start())
        self.assertEqual(c.ask(op=CAS, expect=7, next=8).result, REFUSED)
        for g in range(3):
            self.assertEqual(c.ask(op=CAS, expect=g, next=g + 1, nonce=bytes([g]) * 16).result, GRANTED)
        self.assertEqual(c.ask(op=CAS, expect=2, next=9).result, REFUSED)
        self.assertEqual(c.ask(op=CAS, expect=4, next=5).result, REFUSED)
        self.assertEqual(c.ask(op=CAS, expect=3, next=9).result, GRANTED)
        self.assertEqual(c.read()[0], 9)

    def test_one_of_forty_at_once_wins(self):
        w = self.start()
        clients = [self.client(w) for _ in range(40)]
        for i, c in enumerate(clients):
            c.send(op=CAS, expect=0, next=1, holder=bytes([i]) * 16)
        results = [c.receive() for c in clients]
        winners = [i for i, a in enumerate(results) if a.result == GRANTED]
        self.assertEqual(len(winners), 1)
        for a in results:
            self.assertEqual(a.holder, bytes([winners[0]]) * 16)
        self.assertEqual(sum(a.result == REFUSED for a in results), 39)

    def test_pipelined_asks_are_answered_in_order(self):
        c = self.client(self.start())
        for g in range(50):
            c.send(op=CAS, expect=g, next=g + 1)
        for g in range(50):
            a = c.receive()
            self.assertEqual((a.result, a.generation, a.tag), (GRANTED, g + 1, g + 1))

    def test_registers_survive_a_clean_restart(self):
        w = self.start()
        c = self.client(w)
        for vm in ("a", "b.c", "D-9_x"):
            self.assertEqual(c.ask(op=CAS, vm=vm, expect=0, next=5, holder=b"h" * 16).result, GRANTED)
        self.assertEqual(w.end(), 0)
        c = self.client(self.start())
        for vm in ("a", "b.c", "D-9_x"):
            self.assertEqual(c.read(vm), (5, b"h" * 16, b"N" * 16))

    def test_kill_9_in_a_storm_loses_no_grant(self):
        """Kill at a random instant with asks in flight: what was answered is there; what was not is either."""
        rng = random.Random(SEED)
        vms = ["storm-a", "storm-b", "storm-c"]
        sure = {vm: (0, bytes(16), bytes(16)) for vm in vms}
        grants = in_flight_kept = in_flight_lost = 0
        for _ in range(30):
            with Witness(self.state) as w:
                c = Client(w.ready().port)
                for vm in vms:
                    self.assertEqual(c.read(vm), sure[vm], f"seed {SEED}")
                pending = {}
                for _ in range(rng.randrange(1, 12)):
                    for vm in vms:
                        pending[vm] = (sure[vm][0] + 1, b"H" * 16, rng.randbytes(16))
                        c.send(op=CAS, vm=vm, expect=sure[vm][0], next=pending[vm][0], nonce=pending[vm][2])
                    for vm in vms:
                        self.assertEqual(c.receive().result, GRANTED)
                        sure[vm] = pending.pop(vm)
                        grants += 1
                chain = {vm: [sure[vm]] for vm in vms}  # asks whose answers nobody may see
                for _ in range(6):
                    for vm in vms:
                        before = chain[vm][-1][0]
                        chain[vm].append((before + 1, b"H" * 16, rng.randbytes(16)))
                        c.send(op=CAS, vm=vm, expect=before, next=before + 1, nonce=chain[vm][-1][2])
                select.select([], [], [], rng.random() ** 2 * 0.01)
                w.end(signal.SIGKILL)
                with self.assertRaises(Gone):
                    while True:
                        answer = c.receive()
                        self.assertEqual(answer.result, GRANTED)
                        sure[answer.vm] = answer.register()
                c.close()
            with Witness(self.state) as w:
                c = Client(w.ready().port)
                for vm in vms:
                    now = c.read(vm)
                    answered = chain[vm].index(sure[vm])
                    self.assertIn(now, chain[vm][answered:], f"seed {SEED}: an answered grant was lost")
                    at = chain[vm].index(now)
                    in_flight_kept += at - answered
                    in_flight_lost += len(chain[vm]) - 1 - at
                    for again in chain[vm][max(at, 1):]:  # the last one that took place, then the rest
                        a = c.ask(op=CAS, vm=vm, expect=again[0] - 1, next=again[0], nonce=again[2])
                        self.assertEqual((a.result, a.register()), (GRANTED, again), f"seed {SEED}")
                    sure[vm] = chain[vm][-1]
                c.close()
        print(f"kill -9 storm: seed {SEED}, {grants} grants, {in_flight_kept} in flight kept, {in_flight_lost} not",
              file=sys.stderr)
        self.assertGreater(grants, 150)
        self.assertGreater(in_flight_lost, 0, "no kill came before the disk: the test is too weak")
        self.assertEqual(sorted(os.listdir(self.state)), [vm + ".register" for vm in vms])

    def damaged(self, change):
        """Start on a register file that was changed; return (exit code, log)."""
        w = self.start()
        self.client(w).ask(op=CAS, vm="db", expect=0, next=41)
        self.assertEqual(w.end(), 0)
        path = os.path.join(self.state, "db.register")
        with open(path, "rb") as f:
            data = f.read()
        change(path, data)
        with Witness(self.state) as w:
            return w.process.wait(DEADLINE), w.lines()

    def test_torn_file_is_refused_at_start(self):
        def change(path, data):
            with open(path, "wb") as f:
                f.write(data[:-30])
        code, log = self.damaged(change)
        self.assertEqual(code, 78)
        self.assertRegex(log, r"db\.register: it is cut off.*does not guess.*--restore VM=GENERATION")

    def test_edited_file_is_refused_at_start(self):
        def change(path, data):
            with open(path, "wb") as f:
                f.write(data.replace(b"generation=41", b"generation=40"))
        code, log = self.damaged(change)
        self.assertEqual(code, 78)
        self.assertIn("checksum is wrong", log)

    def test_file_under_another_name_is_refused_at_start(self):
        code, log = self.damaged(lambda path, data: os.rename(path, path.replace("db.", "web.")))
        self.assertEqual(code, 78)
        self.assertIn('the register of another VM, "db"', log)

    def test_untouched_file_is_taken_by_the_same_procedure(self):
        """Control of the three before: without the damage the start is good."""
        w = self.start()
        self.client(w).ask(op=CAS, vm="db", expect=0, next=41)
        self.assertEqual(w.end(), 0)
        self.assertEqual(self.client(self.start()).read("db")[0], 41)

    def restore(self, value):
        """witness --restore; returns (exit code, log)."""
        r = subprocess.run([WITNESS, "--state-dir", self.state, "--restore", value], capture_output=True, text=True,
                           timeout=DEADLINE, check=False)
        return r.returncode, r.stderr

    def test_damaged_register_can_be_restored(self):
        self.damaged(lambda path, data: os.truncate(path, 50))
        self.assertEqual(self.restore("db=41")[0], 0)
        self.assertEqual(sorted(os.listdir(self.state)), ["db.register", "db.register.damaged"])
        c = self.client(self.start())
        self.assertEqual(c.read("db"), (41, bytes(16), bytes(16)))
        self.assertEqual(c.ask(op=CAS, vm="db", expect=41, next=42).result, GRANTED)

    def test_lost_register_can_be_restored(self):
        self.assertEqual(self.restore("db=7")[0], 0)
        self.assertEqual(self.client(self.start()).read("db")[0], 7)

    def test_good_register_cannot_be_restored(self):
        w = self.start()
        self.client(w).ask(op=CAS, vm="db", expect=0, next=41)
        code, log = self.restore("db=40")
        self.assertEqual(code, 69)
        self.assertIn("another witness uses", log)
        w.end()
        code, log = self.restore("db=40")
        self.assertEqual(code, 78)
        self.assertIn("not damaged and at generation 41: it is left alone", log)
        self.assertEqual(self.client(self.start()).read("db")[0], 41)
        for value in ("db", "db=", "=5", "db=0", "db=x", "../x=1", "x" * 60 + "=1"):
            self.assertEqual(self.restore(value)[0], 64, value)

    def test_temporary_file_of_a_crash_is_removed(self):
        os.mkdir(self.state)
        path = os.path.join(self.state, ".db.register.new")
        with open(path, "w", encoding="ascii") as f:
            f.write("pollux-regi")
        self.start()
        self.assertFalse(os.path.exists(path))

    def test_second_witness_on_the_directory_is_refused(self):
        self.start()
        with Witness(self.state) as w:
            self.assertEqual(w.process.wait(DEADLINE), 69)
            self.assertIn("another witness uses the state directory", w.lines())

    def test_full_disk_answers_error_and_changes_nothing(self):
        os.mkdir(self.state)
        probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", self.state], check=False,
                               capture_output=True)
        if probe.returncode:
            self.skipTest("needs root for a tmpfs of its own")
        script = 'mount -t tmpfs -o size=32k tmpfs "$0" && exec "$@"'
        w = self.start(prefix=("unshare", "-m", "sh", "-c", script, self.state))
        inside = f"/proc/{w.process.pid}/root{self.state}"
        c = self.client(w)
        self.assertEqual(c.ask(op=CAS, vm="db", expect=0, next=1).result, GRANTED)
        self.assertTrue(os.path.exists(os.path.join(inside, "db.register")))
        filler = os.path.join(inside, "filler")
        with self.assertRaises(OSError), open(filler, "wb", buffering=0) as f:
            while True:
                f.write(bytes(4096))
        a = c.ask(op=CAS, vm="new", expect=0, next=1)
        self.assertEqual((a.result, a.generation), (ERROR, 0))
        self.assertEqual(c.read("new")[0], 0)
        w.wait_for(r"error: vm new: cannot write its register: No space left on device; nothing was granted")
        a = c.ask(op=CAS, vm="db", expect=1, next=2)  # a register that is there needs no room
        self.assertEqual((a.result, a.generation), (GRANTED, 2))
        self.assertEqual(sorted(os.listdir(inside)), ["db.register", "filler"])
        os.unlink(filler)
        self.assertEqual(c.ask(op=CAS, vm="new", expect=0, next=1).result, GRANTED)

    def test_hostile_bytes_close_the_connection_and_nobody_else(self):
        w = self.start()
        good = self.client(w)
        ok = Stream(generation=0)
        bad = {
            "garbage": b"GET / HTTP/1.1\r\nHost: witness\r\n\r\n" + bytes(20),
            "checksum": ok.record(32, ask_payload(), checksum=1, sequence=0),
            "sequence": ok.record(32, ask_payload(), sequence=5),
            "too long": ok.record(32, ask_payload(), length=1 << 30, sequence=0),
            "other type": ok.record(9, b"", epoch=1, sequence=0),
            "an answer": ok.record(33, ask_payload(), sequence=0),
            "reserved": ok.record(32, ask_payload(reserved=1), sequence=0),
            "operation": ok.record(32, ask_payload(op=3), sequence=0),
            "next not greater": ok.record(32, ask_payload(expect=5, next=5), sequence=0),
            "name with a slash": ok.record(32, ask_payload(vm="../x"), sequence=0),
            "no name": ok.record(32, ask_payload(vm=""), sequence=0),
            "name of 48 bytes": ok.record(32, ask_payload(vm="x" * 48), sequence=0),
        }
        for data in bad.values():
            c = self.client(w)
            c.raw(data)
            c.wait_closed()
            c.close()
        self.assertEqual(len(re.findall(r"closed: ", w.lines())) >= 10, True)
        self.assertEqual(good.read()[0], 0)
        self.assertEqual(os.listdir(self.state), [])

    def test_hostile_clients_cannot_fill_the_log(self):
        w = self.start()
        start = time.monotonic()
        for _ in range(200):
            c = self.client(w)
            c.raw(b"x" * 40)
            c.wait_closed()
            c.close()
        seconds = int(time.monotonic() - start) + 2
        self.assertLessEqual(len(w.lines().splitlines()), 2 + 12 * seconds)
        self.assertGreater(200, 12 * seconds, "too slow a machine to see the limit")

    def test_random_bytes_never_harm(self):
        rng = random.Random(SEED)
        w = self.start()
        good = self.client(w)
        base = Stream(generation=0).arb_ask(op=READ)
        for _ in range(150):
            data = bytearray(base)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            c = self.client(w)
            c.raw(bytes(data[:rng.randrange(1, len(data) + 1)]))
            c.close()
        self.assertEqual(good.read()[0], 0, f"seed {SEED}")
        self.assertIsNone(w.process.poll())

    def test_silent_client_is_closed_and_a_busy_one_is_not(self):
        w = self.start("--client-timeout-ms", "3000")  # long enough for the busy one on a busy machine
        busy, silent = self.client(w), self.client(w)
        start = time.monotonic()
        while select.select([silent.sock], [], [], 0.05)[0] == []:
            busy.read()
            self.assertLess(time.monotonic() - start, DEADLINE)
        self.assertGreater(time.monotonic() - start, 2.5)
        silent.wait_closed()
        busy.read()
        w.wait_for("it was silent too long")

    def test_half_a_record_is_closed(self):
        w = self.start("--client-timeout-ms", "2000")
        c = self.client(w)
        c.read()
        c.raw(c.stream.arb_ask(op=READ)[:77])
        c.wait_closed()
        w.wait_for("it sent part of a record and no more")

    def test_bytes_that_drip_do_not_hold_the_place(self):
        """A byte now and then is no complete ask: the deadline stands."""
        c = self.client(self.start("--client-timeout-ms", "300"))
        data = c.stream.arb_ask(op=READ)
        end = time.monotonic() + DEADLINE
        with self.assertRaises(Gone):
            for byte in data[:-1] * 1000:
                self.assertLess(time.monotonic(), end, "not closed")
                c.raw(bytes([byte]))
                if select.select([c.sock], [], [], 0.02)[0] and not c.sock.recv(1):
                    raise Gone

    def test_client_that_takes_no_answers_is_closed(self):
        w = self.start("--client-timeout-ms", "500")
        c = self.client(w)
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asks = [c.stream.arb_ask(op=READ) for _ in range(200)]
        c.sock.settimeout(0.2)
        with self.assertRaises((Gone, OSError)):
            end = time.monotonic() + DEADLINE
            while time.monotonic() < end:
                for i in range(200):
                    asks[i] = c.stream.arb_ask(op=READ)
                try:
                    c.sock.sendall(b"".join(asks))
                except socket.timeout:
                    break
            w.wait_for("it does not take its answers")
            raise Gone
        self.assertEqual(self.client(w).read()[0], 0)

    def test_full_table_turns_away_then_makes_room(self):
        w = self.start()
        crowd = [self.client(w) for _ in range(256)]
        for c in crowd:
            c.read()
        late = self.client(w)
        late.wait_closed()
        w.wait_for("all 256 places are taken")
        end = time.monotonic() + DEADLINE
        while True:  # nobody of the crowd asks any more: after three seconds one of them goes
            try:
                self.client(w).read()
                break
            except Gone:
                self.assertLess(time.monotonic(), end)
                select.select([], [], [], 0.1)
        crowd[0].wait_closed()

    def test_ipv6_and_several_addresses(self):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            self.skipTest("no IPv6 here")
        w = self.start("--listen", "[::1]:0")
        port6 = int(w.wait_for(r"listening on \[::1\]:(\d+)").group(1))
        c4, c6 = self.client(w), Client(port6, host="::1")
        self.addCleanup(c6.close)
        self.assertEqual(c6.ask(op=CAS, expect=0, next=1).result, GRANTED)
        self.assertEqual(c4.read()[0], 1)

    def test_service_manager_is_told(self):
        for abstract in (False, True):
            name = f"\0witness-test-{os.getpid()}" if abstract else os.path.join(self.dir, "notify")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.bind(name)
                sock.settimeout(DEADLINE)
                with Witness(self.state, env={**os.environ, "NOTIFY_SOCKET": name.replace("\0", "@")}) as w:
                    self.assertIn(b"READY=1", sock.recv(1000))
                    Client(w.ready().port).close()
                    self.assertEqual(w.end(), 0)
                    self.assertIn(b"STOPPING=1", sock.recv(1000))

    def test_sigusr1_prints_counts(self):
        w = self.start()
        c = self.client(w)
        c.read()
        c.ask(op=CAS, expect=0, next=1)
        c.ask(op=CAS, expect=0, next=1, nonce=b"x" * 16)
        w.process.send_signal(signal.SIGUSR1)
        w.wait_for(r"status: 1 registers, 1 clients; 1 reads, 1 granted, 1 refused, 0 errors; grant p50 \d+ us")

    def test_options(self):
        def run(*args):
            return subprocess.run([WITNESS, *args], capture_output=True, text=True, timeout=DEADLINE, check=False)
        self.assertEqual(run("--help").returncode, 0)
        self.assertIn("--state-dir DIR", run("--help").stdout)
        self.assertRegex(run("--version").stdout, r"^witness \(Pollux\) \S+\n$")
        for args, words in ((("--nonsense",), "unknown option"), (("-x",), "unknown option"), (("x",), "unexpected"),
                            (("--listen",), "needs a value"), (("--help=1",), "takes no value"),
                            (("--listen", "localhost:1"), "must be ADDR:PORT"),
                            (("--listen", "1.2.3.4:70000"), "must be ADDR:PORT"),
                            (("--listen", "::1"), "must be ADDR:PORT"), (("--listen", ":1"), "must be ADDR:PORT"),
                            (("--log-level=loud",), "must be error"), (("--client-timeout-ms", "1"), "whole number")):
            result = run(*args)
            self.assertEqual(result.returncode, 64, args)
            self.assertIn(words, result.stderr)
        for args in (("--state-dir", "/proc/none/x"), ("--state-dir", WITNESS)):
            result = run("--listen", "127.0.0.1:0", *args)
            self.assertEqual(result.returncode, 78)
            self.assertIn("cannot use the state directory", result.stderr)

    def test_taken_port_is_said(self):
        with socket.create_server(("127.0.0.1", 0)) as s:
            with Witness(self.state, listen=f"127.0.0.1:{s.getsockname()[1]}") as w:
                self.assertEqual(w.process.wait(DEADLINE), 69)
                self.assertIn("Address already in use", w.lines())

    def test_no_descriptor_is_lost(self):
        w = self.start()
        where = f"/proc/{w.process.pid}/fd"
        keep = self.client(w)
        keep.read()
        before = len(os.listdir(where))
        for i in range(30):
            c = self.client(w)
            c.ask(op=CAS, vm=f"v{i}", expect=0, next=1)
            c.close()
        end = time.monotonic() + DEADLINE
        while len(os.listdir(where)) != before:
            keep.read()
            self.assertLess(time.monotonic(), end)


if __name__ == "__main__":
    facts.main()
