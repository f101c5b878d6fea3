# SPDX-License-Identifier: Apache-2.0
"""Moving a running machine.  All of memory is compared by checksums before the machine runs at the target (--verify)."""
import contextlib
import json
import os
import pathlib
import random
import signal

import guests
import pytest
import tiny
from conftest import processes_in
from migration import COMMIT, RUNNING, Link, fake_ssh, hosts  # noqa: F401  pylint: disable=unused-import
from test_snapshot import COUNT_ON_DISK, Counter

# Counts, and rewrites memory in bursts: a lost page shows as a wrong checksum of what was written.
COUNT = """
$b mkdir -p /tmp && $b mount -t tmpfs none /tmp || echo "BUG: no memory to write to"
n=0
while :; do
	n=$((n + 1))
	$b yes "$n" | $b head -c 100000 >/tmp/a; $b md5sum </tmp/a >/tmp/sum; $b cp /tmp/a /tmp/b
	[ -s /tmp/b ] && [ "$($b md5sum </tmp/b)" = "$($b cat /tmp/sum)" ] || echo "LOST"
	echo "n=$n."; $b sleep 0.02
done
"""


@pytest.fixture
def make(tmp_path):
    """A kernel that runs @code."""
    def write(code):
        path = tmp_path / "kernel"
        path.write_bytes(guests.multiboot(code))
        return path
    return write


class Counting(Counter):
    def next(self):
        n = self.child.expect([r"n=(\d+)\.", "STALE", "LOST", "panic", "BUG"])
        assert n == 0, f"the guest lost something: {self.child.after}"
        return int(self.child.match.group(1))


def start(host, debian, tmp_path, script=COUNT, *args):
    initrd = tiny.make(debian, tmp_path, script)
    host.ok("run", "--name", "m", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd,
            "--append", "console=ttyS0 quiet", "--mem", "128M", *args)
    counter = Counting(host, "m")
    counter.reaches(5)
    return counter


def ended(listener):
    out, err = listener.communicate(timeout=60)
    return listener.returncode, out + err


def test_back_and_forth(hosts, debian, tmp_path):
    a, b = hosts
    n = start(a, debian, tmp_path, COUNT, "--cpus", 2).next()
    for i in range(6):
        listener = b.receive("--once")
        report = a.migrate("m", b.socket, "--verify", *(["--links", 3] if i % 2 else []))
        assert report["state"] == "moved" and report["downtime_us"] > 0
        assert ended(listener)[0] == 0
        a.wait_until(lambda: a.is_clean("m"), "the source is clean")
        assert b.state("m") == "running" and json.loads(b.ok("info", "--json", "m").stdout)["confined"]
        counter = Counting(b, "m")
        assert counter.next() >= n, "the guest went back"
        n = counter.next()
        counter.child.close(force=True)
        a, b = b, a
    a.ok("rm", "-f", "m")


# 16 MiB that zstd can do little with; then, again and again, one more in the first word of each page.
ONE_MORE = bytes.fromhex("bf00000001 b900004000 b801000000" "69c06d4ec641 0539300000 ab e2f2") + guests.say("ready\n") + \
    bytes.fromhex("bf00000001 b900100000" "ff07 81c700100000 e2f6 ebea")


def test_little_of_each_page(hosts, make):
    """Of pages that are written again and again goes what they differ in."""
    a, b = hosts
    a.ok("run", "--name", "m", "--detach", "--kernel", make(ONE_MORE), "--mem", "64M")
    a.spawn("console", "m").expect("ready")
    for links in (1, 3):
        listener = b.receive("--once")
        report = a.migrate("m", b.socket, "--verify", "--bandwidth", "30M", "--links", links, "--max-downtime", "50ms", "--priority", "keep-running")
        assert ended(listener)[0] == 0
        assert report["state"] == "moved" and report["pages_late"] == 0
        assert report["pages_delta"] > report["pages_sent"] / 4, report
        a.wait_until(lambda: a.is_clean("m"), "the source is clean")
        assert b.state("m") == "running"
        a, b = b, a
    a.ok("rm", "-f", "m")


def test_disk_goes_along(hosts, debian, tmp_path):
    a, b = hosts
    disk = tmp_path / "disk.raw"
    with open(disk, "wb") as f:
        f.truncate(64 << 20)
    counter = start(a, debian, tmp_path, COUNT_ON_DISK, "--disk", disk)
    a.ok("snapshot", "create", "m", "one")  # from here on the disk has layers, in the machine's folder
    counter.reaches(counter.next() + 3)
    a.ok("snapshot", "delete", "m", "one")
    for _ in range(2):
        listener = b.receive("--once")
        a.migrate("m", b.socket, "--verify")
        assert ended(listener)[0] == 0
        counter = Counting(b, "m")
        counter.reaches(counter.next() + 5)
        a.wait_until(lambda: a.is_clean("m"), "the source is clean")
        a, b = b, a
    a.ok("stop", "-f", "m")
    a.ok("start", "m")
    a.ok("rm", "-f", "m")


def test_disk_is_copied(hosts, debian, tmp_path):
    """Where the target does not see the files, their content goes over, also what is written meanwhile."""
    a, b = hosts
    base, disk, iso = tmp_path / "base.raw", tmp_path / "disk.qcow2", tmp_path / "some.iso"
    base.write_bytes(bytes(48 << 20) + os.urandom(16 << 20))
    iso.write_bytes(os.urandom(3 << 20))
    a.ok("image", "create", disk, "--backing", base, "--backing-format", "raw")
    counter = start(a, debian, tmp_path, COUNT_ON_DISK, "--disk", f"{disk},backing={base}",
                    "--disk", f"{iso},ro")
    initrd = (tmp_path / "tiny.cpio").read_bytes()
    for i in range(2):
        listener = b.receive("--once")
        report = a.migrate("m", b.socket, "--verify", "--copy", *(["--links", 3] if i else []))
        assert ended(listener)[0] == 0
        assert report["disk_bytes_sent"] > 19 << 20 and report["disk_bytes_left"] == 0
        counter = Counting(b, "m")
        counter.reaches(counter.next() + 5)  # it reads what it is going to write: STALE
        a.wait_until(lambda: a.is_clean("m"), "the source is clean")
        a, b = b, a
    assert not list(tmp_path.glob(".viv-*"))  # what shows shared storage goes with the migration
    folder = a.home / "vms" / "m"
    assert (folder / "disk-1.raw").read_bytes() == iso.read_bytes()
    assert (folder / "kernel").read_bytes() == (debian / "vmlinuz").read_bytes()
    assert (folder / "initrd").read_bytes() == initrd
    a.ok("stop", "-f", "m")
    iso.unlink()
    base.unlink()
    a.ok("start", "m")  # it stands on nothing of the other host
    Counter(a, "m").child.expect("STALE sector 1")  # what it wrote before it moved
    a.ok("rm", "-f", "m")


def test_throw_away_disk(hosts, debian, tmp_path):
    """What was written to it goes along, and is thrown away there."""
    a, b = hosts
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(8 << 20))
    counter = start(a, debian, tmp_path, COUNT_ON_DISK, "--disk", f"{disk},snapshot")
    link = Link(tmp_path / "link.sock", b.socket, cut_before=COMMIT)
    listener = b.receive()
    a.fails("migrate", "m", f"unix:{link.path}", "--verify", says=["only the target knows"])
    a.ok("migrate", "m", "--recover", f"unix:{b.socket}")  # it stays, with what it wrote
    link.close()
    counter.reaches(counter.next() + 3)
    a.migrate("m", b.socket, "--verify")
    listener.terminate()
    listener.wait()
    counter = Counting(b, "m")
    n = counter.next()
    counter.reaches(n + 3)
    b.ok("stop", "-f", "m")
    assert not any(disk.read_bytes())
    b.ok("start", "m")
    assert Counting(b, "m").next() < n  # from the beginning, and none of it is STALE
    b.ok("rm", "-f", "m")


def test_paused_machine_stays_paused(hosts, debian, tmp_path):
    a, b = hosts
    counter = start(a, debian, tmp_path)
    n = counter.next()
    a.ok("pause", "m")
    listener = b.receive("--once")
    a.migrate("m", b.socket, "--verify", "--name", "other")
    assert ended(listener)[0] == 0
    assert b.state("other") == "paused"
    b.ok("resume", "other")
    assert Counting(b, "other").next() >= n
    b.ok("rm", "-f", "other")


def test_snapshots_go_along(hosts, debian, tmp_path):
    """They are there before the machine, whole; without a word about them they stay."""
    a, b = hosts
    disk = tmp_path / "disk.raw"
    with open(disk, "wb") as f:
        f.truncate(16 << 20)
    counter = start(a, debian, tmp_path, COUNT_ON_DISK, "--disk", disk)
    for name in ("one", "two"):
        a.ok("snapshot", "create", "m", name)
        counter.reaches(counter.next() + 3)
    listener = b.receive("--once")
    report = a.migrate("m", b.socket, "--verify", "--with-snapshots")
    assert report["state"] == "moved" and ended(listener)[0] == 0
    a.wait_until(lambda: a.is_clean("m"), "the source is clean")
    assert not list((b.home / "vms").glob("incoming-*"))
    assert [s["name"] for s in json.loads(b.ok("snapshot", "list", "m", "--json").stdout)] == ["one", "two"]
    for name in ("one", "two"):
        b.ok("snapshot", "verify", "m", name)
    counter = Counting(b, "m")
    n = counter.next()
    b.ok("snapshot", "restore", "m", "one")
    b.wait_until(lambda: counter.next() < n, "it is back at the snapshot")
    counter.reaches(counter.next() + 3)
    # Over ssh; and none of them.
    b.env["PATH"] = fake_ssh(tmp_path / "bin", a)
    b.ok("snapshot", "delete", "m", "two")
    b.ok("migrate", "m", "ssh://near.example", "--with-snapshots")
    assert (tmp_path / "bin" / "asked").read_text().count("viv receive --stdio") == 2
    assert [s["name"] for s in json.loads(a.ok("snapshot", "list", "m", "--json").stdout)] == ["one"]
    listener = b.receive("--once")
    a.migrate("m", b.socket)
    assert ended(listener)[0] == 0 and json.loads(b.ok("snapshot", "list", "m", "--json").stdout) == []
    a.wait_until(lambda: a.state("m") in (None, "stopped"), "its process here has ended")
    assert [s["name"] for s in json.loads(a.ok("snapshot", "list", "m", "--json").stdout)] == ["one"]
    a.ok("rm", "m")
    # A machine that does not come leaves no snapshots behind.
    b.ok("snapshot", "create", "m", "three")
    a.ok("run", "--detach", "--name", "m", "--kernel", debian / "vmlinuz", "--initrd", debian / "initrd", "--mem", "64M")
    listener = a.receive()
    b.fails("migrate", "m", f"unix:{a.socket}", "--with-snapshots", says=["already"])
    a.wait_until(lambda: not list((a.home / "vms").glob("incoming-*")), "nothing is left of them")
    listener.terminate()
    listener.wait()
    for host in (a, b):
        host.ok("rm", "-f", "m")


def test_several_links_over_ssh(hosts, debian, tmp_path):
    """Each link has an ssh, and each of those a viv receive; they find each other."""
    a, b = hosts
    start(a, debian, tmp_path)
    a.env["PATH"] = fake_ssh(tmp_path / "bin", b)
    report = json.loads(a.ok("migrate", "m", "ssh://far.example", "--links", 4, "--verify", "--json").stdout)
    assert report["state"] == "moved"
    assert (tmp_path / "bin" / "asked").read_text().count("viv receive --stdio") == 4
    counter = Counting(b, "m")
    counter.reaches(counter.next() + 3)
    assert a.is_clean("m") and not list((b.home / "migrations").glob("*.links"))
    # One of them does not come: nothing has changed here, nothing is left there.
    b.env["PATH"] = fake_ssh(tmp_path / "bin2", a)
    script = tmp_path / "bin2" / "ssh"
    script.write_text(script.read_text().replace("shift\nVIV", f"shift\nmkdir {tmp_path}/first 2>/dev/null || exit 255\nVIV", 1))
    done = b.run("migrate", "m", "ssh://near.example", "--links", 2)  # what is said at the other side comes by ssh, too
    assert done.returncode == 1 and "lost" in done.stderr
    counter.reaches(counter.next() + 3)
    assert b.state("m") == "running"
    b.ok("rm", "-f", "m")


def test_over_ssh(hosts, debian, tmp_path):
    a, b = hosts
    n = start(a, debian, tmp_path).next()
    a.env["PATH"] = fake_ssh(tmp_path / "bin", b)
    report = json.loads(a.ok("migrate", "m", "ssh://someone@far.example:2022", "--verify", "--json").stdout)
    assert report["state"] == "moved"
    assert (tmp_path / "bin" / "asked").read_text() == "-T -p 2022 someone@far.example -- viv receive --stdio\n"
    a.wait_until(lambda: a.is_clean("m"), "the source is clean")
    counter = Counting(b, "m")
    assert counter.next() >= n
    for bad in ("ssh://", "ssh://-oProxyCommand=x", "ssh://host:0", "ssh://host:x", "ssh://a b"):
        b.fails("migrate", "m", bad, says=["ssh://[USER@]HOST"])
    # The way breaks down: it stays.
    b.env["PATH"] = fake_ssh(tmp_path / "bin2", a)
    (tmp_path / "bin2" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    b.fails("migrate", "m", "ssh://near.example", says=["lost"])
    counter.reaches(counter.next() + 2)
    b.ok("rm", "-f", "m")


def test_evacuate(hosts, make, tmp_path):
    a, b = hosts
    a.ok("evacuate", "unix:/nobody")  # and nothing to do
    for name in ("one", "two", "three"):
        a.ok("run", "--detach", "--name", name, "--kernel", make(guests.SLEEP), "--mem", "16M")
    a.ok("run", "--detach", "--name", "two-b", "--kernel", make(guests.SLEEP), "--mem", "16M")
    a.ok("stop", "-f", "two-b")
    b.ok("run", "--detach", "--name", "two", "--kernel", make(guests.SLEEP), "--mem", "16M")
    listener = b.receive()
    done = a.run("evacuate", f"unix:{b.socket}", "--json", "--verify")
    assert done.returncode == 1 and "two stays here" in done.stderr and "already" in done.stderr
    assert {r["name"]: r["state"] for r in json.loads(done.stdout)} == {"one": "moved", "two": "kept", "three": "moved"}
    assert a.state("two") == "running" and a.state("two-b") == "stopped"
    a.wait_until(lambda: a.names() == ["two", "two-b"], "the others are gone")
    assert sorted(b.names()) == ["one", "three", "two"]
    listener.terminate()
    listener.wait()
    a.ok("rm", "-f", "two", "two-b")
    b.ok("rm", "-f", "one", "two", "three")


@pytest.mark.parametrize("what", [[], ["--copy"]], ids=["memory", "files"])
def test_cancel(hosts, debian, tmp_path, what):
    a, b = hosts
    counter = start(a, debian, tmp_path)
    listener = b.receive("--once")
    moving = a.spawn("migrate", "m", f"unix:{b.socket}", "--bandwidth", "1M", *what)
    moving.expect("copying memory: .* sent")
    assert '"precopy"' in a.ok("migrate", "m", "--status").stdout
    a.fails("snapshot", "create", "m", "one", says=["moved"])
    b.fails("resume", "m", says=["on its way"])
    b.fails("snapshot", "create", "m", "one", says=["on its way"])
    a.fails("migrate", "m", f"unix:{b.socket}", says=["already"])
    moving.sendintr()
    moving.expect("canceled")
    moving.wait()
    assert moving.exitstatus == 1
    assert ended(listener)[0] == 1
    counter.reaches(counter.next() + 3)
    b.wait_until(lambda: b.is_clean("m"), "the target is clean")
    a.fails("migrate", "m", "--cancel", says=["no migration"])
    a.ok("snapshot", "create", "m", "one")
    a.ok("rm", "-f", "m")


def test_refused(hosts, debian, tmp_path):
    a, b = hosts
    counter = start(a, debian, tmp_path)
    a.fails("migrate", "m", f"unix:{tmp_path}/nobody", says=["nobody listens"])
    a.fails("migrate", "m", "carrier-pigeon:there", says=["no way"])
    a.fails("migrate", "m", status=2, says=["TARGET"])
    a.fails("migrate", "m", "--recover", says=["not in doubt"])
    listener = b.receive()
    b.ok("run", "--name", "m", "--detach", "--kernel", debian / "vmlinuz", "--append", "console=ttyS0", "--mem", "64M")
    a.fails("migrate", "m", f"unix:{b.socket}", says=["already"])
    b.ok("rm", "-f", "m")
    a.fails("migrate", "m", f"unix:{b.socket}", "--engine", "abacus", says=["abacus"])
    b.wait_until(lambda: not (b.home / "vms" / "m").exists(), "the target is clean")
    a.migrate("m", b.socket)  # the same viv receive takes it
    listener.terminate()
    assert Counting(b, "m").next() >= counter.next()
    b.ok("rm", "-f", "m")


@pytest.mark.parametrize("where", ["early", "memory", "late"])
def test_damaged_stream(hosts, debian, tmp_path, where):
    a, b = hosts
    counter = start(a, debian, tmp_path)
    at = {"early": 30, "memory": 3 << 20, "late": 20 << 20}[where]
    link = Link(tmp_path / "link.sock", b.socket, flip_at=at)
    listener = b.receive("--once")
    a.fails("migrate", "m", f"unix:{link.path}")
    link.close()
    counter.reaches(counter.next() + 3)
    b.wait_until(lambda: not (b.home / "vms" / "m").exists(), "the target is clean")
    if where == "early":  # nothing came that --once could count
        listener.terminate()
    ended(listener)
    a.ok("rm", "-f", "m")


def test_lost_in_the_middle_of_the_hand_over(hosts, debian, tmp_path):
    """Only the target knows whether the commit came; it is asked, and its answer is final."""
    a, b = hosts
    n = start(a, debian, tmp_path).next()
    listener = b.receive()
    link = Link(tmp_path / "link.sock", b.socket, cut_before=COMMIT)
    a.fails("migrate", "m", f"unix:{link.path}", says=["only the target knows"])
    assert a.state("m") == "paused"
    a.fails("resume", "m", says=["not known"])
    a.fails("snapshot", "create", "m", "one", says=["not known"])
    a.fails("migrate", "m", "--recover", "unix:/nobody/there")
    assert "runs here again" in a.ok("migrate", "m", "--recover", f"unix:{b.socket}").stdout
    counter = Counting(a, "m")
    counter.reaches(n + 2)
    n = counter.next()
    assert not (b.home / "vms" / "m").exists()
    a.fails("migrate", "m", "--recover", f"unix:{b.socket}", says=["not in doubt"])

    link.close()
    link = Link(tmp_path / "link.sock", b.socket, cut_before=RUNNING)
    a.fails("migrate", "m", f"unix:{link.path}", says=["only the target knows"])
    link.close()
    assert a.state("m") == "paused" and b.state("m") == "running"
    a.ok("migrate", "m", "--recover", f"unix:{b.socket}")
    a.wait_until(lambda: a.is_clean("m"), "the source is clean")
    counter = Counting(b, "m")
    counter.reaches(n + 2)
    listener.terminate()
    listener.wait()
    b.ok("rm", "-f", "m")


@pytest.mark.parametrize("word", [COMMIT, RUNNING])
def test_source_killed_in_the_middle_of_the_hand_over(hosts, debian, tmp_path, word):
    """Nobody starts the machine there before the target was asked."""
    a, b = hosts
    start(a, debian, tmp_path)
    listener = b.receive()
    link = Link(tmp_path / "link.sock", b.socket, cut_before=word)
    a.fails("migrate", "m", f"unix:{link.path}", says=["only the target knows"])
    pid = next(vm["pid"] for vm in a.list() if vm["name"] == "m")
    os.kill(pid, signal.SIGKILL)
    a.wait_until(lambda: a.state("m") == "stopped", "the source is dead")
    a.fails("start", "m", says=["may be running at", "--recover"])
    a.ok("migrate", "m", "--recover", f"unix:{b.socket}")
    if word == COMMIT:
        a.ok("start", "m")
        a.ok("rm", "-f", "m")
    else:
        a.fails("start", "m", says=["moved"])
        a.ok("rm", "m")
        assert b.state("m") == "running"
        b.ok("rm", "-f", "m")
    listener.terminate()
    listener.wait()


def where_it_runs(a, b):
    return [host for host in (a, b) if host.state("m") == "running"]


def kill_machine(host):
    for pid in processes_in(host.home):
        with contextlib.suppress(OSError):
            if b"vm\0--name" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def settle(a, b, told):
    """Where the machine runs, after whatever happened; only there."""
    b.wait_until(lambda: not (b.home / "vms" / "m" / "incoming.json").exists(), f"the target has settled: {told}")
    if (a.home / "vms" / "m" / "handover.json").exists():
        a.run("migrate", "m", "--recover", f"unix:{b.socket}")
    a.wait_until(lambda: not {"paused", "running"} <= {a.state("m"), b.state("m")}, told)
    runs = where_it_runs(a, b)
    started = [host for host in (a, b) if host not in runs and host.run("start", "m").returncode == 0]
    assert len(runs) + len(started) == 1, f"{len(runs)} run, {len(started)} could be started: {told}"
    here, gone = (a, b) if a in runs + started else (b, a)
    gone.run("rm", "-f", "m")
    assert here.state("m") == "running"
    return here, gone


def test_lost_links_and_killed_sides(hosts, debian, tmp_path):
    """At random moments the link is cut, or a side killed: afterwards exactly one runs, or can be started."""
    a, b = hosts
    start(a, debian, tmp_path).child.close(force=True)
    seed = int(os.environ.get("MIGRATE_SEED", random.randrange(1 << 30)))
    rng = random.Random(seed)
    total = 8 << 20
    for i in range(int(os.environ.get("MIGRATE_ROUNDS", 6))):
        what = ("cut", "target", "source")[i % 3]
        told = f"seed {seed}, round {i}: {what}"
        listener = b.receive()
        kill = {"cut": None, "target": lambda host=b: kill_machine(host), "source": lambda host=a: kill_machine(host)}[what]
        link = Link(tmp_path / "link.sock", b.socket, cut_after=rng.randrange(total), at_cut=kill)
        a.run("migrate", "m", f"unix:{link.path}", "--verify")
        link.close()
        a, b = settle(a, b, told)
        listener.terminate()
        listener.wait()
        counter = Counting(a, "m")
        counter.reaches(counter.next() + 1)
        counter.child.close(force=True)
    a.ok("rm", "-f", "m")
