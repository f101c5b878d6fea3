# SPDX-License-Identifier: Apache-2.0
"""A running machine goes on in a process of another build (viv upgrade): exactly one runs, and nobody who is connected to it notices."""
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import threading

import guests
import pytest
import tiny
from conftest import VIV, processes_in
from migration import Host
from test_migrate import Counting
from test_snapshot import COUNT_ON_DISK

# Counts on the console, and sends numbers to a server on the host over one TCP connection.
TALK = """
$b ip link set eth0 up; $b ip addr add 10.0.2.15/24 dev eth0
$b mkdir -p /tmp && $b mount -t tmpfs none /tmp || echo "BUG: no memory to write to"
$b nc -ll -p 7 -e $b echo here &
(i=0; while :; do i=$((i + 1)); echo "$i"; $b usleep 2000; done) | $b nc 10.0.2.2 PORT >/tmp/echo &
n=0
while :; do
	n=$((n + 1))
	$b yes "$n" | $b head -c 300000 >/tmp/a; $b md5sum </tmp/a >/tmp/sum; $b cp /tmp/a /tmp/b
	[ -s /tmp/b ] && [ "$($b md5sum </tmp/b)" = "$($b cat /tmp/sum)" ] || echo "LOST"
	echo "n=$n."; $b sleep 0.02
done
"""


def build_of(binary):
    return json.loads(subprocess.run([binary, "version", "--json"], check=True, capture_output=True, text=True).stdout)["build"]


def other_build(path, old=None, new=None):
    """A copy of viv with another build id; or, besides, with @new in place of @old."""
    data = pathlib.Path(VIV).read_bytes()
    note = bytes.fromhex(build_of(VIV))
    assert data.count(note) == 1
    at = data.index(note)
    data = data[:at] + bytes([data[at] ^ 0xff]) + data[at + 1:]
    if old:
        assert data.count(old) and len(old) == len(new)
        data = data.replace(old, new)
    path.write_bytes(data)
    shutil.copymode(VIV, path)
    return path


@pytest.fixture
def host(tmp_path):
    h = Host(tmp_path / "home")
    yield h
    for pid in processes_in(h.home):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    return other_build(tmp_path_factory.mktemp("newer") / "viv")


class Server:
    """Takes one connection, reads the numbers on it and sends back each."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.settimeout(60)
        self.port = self.socket.getsockname()[1]
        self.last, self.error = 0, None
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        try:
            peer, _ = self.socket.accept()
            peer.settimeout(60)
            rest = b""
            while data := peer.recv(65536):
                lines = (rest + data).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    assert int(line) == self.last + 1, f"{line} after {self.last}"
                    self.last += 1
                peer.sendall(data)
            self.error = "the connection ended"
        except (OSError, AssertionError) as e:
            self.error = repr(e)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def machine_of(host, name="m"):
    return next(vm for vm in host.list() if vm["name"] == name)


def machines_in(host):
    """Processes that were started as one of a machine: with its broker, one after the other."""
    found = set()
    for pid in processes_in(host.home):
        with contextlib.suppress(OSError):
            if b"vm\0--name" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def upgrade(host, *args):
    done = host.ok("upgrade", *args, "--json")
    return json.loads(done.stdout)


def start_small(host, tmp_path, *args):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(guests.multiboot(guests.SLEEP))
    host.ok("run", "--name", "m", "--detach", "--kernel", kernel, "--mem", "16M", *args)


def test_nobody_notices(host, newer, debian, tmp_path):
    server, port = Server(), free_port()
    initrd = tiny.make(debian, tmp_path, TALK.replace("PORT", str(server.port)), tiny.NETWORK)
    # A viv run that somebody sits at: its terminal is the console.
    terminal = host.spawn("run", "--name", "m", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0 quiet",
                          "--mem", "192M", "--net", "nat", "--forward", f"{port}:7")
    terminal.expect(r"n=5\.")
    host.wait_until(lambda: server.last > 20, "it talks")
    counter = Counting(host, "m")
    for binary, name in ((newer, "other"), (VIV, "this"), (newer, "other")):
        before, said, processes = machine_of(host), server.last, machines_in(host)
        n = counter.next()
        report, = upgrade(host, "m", "--binary", binary)
        assert report["state"] == "moved" and report["downtime_us"] > 0
        assert before["build"] in report["from"] and build_of(binary) in report["to"], name
        after = machine_of(host)
        assert after["build"] == build_of(binary) != before["build"]
        assert after["pid"] != before["pid"] and after["state"] == "running"
        assert json.loads(host.ok("info", "--json", "m").stdout)["confined"]
        host.wait_until(lambda: not processes & machines_in(host), "the old process has ended")
        counter.reaches(n + 3)
        host.wait_until(lambda: server.last > said + 20, f"the connection lives on; {server.error}")
        terminal.expect(r"n=\d+\.")
    assert not server.error
    with socket.create_connection(("127.0.0.1", port), 60) as asked:  # the forwarded port is where it was
        assert asked.recv(5) == b"here\n"
    said = upgrade(host, "m", "--binary", newer)[0]
    assert said["state"] == "current"
    host.wait_until(lambda: host.run("snapshot", "create", "m", "one").returncode == 0, "memory is its own again")
    host.ok("stop", "-f", "m")
    terminal.expect("stopped")
    terminal.wait()
    assert terminal.exitstatus == 0
    assert host.state("m") == "stopped" and not (host.home / "run" / "m").exists()
    host.ok("start", "m")
    host.ok("rm", "-f", "m")


def test_disks(host, debian, tmp_path):
    initrd = tiny.make(debian, tmp_path, COUNT_ON_DISK)
    disk = tmp_path / "disk.qcow2"
    host.ok("image", "create", disk, "64M")
    host.ok("run", "--name", "m", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0 quiet",
            "--mem", "128M", "--disk", disk)
    counter = Counting(host, "m")
    counter.reaches(5)
    host.ok("snapshot", "create", "m", "one")
    for _ in range(2):
        upgrade(host, "m", "--force")
        counter.reaches(counter.next() + 5)  # it reads what it is going to write: STALE
    host.wait_until(lambda: host.run("snapshot", "create", "m", "two").returncode == 0, "memory is its own again")
    host.ok("snapshot", "restore", "m", "one")
    host.ok("rm", "-f", "m")


def test_many_and_paused_and_thrown_away(host, newer, tmp_path):
    start_small(host, tmp_path)
    kernel = tmp_path / "kernel"
    host.ok("run", "--name", "n", "--detach", "--rm", "--kernel", kernel, "--mem", "16M", "--net", "nat")
    host.ok("pause", "m")
    assert {r["name"]: r["state"] for r in upgrade(host, "--all", "--binary", newer)} == {"m": "moved", "n": "moved"}
    assert host.state("m") == "paused" and host.state("n") == "running"
    assert {r["state"] for r in upgrade(host, "--all", "--binary", newer)} == {"current"}
    listed = host.ok("list").stdout
    assert build_of(newer)[:8] in listed and build_of(VIV)[:8] not in listed
    host.ok("resume", "m")
    host.ok("stop", "-f", "n")
    host.wait_until(lambda: host.names() == ["m"], "what is thrown away goes at its end, not before")
    host.ok("rm", "-f", "m")


def test_refused(host, tmp_path):
    start_small(host, tmp_path)
    pid = machine_of(host)["pid"]
    # A build that has another idea of what a machine's state is.
    stranger = other_build(tmp_path / "stranger", b"i8042\0", b"i8O42\0")
    done = host.run("upgrade", "m", "--binary", stranger)
    assert done.returncode == 1 and "goes on as it was" in done.stderr and machine_of(host)["pid"] == pid
    host.fails("upgrade", "m", "--binary", tmp_path / "none", says=["cannot run"])
    host.fails("upgrade", "--force", status=2)
    host.fails("upgrade", "nobody", "--force")
    host.wait_until(lambda: machines_in(host) == {p for p in machines_in(host) if p}, "settled")
    upgrade(host, "m", "--force")
    assert machine_of(host)["pid"] != pid
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    host.ok("run", "--name", "n", "--detach", "--kernel", tmp_path / "kernel", "--mem", "16M", "--disk", f"{disk},snapshot")
    host.fails("upgrade", "n", "--force", says=["thrown away"])
    assert host.state("n") == "running"
    host.ok("rm", "-f", "m", "n")


def test_killed_at_any_moment(host, newer, debian, tmp_path):
    """The new process is killed at random moments: either the old one goes on, or the new one had the machine and it is over; never both, and never a
    machine that cannot be started again."""
    server = Server()
    initrd = tiny.make(debian, tmp_path, TALK.replace("PORT", str(server.port)), tiny.NETWORK)
    host.ok("run", "--name", "m", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0 quiet",
            "--mem", "512M", "--net", "nat")
    counter = Counting(host, "m")
    counter.reaches(3)
    seed = int(os.environ.get("UPGRADE_SEED", random.randrange(1 << 30)))
    rng = random.Random(seed)
    kept = gone = 0
    for i in range(int(os.environ.get("UPGRADE_ROUNDS", 6))):
        told = f"seed {seed}, round {i}"
        old = machines_in(host)
        n = counter.next()
        going = subprocess.Popen([VIV, "upgrade", "m", "--force"], env=host.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        host.wait_until(lambda: machines_in(host) - old or going.poll() is not None, told)
        with contextlib.suppress(subprocess.TimeoutExpired):
            going.wait(rng.random() * rng.choice((0.02, 0.2, 1.5)))
        for pid in machines_in(host) - old:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        said = going.communicate(timeout=60)[0]
        told = f"{told}: {said}"
        host.wait_until(lambda: not machines_in(host) - old, told)
        assert (going.returncode == 0 or "had moved" in said) != ("goes on as it was" in said), told
        if "goes on as it was" not in said:  # it had the machine
            gone += 1
            counter.child.close(force=True)
            host.wait_until(lambda: host.state("m") == "stopped", told)
            host.ok("start", "m")
            counter = Counting(host, "m")
            counter.reaches(3)
        else:
            kept += 1
            assert old & machines_in(host), told
            counter.reaches(n + 2)
            assert host.state("m") == "running", told
    print(f"seed {seed}: kept {kept} times, gone {gone} times")
    host.ok("rm", "-f", "m")
