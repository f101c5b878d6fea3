# SPDX-License-Identifier: Apache-2.0
"""Names in a lab, as a guest's own resolver and TCP ask for them."""
import re

import pytest
import tiny

GUEST = r"""
$b stty -echo
$b ip link set lo up
cat >/dhcp <<'END'
#!/bin/busybox sh
[ "$1" = bound ] || exit 0
/bin/busybox ip addr add $ip/$mask dev $interface
echo "nameserver $dns" >/etc/resolv.conf
echo "search $search" >>/etc/resolv.conf
echo "$domain/$search" >/told
END
$b mkdir -p /etc; $b chmod 755 /dhcp
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
$b ip link set eth0 up
$b udhcpc -i eth0 -q -n -t 10 -O search -s /dhcp >/dev/null 2>&1
until $b ip -6 addr show dev eth0 scope global | $b grep -q inet6; do $b usleep 50000; done
echo READY
while read -r what a c; do
	case $what in
	told) echo "answer: $($b cat /told)" ;;
	name) echo "answer: $($b nslookup -type=a "$a" 2>&1 | $b tr '\n' ' ')" ;;
	raw) # the bytes $c, over TCP to port 53 of $a; the connection is closed by what comes back, or after a while
		echo "answer: $($b printf "$c" | $b nc -w 5 "$a" 53 | $b hexdump -v -e '1/1 "%02x"')" ;;
	many) # connections that say nothing
		n=0; while [ $n -lt "$c" ]; do $b sleep 1000 | $b nc "$a" 53 & n=$((n + 1)); done; echo "answer: " ;;
	esac
done
"""
LAB = """
networks:
  n: {{subnet: 10.1.0.0/24}}
machines:
  one: {{{guest}, networks: [n]}}
  two: {{{guest}, networks: [n]}}
"""


def question(name, kind=1, edns=None):
    """A query as TCP carries it."""
    message = bytes.fromhex("123401000001000000000000" if edns is None else "123401000001000000000001")
    message += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0" + bytes([0, kind, 0, 1])
    if edns is not None:
        message += b"\0\0\x29" + edns.to_bytes(2, "big") + bytes(6)
    return len(message).to_bytes(2, "big") + message


class Console:
    def __init__(self, viv, name):
        self.child = viv.spawn("console", name)
        self.child.expect("READY\n")

    def ask(self, line):
        self.child.send(line + "\n")
        self.child.expect(r"answer: ([^\n]*)\n")
        return self.child.match.group(1)

    def over_tcp(self, gateway, data):
        return bytes.fromhex(self.ask(f"raw {gateway} " + "".join(f"\\{byte:03o}" for byte in data)))


def messages(data):
    found = []
    while data:
        size = int.from_bytes(data[:2], "big")
        assert len(data) >= 2 + size, "an answer is cut"
        found.append(data[2:2 + size])
        data = data[2 + size:]
    return found


def test_names(empty_viv, debian, tmp_path):
    viv = empty_viv
    initrd = tiny.make(debian, tmp_path, GUEST, tiny.NETWORK)
    guest = f'kernel: "{debian / "vmlinuz"}", initrd: "{initrd}", append: "console=ttyS0 quiet", memory: 128M'
    path = tmp_path / "names.yaml"
    path.write_text(LAB.format(guest=guest))
    viv.ok("up", path)
    one = Console(viv, "one")
    Console(viv, "two")
    assert one.ask("told") == "lab/lab"
    for name in ("two", "two.lab", "two.n.lab"):
        assert "10.1.0.11" in one.ask(f"name {name}"), name
    gateway6 = re.search(r"fd[0-9a-f:]+", viv.ok("plan", "--json", path).stdout).group(0).split("::")[0] + "::1"
    for gateway in ("10.1.0.1", gateway6):
        (answer,) = messages(one.over_tcp(gateway, question("two.lab")))
        assert answer[:2] == b"\x12\x34" and answer[3] & 15 == 0 and answer[-4:] == bytes([10, 1, 0, 11])
        # Two at once on one connection; one with EDNS, to which the answer has it, too.
        first, second = messages(one.over_tcp(gateway, question("two.lab", edns=4096) + question("three.lab")))
        assert first[6:12] == bytes([0, 1, 0, 0, 0, 1]) and first[-11:-6] == bytes([0, 0, 0x29, 4, 0xd0])
        assert second[3] & 15 == 3
        (answer,) = messages(one.over_tcp(gateway, question("example.org")))
        assert answer[3] & 15 == 5  # there is no way out
    # Who holds many connections keeps nobody from the next one.
    one.ask("many 10.1.0.1 20")
    (answer,) = messages(one.over_tcp("10.1.0.1", question("two.lab")))
    assert answer[-4:] == bytes([10, 1, 0, 11])
    viv.ok("down", path)
