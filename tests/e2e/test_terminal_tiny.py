# SPDX-License-Identifier: Apache-2.0
"""The terminal is as it was after every kind of end of `viv run`.

A plain shell is the person: it starts viv on a terminal that we hold the other end of.  Signals go only to
processes found as children of that shell.
"""
import os
import pathlib
import signal
import termios

import pexpect
import pytest

import guests
from conftest import VIV


def children(pid):
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


class Shell:
    def __init__(self, viv, kernel):
        self.kernel = kernel
        self.shell = pexpect.spawn("/bin/sh", ["-i"], env={**viv.env, "PS1": "HOST> ", "ENV": ""}, timeout=60,
                                   encoding="utf-8")
        viv.terminals.append(self.shell)
        self.shell.log = open(os.devnull, "w", encoding="utf-8")
        self.shell.expect("HOST> ")
        self.before = self.modes()

    def modes(self):
        return termios.tcgetattr(self.shell.child_fd)[:4]

    def run(self):
        self.shell.sendline(f"{VIV} run --kernel {self.kernel}; echo STATUS=$?")
        self.shell.expect("guest is up")
        assert not self.modes()[3] & termios.ICANON, "not in raw mode"

    def viv_pid(self):
        (pid,) = children(self.shell.pid)
        return pid

    def broker_pid(self):
        (pid,) = [p for p in children(self.viv_pid())
                  if b"viv\0vm\0" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes()]
        return pid

    def machine_pid(self):
        """The last of broker, init and machine."""
        pid = self.broker_pid()
        while below := [p for p in children(pid) if b"viv\0vm\0" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes()]:
            (pid,) = below
        return pid

    def status(self):
        self.shell.expect(r"STATUS=(\d+)")
        status = int(self.shell.match.group(1))
        self.shell.expect("HOST> ")
        return status

    def is_restored(self):
        return self.modes() == self.before


@pytest.fixture
def shell(empty_viv, tmp_path):
    kernel = tmp_path / "guest"
    kernel.write_bytes(guests.multiboot(guests.say("guest is up\n") + guests.ECHO))
    return Shell(empty_viv, kernel)


def test_escape(shell, empty_viv):
    shell.run()
    shell.shell.send("abc")
    shell.shell.expect("abc")
    shell.shell.send("\x1d")
    assert shell.status() == 0
    assert shell.is_restored()
    assert empty_viv.list() == []


@pytest.mark.parametrize("victim, confine", [("machine", "off"), ("machine", "on"), ("broker", "on")])
def test_machine_is_killed(shell, empty_viv, victim, confine):
    shell.shell.sendline(f"export VIVARIUM_CONFINE={confine}")
    shell.shell.expect("HOST> ")
    shell.run()
    os.kill(getattr(shell, f"{victim}_pid")(), signal.SIGKILL)
    shell.shell.expect("killed by signal 9" if victim == "machine" else "broker was killed")
    assert shell.status() == 1
    assert shell.is_restored()
    assert empty_viv.list() == []
    assert not list((empty_viv.home / "run").iterdir())


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_viv_is_killed(shell, empty_viv, sig):
    shell.run()
    machine = shell.machine_pid()
    os.kill(shell.viv_pid(), sig)
    assert shell.status() == 128 + sig
    empty_viv.wait_until(shell.is_restored, "the terminal's modes restored", limit=10)
    # and its machine does not go on without it
    empty_viv.wait_until(lambda: not pathlib.Path(f"/proc/{machine}").exists(), "the machine's end", limit=20)
    assert empty_viv.list() == []
