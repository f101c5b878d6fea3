# SPDX-License-Identifier: Apache-2.0
"""Runs inside a guest, as root: drives the edu device from user space through VFIO.

DMA reaches what this process has mapped for the device, and nothing else; the device's MSI arrives as an event.
linux/vfio.h has the numbers.  The last line is "vfio: all is well".
"""
import ctypes
import fcntl
import glob
import mmap
import os
import pathlib
import select
import struct
import subprocess
import time

SET_IOMMU, GROUP_STATUS, SET_CONTAINER, GET_DEVICE_FD = 0x3B66, 0x3B67, 0x3B68, 0x3B6A
REGION_INFO, SET_IRQS, MAP_DMA, UNMAP_DMA = 0x3B6C, 0x3B6E, 0x3B71, 0x3B72
TYPE1, BAR0, CONFIG, MSI = 1, 0, 7, 1
IOVA, BUFFER, PAGE = 0x100000, 0x40000, 4096


def wait_for(condition, what):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def device():
    return next(pathlib.Path(d) for d in glob.glob("/sys/bus/pci/devices/*")
                if pathlib.Path(d, "vendor").read_text().strip() == "0x1234")


def open_device(dev):
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    (dev / "driver_override").write_text("vfio-pci")
    pathlib.Path("/sys/bus/pci/drivers_probe").write_text(dev.name)
    number = (dev / "iommu_group").resolve().name
    wait_for(lambda: os.path.exists(f"/dev/vfio/{number}"), "no VFIO group")
    container, group = os.open("/dev/vfio/vfio", os.O_RDWR), os.open(f"/dev/vfio/{number}", os.O_RDWR)
    status = fcntl.ioctl(group, GROUP_STATUS, struct.pack("II", 8, 0))
    assert struct.unpack("II", status)[1] & 1, "the group is not viable"
    fcntl.ioctl(group, SET_CONTAINER, struct.pack("i", container))
    fcntl.ioctl(container, SET_IOMMU, TYPE1)
    return container, fcntl.ioctl(group, GET_DEVICE_FD, ctypes.create_string_buffer(dev.name.encode(), 64))


def region(fd, index):
    info = fcntl.ioctl(fd, REGION_INFO, struct.pack("IIIIQQ", 32, 0, index, 0, 0, 0))
    return struct.unpack("IIIIQQ", info)[4:]


class Edu:
    def __init__(self, fd):
        size, offset = region(fd, BAR0)
        config = region(fd, CONFIG)[1]
        os.pwrite(fd, struct.pack("<H", 0x0006), config + 4)  # memory, bus master
        self.bar = mmap.mmap(fd, size, offset=offset)

    def reg(self, at, wide=False):
        return (ctypes.c_uint64 if wide else ctypes.c_uint32).from_buffer(self.bar, at)

    def dma(self, source, destination, count, command):
        self.reg(0x80, True).value = source
        self.reg(0x88, True).value = destination
        self.reg(0x90, True).value = count
        self.reg(0x98).value = command | 1
        wait_for(lambda: not self.reg(0x98).value & 1, "DMA does not end")


def faults():
    return subprocess.run(["dmesg"], capture_output=True, text=True).stdout.count("DMAR: [DMA")


def main():
    dev = device()
    container, fd = open_device(dev)
    edu = Edu(fd)
    assert edu.reg(0).value == 0x010000ED

    memory = mmap.mmap(-1, 2 * PAGE)
    where = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(container, MAP_DMA, struct.pack("IIQQQ", 32, 3, where, IOVA, PAGE))
    memory[:16] = b"from user space."
    memory[PAGE:PAGE + 16] = b"not the device's"
    edu.dma(IOVA, BUFFER, 16, 0)
    edu.dma(BUFFER, IOVA + 100, 16, 2)
    assert memory[100:116] == b"from user space.", memory[100:116]
    print("vfio: DMA reaches what is mapped")

    before = faults()
    edu.dma(BUFFER, IOVA + PAGE, 16, 2)  # the page behind
    assert memory[PAGE:PAGE + 16] == b"not the device's"
    wait_for(lambda: faults() > before, "no fault is told")
    fcntl.ioctl(container, UNMAP_DMA, struct.pack("IIQQ", 24, 0, IOVA, PAGE))
    memory[200:216] = b"taken back again"
    edu.dma(BUFFER, IOVA + 200, 16, 2)
    assert memory[200:216] == b"taken back again"
    print("vfio: DMA reaches nothing else")

    event = os.eventfd(0)
    fcntl.ioctl(fd, SET_IRQS, struct.pack("IIIIIi", 24, 1 << 2 | 1 << 5, MSI, 0, 1, event))
    edu.reg(0x60).value = 1
    assert select.select([event], [], [], 20)[0], "no interrupt comes"
    assert os.eventfd_read(event) == 1 and edu.reg(0x24).value == 1
    edu.reg(0x64).value = 1
    print("vfio: the interrupt comes")
    print("vfio: all is well")


main()
