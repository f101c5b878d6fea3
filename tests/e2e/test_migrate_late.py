# SPDX-License-Identifier: Apache-2.0
"""Post-copy: a machine runs at the target before all of its memory is there.  Every page that comes late is compared, too (--verify)."""
import os
import signal

from migration import FETCHED, GOT, RUNNING, Link, hosts  # noqa: F401  pylint: disable=unused-import
from test_migrate import Counting, ended, start

# The deadline comes while most of memory is still here.
LATE = ("--bandwidth", "1M", "--deadline", "1s", "--verify")


def test_memory_after_the_machine(hosts, debian, tmp_path):
    a, b = hosts
    n = start(a, debian, tmp_path).next()
    listener = b.receive("--once")
    report = a.migrate("m", b.socket, *LATE)
    assert report["state"] == "moved" and report["pages_late"] > 1000 and report["pages_wanted"] > 0
    assert ended(listener)[0] == 0
    a.wait_until(lambda: a.is_clean("m"), "the source is clean")
    counter = Counting(b, "m")
    assert counter.next() >= n, "the guest went back"
    counter.reaches(n + 3)
    b.ok("snapshot", "create", "m", "one")  # it is like any other machine
    b.ok("snapshot", "delete", "m", "one")
    assert not list((b.home / "migrations").glob("*.door"))
    b.ok("rm", "-f", "m")


def test_lost_link(hosts, debian, tmp_path):
    """Nothing runs then, on neither side, until the link is back; or the target lacks nothing, and only has not said so."""
    a, b = hosts
    n = start(a, debian, tmp_path).next()
    for word in (GOT, FETCHED):
        listener = b.receive()
        link = Link(tmp_path / "link.sock", b.socket, cut_before=word, behind=RUNNING)
        a.fails("migrate", "m", f"unix:{link.path}", *LATE, says=["stands still at the target", "--recover"])
        link.close()
        a.fails("resume", "m", says=["part of its memory is still here"])
        a.fails("snapshot", "create", "m", "one", says=["part of its memory"])
        if word == GOT:
            b.wait_until(lambda host=b: host.state("m") == "paused", "it stands still")
            b.fails("resume", "m", says=["lacks memory"])
            b.fails("snapshot", "create", "m", "one", says=["lacks memory"])
        assert a.state("m") == "paused"
        a.fails("migrate", "m", "--recover", "unix:/nobody/there")
        assert "moved" in a.ok("migrate", "m", "--recover", f"unix:{b.socket}").stdout
        a.wait_until(lambda host=a: host.is_clean("m"), "the source is clean")
        assert b.state("m") == "running"
        counter = Counting(b, "m")
        counter.reaches(n + 2)
        n = counter.next()
        counter.child.close(force=True)
        listener.terminate()
        listener.wait()
        a, b = b, a
    a.ok("rm", "-f", "m")


def test_ended_for_want_of_memory(hosts, debian, tmp_path):
    """With its source's process the memory is gone: nobody is told otherwise, and the machine can be ended and switched on again."""
    a, b = hosts
    start(a, debian, tmp_path)
    listener = b.receive()
    link = Link(tmp_path / "link.sock", b.socket, cut_before=GOT, behind=RUNNING)
    a.fails("migrate", "m", f"unix:{link.path}", *LATE, says=["--recover"])
    link.close()
    os.kill(next(vm["pid"] for vm in a.list() if vm["name"] == "m"), signal.SIGKILL)
    a.wait_until(lambda: a.state("m") == "stopped", "the source is dead")
    a.fails("migrate", "m", "--recover", f"unix:{b.socket}", says=["lost with its process"])
    a.fails("start", "m", says=["may be running at"])
    b.wait_until(lambda: b.state("m") == "paused", "it stands still")
    b.ok("stop", "-f", "m")
    a.ok("migrate", "m", "--recover", f"unix:{b.socket}")
    a.fails("start", "m", says=["moved"])
    b.ok("start", "m")
    listener.terminate()
    listener.wait()
    b.ok("rm", "-f", "m")
    a.ok("rm", "-f", "m")
