# SPDX-License-Identifier: Apache-2.0
"""Seeds for cloud-init: what the guest reads from its disk "cidata", and where that disk goes with the machine.

The default image has no cloud-init: here the guest mounts the seed itself.
"""
import json
import re
import subprocess

import pytest
import yaml

from conftest import BOOT_LIMIT

READ = "mount -o ro LABEL=cidata /mnt && cd /mnt && cat user-data; echo; echo ----; cat meta-data; echo ----; cat network-config 2>/dev/null; cd /; umount /mnt"


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "it's: #1", "-f", path], check=True)
    return tmp_path / "id.pub"


def read_seed(text):
    user, meta, net = text.split("----\n")
    assert user.startswith("#cloud-config\n")
    return yaml.safe_load(user), yaml.safe_load(meta), net


def test_seed_goes_along(viv, key, tmp_path):
    """What was said is what the guest reads; a snapshot, a copy and a machine made of a snapshot have it without the first one."""
    net = tmp_path / "net.yaml"
    net.write_text("version: 2\n")
    viv.ok("run", "--detach", "--name", "web", "--mem", "512M", "--cloud-init", f"user=no,ssh-key={key},packages=nginx+curl",
           "--cloud-init", "password=it's, a: \"secret\"".replace(",", ",,"), "--network-config", net, "debian", limit=BOOT_LIMIT)
    viv.wait_until(lambda: viv.run("exec", "--timeout", "30s", "web", "--", "true").returncode == 0, "the agent answers", BOOT_LIMIT)
    text = viv.ok("exec", "web", "--", "sh", "-c", READ, limit=BOOT_LIMIT).stdout
    user, meta, network = read_seed(text)
    assert user["user"] == {"name": "no"} and user["packages"] == ["nginx", "curl"]
    own = (viv.home / "ssh/id_ed25519.pub").read_text().strip()
    assert user["ssh_authorized_keys"] == [key.read_text().strip(), own]
    assert re.fullmatch(r"\$6\$[./0-9A-Za-z]{16}\$[./0-9A-Za-z]{86}", user["password"])
    assert meta["local-hostname"] == "web" and re.fullmatch("iid-[0-9a-f]{16}", meta["instance-id"])
    assert network == "version: 2\n"
    # nobody can write it, and no password is anywhere
    assert viv.ok("exec", "web", "--", "sh", "-c", "cat /sys/block/vdb/ro", limit=BOOT_LIMIT).stdout == "1\n"
    machine = viv.home / "vms/web"
    assert (machine / "seed.iso").stat().st_mode & 0o777 == 0o600
    assert json.loads((machine / "machine.json").read_text())["login"] == "no"
    for file in machine.iterdir():
        assert not file.is_file() or file.name == "disk.raw" or b"secret" not in file.read_bytes(), file

    viv.ok("snapshot", "create", "web", "s", limit=BOOT_LIMIT)
    viv.ok("fork", "web", "--name", "copy", limit=BOOT_LIMIT)
    viv.ok("run", "--from", "web@s", "--name", "of-snapshot", "--detach", limit=BOOT_LIMIT)
    viv.ok("snapshot", "export", "web", "s", tmp_path / "s.viv", limit=BOOT_LIMIT)
    viv.ok("rm", "--force", "web")
    for name in "copy", "of-snapshot":
        # the same instance goes on: cloud-init there has nothing to do again
        assert viv.ok("exec", name, "--", "sh", "-c", f"echo 3 >/proc/sys/vm/drop_caches; {READ}", limit=BOOT_LIMIT).stdout == text
        viv.ok("rm", "--force", name)


def test_options(empty_viv, key, tmp_path):
    viv, kernel = empty_viv, tmp_path / "kernel"
    kernel.write_bytes(b"")
    for words, says in [(["--cloud-init", "user=Ann"], "Ann"), (["--cloud-init", f"ssh-key={tmp_path / 'id'}"], "private key"),
                        (["--meta-data", key], "instance-id"), (["--user-data", key, "--cloud-init", "user=ann"], "in place of"),
                        (["--from", "a@b", "--cloud-init", "user=ann"], "--from")]:
        viv.fails("run", "--kernel", kernel, *words, status=2, says=[says])
    viv.fails("run", "--kernel", kernel, "--user-data", tmp_path / "none", says=["none"])
    hidden = viv.fails("run", "--kernel", kernel, "--cloud-init", "password=geheim,nichts", status=2)
    assert "geheim" not in hidden.stderr and "nichts" not in hidden.stderr
    assert viv.list() == []
