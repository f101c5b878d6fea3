# SPDX-License-Identifier: Apache-2.0
"""The benchmark of networks: what it tells, and that machines of a lab are measured.  No time is judged."""
import json
import pathlib
import subprocess
import sys

import pytest

from conftest import ROOT, VIV, processes_in

sys.path.insert(0, str(ROOT / "bench"))
import lab  # noqa: E402  pylint: disable=wrong-import-position


def runs(*rates, cpu=2.0, network=1.0):
    return [{"rate": r, "cpu": cpu, "network_cpu": network} for r in rates]


@pytest.fixture
def record():
    rows = [{"name": "routed", "title": "few", "kind": lab.TCP, "runs": {"viv": runs(100, 300, 200), "qemu": runs(20, 10, 30)}},
            {"name": "routed-1000", "title": "many", "kind": lab.TCP, "runs": {"viv": runs(240, 290, cpu=3.0), "qemu": []}},
            {"name": "connects", "title": "connections", "kind": lab.CONNECTS, "runs": {"viv": runs(5)}}]
    return {"date": "today", "host": {"cpu": "x", "cores": 2, "kernel": "6", "load_before": 0.5, "load_after": 1.5},
            "versions": {"viv": "viv 1"}, "sides": ["viv", "qemu"], "rounds": 3, "seconds": 4, "failed": [], "rows": rows}


def test_medians_ratios_and_what_rules_cost(record):
    lines = lab.table(record)
    few = next(line for line in lines if line.startswith("| few"))
    assert [c.strip() for c in few.split("|")[1:-1]] == ["few", "200.0", "20.0", "10.0", "2.00", "2.00", "1.000"]
    many = next(line for line in lines if line.startswith("| many"))
    assert [c.strip() for c in many.split("|")[1:-1]][1:5] == ["265.0", "-", "-", "3.00"]
    (rules,) = [line for line in lines if "rules against 1" in line]
    for part in ("routed, best runs", "rate -3.3 %", "processor time +50.0 %", "part of it +0.0 %"):
        assert part in rules, rules
    text = lab.text_of({**record, "failed": ["routed on qemu: it burnt down"]})
    assert "it burnt down" in text and "load 0.50 before and 1.50 after" in text


def test_rows_are_named_once_and_lists_name_rows():
    names = [r.name for r in lab.ROWS]
    assert len(set(names)) == len(names)
    assert {n for pair in lab.RULE_PAIRS for n in pair} <= set(names)
    members = {m for lab_members in lab.VIV_MACHINES.values() for m in lab_members} | {"n", ""}
    assert {r.viv.client for r in lab.ROWS} <= members
    assert len(lab.LAB_RULES["many"]) == lab.RULES and len(lab.LAB_RULES["few"]) == 1
    scripts = lab.scripts(4, 1, True)
    for row in lab.ROWS:
        for way in (row.viv, row.qemu):
            if way.client:
                assert f"{row.kind}-{lab.word(way.address)}" + ("-R" if way.is_reverse else "") in scripts, row


def test_connections_between_machines_of_a_lab(debian, tmp_path, monkeypatch):
    """The image has no iperf3, which these rows need not."""
    monkeypatch.setenv("VIVARIUM_HOME", str(pathlib.Path(debian).parents[1]))
    monkeypatch.setattr(lab, "CONNECTIONS", 20)
    home = []
    original = lab.Viv.up

    def up(side, *args):
        home.append(side.home)
        original(side, *args)

    monkeypatch.setattr(lab.Viv, "up", up)
    status = lab.main(["--image", "debian", "--viv", VIV, "--out", str(tmp_path), "--sides", "viv", "--only", "connects",
                       "--rounds", "1"])
    record = json.loads((tmp_path / "lab.json").read_text())
    assert status == 0 and not record["failed"]
    (row,) = record["rows"]
    (measured,) = row["runs"]["viv"]
    assert measured["rate"] > 0 and measured["cpu"] > measured["network_cpu"] > 0
    assert "connections/s" in (tmp_path / "lab.md").read_text()
    assert not processes_in(home[0]), "something of it is left running"
    with pytest.raises(SystemExit, match="has no iperf3"):
        lab.main(["--image", "debian", "--viv", VIV, "--out", str(tmp_path), "--only", "segment"])


def test_bad_usage():
    for args in (["--sides", "bochs"], ["--only", "nothing"], ["--rounds", "0"], ["--seconds", "many"]):
        done = subprocess.run([ROOT / "bench" / "lab.py", *args], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr
