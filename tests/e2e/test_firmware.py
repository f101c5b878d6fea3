# SPDX-License-Identifier: Apache-2.0
"""Firmware that none of us wrote, and what it starts from a disk."""
import bootdisk
import pexpect
import pytest
import tiny

OVMF = "/usr/share/ovmf/OVMF.fd"
U_BOOT = "/usr/lib/u-boot/qemu-{}/u-boot.rom"
MEMTEST = "/boot/memtest86+{}.bin"
HELLO = 'echo "up, told: $($b cat /proc/cmdline)"\n$b poweroff -f\n'
SERIAL = "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\necho GRUB is here\n"


def ends_with_status_0(child):
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before[-2000:]


def test_ovmf_shell(empty_viv):
    child = empty_viv.spawn("run", "--mem", "256M", "--firmware", OVMF)
    child.expect("UEFI Interactive Shell")
    child.expect("Shell> ")
    child.send("ver\r")
    child.expect("EDK II")
    child.expect("Shell> ")
    child.send("reset -s\r")
    ends_with_status_0(child)


def test_ovmf_starts_grub_and_linux(empty_viv, debian, tmp_path):
    """OVMF finds the EFI system partition on a virtio disk; GRUB, then Linux with EFI services."""
    config = "echo GRUB is here\nsearch --file --set=root /vmlinuz\nlinux /vmlinuz console=ttyS0 by=grub\ninitrd /initrd\nboot\n"
    initrd = tiny.make(debian, tmp_path, "$b test -d /sys/firmware/efi && echo EFI is there\n" + HELLO)
    disk = bootdisk.efi_disk(tmp_path / "efi.raw", tmp_path, {
        "EFI/BOOT/BOOTX64.EFI": bootdisk.grub_efi(tmp_path, config), "vmlinuz": debian / "vmlinuz", "initrd": initrd})
    done = empty_viv.run("run", "--mem", "512M", "--firmware", OVMF, "--disk", disk, limit=200)
    assert done.returncode == 0, done.stderr
    assert "GRUB is here" in done.stdout
    assert "EFI is there" in done.stdout, done.stdout[-2000:]
    assert "by=grub" in done.stdout.split("up, told:")[1]


def test_seabios_starts_grub_and_debian(empty_viv, debian, tmp_path):
    disk = bootdisk.debian_disk(debian, tmp_path / "bios.raw", tmp_path, SERIAL + (
        "set root=(hd0,msdos1)\nlinux /boot/vmlinuz root=/dev/vda1 rw console=ttyS0\ninitrd /boot/initrd\nboot\n"))
    child = empty_viv.spawn("run", "--mem", "512M", "--disk", disk)
    child.expect("GRUB is here")
    child.expect("root@debian:~# ")
    child.send("findmnt -no SOURCE /\r")
    child.expect("/dev/vda1")
    child.send("poweroff\r")
    ends_with_status_0(child)


@pytest.mark.parametrize("board", ["x86", "x86_64"])
def test_u_boot_prompt(empty_viv, board):
    child = empty_viv.spawn("run", "--mem", "256M", "--firmware", U_BOOT.format(board))
    child.expect("Hit any key to stop autoboot")
    child.send(" ")
    child.expect("=> ")
    child.send("version\r")
    child.expect("U-Boot 20")
    child.expect("=> ")
    child.send("reset\r")
    child.expect("Hit any key to stop autoboot")


@pytest.mark.parametrize("kind", ["x64", "ia32"])
def test_memtest(empty_viv, kind):
    """Tests 0 to 9 find no error; test 10 waits for minutes."""
    child = empty_viv.spawn("run", "--mem", "16M", "--kernel", MEMTEST.format(kind), "--append", "console=ttyS0")
    child.expect("Memtest86\\+")
    child.expect("Vivarium Virtual CPU")
    child.expect("#10 +\\[Bit fade test")
    child.expect("Errors: ([0-9]+) ")
    assert child.match.group(1) == "0"
