# SPDX-License-Identifier: Apache-2.0
"""The control protocol: a validator of JSON Schema accepts every message (conftest.py has it look at those of all tests), and events."""
import json
import os
import socket

import pytest

import guests
from conftest import schema

READ = guests.ECHO[:9]  # waits for a byte on the serial port


@pytest.fixture
def make(tmp_path):
    def write(code, name="guest"):
        path = tmp_path / name
        path.write_bytes(guests.multiboot(code))
        return path

    return write


class Client:
    """A program that speaks the protocol by itself; whatever it sends and gets is looked at."""

    def __init__(self, viv, name):
        directory = os.open(viv.home / "run" / name, os.O_PATH)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(f"/proc/self/fd/{directory}/control.sock")
        os.close(directory)
        self.lines = self.socket.makefile("r")

    def ask(self, cmd, /, **args):
        message = {"cmd": cmd, **args}
        schema().check(message, f"{cmd}.request")
        self.socket.sendall(json.dumps(message).encode() + b"\n")
        answer = json.loads(self.lines.readline())
        schema().check(answer, f"{cmd}.answer", "error")
        return answer

    def event(self):
        event = json.loads(self.lines.readline())
        schema().check(event, "event")
        schema().check(event, f"{event['event']}.event")
        return event


def test_every_command(empty_viv, make):
    """All commands there are, with all arguments there are, and the schema of the whole accepts it all."""
    viv = empty_viv
    viv.ok("run", "--detach", "--name", "a", "--kernel", make(guests.SLEEP), "--mem", "16M", "--cpus", "2")
    requests = {
        "nmi": {"cpu": 1}, "resize": {"cols": 80, "rows": 25}, "exec": {"argv": ["true"], "input": "", "timeout_ms": 5},
        "agent": {"timeout_ms": 5}, "snapshot": {"name": "s", "freeze": False}, "restore": {"name": "s", "set_clock": False, "skip_time": False},
        "file-open": {"path": "/x", "write": True}, "file-read": {"handle": 0, "count": 9}, "file-write": {"handle": 0, "data": ""},
        "file-close": {"handle": 0}, "ssh-key": {"user": "root", "key": "x"},
        "upgrade": {"to": "another"},
        "merged": {"disk": 0, "layer": "layer-x.qcow2"}, "fork": {"names": ["b"]}, "set": {"log_level": "debug"},
        "migrate": {"to": "nowhere", "name": "c", "engine": "dbt", "max_downtime_us": 1, "deadline_ms": 1, "bytes_per_s": 1,
                    "keep_running": True, "verify": False},
    }
    names = [command["name"] for command in Client(viv, "a").ask("help")["commands"]]
    assert set(requests) <= set(names)
    last = ["console", "stop", "quit"]
    answers = {}
    for name in [n for n in names if n not in last]:
        answers[name] = Client(viv, "a").ask(name, **requests.get(name, {}))
    for name in ("status", "info", "pause", "resume", "snapshot", "restore", "fork", "set", "subscribe", "snapshot-progress"):
        assert answers[name]["ok"], answers[name]
    assert Client(viv, "a").ask("console", backlog=True)["ok"]
    assert Client(viv, "a").ask("stop", timeout_ms=60000)["ok"]
    assert Client(viv, "a").ask("quit")["ok"]
    viv.ok("rm", "-f", "a", "b")


def test_schema_is_strict(empty_viv):
    s = schema()
    for message in ({"cmd": "status"}, {"cmd": "stop", "timeout_ms": 1}, {"ok": True}, {"ok": False, "error": "x"}):
        assert not list(s.validator("request", "answer").iter_errors(message)), message
    for message in ({}, {"cmd": "nosuch"}, {"cmd": "status", "x": 1}, {"cmd": "stop", "timeout_ms": -1}, {"cmd": "stop", "timeout_ms": "1"},
                    {"cmd": "resize", "cols": 80}, {"cmd": "exec", "argv": []}, {"cmd": "exec", "argv": [1]}, {"ok": False},
                    {"ok": True, "state": "asleep", "pid": 1, "engine": "dbt", "cpus": 1, "mem": 1}):
        assert list(s.validator("request", "answer").iter_errors(message)), message
    empty_viv.fails("api", "nosuch", status=2, says=["schema"])


def test_events(empty_viv, make):
    viv = empty_viv
    viv.ok("run", "--detach", "--name", "a", "--kernel", make(guests.SLEEP), "--mem", "16M")
    client = Client(viv, "a")
    assert client.ask("subscribe")["state"] == "running"
    watcher = viv.spawn("events", "a", limit=60)
    viv.wait_until(lambda: viv.trace.exists() and '"cmd":"subscribe"' in viv.trace.read_text(), "viv events listens")
    viv.ok("pause", "a")
    assert client.event()["state"] == "paused"
    viv.ok("resume", "a")
    assert client.event()["state"] == "running"
    viv.ok("reset", "a")
    assert client.event()["event"] == "reset"
    assert client.ask("status")["state"] == "running", "it may ask as before"
    viv.ok("snapshot", "create", "a", "s")
    events = [client.event()]
    while events[-1]["event"] == "state":  # it stands still for a moment
        events.append(client.event())
    assert (events[-1]["event"], events[-1]["name"]) == ("snapshot", "s") and "error" not in events[-1]
    viv.ok("stop", "--force", "a")
    while events[-1]["event"] != "end":
        events.append(client.event())
    assert (events[-1]["reason"], events[-1]["status"]) == ("stopped", 0)
    assert client.lines.readline() == "", "that was the last"
    for word in ("state: paused", "state: running", "reset", "name: s", "end"):
        watcher.expect_exact(word)
    watcher.expect("the machine was stopped")
    watcher.wait()
    assert watcher.exitstatus == 0
    viv.fails("events", "a", says=["not running"])
    viv.ok("rm", "a")


def test_crash(empty_viv, make):
    """A guest whose CPU gives up: an event, and then the reset that follows."""
    viv = empty_viv
    viv.ok("run", "--detach", "--name", "a", "--kernel", make(READ + guests.TRIPLE_FAULT), "--mem", "16M")
    client = Client(viv, "a")
    client.ask("subscribe")
    console = Client(viv, "a")
    assert console.ask("console")["ok"]
    console.socket.sendall(b"x")  # the guest waits for it
    assert client.event()["cause"] == "triple fault"
    assert client.event()["event"] == "reset"
    viv.ok("rm", "-f", "a")


def test_reasons_to_end(empty_viv, make):
    viv = empty_viv
    for code, reason, status in ((guests.POWER_OFF, "poweroff", 0), (guests.debug_exit(5), "debug-exit", 11)):
        viv.ok("run", "--detach", "--name", "a", "--kernel", make(READ + code + guests.SLEEP), "--mem", "16M")
        client, console = Client(viv, "a"), Client(viv, "a")
        client.ask("subscribe")
        console.ask("console")
        console.socket.sendall(b"x")
        event = client.event()
        assert (event["event"], event["reason"], event["status"]) == ("end", reason, status)
        viv.ok("rm", "-f", "a")
