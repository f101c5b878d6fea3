#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""migrate.py [--only ROW,...] [--rounds N] [--rate 1gbit] [--no-qemu] [--list] - live migration between two hosts, viv's and QEMU TCG's in one run.

The two hosts are two network namespaces on this one with a pair of veth in between, whose rate is limited at both ends; no rights are
needed.  viv migrates over a UNIX socket that a relay at each end carries over TCP, QEMU over TCP itself.  The guest is Debian's kernel with busybox
and rewrite.c, which finds lost pages; "debian" is the whole image with its services.

A row is: in all; stood still; MiB sent; of each round.  --engine, --mem and options of viv migrate after "--" are as in viv itself.
Nothing remains afterwards.
"""
import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
VIV = os.environ.get("VIV", str(ROOT / "build" / "viv"))
DATA = pathlib.Path(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) / "vivarium"
A, B = "10.9.0.1", "10.9.0.2"
BOOT_S = 300
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
import qmp  # noqa: E402  pylint: disable=wrong-import-position
import tiny  # noqa: E402  pylint: disable=wrong-import-position

# name: (guest memory in MiB, what runs in it, most that it may stand still in ms, options of viv migrate, what for)
ROWS = {
    "idle": (512, "", 5, [], "idle, 512 MiB"),
    "debian": (512, None, 5, [], "Debian with its services, idle, 512 MiB"),
    "4g": (4096, "", 5, [], "idle, 4 GiB"),
    "full": (512, "rewrite 256 0", 100, [], "256 MiB rewritten at full speed"),
    "bursts": (512, "rewrite 256 20", None, [], "256 MiB rewritten in bursts, 20 ms in between"),
    "small-bursts": (512, "rewrite 256 3 16", None, [], "256 MiB rewritten in bursts of 16, 3 ms in between"),
    "faster": (512, "rewrite 384 0", 300, ["--max-downtime", "250ms"], "384 MiB rewritten faster than the link carries it"),
    "deadline": (512, "rewrite 384 0", 300, ["--deadline", "4s"], "384 MiB rewritten, there within 4 s"),
}
TRAFFIC = {"traffic": "an HTTP server and a TCP stream in the guest, under load from a third host, on a network of both"}
CHAOS = {"chaos": "256 MiB rewritten in bursts; the link cut or delayed, a side killed, at random points: exactly one runs"}


# ---- two hosts ----

class Hosts:
    """This process is in the first one's namespace; the second one is of a child that sleeps."""

    def __init__(self, rate, work):
        self.work = work
        self.holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo up; exec sleep infinity"], stdout=subprocess.PIPE, text=True)
        if self.holder.stdout.readline() != "up\n":
            raise SystemExit("no network namespaces of one's own here")
        self.far = ["nsenter", "-t", str(self.holder.pid), "-n"]
        self.children = []
        self.ok("ip", "link", "set", "lo", "up")
        self.ok(*self.far, "ip", "link", "set", "lo", "up")
        self.ok("ip", "link", "add", "va", "type", "veth", "peer", "name", "vb")
        self.ok("ip", "link", "set", "vb", "netns", str(self.holder.pid))
        for prefix, dev, address in (([], "va", A), (self.far, "vb", B)):
            self.ok(*prefix, "ip", "addr", "add", f"{address}/24", "dev", dev)
            self.ok(*prefix, "ip", "link", "set", dev, "up")
            if rate != "none":
                self.ok(*prefix, "tc", "qdisc", "add", "dev", dev, "root", "tbf", "rate", rate, "burst", "256kb", "latency", "50ms")

    @staticmethod
    def ok(*command):
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    def prefix(self, index):
        return self.far if index else []

    def relay(self, index, *where):
        """From one socket to another, in the namespace of host @index."""
        child = subprocess.Popen([*self.prefix(index), sys.executable, __file__, "--relay", *where], stdout=subprocess.PIPE, text=True)
        self.children.append(child)
        if child.stdout.readline() != "up\n":
            raise SystemExit("a relay could not listen")
        return child

    def set_link(self, up):
        self.ok("ip", "link", "set", "va", "up" if up else "down")

    def end_relays(self):
        for child in self.children:
            child.kill()
            child.wait()
        self.children.clear()

    def close(self):
        self.end_relays()
        self.holder.kill()
        self.holder.wait()


def address(where):
    kind, _, rest = where.partition(":")
    if kind == "unix":
        return socket.AF_UNIX, rest
    host, port = rest.rsplit(":", 1)
    return socket.AF_INET, (host, int(port))


def carry(a, b):
    """Without a copy to here and back."""
    from_pipe, to_pipe = os.pipe()
    with contextlib.suppress(OSError):
        while n := os.splice(a.fileno(), to_pipe, 1 << 20):
            while n:
                n -= os.splice(from_pipe, b.fileno(), n)
    os.close(from_pipe)
    os.close(to_pipe)
    for s in (a, b):
        with contextlib.suppress(OSError):
            s.shutdown(socket.SHUT_RDWR)


def relay(listen, to):
    family, at = address(listen)
    with socket.socket(family) as listener:
        if family == socket.AF_INET:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(at)
        listener.listen()
        print("up", flush=True)
        while True:
            near, _ = listener.accept()
            family, at = address(to)
            far = socket.socket(family)
            try:
                far.connect(at)
            except OSError:
                near.close()
                continue
            for s in (near, far):
                if s.family == socket.AF_INET:
                    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=carry, args=pair, daemon=True).start()


GUEST, CLIENT = "10.8.0.10", "10.8.0.1"
TAP = "viv0"
SERVERS = f"""
$b ip link set lo up; $b ip link set eth0 up; $b ip addr add {GUEST}/24 dev eth0
$b mkdir -p /www; $b dd if=/dev/urandom of=/www/data bs=1k count=64 2>/dev/null
$b httpd -h /www
$b nc -ll -p 5000 -e $b cat &
n=0
while :; do n=$((n + 1)); echo "pass=$n."; $b sleep 0.3; done
"""


class Lan:
    """A network that both hosts have a bridge in, each with a TAP interface for the machine; and a third host."""

    def __init__(self, hosts):
        self.client = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo up; exec sleep infinity"], stdout=subprocess.PIPE, text=True)
        self.client.stdout.readline()
        self.third = ["nsenter", "-t", str(self.client.pid), "-n"]
        ok = hosts.ok
        ok("ip", "link", "add", "ua", "type", "veth", "peer", "name", "ub")
        ok("ip", "link", "set", "ub", "netns", str(hosts.holder.pid))
        ok("ip", "link", "add", "ca", "type", "veth", "peer", "name", "cb")
        ok("ip", "link", "set", "cb", "netns", str(self.client.pid))
        for i, ports in ((0, ("ua", "ca")), (1, ("ub",))):
            at = hosts.prefix(i)
            ok(*at, "ip", "link", "add", "lan", "type", "bridge")
            ok(*at, "ip", "tuntap", "add", "dev", TAP, "mode", "tap")
            for port in (*ports, TAP):
                ok(*at, "ip", "link", "set", port, "master", "lan", "up")
            ok(*at, "ip", "link", "set", "lan", "up")
        ok(*self.third, "ip", "addr", "add", f"{CLIENT}/24", "dev", "cb")
        ok(*self.third, "ip", "link", "set", "cb", "up")
        self.hosts = hosts

    def close(self):
        self.client.kill()
        self.client.wait()
        for i in (0, 1):
            for port in ("ua", TAP, "lan") if i == 0 else (TAP, "lan"):
                subprocess.run([*self.hosts.prefix(i), "ip", "link", "del", port], check=False, stderr=subprocess.DEVNULL)


class Load(threading.Thread):
    """Does one thing again and again; what went wrong, and the longest time between two that were done."""

    def __init__(self, step):
        super().__init__(daemon=True)
        self.step, self.n, self.gap_s, self.wrong, self.is_over = step, 0, 0, None, False

    def run(self):
        last = time.monotonic()
        while not self.is_over:
            try:
                self.step()
            except (OSError, AssertionError) as e:
                self.wrong = f"{type(e).__name__}: {e}"
                return
            now = time.monotonic()
            self.n, self.gap_s, last = self.n + 1, max(self.gap_s, now - last), now


def exactly(s, size):
    data = b""
    while len(data) < size:
        more = s.recv(size - len(data))
        assert more, "the connection ended"
        data += more
    return data


def client():
    """On the third host, until its standard input ends: prints what happened."""
    rng = random.Random(1)
    stream = socket.create_connection((GUEST, 5000), timeout=30)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get():
        with socket.create_connection((GUEST, 80), timeout=30) as s:
            s.sendall(b"GET /data HTTP/1.0\r\n\r\n")
            parts = []
            while data := s.recv(1 << 16):
                parts.append(data)
            head, _, body = b"".join(parts).partition(b"\r\n\r\n")
            assert b" 200 " in head.split(b"\r\n")[0] and len(body) == 65536, "an answer is cut off"
            return body

    content = get()

    def request():
        assert get() == content, "an answer is another"

    def echo():
        block = rng.randbytes(4096)
        stream.sendall(block)
        assert exactly(stream, len(block)) == block, "the stream is another"

    loads = {"http": Load(request), "stream": Load(echo)}
    for load in loads.values():
        load.start()
    print("up", flush=True)
    sys.stdin.read()
    for load in loads.values():
        load.is_over = True
        load.join(60)
    print(json.dumps({name: {"n": load.n, "gap_ms": load.gap_s * 1e3, "wrong": load.wrong if load.wrong or not load.is_alive() else "it hangs"}
                      for name, load in loads.items()}))


# ---- guests ----

class Wrong(Exception):
    """What must not be: a page lost, a guest that went back or stands still."""


class Console:
    """What a guest says, from a stream."""

    def __init__(self, stream):
        self.stream, self.seen = stream, b""

    def read(self, end):
        left = end - time.monotonic()
        if left <= 0 or not select.select([self.stream], [], [], left)[0]:
            raise Wrong(f"the guest says nothing more; last: {self.seen[-300:]!r}")
        data = os.read(self.stream.fileno(), 65536)
        if not data:
            raise Wrong(f"the guest ended; last: {self.seen[-300:]!r}")
        self.seen = (self.seen + data)[-65536:]
        for bad in (b"LOST", b"panic", b"BUG:", b"Oops", b"segfault"):
            if bad in self.seen:
                with contextlib.suppress(Wrong):
                    while True:
                        self.read_more(time.monotonic() + 1)
                raise Wrong(f"the guest: {self.seen[self.seen.index(bad):][:300]!r}")

    def read_more(self, end):
        if not select.select([self.stream], [], [], max(end - time.monotonic(), 0))[0]:
            raise Wrong("nothing")
        self.seen += os.read(self.stream.fileno(), 65536)

    def expect(self, pattern, limit):
        end = time.monotonic() + limit
        while not (found := re.search(pattern, self.seen)):
            self.read(end)
        self.seen = self.seen[found.end():]
        return found

    def passes(self, n=2, limit=120):
        """The guest goes on; the number of its last pass."""
        for _ in range(n):
            found = self.expect(rb"pass=(\d+)\.", limit)
        return int(found[1])


def make_guest(work, command):
    """An initrd; what @command is runs in it, or a line now and then."""
    folder = work / f"guest-{abs(hash(command))}"
    if folder.exists():
        return folder / "tiny.cpio"
    folder.mkdir()
    program = folder / "rewrite"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, ROOT / "bench" / "rewrite.c"], check=True)
    script = command if command == SERVERS else f"\n/{command}\n" if command else "\nn=0\nwhile :; do n=$((n + 1)); echo \"pass=$n.\"; $b sleep 0.3; done\n"
    root = folder / "tiny"
    initrd = tiny.make(DATA / "images" / "debian", folder, script, tiny.NETWORK)
    (root / "rewrite").write_bytes(program.read_bytes())
    (root / "rewrite").chmod(0o755)
    return tiny.pack(root, initrd)


APPEND = "console=ttyS0 quiet panic=-1"


class Viv:
    """Two homes, one a host."""

    def __init__(self, hosts, work, args):
        self.hosts, self.args, self.homes = hosts, args, [work / "a", work / "b"]
        self.here = 0
        self.listeners = []
        for home in self.homes:
            home.mkdir()
            (home / "images").symlink_to(DATA / "images")
        self.restart_receivers()
        self.ways = [self.way(0, 1, 7000), self.way(1, 0, 7001)]
        self.console = None

    def restart_receivers(self):
        for listener in self.listeners:
            listener.kill()
            listener.wait()
        self.listeners = []
        for i, home in enumerate(self.homes):
            (home / "receive").unlink(missing_ok=True)
            listener = subprocess.Popen([*self.hosts.prefix(i), VIV, "receive", "--listen", f"unix:{home / 'receive'}", "--host-networks"], env=self.env(i),
                                        stderr=subprocess.PIPE, text=True)
            listener.stderr.readline()
            threading.Thread(target=lambda l=listener: list(l.stderr), daemon=True).start()
            self.listeners.append(listener)

    def way(self, source, target, port):
        """The socket by which @source reaches @target."""
        ip = (A, B)[target]
        self.hosts.relay(target, f"tcp:{ip}:{port}", f"unix:{self.homes[target] / 'receive'}")
        path = self.homes[source] / "out"
        self.hosts.relay(source, f"unix:{path}", f"tcp:{ip}:{port}")
        return path

    def env(self, i):
        return {**os.environ, "VIVARIUM_HOME": str(self.homes[i])}

    def run(self, i, *args, check=True, limit=600):
        done = subprocess.run([*self.hosts.prefix(i), VIV, *map(str, args)], env=self.env(i), capture_output=True, text=True, check=False,
                              timeout=limit, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            raise Wrong(f"viv {' '.join(map(str, args))}: {done.stderr.strip()}")
        return done

    def start(self, mem, command, net="none"):
        if command is None:
            self.run(0, "run", "debian", "--name", "m", "--detach", "--mem", f"{mem}M", "--engine", self.args.engine)
            self.run(0, "exec", "m", "--", "true")
        else:
            self.run(0, "run", "--name", "m", "--detach", "--mem", f"{mem}M", "--engine", self.args.engine, "--cpus", self.args.cpus,
                     "--kernel", DATA / "images" / "debian" / "vmlinuz", "--initrd", make_guest(self.hosts.work, command), "--append", APPEND,
                     "--net", net)
        self.here = 0
        self.listen(command)

    def listen(self, command):
        """Its console, from now on."""
        self.stop_listening()
        self.command = command
        if command is not None:
            self.console_process = subprocess.Popen([*self.hosts.prefix(self.here), VIV, "console", "m", "--quiet"], env=self.env(self.here),
                                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self.console = Console(self.console_process.stdout)

    def stop_listening(self):
        if self.console:
            self.console_process.kill()
            self.console_process.wait()
        self.console = None

    def passes(self):
        if self.console:
            return self.console.passes()
        self.run(self.here, "exec", "m", "--", "true")
        return 0

    def migrate(self, options):
        verify = [] if self.args.no_verify else ["--verify"]
        before = self.passes()
        done = self.run(self.here, "migrate", "m", f"unix:{self.ways[self.here]}", "--json", *verify, *options, *self.args.viv)
        self.stop_listening()
        self.here ^= 1
        self.listen(self.command)
        if self.passes() < before:
            raise Wrong("the guest went back")
        r = json.loads(done.stdout)
        return r["elapsed_us"] / 1e6, r["downtime_us"] / 1e3, r["sent_bytes"] / 2**20, r

    def settled(self):
        """Where it runs, or can be started, after whatever happened."""
        end = time.monotonic() + 60
        while True:
            if (self.homes[self.here] / "vms" / "m" / "handover.json").exists():
                self.run(self.here, "migrate", "m", "--recover", f"unix:{self.ways[self.here]}", check=False)
            states = [self.state(i) for i in (0, 1)]
            incoming = any((home / "vms" / "m" / "incoming.json").exists() for home in self.homes)
            if not incoming and not {"running", "paused"} <= set(states):
                break
            if time.monotonic() > end:
                raise Wrong(f"it does not settle: {states}")
            time.sleep(0.2)
        runs = [i for i in (0, 1) if states[i] == "running"]
        said = {i: self.run(i, "start", "m", check=False) for i in (0, 1) if i not in runs}
        started = [i for i, done in said.items() if done.returncode == 0]
        if len(runs) + len(started) != 1:
            for i, home in enumerate(self.homes):
                log = home / "vms" / "m" / "vm.log"
                print(f"host {i}: {states[i]}; viv start: {said[i].stderr if i in said else 'not asked'}"
                      f"{log.read_text()[-4000:] if log.exists() else 'no log'}", file=sys.stderr)
            raise Wrong(f"{len(runs)} run, {len(started)} can be started")
        self.here = (runs + started)[0]
        self.run(self.here ^ 1, "rm", "-f", "m", check=False)
        self.listen(self.command)
        if started:
            self.console.expect(rb"pass=", BOOT_S)
        self.passes()
        return bool(started)

    def state(self, i):
        return next((vm["state"] for vm in json.loads(self.run(i, "list", "--json").stdout) if vm["name"] == "m"), None)

    def kill(self, i):
        vm = next((vm for vm in json.loads(self.run(i, "list", "--json").stdout) if vm["name"] == "m" and vm.get("pid")), None)
        if vm:
            with contextlib.suppress(ProcessLookupError):
                os.kill(vm["pid"], signal.SIGKILL)

    def close(self):
        self.stop_listening()
        for i in (0, 1):
            self.run(i, "rm", "-f", "m", check=False)
        for listener in self.listeners:
            listener.kill()
            listener.wait()
        self.hosts.end_relays()


class Qemu:
    """Processes of QEMU, one a migration."""

    def __init__(self, hosts, work, args):
        self.hosts, self.work, self.args = hosts, work, args
        self.here, self.n, self.process, self.disk = 0, 0, None, None

    def spawn(self, incoming=None):
        self.n += 1
        monitor, serial = self.work / f"qmp{self.n}", self.work / f"serial{self.n}"
        image = DATA / "images" / "debian"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(serial))
        listener.listen()
        command = [*self.hosts.prefix(self.here if not incoming else self.here ^ 1), "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max",
                   "-smp", str(self.args.cpus), "-m", f"{self.mem}M", "-nodefaults", "-display", "none", "-no-reboot",
                   "-serial", f"unix:{serial}", "-qmp", f"unix:{monitor},server=on,wait=off", "-kernel", str(image / "vmlinuz")]
        if self.command is None:
            append = json.loads((image / "image.json").read_text())["append"]
            command += ["-initrd", str(image / "initrd"), "-append", append, "-drive", f"file={self.disk},if=virtio,format=qcow2,file.locking=off"]
        else:
            command += ["-initrd", str(make_guest(self.hosts.work, self.command)), "-append", APPEND]
        process = subprocess.Popen([*command, *(["-incoming", incoming] if incoming else [])], stdin=subprocess.DEVNULL)
        stream, _ = listener.accept()
        listener.close()
        return process, qmp.Qmp(monitor), Console(stream)

    def start(self, mem, command):
        self.mem, self.command, self.here = mem, command, 0
        if command is None:
            self.disk = self.work / "q.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", DATA / "images" / "debian" / "disk.raw", self.disk],
                           check=True)
        self.process, self.qmp, self.console = self.spawn()
        self.console.expect(rb"login:" if command is None else rb"pass=", BOOT_S)

    def passes(self):
        return self.console.passes() if self.command is not None else 0

    def migrate(self, _options):
        before = self.passes()
        ip = (A, B)[self.here ^ 1]
        port = 7100 + self.n
        process, monitor, console = self.spawn(f"tcp:{ip}:{port}")
        started = time.monotonic()
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40, "downtime-limit": 300})
        self.qmp("migrate", uri=f"tcp:{ip}:{port}")
        while (info := self.qmp("query-migrate"))["status"] not in ("completed", "failed", "cancelled"):
            if time.monotonic() - started > self.args.limit:
                self.qmp("migrate_cancel")
                process.kill()
                process.wait()
                raise Wrong(f"does not end within {self.args.limit} s")
            time.sleep(0.01)
        took = time.monotonic() - started
        self.process.kill()
        self.process.wait()
        self.process, self.qmp, self.console = process, monitor, console
        self.here ^= 1
        if info["status"] != "completed":
            raise Wrong(f"migration {info['status']}")
        if self.passes() < before:
            raise Wrong("the guest went back")
        return took, info["downtime"], info["ram"]["transferred"] / 2**20, info

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()


# ---- rows ----

def figures(values):
    return f"{min(values):>9.1f} {statistics.median(values):>9.1f} {max(values):>9.1f}"


def show(who, name, what, results, wrong, at_most):
    print(f"{who:<5} {name:<13} {what}: {len(results)} migrations{f', {wrong}' if wrong else ''}")
    if results:
        still = [r[1] for r in results]
        told = f" (at most {at_most} is wanted: {sum(s <= at_most for s in still)} of {len(still)})" if at_most and who == "viv" else ""
        print(f"      in all, s        {figures([r[0] for r in results])}")
        print(f"      stood still, ms  {figures(still)}{told}")
        print(f"      sent, MiB        {figures([r[2] for r in results])}")
    sys.stdout.flush()


def bench(cls, who, hosts, name, args):
    mem, command, at_most, options, what = ROWS[name]
    results, wrong = [], None
    with tempfile.TemporaryDirectory(dir=hosts.work) as work:
        peer = cls(hosts, pathlib.Path(work), args)
        try:
            peer.start(mem, command)
            peer.passes()
            for _ in range(args.rounds):
                results.append(peer.migrate(options))
                if args.verbose:
                    print(json.dumps(results[-1][3]), file=sys.stderr)
        except (Wrong, qmp.Failed) as w:
            wrong = str(w)
        finally:
            peer.close()
    show(who, name, what, results, wrong, at_most)
    return not wrong


def traffic(hosts, args):
    """viv alone: no connection breaks, no byte is lost, and nothing waits longer than the machine stood still and 50 ms."""
    with tempfile.TemporaryDirectory(dir=hosts.work) as work:
        lan = Lan(hosts)
        viv = Viv(hosts, pathlib.Path(work), args)
        results, wrong, told = [], None, {}
        try:
            viv.start(512, SERVERS, f"tap:{TAP}")
            viv.passes()
            load = subprocess.Popen([*lan.third, sys.executable, __file__, "--client"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            if load.stdout.readline() != "up\n":
                raise Wrong("the guest's servers do not answer")
            time.sleep(2)
            for _ in range(args.rounds):
                results.append(viv.migrate([]))
            told = json.loads(load.communicate("", timeout=120)[0])
            wrong = next((f"{name}: {part['wrong']}" for name, part in told.items() if part["wrong"]), None)
        except (Wrong, subprocess.TimeoutExpired) as w:
            wrong = str(w)
        finally:
            viv.close()
            lan.close()
    show("viv", "traffic", TRAFFIC["traffic"], results, wrong, None)
    most = max((r[1] for r in results), default=0) + 50
    for name, part in told.items():
        print(f"      {name + ': done':<16} {part['n']:>9}, longest without {part['gap_ms']:.1f} ms (at most {most:.1f} is wanted)")
        wrong = wrong or (part["gap_ms"] > most and "it waited too long")
    return not wrong


def chaos(hosts, args):
    """viv alone: at a random time something happens to a migration."""
    rng = random.Random(args.seed)
    happened = {}
    with tempfile.TemporaryDirectory(dir=hosts.work) as work:
        viv = Viv(hosts, pathlib.Path(work), args)
        told = ""
        try:
            viv.start(512, "rewrite 256 20")
            viv.passes()
            for i in range(args.rounds):
                what, when = rng.choice(["cut", "delay", "kill target", "kill source"]), rng.uniform(0, args.chaos_s)
                told = f"round {i}: {what} after {when:.3f} s"
                target = viv.here ^ 1
                moving = subprocess.Popen([*hosts.prefix(viv.here), VIV, "migrate", "m", f"unix:{viv.ways[viv.here]}", *args.viv],
                                          env=viv.env(viv.here), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                          stdin=subprocess.DEVNULL)
                time.sleep(when)
                if what == "delay":
                    hosts.set_link(False)
                    time.sleep(rng.uniform(0, 3))
                    hosts.set_link(True)
                elif what == "cut":
                    hosts.end_relays()
                else:
                    viv.kill(target if what == "kill target" else viv.here)
                moving.communicate(timeout=300)
                if what == "cut":
                    for home in viv.homes:
                        (home / "out").unlink(missing_ok=True)
                    viv.ways = [viv.way(0, 1, 7000), viv.way(1, 0, 7001)]
                was = target ^ 1
                restarted = viv.settled()
                outcome = f"{what}: {'moved' if viv.here != was else 'kept'}{', started again' if restarted else ''}"
                happened[outcome] = happened.get(outcome, 0) + 1
        except (Wrong, qmp.Failed) as w:
            print(f"viv   chaos         wrong, {told} (--seed {args.seed}): {w}")
            return False
        finally:
            viv.close()
    print(f"viv   chaos         {CHAOS['chaos']}: {args.rounds} rounds, --seed {args.seed}")
    for outcome, n in sorted(happened.items()):
        print(f"      {outcome:<32} {n:>4}")
    return True


def run(args):
    with tempfile.TemporaryDirectory() as work:
        hosts = Hosts(args.rate, pathlib.Path(work))
        fine = True
        try:
            print(f"{time.strftime('%F')}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, link {args.rate}, engine {args.engine}, "
                  f"{args.cpus} vCPU; best, median, worst")
            for name in args.only:
                if name in CHAOS or name in TRAFFIC:
                    fine &= (chaos if name in CHAOS else traffic)(hosts, args)
                    continue
                fine &= bench(Viv, "viv", hosts, name, args)
                if not args.no_qemu:
                    bench(Qemu, "QEMU", hosts, name, args)
        finally:
            hosts.close()
    return 0 if fine else 1


def main():
    if sys.argv[1:2] == ["--relay"]:
        relay(*sys.argv[2:])
    if sys.argv[1:2] == ["--client"]:
        return client()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ROW,...", help="some rows")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    parser.add_argument("--rounds", type=int, default=3, help="migrations, back and forth (default 3)")
    parser.add_argument("--rate", default="1gbit", help="of the link, as tc takes it, or none (default 1gbit)")
    parser.add_argument("--engine", default="dbt")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--limit", type=int, default=120, metavar="S", help="after which QEMU's migration is given up (default 120)")
    parser.add_argument("--verify", dest="no_verify", action="store_false", help="compare all of memory while it stands still")
    parser.add_argument("--no-qemu", action="store_true")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), help="of chaos")
    parser.add_argument("--chaos-s", type=float, default=4, metavar="S", help="within which something happens (default 4)")
    parser.add_argument("--verbose", action="store_true", help="print each report")
    parser.add_argument("viv", nargs="*", help="options of viv migrate")
    args = parser.parse_args()
    if args.list:
        for name, what in [*((name, row[4]) for name, row in ROWS.items()), *TRAFFIC.items(), *CHAOS.items()]:
            print(f"{name:<13} {what}")
        return 0
    args.only = args.only.split(",") if args.only else [*ROWS, *TRAFFIC, *CHAOS]
    if unknown := [name for name in args.only if name not in (*ROWS, *TRAFFIC, *CHAOS)]:
        parser.error(f"no such row: {', '.join(unknown)}")
    if "VIV_BENCH_HOSTS" not in os.environ:
        os.environ["VIV_BENCH_HOSTS"] = "1"
        os.execvp("unshare", ["unshare", "-Urn", sys.executable, *sys.argv])
    return run(args)


with contextlib.suppress(KeyboardInterrupt):
    sys.exit(main())
