# SPDX-License-Identifier: GPL-2.0-or-later
#
# test_refuse.py - each wrong argument or moment has its sentence, and changes nothing

import os

from support import Registry, refused
from vm import PAGE

TESTS = Registry()


@TESTS.each(fault=("magic", "version", "page_size", "geometry", "unsealed", "short", "slots",
                   "slot_pages", "state_max", "no_fd", "not_memfd", "wakeup", "no_wakeup"))
def wrong_arena_is_refused(t, fault):
    vm = t.vm(paused=True)
    arena = t.arena(seal=fault != "unsealed", size=PAGE if fault == "short" else None)
    arguments = {"role": "active", "arena": "arena", "slots": 2, "slot_pages": arena.slot_pages,
                 "state_max": arena.state_max}
    words = {"magic": "another magic", "version": "another version",
             "page_size": "another page_size", "geometry": "another slot_pages",
             "unsealed": "F_SEAL_SHRINK", "short": "bytes", "slots": "slots must be",
             "slot_pages": "slot-pages must be", "state_max": "state-max must be",
             "no_fd": "has not been found", "not_memfd": "F_SEAL_SHRINK", "wakeup": "eventfd",
             "no_wakeup": "has not been found"}[fault]
    if fault == "magic":
        arena.write_header(magic=b"PLXARENa")
    elif fault == "version":
        arena.write_header(version=2)
    elif fault == "page_size":
        arena.write_header(page_size=8192)
    elif fault == "geometry":
        arguments["slot_pages"] -= 512
    elif fault == "slots":
        arguments["slots"] = 0
    elif fault == "slot_pages":
        arguments["slot_pages"] = 1 << 63
    elif fault == "state_max":
        arguments["state_max"] = 5000
    elif fault in ("wakeup", "no_wakeup"):
        arguments["wakeup"] = "wake"
    with open("/dev/null", "wb") as null:
        if fault != "no_fd":
            vm.qmp.execute("getfd", fd=null.fileno() if fault == "not_memfd" else arena.fd,
                           fdname="arena")
        if fault == "wakeup":
            vm.qmp.execute("getfd", fd=null.fileno(), fdname="wake")
    fds = len(os.listdir("/proc/%d/fd" % vm.process.pid))
    refused(words, vm.qmp.execute, "checkpoint-start", **arguments)
    assert vm.qmp.execute("query-checkpoint")["role"] == "none"
    used = {"no_fd": 0, "wakeup": 2}.get(fault, 1)
    assert len(os.listdir("/proc/%d/fd" % vm.process.pid)) == fds - used
    # The control: a right one is taken.
    good = t.arena()
    vm.start("active", good)


@TESTS.add
def start_needs_a_stop_between(t):
    vm = t.vm(paused=True)
    vm.start("active", t.arena())
    refused("checkpoint-stop", vm.start, "active", t.arena())
    vm.qmp.execute("checkpoint-stop")
    vm.start("active", t.arena())


@TESTS.add
def commands_without_a_session_are_refused(t):
    vm = t.vm(paused=True)
    refused("checkpoint-start", vm.capture, 0, 1)
    refused("checkpoint-start", vm.qmp.execute, "checkpoint-apply", slot=0, pages=0)
    refused("checkpoint-start", vm.qmp.execute, "checkpoint-load", slot=0, state_bytes=1)
    refused("no session", vm.qmp.execute, "checkpoint-stop")


@TESTS.add
def role_must_fit_the_command(t):
    vm = t.vm(paused=True)
    refused("role must be", vm.start, "none", t.arena())
    vm.start("active", t.arena())
    refused("no standby session", vm.qmp.execute, "checkpoint-apply", slot=0, pages=0)
    vm.qmp.execute("checkpoint-stop")
    vm.start("standby", t.arena())
    refused("no active session", vm.capture, 0, 0)


@TESTS.add
def standby_of_a_running_guest_is_refused(t):
    vm = t.running()
    refused("system_reset", vm.start, "standby", t.arena())


@TESTS.add
def wrong_capture_arguments_are_refused_and_the_guest_goes_on(t):
    vm, _, _ = t.protected()
    refused("executes epoch 2", vm.capture, 0, 1)
    refused("executes epoch 2", vm.capture, 0, 3)
    refused("no slot 2", vm.capture, 2, 2)
    refused("nothing to append", vm.capture, 0, 2, append=True)
    vm.capture(0, 2, precopy=True)
    refused("nothing to append", vm.capture, 1, 2, append=True)
    assert vm.capture(0, 2, append=True)["complete"]
    vm.wait_counting()


@TESTS.add
def wrong_apply_and_load_arguments_are_refused(t):
    vm = t.vm(paused=True)
    arena = t.arena()
    vm.start("standby", arena)
    refused("no slot 2", vm.qmp.execute, "checkpoint-apply", slot=2, pages=1)
    refused("at most", vm.qmp.execute, "checkpoint-apply", slot=0, pages=arena.slot_pages + 1)
    refused("no slot 7", vm.qmp.execute, "checkpoint-load", slot=7, state_bytes=1)
    refused("state-bytes must be", vm.qmp.execute, "checkpoint-load", slot=0, state_bytes=0)
    refused("state-bytes must be", vm.qmp.execute, "checkpoint-load", slot=0,
            state_bytes=arena.state_max + 1)


@TESTS.add
def wrong_digest_arguments_are_refused(t):
    vm = t.vm(paused=True)
    digest = vm.qmp.execute
    refused("no migratable RAM block", digest, "checkpoint-digest", block="x", first=0, pages=1)
    refused("from 1 to", digest, "checkpoint-digest", block="pc.ram", first=0, pages=0)
    refused("from 1 to", digest, "checkpoint-digest", block="pc.ram", first=0, pages=65537)
    refused("has only", digest, "checkpoint-digest", block="pc.ram", first=16384, pages=1)
    refused("has only", digest, "checkpoint-digest", block="pc.ram", first=2 ** 64 - 1, pages=1)
    refused("has only", digest, "checkpoint-digest", block="pc.ram", first=1, pages=16384)


@TESTS.add
def state_larger_than_state_max_fails_the_session_and_the_guest_goes_on(t):
    vm = t.running()
    arena = t.arena(state_max=PAGE, slot_pages=20000)
    vm.start("active", arena)
    refused("more than state-max", vm.capture, 0, 1)
    vm.wait_counting()
    refused("only checkpoint-stop", vm.capture, 0, 1)
    vm.qmp.execute("checkpoint-stop")


@TESTS.add
def migration_is_blocked_while_a_session_is_active(t):
    vm = t.running()
    vm.start("active", t.arena())
    path = "exec:cat > " + os.path.join(t.directory, "out")
    refused("checkpoint session", vm.qmp.execute, "migrate", uri=path)
    vm.qmp.execute("checkpoint-stop")
    vm.qmp.execute("migrate", uri=path)


@TESTS.add
def migration_in_progress_is_named(t):
    vm = t.running(guest={"pages": 1000})
    vm.qmp.execute("migrate-set-parameters", max_bandwidth=4096)
    vm.qmp.execute("migrate", uri="exec:cat > /dev/null")
    refused("migration is in progress", vm.start, "active", t.arena())


@TESTS.add
def device_that_cannot_be_migrated_is_named(t):
    # invtsc makes a processor that QEMU does not migrate
    vm = t.vm(paused=True, extra=["-cpu", "qemu64", "-device", "usb-ehci,id=e", "-device",
                                  "usb-mtp,rootdir=/tmp"])
    refused("mtp", vm.start, "active", t.arena())


@TESTS.add
def device_add_and_device_del_are_refused_during_a_session(t):
    vm, _, _ = t.protected(extra=["-device", "virtio-rng-pci,id=r"])
    refused("checkpoint-stop", vm.qmp.execute, "device_add", driver="virtio-rng-pci", id="x")
    refused("checkpoint-stop", vm.qmp.execute, "device_del", id="r")
    assert vm.capture(0, 2)["complete"]
    vm.qmp.execute("checkpoint-stop")
    vm.qmp.execute("device_add", driver="virtio-rng-pci", id="x")


@TESTS.each(change=("section", "ram"))
def new_state_or_memory_during_a_session_fails_it(t, change):
    vm, _, _ = t.protected()
    if change == "section":
        vm.qmp.execute("netdev_add", type="user", id="n7")
    else:
        vm.qmp.execute("object-add", qom_type="memory-backend-ram", id="m", size=1 << 20)
    refused("only checkpoint-stop", vm.capture, 0, 2)
    assert vm.qmp.execute("query-checkpoint")["failed"]
    vm.wait_counting()
    vm.qmp.execute("checkpoint-stop")


@TESTS.add
def loadvm_is_refused_during_a_session(t):
    vm = t.running()
    vm.start("active", t.arena())
    text = vm.qmp.execute("human-monitor-command", command_line="loadvm x")
    assert "checkpoint-stop" in text, text
    text = vm.qmp.execute("human-monitor-command", command_line="savevm x")
    assert "checkpoint session" in text, text


@TESTS.add
def query_tells_what_the_guest_is_made_of(t):
    vm = t.vm(paused=True, cpus=2)
    info = vm.qmp.execute("query-checkpoint")
    assert info["role"] == "none" and info["epoch"] == 0 and not info["failed"]
    assert info["target-page-size"] == PAGE and info["cpus"] == 2
    assert info["machine"].startswith("pc-i440fx-")
    assert {"id": "pc.ram", "size": 64 << 20} in info["blocks"]
    assert [b["id"] for b in info["blocks"]] == sorted(b["id"] for b in info["blocks"])
    assert any(s["id"].endswith("/virtio-net") for s in info["sections"])
    nic, = info["nics"]
    assert nic["netdev"] == "n0" and nic["type"] == "user" and nic["model"] == "virtio-net-pci"
    assert len(nic["mac"]) == 17 and not nic["vhost"] and not nic["buffered"]
    disk, = info["disks"]
    assert disk["writable"] and disk["node"]
