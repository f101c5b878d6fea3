# SPDX-License-Identifier: Apache-2.0
"""A machine as a service: the unit, and what its main process tells a service manager, which is played here."""
import os
import signal
import socket
import subprocess

import pytest

import guests
from conftest import VIV


@pytest.fixture
def machine(empty_viv, tmp_path):
    kernel = tmp_path / "guest"
    kernel.write_bytes(guests.multiboot(guests.say("up\n") + guests.ECHO[:9] + guests.POWER_OFF + guests.SLEEP))
    empty_viv.ok("run", "--detach", "--name", "m", "--kernel", kernel, "--mem", "16M")
    empty_viv.ok("stop", "--force", "m")
    yield empty_viv
    empty_viv.ok("rm", "--force", "m")


class Manager:
    """The end of NOTIFY_SOCKET that systemd has; in the abstract namespace, as systemd's may be, or a path."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(60)
        self.socket.bind(address)
        self.address = "@" + address[1:] if address[0] == "\0" else address

    def start(self, viv, *options, watchdog_us=200000):
        env = {**viv.env, "NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(watchdog_us)}
        return subprocess.Popen([VIV, "service", "--run", *options, "m"], env=env, stdin=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True)

    def hears(self, word):
        while True:
            if word in self.socket.recv(4096).decode():
                return


def test_unit(machine, tmp_path):
    viv = machine
    text = viv.ok("service", "--timeout", "90s", "m").stdout
    for line in ("Type=notify", "KillMode=mixed", "TimeoutStopSec=105", "WatchdogSec=60", "WantedBy=default.target"):
        assert line in text.splitlines(), text
    assert f'VIVARIUM_HOME={viv.home}' in text and "--run --timeout 90s m" in text
    viv.env["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    assert "viv-m.service" in viv.ok("service", "--install", "--timeout", "90s", "m").stderr
    unit = tmp_path / "config/systemd/user/viv-m.service"
    assert unit.read_text() == text
    checked = subprocess.run(["systemd-analyze", "verify", "--user", "--man=no", unit], text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)})
    assert "viv-m.service" not in checked.stdout, checked.stdout
    viv.fails("service", "nobody", says=["nobody"])


@pytest.mark.parametrize("is_abstract", [True, False])
def test_life_of_a_service(machine, tmp_path, monkeypatch, is_abstract):
    viv = machine
    monkeypatch.chdir(tmp_path)
    manager = Manager(f"\0viv-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify"))
    service = manager.start(viv, "--timeout", "1s")
    manager.hears("READY=1")
    assert viv.list()[0]["state"] == "running"
    manager.hears("WATCHDOG=1")
    viv.ok("pause", "m")  # somebody's wish: it answers still
    manager.hears("WATCHDOG=1")
    viv.ok("resume", "m")
    service.send_signal(signal.SIGTERM)
    manager.hears("STOPPING=1")  # this guest does not listen to the power button
    assert service.wait(60) == 0 and viv.list()[0]["state"] == "stopped"
    assert "stopped" in service.stderr.read()


def test_guest_ends_a_service(machine, tmp_path):
    viv, manager = machine, Manager(str(tmp_path / "notify"))
    service = manager.start(viv)
    manager.hears("READY=1")
    console = viv.spawn("console", "m", limit=60)
    console.expect("up")
    console.send("x")
    assert service.wait(60) == 0 and "off" in service.stderr.read()
    # one that was killed is a failure, which the manager answers
    service = manager.start(viv)
    manager.hears("READY=1")
    os.kill(viv.list()[0]["pid"], signal.SIGKILL)
    assert service.wait(60) == 1 and "killed" in service.stderr.read()
    done = manager.start(viv)
    manager.hears("READY=1")
    again = manager.start(viv)
    assert again.wait(60) == 1 and "running" in again.stderr.read()
    done.terminate()
    viv.ok("stop", "--force", "m")
    assert done.wait(60) == 0
