# SPDX-License-Identifier: Apache-2.0
"""Guests of a few bytes: multiboot images made here, so that tests of the command line need no image."""
import struct

LOAD = 0x100000
MAGIC, BY_ADDRESS = 0x1BADB002, 1 << 16
HEADER = 32


def multiboot(code):
    """@code runs in 32-bit protected mode, in the first CPU, with interrupts off."""
    header = struct.pack("<8I", MAGIC, BY_ADDRESS, -(MAGIC + BY_ADDRESS) & 0xFFFFFFFF,
                         LOAD, LOAD, 0, 0, LOAD + HEADER)
    return header + code


def outb(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"  # mov dx; mov al; out


def outw(port, value):
    return b"\x66\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<H", value) + b"\x66\xef"


def say(text):
    return b"".join(outb(0x3F8, byte) for byte in text.encode())


def debug_exit(value):
    return outb(0xF4, value)


POWER_OFF = outw(0x604, 1 << 13 | 5 << 10)
RESET = outb(0xCF9, 0x02) + outb(0xCF9, 0x06)
TRIPLE_FAULT = b"\x0f\x01\x1d" + struct.pack("<I", LOAD + 8) + b"\xcc"  # lidt of 6 bytes of nonsense, int3
SLEEP = b"\xf4\xeb\xfd"  # 1: hlt; jmp 1b
# 1: wait for a byte on the serial port, send it back
ECHO = bytes.fromhex("66bafd03" "ec" "a801" "74fb" "66baf803" "ec" "ee" "ebef")
