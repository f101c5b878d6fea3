# SPDX-License-Identifier: Apache-2.0
"""How tools/soak judges what its parts print; the run itself takes hours."""
import importlib.machinery
import importlib.util
import subprocess

import pytest

from conftest import ROOT

LOADER = importlib.machinery.SourceFileLoader("soak", str(ROOT / "tools" / "soak"))
soak = importlib.util.module_from_spec(importlib.util.spec_from_loader("soak", LOADER))
LOADER.exec_module(soak)

HASH = "0123456789abcdef" * 4
OPENSSL = f"""@file {HASH}  ./crypto/aes.o
30-test_evp.t ...................... ok
30-test_afalg.t .................... skipped: test_afalg not supported for this build
99-test_ecstress.t .................
Failed 1/1 subtests
"""
PYTHON = """0:00:05 load avg: 4.86 [ 52/431] test_cmath passed -- running: test_asyncio (3 min 3 sec)
0:00:06 load avg: 4.86 [160/431/4] test_futures failed (1 failure) (12 min 28 sec)
0:00:07 load avg: 4.86 [161/431/5] test_fault crashed (Exit code -11)
0:00:07 load avg: 4.86 [162/431/5] test_gdb skipped
0:00:08 load avg: 4.86 [163/431/5] test_env failed (env changed)
"""
STRESS = """@class cpu
stress-ng: fail:  [812] cpu: a sum is wrong
@ended cpu 2
@class vm
@ended vm 0
@class os
@ended os 4
"""


def test_what_the_parts_print_is_understood():
    assert soak.results_openssl(OPENSSL) == {"./crypto/aes.o": HASH, "30-test_evp.t": "ok", "30-test_afalg.t": "skipped"}
    assert soak.results_python(PYTHON) == {"test_cmath": "ok", "test_futures": "failed", "test_fault": "crashed",
                                           "test_gdb": "skipped", "test_env": "ok"}
    assert soak.results_stress(STRESS) == {"cpu": "a sum is wrong", "vm": "ok", "os": "ok"}


@pytest.mark.parametrize("native, guest, bad, notes", [
    (None, "ok", 0, 0), ("ok", "failed", 1, 0), (None, "failed", 1, 0), ("failed", "failed", 0, 0), ("failed", "crashed", 0, 0),
    ("ok", "skipped", 0, 1), ("skipped", "skipped", 0, 0), ("skipped", "failed", 1, 0),
    (HASH, HASH, 0, 0), (HASH, HASH[::-1], 1, 0), (None, HASH, 1, 0)])
def test_differences(native, guest, bad, notes):
    found = soak.differences({"x": native} if native else {}, {"x": guest})
    assert [len(f) for f in found] == [bad, notes]


def test_how_many_tests_there_are():
    assert soak.number_of_tests("python", PYTHON) == 431
    assert soak.number_of_tests("openssl", OPENSSL + "Files=243, Tests=3300, 90 wallclock secs\n") == 243
    assert soak.number_of_tests("stress", STRESS) is None


@pytest.mark.parametrize("line, is_bad, is_stall", [
    ("[ 1.0] BUG: unable to handle page fault for address: 0", True, False),
    ("[ 1.0] WARNING: CPU: 0 PID: 1 at kernel/x.c:1", True, False),
    ("[ 1.0] Kernel panic - not syncing", True, False),
    ("[ 1.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!", True, True),
    ("[ 1.0] rcu: INFO: rcu_preempt self-detected stall on CPU", False, True),
    ("[ 1.0] a.out[812]: segfault at 0 ip 0 sp 0 error 4", False, False)])
def test_what_a_kernel_says(line, is_bad, is_stall):
    assert bool(soak.KERNEL_BAD.search(line)) == is_bad
    assert bool(soak.KERNEL_STALL.search(line)) == is_stall


class FakeGuest:
    """Its parts are cut off after one result; time stands still."""
    ends = []
    logs = {"compile": f"@file {HASH}  ./x.o\n", "openssl": "30-test_evp.t .... ok\n", "python": "0:00:05 load avg: 4.86 [ 52/431] test_cmath passed\n", "stress": ""}

    def __init__(self, args, cpus):
        self.args = args

    def start(self):
        FakeGuest.ends = []

    def run(self, part, tests, end, tag=""):
        FakeGuest.ends.append((part + tag, end))
        return self.logs[part], False

    def kernel(self):
        return [], []

    def close(self):
        pass


def test_a_part_that_is_cut_off_is_told_and_the_next_one_runs(monkeypatch):
    monkeypatch.setattr(soak, "Guest", FakeGuest)
    monkeypatch.setattr(soak.time, "monotonic", lambda: 1000.0)
    args = soak.parse(["--minutes", "100"])
    native = soak.Native(None, None)
    native.files = {"./x.o": HASH, "./late.o": HASH}
    monkeypatch.setattr(native, "results", lambda part, names: native.files if part == "compile" else {})
    parts = ["compile", "openssl", "python", "stress"]
    record = soak.soak(args, 1, parts, {"compile": "", "openssl": "", "python": "", "stress": "cpu"}, native)
    assert [p for p, _ in FakeGuest.ends] == parts
    assert FakeGuest.ends[0][1] == 1000 + soak.SHARES["compile"] * 6000 and FakeGuest.ends[3][1] == 1000 + 6000
    assert not record["ran"] and [w.split()[0] for w in record["cut off"]] == parts
    assert not record["differences"]
    assert record["crashes"] == ["stress has no results"]  # a part that tells nothing is no success


def test_bad_usage():
    for args in (["--parts", "perl"], ["--cpus", "many"], ["--minutes", "x"]):
        done = subprocess.run([ROOT / "tools" / "soak", *args], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr
