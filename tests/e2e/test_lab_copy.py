# SPDX-License-Identifier: Apache-2.0
"""Copies of a lab's machines: cards, addresses and rights of their own, and the machine that they are copies of notices nothing."""
import json

import pytest

import tiny
from test_lab import ask_all, Console, GUEST

# One connection that goes on and on: "talk ADDRESS" there, "heard" here.  "renew": as a machine does that was switched on.
TALK = r"""
	talk*) ( n=0; while :; do n=$((n + 1)); echo $n; $b sleep 0.05; done ) | $b nc ${line#talk } 9000 & echo DONE ;;
	heard) echo "yes heard $($b wc -l </heard)"; echo DONE ;;
	addresses) echo "yes $($b ip addr show dev eth0 | $b tr '\n' ' ')"; echo DONE ;;
	name*) echo "yes $($b nslookup -type=a ${line#name } 2>&1 | $b tr '\n' ' ')"; echo DONE ;;
	renew)
		for device in /sys/bus/virtio/drivers/virtio_net/virtio*; do
			echo ${device##*/} >/sys/bus/virtio/drivers/virtio_net/unbind
			echo ${device##*/} >/sys/bus/virtio/drivers/virtio_net/bind
		done
		until [ -e /sys/class/net/eth0 ]; do $b usleep 50000; done
		$b ip link set eth0 up
		$b udhcpc -i eth0 -q -n -t 10 -s /dhcp >/dev/null 2>&1
		until $b ip -6 addr show dev eth0 scope global | $b grep -q inet6; do $b usleep 50000; done
		echo DONE ;;
"""
LISTEN = """
>/heard
$b sleep 100000 | $b nc -l -p 9000 >/heard &
echo READY
"""
LAB = """
networks:
  n: {{subnet: 10.1.0.0/24}}
  m: {{subnet: 10.2.0.0/24}}
machines:
  web: {{{guest}, networks: [n]}}
  db:  {{{guest}, networks: [n]}}
  far: {{{guest}, networks: [m]}}
allow:
  - n.web -> m.far : tcp/80
deny:
  - n.web -> n.db : tcp/5432
"""


@pytest.fixture
def guest(debian, tmp_path):
    script = GUEST.replace("echo READY\n", LISTEN).replace("\tend) wait", TALK + "\tend) wait")
    initrd = tiny.make(debian, tmp_path, script, tiny.NETWORK)
    return f'kernel: "{debian / "vmlinuz"}", initrd: "{initrd}", append: "console=ttyS0 quiet", memory: 128M'


class Guest(Console):
    def __init__(self, viv, name, is_new=True):
        self.child = viv.spawn("console", name)
        if is_new:
            self.child.expect("READY\n")

    def tell(self, line):
        self.child.send(line + "\n")
        self.child.expect("DONE\n")
        return next((l[4:] for l in self.child.before.splitlines() if l.startswith("yes ")), "")

    def heard(self):
        return int(self.tell("heard").split()[1])


def cards(viv):
    return {c["card"]: c for c in json.loads(viv.ok("net", "show", "--json").stdout)["cards"]}


def test_copies_of_a_lab(empty_viv, guest, tmp_path):
    viv = empty_viv
    path = tmp_path / "demo.yaml"
    path.write_text(LAB.format(guest=guest))
    viv.ok("up", path)
    guests = {name: Guest(viv, name) for name in ("web", "db", "far")}
    first = cards(viv)
    web, db, far = (first[c]["address"] for c in ("n.web", "n.db", "m.far"))
    guests["web"].tell(f"talk {db}")
    viv.wait_until(lambda: guests["db"].heard() > 3, "they talk")

    viv.ok("snapshot", "create", "web", "s")
    record = json.loads(viv.ok("snapshot", "show", "web", "s", "--json").stdout)["network"]
    assert record["machine"] == "web" and record["cards"][0]["address"] == web
    assert {(r["action"], r["rule"], r["what"]) for r in record["rules"]} == {
        ("allow", "n.web -> m.far", "tcp/80"), ("deny", "n.web -> n.db", "tcp/5432")}
    viv.ok("fork", "web", "--name", "w1")
    viv.ok("run", "--from", "web@s", "--name", "w2", "--detach")
    shown = cards(viv)
    copies = {name: shown[f"n.{name}"] for name in ("w1", "w2")}
    assert all(c["copy"] and c["up"] for c in copies.values()) and not shown["n.web"]["copy"]
    assert len({c["address"] for c in shown.values()}) == len({c["mac"] for c in shown.values()}) == 5
    assert shown["n.web"]["address"] == web and shown["n.web"]["mac"] == first["n.web"]["mac"]

    # The connection is the first one's, which goes on; what copies say in its name is not heard.
    before = guests["db"].heard()
    viv.wait_until(lambda: guests["db"].heard() > before + 10, "the first one talks on")
    viv.wait_until(lambda: cards(viv)["n.w1"]["denied"].get("spoofed MAC", 0) > 0, "the copy is not heard")
    for name, card in copies.items():
        g = guests[name] = Guest(viv, name, is_new=False)
        g.tell("renew")
        mine = g.tell("addresses")
        assert card["address"] + "/" in mine and card["address6"] in mine and card["mac"] in mine and web + "/" not in mine
    # Each is reached, under its name, and may do what the first one may.
    for name, card in copies.items():
        assert card["address"] in guests["db"].tell(f"name {name}.lab")
        everywhere = [f"tcp {card['address']} 80", f"icmp {card['address']}", f"icmp {card['address6']}"]
        ask_all(viv, guests["db"], everywhere, everywhere, "db")
        probes = [f"tcp {far} 80", f"tcp {far} 5432", f"tcp {db} 5432", f"tcp {db} 80", f"icmp {web}"]
        may = [probes[0], probes[3]]
        ask_all(viv, guests["web"], probes[:4], may, "web")
        ask_all(viv, guests[name], probes, [*may, probes[4]], name)
    before = guests["db"].heard()
    viv.wait_until(lambda: guests["db"].heard() > before + 10, "the first one talks on")
    assert "10.1.0.10" == web and web in guests["db"].tell("name web.lab")

    # Back in place it has what it had; a copy that is switched off and on, too.
    viv.ok("snapshot", "restore", "web", "s")
    assert cards(viv)["n.web"]["mac"] == first["n.web"]["mac"]
    viv.ok("quarantine", "w2")
    viv.ok("fork", "w2", "--name", "w3")
    assert cards(viv)["n.w3"]["quarantine"]
    viv.ok("stop", "-f", "w2")
    viv.ok("start", "w2")
    assert cards(viv)["n.w2"]["address"] == copies["w2"]["address"]
    viv.ok("rm", "-f", "w2")
    viv.wait_until(lambda: "n.w2" not in cards(viv), "the place of a removed copy is free")
    viv.fails("fork", "web", "--name", "w_1", says=["w_1"])
    # What was thrown away is gone, what has a name of its own is only off.
    viv.ok("stop", "-f", "w3")
    viv.ok("down", path)
    assert viv.names() == ["w3"]
    viv.wait_until(lambda: not viv.processes(), "nothing is left running")
    viv.fails("start", "w3", says=["lab \"demo\" is not up"])


def test_an_agent_sets_the_addresses(viv, tmp_path):
    """Debian with its agent: nothing has to be done in the copies, living ones and those from a snapshot."""
    path = tmp_path / "deb.yaml"
    path.write_text("networks: {n: {subnet: 10.1.0.0/24}}\nmachines: {web: {image: debian, networks: [n]}}\n")
    viv.ok("up", path, limit=300)
    viv.ok("exec", "web", "--", "true", limit=300)
    viv.wait_until(lambda: "10.1.0.10" in viv.ok("exec", "web", "--", "ip", "addr").stdout, "it has its address")
    viv.ok("snapshot", "create", "web", "s")
    viv.ok("fork", "web", "--name", "w1")
    viv.ok("run", "--from", "web@s", "--name", "w2", "--detach")
    shown = cards(viv)
    for name in ("w1", "w2"):
        card = shown[f"n.{name}"]
        viv.wait_until(lambda: card["address"] + "/" in viv.ok("exec", name, "--", "ip", "addr").stdout,
                       f"{name} has its own address")
        mine = viv.ok("exec", name, "--", "ip", "addr").stdout
        assert card["mac"] in mine and "10.1.0.10/" not in mine
        viv.wait_until(lambda: card["address6"] in viv.ok("exec", name, "--", "ip", "addr").stdout, f"{name} has its IPv6 address")
        viv.ok("exec", "web", "--", "ping", "-c", "1", "-W", "20", card["address"])
        for wanted in (f"{name}.lab", name):  # a single name is completed
            assert card["address"] in viv.ok("exec", "web", "--", "getent", "ahostsv4", wanted).stdout
    assert "10.1.0.10/" in viv.ok("exec", "web", "--", "ip", "addr").stdout
    viv.ok("down", "deb")
    assert viv.names() == ["w2"]  # it has a name of its own
