# SPDX-License-Identifier: Apache-2.0
"""A machine of a lab moves to a host where a lab of that name is up: with its addresses, and the rights that it has there."""
import json
import os
import signal

import pytest
import tiny
from conftest import processes_in
from migration import Host
from test_lab import Console, GUEST

NETWORKS = "networks:\n  n: {subnet: 10.1.0.0/24}\n  m: {subnet: 10.2.0.0/24}\n"


@pytest.fixture
def guest(debian, tmp_path):
    initrd = tiny.make(debian, tmp_path, GUEST, tiny.NETWORK)
    return f'kernel: "{debian / "vmlinuz"}", initrd: "{initrd}", append: "console=ttyS0 quiet", memory: 128M'


@pytest.fixture
def hosts(tmp_path):
    a, b = Host(tmp_path / "a"), Host(tmp_path / "b")
    yield a, b
    for host in (a, b):
        for child in host.terminals:
            child.close(force=True)
            child.log.close()
        for pid in processes_in(host.home):
            os.kill(pid, signal.SIGKILL)


def cards(host, lab="demo"):
    return {c["card"]: c for c in json.loads(host.ok("net", "show", "--lab", lab, "--json").stdout)["cards"]}


class Guest(Console):
    """The console of one that is there already."""

    def __init__(self, host, name, is_new=True):
        if is_new:
            super().__init__(host, name)
        else:
            self.child = host.spawn("console", name)

    def until(self, viv, probes):
        """Ask until all of @probes succeed: a guest that was moved may have a connection to begin anew."""
        viv.wait_until(lambda: self.ask(probes) == set(probes), f"{probes} succeed")


def test_to_a_lab_of_the_same_name(hosts, guest, tmp_path):
    a, b = hosts
    here, there = tmp_path / "a.yaml", tmp_path / "b.yaml"
    here.write_text(f"name: demo\n{NETWORKS}machines:\n  web: {{{guest}, networks: [n]}}\n  old: {{{guest}, networks: [n]}}\n"
                    "allow:\n  - n.web -> m.* : tcp/80\ndeny:\n  - n.web -> n.* : tcp/5432\n")
    there.write_text(f"name: demo\n{NETWORKS}machines:\n  db: {{{guest}, networks: [{{n: {{address: 10.1.0.50}}}}]}}\n"
                     f"  far: {{{guest}, networks: [m]}}\n")
    a.ok("up", here)
    Guest(a, "old")
    web = Guest(a, "web")
    before = cards(a)["n.web"]
    listener = b.receive()

    def refused(*says, args=()):
        a.fails("migrate", "web", f"unix:{b.socket}", *args, says=says)
        assert a.state("web") == "running" and b.state("web") is None and cards(a)["n.web"]["up"]

    # No such lab there, or one where its guest's addresses would be wrong.
    refused("lab \"demo\" is not up", "--network")
    there.write_text(there.read_text().replace("10.1.0", "10.3.0"))
    b.ok("up", there)
    refused("network \"n\"", "10.3.0.0/24", "10.1.0.0/24")
    b.ok("down", "demo")
    there.write_text(there.read_text().replace("10.3.0", "10.1.0"))
    b.ok("up", there)
    Guest(b, "db")
    Guest(b, "far")
    refused("nowhere", args=("--network", "lab:demo:nowhere"))
    refused("wire", args=("--network", "wire"))
    refused("tap:x", "--host-networks", args=("--network", "tap:x"))
    assert "n.web" not in cards(b)

    far = cards(b)["m.far"]["address"]
    probes = ["icmp 10.1.0.50", f"icmp {cards(b)['n.db']['address6']}", "tcp 10.1.0.50 80"]
    a.ok("migrate", "web", f"unix:{b.socket}", "--verify")
    web.child.close(force=True)
    after = cards(b)["n.web"]
    assert after["up"] and all(after[k] == before[k] for k in ("mac", "address", "address6"))
    assert not cards(a)["n.web"]["up"]
    web = Guest(b, "web", is_new=False)
    web.until(b, probes)
    # What denies it something came along; what the other lab allowed it did not.
    assert web.ask([f"tcp {far} 80", "tcp 10.1.0.50 5432"]) == set()
    # It has its place when it is switched off and on.
    assert json.loads((b.home / "vms" / "web" / "machine.json").read_text())["origin"]["machine"] == "web"

    # Home again: the lab's file has kept its place, and its rights are what that says.
    web.child.close(force=True)
    back = a.receive()
    b.ok("migrate", "web", f"unix:{a.socket}")
    b.wait_until(lambda: "n.web" not in cards(b), "its place there is free")
    assert cards(a)["n.web"]["up"]
    rules = json.loads(a.ok("net", "show", "--json").stdout)["rules"]
    assert [r["rule"] for r in rules] == ["n.web -> n.* : tcp/5432", "n.web -> m.* : tcp/80"]
    back.terminate()
    back.wait()
    listener.terminate()
    listener.wait()

    # With its rights, if the host there says so.
    listener = b.receive("--lab-rules", "--once")
    a.ok("migrate", "web", f"unix:{b.socket}")
    assert listener.wait(60) == 0
    web = Guest(b, "web", is_new=False)
    web.until(b, [f"tcp {far} 80"])
    assert web.ask(["tcp 10.1.0.50 5432"]) == set()
    web.child.close(force=True)

    # Another network, by choice: there it has a place of its own.
    listener = b.receive("--once")
    a.ok("migrate", "old", f"unix:{b.socket}", "--network", "lab:demo:m")
    assert listener.wait(60) == 0
    assert cards(b)["m.old"]["up"] and cards(b)["m.old"]["address"] != before["address"]
    for host in (a, b):
        host.ok("down", "demo")
    assert a.names() == [] and b.names() == []
    a.wait_until(lambda: not a.processes() and not b.processes(), "nothing is left running")
