# SPDX-License-Identifier: Apache-2.0
"""Interfaces of the host, in a network namespace in which this test is root: tap devices and bridges."""
import contextlib
import hashlib
import os
import subprocess
import sys

import pytest

import tiny
from conftest import VIV, Viv

GUEST = r"""
$b stty -echo
$b ip link set lo up
$b ip link set eth0 up
$b ip addr add "$ADDR" dev eth0
if [ -n "$GW" ]; then # a lab's, which advertises the way out of IPv6 itself
	$b ip route add default via "$GW"
	until $b ip -6 addr show dev eth0 scope global | $b grep -v tentative | $b grep -q inet6; do $b usleep 50000; done
fi
$b nc -ll -p 80 -e $b echo here &
$b nc -ll -p 81 -e $b sh -c "$b head -c 6000000 | $b sha256sum" &
$b nc -ll -p 82 -e $b sh -c "$b yes long-frames | $b head -c 6000000" &
echo READY
while read -r what address port; do
	case $what in
	get) echo "answer: $($b nc -w 5 "$address" "$port" </dev/null 2>/dev/null)" ;;
	esac
done
"""
# As a program of its own in the namespace: to the port @2 of @1, @3 bytes of zeros, and what came back, hashed.
CLIENT = """
import hashlib, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as s:
    s.sendall(bytes(int(sys.argv[3])))
    digest, size, head = hashlib.sha256(), 0, b""
    while data := s.recv(1 << 20):
        digest.update(data)
        size += len(data)
        head = (head + data)[:200]
print(size, digest.hexdigest(), head.decode(errors="replace").split("\\n")[0])
"""


class Namespace:
    """A user and network namespace; what runs in it is root there and nowhere else."""

    def __init__(self):
        self.holder = subprocess.Popen(["unshare", "-Urn", "sh", "-c", "echo up; exec sleep infinity"], stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True)
        if self.holder.stdout.readline() != "up\n":
            pytest.skip(f"no namespaces of one's own here: {self.holder.stderr.read().strip()}")
        self.prefix = ["nsenter", "-t", str(self.holder.pid), "-U", "-n", "--preserve-credentials"]

    def ok(self, *command):
        return subprocess.run([*self.prefix, *command], check=True, capture_output=True, text=True, timeout=60).stdout

    def client(self, address, port, sends=0):
        size, digest, head = self.ok(sys.executable, "-c", CLIENT, address, str(port), str(sends)).split(None, 2)
        return int(size), digest, head.strip()

    def close(self):
        self.holder.kill()
        self.holder.wait()


@pytest.fixture
def namespace():
    ns = Namespace()
    try:
        probe = subprocess.run([*ns.prefix, "ip", "tuntap", "add", "dev", "probe", "mode", "tap"], capture_output=True, text=True,
                               check=False)
        if probe.returncode:
            pytest.skip(f"no tap devices here: {probe.stderr.strip()}")
        ns.ok("ip", "link", "del", "probe")
        yield ns
    finally:
        ns.close()


class VivThere(Viv):
    """viv in a namespace."""

    def __init__(self, home, ns):
        super().__init__(home)
        self.ns = ns

    def run(self, *args, limit=60, **options):
        return subprocess.run([*self.ns.prefix, VIV, *map(str, args)], env=self.env, timeout=limit, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **options)


@pytest.fixture
def viv(namespace, tmp_path, debian):
    viv = VivThere(tmp_path, namespace)
    viv.guest = ["--kernel", debian / "vmlinuz", "--initrd", tiny.make(debian, tmp_path, GUEST, tiny.NETWORK), "--mem", "128M"]
    yield viv
    for child in viv.terminals:
        child.close(force=True)
        child.log.close()
    for pid in viv.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)


def start(viv, name, net, address):
    viv.ok("run", "--name", name, "--rm", "--detach", "--net", net, *viv.guest, "--append", f"console=ttyS0 quiet ADDR={address}/24")
    child = viv.spawn("console", name, limit=60)
    child.expect("READY\n")
    return child


def ask(child, address, port):
    child.send(f"get {address} {port}\n")
    child.expect(r"answer: (\w*)\n")
    return child.match.group(1)


def test_tap(viv, namespace):
    namespace.ok("ip", "tuntap", "add", "dev", "t0", "mode", "tap")
    namespace.ok("ip", "addr", "add", "198.18.0.1/24", "dev", "t0")
    start(viv, "one", "tap:t0", "198.18.0.2")
    assert namespace.client("198.18.0.2", 80) == (5, hashlib.sha256(b"here\n").hexdigest(), "here")
    # Long frames, both ways: what arrives is what was sent.
    assert namespace.client("198.18.0.2", 81, 6000000)[2].split()[0] == hashlib.sha256(bytes(6000000)).hexdigest()
    text = (b"long-frames\n" * 500001)[:6000000]
    assert namespace.client("198.18.0.2", 82) == (6000000, hashlib.sha256(text).hexdigest(), "long-frames")
    viv.fails("run", "--rm", "--detach", "--name", "two", "--net", "tap:t0", *viv.guest, says=["t0", "in use"])
    # The interface goes: the machine lives on.
    namespace.ok("ip", "link", "del", "t0")
    assert viv.names() == ["one"]
    viv.ok("stop", "--force", "one")


def test_bridge(viv, namespace):
    viv.fails("run", "--rm", "--detach", "--name", "one", "--net", "bridge:br0", *viv.guest, says=["no bridge br0", "ip link add br0"])
    namespace.ok("ip", "link", "add", "br0", "type", "bridge")
    namespace.ok("ip", "link", "set", "br0", "up")
    namespace.ok("ip", "addr", "add", "198.18.0.1/24", "dev", "br0")
    one = start(viv, "one", "bridge:br0", "198.18.0.2")
    start(viv, "two", "bridge:br0", "198.18.0.3")
    assert ask(one, "198.18.0.3", 80) == "here"
    assert namespace.client("198.18.0.3", 81, 6000000)[2].split()[0] == hashlib.sha256(bytes(6000000)).hexdigest()
    assert len(namespace.ok("bridge", "link").splitlines()) == 2
    for name in ("one", "two"):
        viv.ok("stop", "--force", name)
    assert not namespace.ok("bridge", "link").strip(), "an interface is left in the bridge"


LAB = """
networks:
  dmz: {{subnet: 10.1.0.0/24, subnet6: "fd00:1::/64", uplink: {{{kind}: {interface}}}}}
machines:
  web: {{kernel: "{kernel}", initrd: "{initrd}", memory: 128M, append: "console=ttyS0 quiet ADDR=10.1.0.10/24 GW=10.1.0.1",
         networks: [{{dmz: {{address: 10.1.0.10}}}}]}}
allow:
  - dmz.* -> internet : tcp/80
"""
OUTSIDE = ("93.184.216.34", "2606:4700::1111")
# In the namespace: says who called.
SERVER = """
import socket, sys
s = [socket.create_server((a, int(p)), family=socket.AF_INET6 if ":" in a else socket.AF_INET)
     for a in sys.argv[1:] for p in ("80", "81")]
print("up", flush=True)
import select
while True:
    for ready in select.select(s, [], [])[0]:
        conn, who = ready.accept()
        conn.sendall(b"from" + who[0].replace(".", "x").replace(":", "y").encode() + b"\\n")
        conn.close()
"""


def lab_up(viv, namespace, tmp_path, kind, interface):
    """A lab whose way out is @interface, and behind that the outside: on this very host, by routes, as its own addresses are no internet."""
    path = tmp_path / "out.yaml"
    path.write_text(LAB.format(kind=kind, interface=interface, kernel=viv.guest[1], initrd=viv.guest[3]))
    viv.ok("up", path)
    namespace.ok("ip", "link", "set", "lo", "up")
    for address in OUTSIDE:
        namespace.ok("ip", "route", "add", "local", address, "dev", "lo")
    for address in ("10.1.0.2/24", "fd00:1::2/64"):
        namespace.ok("ip", "addr", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))
    return path


@pytest.mark.parametrize("kind", ["tap", "bridge"])
def test_lab_uplink(viv, namespace, tmp_path, kind):
    interface = f"{kind}0"
    if kind == "tap":
        namespace.ok("ip", "tuntap", "add", "dev", interface, "mode", "tap")
    else:
        namespace.ok("ip", "link", "add", interface, "type", "bridge")
        namespace.ok("ip", "link", "set", interface, "up")
    path = lab_up(viv, namespace, tmp_path, kind, interface)
    assert "uplink tap" in viv.ok("plan", path).stdout
    web = viv.spawn("console", "web", limit=60)
    web.expect("READY\n")
    server = subprocess.Popen([*namespace.prefix, sys.executable, "-c", SERVER, "0.0.0.0", "::"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "up\n"
        # With its own address, no other; what no rule allows does not leave; nobody comes in.
        assert ask(web, OUTSIDE[0], 80) == "from10x1x0x10"
        assert ask(web, OUTSIDE[1], 80).startswith("fromfd00y1yy")
        for address in OUTSIDE:
            assert not ask(web, address, 81)
        assert namespace.ok(sys.executable, "-c", "import socket\ntry: socket.create_connection(('10.1.0.10', 80), 3)\n"
                            "except OSError: print('closed')") == "closed\n"
    finally:
        server.kill()
        server.wait()
    viv.ok("down", path)
    assert viv.processes() == []


def test_lab_uplink_that_is_not_there(viv, namespace, tmp_path):
    path = tmp_path / "out.yaml"
    path.write_text(LAB.format(kind="bridge", interface="br9", kernel=viv.guest[1], initrd=viv.guest[3]))
    viv.fails("up", path, says=["no bridge br9", "ip link add br9"])
    assert viv.processes() == []
    viv.fails("net", "show", says=["no lab is up"])


def test_names(empty_viv):
    for net, says in (("tap:", "tap:NAME"), ("tap:a/b", "names no interface"), ("bridge:sixteen-letters-", "15"), ("tup:x", "bridge:NAME")):
        empty_viv.fails("run", "--detach", "--net", net, "--kernel", "/bin/true", status=2, says=[says])
    empty_viv.fails("run", "--detach", "--net", "tap:x", "--forward", "1:1", "--kernel", "/bin/true", status=2, says=["--net nat"])
