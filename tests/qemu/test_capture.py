# SPDX-License-Identifier: GPL-2.0-or-later
#
# test_capture.py - what is captured is all of the guest's memory, and the guest goes on

import os
import resource
import socket

from support import (BS_MACHINES, KVM_MACHINES, Registry, Skip, capture_all, check_memory,
                     initial_sync, linux, need_kvm, protect, refused)
from vm import PAGE, Deadline, Shadow

TESTS = Registry()
EPOCHS = 20
LINUX_EPOCHS, LINUX_PAGES = 60, 20000


def check_shadow(t, vm, epochs=EPOCHS, **arena):
    arena = t.arena(**arena)
    shadow, _ = protect(vm, arena, epochs)
    check_memory(vm, arena, shadow)
    return arena, shadow


@TESTS.each(machine=BS_MACHINES)
def shadow_of_captured_pages_equals_memory_tcg(t, machine):
    check_shadow(t, t.running(machine=machine))


@TESTS.each(machine=KVM_MACHINES)
def shadow_of_captured_pages_equals_memory_kvm(t, machine):
    need_kvm()
    check_shadow(t, t.running(machine=machine, accel="kvm"))


@TESTS.add
def shadow_equals_memory_kvm_dirty_ring(t):
    need_kvm()
    try:
        vm = t.running(accel="kvm,dirty-ring-size=4096")
    except ConnectionError as error:
        raise Skip("this kernel has no dirty ring") from error
    check_shadow(t, vm)


@TESTS.each(machine=("pc", "q35", "microvm"))
def shadow_equals_memory_with_4_cpus_tcg(t, machine):
    vm = t.running(machine=machine, cpus=4, guest={"pages": 512})
    _, shadow = check_shadow(t, vm)
    # All four processors must have written, or this was a test of one.
    for cpu in range(4):
        page = shadow.pages[[b["id"] for b in shadow.blocks].index(
            "microvm.ram" if machine == "microvm" else "pc.ram")].get((cpu + 1) * 1024)
        assert page and page != bytes(PAGE), "processor %d did nothing" % cpu


@TESTS.add
def shadow_equals_pmemsave_dump(t):
    vm = t.running()
    _, shadow = check_shadow(t, vm)
    path = os.path.join(t.directory, "dump")
    # Beneath the legacy hole, and from 1 MiB on, pc.ram is what the guest sees.
    vm.qmp.execute("pmemsave", val=1 << 20, size=63 << 20, filename=path)
    with open(path, "rb") as f:
        assert f.read() == shadow.bytes("pc.ram")[1 << 20:]


@TESTS.add
def planted_fault_of_one_dropped_page_is_found(t):
    vm, arena, shadow = t.protected()
    vm.wait_counting()
    vm.qmp.execute("stop")
    result = vm.capture(0, 2)
    assert result["pages"] > 100
    entries = arena.index(0, result["pages"])
    ram = [b["id"] for b in shadow.blocks].index("pc.ram")
    # One that the guest keeps writing to: its old content is wrong now.
    victim = next(i for i, e in enumerate(entries) if e == ram << 40 | 1024 + 5)
    shadow.take(arena, 0, result["pages"], skip={victim})
    assert shadow.differences(vm) == [("pc.ram", 1024 + 5)]


@TESTS.each(accel=("tcg", "kvm"))
def dirty_pages_are_those_that_the_guest_wrote(t, accel):
    if accel == "kvm":
        need_kvm()
    vm, arena, shadow = t.protected(accel=accel, guest={"pages": 700})
    for epoch in range(2, 6):
        vm.wait_counting()
        result = vm.capture(0, epoch)
        ram = [b["id"] for b in shadow.blocks].index("pc.ram")
        pages = {e & 0xffffffff for e in arena.index(0, result["pages"]) if e >> 40 == ram}
        written = set(range(1024, 1024 + 700))
        assert written <= pages
        # Besides: the BIOS's few, the stack of the boot sector.
        assert len(pages - written) < 30, sorted(pages - written)


@TESTS.add
def guest_goes_on_after_each_capture(t):
    vm, arena, _ = t.protected()
    for epoch in range(2, 12):
        before = vm.counters()[-1]
        result = vm.capture(0, epoch)
        assert result["running"] and result["complete"] and result["pause-ns"] > 0
        assert arena.epoch == epoch + 1
        vm.wait_serial(lambda: vm.counters()[-1] > before)
    numbers = vm.counters()
    assert numbers == sorted(numbers)


@TESTS.add
def capture_sends_no_stop_and_resume_events(t):
    vm = t.running()
    protect(vm, t.arena(), epochs=5)
    assert not {"STOP", "RESUME"} & set(vm.qmp.event_names())


@TESTS.add
def times_add_up_to_the_pause(t):
    vm, _, _ = t.protected()
    shares = []
    for epoch in range(2, 10):
        r = vm.capture(0, epoch)
        parts = sum(r[k] for k in ("stop-ns", "sync-ns", "copy-ns", "state-ns", "start-ns"))
        shares.append(parts / r["pause-ns"])
    # A busy machine may put QEMU aside between two parts, but not in every capture.
    assert max(shares) > 0.8, shares
    assert max(shares) <= 1.05, shares


@TESTS.add
def full_slot_keeps_the_guest_paused_until_the_next_call(t):
    vm, arena, shadow = t.protected(arena={"slots": 2, "slot_pages": 256}, guest={"pages": 900})
    vm.wait_counting()
    first = vm.capture(0, 2)
    assert not first["complete"] and first["remaining"] > 0 and not first["running"]
    assert first["pages"] == 256 and first["state-bytes"] == 0
    assert vm.qmp.execute("query-status")["running"] is False
    assert arena.epoch == 2
    shadow.take(arena, 0, first["pages"])
    last = capture_all(vm, arena, shadow, 2, slot=1)
    assert last["running"] and last["state-bytes"] > 0 and last["pause-ns"] > 0
    assert arena.epoch == 3
    vm.wait_counting()
    check_memory(vm, arena, shadow)


def waiting_for_a_slot(t):
    """A VM whose guest is paused until the rest of an epoch is asked for, or 300 ms are over.

    In epoch 1 there is always a rest: nothing has to happen in those 300 ms.
    """
    vm = t.running()
    vm.start("active", t.arena(slot_pages=256), pause_timeout_ms=300)
    result = vm.capture(0, 1)
    assert not result["complete"] and not result["running"]
    return vm


@TESTS.add
def guest_resumes_and_session_fails_when_a_full_slot_is_left_alone(t):
    vm = waiting_for_a_slot(t)
    event = vm.qmp.wait_event("CHECKPOINT_FAILED")
    assert event["data"]["reason"]
    vm.wait_counting()
    assert vm.qmp.execute("query-checkpoint")["failed"]
    refused("only checkpoint-stop", vm.capture, 1, 1)
    vm.qmp.execute("checkpoint-stop")
    # A new session is a whole one again.
    check_shadow(t, vm, epochs=2)


@TESTS.add
def append_overwrites_a_page_in_place(t):
    vm, arena, shadow = t.protected()
    vm.wait_counting()
    first = vm.capture(0, 2, precopy=True)
    assert first["pause-ns"] == 0 and first["complete"] and first["pages"] >= 256
    before = arena.index(0, first["pages"])
    vm.wait_counting()
    last = vm.capture(0, 2, append=True)
    assert last["pages"] < first["pages"] + 100
    assert arena.index(0, first["pages"]) == before
    shadow.take(arena, 0, last["pages"])
    check_memory(vm, arena, shadow)


@TESTS.each(accel=("tcg", "kvm"))
def precopy_while_the_guest_writes_loses_nothing(t, accel):
    if accel == "kvm":
        need_kvm()
    cpus = 1 if accel == "kvm" else 2
    vm, arena, shadow = t.protected(accel=accel, cpus=cpus, guest={"pages": 1000})
    for epoch in range(2, 12):
        slot = epoch % arena.slots
        vm.capture(slot, epoch, precopy=True)
        vm.capture(slot, epoch, precopy=True, append=True)
        result = vm.capture(slot, epoch, append=True)
        assert result["complete"]
        shadow.take(arena, slot, result["pages"])
    check_memory(vm, arena, shadow)


@TESTS.add
def capture_of_a_stopped_guest_does_not_start_it(t):
    vm, _, _ = t.protected()
    vm.qmp.execute("stop")
    result = vm.capture(0, 2)
    assert result["complete"] and not result["running"] and result["pause-ns"] == 0
    assert vm.qmp.execute("query-status")["status"] == "paused"
    vm.qmp.execute("cont")
    vm.wait_counting()
    assert vm.capture(0, 3)["running"]


@TESTS.add
def reset_during_a_session_is_captured(t):
    vm, arena, shadow = t.protected()
    vm.qmp.execute("system_reset")
    vm.wait_counting()
    for epoch in range(2, 6):
        capture_all(vm, arena, shadow, epoch)
    check_memory(vm, arena, shadow)


@TESTS.add
def guest_goes_on_when_the_client_dies_with_a_full_slot(t):
    vm = waiting_for_a_slot(t)
    vm.qmp.close()
    vm.wait_counting()


@TESTS.add
def guest_goes_on_when_a_disk_does_not_come_to_rest(t):
    vm = t.running(extra=["-drive", "if=none,id=slow,driver=null-aio,size=1048576,"
                          "latency-ns=120000000000"])
    arena = t.arena()
    shadow = Shadow(vm.start("active", arena, pause_timeout_ms=200))
    initial_sync(vm, arena, shadow)
    vm.qmp.execute("human-monitor-command", command_line='qemu-io slow "aio_read 0 512"')
    refused("did not come to rest", vm.capture, 0, 2)
    vm.wait_counting()
    assert vm.qmp.execute("query-checkpoint")["failed"]
    vm.qmp.execute("checkpoint-stop")


@TESTS.add
def packets_waiting_for_the_guest_survive_a_capture(t):
    # The boot sector has no network driver, so QEMU takes one packet and leaves the others in the
    # socket.  If a capture threw that one away, QEMU would take the next, and there would be room.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        vm = t.running(extra=["-netdev", "dgram,id=n9,local.type=fd,local.str=%d" % theirs.fileno(),
                              "-device", "virtio-net-pci,netdev=n9,romfile="],
                       pass_fds=[theirs.fileno()])
        ours.setblocking(False)

        def fill():
            for count in range(100000):
                try:
                    ours.send(bytes(60))
                except BlockingIOError:
                    return count
            raise AssertionError("the socket is never full")
        assert fill() > 1
        vm.qmp.event_names()
        fill()
        protect(vm, t.arena(), epochs=10)
        vm.qmp.event_names()
        assert fill() == 0, "a capture dropped packets"
        # The control: a real stop does.
        vm.qmp.execute("stop")
        vm.qmp.event_names()
        assert fill() > 0


def memory_of(vm):
    """(open files, mappings, resident KiB) of the QEMU process."""
    proc = "/proc/%d/" % vm.process.pid
    with open(proc + "maps", encoding="ascii") as f:
        mappings = sum(1 for _ in f)
    with open(proc + "statm", encoding="ascii") as f:
        resident = int(f.read().split()[1]) * resource.getpagesize() // 1024
    return len(os.listdir(proc + "fd")), mappings, resident


@TESTS.add
def thousand_sessions_leak_nothing(t):
    # Never run: a running guest's translations come and go, and with them the heap's size.
    vm = t.vm(paused=True, mem_mib=8)
    arena = t.arena(slots=1)
    for i in range(1050):
        vm.start("active", arena)
        vm.capture(0, 1, precopy=True)
        assert vm.capture(0, 1, append=True)["complete"]
        vm.qmp.execute("checkpoint-stop")
        if i == 50:
            before = memory_of(vm)
    after = memory_of(vm)
    assert after[0] <= before[0], (before, after)
    assert after[1] <= before[1] + 5, (before, after)
    assert after[2] <= before[2] + 1024, (before, after)


@TESTS.add
def sessions_of_a_running_guest_leak_no_descriptor_and_no_mapping(t):
    vm = t.running()
    arena = t.arena()
    for i in range(120):
        vm.start("active", arena)
        vm.capture(0, 1, precopy=True)
        vm.qmp.execute("checkpoint-stop")
        if i == 20:
            before = memory_of(vm)
    after = memory_of(vm)
    assert after[0] <= before[0] and after[1] <= before[1] + 5, (before, after)


@TESTS.each(cpus=(1, 4))
def shadow_of_linux_equals_memory(t, cpus):
    vm = linux(t, cpus, "dirty")
    arena = t.arena(slot_pages=16384)
    shadow, _ = protect(vm, arena)
    deadline = Deadline("%d pages in %d epochs" % (LINUX_PAGES, LINUX_EPOCHS))
    epoch, pages = 2, 0
    while (epoch <= LINUX_EPOCHS or pages < LINUX_PAGES) and deadline:
        slot = epoch % 2
        if epoch % 3 == 0:
            vm.capture(slot, epoch, precopy=True)
        result = capture_all(vm, arena, shadow, epoch, slot=slot, append=epoch % 3 == 0)
        pages += result["pages"]
        epoch += 1
    check_memory(vm, arena, shadow)
