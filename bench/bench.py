#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same programs and inputs natively, in viv and in QEMU's TCG, in turns, in one run; `make bench` calls it.

Leaves in --out: bench.md (the table), bench.json (everything measured), bench.svg (a chart).
Exit status 0: every program ran everywhere and computed the same; 1: not all did (they are named); 2: bad usage.
"""
import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

import machines
import report
import workloads

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
TEXT_MIB = 16
UNITS = ("src/dev/chipset", "src/dev/virtio")  # what gcc compiles: files that need no library but C's
FIRST_UNIT = "virtio_net"
START_LIMIT = 180


def say(*words):
    print("bench:", *words, file=sys.stderr, flush=True)


# ---- inputs: the same bytes for every machine, and the same on every host ----

def make_text(path):
    """Words as often as in real texts, numbers, and some lines that look like programs."""
    rng = random.Random(1)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    vocabulary = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 11))) for _ in range(20000)]
    weights = [1 / (rank + 3) for rank in range(len(vocabulary))]
    size = TEXT_MIB << 20
    with open(path, "w", encoding="ascii") as out:
        while out.tell() < size:
            words = rng.choices(vocabulary, weights, k=40000)
            lines = []
            for i in range(0, len(words), 10):
                if i % 70 == 0:
                    lines.append(f"\t{words[i]}->{words[i + 1]} = {rng.randrange(10000)};")
                lines.append(" ".join(words[i:i + 10]).capitalize() + ".")
            out.write("\n".join(lines) + "\n")
        out.truncate(size)


def compile_static(source, target, compiler):
    subprocess.run([compiler, "-std=gnu17", "-O2", "-static", "-o", str(target), str(source), "-lm"], check=True)


def make_payload(payload, chosen, compiler):
    payload.mkdir(parents=True)
    compile_static(HERE / "agent.c", payload / "agent", compiler)
    compile_static(HERE / "micro.c", payload / "micro", compiler)
    make_text(payload / "text")
    (payload / "units").mkdir()
    for source in sorted(f for folder in UNITS for f in (ROOT / folder).glob("*.c") if not f.stem.endswith("_test")):
        subprocess.run([compiler, "-std=gnu17", "-I", str(ROOT / "src"), "-E", "-P", str(source), "-o",
                        str(payload / "units" / f"{source.stem}.i")], check=True)
    shutil.copy(payload / "units" / f"{FIRST_UNIT}.i", payload / "unit.i")
    (payload / "prime").write_text(" ".join([f"{2 ** 2203 - 1:x}"] * 3) + "\n")
    for file in (HERE / "load").iterdir():
        shutil.copy(file, payload / file.name)
    for w in chosen:
        folder = payload / "w" / w.name
        folder.mkdir(parents=True)
        # The program is in the page cache before it is timed: how fast disks are is asked elsewhere.
        warm = f'cat "$(command -v {w.needs})" > /dev/null\n' if w.needs else ""
        (folder / "prepare").write_text(f"set -e\nrm -rf /task/*\n{warm}{w.prepare}\n")
        (folder / "run").write_text(f"{w.run}\n")
        (folder / "check").write_text(f"{w.check}\n")
        if w.seconds:
            (folder / "seconds").write_text(f"{w.seconds}\n")


def make_disk(target, mib, directory):
    subprocess.run(["mke2fs", "-q", "-q", "-F", "-t", "ext4", "-m", "0", "-d", str(directory), str(target), f"{mib}M"],
                   check=True, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})


def make_scratch(path, mib):
    """All of it written, so that whoever reads reads data; the same in each format."""
    block = random.Random(2).randbytes(1 << 20)
    raw = path.with_suffix(".img")
    with open(raw, "wb") as out:
        for _ in range(mib):
            out.write(block)
    if path.suffix == ".qcow2":
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)
        raw.unlink()


# ---- the other end of the network's workloads ----

def receive_exactly(conn, size):
    got = 0
    while got < size:
        data = conn.recv(min(1 << 20, size - got))
        if not data:
            break
        got += len(data)
    return got


def serve(conn):
    with conn, contextlib.suppress(OSError, ValueError):
        request = conn.recv(7, socket.MSG_WAITALL)
        mib = int(request[1:])
        if request[:1] == b"s":
            conn.sendall(b"%06d" % (receive_exactly(conn, mib << 20) >> 20))
        else:
            block = bytes(1 << 20)
            for _ in range(mib):
                conn.sendall(block)


def start_server():
    listener = socket.create_server(("127.0.0.1", 0))

    def loop():
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=serve, args=(conn,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()
    return listener.getsockname()[1]


@contextlib.contextmanager
def iperf_server(is_wanted):
    """The port on which this host's iperf3 serves meanwhile; 0 when it is not wanted."""
    if not is_wanted:
        yield 0
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # It tells nothing of when it listens; the first guest takes seconds to come.
    server = subprocess.Popen(["iperf3", "-s", "-B", "127.0.0.1", "-p", str(port)], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        server.kill()
        server.wait()


# ---- measuring ----

class Run:
    """One run of the benchmark: machines that come and go, rows that fill."""

    def __init__(self, names, chosen, parts, engine):
        self.names, self.chosen, self.parts, self.engine = names, chosen, parts, engine
        self.rows = {w.name: {"name": w.name, "group": w.group, "title": w.title, "times": {n: [] for n in names},
                              "host_times": {n: [] for n in names}, "results": {}, "failed": {}, "is_equal": True,
                              "notes": []} for w in chosen}
        self.boots = {n: [] for n in names if n != "native"}
        self.up, self.broken, self.started = {}, {}, 0
        self.resident, self.info = {}, {}

    def start(self, name):
        """Start the machine @name; False when it can't be, which stays so."""
        if name in self.broken:
            return False
        self.started += 1
        log = self.parts.work / f"{name}-{self.started}.log"
        machine = None
        try:
            if name == "viv":
                machine = machines.start_viv(self.parts, log, f"bench-{self.started}", self.engine)
            else:
                machine = machines.STARTERS[name](self.parts, log)
            machine.wait_ready(START_LIMIT)
        except (machines.Broken, OSError) as e:
            self.broken[name] = f"does not start: {e}"
            say(f"{name}: {self.broken[name]}")
            if machine:
                machine.close()
            return False
        if name in self.boots:
            self.boots[name].append(machine.ready_s)
        self.up[name] = machine
        return True

    def stop(self, name):
        machine = self.up.pop(name, None)
        if not machine:
            return
        pid = machine.process.pid
        if name == "viv":
            self.info = machines.viv_info(machine, self.parts.viv)
            pid = self.info.get("pid", pid)
        if name != "native":
            resident = machines.resident_beside_ram(pid)
            if resident is not None:
                self.resident[name] = resident
        machine.close()

    def one(self, name, w):
        """Prepare, run, check @w on the machine @name."""
        row = self.rows[w.name]
        if name in row["failed"] or (name not in self.up and not self.start(name)):
            row["failed"].setdefault(name, self.broken.get(name, "failed before"))
            return
        machine = self.up[name]
        try:
            phases = ("prepare", "run", "check", "seconds") if w.seconds else ("prepare", "run", "check")
            done = {phase: machine.run(phase, w.name, w.limit) for phase in phases}
        except (machines.Broken, OSError) as e:
            row["failed"][name] = str(e)
            say(f"{w.name}: {e}")
            machine.close()
            self.up.pop(name)
            return
        for phase, result in done.items():
            if result.status:
                row["failed"][name] = f"{phase} ended with status {result.status}: {' '.join(result.text.split())[:120]}"
                return
        try:
            own = float(done["seconds"].text) if w.seconds else None
        except ValueError:
            row["failed"][name] = f"it tells no time: {done['seconds'].text[:120]!r}"
            return
        self.note(row, name, done["run"], done["check"].text, own)

    @staticmethod
    def note(row, name, result, text, own_s=None):
        """@own_s: the time that the program tells, in place of the whole run's, which is compared with the host's clock."""
        row["times"][name].append(result.guest_s if own_s is None else own_s)
        row["host_times"][name].append(result.host_max_s)
        row["results"].setdefault(name, text)
        row["is_equal"] &= all(t == text for t in row["results"].values())
        if not (result.host_min_s * 0.95 - 0.05 <= result.guest_s <= result.host_max_s * 1.05 + 0.05):
            row["notes"].append(f"the clock of {name} says {result.guest_s:.3f} s, the host's between "
                                f"{result.host_min_s:.3f} s and {result.host_max_s:.3f} s")

    def round(self, number, deadline):
        """Each workload on each machine, in an order that turns from round to round; False at @deadline."""
        order = self.names[number % len(self.names):] + self.names[:number % len(self.names)]
        for name in order:
            self.start(name)
        try:
            for i, w in enumerate(self.chosen, 1):
                if time.monotonic() > deadline:
                    return False
                for name in order:
                    self.one(name, w)
                row = self.rows[w.name]
                say(f"round {number + 1}, {i}/{len(self.chosen)} {w.name}: " + ", ".join(
                    f"{n} " + ("failed" if n in row["failed"] else f"{row['times'][n][-1]:.3f}") for n in self.names))
        finally:
            for name in list(self.up):
                self.stop(name)
        return True


def login_times(parts, names, rounds, engine):
    """From exec to a shell on the console of the whole image, with its own services; and what is resident then."""
    starts, resident = ({n: [] for n in names if n != "native"} for _ in range(2))
    for number in range(rounds):
        for name in starts:
            log = parts.work / f"{name}-login-{number}.log"
            took, held = machines.time_to_login(parts, name, log, engine, START_LIMIT)
            if took:
                starts[name].append(took)
            if held is not None:
                resident[name].append(held)
            say(f"login {number + 1}, {name}: " + (f"{took:.2f}" if took else f"no login within {START_LIMIT} s"))
    return starts, resident


def logins(args, parts, image, deadline, left_out):
    """Rows of the table of starts: the image that everything runs in, and Debian's full kernel with nothing added."""
    rows = []
    for name, kind in ((args.image, "cloud kernel"), (args.full, "full kernel")):
        title = f"to a shell on the console of Debian with systemd, {kind}"
        if time.monotonic() > deadline:
            left_out.append(f"{title}: left out, the {args.minutes:g} minutes were over")
        elif name != args.image and not (image_directory(name) / "image.json").exists():
            left_out.append(f"{title}: left out, there is no image \"{name}\"; make bench makes it")
        else:
            chosen = dataclasses.replace(parts, image=image if name == args.image else load_image(name))
            times, resident = login_times(chosen, args.names, args.rounds, args.engine)
            rows.append({"title": title, "times": times, "resident_mib": resident})
    return rows


# ---- what, where ----

def host_facts():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    memory = re.search(r"^MemTotal: +(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.M)
    return {"cpu": model[1] if model else platform.machine(), "cores": len(os.sched_getaffinity(0)),
            "memory_mib": int(memory[1]) // 1024 if memory else 0, "kernel": platform.release(),
            "load_before": os.getloadavg()[0]}


def image_directory(name):
    home = os.environ.get("VIVARIUM_HOME")
    store = pathlib.Path(home) if home else pathlib.Path(
        os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) / "vivarium"
    return store / "images" / name


def load_image(name):
    directory = image_directory(name)
    try:
        image = json.loads((directory / "image.json").read_text())
    except (OSError, ValueError) as e:
        raise SystemExit(f"bench: there is no image \"{name}\" ({e}); make bench makes it") from e
    for key in ("kernel", "initrd", "disk"):
        image[key] = str(directory / image[key])
    return image


def has_program(tree, program):
    return any((tree / d / program).exists() or (tree / d / program).is_symlink()
               for d in ("bin", "sbin", "usr/bin", "usr/sbin"))


def choose(args, tree):
    chosen, left_out = [], []
    for w in workloads.WORKLOADS:
        if args.quick and w.name not in workloads.QUICK and not args.only:
            continue
        if args.only and not re.fullmatch(args.only, w.name):
            continue
        if w.needs and not has_program(tree, w.needs):
            left_out.append(f"{w.name}: left out, the image \"{args.image}\" has no {w.needs}")
        elif w.serves and not shutil.which(w.serves):
            left_out.append(f"{w.name}: left out, this host has no {w.serves}")
        else:
            chosen.append(w)
    return chosen, left_out


def parse(argv):
    p = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n", maxsplit=1)[0],
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--quick", action="store_true", help="one round of a few workloads, in some minutes")
    p.add_argument("--rounds", type=int, default=0, help="how often each runs; 0: 3, or 1 with --quick")
    p.add_argument("--only", metavar="REGEX", help="only workloads whose whole name this matches")
    p.add_argument("--machines", default="native,viv,qemu", help="which of native, viv, qemu")
    p.add_argument("--minutes", type=float, default=60, help="after this nothing new is begun")
    p.add_argument("--image", default="bench", help="the guest")
    p.add_argument("--viv", default=str(ROOT / "build" / "viv"), help="program")
    p.add_argument("--engine", default="dbt", help="of viv")
    p.add_argument("--qemu", default="qemu-system-x86_64", help="program")
    p.add_argument("--qemu-cpu", default="max", help="model of QEMU")
    p.add_argument("--cpus", type=int, default=1, help="of each guest")
    p.add_argument("--scratch", choices=["raw", "qcow2"], default="raw", help="format of the disk that fio works on in a guest")
    p.add_argument("--compiler", default="cc", help="of the small programs, which are the same file everywhere")
    p.add_argument("--full", default="full", help="image with Debian's full kernel, for the way to a login")
    p.add_argument("--only-login", action="store_true", help="measure nothing but the way to a login")
    p.add_argument("--no-login", action="store_true", help="do not measure the way to a login")
    p.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "bench", help="where the results go")
    p.add_argument("--list", action="store_true", help="show the workloads and end")
    args = p.parse_args(argv)
    args.names = [n for n in args.machines.split(",") if n]
    if not args.names or not set(args.names) <= set(machines.STARTERS):
        p.error(f"--machines takes some of {', '.join(machines.STARTERS)}")
    try:
        re.compile(args.only or "")
    except re.error as e:
        p.error(f"--only: {e}")
    args.rounds = args.rounds or (1 if args.quick else 3)
    return args


def measure(args, image, work):
    tree = args.out / "tree"
    say("unpacking the image, making the inputs")
    machines.unpack_tree(image["disk"], tree)
    chosen, left_out = choose(args, tree)
    if args.only_login:
        chosen, left_out = [], []
    elif not chosen:
        raise SystemExit("bench: nothing to run: " + ("; ".join(left_out) or "no workload has such a name"))
    with iperf_server(any(w.serves for w in chosen)) as iperf_port:
        return measure_chosen(args, image, work, chosen, left_out, iperf_port)


def measure_chosen(args, image, work, chosen, left_out, iperf_port):
    tree = args.out / "tree"
    parts = machines.Parts(work=work, image=image, tree=tree, payload=work / "payload", payload_disk=work / "payload.img",
                           scratch={n: work / f"scratch-{n}{'.qcow2' if args.scratch == 'qcow2' and n != 'native' else '.img'}" for n in args.names}, initrd=work / "initrd", port=start_server(),
                           iperf_port=iperf_port, viv=args.viv, qemu=args.qemu, cpu=args.qemu_cpu, cpus=args.cpus)
    make_payload(parts.payload, chosen, args.compiler)
    make_disk(parts.payload_disk, 128, parts.payload)
    for path in parts.scratch.values():
        make_scratch(path, max([1, *(w.scratch_mib for w in chosen)]))
    machines.make_initrd(image["initrd"], HERE / "init", parts.initrd)
    host = host_facts()
    run = Run(args.names, chosen, parts, args.engine)
    deadline = time.monotonic() + args.minutes * 60
    for number in range(0 if args.only_login else args.rounds):
        if not run.round(number, deadline):
            left_out.append(f"stopped in round {number + 1} of {args.rounds}: the {args.minutes:g} minutes were over")
            break
    starts = [{"title": "to the first process of a guest without services", "times": run.boots}]
    if not args.no_login and not args.quick:
        starts += logins(args, parts, image, deadline, left_out)
    host["load_after"] = os.getloadavg()[0]
    versions = {"image": image.get("title", args.image), "viv": machines.first_line(args.viv, "version"),
                "QEMU": machines.first_line(args.qemu, "--version") + f", -accel tcg -cpu {args.qemu_cpu} -smp {args.cpus}"}
    if "qemu" not in args.names:
        del versions["QEMU"]
    rows = [r for r in run.rows.values() if any(r["times"].values()) or r["failed"]]
    return {"format": 1, "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "host": host, "versions": versions, "machines": args.names, "viv_engine": args.engine, "cpus": args.cpus, "rows": rows,
            "means": report.means(rows, workloads.FIRST_16), "starts": starts, "resident_mib": run.resident,
            "left_out": left_out,
            "viv_info": {k: run.info[k] for k in ("engine", "counters", "devices") if k in run.info}}


def text_of(record):
    bad = report.failures(record)
    return "\n".join([report.describe(record), "", report.table(record)] +
                     (["What failed, differed or was left out:", "", *(f"* {b}" for b in bad), ""] if bad else
                      ["Nothing failed; all results were equal.", ""]))


def main(argv=None):
    args = parse(argv)
    if args.list:
        for w in workloads.WORKLOADS:
            print(f"{w.name:15} {w.group:8} {w.title}")
        return 0
    image = load_image(args.image)
    args.out.mkdir(parents=True, exist_ok=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix="run-", dir=args.out))
    try:
        record = measure(args, image, work)
    finally:
        for log in work.glob("*.log"):
            shutil.copy(log, args.out)
        shutil.rmtree(work, ignore_errors=True)
    text = text_of(record)
    (args.out / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / "bench.md").write_text(text)
    (args.out / "bench.svg").write_text(report.chart(record))
    print(text)
    say(f"{args.out}/bench.md, bench.json, bench.svg")
    return 1 if any(r["failed"] or not r["is_equal"] for r in record["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
