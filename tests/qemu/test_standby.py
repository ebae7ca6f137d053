# SPDX-License-Identifier: GPL-2.0-or-later
#
# test_standby.py - a standby that was given captured epochs continues the guest

from support import (BS_MACHINES, Registry, assert_equal_memory, capture_all, check_memory,
                     hand_over, need_kvm, protect, refused)
from vm import PAGE

TESTS = Registry()


def promoted(t, machine="pc", accel="tcg", cpus=1, epochs=5):
    """A pair after a failover: returns (active, standby, shadow, counter at the last epoch)."""
    vm = t.running(machine=machine, accel=accel, cpus=cpus)
    standby = t.vm("standby", machine=machine, accel=accel, cpus=cpus, paused=True)
    arena, arena2 = t.arena(), t.arena()
    shadow, _ = protect(vm, arena, epochs)
    vm.wait_counting()
    blocks = standby.start("standby", arena2)
    assert blocks == shadow.blocks
    epoch = vm.qmp.execute("query-checkpoint")["epoch"]
    vm.qmp.execute("stop")
    result = capture_all(vm, arena, shadow, epoch)
    hand_over(arena, shadow, result, standby, arena2)
    assert_equal_memory(shadow, standby)
    standby.qmp.execute("checkpoint-load", slot=0, state_bytes=result["state-bytes"])
    assert standby.qmp.execute("query-checkpoint")["role"] == "none"
    return vm, standby, shadow


def check_continues(t, machine, accel, cpus=1):
    vm, standby, _ = promoted(t, machine, accel, cpus)
    # The whole transcript, cut at the same byte: the standby prints what comes next.
    standby.qmp.execute("cont")
    standby.wait_counting(3)
    before, after = vm.serial(), standby.serial()
    lines = (before + after).split(b"\n")[:-1]
    seam = before.count(b"\n")
    numbers = [int(line[-8:], 16) for line in lines[seam - 3:seam + 3]]
    steps = {b - a for a, b in zip(numbers, numbers[1:])}
    assert len(numbers) == 6 and steps == {4096}, "the counter did not go on: %s" % numbers


@TESTS.each(machine=BS_MACHINES)
def standby_continues_the_guest_tcg(t, machine):
    check_continues(t, machine, "tcg")


@TESTS.each(machine=("pc", "microvm"))
def standby_continues_the_guest_kvm(t, machine):
    need_kvm()
    check_continues(t, machine, "kvm")


@TESTS.add
def standby_continues_the_guest_with_4_cpus(t):
    check_continues(t, "q35", "tcg", cpus=4)


@TESTS.each(machine=("pc", "q35", "microvm"))
def promoted_guest_can_be_protected_again(t, machine):
    _, standby, _ = promoted(t, machine)
    standby.qmp.execute("cont")
    standby.wait_counting()
    arena = t.arena()
    shadow, _ = protect(standby, arena, 10)
    check_memory(standby, arena, shadow)


@TESTS.add
def former_active_is_a_standby_after_a_reset(t):
    vm, standby, _ = promoted(t, "q35")
    standby.qmp.execute("cont")
    standby.wait_counting()
    arena, arena2 = t.arena(), t.arena()
    shadow, _ = protect(standby, arena, 3)
    vm.qmp.execute("checkpoint-stop")
    refused("system_reset", vm.start, "standby", arena2)
    vm.qmp.execute("system_reset")
    vm.start("standby", arena2)
    standby.qmp.execute("stop")
    result = capture_all(standby, arena, shadow, 4)
    hand_over(arena, shadow, result, vm, arena2)
    vm.qmp.execute("checkpoint-load", slot=0, state_bytes=result["state-bytes"])
    count = len(vm.counters())
    vm.qmp.execute("cont")
    vm.wait_serial(lambda: len(vm.counters()) > count + 3)
    assert vm.counters()[-1] > standby.counters()[-1]


def ready_standby(t):
    standby = t.vm("standby", paused=True)
    arena = t.arena(slot_pages=64)
    blocks = standby.start("standby", arena)
    return standby, arena, blocks


@TESTS.each(fault=("block", "page", "page_far", "last"))
def hostile_index_is_refused_and_nothing_written(t, fault):
    standby, arena, blocks = ready_standby(t)
    ram = [b["id"] for b in blocks].index("pc.ram")
    pages = blocks[ram]["size"] // PAGE
    bad = {"block": len(blocks) << 40, "page": ram << 40 | pages,
           "page_far": ram << 40 | (1 << 40) - 1, "last": 2 ** 64 - 1}[fault]
    arena.set_index(0, [ram << 40 | 5, ram << 40 | 6, bad])
    for position in range(3):
        arena.set_page(0, position, b"\xa5" * PAGE)
    before = standby.digests(blocks[ram])
    refused("does not exist", standby.qmp.execute, "checkpoint-apply", slot=0, pages=3)
    assert standby.digests(blocks[ram]) == before
    # The control: without the bad entry the same slot is written.
    standby.qmp.execute("checkpoint-apply", slot=0, pages=2)
    after = standby.digests(blocks[ram])
    assert [i for i, d in enumerate(after) if d != before[i]] == [5, 6]


@TESTS.each(fault=("magic", "cut", "garbage", "command"))
def bad_device_state_is_refused_and_cont_too(t, fault):
    vm = t.running()
    arena = t.arena()
    _, result = protect(vm, arena)
    state = bytearray(arena.state(0, result["state-bytes"]))
    if fault == "magic":
        state[0] ^= 1
    elif fault == "cut":
        state = state[:len(state) // 2]
    elif fault == "garbage":
        state[200:] = b"\xff" * (len(state) - 200)
    else:
        state[8:] = b"\x08" + bytes(100)
    standby, arena2, _ = ready_standby(t)
    arena2.set_state(0, bytes(state))
    refused("could not be loaded", standby.qmp.execute, "checkpoint-load", slot=0,
            state_bytes=len(state))
    refused("", standby.qmp.execute, "cont")
    assert standby.qmp.execute("query-checkpoint")["failed"]
    assert standby.qmp.execute("query-status")["running"] is False


@TESTS.add
def starting_the_guest_of_a_standby_fails_the_session(t):
    standby, _, _ = ready_standby(t)
    standby.qmp.execute("cont")
    standby.qmp.wait_event("CHECKPOINT_FAILED")
    refused("only checkpoint-stop", standby.qmp.execute, "checkpoint-apply", slot=0, pages=0)
    standby.qmp.execute("checkpoint-stop")


@TESTS.add
def two_loads_need_a_reset_between(t):
    _, standby, _ = promoted(t, "q35", epochs=1)
    refused("system_reset", standby.start, "standby", t.arena())
