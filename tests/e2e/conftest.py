# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests share: `viv` as a person would start it, in a home of its own.

Nothing here knows the inside of viv.  Waiting is for a sign, never for a time; a limit exists only so that
a hang ends as a failure.
"""
import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import jsonschema
import pexpect
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
VIV = os.environ.get("VIV", str(ROOT / "build" / "viv"))
BOOT_LIMIT = 300  # seconds from exec to a login prompt, on a slow and busy machine
LIMIT = 60  # seconds for anything that boots nothing


def image_store():
    """Where this host keeps the images: made once, borrowed by every test."""
    if os.environ.get("VIVARIUM_HOME"):
        return pathlib.Path(os.environ["VIVARIUM_HOME"]) / "images"
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return pathlib.Path(data) / "vivarium" / "images"


@pytest.fixture(scope="session")
def debian():
    """The directory of the default image; built by the project's own script if it isn't there."""
    subprocess.run([ROOT / "tools" / "build-image.sh"], check=True)
    return image_store() / "debian"


def processes_in(home):
    """Processes that hold VIVARIUM_HOME=@home in their environment."""
    mark = f"VIVARIUM_HOME={home}".encode()
    found = []
    for environ in pathlib.Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


# Labs speak another protocol (src/net/labd.h).
LAB_COMMANDS = {"show", "allow", "deny", "remove", "quarantine", "fault", "capture", "end", "identity", "forget", "admit"}


class Schema:
    """The control protocol as viv describes it, and a validator that knows nothing but JSON Schema."""

    def __init__(self):
        text = subprocess.run([VIV, "api", "schema"], check=True, capture_output=True, text=True).stdout
        self.schema = json.loads(text)
        jsonschema.Draft202012Validator.check_schema(self.schema)
        self.validators = {}

    def validator(self, *names):
        if names not in self.validators:
            refs = [{"$ref": f"#/$defs/{name}"} for name in names]
            self.validators[names] = jsonschema.Draft202012Validator({"anyOf": refs, "$defs": self.schema["$defs"]})
        return self.validators[names]

    def check(self, message, *names):
        """@message is one of @names."""
        errors = [error.message for error in self.validator(*names).iter_errors(message)]
        assert not errors, f"no {' or '.join(names)}: {json.dumps(message)[:2000]}"

    def check_trace(self, path):
        """Every message that commands sent and got; an answer is one to the last request on its connection."""
        asked, count = {}, 0
        for line in path.read_text().splitlines() if path.exists() else []:
            connection, direction, text = re.fullmatch(r"(\d+ \d+) ([<>]) (.*)", line).groups()
            message = json.loads(text)
            count += 1
            if direction == ">":
                asked[connection] = message["cmd"]
            if asked.get(connection, "capture") in LAB_COMMANDS:  # whose request goes with a descriptor, untraced
                continue
            if direction == ">":
                self.check(message, f"{message['cmd']}.request")
            elif "event" in message:
                self.check(message, f"{message['event']}.event")
            else:
                self.check(message, f"{asked[connection]}.answer", "error")
        return count


@functools.cache
def schema():
    return Schema()


class Viv:
    """viv with a home: run() to the end, or spawn() on a terminal."""

    def __init__(self, home):
        self.home = home
        self.trace = home / "control.trace"  # each message of the control protocol
        self.env = {**os.environ, "VIVARIUM_HOME": str(home), "TERM": "xterm", "VIVARIUM_TRACE": str(self.trace)}
        self.terminals = []

    def run(self, *args, limit=LIMIT, stdin=subprocess.DEVNULL, **options):
        return subprocess.run([VIV, *map(str, args)], env=self.env, timeout=limit, text=True, errors="replace",
                              stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def ok(self, *args, **options):
        done = self.run(*args, **options)
        assert done.returncode == 0, f"viv {' '.join(map(str, args))}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def fails(self, *args, status=1, says=(), **options):
        """It ends with @status and one sentence on standard error that holds each of @says."""
        done = self.run(*args, **options)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        shown = f"viv {' '.join(map(str, args))}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert done.returncode == status, shown
        assert lines, f"no sentence: {shown}"
        if status == 1:
            assert len(lines) == 1, f"more than one sentence: {shown}"
        for word in says:
            assert str(word) in done.stderr, f"'{word}' is not named: {shown}"
        return done

    def spawn(self, *args, limit=BOOT_LIMIT):
        child = pexpect.spawn(VIV, [str(a) for a in args], env=self.env, timeout=limit, encoding="utf-8",
                              codec_errors="replace", dimensions=(40, 132))
        child.delaybeforesend = None
        child.log = open(self.home / f"terminal{len(self.terminals)}.log", "w", encoding="utf-8")
        child.logfile_read = child.log
        self.terminals.append(child)
        return child

    def names(self):
        return [vm["name"] for vm in self.list()]

    def list(self):
        return json.loads(self.ok("list", "--json").stdout)

    def wait_until(self, condition, what, limit=LIMIT):
        end = time.monotonic() + limit
        while not condition():
            assert time.monotonic() < end, f"not within {limit} s: {what}"
            time.sleep(0.2)

    def processes(self):
        return processes_in(self.home)


@pytest.fixture
def empty_viv(tmp_path):
    """viv in a fresh home without any image.  Afterwards nothing of it may be left running."""
    viv = Viv(tmp_path)
    yield viv
    for child in viv.terminals:
        child.close(force=True)
        child.log.close()
    left = viv.processes()
    end = time.monotonic() + 10
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = viv.processes()
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    schema().check_trace(viv.trace)
    assert not left, f"{len(left)} processes of this test's machines were still running"


@pytest.fixture
def viv(empty_viv, debian):
    """viv in a fresh home that has the Debian image (hard links: an image is never written to)."""
    target = empty_viv.home / "images" / "debian"
    target.mkdir(parents=True)
    for file in debian.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:  # another file system
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", file, target / file.name], check=True)
    before = {f.name: f.stat().st_mtime_ns for f in debian.iterdir()}
    yield empty_viv
    after = {f.name: f.stat().st_mtime_ns for f in debian.iterdir()}
    assert before == after, "a machine wrote to the image it was made from"


@pytest.fixture
def disk(tmp_path, debian):
    """A copy of the Debian disk, to be written to."""
    path = tmp_path / "disk.raw"
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", debian / "disk.raw", path], check=True)
    return path


def pytest_sessionstart(session):
    if not shutil.which(VIV):
        pytest.exit(f"{VIV} is not built: run make build", returncode=1)
