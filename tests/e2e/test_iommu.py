# SPDX-License-Identifier: Apache-2.0
"""Debian behind an IOMMU: its kernel finds the unit and uses it for disk, network and interrupts."""

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
echo '[all is well]'
"""


def test_debian_uses_it(viv):
    done = viv.ok("run", "--engine", "dbt", "--cpus", 2, "--iommu", "intel", "--device", "edu",
                  "--append", "intel_iommu=on iommu.strict=1", "debian", "--", "sh", "-c", SCRIPT, limit=300)
    for sign in ("DMAR: IOMMU enabled", "DMAR-IR: Enabled IRQ remapping", "Using Queued invalidation",
                 "0000:00:06.0: Adding to iommu group", "1 received", "[all is well]"):
        assert sign in done.stdout, done.stdout + done.stderr
