# SPDX-License-Identifier: Apache-2.0
"""Running copies of a running machine."""
import json
import time

from test_snapshot import Counter, counting, ends  # noqa: F401 (a fixture)
import tiny

COUNT_ALONE = """
read -r mine </dev/vda
n=0
while :; do
	n=$((n + 1))
	echo "$n" | $b dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
	echo 3 >/proc/sys/vm/drop_caches
	read -r there </dev/vda
	[ "$there" = "$n" ] || echo "STALE $there"
	echo "n=$n."
	$b sleep 0.05
done
"""


def test_copies_go_on_by_themselves(counting):  # noqa: F811
    viv = counting
    a = Counter(viv, "a")
    a.reaches(10)
    done = json.loads(viv.ok("fork", "a", "-n", 3, "--name", "w{}", "--json").stdout)
    assert done["names"] == ["w1", "w2", "w3"] and done["pause_us"] > 0
    n = a.next()
    assert sorted(viv.names()) == ["a", "w1", "w2", "w3"]
    assert len({vm["pid"] for vm in viv.list()}) == 4 and all(vm["state"] == "running" for vm in viv.list())
    for name in ("w1", "w2", "w3"):
        copy = Counter(viv, name)
        assert copy.next() >= 10
        copy.reaches(n + 10)
    a.reaches(n + 20)
    # The first one ends; a copy can be copied, paused, and snapshotted.
    ends(viv, "a", "w1")
    viv.ok("fork", "w2", "--name", "x")
    x = Counter(viv, "x")
    x.reaches(x.next() + 5)
    viv.ok("snapshot", "create", "w3", "s")
    viv.ok("snapshot", "restore", "w3", "s")
    viv.fails("fork", "w3", "--name", "w2", says=["already"])
    viv.fails("fork", "w3", "--name", "a/b", says=["no name"])
    viv.fails("fork", "w3", "-n", 2, "--name", "y", status=2, says=["{}"])
    viv.fails("fork", "nobody", says=["nobody"])
    assert sorted(viv.names()) == ["w2", "w3", "x"]
    viv.ok("stop", "-f", "x")
    viv.ok("start", "x")  # from its disk and kernel, as any other
    ends(viv, "w2", "w3", "x")


def test_each_has_its_disk(empty_viv, debian, tmp_path):
    viv, disk = empty_viv, tmp_path / "d.raw"
    disk.write_bytes(b"0\n".ljust(1 << 20, b"\0"))
    initrd = tiny.make(debian, tmp_path, COUNT_ALONE)
    viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--disk", disk,
           "--append", "console=ttyS0 quiet", "--mem", "256M")
    a = Counter(viv, "a")
    a.reaches(5)
    viv.ok("fork", "a", "-n", 2, "--name", "w{}")
    counters = [a, Counter(viv, "w1"), Counter(viv, "w2")]
    for c in counters:
        c.reaches(c.next() + 15)
    ends(viv, "a")
    for c in counters[1:]:
        c.reaches(c.next() + 15)
    ends(viv, "w1", "w2")


def clock_error(viv, name):
    """Seconds between the guest's wall clock and this host's, by as much as asking takes."""
    before = time.time()
    guest = float(viv.ok("exec", name, "--", "date", "+%s.%N").stdout)
    return max(before - guest, guest - time.time(), 0)


def test_frozen_file_systems_and_clocks(viv):
    """The guest takes part: whatever becomes of it, its file systems are thawed, in the past and in copies, too, and its clock is right."""
    def writes(name):
        viv.ok("exec", name, "--", "sh", "-c", "echo x >>/root/file && sync", limit=30)

    viv.ok("run", "debian", "--name", "a", "--detach", limit=300)
    viv.ok("exec", "a", "--", "true", limit=300)
    viv.ok("snapshot", "create", "a", "s", "--freeze")
    writes("a")
    viv.fails("snapshot", "create", "a", "s", "--freeze", says=["already"])
    viv.fails("snapshot", "create", "a", "../s", "--freeze", says=["no name"])
    writes("a")
    time.sleep(2)
    viv.ok("snapshot", "restore", "a", "s")
    writes("a")
    viv.wait_until(lambda: clock_error(viv, "a") < 0.5, "the clock is right after a restore", limit=20)
    viv.ok("fork", "a", "--name", "w", "--freeze")
    for name in ("a", "w"):
        writes(name)
    viv.wait_until(lambda: clock_error(viv, "w") < 0.5, "the clock is right in a copy", limit=20)
    viv.ok("run", "--from", "a@s", "--name", "c", "--detach")
    macs = {name: json.loads((viv.home / "vms" / name / "machine.json").read_text())["mac"] for name in ("a", "c", "w")}
    assert len(set(macs.values())) == 3
    for name, mac in (("a", macs["a"]), ("c", macs["c"])):
        viv.wait_until(lambda: mac in viv.ok("exec", name, "--", "sh", "-c", "cat /sys/class/net/*/address").stdout,
                       f"{name} has its own MAC address", limit=20)
    viv.wait_until((viv.home / "vms" / "c" / "snapshots" / "s" / "working-set").exists, "the working set is recorded")
    viv.ok("stop", "-f", "c", "w")
    viv.ok("snapshot", "restore", "c", "s")  # which is read ahead
    writes("c")
    viv.ok("stop", "-f", "c")
    viv.ok("pause", "a")
    viv.fails("snapshot", "create", "a", "t", "--freeze", says=["paused", "--freeze"])
    viv.ok("resume", "a")
    ends(viv, "a", "c", "w")


def test_nothing_to_freeze_with(counting):  # noqa: F811
    counting.fails("snapshot", "create", "a", "s", "--freeze", says=["agent", "--freeze"])
    counting.fails("fork", "a", "--name", "w", "--freeze", says=["agent", "--freeze"])
    assert counting.names() == ["a"]
    ends(counting, "a")
