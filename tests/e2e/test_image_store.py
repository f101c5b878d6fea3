# SPDX-License-Identifier: Apache-2.0
"""The image store: what has one content is stored once, and goes when nothing needs it; with guests of a few bytes."""
import hashlib
import json
import os
import subprocess
import threading

from conftest import VIV
from guests import SLEEP, multiboot, say


def kernel(path, text):
    path.write_bytes(multiboot(say(text) + SLEEP))
    return path


def blobs(viv):
    folder = viv.home / "images/.blobs"
    return {b.name for b in folder.iterdir()} if folder.exists() else set()


def images(viv):
    return {i["name"]: i for i in json.loads(viv.ok("image", "list", "--json").stdout)}


def test_life_of_an_image(empty_viv, tmp_path):
    viv = empty_viv
    disk, k = tmp_path / "d.raw", kernel(tmp_path / "k", "one")
    disk.write_bytes(b"d" * 4096 + bytes(1 << 20))
    for name in "a", "b":
        viv.ok("image", "add", name, disk, "--kernel", k)
    viv.ok("image", "add", "other", "--kernel", kernel(tmp_path / "k2", "two"))
    listed = images(viv)
    assert listed["a"]["digest"] == listed["b"]["digest"] != listed["other"]["digest"]
    assert listed["a"]["digest"][:12] in viv.ok("image", "list").stdout
    for file in "disk.raw", "vmlinuz":
        a, b = viv.home / "images/a" / file, viv.home / "images/b" / file
        assert a.samefile(b) and hashlib.sha256(a.read_bytes()).hexdigest() in blobs(viv)
    subprocess.run(["sha256sum", "--check", "--quiet", "digests"], cwd=viv.home / "images/a", check=True)
    assert viv.ok("image", "verify").stdout.splitlines() == ["a: as recorded", "b: as recorded", "other: as recorded"]
    viv.fails("image", "add", "a", disk, says=["already"])
    viv.fails("image", "add", "c", tmp_path / "none", says=["none"])

    # machines, on and off, keep what they were made of; a snapshot does, too
    viv.ok("run", "--detach", "--name", "m", "a")
    viv.ok("snapshot", "create", "m", "s")
    viv.ok("run", "--detach", "--name", "off", "other")
    viv.ok("stop", "--force", "off")
    for name in "a", "b", "other":
        viv.ok("image", "rm", name)
    assert images(viv) == {} and len(blobs(viv)) >= 3
    dry = viv.ok("image", "gc", "--dry-run").stdout
    before = blobs(viv)
    gone = viv.ok("image", "gc").stdout
    assert dry == gone and blobs(viv) < before
    needed = {hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in ("k", "k2")}
    assert needed <= blobs(viv)
    assert viv.ok("image", "gc").stdout == ""
    viv.ok("stop", "--force", "m")
    for name in "m", "off":
        viv.ok("start", name)
        viv.ok("rm", "--force", name)
    viv.ok("image", "gc")
    assert blobs(viv) == set()


def test_verify_finds_what_changed(empty_viv, tmp_path):
    viv = empty_viv
    viv.ok("image", "add", "a", "--kernel", kernel(tmp_path / "k", "one"))
    file = viv.home / "images/a/vmlinuz"
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    viv.fails("image", "verify", "a", says=["vmlinuz", "not what was recorded"])
    viv.ok("image", "seal", "a")
    viv.ok("image", "verify", "a")
    viv.fails("image", "verify", "none", says=["none"])


def test_collecting_while_machines_are_made(empty_viv, tmp_path):
    """Images come and go, machines are made of them and run, and somebody collects all the time: no machine misses a file."""
    viv, stop = empty_viv, threading.Event()
    k = kernel(tmp_path / "k", "one")
    failures = []

    def collector():
        while not stop.is_set():
            done = subprocess.run([VIV, "image", "gc"], env=viv.env, capture_output=True, text=True)
            if done.returncode:
                failures.append(done.stderr)

    thread = threading.Thread(target=collector)
    thread.start()
    try:
        for i in range(6):
            viv.ok("image", "add", "i", "--kernel", k)
            viv.ok("run", "--detach", "--name", f"m{i}", "i")
            viv.ok("image", "rm", "i")
            viv.ok("stop", "--force", f"m{i}")
            viv.ok("start", f"m{i}")
            viv.ok("rm", "--force", f"m{i}")
    finally:
        stop.set()
        thread.join()
    assert not failures
    viv.ok("image", "gc")
    assert blobs(viv) == set() and not [p for p in (viv.home / "images").glob(".i.??????")]


def test_killed_while_adding(empty_viv, tmp_path):
    """kill -9 at any moment: afterwards there is a whole image or none, and gc leaves nothing of the half."""
    viv = empty_viv
    k, disk = kernel(tmp_path / "k", "one"), tmp_path / "d.raw"
    disk.write_bytes(os.urandom(8 << 20))
    for i in range(8):
        child = subprocess.Popen([VIV, "image", "add", "i", disk, "--kernel", k], env=viv.env)
        try:
            child.wait(timeout=0.01 * i)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if "i" in images(viv):
            viv.ok("image", "verify", "i")
            viv.ok("image", "rm", "i")
        viv.ok("image", "gc")
        assert blobs(viv) == set() and not list((viv.home / "images").glob(".i.??????")), i
