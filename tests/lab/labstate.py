# SPDX-License-Identifier: GPL-2.0-or-later
"""labstate.py - one lab's run directory and the state file in it

Owns: naming, finding, making and removing the run directory (mode 0700), and reading and changing
state.json under a lock. What is about to be made is written down before it is made, so that `down`
finds everything also after a crash. Never touches a process or a network.
"""
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import time

HOSTS = ("a", "b", "witness", "client")
GUEST_HOSTS = ("a", "b")
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,15}\Z")
LOCK_DEADLINE_S = 30
# sun_path holds 107 bytes and a NUL; the longest name below a run directory is
# "witness/qmp-pollux.sock".
RUN_DIR_MAX = 80


class LabError(Exception):
    """A sentence for the person at the keyboard."""


def base_dir():
    """Where run directories are made: $XDG_RUNTIME_DIR when it is usable, else /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return runtime if runtime and os.path.isdir(runtime) else "/tmp"


def boot_id():
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def known_labs():
    """{name: run directory} of all labs below base_dir()."""
    labs = {}
    for entry in sorted(os.listdir(base_dir())):
        path = os.path.join(base_dir(), entry)
        if entry.startswith("pollux-lab-") and os.path.isdir(path):  # state.json may be on its way
            labs[entry[len("pollux-lab-") :]] = path
    return labs


def find(name=None, directory=None):
    """The run directory that the options (or POLLUX_LAB, or being the only lab) mean."""
    if directory:
        return os.path.abspath(directory)
    name = name or os.environ.get("POLLUX_LAB")
    labs = known_labs()
    if name:
        if name not in labs:
            raise LabError(
                f"no lab '{name}' in {base_dir()} (there are: {', '.join(labs) or 'none'}); "
                "a lab that was made with --dir needs --dir again"
            )
        return labs[name]
    if len(labs) == 1:
        return next(iter(labs.values()))
    if not labs:
        raise LabError(f"no lab in {base_dir()}: make one with 'lab up', or name its --dir")
    raise LabError(
        f"there are several labs ({', '.join(labs)}): choose one with --name or POLLUX_LAB"
    )


class State:
    """state.json of one run directory."""

    def __init__(self, directory):
        self.directory = directory
        self.path = os.path.join(directory, "state.json")

    @classmethod
    def create(cls, name=None, directory=None):
        """Makes the run directory and a first state; the name is invented when none is given."""
        if name is not None and not NAME_PATTERN.match(name):
            raise LabError(
                f"'{name}' is no lab name: 1 to 16 of a-z, 0-9 and '-', not starting with '-'"
            )
        for _ in range(16):
            chosen = name or secrets.token_hex(2)
            path = os.path.abspath(directory or os.path.join(base_dir(), f"pollux-lab-{chosen}"))
            if len(path) > RUN_DIR_MAX:
                raise LabError(
                    f"the run directory {path} is longer than {RUN_DIR_MAX} bytes, too long for "
                    "the unix sockets in it: choose a shorter --dir"
                )
            try:
                os.mkdir(path, 0o700)
                break
            except FileExistsError:
                if name or directory:
                    raise LabError(
                        f"{path} exists already: is that lab still up? End it with "
                        f"'lab down {'--dir ' + path if directory else '--name ' + chosen}'"
                    ) from None
            except OSError as error:
                raise LabError(f"cannot make {path}: {error.strerror}") from None
        else:
            raise LabError("no free lab name found: choose one with --name")
        state = cls(path)
        state._write(
            {
                "version": 1,
                "name": chosen,
                "boot_id": boot_id(),
                "created": time.time(),
                "phase": "starting",
                "owner_pid": os.getpid(),
                "options": {},
                "power": {},
                "processes": [],
                "cuts": [],
            }
        )
        return state

    @classmethod
    def open(cls, directory):
        """An existing lab's state; refuses a directory that another user could have put there."""
        try:
            info = os.lstat(directory)
        except FileNotFoundError:
            raise LabError(f"{directory} does not exist: no such lab") from None
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
            raise LabError(
                f"{directory} is not a private directory of uid {os.geteuid()} (mode 0700): not "
                f"touched"
            )
        state = cls(directory)
        if not os.path.exists(state.path):
            raise LabError(
                f"{directory} has no state.json, so it is no lab: not touched. Remove it by hand "
                f"if it is one "
                "that was killed while it was being made"
            )
        return state

    def read(self):
        try:
            with open(self.path, encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            raise LabError(f"{self.directory} is gone: the lab has been taken down") from None
        except ValueError as error:
            raise LabError(f"{self.path} is not readable as JSON ({error})") from None

    def _write(self, content):
        temporary = f"{self.path}.{os.getpid()}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        os.rename(temporary, self.path)

    @contextlib.contextmanager
    def change(self):
        """`with state.change() as s:` gives the content to change; written back unless an error is
        raised.
        """
        deadline = time.monotonic() + LOCK_DEADLINE_S
        try:
            lock = open(os.path.join(self.directory, "lock"), "a", encoding="ascii")
        except FileNotFoundError:
            raise LabError(f"{self.directory} is gone: the lab has been taken down") from None
        with lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise LabError(
                            f"another lab command has held {lock.name} for {LOCK_DEADLINE_S} s"
                        ) from None
                    time.sleep(0.01)
            content = self.read()
            yield content
            self._write(content)

    def remove(self):
        """Removes the run directory with all that is in it."""
        shutil.rmtree(self.directory)
