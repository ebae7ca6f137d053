# SPDX-License-Identifier: GPL-2.0-or-later
#
# support.py - what the tests share: a context that cleans up, a list of tests, small steps

import os

from qmp import QmpError
from vm import Arena, Deadline, Shadow, Vm, build_guest

# KVM on a machine that is itself a guest is slow: fewer there.
KVM_MACHINES = ("pc", "q35", "microvm")
BS_MACHINES = ("pc", "q35", "microvm", "pc-vga", "pc-iothread")


class Skip(Exception):
    """The test cannot run here; says why."""


class Case:
    def __init__(self, func, name, arguments):
        self.func, self.name, self.arguments = func, name, arguments


class Registry(list):
    """TESTS of a module; @TESTS.add or @TESTS.each(machine=[...]) puts a function in."""

    def add(self, func):
        self.append(Case(func, func.__name__, {}))
        return func

    def each(self, **choices):
        (key, values), = choices.items()

        def put(func):
            for value in values:
                label = "_".join(map(str, value)) if isinstance(value, tuple) else str(value)
                self.append(Case(func, "%s[%s]" % (func.__name__, label), {key: value}))
            return func
        return put


class Test:
    """Owns what a test makes."""

    def __init__(self, directory):
        self.directory = directory
        self.vms = []
        self.arenas = []

    def close(self):
        for vm in self.vms:
            vm.close()
        for arena in self.arenas:
            arena.close()

    def vm(self, name="vm", guest=None, image=None, **more):
        """A VM with the boot sector (guest: its arguments)."""
        if image is None:
            image = build_guest(self.directory, **(guest or {}))
        vm = Vm(self.directory, name, image=image, **more)
        self.vms.append(vm)
        return vm

    def running(self, **more):
        vm = self.vm(**more)
        vm.wait_counting()
        return vm

    def arena(self, **more):
        arena = Arena(**more)
        self.arenas.append(arena)
        return arena

    def protected(self, epochs=1, arena=None, **more):
        """A VM that runs, and a session in which some epochs were captured: (vm, arena, shadow).

        arena: its arguments; more: those of the VM.
        """
        vm = self.running(**more)
        arena = self.arena(**(arena or {}))
        shadow, _ = protect(vm, arena, epochs)
        return vm, arena, shadow


def need_kvm():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Skip("no /dev/kvm")


def refused(words, func, *args, **more):
    """func must fail with a sentence that has these words in it."""
    try:
        func(*args, **more)
    except QmpError as error:
        assert words in str(error), "the sentence is another one: %s" % error
        return
    raise AssertionError("it was not refused (%s)" % words)


def initial_sync(vm, arena, shadow):
    """Precopy until what is left fits into a slot, or twice the memory went: then capture epoch 1.

    A guest may write faster than this program copies, and never leave less than a slot.
    """
    slot, taken, most = 0, 0, None
    deadline = Deadline("the precopy of epoch 1")
    while deadline:
        result = vm.capture(slot, 1, precopy=True)
        shadow.take(arena, slot, result["pages"])
        taken += result["pages"]
        most = most or 2 * (taken + result["remaining"])
        if result["complete"] or taken >= most:
            break
        slot = (slot + 1) % arena.slots
    return capture_all(vm, arena, shadow, 1)


def capture_all(vm, arena, shadow, epoch, slot=0, **more):
    """Capture an epoch, over several slots if it must be; returns the last result, and its slot."""
    deadline = Deadline("all of epoch %d" % epoch)
    while deadline:
        result = vm.capture(slot, epoch, **more)
        shadow.take(arena, slot, result["pages"])
        if result["complete"]:
            return {**result, "slot": slot}
        slot = (slot + 1) % arena.slots
        more = {}
    return None


def protect(vm, arena, epochs=1):
    """Start, sync and capture some epochs; returns the shadow and the last result."""
    shadow = Shadow(vm.start("active", arena))
    result = initial_sync(vm, arena, shadow)
    for epoch in range(2, epochs + 1):
        result = capture_all(vm, arena, shadow, epoch, slot=epoch % arena.slots)
    return shadow, result


def final_capture(vm, arena, shadow):
    """Stop the guest and capture the rest: from now on the shadow is all there is."""
    vm.qmp.execute("stop")
    epoch = vm.qmp.execute("query-checkpoint")["epoch"]
    result = capture_all(vm, arena, shadow, epoch)
    assert not result["running"]
    return result


def check_memory(vm, arena, shadow):
    """The shadow, with what is left to capture, is the guest's memory; the guest is stopped."""
    final_capture(vm, arena, shadow)
    assert_equal_memory(shadow, vm)


def assert_equal_memory(shadow, vm):
    wrong = shadow.differences(vm)
    assert not wrong, "%d pages differ, the first: %s" % (len(wrong), wrong[:5])


def hand_over(arena_from, shadow, result, standby, arena_to):
    """Give a standby all of the shadow, and the device state of a result of capture_all; does not
    load it.
    """
    batch = []
    entries = [(block << 40 | page, data) for block, pages in enumerate(shadow.pages)
               for page, data in pages.items()]
    for first in range(0, len(entries), arena_to.slot_pages):
        batch = entries[first:first + arena_to.slot_pages]
        arena_to.set_index(0, [entry for entry, _ in batch])
        for position, (_, data) in enumerate(batch):
            arena_to.set_page(0, position, data)
        standby.qmp.execute("checkpoint-apply", slot=0, pages=len(batch))
    arena_to.set_state(0, arena_from.state(result["slot"], result["state-bytes"]))


def linux(t, cpus, workload):
    """The Linux guest of guest/, its service up; needs POLLUX_GUEST_DIR."""
    directory = os.environ.get("POLLUX_GUEST_DIR")
    if not directory or not os.path.exists(os.path.join(directory, "vmlinuz")):
        raise Skip("POLLUX_GUEST_DIR has no vmlinuz")
    image = os.path.join(t.directory, "disk.img")
    with open(image, "wb") as f:
        f.truncate(16 << 20)
    vm = t.vm("vm", image=image, cpus=cpus, mem_mib=256, extra=[
        "-kernel", os.path.join(directory, "vmlinuz"), "-initrd",
        os.path.join(directory, "initrd.img"), "-append",
        "console=ttyS0 quiet pollux.workload=%s pollux.ip0=10.0.2.15/24" % workload])
    vm.wait_serial(lambda: b"POLLUX-GUEST-READY" in vm.serial(), 120)
    return vm
