# SPDX-License-Identifier: GPL-2.0-or-later
"""lablib.py - one lab: hosts a, b, witness and client, with everything that runs in them

Theory of operation. A host is a network namespace (labnet.py), a folder in the run directory and
the processes inside the namespace. `up` writes down each thing before or as it makes it
(labstate.py), so that `down`, from another process and also after a crash, finds all of it:
processes by namespace and by (pid, start time), namespaces by the lab's name.

A power loss takes the host's switch ports down first, so that no FIN or RST leaves, and then kills
every process in it. `start` gives the host a new namespace, since a kernel that was off remembers
no sockets; its folder (disk, state of polluxd) stays, as a disk would.

Owns everything named here. Never touches the root namespace, nor any process outside its own.
"""
import os
import shutil
import signal
import sys
import time

import labdaemon
import labnet
import labproc
import labqemu
import labqmp
import labready
from labstate import GUEST_HOSTS, HOSTS, LabError, State, boot_id

DEFAULTS = {
    "accel": "tcg",
    "machine": "pc",
    "memory": None,
    "smp": 1,
    "nics": 1,
    "workload": "redis",
    "disk": "none",
    "qemu": None,
    "device": [],
    "append": [],
    "qemu_arg": [],
    "polluxd_arg": [],
    "standby_memory": None,
    "standby_machine": None,
    "standby_smp": None,
    "standby_nics": None,
    "standby_qemu": None,
    "standby_device": [],
    "standby_qemu_arg": [],
    "no_pollux": False,
    "no_guest": False,
    "unsafe_no_hold": False,
    "peer_timeout_ms": None,
    "pair": False,
    "ready_timeout": 120.0,
    "pair_timeout": 120.0,
}


def need_root():
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces and needs root: run it with sudo")


def become_root():
    """Runs this same command again through sudo when we are not root; the variables we know of go
    along.
    """
    if os.geteuid() == 0:
        return
    if not shutil.which("sudo"):
        raise LabError("the lab makes network namespaces and needs root, and there is no sudo")
    known = (
        "XDG_RUNTIME_DIR",
        "PATH",
        "ROUNDS",
        "WORKLOAD",
        "SEED",
        "UNSAFE",
        "ACCEL",
        "MACHINE",
        "MEMORY",
        "PEER_TIMEOUT_MS",
    )
    carried = [
        f"{key}={value}"
        for key, value in os.environ.items()
        if key in known or key.startswith("POLLUX_")
    ]
    os.execvp(
        "sudo",
        [
            "sudo",
            "env",
            *carried,
            sys.executable,
            *map(os.path.abspath, sys.argv[:1]),
            *sys.argv[1:],
        ],
    )


class Progress:
    """Lines on stderr that say what is happening; quiet=True for none."""

    def __init__(self, quiet=False):
        self.quiet = quiet
        self.begin = time.monotonic()

    def __call__(self, text):
        if not self.quiet:
            print(
                f"lab: {time.monotonic() - self.begin:5.1f} s  {text}", file=sys.stderr, flush=True
            )


class Lab:
    """A lab that exists (Lab.open) or is made (Lab.make)."""

    def __init__(self, state, progress=None):
        self.state = state
        self.directory = state.directory
        self.name = state.read()["name"]
        self.progress = progress or Progress(quiet=True)

    @classmethod
    def open(cls, directory, progress=None):
        need_root()
        return cls(State.open(directory), progress)

    @classmethod
    def make(cls, name=None, directory=None, progress=None, **options):
        """Makes a lab and waits until its guest is ready; on any failure, also Ctrl-C, nothing is
        left.
        """
        need_root()
        unknown = set(options) - set(DEFAULTS)
        if unknown:
            raise LabError(f"unknown options: {', '.join(sorted(unknown))}")
        options = {**DEFAULTS, **options}
        if options["memory"] is None:
            options["memory"] = 64 if options["workload"] == "bootsector" else 512
        labqemu.check(options)
        if options["pair"] and (options["no_pollux"] or options["no_guest"]):
            raise LabError("--pair needs guests and polluxd: leave --no-pollux and --no-guest out")
        if not options["no_guest"]:
            for host in GUEST_HOSTS:  # before anything is made: what is missing?
                labqemu.qemu_program(labqemu.side_options(options, host).get("qemu"))
            for file in (
                ("bootsector.img",)
                if options["workload"] == "bootsector"
                else ("vmlinuz", "initrd.img")
            ):
                labqemu.guest_file(file)
            options["append"] = [*labqemu.clock_words(options), *options["append"]]
        if not options["no_pollux"]:
            labdaemon.check_programs()
        lab = cls(State.create(name, directory), progress)
        try:
            lab._up(options)
        except BaseException as error:
            with deaf_to_signals():
                if isinstance(error, LabError):
                    error = lab._keep_logs(error)
                lab.down()
            raise error from None
        return lab

    def _keep_logs(self, error):
        """The logs of a lab that failed are what its user needs: they go to another folder before
        down().
        """
        kept = os.path.join("/tmp", f"pollux-failed-lab-{self.name}-{os.getpid()}")
        try:
            os.mkdir(kept, 0o700)
        except OSError:
            return error
        count = 0
        for host in HOSTS:
            folder = self.path(host)
            for entry in os.listdir(folder) if os.path.isdir(folder) else ():
                if entry.endswith((".log", ".args")):
                    shutil.copyfile(
                        os.path.join(folder, entry), os.path.join(kept, f"{host}-{entry}")
                    )
                    count += 1
        if not count:
            os.rmdir(kept)
            return error
        return LabError(f"{error}\nThe logs of this lab are kept in {kept}")

    # --- names and records ------------------------------------------------------------------------

    def path(self, host, *parts):
        return os.path.join(self.directory, host, *parts)

    def space(self, host):
        return labnet.namespace(self.name, host)

    @property
    def options(self):
        return self.state.read()["options"]

    def power(self, host):
        return self.state.read()["power"].get(host, "none")

    def records(self, host, role=None):
        """Records of the host's processes that we started and that still run."""
        return [
            r
            for r in self.state.read()["processes"]
            if r["host"] == host and role in (None, r["role"]) and labproc.alive(r)
        ]

    def check_host(self, host, among=HOSTS):
        if host not in among:
            raise LabError(f"no host '{host}' here: choose one of {', '.join(among)}")

    def _spawn(self, host, role, argv):
        directory = self.path(host)
        with open(os.path.join(directory, f"{role}.args"), "w", encoding="utf-8") as file:
            file.write("\n".join(argv) + "\n")
        with self.state.change() as state:
            # The process starts under the lock: `down` either sees it or prevents it.
            if state["phase"] == "ending":
                raise LabError("the lab is being taken down")
            pid, start = labproc.spawn(
                self.space(host), argv, os.path.join(directory, f"{role}.log"), directory
            )
            record = {"host": host, "role": role, "pid": pid, "start": start}
            state["processes"] = [
                r for r in state["processes"] if (r["host"], r["role"]) != (host, role)
            ] + [record]
        return record

    # --- up ---------------------------------------------------------------------------------------

    def _up(self, options):
        with self.state.change() as state:
            state["options"] = options
        labnet.add_switch(self.name)
        for host in HOSTS:
            os.mkdir(self.path(host), 0o700)
            self._add_host(host)
        self.progress(
            f"lab '{self.name}' in {self.directory}: switch and hosts {', '.join(HOSTS)} are there"
        )
        if not options["no_pollux"]:
            self._start_witness()
        if not options["no_guest"]:
            for host in ("b", "a"):
                self._start_qemu(host, standby=host == "b")
            if not options["no_pollux"]:
                for host in GUEST_HOSTS:
                    self._start_polluxd(host)
            labready.wait_guest_ready(self, "a", options["ready_timeout"])
        if options["pair"]:
            self.pair("a", options["pair_timeout"])
        with self.state.change() as state:
            state["phase"] = "up"

    def _add_host(self, host):
        with self.state.change() as state:
            state["power"][host] = "on"
        labnet.add_host(self.name, host, self._nics(host))

    def _nics(self, host):
        options = self.options
        return (
            labqemu.side_options(options, host)["nics"] if host in GUEST_HOSTS else options["nics"]
        )

    def _start_qemu(self, host, standby):
        options = labqemu.side_options(self.options, host)
        directory = self.path(host)
        for socket_name in ("serial", "qmp-pollux", "qmp-test"):
            remove_if_there(os.path.join(directory, f"{socket_name}.sock"))
        record = self._spawn(
            host, "qemu", labqemu.command_line(self.name, host, options, directory, standby)
        )
        for socket_name in ("qmp-pollux", "qmp-test", "serial"):
            self._wait_socket(record, os.path.join(directory, f"{socket_name}.sock"))
        self.progress(
            f"{host}: QEMU runs, pid {record['pid']}"
            + (" (standby, not executing)" if standby else "")
        )

    def _wait_socket(self, record, path):
        labready.wait_socket(self, record, path)

    def _start_polluxd(self, host):
        directory = self.path(host)
        os.makedirs(os.path.join(directory, "state"), 0o700, exist_ok=True)
        record = self._spawn(host, "polluxd", labdaemon.polluxd_argv(host, self.options, directory))
        self._wait_socket(record, os.path.join(directory, "control.sock"))
        self.progress(f"{host}: polluxd runs, pid {record['pid']}")

    def _start_witness(self):
        directory = self.path("witness")
        os.makedirs(os.path.join(directory, "state"), 0o700, exist_ok=True)
        record = self._spawn("witness", "witness", labdaemon.witness_argv(directory))
        labready.wait_port(self, record, labnet.REP["witness"], labnet.WITNESS_PORT)
        self.progress(f"witness: runs, pid {record['pid']}")

    # --- the pair ---------------------------------------------------------------------------------

    def pollux(self, host, *arguments):
        """argv of the pollux CLI for a host's daemon."""
        return [
            labqemu.program("pollux", "POLLUX_CLI"),
            "--control",
            self.path(host, "control.sock"),
            *arguments,
        ]

    def status_of(self, host, timeout_s=5):
        return labdaemon.status(self.path(host), timeout_s)

    def pair(self, host="a", timeout_s=120):
        """Runs `pollux pair` on a host and waits until its guest is protected."""
        labnet.run(self.pollux(host, "pair", "--peer", labdaemon.peer_address(host)))
        shown = [None]

        def show(status):
            text = status.get("state") + (
                f" {status['sync_percent']} %" if status.get("state") == "syncing" else ""
            )
            if text != shown[0]:
                self.progress(f"{host}: {text}")
                shown[0] = text

        return labdaemon.wait_status(
            self.path(host), lambda s: s.get("protected"), "protected", timeout_s, show
        )

    # --- faults -----------------------------------------------------------------------------------

    def kill(self, host):
        """Power loss: links down first, then every process killed. Returns the moments, monotonic
        ns.
        """
        self.check_host(host)
        with self.state.change() as state:
            if state["power"].get(host) in (None, "off"):
                raise LabError(f"host {host} is off already")
            state["power"][host] = "off"
            begin = time.monotonic_ns()
            labnet.set_power(self.name, host, False)
            link_down = time.monotonic_ns()
            pids = labproc.signal_host(self.space(host), signal.SIGKILL)
            killed = time.monotonic_ns()
        labproc.wait_host_empty(self.space(host))
        # What the dead kernel's sockets still have to say goes nowhere; let it forget them soon.
        labnet.sysctl_in(self.space(host), {"net/ipv4/tcp_orphan_retries": 1})
        self._apply_rules()
        return {
            "host": host,
            "monotonic_ns": begin,
            "link_down_ns": link_down,
            "killed_ns": killed,
            "pids": pids,
        }

    def start(self, host):
        """Power on: a new namespace and the host's programs; a or b comes back as a standby."""
        self.check_host(host)
        options = self.options
        if self.power(host) != "off":
            raise LabError(f"host {host} is not off: only a killed host can be started")
        labproc.wait_host_empty(self.space(host))
        labnet.delete_host(self.name, host)
        self._add_host(host)
        self._apply_rules()
        if host == "witness" and not options["no_pollux"]:
            self._start_witness()
        if host in GUEST_HOSTS and not options["no_guest"]:
            log = self.path(host, "serial.log")
            if os.path.exists(log):
                os.replace(log, log + ".old")
            self._start_qemu(host, standby=True)
            if not options["no_pollux"]:
                self._start_polluxd(host)

    def pause(self, host, processes_only=False):
        """The host stands still: its ports pass nothing, its processes are stopped."""
        self.check_host(host)
        with self.state.change() as state:
            if state["power"].get(host) != "on":
                raise LabError(
                    f"host {host} is {state['power'].get(host)}: only a running host can be paused"
                )
            state["power"][host] = "stopped" if processes_only else "paused"
        self._apply_rules()
        begin = time.monotonic_ns()
        pids = labproc.signal_host(self.space(host), signal.SIGSTOP)
        return {"host": host, "monotonic_ns": begin, "pids": pids}

    def resume(self, host):
        self.check_host(host)
        with self.state.change() as state:
            if state["power"].get(host) not in ("paused", "stopped"):
                raise LabError(f"host {host} is not paused")
            state["power"][host] = "on"
        self._apply_rules()
        begin = time.monotonic_ns()
        pids = labproc.signal_host(self.space(host), signal.SIGCONT)
        return {"host": host, "monotonic_ns": begin, "pids": pids}

    def cut(self, one, other):
        """Blocks all frames between two hosts, both ways, on both networks; nobody is told."""
        self.check_host(one)
        self.check_host(other)
        if not labnet.pair_ports(one, other):
            raise LabError(f"{one} and {other} share no network: there is nothing to cut")
        pair = sorted((one, other))
        with self.state.change() as state:
            if pair not in state["cuts"]:
                state["cuts"].append(pair)
        try:
            self._apply_rules()
        except LabError:
            with self.state.change() as state:
                state["cuts"].remove(pair)
            raise
        return time.monotonic_ns()

    def heal(self):
        """Ends all cuts."""
        with self.state.change() as state:
            state["cuts"] = []
        self._apply_rules()
        return time.monotonic_ns()

    def _apply_rules(self):
        state = self.state.read()
        silent = [host for host, power in state["power"].items() if power == "paused"]
        if state["cuts"] or silent or state.get("rules"):
            labnet.set_rules(self.name, state["cuts"], silent)
            with self.state.change() as state:
                state["rules"] = bool(state["cuts"] or silent)

    # --- looking ----------------------------------------------------------------------------------

    def qmp(self, host, timeout_s=10):
        """A connection to the host's QEMU (its QMP socket for tests)."""
        self.check_host(host, GUEST_HOSTS)
        return labqmp.Qmp(self.path(host, "qmp-test.sock"), timeout_s)

    def command(self, host, argv):
        """argv that runs a command inside a host."""
        self.check_host(host)
        return labnet.inside(self.space(host), *argv)

    def status(self):
        """Everything a person or a test may want to know, as one object."""
        state = self.state.read()
        spaces = labnet.namespaces()
        inside = labproc.in_any_host([self.space(host) for host in HOSTS])
        result = {
            "version": 1,
            "name": self.name,
            "directory": self.directory,
            "phase": state["phase"],
            "options": state["options"],
            "cuts": state["cuts"],
            "switch": labnet.namespace(self.name, "sw"),
            "guest": {
                "addresses": [labnet.guest_ip(i) for i in range(state["options"].get("nics", 0))],
                "addresses6": [labnet.guest_ip6(i) for i in range(state["options"].get("nics", 0))],
                "macs": [labnet.guest_mac(i) for i in range(state["options"].get("nics", 0))],
            },
            "hosts": {},
        }
        for host in HOSTS:
            space = self.space(host)
            records = [r for r in state["processes"] if r["host"] == host]
            folder = self.path(host)
            entry = {
                "power": state["power"].get(host, "none"),
                "namespace": space,
                "exists": space in spaces,
                "links": labnet.links(space) if space in spaces else [],
                "processes": [{**r, "alive": labproc.alive(r)} for r in records],
                "pids": inside.get(space, []),
                "sockets": sorted(
                    os.path.join(folder, x) for x in os.listdir(folder) if x.endswith(".sock")
                )
                if os.path.isdir(folder)
                else [],
            }
            if host in GUEST_HOSTS and entry["power"] == "on":
                entry["guest"] = self._ask(lambda h=host: self._guest_status(h))
                if not state["options"].get("no_pollux"):
                    entry["polluxd"] = self._ask(lambda h=host: self.status_of(h, 2))
            result["hosts"][host] = entry
        return result

    def _guest_status(self, host):
        with self.qmp(host, 2) as qmp:
            return qmp.command("query-status")

    @staticmethod
    def _ask(function):
        try:
            return function()
        except (LabError, OSError) as error:
            return {"error": str(error)}

    # --- down -------------------------------------------------------------------------------------

    def down(self):
        """Ends everything of this lab; may be called again, and by another process than the one
        that made it.
        """
        errors = []

        def attempt(function, *arguments):
            try:
                return function(*arguments)
            except (LabError, OSError) as error:
                errors.append(str(error))
                return None

        state = None
        try:
            with self.state.change() as content:
                content["phase"] = "ending"
                state = content
        except LabError as error:
            errors.append(str(error))
        hosts = [*HOSTS, "sw"]
        for host in hosts:
            attempt(labproc.signal_host, self.space(host), signal.SIGKILL)
        if state and state["boot_id"] == boot_id():
            for record in state["processes"]:
                attempt(labproc.kill_record, record)
        for host in hosts:
            attempt(labproc.wait_host_empty, self.space(host))
        for host in HOSTS:
            attempt(labnet.delete_host, self.name, host)
        attempt(labnet.delete_namespace, self.space("sw"))
        labproc.reap()
        if errors:
            raise LabError(
                "the lab is not quite down: "
                + "; ".join(errors)
                + f". Its state is kept in {self.directory}"
            )
        self.state.remove()


class deaf_to_signals:
    """`with deaf_to_signals():` clean-up is not itself interrupted; it has deadlines of its own."""

    NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __enter__(self):
        self.before = [signal.signal(number, signal.SIG_IGN) for number in self.NUMBERS]

    def __exit__(self, *_):
        for number, handler in zip(self.NUMBERS, self.before):
            signal.signal(number, handler)


def interrupt_on_signals():
    """SIGTERM and SIGHUP end us as Ctrl-C does, through the clean-up."""

    def stop(number, _frame):
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def remove_if_there(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
