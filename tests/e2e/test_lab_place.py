# SPDX-License-Identifier: Apache-2.0
"""Who a machine is in a lab is what the lab and a person say: a snapshot, which may come from anywhere, gives nobody a place or a right."""
import json

import pytest
from guests import multiboot, SLEEP

LAB = """
networks:
  n: {{subnet: 10.1.0.0/24}}
  m: {{subnet: 10.2.0.0/24}}
machines:
  sus: {{{guest}, networks: [n]}}
  db:  {{{guest}, networks: [m]}}
allow:
  - m.db -> n.* : tcp/22
deny:
  - n.sus -> n.* : udp
"""


@pytest.fixture
def lab(empty_viv, tmp_path):
    """The lab "demo" that is up, with a snapshot s of the machine sus; what the snapshot says can be changed."""
    viv = empty_viv
    kernel = tmp_path / "kernel"
    kernel.write_bytes(multiboot(SLEEP))
    path = tmp_path / "demo.yaml"
    path.write_text(LAB.format(guest=f'kernel: "{kernel}", engine: dbt, memory: 16M'))
    viv.ok("up", path)
    viv.ok("snapshot", "create", "sus", "s")
    yield viv
    viv.run("down", "demo", limit=300)
    for name in viv.names():
        viv.ok("rm", "-f", name, limit=300)


def described(viv):
    return viv.home / "vms" / "sus" / "snapshots" / "s" / "snapshot.json"


def shown(viv):
    """The cards, and the rules as text."""
    state = json.loads(viv.ok("net", "show", "--json").stdout)
    return {c["card"]: c for c in state["cards"]}, [(r["action"], r["rule"]) for r in state["rules"]]


def claim_to_be_db(said, viv):
    """@said with the place of the machine db, and rules that it would like to have."""
    record = json.loads(viv.ok("snapshot", "show", "sus", "s", "--json").stdout)["network"]
    db = shown(viv)[0]["m.db"]
    record["machine"], record["copy_of"] = "db", ["db"]
    record["cards"][0] |= {"network": "m", "subnet": "10.2.0.0/24", "mac": db["mac"], "address": db["address"], "gateway": "10.2.0.1",
                           "may_spoof": True}
    record["rules"] = [{"action": "allow", "rule": "n.sus -> m.db", "what": "any"}, {"action": "allow", "rule": "m.db -> *.*", "what": "any"}]
    said["network"] = record
    return record


def test_a_claim_gives_nothing(lab):
    viv, file = lab, described(lab)
    honest = file.read_text()
    before = shown(viv)

    def refuses(said, *says):
        file.write_text(json.dumps(said))
        viv.fails("run", "--from", "sus@s", "--name", "x", "--detach", says=says)
        assert shown(viv) == before

    # Another network of the lab than its machine has, another lab.
    for net in ("lab:demo:m", "lab:demo:n,m", "lab:other:n"):
        said = json.loads(honest)
        claim_to_be_db(said, viv)
        said["config"]["net"] = net
        refuses(said, net, "\"sus\"", "--net")
    # The own network and another's place, with rules of its own: it is the place of its machine's copy that it gets.
    for key in ("network", "origin"):
        said = json.loads(honest)
        record = claim_to_be_db(said, viv)
        if key == "origin":
            del said["network"]
            said["config"]["origin"], said["config"]["lab"] = record, "demo"
        file.write_text(json.dumps(said))
        viv.ok("run", "--from", "sus@s", "--name", "x", "--detach")
        cards, rules = shown(viv)
        assert set(cards) == {"n.sus", "m.db", "n.x"} and cards["n.x"]["copy"]
        assert rules == [("deny", "n.sus -> n.* : udp"), ("deny", "n.x -> n.* : udp"), ("allow", "m.db -> n.* : tcp/22")]
        config = json.loads((viv.home / "vms" / "x" / "machine.json").read_text())
        assert config["origin"]["machine"] == "sus" and config["lab"] is None
        viv.ok("rm", "-f", "x")
        assert shown(viv)[1] == before[1]
    # A machine that says nothing of a lab.
    said = json.loads(honest)
    del said["network"]
    said["config"]["net"] = "lab:demo:m"
    refuses(said, "lab:demo:m")


def test_from_elsewhere(lab, tmp_path):
    """A machine that is made of a file has no place here, until a person gives it one; and there it may do what everybody may."""
    viv, file = lab, tmp_path / "file"
    said = json.loads(described(viv).read_text())
    claim_to_be_db(said, viv)
    described(viv).write_text(json.dumps(said))
    viv.ok("snapshot", "export", "sus", "s", file)

    def refused(*args, says):
        done = viv.run("snapshot", "import", "x", "s", file, *args)
        assert done.returncode == 1 and all(word in done.stderr for word in says), done.stderr

    refused(says=["lab:demo:n", "--net"])
    refused("--net", "lab:demo:nowhere", says=["nowhere"])
    refused("--net", "lab:none:n", says=["none", "not up"])
    refused("--net", "wire", says=["wire"])
    assert sorted(viv.names()) == ["db", "sus"]
    viv.ok("snapshot", "import", "x", "s", file, "--net", "lab:demo:m")
    viv.ok("snapshot", "restore", "x", "s")
    cards, rules = shown(viv)
    assert cards["m.x"]["up"] and cards["m.x"]["address"] == "10.2.0.11" and "n.x" not in cards
    assert rules == [("deny", "n.sus -> n.* : udp"), ("allow", "m.db -> n.* : tcp/22")]
    # Switched off and on it has its place again.
    viv.ok("stop", "-f", "x")
    viv.ok("start", "x")
    assert shown(viv)[0]["m.x"]["up"]
    viv.ok("run", "--from", "sus@s", "--name", "y", "--detach", "--net", "lab:demo:m")
    assert shown(viv)[0]["m.y"]["up"]
    viv.fails("run", "--from", "sus@s", "--name", "db2", "--detach", "--net", "lab:demo", says=["lab:LAB:NETWORK"])


def test_quarantine_goes_along(lab):
    """What is cut off stays cut off in its copies, whatever the snapshot says."""
    viv = lab
    said = json.loads(described(viv).read_text())
    assert said["network"]["quarantine"] is False
    viv.ok("quarantine", "sus")
    viv.ok("run", "--from", "sus@s", "--name", "x", "--detach")
    assert shown(viv)[0]["n.x"]["quarantine"]
