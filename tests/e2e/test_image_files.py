# SPDX-License-Identifier: Apache-2.0
"""Image files: the verbs of `viv image` on raw and qcow2, and a Debian that lives on qcow2."""
import json
import shutil
import subprocess

import pytest

MIB = 1 << 20


def qemu_img(*args):
    done = subprocess.run(["qemu-img", *map(str, args)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"qemu-img {args}: {done.stdout}{done.stderr}"
    return done.stdout


def info(viv, path, *options):
    return json.loads(viv.ok("image", "info", "--json", *options, path).stdout)


@pytest.fixture
def base(tmp_path):
    """A raw image with something in it, and a hole."""
    path = tmp_path / "base.raw"
    with open(path, "wb") as file:
        file.write(bytes(range(256)) * 4096)
        file.truncate(8 * MIB)
    return path


def test_create_and_look(empty_viv, tmp_path):
    path = tmp_path / "a.qcow2"
    empty_viv.ok("image", "create", path, "1G")
    assert info(empty_viv, path)["size"] == 1024 * MIB
    qemu_img("check", path)
    empty_viv.fails("image", "create", path, "1G", says=["exists", path])
    empty_viv.ok("image", "create", "--force", "--extended-l2", "--cluster-size", "128K", "--refcount-bits", "8", path, "2G")
    told = info(empty_viv, path)
    assert told["extended_l2"] and told["cluster_bytes"] == 128 << 10 and told["refcount_bits"] == 8
    assert json.loads(qemu_img("info", "--output=json", path))["format-specific"]["data"]["extended-l2"]
    assert "no errors" in empty_viv.ok("image", "check", path).stdout
    empty_viv.fails("image", "create", tmp_path / "b.qcow2", says=["size"])
    empty_viv.fails("image", "create", tmp_path / "b.qcow2", "1X", says=["1X"])
    empty_viv.fails("image", "create", tmp_path / "noname", "1G", says=["format"])
    empty_viv.fails("image", "info", tmp_path / "none.qcow2", says=["none.qcow2"])
    empty_viv.fails("image", "frob", status=2)
    empty_viv.fails("image", "resize", path, "1G", says=["--shrink"])
    empty_viv.ok("image", "resize", path, "3G")
    assert info(empty_viv, path)["size"] == 3072 * MIB


def test_convert_and_layers(empty_viv, tmp_path, base):
    packed, top, raw = tmp_path / "packed.qcow2", tmp_path / "top.qcow2", tmp_path / "copy.raw"
    empty_viv.ok("image", "convert", "-c", "--compression", "zstd", base, packed)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", base, packed)
    assert packed.stat().st_size < MIB
    empty_viv.ok("image", "convert", packed, raw)
    assert raw.read_bytes() == base.read_bytes()

    empty_viv.ok("image", "create", top, "--backing", "packed.qcow2")
    assert info(empty_viv, top)["backing"] == "packed.qcow2"
    qemu_img("compare", "-f", "raw", "-F", "qcow2", base, top)
    empty_viv.fails("image", "flatten", top, says=["packed.qcow2", "allow"])
    empty_viv.ok("image", "rebase", top, "base.raw", "--backing", tmp_path)
    assert info(empty_viv, top)["backing_format"] == "raw"
    empty_viv.ok("image", "commit", top, "--backing", base)
    empty_viv.ok("image", "flatten", top, "--backing", base)
    assert info(empty_viv, top)["backing"] is None
    empty_viv.ok("image", "compact", top)
    qemu_img("check", top)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", base, top)


def test_damage(empty_viv, tmp_path, base):
    path = tmp_path / "a.qcow2"
    empty_viv.ok("image", "convert", base, path)
    with open(path, "r+b") as file:  # the block of reference counts
        file.seek(3 << 16)
        file.write(bytes(4096))
    empty_viv.fails("image", "check", path, says=["damaged"])
    empty_viv.ok("image", "check", "--repair", path)
    assert json.loads(empty_viv.ok("image", "check", "--json", path).stdout)["errors"] == 0
    qemu_img("check", path)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", base, path)


@pytest.mark.parametrize("kind, name", [("vmdk", "a.vmdk"), ("vhdx", "a.vhdx"), ("vdi", "a.vdi"), ("vpc", "a.vhd")])
def test_import(empty_viv, tmp_path, base, kind, name):
    qemu_img("convert", "-f", "raw", "-O", kind, *(["-o", "force_size"] if kind == "vpc" else []), base, tmp_path / name)
    empty_viv.ok("image", "import", tmp_path / name, tmp_path / "b.qcow2")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", base, tmp_path / "b.qcow2")
    empty_viv.fails("image", "import", tmp_path / name, tmp_path / "b.qcow2", says=["exists"])


def test_import_without_qemu_img(empty_viv, tmp_path):
    empty_viv.env["PATH"] = str(tmp_path)
    empty_viv.fails("image", "import", tmp_path / "a.vmdk", tmp_path / "b.qcow2", says=["qemu-utils"])
    empty_viv.fails("image", "import", tmp_path / "a.bin", tmp_path / "b.qcow2", says=["none of"])


def test_debian_on_qcow2(viv, debian, tmp_path):
    """A machine on a layer on a qcow2 image: what the guest wrote is there, and every image is whole."""
    store = viv.home / "images" / "debq"
    store.mkdir()
    for name in ("vmlinuz", "initrd"):
        shutil.copy(debian / name, store / name)
    told = json.loads((debian / "image.json").read_text())
    told.update(name="debq", disk="disk.qcow2", disk_format="qcow2")
    (store / "image.json").write_text(json.dumps(told))
    viv.ok("image", "convert", debian / "disk.raw", store / "disk.qcow2", limit=300)

    base, data = tmp_path / "data.qcow2", tmp_path / "top.qcow2"
    viv.ok("image", "create", base, "64M")
    viv.ok("image", "create", data, "--backing", "data.qcow2", "--extended-l2")
    viv.fails("run", "--disk", data, "debq", "--", "true", says=["data.qcow2", "backing="])
    script = ("mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && cp -a /usr/bin /mnt && sync && cd /usr/bin && "
              "find . -type f -exec sha256sum {} + >/mnt/sums && umount /mnt && mount /dev/vdb /mnt && fstrim /mnt && "
              "cd /mnt/bin && sha256sum --quiet -c ../sums && echo same")
    disk = f"{data},format=qcow2,backing={tmp_path},iops=100000,bps=1G"
    done = viv.ok("run", "--disk", disk, "debq", "--", "sh", "-c", script, limit=600)
    assert done.stdout.splitlines()[-1] == "same"
    for path in (store / "disk.qcow2", base, data):
        qemu_img("check", path)
        assert "no errors" in viv.ok("image", "check", path).stdout
    raw = tmp_path / "data.raw"
    viv.ok("image", "convert", data, raw, "--backing", base)
    assert subprocess.run(["e2fsck", "-fn", raw], capture_output=True, check=False).returncode == 0
