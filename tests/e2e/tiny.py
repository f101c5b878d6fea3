# SPDX-License-Identifier: Apache-2.0
"""A guest that is up in a moment: Debian's kernel, busybox, and a script as its first process."""
import pathlib
import re
import subprocess


def unpack(initrd, directory):
    """Unpack an uncompressed newc archive (the Debian image's initrd) without needing to be root."""
    with open(initrd, "rb") as archive:
        subprocess.run(["cpio", "-idm", "--quiet", "--no-absolute-filenames"], cwd=directory, stdin=archive, check=True)


def pack(directory, initrd):
    names = sorted(p.relative_to(directory).as_posix() for p in pathlib.Path(directory).rglob("*"))
    with open(initrd, "wb") as archive:
        subprocess.run(["cpio", "-o", "--quiet", "-H", "newc", "-R", "0:0"], cwd=directory, check=True,
                       input="\n".join(names).encode() + b"\n", stdout=archive)
    return initrd


PROLOGUE = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys
exec </dev/console >/dev/console 2>&1
$b stty -onlcr
while read -r module; do $b insmod "/modules/$module"; done </modules/order
"""


# The module of the network card, and what it needs.
NETWORK = ["net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko"]


def add_modules(debian, root, modules):
    """Kernel modules from the image's disk, by their paths below kernel/, to be loaded after those that are there."""
    if not modules:
        return
    disk = debian / "disk.raw"
    names = subprocess.run(["debugfs", "-R", "ls -p /usr/lib/modules", disk], check=True, capture_output=True, text=True).stdout
    version = re.search(r"/([0-9][^/]*-amd64)/", names).group(1)
    for module in modules:
        target = root / "modules" / module.rsplit("/", 1)[1]
        subprocess.run(["debugfs", "-R", f"dump /usr/lib/modules/{version}/kernel/{module} {target}", disk], check=True,
                       capture_output=True)
        assert target.stat().st_size, f"{module} is not in the image"
    with open(root / "modules" / "order", "a", encoding="ascii") as order:
        order.writelines(m.rsplit("/", 1)[1] + "\n" for m in modules)


def make(debian, tmp_path, script, modules=()):
    """An initrd in @tmp_path that runs @script, with the modules of the Debian image and @modules loaded before."""
    root = tmp_path / "tiny"
    root.mkdir()
    unpack(debian / "initrd", root)
    add_modules(debian, root, modules)
    init = root / "init"
    init.unlink()
    init.write_text(PROLOGUE + script)
    init.chmod(0o755)
    return pack(root, tmp_path / "tiny.cpio")
