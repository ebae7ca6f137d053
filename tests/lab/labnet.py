# SPDX-License-Identifier: GPL-2.0-or-later
"""labnet.py - the lab's networks: hosts are network namespaces, switches are bridges

Theory of operation. Nothing is made in the root namespace, so labs never meet each other nor the
machine's own network, and the addresses may be the same in each lab:

    plx-NAME-sw       bridge `lan` with ports lan-a lan-b lan-client        the guest's network
                      bridge `rep` with ports rep-a rep-b rep-witness       the replication network
    plx-NAME-a, -b    br0 (10.77.0.1 / .2) = lan0 + tap0..tapN, as on a hypervisor host
                      rep0 (10.78.0.1 / .2)
    plx-NAME-witness  rep0 (10.78.0.3)
    plx-NAME-client   lan0 (10.77.0.100, fd77::100)

All NICs of the guest are on the one guest network, but NIC i has a subnet of its own,
10.77.i.10/24 and fd77:0:0:i::10/64, and the client an address (.100) in each. Bridges run without
STP, forward delay and multicast snooping: a frame from a new place moves a MAC address at once,
and so does a port that goes down. Cuts are nftables rules of the bridge family in the switch
namespace, by pair of ports: they stop every frame, ARP and broadcasts too, and no one is told.

Owns: namespaces, links, rules. Never starts or ends a process (see labproc.py).
"""
import ctypes
import json
import os
import socket
import subprocess
import threading

from labstate import LabError

CLONE_NEWNET = 0x40000000
COMMAND_DEADLINE_S = 30
MAX_NICS = 4
REPLICATION_PORT = 7460
WITNESS_PORT = 7461
LAN = {"a": "10.77.0.1", "b": "10.77.0.2", "client": "10.77.0.100"}
LAN6 = {"a": "fd77::1", "b": "fd77::2", "client": "fd77::100"}
HOST_NUMBER = {"a": 1, "b": 2, "witness": 3, "client": 100}
REP = {"a": "10.78.0.1", "b": "10.78.0.2", "witness": "10.78.0.3"}


def subnet_ip(nic, number):
    return f"10.77.{nic}.{number}"


def subnet_ip6(nic, number):
    """number is written as it stands, as the hexadecimal last group."""
    return f"fd77::{number}" if nic == 0 else f"fd77:0:0:{nic}::{number}"


def guest_ip(nic=0):
    return subnet_ip(nic, 10)


def guest_ip6(nic=0):
    return subnet_ip6(nic, 10)


def guest_mac(nic=0):
    return f"52:54:00:77:00:{10 + nic:02x}"


def namespace(lab, host):
    return f"plx-{lab}-{host}"


def namespace_path(name):
    return f"/run/netns/{name}"


def run(argv, text=None, check=True):
    """Runs a short tool (ip, nft, sysctl); raises LabError with what it said."""
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(
            f"'{argv[0]}' is missing: run ci/install-deps (packages iproute2, nftables, util-linux)"
        ) from None
    except subprocess.TimeoutExpired:
        raise LabError(f"'{' '.join(argv)}' did not end in {COMMAND_DEADLINE_S} s") from None
    if check and done.returncode:
        raise LabError(f"'{' '.join(argv)}' failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def inside(space, *argv):
    """argv that runs a program inside a namespace.

    Not `ip -n` nor `ip netns exec`: these also mount things, which fails in a plain chroot.
    """
    return ["nsenter", f"--net={namespace_path(space)}", *argv]


def ip_batch(space, lines):
    """Runs `ip` lines inside a namespace, all in one process."""
    run(inside(space, "ip", "-batch", "-"), "\n".join(lines) + "\n")


def in_namespace(space, function):
    """Calls function() in a thread of this process that is inside the namespace; returns its
    result.

    Sockets that it makes stay in that namespace. setns(2) with CLONE_NEWNET moves one thread only.
    """
    box = {}

    def body():
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            fd = os.open(namespace_path(space), os.O_RDONLY | os.O_CLOEXEC)
            try:
                if libc.setns(fd, CLONE_NEWNET):
                    error = ctypes.get_errno()
                    raise OSError(error, os.strerror(error))
            finally:
                os.close(fd)
            box["result"] = function()
        except BaseException as error:  # handed to the caller, whatever it is
            box["error"] = error

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if "error" in box:
        raise box["error"]
    return box["result"]


def sysctl_in(space, settings):
    """Writes sysctls of a namespace; one that this kernel has not got is left out."""

    def write():
        for key, value in settings.items():
            try:
                with open("/proc/sys/" + key, "w", encoding="ascii") as file:
                    file.write(f"{value}\n")
            except FileNotFoundError:
                pass

    in_namespace(space, write)


def namespaces():
    """Names of all network namespaces in /run/netns."""
    try:
        return set(os.listdir("/run/netns"))
    except FileNotFoundError:
        return set()


def add_namespace(space):
    run(["ip", "netns", "add", space])
    # Router solicitations, address detection and multicast reports would be noise on every test's
    # wire, and a bridge that calls iptables hooks would only be slower.
    sysctl_in(
        space,
        {
            "net/ipv6/conf/default/disable_ipv6": 1,
            "net/ipv6/conf/default/accept_ra": 0,
            "net/ipv6/conf/default/accept_dad": 0,
            "net/ipv6/conf/default/router_solicitations": 0,
            "net/bridge/bridge-nf-call-iptables": 0,
            "net/bridge/bridge-nf-call-ip6tables": 0,
            "net/bridge/bridge-nf-call-arptables": 0,
            "net/ipv4/conf/all/arp_notify": 1,
        },
    )
    ip_batch(space, ["link set lo up"])


def delete_namespace(space):
    if space in namespaces():
        # Sockets that a killed process left in FIN_WAIT would keep the namespace's memory for
        # minutes.
        try:
            sysctl_in(space, {"net/ipv4/tcp_orphan_retries": 1})
        except OSError:
            pass
        run(["ip", "netns", "del", space], check=False)
        if space in namespaces():
            raise LabError(f"namespace {space} cannot be deleted ('ip netns del {space}' says why)")


def add_switch(lab):
    space = namespace(lab, "sw")
    add_namespace(space)
    lines = []
    for bridge in ("lan", "rep"):
        lines += [
            f"link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {bridge} up",
        ]
    ip_batch(space, lines)


def ports(host):
    """The switch's port names of a host."""
    return [f"{net}-{host}" for net, hosts in (("lan", LAN), ("rep", REP)) if host in hosts]


def add_host(lab, host, nics):
    """Makes a host's namespace and plugs it in, links up; taps for `nics` NICs on hosts that can
    run a guest.
    """
    space, switch = namespace(lab, host), namespace(lab, "sw")
    add_namespace(space)
    lines = []
    for port in ports(host):
        net = port.split("-")[0]
        # A host's addresses stay its own when it is started again: its peers remember them.
        mac = f"02:00:00:{'77' if net == 'lan' else '78'}:01:{HOST_NUMBER[host]:02x}"
        lines += [
            f"link add {port} type veth peer name {net}0 address {mac} netns {space}",
            f"link set {port} master {net}",
            f"link set {port} up",
        ]
    ip_batch(switch, lines)
    lines = []
    lan_device = "lan0"
    if host in ("a", "b"):
        lan_device = "br0"
        # An address of its own, so that the bridge does not take over a new port's.
        lines += [
            f"link add br0 address 02:00:00:77:00:{HOST_NUMBER[host]:02x} type bridge stp_state "
            f"0 forward_delay 0 mcast_snooping 0",
            "link set lan0 master br0",
            "link set lan0 up",
        ]
        for i in range(nics):
            lines += [
                f"tuntap add dev tap{i} mode tap",
                f"link set tap{i} master br0",
                f"link set tap{i} up",
            ]
    ip_batch(space, lines or ["link set lo up"])
    lines = []
    if host in LAN:
        sysctl_in(space, {f"net/ipv6/conf/{lan_device}/disable_ipv6": 0})
        lines += [
            f"link set {lan_device} addrgenmode none",
            f"link set {lan_device} up",
            f"addr add {LAN[host]}/24 dev {lan_device}",
            f"addr add {LAN6[host]}/64 dev {lan_device} nodad",
        ]
    if host == "client":
        for i in range(1, max(nics, 1)):
            lines += [
                f"addr add {subnet_ip(i, 100)}/24 dev lan0",
                f"addr add {subnet_ip6(i, 100)}/64 dev lan0 nodad",
            ]
    if host in REP:
        lines += ["link set rep0 up", f"addr add {REP[host]}/24 dev rep0"]
    ip_batch(space, lines)


def delete_host(lab, host):
    """Unplugs a host and deletes its namespace; its processes must be gone."""
    switch = namespace(lab, "sw")
    if switch in namespaces():
        for port in ports(host):
            run(inside(switch, "ip", "link", "del", port), check=False)
    delete_namespace(namespace(lab, host))


def set_power(lab, host, up):
    """The host's switch ports up or down. Down: the switch forgets the port's addresses at once."""
    ip_batch(
        namespace(lab, "sw"), [f"link set {port} {'up' if up else 'down'}" for port in ports(host)]
    )


def pair_ports(one, other):
    """Pairs of switch ports that `one` and `other` talk through, one per network they share."""
    return [
        (f"{net}-{one}", f"{net}-{other}")
        for net, hosts in (("lan", LAN), ("rep", REP))
        if one in hosts and other in hosts
    ]


def set_rules(lab, cuts, silent):
    """Makes the switch block exactly these: pairs of hosts, and hosts that neither send nor
    receive.
    """
    rules = []
    for cut in cuts:
        for left, right in pair_ports(*cut):
            rules += [
                f"iifname \"{left}\" oifname \"{right}\" counter drop",
                f"iifname \"{right}\" oifname \"{left}\" counter drop",
            ]
    for host in silent:
        for port in ports(host):
            rules += [f"iifname \"{port}\" counter drop", f"oifname \"{port}\" counter drop"]
    text = ["table bridge cut", "delete table bridge cut"]
    if rules:
        text += [
            "table bridge cut {",
            " chain forward {",
            "  type filter hook forward priority 0; policy accept;",
            *("  " + rule for rule in rules),
            " }",
            "}",
        ]
    space = namespace(lab, "sw")
    try:
        run(inside(space, "nft", "-f", "-"), "\n".join(text) + "\n")
    except LabError as error:
        raise LabError(
            f"cannot change what the switch blocks: {error}. A cut needs the nft program and the "
            f"kernel's "
            "nf_tables bridge family (module nft_meta_bridge or nf_tables_bridge)"
        ) from None


def packet_socket(space, interface, protocol=0x0003):
    """An AF_PACKET socket in a namespace, bound to an interface; all protocols unless told."""

    def make():
        # With a protocol from the start, bind() would take the socket off the wire for some ms.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind((interface, protocol))
        return sock

    return in_namespace(space, make)


def links(space):
    """[{name, up, address, addresses}] of a namespace's links but lo."""
    result = []
    for link in json.loads(run(inside(space, "ip", "-json", "addr", "show")) or "[]"):
        if link.get("ifname") in (None, "lo"):
            continue
        result.append(
            {
                "name": link["ifname"],
                "up": "LOWER_UP" in link["flags"] and "UP" in link["flags"],
                "mac": link.get("address"),
                "addresses": [f"{a['local']}/{a['prefixlen']}" for a in link.get("addr_info", [])],
            }
        )
    return result
