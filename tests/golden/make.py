#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""make.py VERSION - make tests/golden/snapshot-VERSION.viv with build/viv.

One a version whose snapshots differ from those before; old ones are never made again: tests/e2e/test_golden.py loads them all.
The guest says "greeting" and sends back what is typed.
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))
import guests  # noqa: E402

VIV = HERE.parents[1] / "build" / "viv"


def main(version):
    target = HERE / f"snapshot-{version}.viv"
    with tempfile.TemporaryDirectory() as home:
        def viv(*args):
            subprocess.run([VIV, *args], env={**os.environ, "VIVARIUM_HOME": home}, check=True)

        kernel = pathlib.Path(home) / "echo.elf"
        kernel.write_bytes(guests.multiboot(guests.say("greeting\n") + guests.ECHO))
        viv("run", "--name", "golden", "--detach", "--kernel", kernel, "--mem", "4M", "--cpus", "2", "--engine", "dbt",
            "--cpu", "x86-64-v2")
        time.sleep(1)  # it says its greeting and waits from then on
        viv("snapshot", "create", "golden", "one")
        viv("snapshot", "export", "golden", "one", target)
        viv("rm", "-f", "golden")


if len(sys.argv) != 2:
    sys.exit(__doc__)
main(sys.argv[1])
