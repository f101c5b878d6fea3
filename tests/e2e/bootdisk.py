# SPDX-License-Identifier: Apache-2.0
"""Disks that firmware boots, made from Debian's GRUB without root, mounts or a loop device."""
import os
import pathlib
import struct
import subprocess

SECTOR = 512
FIRST = 2048  # first sector of the first partition: the megabyte before it is the boot loader's
GRUB = pathlib.Path("/usr/lib/grub")


def run(*args, **options):
    env = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run([str(a) for a in args], check=True, env=env, stdout=subprocess.DEVNULL, **options)


def mbr(disk, partitions):
    """Write a partition table: @partitions are (type, first sector, sectors)."""
    table = b"".join(struct.pack("<B3sB3sII", 0x80 if n == 0 else 0, b"\0\xff\xff", kind, b"\xff\xff\xff", first, count)
                     for n, (kind, first, count) in enumerate(partitions))
    with open(disk, "r+b") as f:
        f.seek(446)
        f.write(table.ljust(64, b"\0") + b"\x55\xaa")


def core_image(tmp_path, config, modules):
    """GRUB's core.img for a PC's BIOS, with @config inside."""
    early = tmp_path / "early.cfg"
    early.write_text(config)
    core = tmp_path / "core.img"
    run("grub-mkimage", "-O", "i386-pc", "-p", "/", "-c", early, "-o", core, *modules)
    return core.read_bytes()


def install_bios(disk, tmp_path, config):
    """GRUB into the boot sector and the sectors after it, as grub-bios-setup would (GRUB manual, 'BIOS installation')."""
    core = bytearray(core_image(tmp_path, config, ["biosdisk", "part_msdos", "ext2", "linux", "serial", "terminal", "echo",
                                                   "normal", "reboot", "halt", "ls"]))
    core += b"\0" * (-len(core) % SECTOR)
    # the first sector of core.img loads the rest: one run of blocks, whose list ends that sector
    struct.pack_into("<QHH", core, SECTOR - 12, 2, len(core) // SECTOR - 1, 0x820)
    assert len(core) // SECTOR < FIRST
    boot = bytearray((GRUB / "i386-pc" / "boot.img").read_bytes())
    struct.pack_into("<Q", boot, 0x5C, 1)  # where core.img is
    struct.pack_into("<H", boot, 0x66, 0x9090)  # trust the drive number that the BIOS gives
    with open(disk, "r+b") as f:
        f.write(boot[:440])
        f.seek(SECTOR)
        f.write(core)


def debugfs(image, *commands):
    env = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    subprocess.run(["debugfs", "-w", "-f", "-", image], input="\n".join(commands), text=True, check=True, env=env,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def debian_disk(debian, disk, tmp_path, config):
    """The Debian image's file system, with kernel and initrd in /boot, as first partition of a disk that a BIOS boots."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", debian / "disk.raw", tmp_path / "root.raw"], check=True)
    root = tmp_path / "root.raw"
    debugfs(root, "cd /boot", f"write {debian / 'vmlinuz'} vmlinuz", f"write {debian / 'initrd'} initrd")
    size = root.stat().st_size
    with open(disk, "wb") as f:
        f.truncate(FIRST * SECTOR + size)
    subprocess.run(["dd", f"if={root}", f"of={disk}", "bs=1M", f"seek={FIRST * SECTOR >> 20}", "conv=sparse,notrunc"],
                   check=True, stderr=subprocess.DEVNULL)
    root.unlink()
    mbr(disk, [(0x83, FIRST, size // SECTOR)])
    install_bios(disk, tmp_path, config)
    return disk


def efi_disk(disk, tmp_path, files, mib=64):
    """A disk with one EFI system partition (FAT) that holds @files: {path in it: path here or bytes}."""
    fat = tmp_path / "esp.raw"
    with open(fat, "wb") as f:
        f.truncate(mib << 20)
    run("mformat", "-i", fat, "-F", "::")
    made = set()
    for path, source in files.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in made:
                run("mmd", "-i", fat, f"::/{folder}")
                made.add(folder)
        if isinstance(source, bytes):
            (tmp_path / "part").write_bytes(source)
            source = tmp_path / "part"
        run("mcopy", "-i", fat, source, f"::/{path}")
    with open(disk, "wb") as f:
        f.seek(FIRST * SECTOR)
        f.write(fat.read_bytes())
    fat.unlink()
    mbr(disk, [(0xEF, FIRST, (mib << 20) // SECTOR)])
    return disk


def grub_efi(tmp_path, config):
    """GRUB as an EFI application with @config inside."""
    early = tmp_path / "early-efi.cfg"
    early.write_text(config)
    out = tmp_path / "grubx64.efi"
    run("grub-mkimage", "-O", "x86_64-efi", "-p", "/", "-c", early, "-o", out, "part_msdos", "fat", "ext2", "linux", "echo",
        "normal", "search", "search_fs_file", "serial", "terminal")
    return out
