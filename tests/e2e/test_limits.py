# SPDX-License-Identifier: Apache-2.0
"""Limits by a control group: in force where the host delegates one, else refused with the reason, each by its option."""
import json
import pathlib

import pytest

from guests import SLEEP, multiboot, say


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(multiboot(say("up") + SLEEP))
    return path


def offered(viv, option):
    row = json.loads(viv.run("doctor", "--json").stdout)["checks"]["cgroup"]
    return row["text"].startswith("v2:") and option in row["text"].split(";")[0]


LIMITS = [("--cpu-limit", "150%"), ("--mem-limit", "2G"), ("--io-limit", "50M")]


@pytest.mark.parametrize("option, value", LIMITS)
def test_limit(empty_viv, kernel, option, value):
    viv = empty_viv
    if not offered(viv, option):
        viv.fails("run", "--detach", "--name", "m", "--kernel", kernel, option, value, says=[option])
        assert viv.list() == []
        return
    viv.ok("run", "--detach", "--name", "m", "--kernel", kernel, option, value)
    pids = [p for p in viv.processes() if pathlib.Path(f"/proc/{p}").exists()]
    groups = {pathlib.Path(f"/proc/{p}/cgroup").read_text().split("0::")[1].strip() for p in pids}
    assert len(groups) == 1 and "viv-m-" in groups.pop()
    viv.ok("rm", "--force", "m")


def test_words(empty_viv, kernel):
    for option, value in [("--cpu-limit", "x"), ("--cpu-limit", "0"), ("--mem-limit", "1"), ("--io-limit", "read"), ("--io-limit", "0")]:
        empty_viv.fails("run", "--kernel", kernel, option, value, status=2, says=[option])


def test_set(empty_viv, kernel):
    """A limit that cannot be had is refused at the start, and can be taken back."""
    viv = empty_viv
    viv.ok("run", "--detach", "--name", "m", "--kernel", kernel)
    viv.fails("set", "m", "--cpu-limit", "1.5", says=["running"])
    viv.ok("stop", "--force", "m")
    viv.ok("set", "m", "--cpu-limit", "1.5")
    if not offered(viv, "--cpu-limit"):
        viv.fails("start", "m", says=["--cpu-limit"])
    viv.ok("set", "m", "--cpu-limit", "none")
    viv.ok("start", "m")
    viv.ok("rm", "--force", "m")
