#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The network of labs beside QEMU's: machine to machine, to the host and from it, and what a thousand rules cost.

All machines are up at the same time and all but two of them idle; each row is measured on all sides in turns, rounds times.
Sides: "viv" has one lab with one rule, one with a thousand, and a machine with --net nat; "qemu" has two machines under TCG with a
link between them and slirp; "other" is a second build of viv, by --other.

Leaves in --out: lab.md (the table), lab.json (everything measured).  Exit status 0: every row was measured on every side that
has it; 1: not all were (they are named); 2: bad usage.
"""
import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import bench
import machines
import report

HERE, ROOT = bench.HERE, bench.ROOT
MEM_MIB = 192
IPERF_PORT, CONNECT_PORT = 5201, 5301
CONNECTIONS = 1000
RULES = 1000
MIB = 1 << 20

# ---- what is measured ----

TCP, PACKETS, CONNECTS = "tcp", "packets", "connects"
UNITS = {TCP: ("MiB/s", "ms a MiB"), PACKETS: ("packets/s", "ms a 1000"), CONNECTS: ("connections/s", "ms a 1000")}


@dataclasses.dataclass(frozen=True)
class Way:
    """From the machine @client ("": the host) to @address, or to the forwarded port of the machine @address."""
    client: str
    address: str
    is_reverse: bool = False  # the bytes go the other way than the connection was opened


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    title: str
    kind: str
    viv: Way
    qemu: Way | None  # of the row that it is compared with


IN_SEGMENT, QEMU_LINK, QEMU_DGRAM = Way("a", "10.1.0.11"), Way("q", "10.1.0.11"), Way("q", "10.3.0.11")
ROUTED, MANY = Way("a", "10.2.0.10"), Way("d", "10.2.0.10")
ROWS = [
    Row("segment", "machine to machine, one segment (QEMU: stream)", TCP, IN_SEGMENT, QEMU_LINK),
    Row("segment-dgram", "machine to machine, one segment (QEMU: dgram)", TCP, IN_SEGMENT, QEMU_DGRAM),
    Row("routed", "machine to machine, two segments, 1 rule (QEMU: stream)", TCP, ROUTED, QEMU_LINK),
    Row("routed-1000", f"machine to machine, two segments, {RULES} rules (QEMU: stream)", TCP, MANY, QEMU_LINK),
    Row("to-host", "machine to host, NAT (QEMU: slirp)", TCP, Way("n", "10.0.2.2"), Way("q", "10.0.2.2")),
    Row("from-host", "host to machine, NAT (QEMU: slirp)", TCP, Way("n", "10.0.2.2", True), Way("q", "10.0.2.2", True)),
    Row("forward-in", "host to machine of a lab, forwarded port (QEMU: slirp)", TCP, Way("", "a"), Way("", "q")),
    Row("forward-out", "machine of a lab to host, forwarded port (QEMU: slirp)", TCP, Way("", "a", True), Way("", "q", True)),
    Row("packets", "UDP of 64 bytes, one segment (QEMU: stream)", PACKETS, IN_SEGMENT, QEMU_LINK),
    Row("packets-routed", "UDP of 64 bytes, two segments, 1 rule (QEMU: stream)", PACKETS, ROUTED, QEMU_LINK),
    Row("packets-1000", f"UDP of 64 bytes, two segments, {RULES} rules (QEMU: stream)", PACKETS, MANY, QEMU_LINK),
    Row("connects", "connections, two segments, 1 rule (QEMU: stream)", CONNECTS, ROUTED, QEMU_LINK),
    Row("connects-1000", f"connections, two segments, {RULES} rules (QEMU: stream)", CONNECTS, MANY, QEMU_LINK),
]
# The same with and without many rules.
RULE_PAIRS = [("routed", "routed-1000"), ("packets-routed", "packets-1000"), ("connects", "connects-1000")]

# ---- the guest: a kernel, and a disk in memory with what is run ----

INIT = r"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t tmpfs tmp /tmp
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r module; do $b insmod "/modules/$module"; done </modules/order
$b ip link set lo up
for n in 0 1 2; do
	eval "ip=\$IP$n"
	[ -n "$ip" ] || continue
	$b ip link set eth$n up && $b ip addr add "$ip" dev eth$n
done
[ -z "$GW" ] || $b ip route add default via "$GW"
exec /bench/agent
"""
NETWORK = ["net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko"]
ADDRESSES = sorted({w.address for row in ROWS for w in (row.viv, row.qemu) if w and w.client})
RATE = ("awk '/\"sum_received\"/ { on = 1 } on && /\"bits_per_second\"/ { split($0, f, \"[:,]\"); print f[2] / 8388608; exit }' "
        "/task/run.out")
PACKET_RATE = ("awk '/\"sum\":/ { on = 1 } on { split($0, f, \"[:,]\") } on && /\"seconds\"/ { s = f[2] } "
               "on && /\"lost_packets\"/ { lost = f[2] } on && /\"packets\"/ { print (f[2] - lost) / s; exit }' /task/run.out")


def needs_iperf(rows):
    return any(row.kind != CONNECTS for row in rows)


def word(address):
    return address.replace(".", "-")


def scripts(seconds, host_port, has_iperf):
    """{name: (run, seconds)} as agent.c finds them."""
    iperf = f"iperf3 -s -D -p {IPERF_PORT} && " if has_iperf else ""
    found = {"serve": (f"{iperf}/bench/connect serve {CONNECT_PORT}", "true")}
    for address in ADDRESSES:
        port = host_port if address == "10.0.2.2" else IPERF_PORT
        client = f"exec iperf3 --json -c {address} -p {port} -t {seconds}"
        found[f"tcp-{word(address)}"] = client, RATE
        found[f"tcp-{word(address)}-R"] = f"{client} -R", RATE
        found[f"packets-{word(address)}"] = f"{client} -u -b 0 -l 64", PACKET_RATE
        found[f"connects-{word(address)}"] = (f"exec /bench/connect open {address} {CONNECT_PORT} {CONNECTIONS}",
                                              f"awk '{{ print {CONNECTIONS} / $1 }}' /task/run.out")
    return found


def program_files(tree, program):
    """@program of the unpacked image and the libraries it needs, as paths in the guest."""
    libraries = ":".join(str(tree / d) for d in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"))
    loader = "/lib64/ld-linux-x86-64.so.2"
    listed = subprocess.run([str((tree / loader[1:]).resolve()), "--library-path", libraries, "--list", str(tree / program[1:])],
                            check=True, capture_output=True, text=True).stdout
    found = [part for line in listed.splitlines() for part in line.split() if part.startswith(str(tree))]
    names = {"/" + str(pathlib.Path(f).relative_to(tree)) for f in found} - {loader}
    return {program, loader} | {n for n in names if not n.startswith("/usr/lib64") and not n.startswith("/lib64")}


def make_initrd(args, tree, target, host_port):
    work, image, has_iperf = target.parent, args.loaded, needs_iperf(args.chosen)
    for name in ("agent", "connect"):
        bench.compile_static(HERE / f"{name}.c", work / name, args.compiler)
    members = [(d, 0o40755, b"") for d in ("bench", "bench/w", "task", "usr", "usr/bin", "lib", "lib64", "tmp", "etc")]
    for library in ("usr/lib", "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"):
        members.append((library, 0o40755, b""))
    for name in ("agent", "connect"):
        members.append((f"bench/{name}", 0o100755, (work / name).read_bytes()))
    for path in sorted(program_files(tree, "/usr/bin/iperf3")) if has_iperf else []:
        members.append((path[1:], 0o100755, (tree / path[1:]).read_bytes()))
    for name in ("sh", "awk", "cat"):
        members.append((f"bin/{name}", 0o120777, b"/bin/busybox"))
    for name, (run, told) in scripts(args.seconds, host_port, has_iperf).items():
        members.append((f"bench/w/{name}", 0o40755, b""))
        members.append((f"bench/w/{name}/run", 0o100644, run.encode() + b"\n"))
        members.append((f"bench/w/{name}/seconds", 0o100644, told.encode() + b"\n"))
    (modules,) = [d for d in (tree / "usr/lib/modules").iterdir() if d.name.endswith("-amd64")]
    order = archived_file(image["initrd"], "modules/order").decode()
    for module in NETWORK:
        data, name = (modules / "kernel" / module).read_bytes(), module.rsplit("/", 1)[1]
        members.append((f"modules/{name}", 0o100644, data))
        order += f"{name}\n"
    members += [("modules/order", 0o100644, order.encode()), ("init", 0o100755, INIT.encode())]
    base = pathlib.Path(image["initrd"]).read_bytes()
    extra = b"".join(machines.newc(*m) for m in members) + machines.newc("TRAILER!!!", 0, b"")
    target.write_bytes(base + b"\0" * (-len(base) % 512) + extra)


def archived_file(archive, name):
    """One file of an uncompressed newc archive."""
    with open(archive, "rb") as source:
        return subprocess.run(["cpio", "-i", "--to-stdout", "--quiet", name], stdin=source, check=True, capture_output=True).stdout


# ---- sides ----

def append(**settings):
    given = " ".join(f"{k}={v}" for k, v in settings.items())
    return f"console=ttyS0 quiet loglevel=1 PATH=/usr/bin:/bin {given}"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def cpu_s(pids):
    """Seconds that processes took of processors, by all their threads."""
    ns = 0
    for pid in pids:
        for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                ns += int(stat.read_text().split()[0])
    return ns / 1e9


class Side:
    """Machines by name, each with a console; forwarded ports by machine."""

    def __init__(self, work, name):
        self.work, self.name = work, name
        self.machines, self.forwards = {}, {}

    def console(self, name, command, env=None):
        self.machines[name] = machines.Machine(f"{self.name} {name}", command, self.work / f"lab-{self.name}-{name}.log", env)

    def wait_ready(self):
        for machine in self.machines.values():
            machine.wait_ready(bench.START_LIMIT)
            done = machine.run("run", "serve", 20)
            if done.status:
                raise machines.Broken(f"{machine.name}: the servers do not start: {done.text}")

    def pids(self):
        return [m.process.pid for m in self.machines.values()]

    def network_pids(self):
        """Of processes that are nothing but a network."""
        return []

    def close(self):
        for machine in self.machines.values():
            machine.close(at_once=True)


class Qemu(Side):
    def __init__(self, args, work, initrd):
        super().__init__(work, "qemu")
        link, datagrams = work / "link", [work / "dgram-q", work / "dgram-p"]
        for name, last, listens in (("p", 11, "on"), ("q", 10, "off")):
            self.forwards[name] = free_port()
            local, remote = datagrams if name == "q" else datagrams[::-1]
            self.console(name, [
                args.qemu, "-accel", "tcg", "-cpu", args.qemu_cpu, "-smp", "1", "-m", f"{MEM_MIB}M", "-nodefaults", "-display", "none",
                "-no-reboot", "-serial", "stdio", "-kernel", args.loaded["kernel"], "-initrd", str(initrd),
                "-append", append(IP0="10.0.2.15/24", IP1=f"10.1.0.{last}/24", IP2=f"10.3.0.{last}/24"),
                "-netdev", f"user,id=n0,hostfwd=tcp:127.0.0.1:{self.forwards[name]}-:{IPERF_PORT}",
                "-netdev", f"stream,id=n1,server={listens},addr.type=unix,addr.path={link}",
                "-netdev", f"dgram,id=n2,local.type=unix,local.path={local},remote.type=unix,remote.path={remote}",
                *(part for n in range(3) for part in ("-device", f"virtio-net-pci,netdev=n{n},mac=52:54:00:00:{n:02x}:{last:02x}"))])
            if name == "p":
                self.await_path(link)

    def await_path(self, path):
        end = time.monotonic() + 20
        while not path.exists():
            if time.monotonic() > end or self.machines["p"].process.poll() is not None:
                raise machines.Broken(f"QEMU does not start; what it wrote is in {self.machines['p'].log_path}")
            time.sleep(0.05)


LAB = """
networks:
  left: {{subnet: 10.1.0.0/24, uplink: nat}}
  right: {{subnet: 10.2.0.0/24}}
machines:
{machines}
allow:
{rules}
"""
VIV_MACHINES = {  # lab: machine: network, last byte of its address, settings
    "few": {"a": ("left", 10, 'forward: ["{port}:5201"]'), "b": ("left", 11, ""), "c": ("right", 10, "")},
    "many": {"d": ("left", 10, ""), "e": ("right", 10, "")},
}
LAB_RULES = {
    "few": ["left.a -> right.c : any"],
    "many": [f"left.d -> right.e : udp/{20000 + i}" for i in range(RULES - 1)] + ["left.d -> right.e : any"],
}


class Viv(Side):
    def __init__(self, args, work, initrd, name, program):
        super().__init__(work, name)
        self.program, self.home = program, work / f"home-{name}"
        self.home.mkdir()
        self.env = {**os.environ, "VIVARIUM_HOME": str(self.home)}
        guest = f'kernel: "{args.loaded["kernel"]}", initrd: "{initrd}", engine: {args.engine}, memory: {MEM_MIB}M'
        self.labs, used = [], {n for row in args.chosen for n in (row.viv.client, row.viv.address)}
        for lab, members in VIV_MACHINES.items():
            if used & set(members):
                self.up(lab, members, guest)
        if "n" in used:
            self.nat(args, initrd)

    def nat(self, args, initrd):
        self.forwards["n"] = free_port()
        self.console("n", [self.program, "run", "--name", "n", "--rm", "--engine", args.engine, "--mem", f"{MEM_MIB}M", "--net", "nat",
                           "--forward", f"{self.forwards['n']}:{IPERF_PORT}", "--kernel", args.loaded["kernel"], "--initrd", str(initrd),
                           "--append", append(IP0="10.0.2.15/24", GW="10.0.2.2")], self.env)

    def up(self, lab, members, guest):
        lines = []
        for name, (network, last, settings) in members.items():
            subnet = "10.1.0" if network == "left" else "10.2.0"
            if "forward" in settings:
                self.forwards[name] = free_port()
            lines.append(f"  {name}: {{{guest}, append: \"{append(IP0=f'{subnet}.{last}/24', GW=f'{subnet}.1')}\", "
                         f"networks: [{{{network}: {{address: {subnet}.{last}}}}}]"
                         + (f", {settings.format(port=self.forwards[name])}" if settings else "") + "}")
        path = self.home / f"{lab}.yaml"
        path.write_text(LAB.format(machines="\n".join(lines), rules="\n".join(f"  - {r}" for r in LAB_RULES[lab])))
        self.viv("up", str(path))
        self.labs.append(lab)
        for name in members:
            self.console(name, [self.program, "console", name], self.env)

    def viv(self, *words):
        done = subprocess.run([self.program, *words], env=self.env, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise machines.Broken(f"{self.program} {' '.join(words)}: {done.stderr.strip()}")

    def pids(self, *marks):
        """Processes of this home, or those of them whose command line has all of @marks."""
        home, found = f"VIVARIUM_HOME={self.home}".encode(), []
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if home in (process / "environ").read_bytes().split(b"\0") and \
                        set(marks) <= set((process / "cmdline").read_bytes().split(b"\0")):
                    found.append(int(process.name))
        return found

    def network_pids(self):
        return self.pids(b"net")

    def close(self):
        super().close()
        for lab in self.labs:
            with contextlib.suppress(machines.Broken, subprocess.TimeoutExpired):
                self.viv("down", lab)


# ---- measuring ----

def from_host(row, way, port, seconds):
    """The host's own iperf3 as client of a forwarded port."""
    command = ["iperf3", "--json", "-c", "127.0.0.1", "-p", str(port), "-t", str(seconds), *(["-R"] if way.is_reverse else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 4 + 30, check=False)
    try:
        told = json.loads(done.stdout)
        return told["end"]["sum_received"]["bits_per_second"] / 8 / MIB
    except (ValueError, KeyError) as e:
        raise machines.Broken(f"{row.name}: iperf3 of the host: {done.stdout[-200:]} {done.stderr[-200:]}") from e


def from_machine(row, way, machine, seconds):
    script = f"{row.kind}-{word(way.address)}" + ("-R" if way.is_reverse else "")
    for phase in ("run", "seconds"):
        done = machine.run(phase, script, seconds * 4 + 30)
        if done.status:
            raise machines.Broken(f"{row.name}: {phase} ended with status {done.status}: {done.text}")
    return float(done.text)


def measure_one(row, side, way, seconds):
    """{"rate", "cpu", "network_cpu"}: how fast, and what a unit of it took of processors."""
    processes, networks = side.pids(), side.network_pids()
    before, network_before, start = cpu_s(processes), cpu_s(networks), time.monotonic()
    rate = from_machine(row, way, side.machines[way.client], seconds) if way.client else \
        from_host(row, way, side.forwards[way.address], seconds)
    took = CONNECTIONS / rate if row.kind == CONNECTS else min(seconds, time.monotonic() - start)
    units = rate * took / (1 if row.kind == TCP else 1000)
    return {"rate": rate, "cpu": (cpu_s(processes) - before) * 1000 / units,
            "network_cpu": (cpu_s(networks) - network_before) * 1000 / units}


def measure(args, sides, chosen):
    results = {row.name: {name: [] for name in sides if name != "qemu" or row.qemu} for row in chosen}
    failed = []
    for number in range(args.rounds):
        for row in chosen:
            order = list(sides)[number % len(sides):] + list(sides)[:number % len(sides)]
            for name in order:
                way = row.qemu if name == "qemu" else row.viv
                try:
                    results[row.name][name].append(measure_one(row, sides[name], way, args.seconds))
                except (machines.Broken, OSError, ValueError, subprocess.SubprocessError) as e:
                    failed.append(f"{row.name} on {name}: {e}")
                    bench.say(failed[-1])
            bench.say(f"round {number + 1}, {row.name}: " + ", ".join(
                f"{n} {r[-1]['rate']:.1f}" if r else f"{n} failed" for n, r in results[row.name].items()))
    return results, failed


# ---- telling ----

def median(runs, key):
    return statistics.median(r[key] for r in runs) if runs else None


def plain(value, digits=2):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.{digits if value < 10 else 1}f}"


def ratio(above, below):
    return above / below if above and below else None


def table(record):
    sides = record["sides"]
    out = []
    for kind in (TCP, PACKETS, CONNECTS):
        rate, cost = UNITS[kind]
        rows = [r for r in record["rows"] if r["kind"] == kind]
        if not rows:
            continue
        head = [rate] + sides + [f"viv / {s}" for s in sides if s != "viv"] + [f"{s}, processor {cost}" for s in sides] + \
            [f"{s}, its network's part" for s in sides if s != "qemu"]
        lines = [head]
        for row in rows:
            rates = {s: median(row["runs"].get(s, []), "rate") for s in sides}
            lines.append([row["title"]] + [plain(rates[s]) for s in sides] +
                         [plain(ratio(rates["viv"], rates[s])) for s in sides if s != "viv"] +
                         [plain(median(row["runs"].get(s, []), "cpu")) for s in sides] +
                         [plain(median(row["runs"].get(s, []), "network_cpu"), 3) for s in sides if s != "qemu"])
        out += report.aligned(lines) + [""]
    return out + rule_lines(record)


def rule_lines(record):
    """What many rules cost, by the best run of each: what disturbs a run only makes it worse."""
    runs = {r["name"]: r["runs"].get("viv") for r in record["rows"]}
    lines = []
    for few, many in RULE_PAIRS:
        if not runs.get(few) or not runs.get(many):
            continue
        told = []
        for key, best, title in (("rate", max, "rate"), ("cpu", min, "processor time"), ("network_cpu", min, "the network's part of it")):
            before, after = (best(r[key] for r in runs[name]) for name in (few, many))
            if before:
                told.append(f"{title} {100 * (after / before - 1):+.1f} %")
        lines.append(f"{RULES} rules against 1, {few}, best runs: {', '.join(told)}.")
    return lines + [""] if lines else []


def describe(record):
    host = record["host"]
    return (f"{record['date']}; {host['cpu']}, {host['cores']} CPUs, Linux {host['kernel']}, load {host['load_before']:.2f} before and "
            f"{host['load_after']:.2f} after; guests with 1 vCPU, {MEM_MIB} MiB; " +
            "; ".join(f"{k}: {v}" for k, v in record["versions"].items()) +
            f"; medians of {record['rounds']} rounds of {record['seconds']} s in turns.")


def text_of(record):
    failed = record["failed"]
    return "\n".join([describe(record), "", *table(record)] + (
        ["What failed:", "", *(f"* {f}" for f in failed), ""] if failed else ["Nothing failed.", ""]))


# ---- all of it ----

def parse(argv):
    p = argparse.ArgumentParser(prog="lab", description=__doc__.split("\n", maxsplit=1)[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--rounds", type=int, default=3, help="how often each row is measured")
    p.add_argument("--seconds", type=int, default=4, help="how long iperf3 sends")
    p.add_argument("--only", metavar="NAMES", help=f"some of {','.join(r.name for r in ROWS)}")
    p.add_argument("--sides", default="viv,qemu", help="which of viv, qemu")
    p.add_argument("--other", metavar="VIV", help="a second build of viv to compare with")
    p.add_argument("--image", default="bench", help="whose kernel and iperf3 the guests have")
    p.add_argument("--viv", default=str(ROOT / "build" / "viv"), help="program")
    p.add_argument("--engine", default="dbt", help="of viv")
    p.add_argument("--qemu", default="qemu-system-x86_64", help="program")
    p.add_argument("--qemu-cpu", default="max", help="model of QEMU")
    p.add_argument("--compiler", default="cc", help="of the small programs in the guest")
    p.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "bench", help="where the results go")
    args = p.parse_args(argv)
    args.names = [s for s in args.sides.split(",") if s]
    if not args.names or not set(args.names) <= {"viv", "qemu"}:
        p.error("--sides takes some of viv, qemu")
    names = args.only.split(",") if args.only else [r.name for r in ROWS]
    args.chosen = [r for r in ROWS if r.name in names]
    if len(args.chosen) != len(set(names)):
        p.error(f"--only takes some of {', '.join(r.name for r in ROWS)}")
    if args.rounds < 1 or args.seconds < 1:
        p.error("--rounds and --seconds are at least 1")
    return args


@contextlib.contextmanager
def sides_up(args, work, initrd):
    up = {}
    try:
        if "viv" in args.names:
            up["viv"] = Viv(args, work, initrd, "viv", args.viv)
        if args.other:
            up["other"] = Viv(args, work, initrd, "other", args.other)
        if "qemu" in args.names:
            up["qemu"] = Qemu(args, work, initrd)
        for side in up.values():
            side.wait_ready()
        yield up
    finally:
        for side in up.values():
            side.close()


def run(args, work):
    has_iperf = needs_iperf(args.chosen)
    if has_iperf and not shutil.which("iperf3"):
        raise SystemExit("lab: this host has no iperf3")
    tree = args.out / "tree"
    bench.say("unpacking the image, making the guest")
    machines.unpack_tree(args.loaded["disk"], tree)
    if has_iperf and not bench.has_program(tree, "iperf3"):
        raise SystemExit(f"lab: the image \"{args.image}\" has no iperf3; make bench makes one that has")
    host = bench.host_facts()
    with bench.iperf_server(has_iperf) as host_port:
        initrd = work / "initrd"
        make_initrd(args, tree, initrd, host_port)
        with sides_up(args, work, initrd) as sides:
            results, failed = measure(args, sides, args.chosen)
            names = list(sides)
    host["load_after"] = os.getloadavg()[0]
    versions = {"viv": machines.first_line(args.viv, "version"), "QEMU": machines.first_line(args.qemu, "--version")}
    return {"format": 1, "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "host": host,
            "versions": versions, "sides": names, "rounds": args.rounds, "seconds": args.seconds, "failed": failed,
            "rows": [{"name": r.name, "title": r.title, "kind": r.kind, "runs": results[r.name]} for r in args.chosen]}


def main(argv=None):
    args = parse(argv)
    if threading.current_thread() is threading.main_thread():  # a test may call from another one
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # no machine is left behind
    args.loaded = bench.load_image(args.image)
    args.out.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix="lab-", dir=args.out))
    try:
        record = run(args, work)
    except machines.Broken as e:
        raise SystemExit(f"lab: {e}") from e
    finally:
        for log in work.glob("*.log"):
            shutil.copy(log, args.out)
        shutil.rmtree(work, ignore_errors=True)
    text = text_of(record)
    (args.out / "lab.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "lab.md").write_text(text)
    print(text)
    bench.say(f"{args.out}/lab.md, lab.json")
    return 1 if record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
