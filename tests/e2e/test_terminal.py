# SPDX-License-Identifier: Apache-2.0
"""The person's terminal is as it was, after every kind of end."""
import os
import re
import shlex
import signal
import termios

import pexpect
import pytest
import tiny
from conftest import VIV

SCRIPT = """
echo ready
while read -r line; do
	case $line in
	off) $b poweroff -f ;;
	size) $b stty size ;;
	*) echo "got $line" ;;
	esac
done
"""


class Session:
    """A shell that runs viv in the foreground and then tells its status, on a terminal of its own."""

    def __init__(self, viv, *args):
        command = shlex.join([VIV, *map(str, args)])
        script = f'sh -c {shlex.quote("echo pid $$; exec " + command)}; echo "ended: $?"; read -r rest'
        self.child = pexpect.spawn("/bin/sh", ["-c", script], env=viv.env, timeout=200, encoding="utf-8",
                                   codec_errors="replace", dimensions=(33, 97))
        self.child.delaybeforesend = None
        self.child.log = open(viv.home / "session.log", "w", encoding="utf-8")
        self.child.logfile_read = self.child.log
        self.before = self.modes()
        viv.terminals.append(self.child)
        self.child.expect(r"pid (\d+)")
        self.pid = int(self.child.match.group(1))

    def modes(self):
        return termios.tcgetattr(self.child.child_fd)

    def is_raw(self):
        return not self.modes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


@pytest.fixture
def session(empty_viv, debian, tmp_path):
    initrd = tiny.make(debian, tmp_path, SCRIPT)
    started = Session(empty_viv, "run", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append",
                      "console=ttyS0 quiet", "--mem", "256M")
    started.child.expect("ready")
    assert started.is_raw(), "viv did not make the terminal raw"
    return started


def is_restored(session, viv):
    viv.wait_until(lambda: session.modes() == session.before, "the terminal is as it was", limit=10)
    return True


def test_poweroff(session, empty_viv):
    session.child.send("off\r")
    session.child.expect("ended: 0")
    assert is_restored(session, empty_viv)


def test_typing_reaches_the_guest(session):
    session.child.send("hello\r")
    session.child.expect("got hello")
    session.child.send("\x03")  # Ctrl-C is the guest's
    session.child.send("\rstill\r")
    session.child.expect("got still")


def test_escape_leaves(session, empty_viv):
    session.child.send("\x1d")
    session.child.expect(r"ended: \d+")
    assert is_restored(session, empty_viv)


@pytest.mark.parametrize("sig", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGSEGV"])
def test_signal(session, empty_viv, sig):
    os.kill(session.pid, getattr(signal, sig))
    session.child.expect(r"ended: \d+")
    assert is_restored(session, empty_viv)
    empty_viv.wait_until(lambda: not [p for p in empty_viv.processes() if p != session.child.pid],
                         "the machine ended with the viv that it belonged to")


def test_death_of_the_machine(session, empty_viv):
    """The machine's own process is killed: the terminal is restored, and a sentence says what happened."""
    victims = []
    for pid in empty_viv.processes():
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            words = f.read().split(b"\0")
        if b"vm" in words[:2]:
            victims.append(pid)
    assert 1 <= len(victims) <= 3, "there are a broker, an init, where there are namespaces, and the machine"
    os.kill(max(victims), signal.SIGKILL)
    session.child.expect(r"viv: (.*)\r\n.*ended: (\d+)")
    assert session.child.match.group(2) == "1"
    assert re.search(r"killed|signal|died|crash", session.child.match.group(1))
    assert is_restored(session, empty_viv)


def test_output_to_a_pipe_needs_no_terminal(empty_viv, debian, tmp_path):
    initrd = tiny.make(debian, tmp_path, "echo ready\n$b poweroff -f\n")
    done = empty_viv.run("run", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append",
                         "console=ttyS0 quiet", limit=200)
    assert done.returncode == 0 and "ready" in done.stdout
