# SPDX-License-Identifier: Apache-2.0
"""Two hosts for migrations: two homes on this one, and a link between them that can be cut, or changes what it carries."""
import contextlib
import json
import os
import pathlib
import socket
import signal
import subprocess
import threading

import pytest
from conftest import VIV, Viv, processes_in


class Host(Viv):
    """A home of its own, with the images of another."""

    def __init__(self, home, images=None):
        home.mkdir(exist_ok=True)
        super().__init__(home)
        if images and not (home / "images").exists():
            os.symlink(images, home / "images")
        self.socket = home / "receive.sock"

    def receive(self, *args):
        """viv receive in the background; it waits for machines when this returns."""
        listener = subprocess.Popen([VIV, "receive", "--listen", f"unix:{self.socket}", *args], env=self.env, text=True,
                                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert "waiting" in listener.stderr.readline()
        return listener

    def migrate(self, name, to, *args, **options):
        """Move @name to the socket @to; the report."""
        return json.loads(self.ok("migrate", name, f"unix:{to}", "--json", *args, **options).stdout)

    def state(self, name):
        return next((vm["state"] for vm in self.list() if vm["name"] == name), None)

    def is_clean(self, name):
        """Nothing of @name is left, but for the claim."""
        return not any((self.home / part / name).exists() for part in ("vms", "run"))


HEADER = 24  # docs/formats/migration.md
COMMIT, RUNNING, GOT, FETCHED = 14, 15, 19, 20


class Records:
    """Finds a record of type @wanted, the first behind one of type @behind, in a stream that comes in pieces."""

    def __init__(self, wanted, behind=None):
        self.wanted, self.behind, self.buffer = wanted, behind, b""

    def before(self, data):
        """How much of @data comes before the record; None: it is not there yet."""
        self.buffer += data
        while len(self.buffer) >= HEADER:
            kind, length = int.from_bytes(self.buffer[4:6], "little"), int.from_bytes(self.buffer[8:12], "little")
            if kind == self.behind:
                self.behind = None
            if kind == self.wanted and not self.behind:
                return max(len(data) - len(self.buffer), 0)
            if len(self.buffer) < HEADER + length:
                break
            self.buffer = self.buffer[HEADER + length:]
        return None


def fake_ssh(folder, host):
    """An ssh in @folder that runs the command here, with @host's home; it notes down what it was asked for.  Returns the PATH."""
    folder.mkdir()
    script = folder / "ssh"
    script.write_text(f"""#!/bin/sh
echo "$*" >>{folder}/asked
while [ "$1" != -- ]; do shift; done
shift
VIVARIUM_HOME={host.home} PATH={pathlib.Path(VIV).parent}:$PATH exec sh -c "$*"
""")
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


class Link:
    """A socket that passes bytes on to another, each way, until told otherwise."""

    def __init__(self, path, target, cut_after=None, flip_at=None, cut_before=None, at_cut=None, behind=None):
        self.path, self.target = pathlib.Path(path), target
        self.cut_after, self.flip_at = cut_after, flip_at  # bytes from the source
        self.cut_before = cut_before  # a type of record, from either side
        self.behind = behind  # the first behind one of this type
        self.at_cut = at_cut  # called in place of cutting after so many bytes
        self.passed = 0
        self.sockets = []
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                source, _ = self.listener.accept()
                target = socket.socket(socket.AF_UNIX)
                target.connect(str(self.target))
                self.sockets += [source, target]
                threading.Thread(target=self.carry, args=(source, target, True), daemon=True).start()
                threading.Thread(target=self.carry, args=(target, source, False), daemon=True).start()

    def carry(self, a, b, is_from_source):
        records = Records(self.cut_before, self.behind)
        try:
            while data := a.recv(65536):
                if self.cut_before and (n := records.before(data)) is not None:
                    b.sendall(data[:n])
                    self.cut()
                    break
                if is_from_source:
                    data = self.change(data)
                b.sendall(data)
                if is_from_source and self.cut_after is not None and self.passed >= self.cut_after:
                    break
        except OSError:  # one end is gone
            self.cut()
        if is_from_source and self.cut_after is not None and self.passed >= self.cut_after:
            if self.at_cut:
                self.at_cut()
            self.cut()
        with contextlib.suppress(OSError):
            b.shutdown(socket.SHUT_WR)

    def change(self, data):
        before, self.passed = self.passed, self.passed + len(data)
        if self.flip_at is not None and before <= self.flip_at < self.passed:
            at = self.flip_at - before
            data = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1:]
        if self.cut_after is not None and self.passed > self.cut_after:
            data = data[:len(data) - (self.passed - self.cut_after)]
        return data

    def cut(self):
        for s in self.sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.listener.close()
        self.cut()


@pytest.fixture
def hosts(empty_viv, debian, tmp_path):
    """The hosts "a" and "b"."""
    a, b = Host(tmp_path / "a", debian.parent), Host(tmp_path / "b", debian.parent)
    yield a, b
    for host in (a, b):
        for child in host.terminals:
            child.close(force=True)
            child.log.close()
        for pid in processes_in(host.home):
            os.kill(pid, signal.SIGKILL)
