# SPDX-License-Identifier: GPL-2.0-or-later
"""labqemu.py - where the lab's programs are, and the QEMU command line of a host's guest

Owns the choice of devices: nothing that was not asked for (-nodefaults), one serial port,
virtio-net on taps without vhost, and a virtio-blk disk when one is wanted. The boot-sector guest
has an NE2000 in place of virtio-net and boots from its disk. Starts nothing itself.
"""
import os
import shutil

import labnet
from labstate import LabError

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu", "/usr/lib/ipxe/qemu")
STOCK = ("qemu-system-x86_64",)
DISK_BYTES = 64 << 20
WORKLOADS = ("redis", "nginx", "dirty", "idle", "bootsector")
MACHINES = ("pc", "q35", "microvm")
DISKS = ("none", "ro", "rw", "ide")


def build_dir():
    return os.path.abspath(os.environ.get("POLLUX_BUILD") or os.path.join(ROOT, "build"))


def program(name, variable):
    """Path of one of our own programs: the environment variable, else the build directory."""
    given = os.environ.get(variable)
    places = (
        [given]
        if given
        else [os.path.join(build_dir(), name), os.path.join(build_dir(), "bin", name)]
    )
    for path in places:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return os.path.abspath(path)
    raise LabError(f"no {name} at {' or '.join(places)}: run 'make', or set {variable}")


def qemu_program(override=None):
    """The patched QEMU: --qemu, POLLUX_QEMU, or the one in the build directory."""
    given = override or os.environ.get("POLLUX_QEMU")
    path = given or os.path.join(build_dir(), "qemu", "bin", "qemu-system-x86_64")
    found = shutil.which(path)
    if not found:
        raise LabError(f"no QEMU at {path}: run 'make qemu', or set POLLUX_QEMU")
    return os.path.abspath(found)


def guest_file(name):
    directory = os.environ.get("POLLUX_GUEST") or os.path.join(build_dir(), "guest")
    path = os.path.join(directory, name)
    if not os.path.isfile(path):
        raise LabError(
            f"no guest file {path}: run 'make guest', or set POLLUX_GUEST to the folder that has it"
        )
    return os.path.abspath(path)


def side_options(options, host):
    """The options as they hold for one host: `standby_*` replace the common ones on b."""
    merged = {key: value for key, value in options.items() if not key.startswith("standby_")}
    if host == "b":
        for key in ("memory", "machine", "smp", "nics", "qemu"):
            if options.get(f"standby_{key}") is not None:
                merged[key] = options[f"standby_{key}"]
        for key in ("device", "qemu_arg"):
            merged[key] = [*options[key], *options[f"standby_{key}"]]
    return merged


def clock_words(options):
    """Kernel words that a microvm needs under TCG: it has no timer to calibrate the time stamp
    counter with.
    """
    if (
        options["machine"] != "microvm"
        or options["accel"] != "tcg"
        or options["workload"] == "bootsector"
    ):
        return []
    argv = [guest_file("tsckhz")]
    return [f"tsc_early_khz={int(labnet.run(argv))}"]


def kernel_arguments(options):
    words = [
        "console=ttyS0",
        "quiet",
        f"pollux.workload={options['workload']}",
        "pollux.hostname=guest",
    ]
    for i in range(options["nics"]):
        words += [
            f"pollux.ip{i}={labnet.guest_ip(i)}/24",
            f"pollux.ip6_{i}={labnet.guest_ip6(i)}/64",
        ]
    return " ".join(words + list(options["append"]))


def make_disk(options, directory):
    """Makes the host's own disk image when the options want one; returns its path or None."""
    path = os.path.join(directory, "disk.img")
    if options["workload"] == "bootsector":
        if not os.path.exists(path):
            shutil.copyfile(guest_file("bootsector.img"), path)
        return path
    if options["disk"] == "none":
        return None
    if not os.path.exists(path):
        with open(path, "wb") as file:
            file.truncate(DISK_BYTES)
    return path


def command_line(lab, host, options, directory, standby):
    """QEMU's argv for a host; `options` as side_options() gave them."""
    microvm = options["machine"] == "microvm"
    bus = "device" if microvm else "pci"
    bootsector = options["workload"] == "bootsector"
    argv = [qemu_program(options.get("qemu")), "-name", f"guest={lab}-{host},debug-threads=on"]
    for path in FIRMWARE:
        argv += ["-L", path]
    argv += [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-accel",
        options["accel"],
        "-M",
        options["machine"],
        "-m",
        str(options["memory"]),
        "-smp",
        str(options["smp"]),
    ]
    argv += [
        "-chardev",
        f"socket,id=serial0,path={directory}/serial.sock,server=on,wait=off,"
        f"logfile={directory}/serial.log",
        "-serial",
        "chardev:serial0",
    ]
    for user in ("pollux", "test"):
        argv += [
            "-chardev",
            f"socket,id=qmp-{user},path={directory}/qmp-{user}.sock,server=on,wait=off",
            "-mon",
            f"chardev=qmp-{user},mode=control",
        ]
    for i in range(options["nics"]):
        model = "ne2k_isa" if bootsector else f"virtio-net-{bus}"
        argv += [
            "-netdev",
            f"tap,id=net{i},ifname=tap{i},script=no,downscript=no,vhost=off",
            "-device",
            f"{model},id=nic{i},netdev=net{i},mac={labnet.guest_mac(i)}",
        ]
    disk = make_disk(options, directory)
    if disk:
        ide = options["disk"] == "ide"
        read_only = "on" if options["disk"] in ("none", "ro") else "off"
        argv += [
            "-blockdev",
            f"driver=raw,node-name=disk0,read-only={read_only},file.driver=file,"
            f"file.filename={disk}",
            "-device",
            "ide-hd,id=blk0,drive=disk0,bus=ide.0,unit=0"
            if ide
            else f"virtio-blk-{bus},id=blk0,drive=disk0",
        ]
    if not bootsector:
        argv += [
            "-kernel",
            guest_file("vmlinuz"),
            "-initrd",
            guest_file("initrd.img"),
            "-append",
            kernel_arguments(options),
        ]
    for device in options["device"]:
        argv += ["-device", device]
    argv += options["qemu_arg"]
    if standby:
        argv += ["-S"]
    return argv


def check(options):
    """Refuses combinations that cannot work, before anything is made."""
    for host in ("a", "b"):
        side = side_options(options, host)
        if side["workload"] == "bootsector" and side["nics"] != 1:
            raise LabError("the boot-sector guest has exactly one NIC: leave --nics out")
        if not 0 <= side["nics"] <= labnet.MAX_NICS:
            raise LabError(f"--nics must be 0 to {labnet.MAX_NICS}")
        if side["disk"] == "ide" and side["machine"] != "pc":
            raise LabError("--disk ide needs --machine pc")
        if side["memory"] < (64 if side["workload"] == "bootsector" else 192):
            raise LabError(
                "--memory is too small: the Linux guest needs 192 MiB, the boot-sector guest 64"
            )
    if options["accel"] == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise LabError(
            "--accel kvm needs /dev/kvm, which this machine has not or does not let us use"
        )
