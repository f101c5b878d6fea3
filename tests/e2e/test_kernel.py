# SPDX-License-Identifier: Apache-2.0
"""A kernel and an initrd of one's own."""
import pexpect
import pytest
import tiny


def run_tiny(viv, debian, tmp_path, script, *options, **keywords):
    initrd = tiny.make(debian, tmp_path, script)
    return viv.run("run", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0",
                   "--mem", "512M", *options, limit=200, **keywords)


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_boots_a_kernel(empty_viv, debian, tmp_path, cpus):
    done = run_tiny(empty_viv, debian, tmp_path, 'echo "up: $($b nproc)"\n$b poweroff -f\n', "--cpus", cpus)
    assert done.returncode == 0, done.stderr
    assert f"up: {cpus}\n" in done.stdout
    assert empty_viv.names() == []


def test_memory_is_what_was_asked_for(empty_viv, debian, tmp_path):
    done = run_tiny(empty_viv, debian, tmp_path, "$b grep MemTotal /proc/meminfo\n$b poweroff -f\n", "--mem", "2G")
    total = int(done.stdout.split("MemTotal:")[1].split()[0])
    assert 0.9 * 2 * 1024 * 1024 < total <= 2 * 1024 * 1024


DISK_TWICE = """
read -r word </dev/vda
echo "disk says: $word"
case $word in
first) echo second | $b dd of=/dev/vda conv=notrunc,fsync 2>/dev/null; $b reboot -f ;;
*) $b poweroff -f ;;
esac
"""


def test_disk_is_written_and_reboot_starts_over(empty_viv, debian, tmp_path):
    disk = tmp_path / "small.raw"
    disk.write_bytes(b"first\n".ljust(1024 * 1024, b"\0"))
    done = run_tiny(empty_viv, debian, tmp_path, DISK_TWICE, "--disk", disk)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("disk says: first") < done.stdout.index("disk says: second")
    assert disk.read_bytes().startswith(b"second\n"), "what the guest wrote is not in the file"
    assert disk.stat().st_size == 1024 * 1024


def test_readonly_disk_is_not_written(empty_viv, debian, tmp_path):
    disk = tmp_path / "small.raw"
    disk.write_bytes(b"first\n".ljust(1024 * 1024, b"\0"))
    script = 'echo x | $b dd of=/dev/vda conv=notrunc,fsync && echo written || echo refused\n$b poweroff -f\n'
    done = run_tiny(empty_viv, debian, tmp_path, script, "--disk", f"{disk},ro")
    assert "refused" in done.stdout and "written" not in done.stdout, done.stdout[-2000:]
    assert disk.read_bytes().startswith(b"first\n")


def test_panic_leaves_a_machine_that_can_be_left(empty_viv, debian):
    """Without an initrd there is no root: the kernel panics and stays; Ctrl-] leaves."""
    child = empty_viv.spawn("run", "--kernel", debian / "vmlinuz", "--append", "console=ttyS0", "--mem", "512M")
    child.expect("Kernel panic - not syncing")
    child.send("\x1d")
    child.expect(pexpect.EOF, timeout=60)
    child.close()
    assert child.signalstatus is None and child.exitstatus in (0, 1)


def test_engine_is_told(empty_viv, debian, tmp_path):
    done = run_tiny(empty_viv, debian, tmp_path, "$b poweroff -f\n", "--engine", "auto")
    assert done.returncode == 0
    assert "dbt" in done.stderr or "kvm" in done.stderr, "the engine was chosen silently"


def test_engine_kvm_serves_or_says_why_not(empty_viv, debian, tmp_path):
    done = run_tiny(empty_viv, debian, tmp_path, "echo up\n$b poweroff -f\n", "--engine", "kvm")
    if done.returncode == 0:
        assert "up" in done.stdout
    else:
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1 and "kvm" in done.stderr.lower(), done.stderr
