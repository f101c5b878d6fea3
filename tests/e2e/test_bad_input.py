# SPDX-License-Identifier: Apache-2.0
"""What is wrong is said in one sentence, with a status, and nothing is left behind."""
import os
import resource

import pytest
import tiny


@pytest.fixture(autouse=True)
def nothing_left(empty_viv):
    yield
    for folder in ("vms", "run"):
        path = empty_viv.home / folder
        left = [p.name for p in path.iterdir()] if path.is_dir() else []
        assert left == [], f"left behind in {folder}: {left}"


# ---- usage: status 2 ----

@pytest.mark.parametrize("args, says", [
    (["rnu"], ["run"]),
    (["run", "--no-such-option", "x"], ["no-such-option"]),
    (["run", "--memory", "1G", "x"], ["mem"]),
    (["run", "--cpus", "0", "x"], ["cpus"]),
    (["run", "--cpus", "many", "x"], ["cpus"]),
    (["run", "--mem", "banana", "x"], ["mem"]),
    (["run", "--engine", "warp", "--kernel", "/bin/true"], ["engine"]),
    (["run", "--net", "nosuch", "--kernel", "/bin/true"], ["net"]),
    (["run", "--forward", "99999:22", "--kernel", "/bin/true"], ["99999:22"]),
    (["run", "--forward", "22", "--kernel", "/bin/true"], ["22"]),
    (["run", "--iommu", "amd", "--kernel", "/bin/true"], ["amd", "intel"]),
    (["run", "--device", "frob", "--kernel", "/bin/true"], ["frob", "edu"]),
    (["run", "--device", "edu", "--device", "edu", "--kernel", "/bin/true"], ["edu"]),
    (["run", "--name", "../a", "--kernel", "/bin/true"], ["../a"]),
    (["exec", "a"], []),
    (["exec", "a", "--"], []),
    (["console"], []),
    (["list", "a"], []),
], ids=" ".join)
def test_usage(empty_viv, args, says):
    empty_viv.fails(*args, status=2, says=says)


def test_no_verb_shows_help(empty_viv):
    done = empty_viv.run()
    assert done.returncode == 2 and "run" in done.stderr


@pytest.mark.parametrize("verb", ["run", "start", "stop", "list", "exec", "console", "image", "doctor", "rm"])
def test_help(empty_viv, verb):
    done = empty_viv.ok(verb, "--help")
    assert verb in done.stdout and done.stderr == ""


# ---- files ----

def test_no_such_image(empty_viv):
    empty_viv.fails("run", "nosuch", says=["nosuch", "viv image"])


@pytest.mark.parametrize("verb", [["stop"], ["start"], ["rm"], ["console"], ["info"], ["exec", "--"], ["pause"]], ids=" ".join)
def test_no_such_machine(empty_viv, verb):
    args = [verb[0], "nosuch"] + (["--", "true"] if verb[-1] == "--" else [])
    empty_viv.fails(*args, says=["nosuch"])


def test_missing_files(empty_viv, debian, tmp_path):
    missing = tmp_path / "missing"
    empty_viv.fails("run", "--kernel", missing, says=[missing])
    empty_viv.fails("run", "--kernel", debian / "vmlinuz", "--initrd", missing, says=[missing])
    empty_viv.fails("run", "--kernel", debian / "vmlinuz", "--disk", missing, says=[missing])
    empty_viv.fails("run", "--kernel", tmp_path, says=[tmp_path])


@pytest.mark.parametrize("length", [0, 1, 511, 0x202, 0x264, 20000, 1000000])
def test_truncated_kernel(empty_viv, debian, tmp_path, length):
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes((debian / "vmlinuz").read_bytes()[:length])
    empty_viv.fails("run", "--kernel", kernel, says=[kernel])


def test_foreign_kernel(empty_viv, tmp_path):
    for name, content in (("text", b"#!/bin/sh\necho\n" * 999), ("zeros", bytes(100000)), ("noise", os.urandom(100000)),
                          ("elf", b"\x7fELF\x02\x01\x01".ljust(4096, b"\xff"))):
        (tmp_path / name).write_bytes(content)
        empty_viv.fails("run", "--kernel", tmp_path / name, says=[tmp_path / name])


def test_disk_of_no_size(empty_viv, debian, tmp_path):
    for name, size in (("empty", 0), ("odd", 1000)):
        (tmp_path / name).write_bytes(bytes(size))
        empty_viv.fails("run", "--kernel", debian / "vmlinuz", "--disk", tmp_path / name, says=[tmp_path / name])


def test_disk_in_use(empty_viv, debian, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1024 * 1024))
    initrd = tiny.make(debian, tmp_path, "echo ready\n$b sleep 1000\n")
    kernel = ["--kernel", debian / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0 quiet", "--mem", "256M"]
    empty_viv.ok("run", "--detach", "--name", "a", *kernel, "--disk", disk)
    empty_viv.fails("run", "--name", "b", *kernel, "--disk", disk, says=[disk])
    empty_viv.fails("run", "--name", "c", *kernel, "--disk", f"{disk},ro", says=[disk])
    empty_viv.run("stop", "--force", "a")
    empty_viv.wait_until(lambda: empty_viv.list()[0]["state"] == "stopped", "the machine is stopped")
    empty_viv.ok("rm", "a")


def test_no_memory(empty_viv, debian):
    limit = 2 << 30
    empty_viv.fails("run", "--kernel", debian / "vmlinuz", "--mem", "8G", says=["mem"],
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))


def test_home_that_cannot_be(empty_viv, debian):
    empty_viv.env["VIVARIUM_HOME"] = "/proc/nosuch"
    empty_viv.fails("run", "--kernel", debian / "vmlinuz", says=["/proc/nosuch"])


def test_foreign_image_description(empty_viv):
    image = empty_viv.home / "images" / "odd"
    image.mkdir(parents=True)
    for text in ("", "{", "[]", '{"format": 99}', '{"format": 1, "name": "odd", "kernel": "../../etc/passwd"}'):
        (image / "image.json").write_text(text)
        empty_viv.fails("run", "odd", says=["odd"])
