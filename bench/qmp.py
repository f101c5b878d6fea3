# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor (QMP, docs/interop/qmp-spec.rst)."""
import json
import socket
import time


class Failed(Exception):
    """QEMU says that a command failed."""


class Qmp:
    """A connection to the socket @path, which may still be on its way: qmp(command, argument=value, ...)."""

    def __init__(self, path, limit=30):
        self.socket = socket.socket(socket.AF_UNIX)
        end = time.monotonic() + limit
        while True:
            try:
                self.socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self.file = self.socket.makefile("r")
        self.file.readline()
        self("qmp_capabilities")

    def __call__(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            reply = json.loads(self.file.readline())
            if "error" in reply:
                raise Failed(f"QEMU: {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]
