# SPDX-License-Identifier: Apache-2.0
"""Snapshots of every version load for ever (tests/golden/make.py)."""
import json
import pathlib

import pytest

GOLDEN = sorted((pathlib.Path(__file__).resolve().parents[1] / "golden").glob("*.viv"))


def host_vendor():
    line = next(line for line in open("/proc/cpuinfo") if line.startswith("vendor_id"))
    return line.split(":")[1].strip()


@pytest.mark.parametrize("file", GOLDEN, ids=lambda f: f.stem)
def test_goes_on(empty_viv, file):
    viv = empty_viv
    viv.ok("snapshot", "import", "g", "one", file)
    assert viv.ok("snapshot", "verify", "g", "one").stdout == "one: whole\n"
    state = json.loads(viv.ok("snapshot", "show", "g", "one", "--json").stdout)["state"]
    vendor = state["machine"]["vendor"]
    if vendor != host_vendor():
        viv.fails("snapshot", "restore", "g", "one", says=[vendor])
        viv.ok("rm", "g")
        pytest.skip(f"it is of a CPU of {vendor}, this host's is of {host_vendor()}: refused, as it has to be")
    viv.ok("snapshot", "restore", "g", "one")
    console = viv.spawn("console", "g", limit=30)
    console.expect("Ctrl-] leaves")
    console.send("typed")
    console.expect("typed")
    viv.ok("rm", "-f", "g")


def test_there_is_one():
    assert GOLDEN
