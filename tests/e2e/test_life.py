# SPDX-License-Identifier: Apache-2.0
"""A machine's log, its settings and its name; what is left when a command or a machine is killed; commands at once."""
import concurrent.futures
import datetime
import json
import os
import signal
import subprocess

import pytest

import guests
from conftest import ROOT, VIV

LOG_FILE_MAX = 1 << 20
LOG_LINE_MAX = 1024


@pytest.fixture
def make(tmp_path):
    """Write a guest; returns its path."""

    def write(code, name="guest"):
        path = tmp_path / name
        path.write_bytes(guests.multiboot(code))
        return path

    return write


def run(viv, name, kernel, *options):
    viv.ok("run", "--detach", "--name", name, "--kernel", kernel, "--mem", "16M", "--engine", "dbt", *options)


def log_lines(viv, name, *options):
    return [json.loads(line) for line in viv.ok("logs", "--json", name, *options).stdout.splitlines()]


def nothing_left(viv):
    assert viv.list() == []
    for folder in ("run", "vms"):
        path = viv.home / folder
        assert not path.exists() or list(path.iterdir()) == []


# ---- logs ----

# 1: out 0x5555, al; inc al; jmp 1b
FLOOD = bytes.fromhex("66ba5555" "ee" "fec0" "ebfb")


def test_logs(empty_viv, make):
    viv = empty_viv
    run(viv, "a", make(guests.SLEEP))
    started = log_lines(viv, "a")
    assert [line["area"] for line in started] == ["vm"] and "engine dbt" in started[0]["text"]
    viv.ok("stop", "--force", "a")
    viv.ok("start", "a")
    viv.ok("stop", "--force", "a")
    lines = log_lines(viv, "a")
    assert ["started" in line["text"] for line in lines] == [True, False, True, False], "it goes on through restarts"
    for raw in (viv.home / "vms/a/vm.log").read_text().splitlines():
        assert sorted(json.loads(raw)) == ["area", "level", "pid", "text", "time"]
    assert log_lines(viv, "a", "--level", "warning") == []
    assert log_lines(viv, "a", "--area", "net") == []
    assert log_lines(viv, "a", "--since", "1h") == lines and log_lines(viv, "a", "--since", "1ns") == []
    text = viv.ok("logs", "a").stdout.splitlines()
    assert len(text) == 4 and " info    vm: started on engine dbt" in text[0]
    viv.fails("logs", "nobody", says=["nobody"])
    viv.ok("rm", "a")


def test_logs_of_others(empty_viv, make):
    """What stands in the file and is no line of ours is shown, and steers no terminal."""
    viv = empty_viv
    run(viv, "a", make(guests.SLEEP))
    with open(viv.home / "vms/a/vm.log", "ab") as log:
        log.write(b"free(): invalid \x1b[2Jpointer\n\xff\xfe\n{}\n" + b"x" * 40000 + b"\n")
    lines = log_lines(viv, "a")[1:]
    assert [line["area"] for line in lines] == ["stderr"] * 4
    assert lines[0]["text"] == "free(): invalid ?[2Jpointer" and lines[0]["level"] == "error"
    viv.ok("rm", "-f", "a")


def test_guest_cannot_fill_the_log(empty_viv, make):
    """A guest that does nothing but what is worth a line: ten a second of them, then how many there were more."""
    viv = empty_viv
    run(viv, "a", make(FLOOD))
    viv.ok("set", "a", "--log-level", "debug")  # while it runs
    dropped = lambda: [l for l in log_lines(viv, "a", "--level", "debug") if "were dropped" in l["text"]]
    viv.wait_until(lambda: len(dropped()) >= 3, "lines were dropped")
    viv.ok("stop", "--force", "a")
    lines = log_lines(viv, "a")
    assert int(dropped()[0]["text"].split()[0]) > 1000, "it was at full speed"
    # Of 21 lines in a row, the first and the last have a whole second of 10 lines between them.
    times = [datetime.datetime.fromisoformat(line["time"].rstrip("Z")).timestamp() for line in lines if "5555" in line["text"]]
    assert len(times) > 20 and all(late - early > 0.99 for early, late in zip(times, times[20:]))
    size = sum(f.stat().st_size for f in (viv.home / "vms/a").glob("vm.log*"))
    assert size < 2 * (LOG_FILE_MAX + LOG_LINE_MAX)
    assert json.loads((viv.home / "vms/a/machine.json").read_text())["log_level"] == "debug"
    viv.ok("rm", "a")


def test_logs_take_turns(empty_viv, make):
    """The log is written in two files; a reader follows it through their turns, and sees every line once, in order."""
    viv = empty_viv
    run(viv, "a", make(guests.SLEEP))
    follow = viv.spawn("logs", "-f", "a", limit=60)
    follow.expect("started on engine")
    log = viv.home / "vms/a/vm.log"
    with open(log, "ab") as file:
        file.write(b"0123456789abcde\n" * (LOG_FILE_MAX // 16))
    viv.ok("stop", "--force", "a")  # has a line
    assert "stopped" in (viv.home / "vms/a/vm.log.1").read_text()
    follow.expect("stopped")
    viv.ok("start", "a")
    follow.expect("started on engine")
    texts = [line["text"] for line in log_lines(viv, "a")]
    assert len(texts) == 3 + LOG_FILE_MAX // 16 and "stopped" in texts[-2] and "started" in texts[-1]
    viv.ok("rm", "-f", "a")
    follow.wait()
    assert follow.exitstatus == 0, "it ends when the machine is removed"


# ---- set ----

def test_set(empty_viv, make, tmp_path):
    viv = empty_viv
    run(viv, "a", make(guests.SLEEP))
    viv.fails("set", "a", "--mem", "32M", says=["running", "viv stop a"])
    viv.ok("stop", "--force", "a")
    viv.ok("set", "a", "--mem", "32M", "--cpus", "3", "--append", "one two", "--net", "nat", "--forward", "52222:22",
           "--log-level", "trace")
    config = json.loads((viv.home / "vms/a/machine.json").read_text())
    assert (config["mem"], config["cpus"], config["append"], config["forwards"], config["log_level"]) == (
        32 << 20, 3, "one two", ["52222:22"], "trace")
    before = (viv.home / "vms/a/machine.json").read_bytes()
    viv.fails("set", "a", "--net", "none", says=["--forward none"])
    viv.fails("set", "a", "--forward", "x", says=["x"])
    viv.fails("set", "a", "--engine", "qemu", says=["qemu"])
    viv.fails("set", "a", "--cpu", "z80", says=["z80"])
    viv.fails("set", "nobody", "--cpus", "2", says=["nobody"])
    assert (viv.home / "vms/a/machine.json").read_bytes() == before, "what was refused changed nothing"
    assert viv.run("set", "a").returncode == 2 and viv.run("set", "a", "--cpus", "65").returncode == 2
    viv.ok("set", "a", "--net", "none", "--forward", "none")
    viv.ok("start", "a")
    one = viv.list()[0]
    assert (one["cpus"], one["mem"], one["state"]) == (3, 32 << 20, "running")
    viv.ok("rm", "-f", "a")
    nothing_left(viv)


# ---- rename ----

def test_rename(empty_viv, make, tmp_path):
    viv, disk = empty_viv, tmp_path / "disk.qcow2"
    viv.ok("image", "create", disk, "1M")
    kernel = make(guests.say("up\n") + guests.ECHO)
    run(viv, "a", kernel, "--disk", disk)
    viv.fails("rename", "a", "b", says=["running", "viv stop a"])
    viv.ok("snapshot", "create", "a", "s")  # its disk is in the machine's directory from here on
    viv.ok("stop", "--force", "a")
    viv.ok("rename", "a", "b")
    assert viv.names() == ["b"]
    text = (viv.home / "vms/b/machine.json").read_text()
    assert "/vms/b/" in text and "/vms/a/" not in text
    viv.ok("start", "b")
    viv.ok("snapshot", "create", "b", "t")
    viv.ok("stop", "--force", "b")
    viv.ok("snapshot", "restore", "b", "s")
    assert viv.list()[0]["state"] == "running"
    viv.ok("stop", "--force", "b")
    viv.fails("start", "a", says=["a"])
    run(viv, "a", kernel)
    viv.ok("stop", "--force", "a")
    viv.fails("rename", "a", "b", says=["b", "already"])
    viv.fails("rename", "a", "../x", says=["../x"])
    viv.fails("rename", "nobody", "c", says=["nobody"])
    assert viv.names() == ["a", "b"]
    viv.ok("rm", "a", "b")
    nothing_left(viv)


def test_rename_killed(empty_viv, make):
    """Killed after the one step that counts, before the configuration is written anew: the machine is right."""
    viv = empty_viv
    kernel = make(guests.SLEEP)
    run(viv, "a", kernel)
    viv.ok("stop", "--force", "a")
    own = viv.home / "vms/a/kernel"
    kernel.rename(own)
    config = json.loads((viv.home / "vms/a/machine.json").read_text())
    config["kernel"] = str(own)
    (viv.home / "vms/a/machine.json").write_text(json.dumps(config))
    (viv.home / "vms/a").rename(viv.home / "vms/b")
    assert viv.list()[0]["name"] == "b" and viv.list()[0]["kernel"] == str(viv.home / "vms/b/kernel")
    viv.ok("start", "b")
    viv.ok("rm", "-f", "b")
    nothing_left(viv)


# ---- killed ----

def test_throw_away_machine_killed(empty_viv, make):
    """A machine that was to leave nothing behind leaves nothing behind: whoever looks next sees to it."""
    viv = empty_viv
    name = viv.ok("run", "--detach", "--kernel", make(guests.SLEEP)).stdout.strip()
    os.kill(viv.list()[0]["pid"], signal.SIGKILL)
    viv.wait_until(lambda: name not in viv.names(), "it is gone")
    nothing_left(viv)


def test_throw_away_machine_is_removed(empty_viv, make):
    """It goes by itself when it is stopped for that."""
    viv = empty_viv
    viv.ok("run", "--detach", "--rm", "--name", "a", "--kernel", make(guests.SLEEP))
    viv.ok("rm", "--force", "a")
    nothing_left(viv)


def test_command_killed_while_it_makes_a_machine(empty_viv, make):
    viv = empty_viv
    folder = viv.home / "vms/half"
    folder.mkdir(parents=True)
    (folder / "disk.raw").write_bytes(b"x" * 1000)
    assert viv.names() == [], "there is nothing to be seen of it yet"
    assert folder.exists(), "and perhaps it is just being made"
    (folder / "lock").write_text("\n")
    assert viv.names() == []
    nothing_left(viv)
    kernel = make(guests.SLEEP)
    run(viv, "half", kernel)
    removed = viv.home / "vms/.removed-0123456789abcdef"
    (removed / "snapshots").mkdir(parents=True)
    (removed / "snapshots/file").write_text("x")
    assert viv.names() == ["half"]
    assert not removed.exists()
    viv.ok("rm", "-f", "half")
    nothing_left(viv)


def test_making_is_waited_for(empty_viv, make):
    """Who holds the lock for a change is waited for; the machine is not taken for one that runs."""
    viv = empty_viv
    run(viv, "a", make(guests.SLEEP))
    viv.ok("stop", "--force", "a")
    holder = subprocess.Popen(["python3", "-c", (
        "import fcntl, struct, sys\n"
        f"f = open({str(viv.home / 'vms/a/lock')!r}, 'r+')\n"
        "fcntl.fcntl(f, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 1, 0))\n"
        "print('held', flush=True); sys.stdin.read()")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert viv.list()[0]["state"] == "stopped"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        start = pool.submit(viv.run, "start", "a")
        assert not start.done()
        holder.stdin.close()
        holder.wait()
        assert start.result().returncode == 0, start.result().stderr
    viv.fails("start", "a", says=["running already"])
    viv.ok("rm", "-f", "a")
    nothing_left(viv)


def test_many_clients_at_once(tmp_path):
    """The soak test of the life cycle, a short one: nothing crashes, nothing is left, whatever is killed in the middle."""
    done = subprocess.run([ROOT / "tools/lifecycle-soak", "--commands", "120", "--home", tmp_path / "home"], text=True,
                          env={**os.environ, "VIV": VIV}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "0 found; 120 commands" in done.stdout
