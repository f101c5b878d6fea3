# SPDX-License-Identifier: Apache-2.0
"""viv metrics: strictly Prometheus' text format, of all machines that run, and the numbers are what happened."""
import os
import re
import signal

import pexpect
import pytest

import guests
import tiny

# prometheus.io/docs/instrumenting/exposition_formats, "Text format details".  Here every sample has labels and no timestamp.
NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
LABEL = rf'({NAME})="((?:[^"\\\n]|\\["\\n])*)"'
SAMPLE = re.compile(rf"({NAME})\{{({LABEL}(?:,{LABEL})*)\}} ([0-9]+(?:\.[0-9]+)?)")


def parse(text):
    """{metric: {((label, value), ...): number}}; everything that the format or the naming rules forbid fails."""
    assert text.endswith("\n")
    metrics, types, current = {}, {}, None
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            current = re.fullmatch(rf"# HELP ({NAME}) \S.*\.", line).group(1)
            assert current not in metrics, f"{current} is not in one piece"
            metrics[current] = {}
        elif line.startswith("# TYPE "):
            name, kind = re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge)", line).groups()
            assert name == current and name not in types and not metrics[name]
            types[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, f"no sample: {line!r}"
            assert match.group(1) == current and current in types, f"{line!r} stands under {current}"
            labels = tuple(pair for pair in re.findall(LABEL, match.group(2)))
            assert len({key for key, _ in labels}) == len(labels) and labels not in metrics[current]
            metrics[current][labels] = float(match.groups()[-1])
    for name, kind in types.items():
        assert name.startswith("viv_vm_") and metrics[name], name
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ns|ms|us|kb|mb|percent|milliseconds)(_|$)", name), f"{name}: not a base unit"
    return metrics


def value(metrics, metric, **labels):
    found = [v for k, v in metrics[metric].items() if set(labels.items()) <= set(k)]
    assert found, f"{metric} {labels}"
    return sum(found)


@pytest.fixture
def two(empty_viv, tmp_path):
    viv = empty_viv
    for name, code in (("talks", guests.say("up\n") + guests.ECHO), ("sleeps", guests.SLEEP)):
        kernel = tmp_path / name
        kernel.write_bytes(guests.multiboot(code))
        (tmp_path / f"{name}.raw").write_bytes(bytes(1 << 20))
        viv.ok("run", "--detach", "--name", name, "--engine", "dbt", "--mem", "16M", "--cpus", "2", "--net", "nat",
               "--disk", tmp_path / f"{name}.raw", "--kernel", kernel)
    yield viv
    viv.run("rm", "--force", "talks", "sleeps")


def test_all_machines(two):
    viv = two
    viv.wait_until(lambda: value(parse(viv.ok("metrics").stdout), "viv_vm_vcpu_exits_total", vm="talks", kind="pio") > 0, "output")
    viv.ok("pause", "sleeps")
    first = parse(viv.ok("metrics").stdout)
    for vm in ("talks", "sleeps"):
        assert value(first, "viv_vm_up", vm=vm) == 1
        assert value(first, "viv_vm_memory_bytes", vm=vm) == 16 << 20
        assert value(first, "viv_vm_cpus", vm=vm) == 2
        assert value(first, "viv_vm_info", vm=vm, engine="dbt") == 1
        assert value(first, "viv_vm_process_resident_bytes", vm=vm) > 0
        assert value(first, "viv_vm_dbt_translated_blocks_total", vm=vm) > 0
        assert value(first, "viv_vm_dbt_code_bytes", vm=vm) > 0
        assert value(first, "viv_vm_disk_bytes_total", vm=vm, operation="read") == 0
        assert value(first, "viv_vm_network_frames_total", vm=vm, direction="transmit") == 0
        assert value(first, "viv_vm_process_page_faults_total", vm=vm) > 0
        assert {k for k in first["viv_vm_vcpu_halts_total"] if ("vm", vm) in k} == {
            (("vm", vm), ("vcpu", str(i))) for i in range(2)}
    assert (value(first, "viv_vm_paused", vm="talks"), value(first, "viv_vm_paused", vm="sleeps")) == (0, 1)
    # A counter never goes back; the paused machine's clock stands still.
    viv.ok("reset", "talks")
    second = parse(viv.ok("metrics").stdout)
    for name in (n for n in first if n.endswith("_total")):
        for labels, number in first[name].items():
            assert second[name][labels] >= number, f"{name}{labels}"
    assert value(second, "viv_vm_resets_total", vm="talks") == 1
    assert value(second, "viv_vm_clock_seconds", vm="sleeps") == value(first, "viv_vm_clock_seconds", vm="sleeps")


def test_second_reader(two):
    """Prometheus' own library reads the same."""
    prometheus = pytest.importorskip("prometheus_client.parser", reason="python3-prometheus-client is missing: tools/deps.sh test")
    text = two.ok("metrics", "sleeps").stdout
    families = list(prometheus.text_string_to_metric_families(text))
    mine = parse(text)
    assert sum(len(f.samples) for f in families) == sum(map(len, mine.values()))
    for family in families:
        assert family.documentation and family.type in ("counter", "gauge")
        for sample in family.samples:
            assert mine[sample.name][tuple(sample.labels.items())] == sample.value


def test_names(two):
    viv = two
    assert {k[0] for k in parse(viv.ok("metrics", "talks").stdout)["viv_vm_up"]} == {("vm", "talks")}
    viv.fails("metrics", "nobody", says=["nobody"])
    viv.fails("metrics", "../x", says=["../x"])
    viv.fails("metrics", "talks", "nobody", says=["nobody"])
    # One that hangs costs the others nothing but time.
    pid = next(m["pid"] for m in viv.list() if m["name"] == "sleeps")
    os.kill(pid, signal.SIGSTOP)
    try:
        metrics = parse(viv.ok("metrics").stdout)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (value(metrics, "viv_vm_up", vm="sleeps"), value(metrics, "viv_vm_up", vm="talks")) == (0, 1)
    assert not any(("vm", "sleeps") in k for k in metrics["viv_vm_cpus"])
    viv.ok("stop", "--force", "sleeps")
    assert {k[0] for k in parse(viv.ok("metrics").stdout)["viv_vm_up"]} == {("vm", "talks")}
    viv.fails("metrics", "sleeps", says=["sleeps"])
    viv.ok("stop", "--force", "talks")
    assert viv.ok("metrics").stdout == ""


# 64 KiB read and 32 KiB written, past the cache: no more and no less than the partition scan adds.
IO = """
$b dd if=/dev/vda of=/dev/null bs=4096 count=16 iflag=direct 2>/dev/null
$b dd if=/dev/zero of=/dev/vda bs=4096 count=8 oflag=direct 2>/dev/null
$b ip link set eth0 up; $b ip address add 10.0.2.15/24 dev eth0; $b arping -c 3 -w 5 10.0.2.2 >/dev/null
echo all done
$b sleep 1000
"""


def test_disk_and_network(empty_viv, debian, tmp_path):
    """A guest's own transfers are what is counted."""
    viv = empty_viv
    disk = tmp_path / "data.raw"
    disk.write_bytes(bytes(1 << 20))
    initrd = tiny.make(debian, tmp_path, IO, tiny.NETWORK)
    child = viv.spawn("run", "--name", "a", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0 quiet",
                      "--mem", "256M", "--engine", "dbt", "--disk", disk, "--net", "nat")
    child.expect("all done")
    metrics = parse(viv.ok("metrics", "a").stdout)
    assert value(metrics, "viv_vm_disk_bytes_total", disk="0", operation="write") == 32768
    assert 65536 <= value(metrics, "viv_vm_disk_bytes_total", disk="0", operation="read") <= 1 << 20
    assert value(metrics, "viv_vm_disk_operations_total", disk="0", operation="write") == 8
    assert value(metrics, "viv_vm_disk_errors_total", disk="0") == 0
    assert value(metrics, "viv_vm_network_frames_total", card="0", direction="transmit") >= 3
    assert value(metrics, "viv_vm_network_frames_total", card="0", direction="receive") >= 3
    assert value(metrics, "viv_vm_network_bytes_total", card="0", direction="transmit") >= 3 * 42
    assert value(metrics, "viv_vm_dbt_tlb_misses_total", outcome="filled") > 0
    assert value(metrics, "viv_vm_dbt_page_walks_total") > 0
    assert value(metrics, "viv_vm_device_accesses_total", device="virtio-blk0") > 0
    viv.ok("stop", "--force", "a")
    child.expect(pexpect.EOF)
