# SPDX-License-Identifier: Apache-2.0
"""Files to and from a Debian guest, and logins by SSH with a key that nobody had to carry there."""
import contextlib
import hashlib
import os
import pathlib
import re
import socket
import subprocess

import pytest

from conftest import BOOT_LIMIT


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def guest(viv):
    viv.ok("run", "--detach", "--name", "m", "debian", limit=BOOT_LIMIT)
    viv.wait_until(lambda: viv.run("exec", "--timeout", "30s", "m", "--", "true").returncode == 0, "the agent answers", BOOT_LIMIT)
    yield viv
    viv.ok("rm", "--force", "m")


def sh(viv, script):
    return viv.ok("exec", "m", "--", "sh", "-c", script, limit=BOOT_LIMIT).stdout


def test_cp(guest, tmp_path):
    viv, big = guest, tmp_path / "big"
    big.write_bytes(os.urandom(4_000_001))  # several pieces, the last one short
    big.chmod(0o640)
    assert viv.ok("cp", big, "m:/root/", limit=BOOT_LIMIT).stderr == ""
    digest = subprocess.run(["sha256sum", big], check=True, capture_output=True, text=True).stdout.split()[0]
    assert sh(viv, "sha256sum </root/big; stat -c %a /root/big").split() == [digest, "-", "640"]
    viv.ok("cp", "m:/root/big", tmp_path / "back", limit=BOOT_LIMIT)
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    assert (tmp_path / "back").stat().st_mode & 0o7777 == 0o640
    # within a machine, over what is there; empty; names that are no words
    (tmp_path / "empty").touch()
    name = "-x 'a\"; $(touch bad)"
    viv.ok("cp", tmp_path / "empty", f"m:/root/{name}", limit=BOOT_LIMIT)
    viv.ok("cp", "m:/root/big", f"m:/root/{name}", limit=BOOT_LIMIT)
    assert "bad" not in sh(viv, "ls /root /").replace(name, "").split()
    viv.ok("cp", f"m:/root/{name}", tmp_path / name, limit=BOOT_LIMIT)
    assert (tmp_path / name).read_bytes() == big.read_bytes()

    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").write_text("hello")
    (tree / "sub").chmod(0o700)
    (tree / "link").symlink_to("sub/file")
    viv.fails("cp", tree, "m:/root/", says=["--recursive"])
    viv.ok("cp", "-r", tree, "m:/root/", limit=BOOT_LIMIT)
    viv.ok("cp", "-r", "m:/root/tree/", tmp_path / "tree2", limit=BOOT_LIMIT)
    assert (tmp_path / "tree2/link").readlink().as_posix() == "sub/file" and (tmp_path / "tree2/link").read_text() == "hello"
    assert (tmp_path / "tree2/sub").stat().st_mode & 0o777 == 0o700

    sh(viv, "mkdir /root/odd; mkfifo /root/odd/pipe; chmod 4755 /root/big")
    viv.fails("cp", "-r", "m:/root/odd", tmp_path / "odd", says=["devices"])
    assert not (tmp_path / "odd").exists()
    viv.ok("cp", "m:/root/big", tmp_path / "suid", limit=BOOT_LIMIT)
    assert (tmp_path / "suid").stat().st_mode & 0o7777 == 0o755
    viv.fails("cp", "m:/nosuch", tmp_path / "x", says=["m:/nosuch"])
    viv.fails("cp", "m:/dev/null", tmp_path / "x", says=["/dev/null"])
    viv.fails("cp", big, "m:/nosuch/x", says=["/nosuch/x"])
    viv.fails("cp", big, "m:here", says=["m:here"])
    viv.fails("cp", big, tmp_path / "x", says=["MACHINE:/PATH"])
    viv.fails("cp", big, "nobody:/x", says=["nobody"])
    assert not list(tmp_path.glob("*.viv-*")) and sh(viv, "ls -d /root/*.viv-* /var/tmp/viv-cp* 2>/dev/null; true") == ""


def test_ssh(guest):
    viv = guest
    sh(viv, "useradd --create-home --shell /bin/sh guestuser")
    assert viv.ok("ssh", "m", "--", "id -un; echo $SSH_CONNECTION | cut -d' ' -f4", limit=BOOT_LIMIT).stdout == "root\n22\n"
    assert viv.run("ssh", "m", "--", "exit 7", limit=BOOT_LIMIT).returncode == 7
    assert viv.ok("ssh", "--user", "guestuser", "m", "--", "whoami", limit=BOOT_LIMIT).stdout == "guestuser\n"
    viv.fails("ssh", "--user", "nobodyatall", "m", "--", "true", says=["nobodyatall"], limit=BOOT_LIMIT)
    viv.fails("ssh", "--user", "-oProxyCommand=x", "m", says=["no name of a user"])
    known, key = viv.home / "vms/m/known_hosts", viv.home / "ssh/id_ed25519"
    assert len(known.read_text().splitlines()) >= 1 and key.stat().st_mode & 0o777 == 0o600
    # Who answers with another key than the guest's agent told is not talked to: sshd goes on with keys that are gone from its folder.
    sh(viv, "cp -r /etc/ssh /root/ssh.old; rm /etc/ssh/ssh_host_*; ssh-keygen -q -A; mkdir /root/new; cp /etc/ssh/ssh_host_* /root/new;"
            "cp /root/ssh.old/ssh_host_* /etc/ssh/; for f in /etc/ssh/ssh_host_*.pub; do cp /root/new/${f##*/} $f; done")
    refused = viv.run("ssh", "m", "--", "true", limit=BOOT_LIMIT)
    assert refused.returncode == 255 and "host key" in refused.stderr.lower(), refused.stderr
    sh(viv, "cp /root/ssh.old/ssh_host_*.pub /etc/ssh/")
    viv.ok("ssh", "m", "--", "true", limit=BOOT_LIMIT)
    # Nothing of it listens on a port of this host.
    assert not [line for line in listening() if line in inodes(viv)]
    # Other ports, as a stream of bytes; nobody there.
    banner = viv.run("tunnel", "m", "22", input="x\n", stdin=None)
    assert banner.returncode == 0 and banner.stdout.startswith("SSH-2.0-"), banner
    viv.fails("tunnel", "m", "1", says=["port 1 "])
    viv.fails("tunnel", "m", "0", status=2, says=["no port"])
    assert viv.run("ssh", "m", "--", "cat >/root/many; sha256sum </root/many", input="0123456789" * 300_000, stdin=None,
                   limit=BOOT_LIMIT).stdout.split()[0] == hashlib.sha256(b"0123456789" * 300_000).hexdigest()
    viv.ok("stop", "--force", "m")
    viv.fails("ssh", "m", "--", "true", says=["not running"])
    viv.fails("tunnel", "m", "22", says=["not running"])
    viv.ok("set", "m", "--net", "none")
    viv.fails("ssh", "m", "--", "true", says=["--net nat"])


def listening():
    """Inodes of TCP sockets that listen in this network namespace."""
    rows = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:] + pathlib.Path("/proc/net/tcp6").read_text().splitlines()[1:]
    return [row.split()[9] for row in rows if row.split()[3] == "0A"]


def inodes(viv):
    """Of sockets that this home's processes hold."""
    found = []
    for pid in viv.processes():
        for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found += re.findall(r"socket:\[(\d+)\]", os.readlink(fd))
    return found


def test_forward_still_leads_there(viv):
    """With a port of this host, whoever knows it gets there; viv ssh needs none."""
    port = free_port()
    viv.ok("run", "--detach", "--name", "m", "--forward", f"{port}:22", "debian", limit=BOOT_LIMIT)
    viv.wait_until(lambda: viv.run("exec", "--timeout", "30s", "m", "--", "true").returncode == 0, "the agent answers", BOOT_LIMIT)
    assert viv.ok("ssh", "m", "--", "echo here", limit=BOOT_LIMIT).stdout == "here\n"
    with socket.create_connection(("127.0.0.1", port), timeout=BOOT_LIMIT) as s:
        assert s.recv(8) == b"SSH-2.0-"
    viv.ok("rm", "--force", "m")
