# SPDX-License-Identifier: Apache-2.0
"""Folders of the host in guests, by 9P.  Debian's kernel for clouds has no 9P: these guests run its full kernel."""
import json
import os
import pathlib
import signal
import subprocess
import time

import pytest

import tiny
from conftest import BOOT_LIMIT, ROOT, image_store
from migration import Host

MODULES = ["net/9p/9pnet.ko", "net/9p/9pnet_virtio.ko", "fs/netfs/netfs.ko", "fs/fscache/fscache.ko", "fs/9p/9p.ko"]
MOUNT = "$b mkdir -p /{0}; $b mount -t 9p -o trans=virtio,version=9p2000.L {0} /{0} || echo MOUNT FAILED\n"


@pytest.fixture(scope="session")
def full():
    """The image with Debian's kernel for hardware of all kinds."""
    subprocess.run([ROOT / "tools" / "build-image.sh", "--name", "full", "--kernel", "linux-image-amd64"], check=True)
    return image_store() / "full"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "shared"
    path.mkdir()
    (tmp_path / "secret").write_text("secret")
    return path


def boot(viv, full, tmp_path, script, *options):
    """A guest that runs @script on a machine with @options, to its end; what it printed."""
    initrd = tiny.make(full, tmp_path, script + "\n$b poweroff -f\n", MODULES)
    done = viv.ok("run", "--kernel", full / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0 quiet", "--mem", "256M",
                  *options, limit=BOOT_LIMIT)
    return done.stdout


WORK = MOUNT.format("desk") + MOUNT.format("ro") + r"""
cd /desk
[ "$($b cat hello)" = "from the host" ] && echo READ
echo "from the guest" >answer
$b mkdir -p a/b/c; echo deep >a/b/c/file; $b mv a/b moved; [ "$($b cat moved/c/file)" = deep ] && echo MOVED
$b dd if=/dev/urandom of=big bs=64k count=64 2>/dev/null; $b sha256sum big >big.sum
for i in 1 2 3 4 5 6 7 8 9; do for k in 0 1 2 3 4 5 6 7 8 9; do echo $i$k >many$i$k; done; done
[ "$($b ls | $b grep -c many)" = 90 ] && echo LISTED
$b rm many1? many2?
$b chmod 640 answer; $b touch -d '2001-02-03 04:05:06' answer
$b ln -s ../secret out; $b ln -s /etc/nothing abs; $b ln answer hard
$b cat out 2>/dev/null | $b grep secret && echo ESCAPED
echo append >>answer; $b truncate -s 3 moved/c/file; [ "$($b cat moved/c/file)" = dee ] && echo CUT
exec 3>removed; $b rm removed; echo held >&3 && echo HELD; exec 3>&-
$b chown 12345 answer 2>&1 | $b grep -q 'not permitted' && echo OWNER REFUSED
$b chmod 4755 answer 2>&1 | $b grep -q 'not permitted' && echo SETUID REFUSED
$b mknod null c 1 3 2>&1 | $b grep -q 'not permitted' && echo DEVICE REFUSED
$b mkfifo pipe 2>&1 | $b grep -q 'not permitted' && echo PIPE REFUSED
[ -d /desk/../secret ] || [ -e /desk/../secret ] && echo ESCAPED
cd /ro
[ "$($b cat kept)" = kept ] && echo READ RO
(echo x >kept) 2>/dev/null || echo WRITE REFUSED
$b rm kept 2>/dev/null || echo REMOVE REFUSED
cd /; $b umount /desk && $b umount /ro && echo UNMOUNTED
"""


def test_both_ways(empty_viv, full, folder, tmp_path):
    (folder / "hello").write_text("from the host")
    kept = tmp_path / "with space"
    kept.mkdir()
    (kept / "kept").write_text("kept")
    said = boot(empty_viv, full, tmp_path, WORK, "--share", f"{folder}:desk", "--share", f"{kept}:ro,ro", "--cpus", 2)
    for sign in ("READ", "MOVED", "LISTED", "CUT", "HELD", "OWNER REFUSED", "SETUID REFUSED", "DEVICE REFUSED", "PIPE REFUSED", "READ RO",
                 "WRITE REFUSED", "REMOVE REFUSED", "UNMOUNTED"):
        assert sign in said, f"{sign} is missing: {said}"
    assert "ESCAPED" not in said and "FAILED" not in said, said
    assert (folder / "answer").read_text() == "from the guest\nappend\n"
    assert (folder / "answer").stat().st_mode & 0o7777 == 0o640 and (folder / "answer").stat().st_nlink == 2
    assert (folder / "answer").stat().st_uid == os.getuid()
    assert (folder / "moved" / "c" / "file").read_text() == "dee"
    assert os.readlink(folder / "out") == "../secret" and (tmp_path / "secret").read_text() == "secret"
    assert len(list(folder.glob("many*"))) == 70
    assert subprocess.run(["sha256sum", "-c", "big.sum"], cwd=folder, capture_output=True, check=False).returncode == 0
    assert (kept / "kept").read_text() == "kept"


def test_in_a_lab(empty_viv, full, folder, tmp_path):
    """What a lab file says of a machine's folders; its file is named as seen from the lab's."""
    viv = empty_viv
    (folder / "hello").write_text("from the host")
    initrd = tiny.make(full, tmp_path, MOUNT.format("desk") + "echo ANSWER $($b cat /desk/hello)\necho told >/desk/answer\n$b sleep 1000\n",
                       MODULES)
    lab = tmp_path / "desk.yaml"
    lab.write_text(f"""
networks: {{n: {{subnet: 10.1.0.0/24}}}}
machines:
  one: {{kernel: "{full / 'vmlinuz'}", initrd: "{initrd}", append: "console=ttyS0 quiet", memory: 256M, networks: [n], share: ["shared:desk"]}}
""")
    viv.ok("up", lab, limit=BOOT_LIMIT)
    viv.spawn("console", "one", limit=BOOT_LIMIT).expect("ANSWER from the host")
    viv.wait_until(lambda: (folder / "answer").exists(), "the guest's answer")
    viv.ok("down", lab)
    lab.write_text(lab.read_text().replace("shared:desk", "nowhere:desk"))
    viv.fails("up", lab, says=["nowhere", "No such file"])
    assert viv.names() == []


# Counts in a file that it holds open, and in one that it opens anew each time.
COUNT = MOUNT.format("desk") + r"""
cd /desk
exec 3>>held
echo constant >constant
n=0
while :; do
	n=$((n + 1))
	echo "$n" >&3 || echo "HELD FAILS"
	echo "$n" >fresh && [ "$($b cat constant)" = constant ] || echo "FRESH FAILS"
	echo "n=$n."
	$b sleep 0.05
done
"""


class Counting:
    """A machine that counts, and its console."""

    def __init__(self, viv, name):
        self.child = viv.spawn("console", name, limit=BOOT_LIMIT)

    def next(self):
        which = self.child.expect([r"n=(\d+)\.", "HELD FAILS", "FRESH FAILS", "MOUNT FAILED"])
        return int(self.child.match.group(1)) if which == 0 else ("held", "fresh", "mount")[which - 1]

    def goes_on(self):
        first = self.next()
        while self.next() < first + 5:
            pass


@pytest.fixture
def counting(empty_viv, full, folder, tmp_path):
    initrd = tiny.make(full, tmp_path, COUNT, MODULES)
    empty_viv.ok("run", "--name", "a", "--detach", "--kernel", full / "vmlinuz", "--initrd", initrd, "--append",
                 "console=ttyS0 quiet", "--mem", "256M", "--share", f"{folder}:desk")
    return empty_viv


def test_moments(counting, folder, tmp_path):
    """Snapshots, going back, machines from them and copies: files that are open stay so."""
    viv = counting
    Counting(viv, "a").goes_on()
    assert json.loads(viv.ok("info", "--json", "a").stdout)["shares"] == [{"tag": "desk", "path": str(folder), "readonly": False}]
    viv.ok("snapshot", "create", "a", "s")
    assert "fid " in viv.ok("snapshot", "show", "a", "s").stdout
    viv.ok("snapshot", "restore", "a", "s")
    Counting(viv, "a").goes_on()
    viv.ok("fork", "a", "--name", "b")
    Counting(viv, "b").goes_on()
    Counting(viv, "a").goes_on()
    viv.ok("rm", "-f", "b")
    # A snapshot does not say which folder it is: it may come from elsewhere.
    assert str(folder) not in (viv.home / "vms" / "a" / "snapshots" / "s" / "snapshot.json").read_text()
    viv.fails("run", "--from", "a@s", "--name", "c", "--detach", says=["desk", "--share"])
    viv.fails("run", "--from", "a@s", "--name", "c", "--detach", "--share", f"{folder}:other", says=["other"])
    assert viv.names() == ["a"]
    viv.ok("run", "--from", "a@s", "--name", "c", "--detach", "--share", f"{folder}:desk")
    Counting(viv, "c").goes_on()
    viv.ok("rm", "-f", "c")
    # In another folder the file that it held is not there: it is told so, and opens others.
    empty = tmp_path / "empty"
    empty.mkdir()
    viv.ok("run", "--from", "a@s", "--name", "d", "--detach", "--share", f"{empty}:desk")
    d = Counting(viv, "d")
    assert {d.next(), d.next(), d.next(), d.next()} >= {"held"}
    viv.ok("rm", "-f", "d")
    # The reset button: the guest mounts it anew.
    viv.ok("reset", "a")
    Counting(viv, "a").goes_on()
    viv.ok("rm", "-f", "a")


def test_alone(counting, folder, tmp_path):
    """It does not go to another host; and a machine outlives the server of its folder."""
    viv = counting
    Counting(viv, "a").goes_on()
    other = Host(tmp_path / "other")
    listener = other.receive()
    viv.fails("migrate", "a", f"unix:{other.socket}", says=["desk", "does not go along"])
    listener.terminate()
    listener.wait()
    a = Counting(viv, "a")
    a.goes_on()
    servers = [pid for pid in viv.processes() if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "viv-share"]
    assert len(servers) == 1
    status = pathlib.Path(f"/proc/{servers[0]}/status").read_text()
    assert "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status and "CapEff:\t0000000000000000" in status
    os.kill(servers[0], signal.SIGKILL)
    end = time.monotonic() + BOOT_LIMIT
    while a.next() not in ("held", "fresh"):
        assert time.monotonic() < end
    assert next(vm["state"] for vm in viv.list()) == "running"
    viv.ok("rm", "-f", "a")


def test_wrong_options(empty_viv, folder, tmp_path):
    viv, kernel = empty_viv, tmp_path / "kernel"
    kernel.write_bytes(b"")
    for spec, word in ((f"{folder}/nothing", "nothing"), (f"{tmp_path}/secret", "no folder"), (f"{folder}:a/b", "a/b"),
                       (f"{folder}:-x", "-x"), (f"{folder}:t,rw", "rw"), ("", "names no folder")):
        done = viv.run("run", "--kernel", kernel, "--share", spec)
        assert done.returncode in (1, 2) and word in done.stderr, (spec, done.stderr)
    done = viv.run("run", "--kernel", kernel, "--share", f"{folder}:t", "--share", f"{folder}:t")
    assert done.returncode == 2 and "two shared folders" in done.stderr
    assert viv.names() == []
