# SPDX-License-Identifier: Apache-2.0
"""The benchmark: what it computes from times, and that it runs the same thing on each machine.  No time is judged."""
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

import pytest

from conftest import ROOT, VIV

sys.path.insert(0, str(ROOT / "bench"))
import bench  # noqa: E402  pylint: disable=wrong-import-position
import machines  # noqa: E402  pylint: disable=wrong-import-position
import report  # noqa: E402  pylint: disable=wrong-import-position
import workloads  # noqa: E402  pylint: disable=wrong-import-position


def row(name, group, native, viv, qemu, **more):
    return {"name": name, "group": group, "title": name, "times": {"native": native, "viv": viv, "qemu": qemu},
            "results": {}, "failed": {}, "is_equal": True, "notes": [], **more}


@pytest.fixture
def record():
    rows = [row("a", "compute", [1.0, 9.0, 1.0], [2.0], [16.0]), row("b", "compute", [1.0], [8.0], [16.0]),
            row("c", "system", [1.0], [1.0], [], failed={"qemu": "it burnt down"}),
            row("d", "system", [1.0], [100.0], [100.0], is_equal=False, results={"viv": "7", "qemu": "8"})]
    return {"machines": ["native", "viv", "qemu"], "rows": rows, "means": report.means(rows, ["a", "d"]),
            "viv_engine": "dbt", "starts": [{"title": "to there", "times": {"viv": [2.0], "qemu": [4.0]},
                                              "resident_mib": {"viv": [20.0, 22.0, 29.0], "qemu": []}}],
            "resident_mib": {"viv": 30}, "left_out": ["e: left out"]}


def test_means_are_geometric_of_medians_and_leave_out_what_failed_or_differed(record):
    assert record["means"]["compute"]["viv/native"] == {"mean": pytest.approx(4), "rows": 2}
    assert record["means"]["compute"]["qemu/native"] == {"mean": pytest.approx(16), "rows": 2}
    assert record["means"]["system"]["viv/native"] == {"mean": pytest.approx(1), "rows": 1}
    assert "qemu/native" not in record["means"]["system"]
    assert record["means"]["the first 16"]["viv/native"]["rows"] == 1


def test_table_and_failures_name_everything(record):
    text = report.table(record)
    for part in ("| a ", " 4.00 |", "failed", "geometric means", "to there", "at the end: viv 30 MiB.", "at there: viv 22 MiB."):
        assert part in text, text
    assert re.search(r"to there +\| +2\.00\d* \| +4\.00\d* \| +0\.50 \|", text), text
    bad = "\n".join(report.failures(record))
    for part in ("c: failed on qemu: it burnt down", "d: the results differ", "e: left out"):
        assert part in bad, bad


def test_chart_has_a_bar_for_each_ratio(record):
    svg = ElementTree.fromstring(report.chart(record))
    colours = [r.get("fill") for r in svg.iter("{http://www.w3.org/2000/svg}rect")]
    # rows a, b, c and four means of viv; QEMU has neither c nor, of all its rows, a mean of system; legend: one each
    assert colours.count(report.COLOURS["viv"]) == 3 + 4 + 1
    assert colours.count(report.COLOURS["qemu"]) == 2 + 3 + 1


def test_clocks_that_disagree_and_results_that_change_are_noted():
    r = row("a", "compute", [], [], [], host_times={"viv": []})
    bench.Run.note(r, "viv", machines.Result(0, 1.0, 0.2, 1.01, ""), "x")
    assert not r["notes"]
    bench.Run.note(r, "viv", machines.Result(0, 1.0, 2.0, 2.1, ""), "x")
    assert len(r["notes"]) == 1 and r["is_equal"]
    bench.Run.note(r, "viv", machines.Result(0, 1.0, 0.1, 0.2, ""), "x")
    assert len(r["notes"]) == 2 and r["is_equal"]
    bench.Run.note(r, "viv", machines.Result(0, 1.0, 1.0, 1.0, ""), "y")
    assert not r["is_equal"]
    bench.Run.note(r, "viv", machines.Result(0, 1.0, 1.0, 1.0, ""), "x")
    assert not r["is_equal"], "once different is different"


def test_a_program_s_own_time_takes_the_place_of_the_run_s():
    r = row("a", "compute", [], [], [], host_times={"viv": []})
    bench.Run.note(r, "viv", machines.Result(0, 4.0, 3.9, 4.1, ""), "x", 0.25)
    assert r["times"]["viv"] == [0.25] and not r["notes"]


def test_workloads_are_named_once_and_the_lists_name_workloads():
    names = [w.name for w in workloads.WORKLOADS]
    assert len(set(names)) == len(names)
    assert len(workloads.FIRST_16) == 16 and set(workloads.FIRST_16) <= set(names)
    assert set(workloads.QUICK) <= set(names)
    listed = subprocess.run([ROOT / "bench" / "bench.py", "--list"], check=True, capture_output=True, text=True).stdout
    assert [line.split()[0] for line in listed.splitlines()] == names


@pytest.fixture(scope="module")
def out():
    """Where results go, the unpacked image among them: in memory if there is room, for its files are many."""
    memory = pathlib.Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    with tempfile.TemporaryDirectory(prefix="viv-bench-", dir=memory if has_room else None) as path:
        yield pathlib.Path(path)


def run_bench(debian, out, monkeypatch, *args):
    """bench.py with the Debian image; returns its exit status and its record."""
    monkeypatch.setenv("VIVARIUM_HOME", str(pathlib.Path(debian).parents[1]))
    status = bench.main(["--image", "debian", "--viv", VIV, "--out", str(out), "--no-login", "--rounds", "1", *args])
    for kind in ("md", "json", "svg"):
        assert (out / f"bench.{kind}").stat().st_size
    return status, json.loads((out / "bench.json").read_text())


def test_same_results_natively_and_in_viv(debian, out, monkeypatch):
    status, record = run_bench(debian, out, monkeypatch, "--machines", "native,viv", "--only",
                               "linpack|getppid|disk-read|net-send|sysbench-cpu")
    rows = {r["name"]: r for r in record["rows"]}
    assert status == 0, report.failures(record)
    assert set(rows) == {"linpack", "getppid", "disk-read", "net-send"}
    for r in rows.values():
        assert not r["failed"] and r["is_equal"] and r["results"]["viv"] == r["results"]["native"]
        assert len(r["times"]["viv"]) == len(r["host_times"]["viv"]) == 1
    assert any("sysbench" in left for left in record["left_out"])
    assert record["viv_info"]["counters"][0]["translations"] > 0
    assert record["starts"][0]["times"]["viv"]


def test_what_fails_is_named_and_the_rest_goes_on(debian, out, monkeypatch):
    monkeypatch.setattr(workloads, "WORKLOADS", [
        workloads.Workload("bad", workloads.COMPUTE, "bad", "echo no luck >&2; exit 3"),
        workloads.Workload("endless", workloads.COMPUTE, "endless", "while :; do :; done", limit=1),
        workloads.Workload("good", workloads.COMPUTE, "good", "echo fine"),
        workloads.Workload("unchecked", workloads.COMPUTE, "unchecked", "true", check="false"),
        workloads.Workload("own", workloads.COMPUTE, "own", "echo 0.125", seconds="cat /task/run.out"),
        workloads.Workload("timeless", workloads.COMPUTE, "timeless", "true", seconds="echo soon"),
        workloads.Workload("unserved", workloads.COMPUTE, "unserved", "true", serves="no-such-program")])
    status, record = run_bench(debian, out, monkeypatch, "--machines", "native")
    failed = {r["name"]: r["failed"].get("native", "") for r in record["rows"]}
    assert status == 1
    assert "status 3: no luck" in failed["bad"]
    assert "status 137" in failed["endless"]
    assert not failed["good"]
    assert failed["unchecked"].startswith("check ended with status 1")
    assert [r["times"]["native"] for r in record["rows"] if r["name"] == "own"] == [[0.125]]
    assert failed["timeless"] == "it tells no time: 'soon'"
    assert "unserved: left out, this host has no no-such-program" in record["left_out"]
    assert "no luck" in (out / "bench.md").read_text()


def test_the_full_kernel_s_login_is_left_out_by_name_where_it_has_no_image(monkeypatch, tmp_path):
    monkeypatch.setenv("VIVARIUM_HOME", str(tmp_path))
    monkeypatch.setattr(bench, "login_times",
                        lambda parts, names, rounds, engine: ({"viv": [float(len(parts.image))]}, {"viv": [7.0]}))
    parts = machines.Parts(*[None] * len(machines.dataclasses.fields(machines.Parts)))
    args, left_out = bench.parse(["--rounds", "1"]), []
    rows = bench.logins(args, parts, {"kernel": "k"}, float("inf"), left_out)
    assert [r["times"]["viv"] for r in rows] == [[1.0]] and "cloud" in rows[0]["title"]
    assert len(left_out) == 1 and "full kernel: left out" in left_out[0]
    (tmp_path / "images" / "full").mkdir(parents=True)
    (tmp_path / "images" / "full" / "image.json").write_text('{"kernel": "k", "initrd": "i", "disk": "d"}')
    rows = bench.logins(args, parts, {"kernel": "k"}, float("inf"), left_out)
    assert [r["times"]["viv"] for r in rows] == [[1.0], [3.0]]
    assert not bench.logins(args, parts, {}, 0, left_out) and "minutes were over" in left_out[-1]


def test_bad_usage():
    for args in (["--machines", "native,bochs"], ["--only", "("], ["--rounds", "many"]):
        done = subprocess.run([ROOT / "bench" / "bench.py", *args], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr
