# SPDX-License-Identifier: Apache-2.0
"""`viv up` and `viv down` under bad conditions: killed half-way, at the same time, beside machines of the same name; and the order of starting."""
import os
import random
import signal
import subprocess
import time

import pytest

from conftest import VIV
from guests import multiboot, say, SLEEP

SEED = 5


@pytest.fixture
def guest(tmp_path):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(multiboot(say("up") + SLEEP))
    return f'kernel: "{kernel}", engine: dbt, memory: 16M'


def write(path, guest, machines, more=""):
    lines = "".join(f"  {name}: {{{guest}, networks: [n]{extra}}}\n" for name, extra in machines.items())
    path.write_text(f"networks: {{n: {{subnet: 10.1.0.0/24}}}}\nmachines:\n{lines}{more}")
    return path


def start_up(viv, path):
    return subprocess.Popen([VIV, "up", path], env=viv.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True)


@pytest.mark.parametrize("repair", ["down", "up", "all killed"])
def test_killed_half_way(empty_viv, guest, tmp_path, repair):
    """Wherever it is killed: viv down ends what there is, viv up clears it away and begins anew."""
    viv, dice = empty_viv, random.Random(SEED)
    path = write(tmp_path / "frail.yaml", guest, {f"m{i}": "" for i in range(5)})
    began = time.monotonic()
    viv.ok("up", path)
    took = time.monotonic() - began
    viv.ok("down", path)
    for _ in range(8):
        up = start_up(viv, path)
        time.sleep(dice.uniform(0, took))
        if repair == "all killed":  # its helpers with it, whatever they were just doing
            os.killpg(up.pid, signal.SIGKILL)
        else:
            up.kill()
        up.communicate(timeout=60)
        done = viv.run("up" if repair != "down" else "down", path)
        if repair == "down":
            # Killed before there was anything, or after all was there.
            assert done.returncode == 0 or "not up" in done.stderr, done.stderr
        else:
            assert done.returncode == 0 or "up already" in done.stderr or "being brought up" in done.stderr, done.stderr
            if "being brought up" in done.stderr:  # its helpers live on for a moment
                viv.wait_until(lambda: viv.run("up", path).returncode == 0, "a second viv up repairs it")
            assert sorted(viv.names()) == [f"m{i}" for i in range(5)]
            assert all(m["state"] == "running" for m in viv.list())
            viv.ok("down", path)
        viv.wait_until(lambda: not viv.processes(), "nothing is left running")
        assert viv.names() == []
        assert not list((viv.home / "vms").iterdir())


def test_machines_of_others(empty_viv, guest, tmp_path):
    """A machine with the name of one of the lab's, which a person made: viv up refuses, viv down lets it be."""
    viv = empty_viv
    path = write(tmp_path / "lab.yaml", guest, {"a": "", "b": ", keep: true"})
    viv.ok("up", path)
    viv.ok("stop", "-f", "a")
    viv.wait_until(lambda: "a" not in viv.names(), "it is gone")
    viv.ok("run", "--name", "a", "--detach", "--kernel", tmp_path / "kernel", "--engine", "dbt", "--mem", "16M", "--net", "none")
    viv.ok("stop", "-f", "b")
    viv.ok("down", path)
    assert [(m["name"], m["state"]) for m in viv.list()] == [("a", "running"), ("b", "stopped")]
    viv.fails("up", path, says=["there is a machine \"a\" already"])
    viv.ok("rm", "-f", "a")
    viv.ok("up", path)  # its own b starts again
    viv.ok("stop", "-f", "b")
    viv.ok("down", path)
    other = write(tmp_path / "other.yaml", guest, {"b": ", keep: true"})
    viv.fails("up", other, says=["there is a machine \"b\" already"])
    viv.ok("rm", "b")
    viv.ok("run", "--name", "c", "--detach", "--kernel", tmp_path / "kernel", "--engine", "dbt", "--mem", "16M", "--net", "none")
    viv.fails("up", write(tmp_path / "third.yaml", guest, {"a": "", "c": ""}), says=["\"c\""])
    assert viv.names() == ["c"]
    viv.ok("rm", "-f", "c")


def test_down_waits_for_up(empty_viv, guest, tmp_path):
    viv = empty_viv
    path = write(tmp_path / "slow.yaml", guest, {f"m{i}": f", after: [m{i - 1}]" if i else "" for i in range(4)})
    up = start_up(viv, path)
    viv.wait_until((viv.home / "run" / ".labs" / "slow" / "slow.yaml").exists, "it begins")
    viv.ok("down", path)
    out, err = up.communicate(timeout=60)
    assert (up.returncode, out) == (0, "slow\n"), err
    assert viv.names() == [] and viv.processes() == []
    # Both at once: one of them does it.
    viv.ok("up", path)
    downs = [subprocess.Popen([VIV, "down", path], env=viv.env, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(d.communicate(timeout=60)[1], d.returncode) for d in downs]
    assert sorted(status for _, status in ends) == [0, 1, 1], ends
    assert all("not up" in text for text, status in ends if status), ends


def test_order(empty_viv, guest, tmp_path):
    viv = empty_viv
    path = write(tmp_path / "order.yaml", guest, {"c": ", after: [b]", "a": "", "b": ", after: [a]"})
    viv.ok("up", path)
    logs = [(viv.home / "vms" / name / "machine.json").stat().st_mtime_ns for name in "abc"]
    assert logs == sorted(logs)
    viv.ok("down", path)
    write(path, guest, {"a": "", "b": ", after: [a]", "c": ", after: [b]"}).write_text(
        path.read_text().replace(f"a: {{{guest}", "a: {kernel: nosuchfile"))
    viv.fails("up", path, says=["\"a\"", "nosuchfile"])
    assert viv.names() == [] and viv.processes() == []
    write(path, guest, {"a": ", after: [b]", "b": ", after: [a]"})
    viv.fails("up", path, says=["order.yaml:4:", "wait for itself"])
