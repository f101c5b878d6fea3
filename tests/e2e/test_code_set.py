# SPDX-License-Identifier: Apache-2.0
"""Translated code that is kept with a snapshot, for the next start from there."""
import json
import os
import time

import pytest
import tiny
from test_cli import make  # noqa: F401 (a fixture)
from test_snapshot import COUNT, Counter, ends


@pytest.fixture
def at_snapshot(empty_viv, debian, tmp_path):
    """A machine that counts, started with some more options, and stopped again after its snapshot s."""
    def make(*options):
        initrd = tiny.make(debian, tmp_path, COUNT)
        empty_viv.ok("run", "--name", "a", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd,
                     "--append", "console=ttyS0 quiet", "--mem", "256M", "--cpus", 2, "--engine", "dbt", *options)
        Counter(empty_viv, "a").reaches(5)
        empty_viv.ok("snapshot", "create", "a", "s")
        empty_viv.ok("stop", "-f", "a")
        return empty_viv
    return make


def counters(viv, name):
    return json.loads(viv.ok("info", "--engine", "--json", name).stdout)["counters"][0]


def code_file(viv, name):
    return viv.home / "vms" / name / "snapshots" / "s" / "code-set"


def log_of(viv, name):
    return (viv.home / "vms" / name / "vm.log").read_text()


def taken_over(viv, name):
    """How many blocks: they come beside the running guest, and when all are there it is told."""
    viv.wait_until(lambda: "translated code taken over" in log_of(viv, name).rsplit("the machine was stopped", 1)[-1], "code is taken over")
    return counters(viv, name)["blocks_loaded"]


def restart(viv):
    """From the snapshot once more; it goes on counting."""
    viv.run("stop", "-f", "a")
    done = viv.ok("snapshot", "restore", "a", "s")
    a = Counter(viv, "a")
    a.reaches(a.next() + 5)
    return done


def test_it_is_kept_and_loaded(at_snapshot, tmp_path):
    viv = at_snapshot()
    restart(viv)
    assert counters(viv, "a")["blocks_loaded"] == 0
    viv.wait_until(code_file(viv, "a").exists, "the code is kept", limit=30)
    first = os.stat(code_file(viv, "a"))
    assert first.st_mode & 0o777 == 0o600
    restart(viv)
    loaded = taken_over(viv, "a")
    assert loaded > 0
    # A machine of its own takes it over, too, and a snapshot is no larger elsewhere for it.
    viv.ok("run", "--from", "a@s", "--name", "b", "--detach")
    assert taken_over(viv, "b") > 0
    viv.ok("snapshot", "verify", "a", "s")
    file = tmp_path / "s.vivsnap"
    viv.ok("snapshot", "export", "a", "s", file)
    viv.ok("snapshot", "import", "c", "s", file)
    assert code_file(viv, "a").exists() and not code_file(viv, "c").exists()
    # In place, it stays: pages that do not change keep their code.
    translated = counters(viv, "a")["translations"]
    viv.ok("snapshot", "restore", "a", "s")
    a = Counter(viv, "a")
    a.reaches(a.next() + 5)
    assert counters(viv, "a")["translations"] < translated + loaded / 4
    ends(viv, "a", "b", "c")


def test_whose_it_is_not(at_snapshot):
    """Damaged, of somebody else: it is translated as ever, and kept anew."""
    viv = at_snapshot()
    restart(viv)
    file, secret = code_file(viv, "a"), viv.home / "code-secret"
    viv.wait_until(file.exists, "the code is kept", limit=30)
    good = file.read_bytes()
    viv.run("stop", "-f", "a")
    for bad in (good[:-1], good[:3000], b"", good[:9000] + bytes([good[9000] ^ 1]) + good[9001:], good[::-1]):
        file.write_bytes(bad)
        restart(viv)
        assert counters(viv, "a")["blocks_loaded"] == 0
        assert not bad or "translated code is not used" in log_of(viv, "a")
    file.unlink()
    viv.wait_until(file.exists, "the code is kept again", limit=30)
    restart(viv)
    assert taken_over(viv, "a") > 0
    # A secret that is another, and one that others can read.
    viv.run("stop", "-f", "a")
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.unlink()
    restart(viv)
    assert counters(viv, "a")["blocks_loaded"] == 0 and "of somebody else" in log_of(viv, "a")
    secret.chmod(0o644)
    assert "code-secret" in restart(viv).stderr
    assert counters(viv, "a")["blocks_loaded"] == 0
    secret.chmod(0o600)
    ends(viv, "a")


def test_not_of_another_moment(at_snapshot):
    """What is recorded some seconds after the start belongs to the snapshot that it started from, or is not recorded."""
    viv = at_snapshot()
    restart(viv)
    viv.ok("snapshot", "create", "a", "t")
    time.sleep(5)
    assert not code_file(viv, "a").exists()
    ends(viv, "a")


def test_read_by_the_verifier(at_snapshot):
    """--strict: each block of the file passes it, and what is in the guest goes on with them."""
    viv = at_snapshot("--strict")
    restart(viv)
    viv.wait_until(code_file(viv, "a").exists, "the code is kept", limit=60)
    restart(viv)
    assert taken_over(viv, "a") > 0
    assert counters(viv, "a")["blocks_refused_by_verifier"] == 0
    ends(viv, "a")


def test_in_lockstep(empty_viv, make):  # noqa: F811
    """
    --check: blocks that come from the file do what the interpreter does, which compares each.  (This guest has few of them, most of which it
    has translated by then; test_keep has more.)
    """
    viv = empty_viv
    # esp = 300000H; again: ecx = 100; 1: call 2; dec ecx; jnz 1b; jmp again; 2: push edx; pop edx; add [200000H], ecx; ret
    code = bytes.fromhex("bc00003000 b964000000 e805000000 49 75f8 ebf1 52 5a 010d00002000 c3")
    viv.ok("run", "--detach", "--name", "a", "--kernel", make(code), "--mem", "16M", "--engine", "dbt", "--check", "1")
    viv.wait_until(lambda: counters(viv, "a")["blocks_compared"] > 1000, "blocks are compared")
    viv.ok("snapshot", "create", "a", "s")
    viv.ok("stop", "-f", "a")
    viv.ok("snapshot", "restore", "a", "s")
    viv.wait_until(code_file(viv, "a").exists, "the code is kept", limit=30)
    viv.ok("stop", "-f", "a")
    viv.ok("snapshot", "restore", "a", "s")
    taken_over(viv, "a")
    viv.wait_until(lambda: counters(viv, "a")["blocks_compared"] > 1000, "blocks are compared")
    assert counters(viv, "a")["blocks_refused_by_verifier"] == 0
    ends(viv, "a")


def test_prefault(at_snapshot):
    """Before the guest runs all that is known of it is there; a working set that is of no use is recorded once more."""
    viv = at_snapshot()
    restart(viv)
    folder = code_file(viv, "a").parent
    known = folder / "working-set"
    viv.wait_until(lambda: code_file(viv, "a").exists() and known.exists(), "both are recorded", limit=30)
    viv.ok("stop", "-f", "a")
    viv.ok("snapshot", "restore", "a", "s", "--prefault")
    assert counters(viv, "a")["blocks_loaded"] > 0  # at once
    a = Counter(viv, "a")
    a.reaches(a.next() + 5)
    whole = known.read_bytes()
    known.write_bytes(whole[:-1])
    code_file(viv, "a").write_bytes(code_file(viv, "a").read_bytes()[:5000])
    viv.ok("stop", "-f", "a")
    viv.ok("snapshot", "restore", "a", "s", "--prefault")  # reads all memory
    a = Counter(viv, "a")
    a.reaches(a.next() + 5)
    assert "memory is not read ahead" in log_of(viv, "a") and "translated code is not used" in log_of(viv, "a")
    viv.wait_until(lambda: known.read_bytes()[:8] == b"VIVWKSET" and len(known.read_bytes()) % 8 == len(whole) % 8, "it is recorded again", limit=30)
    viv.wait_until(lambda: code_file(viv, "a").stat().st_size > 5000, "the code, too", limit=30)
    ends(viv, "a")
