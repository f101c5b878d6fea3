# SPDX-License-Identifier: Apache-2.0
"""Labs of tiny guests: what `viv plan` draws is what the machines of a lab reach, and it changes while they run."""
import ipaddress
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess

import pytest

import tiny
from conftest import VIV

PORTS = [80, 5432]
UDP_PORTS = [80, 5000]  # nobody listens: what says so comes from the machine that was reached

# Each guest takes its addresses by DHCP and router advertisements, listens, and then does what its console says.
GUEST = r"""
$b stty -echo
$b ip link set lo up
cat >/dhcp <<'END'
#!/bin/busybox sh
[ "$1" = bound ] || exit 0
/bin/busybox ip addr add $ip/$mask dev $interface
[ -z "$router" ] || /bin/busybox ip route add default via $router dev $interface
echo "nameserver $dns" >/etc/resolv.conf
END
$b mkdir -p /etc; $b chmod 755 /dhcp
for card in eth0 eth1; do
	[ -e /sys/class/net/$card ] || continue
	echo 0 >/proc/sys/net/ipv6/conf/$card/accept_dad
	$b ip link set $card up
	$b udhcpc -i $card -q -n -t 10 -s /dhcp >/dev/null 2>&1
done
for port in 80 5432; do $b nc -ll -p $port -e $b echo here & done
tcp() { answer=$($b nc -w 3 "$1" "$2" </dev/null 2>/dev/null); [ "$answer" = here ]; }
icmp() { $b ping -c 1 -W 1 "$1" >/dev/null 2>&1; }
udp() {
	case $1 in *:*) trace=traceroute6 ;; *) trace=traceroute ;; esac
	$b $trace -n -f 8 -m 8 -q 1 -w 2 -p $(($2 - 1)) "$1" $3 2>/dev/null | $b grep -Eq "^ *8 +$1 +[0-9.]+ ms *(!U)?\$"
}
# The same in three fragments.
bigicmp() { $b ping -c 1 -W 1 -s 4000 "$1" >/dev/null 2>&1; }
bigudp() { udp "$1" "$2" 4000; }
# "tcp 10.1.0.10 80", "udp 10.1.0.10 5000" or "icmp 10.1.0.10": one line about each, all at once.
probe() { if "$@"; then echo "yes $*"; else echo "no $*"; fi; }
until $b ip -6 addr show dev eth0 scope global | $b grep -q inet6; do $b usleep 50000; done
echo READY
while read -r line; do
	case $line in
	end) wait $jobs; jobs=; echo DONE ;;
	*) probe $line & jobs="$jobs $!" ;;
	esac
done
"""
LAB = """
networks:
  dmz: {{subnet: 10.1.0.0/24, uplink: nat}}
  mal: {{subnet: 10.66.0.0/24}}
machines:
  web: {{{guest}, networks: [dmz], forward: ["{port}:80"]}}
  db:  {{{guest}, networks: [dmz, mal]}}
  sus: {{{guest}, networks: [mal]}}
allow:
  - dmz.web -> mal.sus : tcp/5432
  - dmz.web -> mal.sus : udp/5000
  - mal.* -> dmz.web : icmp
deny:
  - dmz.web -> dmz.db : tcp/80
"""


@pytest.fixture
def guest(debian, tmp_path):
    """What a lab file says of a tiny machine: kernel, initrd and the like."""
    initrd = tiny.make(debian, tmp_path, GUEST, tiny.NETWORK)
    return f'kernel: "{debian / "vmlinuz"}", initrd: "{initrd}", append: "console=ttyS0 quiet", memory: 128M'


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


class Console:
    def __init__(self, viv, name):
        self.child = viv.spawn("console", name)
        self.child.expect("READY\n")

    def ask(self, probes):
        """Which of @probes succeed."""
        for probe in [*probes, "end"]:
            self.child.send(probe + "\n")
        self.child.expect("DONE\n")
        answers = dict(line.split(" ", 1)[::-1] for line in self.child.before.splitlines() if line.startswith(("yes ", "no ")))
        assert set(answers) == set(probes), "an answer is missing"
        return {p for p in probes if answers[p] == "yes"}


def is_open(pair, probe):
    kind, _, *port = probe.removeprefix("big").split()
    if kind == "icmp":
        return pair["open"].get("icmp", False)
    return any(first <= int(port[0]) <= last for first, last in pair["open"].get(kind, []))


def card_that_leaves(plan, machine, address):
    """The card by which a machine's kernel sends to @address: one in its subnet, else the first with a way out."""
    networks = {n["name"]: n for n in plan["networks"]}
    cards = [c for c in plan["cards"] if c["machine"] == machine]
    to = ipaddress.ip_address(address)
    for c in cards:
        n = networks[c["network"]]
        if to in ipaddress.ip_network(n["subnet" if to.version == 4 else "subnet6"]):
            return c
    return next((c for c in cards if networks[c["network"]]["uplink"] == "nat"), cards[0])


def ask_all(viv, console, probes, expected, who):
    """Exactly @expected succeed.  What a busy host has no time for is asked for again; what is denied never succeeds, however often."""
    missing = set(expected)

    def ask(some):
        got = console.ask(some)
        assert got <= set(expected), f"from {who}, and should not: {sorted(got - set(expected))}"
        missing.difference_update(got)
        return not missing

    if not ask(probes):
        viv.wait_until(lambda: ask(sorted(missing)), f"from {who}: {sorted(missing)}", limit=120)


def check_plan(viv, path, consoles):
    """All pairs, TCP, UDP and ICMP, whole and in fragments, both IP versions: the plan against the machines."""
    plan = json.loads(viv.ok("plan", "--json", path).stdout)
    pairs = {(p["from"], p["to"]): p for p in plan["reach"]}
    tried = reached = 0
    for machine, console in consoles.items():
        expected, probes = set(), []
        for target in plan["cards"]:
            if target["machine"] == machine:
                continue
            for address in (target["address"], target["address6"]):
                source = card_that_leaves(plan, machine, address)
                pair = pairs[f"{source['network']}.{machine}", f"{target['network']}.{target['machine']}"]
                some = [f"icmp {address}", f"bigicmp {address}"] + [f"tcp {address} {port}" for port in PORTS] + \
                    [f"{kind} {address} {port}" for port in UDP_PORTS for kind in ("udp", "bigudp")]
                probes += some
                expected |= {p for p in some if is_open(pair, p)}
        ask_all(viv, console, probes, expected, machine)
        tried += len(probes)
        reached += len(expected)
    assert 0 < reached < tried
    return plan


def test_plan_is_what_machines_reach(empty_viv, guest, tmp_path):
    viv = empty_viv
    port = free_port()
    path = tmp_path / "demo.yaml"
    path.write_text(LAB.format(guest=guest, port=port))
    assert viv.ok("up", path).stdout == "demo\n"
    assert sorted(viv.names()) == ["db", "sus", "web"]
    viv.fails("up", path, says=["demo", "is up already"])
    consoles = {name: Console(viv, name) for name in viv.names()}
    plan = check_plan(viv, path, consoles)

    # The forwarded port leads in, and the guest's answer out again.
    with socket.create_connection(("127.0.0.1", port), timeout=30) as s:
        assert s.recv(100) == b"here\n"

    # A rule more, a rule less, a machine cut off: at once.
    sus = next(c["address"] for c in plan["cards"] if c["machine"] == "sus")
    probe = f"tcp {sus} 80"
    assert not consoles["web"].ask([probe])
    viv.ok("net", "allow", "dmz.web -> mal.sus", "tcp/80")
    ask_all(viv, consoles["web"], [probe], [probe], "web")
    viv.ok("net", "deny", "dmz.web -> *.*")
    assert not consoles["web"].ask([probe])
    shown = json.loads(viv.ok("net", "show", "--json").stdout)
    assert not shown["namespaces"]  # it has an uplink
    counts = {r["rule"]: r["flows"] for r in shown["rules"]}
    assert counts["dmz.web -> mal.sus : tcp/80"] >= 1
    back = f"icmp {sus}"
    ask_all(viv, consoles["db"], [back], [back], "db")
    captured = tmp_path / "sus.pcapng"
    viv.ok("quarantine", "sus", "-o", captured)
    assert not consoles["db"].ask([back])
    assert not consoles["sus"].ask([f"icmp {plan['networks'][1]['subnet'].replace('.0/24', '.1')}"])
    assert "quarantine" in viv.ok("net", "show").stdout
    assert "sus" in viv.names()
    viv.ok("quarantine", "--end", "sus")
    ask_all(viv, consoles["db"], [back], [back], "db")

    tcp_file = tmp_path / "db.pcapng"
    capture = viv.spawn("net", "capture", "dmz.db", "-o", tcp_file, "--filter", "tcp port 5432")
    capture.expect("Ctrl-C ends it")
    web = next(c["address"] for c in plan["cards"] if c["machine"] == "web")
    both = [f"tcp {web} 5432", f"icmp {web}"]
    ask_all(viv, consoles["db"], both, both, "db")
    capture.sendintr()
    capture.expect(r"(\d+) packets")
    packets = read_pcapng(tcp_file)
    assert len(packets) == int(capture.match.group(1)) > 4
    assert {interface for interface, _ in packets} == {"dmz.db"}
    assert {comment for _, comment in packets} == {"passed"}
    viv.fails("net", "capture", "dmz.db", "-o", tcp_file, "--filter", "tcp prot 1", says=["tcp prot 1"])
    viv.fails("net", "capture", "nobody", "-o", tcp_file, says=["nobody"])

    viv.ok("down", path)
    assert viv.names() == []
    assert ("mal.sus", "denied: quarantine") in read_pcapng(captured)


def read_pcapng(path):
    """(interface, comment) of each packet."""
    data, at, names, packets = path.read_bytes(), 0, [], []
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        assert data[at + size - 4:at + size] == data[at + 4:at + 8]
        start = at + 16 if kind == 1 else at + 28 + (struct.unpack_from("<I", data, at + 20)[0] + 3 & ~3) if kind == 6 else None
        if start:
            code, length = struct.unpack_from("<HH", data, start)
            text = data[start + 4:start + 4 + length].decode()
            if kind == 1:
                assert code == 2
                names.append(text)
            else:
                assert code == 1
                packets.append((names[struct.unpack_from("<I", data, at + 8)[0]], text))
        at += size
    return packets


def test_half_a_lab_is_none(empty_viv, guest, tmp_path):
    """A machine that cannot start: the others are gone again, and the network."""
    viv = empty_viv
    path = tmp_path / "half.yaml"
    path.write_text("networks: {n: {subnet: 10.1.0.0/24}}\n"
                    f"machines:\n  good: {{{guest}, networks: [n]}}\n  bad: {{image: nosuchimage, networks: [n]}}\n")
    viv.fails("up", path, says=["bad", "nosuchimage"])
    assert viv.names() == []
    assert viv.processes() == []
    viv.fails("down", path, says=["half", "not up"])


def test_up_by_several_at_once(empty_viv, guest, tmp_path):
    """One of them brings it up; the others fail, and undo nothing of it."""
    viv = empty_viv
    path = tmp_path / "race.yaml"
    path.write_text(f"networks: {{n: {{subnet: 10.1.0.0/24}}}}\nmachines:\n  one: {{{guest}, networks: [n]}}\n")
    ups = [subprocess.Popen([VIV, "up", path], env=viv.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
           for _ in range(6)]
    ends = [(*up.communicate(timeout=60), up.returncode) for up in ups]
    assert sorted(status for _, _, status in ends) == [0, 1, 1, 1, 1, 1], ends
    assert all("already" in says for _, says, status in ends if status), ends
    assert viv.names() == ["one"]
    assert "n.one" in viv.ok("net", "show").stdout
    has_namespaces = json.loads(viv.run("doctor", "--json").stdout)["checks"]["userns"]["ok"]
    assert json.loads(viv.ok("net", "show", "--json").stdout)["namespaces"] == has_namespaces
    viv.ok("down", "race")
    assert viv.names() == []
    assert viv.processes() == []


def test_the_network_dies(empty_viv, guest, tmp_path):
    """Its machines live on without it, and viv down still finds them."""
    viv = empty_viv
    path = tmp_path / "frail.yaml"
    guest = guest.replace(f"{tmp_path}/", "")  # files are named as seen from the lab's folder
    path.write_text(f"networks: {{n: {{subnet: 10.1.0.0/24}}}}\nmachines:\n  one: {{{guest}, networks: [n]}}\n")
    viv.ok("up", path)
    (pid,) = [p for p in viv.processes() if b"net\0lab\0" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes()]
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^NoNewPrivs:\s1$", status, re.M) and re.search(r"^Seccomp:\s2$", status, re.M), "it is not confined"
    os.kill(pid, signal.SIGKILL)
    viv.wait_until(lambda: pid not in viv.processes(), "the network's end")
    assert viv.names() == ["one"]
    viv.fails("up", path, says=["has died", "viv down frail"])
    viv.ok("down", "frail")
    assert viv.names() == []


@pytest.mark.parametrize("text, says", [
    ("networks: {n: {subnet: 10.1.0.0/24}}\nmachines: {a: {kernel: k, networks: [m]}}\n", ["bad.yaml:2:", "\"m\""]),
    ("networks: [\n", ["bad.yaml:"]),
    ("x: &a [*a]\n", ["bad.yaml:1:4", "itself"]),
], ids=["unknown", "broken", "cyclic"])
def test_bad_files(empty_viv, tmp_path, text, says):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    for verb in ("plan", "up"):
        empty_viv.fails(verb, path, says=says)
    assert empty_viv.processes() == []


def test_usage(empty_viv):
    viv = empty_viv
    viv.fails("net", "show", says=["no lab is up"])
    viv.fails("quarantine", "x", says=["no lab that is up has a machine \"x\""])
    viv.fails("down", "nosuchlab", says=["nosuchlab"])
    viv.fails("up", "nosuch.yaml", says=["nosuch.yaml"])
    viv.fails("net", "shwo", status=2, says=["did you mean \"show\""])
    viv.fails("net", status=2, says=["allow"])
    viv.fails("run", "--net", "lab:none:dmz", "--detach", "--kernel", "/bin/true", says=["lab \"none\" is not up"])
