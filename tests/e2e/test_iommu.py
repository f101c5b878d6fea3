# SPDX-License-Identifier: Apache-2.0
"""Debian behind an IOMMU: its kernel uses the unit for disk, network and interrupts, and gives a device to user space."""
import pathlib

SCRIPT = r"""
set -e
dmesg | grep -E 'DMAR|Adding to iommu group'
dd if=/dev/urandom of=/root/file bs=1M count=8 oflag=direct 2>/dev/null
sum=$(sha256sum </root/file)
sync
echo 3 >/proc/sys/vm/drop_caches
test "$sum" = "$(sha256sum </root/file)"
for i in $(seq 100); do ip -4 route | grep -q ^default && break; sleep 0.2; done
ping -c 1 -W 10 10.0.2.2
grep -E 'IR-PCI-MSI.*virtio' /proc/interrupts
grep -E 'IR-IO-APIC.*ttyS0' /proc/interrupts
! dmesg | grep -E 'DMAR:.*(fault|error|PTE)|needs a reset'
echo 'kernel: all is well'
exec python3 -
"""


def test_debian_uses_it(viv):
    with open(pathlib.Path(__file__).parent / "vfio_edu.py", encoding="utf-8") as program:
        done = viv.ok("run", "--engine", "dbt", "--cpus", 2, "--iommu", "intel", "--device", "edu", "--input",
                      "--append", "intel_iommu=on iommu.strict=1", "debian", "--", "sh", "-c", SCRIPT,
                      stdin=program, limit=300)
    for sign in ("DMAR: IOMMU enabled", "DMAR-IR: Enabled IRQ remapping", "Using Queued invalidation",
                 "0000:00:06.0: Adding to iommu group", "1 received", "kernel: all is well", "vfio: all is well"):
        assert sign in done.stdout, done.stdout + done.stderr
