# SPDX-License-Identifier: Apache-2.0
"""The command line with tiny guests: life of a machine, its ends, what is told, what is left behind."""
import concurrent.futures
import json
import os
import pathlib
import socket
import time

import pytest

import conftest
import guests


@pytest.fixture
def make(tmp_path):
    """Write a guest; returns its path."""

    def write(code, name="guest"):
        path = tmp_path / name
        path.write_bytes(guests.multiboot(code))
        return path

    return write


def nothing_left(viv):
    assert viv.list() == []
    run = viv.home / "run"
    assert not run.exists() or not list(run.iterdir())


# ---- ends of a foreground machine ----

@pytest.mark.parametrize("code, status", [
    (guests.debug_exit(0), 1),
    (guests.debug_exit(5), 11),
    (guests.POWER_OFF, 0),
])
def test_exit_status(empty_viv, make, code, status):
    done = empty_viv.run("run", "--engine", "dbt", "--kernel", make(guests.say("hello\n") + code + guests.SLEEP))
    assert done.returncode == status, done.stderr
    assert done.stdout == "hello\n"
    assert "engine dbt: " in done.stderr
    nothing_left(empty_viv)


def test_no_reboot(empty_viv, make):
    reset = empty_viv.run("run", "--no-reboot", "--kernel", make(guests.RESET + guests.SLEEP))
    assert reset.returncode == 0 and "asked for a reset" in reset.stderr
    fault = empty_viv.run("run", "--no-reboot", "--kernel", make(guests.TRIPLE_FAULT))
    assert fault.returncode == 1 and "triple fault" in fault.stderr
    nothing_left(empty_viv)


def test_reboot(empty_viv, make):
    """It comes back as after power-on, as often as it asks."""
    code = guests.say("boot\n") + guests.RESET + guests.SLEEP
    child = empty_viv.spawn("run", "--kernel", make(code), limit=60)
    for _ in range(3):
        child.expect("boot\r?\n")
    child.send("\x1d")
    child.expect("stopped")
    child.wait()
    nothing_left(empty_viv)


def test_much_output(empty_viv, make):
    """Nothing of what was written before the end is lost."""
    # ecx = 300000: { al = '0' + (ecx & 63); out }
    loop = bytes.fromhex("b9e0930400" "66baf803" "88c8" "243f" "0430" "ee" "e2f7")
    done = empty_viv.run("run", "--kernel", make(loop + guests.debug_exit(0) + guests.SLEEP))
    assert len(done.stdout) == 300000
    assert done.stdout == "".join(chr(48 + (i & 63)) for i in range(300000, 0, -1))


# ---- a machine in the background ----

def test_life(empty_viv, make):
    viv = empty_viv
    kernel = make(guests.say("up\n") + guests.ECHO)
    assert viv.ok("run", "--detach", "--name", "a", "--kernel", kernel, "--mem", "16M", "--cpus", "2").stdout == "a\n"
    one = viv.list()[0]
    assert (one["name"], one["state"], one["cpus"], one["mem"]) == ("a", "running", 2, 16 << 20)
    assert "a " in viv.ok("list").stdout
    viv.fails("run", "--name", "a", "--kernel", kernel, says=["a", "already"])
    viv.fails("start", "a", says=["running already"])
    viv.fails("rm", "a", says=["running", "viv stop a"])
    viv.ok("pause", "a")
    assert viv.list()[0]["state"] == "paused"
    viv.fails("pause", "a", says=["already"])
    before = json.loads(viv.ok("info", "--json", "a").stdout)
    after = json.loads(viv.ok("info", "--json", "a").stdout)
    assert before["clock_ns"] == after["clock_ns"] > 0
    assert len(after["counters"]) == 2
    viv.ok("resume", "a")
    viv.ok("reset", "a")
    viv.wait_until(lambda: json.loads(viv.ok("info", "--json", "a").stdout)["resets"] == 1, "one reset")
    viv.fails("exec", "a", "--", "true", says=["agent"])
    viv.ok("stop", "--timeout", "200ms", "a")
    assert viv.list()[0]["state"] == "stopped"
    viv.fails("pause", "a", says=["not running", "viv start a"])
    viv.ok("start", "a")
    assert viv.list()[0]["state"] == "running"
    viv.ok("rm", "--force", "a")
    nothing_left(viv)


def parent(pid):
    return int((pathlib.Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("victim, confine", [("machine", False), ("machine", True), ("broker", True)])
def test_killed(empty_viv, make, victim, confine):
    """A machine whose process was killed counts as stopped, and starts again; one without its broker ends."""
    viv = empty_viv
    if not confine:
        viv.env["VIVARIUM_CONFINE"] = "off"
    viv.ok("run", "--detach", "--name", "a", "--kernel", make(guests.SLEEP))
    pid = viv.list()[0]["pid"]
    while victim == "broker" and "viv" in (pathlib.Path("/proc") / str(parent(pid)) / "comm").read_text():
        pid = parent(pid)
    os.kill(pid, 9)
    viv.wait_until(lambda: viv.list()[0]["state"] == "stopped" and not (viv.home / "run" / "a").exists(),
                   "stopped, and its stale socket is gone")
    viv.ok("start", "a")
    assert viv.list()[0]["state"] == "running"
    viv.ok("rm", "-f", "a")
    nothing_left(viv)


# Limits of a user namespace hold for those below it: there is none.
BARREN = """#!/bin/sh
exec unshare --user --map-root-user sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"' sh "{}" "$@"
"""


@pytest.mark.parametrize("has_namespaces", [True, False])
def test_confined(empty_viv, make, tmp_path, monkeypatch, has_namespaces):
    """With a broker for its files it does what others do: snapshots, copies, going back, starting again; also with a kernel that
    gives no namespaces, which its log and viv info say."""
    viv = empty_viv
    if not has_namespaces:
        barren = tmp_path / "barren"
        barren.write_text(BARREN.format(conftest.VIV))
        barren.chmod(0o755)
        monkeypatch.setattr(conftest, "VIV", str(barren))
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    viv.ok("run", "--detach", "--name", "a", "--mem", "16M", "--disk", f"{disk},snapshot",
           "--kernel", make(guests.say("up\n") + guests.ECHO))
    info = json.loads(viv.ok("info", "--json", "a").stdout)
    assert info["confined"] and "seccomp" in info["confinement"]
    assert ("no own namespaces" in info["confinement"]) != has_namespaces
    warned = "no own namespaces" in (viv.home / "vms" / "a" / "vm.log").read_text()
    assert warned != has_namespaces
    viv.ok("snapshot", "create", "a", "s")
    viv.ok("fork", "a", "-n", 2, "--name", "w{}")
    viv.ok("fork", "w1", "--name", "x")
    viv.ok("snapshot", "restore", "a", "s")
    viv.ok("set", "w2", "--log-level", "debug")
    assert sorted(m["state"] for m in viv.list()) == ["running"] * 4
    viv.ok("run", "--detach", "--from", "a@s", "--name", "b")
    viv.ok("stop", "--force", "a")
    viv.ok("snapshot", "restore", "a", "s")
    viv.ok("stop", "--force", "a", "x")
    viv.ok("start", "a")  # its disk begins anew
    assert not list((viv.home / "vms" / "a").glob("layer-*.qcow2"))
    viv.ok("start", "x")
    viv.ok("rm", "-f", "a", "b", "w1", "w2", "x")
    nothing_left(viv)


def test_relative_home(empty_viv, make, tmp_path):
    """The machine's process has no current folder to be relative to."""
    viv = empty_viv
    viv.env["VIVARIUM_HOME"] = os.path.relpath(viv.home, tmp_path)
    viv.ok("run", "--detach", "--name", "a", "--mem", "16M", "--kernel", make(guests.SLEEP), cwd=tmp_path)
    viv.ok("snapshot", "create", "a", "s", cwd=tmp_path)
    viv.ok("fork", "a", "--name", "w", cwd=tmp_path)
    viv.ok("rm", "-f", "a", "w", cwd=tmp_path)
    assert not list((viv.home / "vms").iterdir())


def test_not_confined(empty_viv, make):
    """As the user asked for; which is told."""
    viv = empty_viv
    viv.env["VIVARIUM_CONFINE"] = "off"
    viv.ok("run", "--detach", "--name", "a", "--mem", "16M", "--kernel", make(guests.SLEEP))
    info = json.loads(viv.ok("info", "--json", "a").stdout)
    assert not info["confined"] and "VIVARIUM_CONFINE=off" in info["confinement"]
    assert "not confined" in (viv.home / "vms" / "a" / "vm.log").read_text()
    viv.ok("rm", "-f", "a")
    nothing_left(viv)


def test_what_a_confined_machine_could_do(empty_viv):
    tried = json.loads(empty_viv.ok("doctor", "--attack", "--json").stdout)
    assert tried["ok"] and len(tried["tries"]) > 40 and all(t["ok"] for t in tried["tries"])
    nothing_left(empty_viv)


def test_console(empty_viv, make):
    viv = empty_viv
    viv.ok("run", "--detach", "--name", "a", "--kernel", make(guests.say("greeting\n") + guests.ECHO))
    first, second = viv.spawn("console", "a", limit=30), viv.spawn("console", "a", limit=30)
    for child in (first, second):
        child.expect("Ctrl-] leaves")
        child.expect("greeting")
    first.send("typed")
    for child in (first, second):
        child.expect("typed")
    first.send("\x1d")
    first.expect_exact("\n")
    first.wait()
    assert first.exitstatus == 0
    assert viv.list()[0]["state"] == "running"
    viv.ok("stop", "--force", "a")
    second.expect("the machine ended")


def test_control_socket_is_private(empty_viv, make):
    viv = empty_viv
    viv.ok("run", "--detach", "--name", "a", "--kernel", make(guests.SLEEP))
    path = viv.home / "run" / "a" / "control.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    directory = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(f"/proc/self/fd/{directory}/control.sock")
        rude.sendall(b'{"cmd": "sta')  # and not a byte more
        start = time.monotonic()
        assert viv.list()[0]["state"] == "running"
        assert time.monotonic() - start < 5
    os.close(directory)
    viv.ok("rm", "-f", "a")


def test_same_name_at_once(empty_viv, make):
    viv, kernel = empty_viv, make(guests.SLEEP)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: viv.run("run", "--detach", "--name", "a", "--kernel", kernel), range(4)))
    assert sorted(d.returncode for d in done) == [0, 1, 1, 1]
    assert len(viv.list()) == 1
    viv.ok("rm", "-f", "a")


# ---- bad input: one sentence, status 1, nothing left ----

def test_bad_files(empty_viv, tmp_path, make):
    viv = empty_viv
    kernel, junk, empty = make(guests.SLEEP), tmp_path / "junk", tmp_path / "empty"
    junk.write_bytes(b"x" * 5000)
    empty.write_bytes(b"")
    short = tmp_path / "short"
    short.write_bytes(kernel.read_bytes()[:20])
    for bad in ("/nonexistent", junk, empty, tmp_path, "/dev/zero", short):
        viv.fails("run", "--kernel", bad, says=[bad])
    viv.fails("run", "--kernel", kernel, "--initrd", "/nonexistent", says=["/nonexistent"])
    viv.fails("run", "--kernel", kernel, "--disk", "/nonexistent", says=["/nonexistent"])
    viv.fails("run", "--kernel", kernel, "--disk", f"{empty}", says=[empty])
    viv.fails("run", "--firmware", junk, says=[junk])
    viv.fails("run", "nosuchimage", says=["nosuchimage", "viv image build"])
    viv.fails("run", "--cpu", "z80", "--kernel", kernel, says=["z80"])
    nothing_left(viv)


def test_disk_in_use(empty_viv, tmp_path, make):
    viv, disk = empty_viv, tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    kernel = make(guests.SLEEP)
    viv.ok("run", "--detach", "--name", "a", "--kernel", kernel, "--disk", disk)
    viv.fails("run", "--kernel", kernel, "--disk", disk, says=[disk])
    assert viv.names() == ["a"]
    viv.ok("rm", "-f", "a")


def test_blocks_are_compared_with_several_cpus_too(empty_viv, make):
    """--check: each of the blocks of a loop, both ways; the counters say so."""
    viv, loop = empty_viv, b"\xb8\x10\x27\x00\x00\xff\xc8\x75\xfc"  # mov eax, 10000; 1: dec eax; jnz 1b
    kernel = make(loop + guests.say("hello\n") + guests.SLEEP)
    viv.ok("run", "--detach", "--name", "a", "--kernel", kernel, "--mem", "16M", "--cpus", "2", "--engine", "dbt", "--check", "1")

    def counters():
        return json.loads(viv.ok("info", "--engine", "--json", "a").stdout)["counters"][0]

    viv.wait_until(lambda: counters()["blocks_compared"] > 1000, "the loop was executed both ways")
    assert counters()["blocks_compared_again"] == 0
    viv.ok("stop", "--force", "a")
    viv.ok("rm", "a")


def test_counters(empty_viv, make):
    viv = empty_viv
    # 1000 bytes to the serial port, then an echo for ever
    kernel = make(b"\xb9" + (1000).to_bytes(4, "little") + guests.outb(0x3F8, 0x2E) + b"\xe2\xf7" + guests.say("up\n") +
                  guests.ECHO)
    viv.ok("run", "--detach", "--name", "a", "--kernel", kernel, "--mem", "16M", "--cpus", "2", "--engine", "dbt")

    def engine():
        return json.loads(viv.ok("info", "--engine", "--json", "a").stdout)

    viv.wait_until(lambda: engine()["devices"].get("uart0", 0) > 1003, "the guest has written, and waits")
    info = engine()
    assert info["engine"] == "dbt" and len(info["counters"]) == 2
    first, second = info["counters"]
    assert first["translations"] > 0 and first["cpu_time_ns"] > 0 and first["exits_pio"] > 1003
    assert first["code_limit_bytes"] > first["code_bytes"] > 0 and "code_bytes" not in second
    assert first["interpreted_OUT"] >= 1003
    text = viv.ok("info", "--engine", "a").stdout
    for word in ("COUNTER", "cpu1", "per CPU second", "INTERPRETED", "ACCESSES TO DEVICES", "uart0"):
        assert word in text, text
    assert "translations" not in viv.ok("info", "a").stdout, "counters are shown on demand"

    since = json.loads(viv.ok("bench", "--json", "--time", "100ms", "a").stdout)
    assert since["seconds"] >= 0.1 and since["status"] == 0
    assert since["counters"][0]["interpreted_OUT"] == 0, "all was written before"
    assert since["counters"][0]["code_limit_bytes"] == first["code_limit_bytes"]
    assert since["devices"]["uart0"] > 0
    assert "ACCESSES TO DEVICES" in viv.ok("bench", "--time", "1ms", "a").stdout
    viv.fails("bench", "a", "--", "true", says=["agent"])
    viv.ok("stop", "--force", "a")
    viv.fails("info", "--engine", "a", says=["not running"])
    viv.fails("bench", "a", says=["not running"])
    viv.ok("rm", "a")
    nothing_left(viv)


def test_bad_usage(empty_viv, make):
    viv = empty_viv
    for args in ([], ["nosuchverb"], ["run", "--nosuch"], ["run", "a", "b"], ["run", "--cpus", "0"],
                 ["run", "--mem", "lots"], ["run", "a", "--"], ["stop"], ["exec", "a"], ["bench"], ["bench", "--time", "long", "a"], ["image", "frob"],
                 ["run", "--detach", "a", "--", "true"], ["run", "--net", "moon"], ["run", "--engine", "qemu"],
                 ["run", "--disk", "f,frob"], ["run", "--name", "../x", "--kernel", make(guests.SLEEP)]):
        done = viv.run(*args)
        assert done.returncode == 2, (args, done.returncode, done.stderr)
        assert done.stderr
    assert "did you mean \"console\"" in viv.run("consle").stderr
    nothing_left(viv)


def test_unknown_machine(empty_viv):
    for verb in (["stop"], ["pause"], ["resume"], ["reset"], ["rm"], ["start"], ["info"], ["console"]):
        empty_viv.fails(*verb, "nobody", says=["nobody"])
    empty_viv.fails("exec", "nobody", "--", "true", says=["nobody"])


# ---- the verbs that tell ----

def test_help(empty_viv):
    text = empty_viv.ok("help").stdout
    verbs = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert {"run", "list", "doctor"} <= set(verbs) and "vm" not in verbs
    for verb in verbs:
        shown = empty_viv.ok("help", verb).stdout
        assert f"viv {verb}" in shown
        assert shown == empty_viv.ok(verb, "--help").stdout


def test_version(empty_viv):
    told = json.loads(empty_viv.ok("version", "--json").stdout)
    assert empty_viv.ok("--version").stdout == f"viv {told['version']}, build {told['build']}\n"


def test_doctor(empty_viv):
    told = json.loads(empty_viv.ok("doctor", "--json").stdout)
    assert told["ok"] is True
    engines = {e["name"]: e for e in told["engines"]}
    assert engines["dbt"]["usable"] and engines["dbt"]["mips"] > 0
    assert engines["kvm"]["reason"]
    assert told["engine"] in engines
    assert "engine dbt" in empty_viv.ok("doctor").stdout
