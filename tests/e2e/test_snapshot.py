# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a running machine, and going back to them."""
import contextlib
import fcntl
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import pytest

import guests
import tiny

COUNT = """
n=0
while :; do n=$((n + 1)); echo "n=$n."; $b sleep 0.05; done
"""

# Sector n is written when n is counted: one that is there before comes from a time that is not this one's.
COUNT_ON_DISK = """
n=0
while :; do
	n=$((n + 1))
	old=$($b dd if=/dev/vda bs=512 skip=$n count=1 2>/dev/null | $b tr -d '\\000')
	[ -z "$old" ] || echo "STALE $old"
	echo "sector $n" | $b dd of=/dev/vda bs=512 seek=$n conv=notrunc,fsync 2>/dev/null
	echo 3 >/proc/sys/vm/drop_caches
	echo "n=$n."
done
"""


class Counter:
    """A machine that counts on its console."""

    def __init__(self, viv, name):
        self.name = name
        self.child = viv.spawn("console", name, limit=120)

    def next(self):
        assert self.child.expect([r"n=(\d+)\.", "STALE"]) == 0, "the disk is of another time than memory"
        return int(self.child.match.group(1))

    def reaches(self, n):
        while self.next() < n:
            pass

    def flush(self):
        """Forget what was printed up to now."""
        self.child.expect(r".+")
        self.next()


@pytest.fixture
def counting(empty_viv, debian, tmp_path):
    """The machine "a", which counts, and its home."""
    initrd = tiny.make(debian, tmp_path, COUNT)
    empty_viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd,
                 "--append", "console=ttyS0 quiet", "--mem", "256M", "--cpus", 2)
    return empty_viv


def snapshots(viv, name):
    return {s["name"]: s for s in json.loads(viv.ok("snapshot", "list", name, "--json").stdout)}


def ends(viv, *names):
    viv.ok("rm", "-f", *names)


def test_back_in_place(counting):
    a = Counter(counting, "a")
    a.reaches(10)
    done = json.loads(counting.ok("snapshot", "create", "a", "one", "--json").stdout)
    assert done["bytes"] > 0 and done["parent"] is None
    n = a.next()
    a.reaches(n + 30)
    counting.ok("snapshot", "restore", "a", "one")
    a.flush()
    back = a.next()
    assert back < n + 30, "the count did not go back"
    a.reaches(back + 10)  # and it goes on
    counting.ok("snapshot", "restore", "a", "one")
    a.reaches(n + 5)
    for _ in range(20):
        counting.ok("reset", "--to", "one", "a")
    a.flush()
    a.reaches(a.next() + 5)
    counting.fails("reset", "--to", "none", "a", says=["none"])
    ends(counting, "a")


PROGRAM = os.environ.get("VIV", str(pathlib.Path(__file__).resolve().parents[2] / "build" / "viv"))


def begin(viv, *args):
    """viv with @args, on its own."""
    return subprocess.Popen([PROGRAM, *args], env=viv.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def is_busy(viv, name):
    """Is its machine at work on a snapshot, or about to be?"""
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(viv.home / "run" / name / "control.sock"))
        control.sendall(b'{"cmd": "snapshot-progress"}\n')
        return json.loads(control.makefile().readline())["busy"]


@contextlib.contextmanager
def exchanging(viv, name):
    """As a merge does while it exchanges files of the machine's snapshots."""
    folder = os.open(viv.home / "vms" / name / "snapshots", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    yield
    os.close(folder)


def test_nothing_else_waits_while_files_are_exchanged(counting):
    """What needs the snapshots' files waits for its turn, going back again to where it was does not; the machine and its control socket go on."""
    viv = counting
    a = Counter(viv, "a")
    a.reaches(3)
    viv.ok("snapshot", "create", "a", "one")
    for args in (("snapshot", "create", "a", "two"), ("snapshot", "restore", "a", "one"), ("fork", "a", "--name", "b"),
                 ("reset", "a", "--to", "two")):
        with exchanging(viv, "a"):
            waiting = begin(viv, *args)
            viv.wait_until(lambda w=waiting: is_busy(viv, "a") or w.poll() is not None, "begun")
            viv.ok("info", "a")
            assert waiting.poll() is None, "it did not wait"
        assert waiting.wait() == 0
    with exchanging(viv, "a"):
        viv.ok("reset", "a", "--to", "two")
    # One that is canceled while it waits is forgotten.
    with exchanging(viv, "a"):
        waiting = begin(viv, "snapshot", "create", "a", "three")
        viv.wait_until(lambda: is_busy(viv, "a"), "begun")
        waiting.kill()
        waiting.wait()
        viv.wait_until(lambda: not is_busy(viv, "a"), "forgotten")
    viv.ok("snapshot", "create", "a", "four")
    assert set(snapshots(viv, "a")) == {"one", "two", "four"}
    ends(viv, "a", "b")


def test_paused_machine_and_restart(counting):
    a = Counter(counting, "a")
    a.reaches(10)
    counting.ok("pause", "a")
    counting.ok("snapshot", "create", "a", "one")
    assert counting.list()[0]["state"] == "paused"
    counting.ok("stop", "-f", "a")
    counting.ok("snapshot", "restore", "a", "one")
    again = Counter(counting, "a")
    assert again.next() >= 10
    ends(counting, "a")


def test_parents_sizes_and_deleting_the_middle(counting):
    viv = counting
    a = Counter(viv, "a")
    a.reaches(5)
    for name in ("one", "two", "three"):
        viv.ok("snapshot", "create", "a", name)
        a.reaches(a.next() + 3)
    found = snapshots(viv, "a")
    assert [found[n]["parent"] for n in ("one", "two", "three")] == [None, "one", "two"]
    assert found["three"]["own_bytes"] < found["three"]["shared_bytes"], "it is no incremental one"
    assert [line.split()[0] for line in viv.ok("snapshot", "tree", "a").stdout.splitlines()[1:]] == ["one", "two", "three"]
    folder = viv.home / "vms" / "a" / "snapshots" / "three"
    assert len(list(folder.glob("ram-*"))) == 3
    for name in ("two", "one"):
        viv.ok("snapshot", "delete", "a", name)
        assert len(list(folder.glob("ram-*"))) <= 2, "what it needs of the deleted one was not merged"
        assert viv.ok("snapshot", "verify", "a", "three").stdout == "three: whole\n"
    # The machine knows where its memory is by now: what comes next is incremental.
    viv.ok("snapshot", "create", "a", "four")
    assert snapshots(viv, "a")["four"]["own_bytes"] < snapshots(viv, "a")["four"]["shared_bytes"]
    viv.ok("snapshot", "delete", "a", "four")
    before = a.next()
    a.reaches(before + 100)
    viv.ok("snapshot", "restore", "a", "three")
    a.flush()
    assert a.next() < before + 100
    viv.fails("snapshot", "show", "a", "one", says=["no snapshot", "viv snapshot list"])
    viv.fails("snapshot", "create", "a", "three", says=["already"])
    viv.fails("snapshot", "create", "a", "../x", says=["no name"])
    ends(viv, "a")


def test_time_that_is_skipped(empty_viv, debian, tmp_path):
    """--skip-time: a guest without an agent has the right time at once, started from the snapshot or gone back to it in place."""
    viv = empty_viv
    initrd = tiny.make(debian, tmp_path, 'while :; do echo "n=$($b date +%s)."; $b sleep 0.05; done')
    viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0 quiet", "--mem", "256M")
    a = Counter(viv, "a")
    a.next()
    viv.ok("snapshot", "create", "a", "s")
    viv.ok("stop", "-f", "a")
    then = int(time.time())
    # As if it had been taken 100000 s earlier: the guest's time is then that much ahead.
    file = viv.home / "vms" / "a" / "snapshots" / "s" / "snapshot.json"
    info = json.loads(file.read_text())
    info["real_ns"] -= 100000 * 10**9
    file.write_text(json.dumps(info))
    for skips in (True, False):
        options = ["--skip-time"] if skips else []
        for _ in ("started", "in place"):
            viv.ok("snapshot", "restore", "a", "s", *options)
            a = Counter(viv, "a")
            a.flush()
            assert (a.next() > then + 90000) == skips
        viv.ok("stop", "-f", "a")
    viv.ok("run", "--from", "a@s", "--skip-time", "--name", "b", "--detach")
    assert Counter(viv, "b").next() > then + 90000
    ends(viv, "a", "b")


def test_a_machine_of_its_own(counting):
    viv = counting
    a = Counter(viv, "a")
    a.reaches(10)
    viv.ok("snapshot", "create", "a", "one")
    here = a.next()
    viv.ok("run", "--from", "a@one", "--name", "b", "--detach")
    b = Counter(viv, "b")
    assert 10 <= b.next()
    a.reaches(here + 20)
    ends(viv, "a")
    b.reaches(here + 20)  # it needs nothing of the other's
    viv.ok("snapshot", "restore", "b", "one")
    b.flush()
    b.next()
    viv.fails("run", "--from", "b@none", "--name", "c", says=["no snapshot"])
    viv.fails("run", "--from", "b@one", "--name", "c", "--mem", "1G", status=2, says=["--from"])
    assert viv.names() == ["b"]
    ends(viv, "b")


def test_show(counting):
    a = Counter(counting, "a")
    a.reaches(3)
    counting.ok("snapshot", "create", "a", "one")
    text = counting.ok("snapshot", "show", "a", "one").stdout
    assert "[cpu1]" in text and re.search(r"^rip = 0x[0-9a-f]+$", text, re.M)
    state = json.loads(counting.ok("snapshot", "show", "a", "one", "--json").stdout)["state"]
    assert int(state["machine"]["vcpus"], 0) == 2 and "dev:pit" in state
    ends(counting, "a")


def test_damaged_ones_are_refused_and_the_machine_goes_on(counting):
    viv = counting
    a = Counter(viv, "a")
    a.reaches(5)
    viv.ok("snapshot", "create", "a", "one")
    viv.ok("snapshot", "create", "a", "two")
    folder = viv.home / "vms" / "a" / "snapshots" / "one"
    ram = next(folder.glob("ram-*"))

    def with_bytes(path, change):
        data = path.read_bytes()
        path.unlink()  # a link: the other snapshot keeps its file
        path.write_bytes(change(data))
        viv.fails("snapshot", "restore", "a", "one")
        a.reaches(a.next() + 2)
        path.write_bytes(data)

    for name in ("state", "ram.index", "snapshot.json"):
        with_bytes(folder / name, lambda d: d[:len(d) // 2])
        with_bytes(folder / name, lambda d: b"")
    for name in ("state", "ram.index"):
        with_bytes(folder / name, lambda d: d[:100] + bytes([d[100] ^ 4]) + d[101:])
    with_bytes(ram, lambda d: d[:-4096])
    # Content of memory: told by verify.
    data = ram.read_bytes()
    at = next(i for i in range(0, len(data), 4096) if any(data[i:i + 4096]))
    ram.unlink()
    ram.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
    done = viv.run("snapshot", "verify", "a", "one")
    assert done.returncode == 1 and ram.name in done.stdout, done.stdout + done.stderr
    assert viv.ok("snapshot", "verify", "a", "two").stdout == "two: whole\n"
    ends(viv, "a")


def test_canceled_or_killed_leaves_nothing(counting):
    viv = counting
    a = Counter(viv, "a")
    a.reaches(5)
    folder = viv.home / "vms" / "a" / "snapshots"
    for sig in (signal.SIGINT, signal.SIGKILL):
        child = subprocess.Popen([os.environ.get("VIV", str(pathlib.Path(__file__).resolve().parents[2] / "build" / "viv")),
                                  "snapshot", "create", "a", "one"], env=viv.env, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        viv.wait_until(lambda: folder.exists() and any(folder.iterdir()) or child.poll() is not None, "begun")
        child.send_signal(sig)
        child.wait()
        viv.wait_until(lambda: not [p for p in folder.iterdir() if p.name.startswith(".")], "nothing half-made")
        if "one" in snapshots(viv, "a"):  # it was faster
            viv.ok("snapshot", "delete", "a", "one")
    a.reaches(a.next() + 3)
    # The whole machine killed: what is left over goes with the next one.
    (folder / ".tmp-left").mkdir()
    viv.ok("snapshot", "create", "a", "two")
    assert [p.name for p in folder.iterdir()] == ["two"]
    ends(viv, "a")


def test_disks_belong_to_the_same_moment(empty_viv, debian, tmp_path):
    """Written to before, between and after: memory and disk go back together, in place, started again, and on their own."""
    viv, disk = empty_viv, tmp_path / "counted.raw"
    disk.write_bytes(bytes(8 << 20))
    initrd = tiny.make(debian, tmp_path, COUNT_ON_DISK)
    viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--disk", disk,
           "--append", "console=ttyS0 quiet", "--mem", "256M")
    a = Counter(viv, "a")
    a.reaches(5)
    for name in ("one", "two"):
        viv.ok("snapshot", "create", "a", name)
        a.reaches(a.next() + 10)
    for name in ("two", "one", "one", "two"):
        viv.ok("snapshot", "restore", "a", name)
        a.flush()
        a.reaches(a.next() + 10)
    viv.ok("run", "--from", "a@one", "--name", "b", "--detach")
    b = Counter(viv, "b")
    b.reaches(b.next() + 10)
    viv.ok("snapshot", "delete", "a", "one")
    viv.ok("stop", "-f", "a")
    viv.ok("snapshot", "restore", "a", "two")
    a = Counter(viv, "a")
    a.reaches(a.next() + 10)
    # What it wrote is there at the next start, too, whatever layer it is in.
    n = a.next()
    viv.ok("stop", "-f", "a")
    viv.ok("start", "a")
    again = viv.spawn("console", "a", limit=120)
    again.expect(rf"STALE sector {n}\b")
    ends(viv, "a")
    b.reaches(b.next() + 10)
    ends(viv, "b")


def open_layers(viv, name):
    """Which layers the machine's process has open; what has no name any more ends in (deleted)."""
    pid, = (m["pid"] for m in viv.list() if m["name"] == name)
    found = set()
    for f in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if "/layer-" in os.readlink(f):
                found.add(os.readlink(f).rsplit("/", 1)[1])
    return sorted(found)


def test_layers_are_merged_under_a_running_machine(empty_viv, debian, tmp_path):
    """Below its own top, too; what is gone is closed at once, and the machine counts on."""
    viv, disk = empty_viv, tmp_path / "counted.raw"
    disk.write_bytes(bytes(8 << 20))
    initrd = tiny.make(debian, tmp_path, COUNT_ON_DISK)
    viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--disk", disk,
           "--append", "console=ttyS0 quiet", "--mem", "256M")
    a = Counter(viv, "a")
    folder = viv.home / "vms" / "a"
    for name in ("one", "two", "three", "four"):
        a.reaches(a.next() + 5)
        viv.ok("snapshot", "create", "a", name)
    a.reaches(a.next() + 5)
    # A middle one, which goes into a layer that nobody writes; the newest, whose layer goes into the top; the oldest.
    for gone, left in (("two", 4), ("four", 3), ("one", 3)):
        viv.ok("snapshot", "delete", "a", gone)
        there = sorted(f.name for f in folder.glob("layer-*"))
        assert len(there) == left
        assert open_layers(viv, "a") == there
        a.reaches(a.next() + 5)
    viv.ok("snapshot", "restore", "a", "three")
    a = Counter(viv, "a")  # one that has nothing of before in its buffer
    a.reaches(a.next() + 5)
    # It comes to its end meanwhile: nothing is lost.
    viv.ok("snapshot", "create", "a", "five")
    viv.ok("snapshot", "create", "a", "six")
    a.reaches(a.next() + 5)
    deleting = begin(viv, "snapshot", "delete", "a", "six")
    pid = viv.list()[0]["pid"]
    n = a.next()
    os.kill(pid, signal.SIGKILL)
    deleting.wait()
    viv.wait_until(lambda: viv.list()[0]["state"] == "stopped", "stopped")
    viv.run("snapshot", "delete", "a", "six")
    viv.ok("snapshot", "delete", "a", "five")
    for layer in folder.glob("layer-*.qcow2"):
        subprocess.run(["qemu-img", "check", "-q", layer], check=True)
    viv.ok("start", "a")
    again = viv.spawn("console", "a", limit=120)
    again.expect(rf"STALE sector {n}\b")
    ends(viv, "a")


def test_a_start_waits_while_files_are_exchanged(empty_viv, debian, tmp_path):
    viv, disk = empty_viv, tmp_path / "counted.raw"
    disk.write_bytes(bytes(8 << 20))
    initrd = tiny.make(debian, tmp_path, COUNT_ON_DISK)
    viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--disk", disk,
           "--append", "console=ttyS0 quiet", "--mem", "256M")
    viv.ok("snapshot", "create", "a", "one")
    viv.ok("stop", "-f", "a")
    folder = viv.home / "vms" / "a"
    layer, = folder.glob("layer-*.qcow2")
    for args in (("start", "a"), ("snapshot", "restore", "a", "one")):
        with exchanging(viv, "a"):
            os.rename(layer, folder / "elsewhere")
            starting = begin(viv, *args)
            with contextlib.suppress(subprocess.TimeoutExpired):
                starting.wait(timeout=1)
            assert starting.returncode is None, "it did not wait"
            os.rename(folder / "elsewhere", layer)
        assert starting.wait() == 0
        viv.ok("stop", "-f", "a")
        layer = next(f for f in folder.glob("layer-*.qcow2"))


def test_a_disk_that_is_thrown_away(empty_viv, debian, tmp_path):
    """Snapshots and copies hold what it held; the file under it is never written, and at a start the disk begins anew."""
    viv, disk = empty_viv, tmp_path / "counted.raw"
    disk.write_bytes(bytes(8 << 20))
    initrd = tiny.make(debian, tmp_path, COUNT_ON_DISK)
    viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--disk", f"{disk},snapshot",
           "--append", "console=ttyS0 quiet", "--mem", "256M")
    a = Counter(viv, "a")
    a.reaches(5)
    viv.fails("snapshot", "create", "a", "../x", says=["no name"])
    for name in ("one", "two"):
        viv.ok("snapshot", "create", "a", name)
        a.reaches(a.next() + 10)
    for name in ("one", "two", "one"):
        viv.ok("snapshot", "restore", "a", name)
        a.flush()
        a.reaches(a.next() + 10)
    viv.ok("fork", "a", "--name", "w")
    viv.ok("run", "--from", "a@one", "--name", "b", "--detach")
    for name in ("w", "b"):
        copy = Counter(viv, name)
        copy.reaches(copy.next() + 10)
    viv.ok("snapshot", "delete", "a", "one")
    viv.ok("stop", "-f", "a")
    viv.ok("snapshot", "restore", "a", "two")
    a = Counter(viv, "a")
    n = a.next()
    a.reaches(n + 10)
    ends(viv, "w", "b")
    viv.ok("stop", "-f", "a")
    viv.ok("start", "a")
    Counter(viv, "a").reaches(n)  # what was there before, in whatever layer, would be STALE
    assert not any(disk.read_bytes()), "the file under it was written"
    assert not list((viv.home / "vms" / "a").glob("kept-*")), "what was thrown away is still there"
    viv.ok("snapshot", "restore", "a", "two")
    a = Counter(viv, "a")
    a.flush()
    a.reaches(a.next() + 5)
    ends(viv, "a")


@pytest.mark.parametrize("kind", ["", ",snapshot"])
def test_a_disk_that_stands_on_others(empty_viv, debian, tmp_path, kind):
    """An image's backing file of a plain name comes along; one from elsewhere is refused before anything is changed."""
    viv, images = empty_viv, tmp_path / "brought"
    images.mkdir()
    (images / "base.raw").write_bytes(bytes(8 << 20))
    (tmp_path / "far.raw").write_bytes(bytes(8 << 20))
    for name, below in (("middle", "base.raw"), ("top", "middle.qcow2"), ("far", tmp_path / "far.raw")):
        viv.ok("image", "create", images / f"{name}.qcow2", "--backing", below)
    initrd = tiny.make(debian, tmp_path, COUNT_ON_DISK)
    machine = ("--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0 quiet", "--mem", "256M")
    viv.ok("run", "--name", "b", *machine, "--disk", f"{images}/far.qcow2,backing={tmp_path}/far.raw{kind}")
    before = sorted(os.listdir(viv.home / "vms" / "b"))
    viv.fails("snapshot", "create", "b", "one", says=["far.raw", "flatten"])
    assert sorted(set(os.listdir(viv.home / "vms" / "b")) - {"snapshots"}) == sorted(set(before) - {"snapshots"})
    viv.ok("run", "--name", "a", *machine, "--disk", f"{images}/top.qcow2,backing={images}{kind}")
    a = Counter(viv, "a")
    a.reaches(5)
    viv.ok("snapshot", "create", "a", "one")
    a.reaches(a.next() + 5)
    viv.ok("fork", "a", "--name", "c")
    c = Counter(viv, "c")
    c.reaches(c.next() + 5)
    viv.ok("snapshot", "restore", "a", "one")
    viv.ok("stop", "-f", "a")
    viv.ok("start", "a")
    viv.ok("stop", "-f", "a")
    viv.ok("snapshot", "restore", "a", "one")
    a = Counter(viv, "a")
    a.reaches(a.next() + 5)
    ends(viv, "a", "b", "c")


def test_copies_of_a_machine_without_a_name_go_when_they_end(empty_viv, debian, tmp_path):
    disk = tmp_path / "counted.raw"
    disk.write_bytes(bytes(8 << 20))
    initrd = tiny.make(debian, tmp_path, COUNT_ON_DISK)
    empty_viv.ok("run", "--rm", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--disk",
                 f"{disk},snapshot", "--append", "console=ttyS0 quiet", "--mem", "256M")
    Counter(empty_viv, "a").reaches(5)
    empty_viv.ok("fork", "a", "-n", 2, "--name", "w{}")
    empty_viv.ok("snapshot", "create", "w1", "one")
    for name in ("w1", "w2"):
        copy = Counter(empty_viv, name)
        copy.reaches(copy.next() + 5)
    empty_viv.ok("stop", "-f", "a", "w1", "w2")
    empty_viv.wait_until(lambda: empty_viv.names() == [], "all gone")


def test_export_and_import(empty_viv, debian, tmp_path):
    """To another home, as on another host: one file, checked, and all that is needed is in it."""
    viv, disk, file = empty_viv, tmp_path / "counted.raw", tmp_path / "one.viv"
    disk.write_bytes(bytes(8 << 20))
    initrd = tiny.make(debian, tmp_path, COUNT_ON_DISK)
    viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--disk", disk,
           "--append", "console=ttyS0 quiet", "--mem", "256M")
    a = Counter(viv, "a")
    a.reaches(5)
    viv.ok("snapshot", "create", "a", "zero")
    a.reaches(a.next() + 5)
    viv.ok("snapshot", "create", "a", "one")
    viv.ok("snapshot", "export", "a", "one", file)
    viv.fails("snapshot", "export", "a", "one", file, says=["already"])
    ends(viv, "a")
    for path in (disk, initrd):
        path.unlink()
    data = file.read_bytes()
    for damaged in (data[:len(data) // 2], data[:-1], data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], b"", b"x" * 99):
        bad = tmp_path / "bad.viv"
        bad.write_bytes(damaged)
        assert viv.run("snapshot", "import", "b", "new", bad).returncode == 1
        assert viv.names() == []
    viv.ok("snapshot", "import", "b", "new", file)
    assert viv.ok("snapshot", "verify", "b", "new").stdout == "new: whole\n"
    viv.ok("snapshot", "restore", "b", "new")
    b = Counter(viv, "b")
    assert b.next() >= 10
    b.reaches(b.next() + 10)
    viv.fails("snapshot", "import", "b", "new", file, says=["already"])
    ends(viv, "b")


def test_what_a_snapshot_may_not_say(empty_viv, tmp_path):
    """It may come from elsewhere: it opens no port of this host, and takes along no file that is none of its own."""
    viv, kernel, disk = empty_viv, tmp_path / "guest", tmp_path / "disk"
    kernel.write_bytes(guests.multiboot(guests.SLEEP))
    disk.write_bytes(bytes(1 << 20))
    viv.ok("run", "--detach", "--name", "a", "--mem", "16M", "--net", "nat", "--kernel", kernel, "--disk", f"{disk},ro")
    viv.ok("snapshot", "create", "a", "s")
    folder = viv.home / "vms" / "a" / "snapshots" / "s"
    said = json.loads((folder / "snapshot.json").read_text())
    said["config"]["forwards"] = ["52223:22"]
    (folder / "snapshot.json").write_text(json.dumps(said))
    viv.ok("run", "--detach", "--from", "a@s", "--name", "b")
    assert json.loads((viv.home / "vms" / "b" / "machine.json").read_text())["forwards"] == []
    (viv.home / "secret").write_bytes(bytes(512))
    said["config"]["disks"][0]["path"] = f"{folder}/../../../../secret"
    (folder / "snapshot.json").write_text(json.dumps(said))
    viv.fails("snapshot", "export", "a", "s", tmp_path / "file", says=["not in the snapshot"])
    viv.fails("run", "--detach", "--from", "a@s", "--name", "c", says=["secret", "none of machine"])
    said["config"]["disks"][0]["path"] = str(disk)
    said["config"]["net"] = "bridge:br0"
    (folder / "snapshot.json").write_text(json.dumps(said))
    viv.fails("run", "--detach", "--from", "a@s", "--name", "c", says=["bridge:br0"])
    ends(viv, "a", "b")


def test_killed_at_any_moment(empty_viv, debian, tmp_path):
    """Whatever is listed afterwards is whole, disk and memory, and the machine goes on from it."""
    viv, disk = empty_viv, tmp_path / "counted.raw"
    disk.write_bytes(bytes(8 << 20))
    initrd = tiny.make(debian, tmp_path, COUNT_ON_DISK)
    viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--disk", disk,
           "--append", "console=ttyS0 quiet", "--mem", "256M")
    Counter(viv, "a").reaches(3)
    viv.ok("snapshot", "create", "a", "base")
    program = os.environ.get("VIV", str(pathlib.Path(__file__).resolve().parents[2] / "build" / "viv"))
    folder = viv.home / "vms" / "a" / "snapshots"
    done = ["base"]
    for i in range(10):
        pid = viv.list()[0]["pid"]
        taking = subprocess.Popen([program, "snapshot", "create", "a", f"s{i}"], env=viv.env, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            taking.wait(timeout=0.03 * i)
        os.kill(pid, signal.SIGKILL)
        if taking.wait() == 0:
            done.append(f"s{i}")
        viv.wait_until(lambda: viv.list()[0]["state"] == "stopped", "stopped")
        found = snapshots(viv, "a")
        assert set(done) <= set(found), "one that was told to be done is not there"
        newest = list(found)[-1]
        viv.ok("snapshot", "restore", "a", newest)
        a = Counter(viv, "a")
        a.reaches(a.next() + 3)
    for name in snapshots(viv, "a"):
        assert viv.ok("snapshot", "verify", "a", name).stdout == f"{name}: whole\n"
    viv.ok("snapshot", "create", "a", "last")
    assert not [p for p in folder.iterdir() if p.name.startswith(".")], "something half-made is left"
    ends(viv, "a")
