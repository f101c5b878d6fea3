# SPDX-License-Identifier: Apache-2.0
"""A card that is a trunk: a guest with interfaces of VLANs reaches each network by its tag, and no other."""
import pytest

import tiny

VLANS = ["net/llc/llc.ko", "net/802/stp.ko", "net/802/garp.ko", "net/802/mrp.ko", "net/8021q/8021q.ko"]
# Takes an address by DHCP on eth0, or on what is made of the tags in $TAGS; does what its console says.
GUEST = r"""
$b stty -echo
$b ip link set lo up
cat >/dhcp <<'END'
#!/bin/busybox sh
[ "$1" = bound ] || exit 0
/bin/busybox ip addr add $ip/$mask dev $interface
END
$b chmod 755 /dhcp
$b ip link set eth0 up
interfaces=eth0
for tag in $(echo "$TAGS" | $b tr , ' '); do
	$b ip link add link eth0 name eth0.$tag type vlan id $tag
	$b ip link set eth0.$tag up
	interfaces="$interfaces eth0.$tag"
done
[ -z "$TAGS" ] || interfaces=${interfaces#eth0 }
for i in $interfaces; do $b udhcpc -i $i -q -n -t 4 -T 1 -s /dhcp >/dev/null 2>&1; done
$b nc -ll -p 80 -e $b echo here &
echo READY
while read -r what a c; do
	case $what in
	get) echo "answer: $($b nc -w 5 "$a" 80 </dev/null 2>/dev/null)" ;;
	addr) echo "answer: $($b ip -4 -o addr show dev "$a" | $b awk '{ print $4 }')" ;;
	send) # frames for $c from the interface $a, whose answers nobody awaits
		$b ip route add "$c/32" dev "$a"; $b ping -c 3 -W 1 "$c" >/dev/null 2>&1
		echo "answer: $?" ;;
	esac
done
"""
LAB = """
networks:
  dmz: {{subnet: 10.1.0.0/24}}
  app: {{subnet: 10.2.0.0/24}}
  mal: {{subnet: 10.66.0.0/24}}
machines:
  fw:  {{{guest} TAGS=10,20,30", networks: [{{trunk: {{dmz: 10, app: {{vlan: 20, address: 10.2.0.99}}}}}}]}}
  web: {{{guest}", networks: [dmz]}}
  db:  {{{guest}", networks: [app]}}
  sus: {{{guest} TAGS=10", networks: [mal]}}
"""


class Console:
    def __init__(self, viv, name):
        self.child = viv.spawn("console", name)
        self.child.expect("READY\n")

    def ask(self, question):
        self.child.send(question + "\n")
        self.child.expect(r"answer: ([^\n]*)\n")
        return self.child.match.group(1)


@pytest.fixture
def guest(debian, tmp_path):
    initrd = tiny.make(debian, tmp_path, GUEST, tiny.NETWORK + VLANS)
    return f'kernel: "{debian / "vmlinuz"}", initrd: "{initrd}", memory: 128M, append: "console=ttyS0 quiet'


def test_trunk(empty_viv, guest, tmp_path):
    viv = empty_viv
    path = tmp_path / "tags.yaml"
    path.write_text(LAB.format(guest=guest))
    plan = viv.ok("plan", path).stdout
    assert "dmz.fw" in plan and "app.fw" in plan
    viv.ok("up", path)
    consoles = {name: Console(viv, name) for name in viv.names()}
    fw, web, db, sus = (consoles[n] for n in ("fw", "web", "db", "sus"))
    # Each VLAN is a network, with its own addresses.
    addresses = {i: fw.ask(f"addr {i}") for i in ("eth0.10", "eth0.20", "eth0.30")}
    assert addresses["eth0.10"].startswith("10.1.0.") and addresses["eth0.20"] == "10.2.0.99/24" and not addresses["eth0.30"]
    own = {n: consoles[n].ask("addr eth0").split("/")[0] for n in ("web", "db")}
    assert fw.ask(f"get {own['web']}") == "here" and fw.ask(f"get {own['db']}") == "here"
    assert web.ask(f"get {addresses['eth0.10'].split('/')[0]}") == "here"
    assert db.ask("get 10.2.0.99") == "here"
    # By another VLAN's tag, or by one that is not the card's, nothing goes there; nor by tags at a card that has none.
    assert fw.ask(f"send eth0.20 {own['web']}") == "1"
    assert fw.ask(f"send eth0.30 {own['web']}") == "1"
    assert not sus.ask("addr eth0.10")
    shown = viv.ok("net", "show").stdout
    assert "VLAN tag" in shown, shown
    viv.fails("run", "--rm", "--detach", "--name", "two", "--net", "lab:tags:app", "--kernel", "/bin/true", says=["two"])
    viv.ok("down", path)
    assert viv.names() == []
