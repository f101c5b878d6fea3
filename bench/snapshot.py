#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""snapshot.py [--mem 512M] [--large 4G] [--fork 1G] [--fill 0] [--copies 10] [--no-disk] [--no-qemu] - snapshots, restore, copies and resets of a
Debian machine and what disks of a guest do, and QEMU's savevm, loadvm and disks beside them.

Prints one row a figure: best, median and worst of some rounds.  --large, --fork: the memory of two more machines, whose pauses for snapshots and for
a copy are measured, and nothing else; 0: none.  --fill: so many MiB of memory the guest has written to before, at random places of
which the load writes, in place of a file that it writes again and again.  What QEMU does with a machine that stands still is shown as a pause; QEMU has
no living copies.  Disks: bench.py with fio, on a raw and on a qcow2 file.  Nothing of it remains afterwards.
"""
import argparse
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time

import qmp

ROOT = pathlib.Path(__file__).resolve().parents[1]
VIV = ROOT / "build" / "viv"
DATA = pathlib.Path(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")) / "vivarium"
IMAGE = DATA / "images" / "debian"
ROUNDS = 7
RESETS = 300
IDLE_S = 15  # it has booted, or was reset, a moment ago


def row(what, values, unit="ms"):
    if values:
        print(f"{what:<72} {min(values):>9.1f} {statistics.median(values):>9.1f} {max(values):>9.1f} {unit}", flush=True)


def ms(since):
    return (time.monotonic() - since) * 1000


def forget_files(folder):
    """Out of the page cache, as after a boot of this host."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def own_memory(pid):
    """
    MiB that nobody else uses: private pages, page tables, and translated code, which the process has mapped twice: so it does not count as
    private, and half of its share is in each mapping.
    """
    kib, is_code = 0, False
    with open(f"/proc/{pid}/smaps") as file:
        for line in file:
            key, value = line.split()[:2]
            if not key.endswith(":"):
                is_code = "memfd:viv-code" in line
            elif key == "Pss:" if is_code else key.startswith("Private_"):
                kib += int(value)
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return (kib + int(status.split("VmPTE:")[1].split()[0])) / 1024


class Control:
    """A connection to a machine's control socket."""

    def __init__(self, home, name):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(home / "run" / name / "control.sock"))
        self.file = self.socket.makefile("r")

    def __call__(self, cmd, **args):
        self.socket.sendall(json.dumps({"cmd": cmd, **args}).encode() + b"\n")
        reply = json.loads(self.file.readline())
        if not reply["ok"]:
            raise SystemExit(f"{cmd}: {reply['error']}")
        return reply


# What it writes is in the page cache of /dev/shm: one byte a page, at random.
SCATTER = 'open F, "+<", "/dev/shm/x"; while (1) { seek F, int(rand(%d)) * 4096, 0; syswrite F, "x"; select(undef, undef, undef, 0.001) if rand() < 0.1 }'
AGAIN = "while :; do dd if=/dev/zero of=/dev/shm/x bs=1M count=50; done"


@contextlib.contextmanager
def machine(home, mem):
    """A Debian guest, at its agent's first answer; yields how to call viv."""
    def viv(*args):
        return subprocess.run([VIV, *args], env={**os.environ, "VIVARIUM_HOME": str(home)}, check=True, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout

    (home / "images").symlink_to(DATA / "images")
    viv("run", "debian", "--name", "a", "--mem", mem, "--detach")
    try:
        viv("exec", "a", "--", "true")
        yield viv
    finally:
        for vm in json.loads(viv("list", "--json")):
            viv("rm", "-f", vm["name"])


def bench_pauses(viv, mem, fill):
    if fill:
        viv("exec", "a", "--", "sh", "-c", f"mount -o remount,size={fill + 64}M /dev/shm && dd if=/dev/zero of=/dev/shm/x bs=1M count={fill}")
    for load in ("idle", "writing to memory"):
        if load != "idle":
            viv("exec", "a", "--", "systemd-run", "--unit=load", *(("perl", "-e", SCATTER % (fill * 256)) if fill else ("sh", "-c", AGAIN)))
            time.sleep(2)
        taken = []
        for i in range(ROUNDS):
            taken.append(json.loads(viv("snapshot", "create", "a", f"s{load[0]}{i}", "--json")))
            time.sleep(5 if fill else 0)  # memory is put together again
        row(f"viv {mem}: pause of a whole snapshot, {load}", [taken[0]["pause_us"] / 1000])
        row(f"viv {mem}: pause of an incremental one, {load}", [t["pause_us"] / 1000 for t in taken[1:]])
        row(f"viv {mem}: size of an incremental one, {load}", [t["bytes"] / 2**20 for t in taken[1:]], "MiB")
    viv("exec", "a", "--", "systemctl", "stop", "load")


def bench_fork(viv, mem):
    paused, running = [], []
    for i in range(5):
        asked = time.monotonic()
        paused.append(json.loads(viv("fork", "a", "--name", f"f{i}", "--json"))["pause_us"] / 1000)
        while not (first := json.loads(viv("info", "--json", f"f{i}")).get("first_instruction_ns")):
            time.sleep(0.01)
        running.append(first / 1e6 - asked * 1000)
    row(f"viv {mem}: pause for a copy", paused)
    row("    from the command to the copy's first instruction", running)
    viv("rm", "-f", *[f"f{i}" for i in range(5)])


def bench_resets(home, mem):
    control = Control(home, "a")
    row(f"viv {mem}: back in place to another moment", [control("restore", name=f"si{i}")["pause_us"] / 1000
                                                          for i in range(ROUNDS)])
    began = time.monotonic()
    resets = [control("restore", name="si6") for _ in range(RESETS)]
    row(f"viv {mem}: back to the same moment, again and again", [r["pause_us"] / 1000 for r in resets])
    row("    pages put back", [r["pages"] for r in resets], "pages")
    row("    of those with at most 50 pages", [r["pause_us"] / 1000 for r in resets if r["pages"] <= 50])
    row("    so many a second, asked for one after the other", [RESETS / (time.monotonic() - began)], "a second")


def bench_viv(home, mem, fill, copies):
    with machine(home, mem) as viv:
        bench_pauses(viv, mem, fill)
        bench_resets(home, mem)
        bench_fork(viv, mem)
        time.sleep(IDLE_S)
        started = time.monotonic()
        viv("fork", "a", "-n", str(copies), "--name", "w{}")
        row(f"viv {mem}: {copies} copies, all running", [ms(started)])
        pids = [vm["pid"] for vm in json.loads(viv("list", "--json")) if vm["name"].startswith("w")]
        time.sleep(5)
        row(f"viv {mem}: memory of an idle copy's own, code and page tables included", [own_memory(pid) for pid in pids], "MiB")
        viv("rm", "-f", *[f"w{i + 1}" for i in range(copies)])
        warm = []
        for _ in range(ROUNDS):
            started = time.monotonic()
            viv("exec", "a", "--", "true")
            warm.append(ms(started))
        row(f"viv {mem}: an answer of a machine that has long been running", warm)
        for how in ("", "its working set read ahead and its code kept", "--prefault", "its files in the page cache"):
            ready, first, answer = [], [], []
            for _ in range(ROUNDS if how else 3):
                viv("stop", "-f", "a")
                if how != "its files in the page cache":
                    forget_files(home / "vms" / "a")
                for file in (home / "vms" / "a" / "snapshots").glob("*/*-set"):
                    if not how:
                        file.unlink()
                started = time.monotonic()
                viv("snapshot", "restore", "a", "si6", *(["--prefault"] if how == "--prefault" else []))
                ready.append(ms(started))
                viv("exec", "a", "--", "true")
                answer.append(ms(started) - ready[-1])
                info = json.loads(viv("info", "--json", "a"))
                first.append(info["first_instruction_ns"] / 1e6 - started * 1000)
                if not how:
                    time.sleep(5)  # they are recorded
            row(f"viv {mem}: started from a snapshot on the disk, {how or 'nothing read ahead'}", ready)
            row("    from the command to the first guest instruction", first)
            row("    and the first answer after that", answer)
            row("    which is so many times a warm machine's (medians)", [statistics.median(answer) / statistics.median(warm)], "times")


class Qemu:
    def __init__(self, home, mem):
        disk, monitor, self.serial = home / "q.qcow2", home / "qmp", home / "serial"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", IMAGE / "disk.raw", disk], check=True)
        append = json.loads((IMAGE / "image.json").read_text())["append"]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-m", mem, "-display", "none", "-kernel", IMAGE / "vmlinuz", "-initrd",
             IMAGE / "initrd", "-append", append, "-drive", f"file={disk},if=virtio", "-serial", f"file:{self.serial}",
             "-qmp", f"unix:{monitor},server=on,wait=off"])
        end = time.monotonic() + 300
        while not self.serial.exists() or b"login:" not in self.serial.read_bytes():
            if time.monotonic() > end or self.process.poll() is not None:
                raise SystemExit("QEMU's guest did not come to its login")
            time.sleep(0.5)
        self.qmp = qmp.Qmp(monitor)

    def monitor(self, line):
        started = time.monotonic()
        said = self.qmp("human-monitor-command", **{"command-line": line})
        if "rror" in said:
            raise SystemExit(f"QEMU: {line}: {said}")
        return ms(started)


def bench_qemu(home, mem):
    qemu = Qemu(home, mem)
    try:
        row(f"QEMU TCG {mem}: pause of savevm, idle", [qemu.monitor(f"savevm s{i}") for i in range(3)])
        row(f"QEMU TCG {mem}: loadvm", [qemu.monitor("loadvm s1") for _ in range(3)])
    finally:
        qemu.process.kill()
        qemu.process.wait()


def bench_disks(names):
    for form in ("raw", "qcow2"):
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([ROOT / "bench" / "bench.py", "--only", "fio.*", "--machines", names, "--scratch", form, "--rounds", "3", "--no-login",
                            "--viv", VIV, "--out", out], check=True, stdout=subprocess.DEVNULL)
            record = json.loads((pathlib.Path(out) / "bench.json").read_text())
        for name in names.split(","):
            for work in record["rows"]:
                row(f"{name} {form}: {work['title']}", work["times"][name], "s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mem", default="512M")
    parser.add_argument("--large", default="4G", metavar="MEM")
    parser.add_argument("--fork", default="1G", metavar="MEM")
    parser.add_argument("--no-disk", action="store_true")
    parser.add_argument("--fill", type=int, default=0, metavar="MIB")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--no-qemu", action="store_true")
    args = parser.parse_args()
    print(f"{time.strftime('%F')}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
          f"{subprocess.run(['uname', '-r'], text=True, stdout=subprocess.PIPE).stdout.strip()}")
    print(f"{'':<72} {'best':>9} {'median':>9} {'worst':>9}")
    with tempfile.TemporaryDirectory() as home:
        bench_viv(pathlib.Path(home), args.mem, args.fill, args.copies)
    if args.large != "0":
        with tempfile.TemporaryDirectory() as home, machine(pathlib.Path(home), args.large) as viv:
            bench_pauses(viv, args.large, 0)
    if args.fork != "0":
        with tempfile.TemporaryDirectory() as home, machine(pathlib.Path(home), args.fork) as viv:
            time.sleep(IDLE_S)
            bench_fork(viv, args.fork)
    if not args.no_qemu:
        with tempfile.TemporaryDirectory() as home:
            bench_qemu(pathlib.Path(home), args.mem)
    if not args.no_disk:
        bench_disks("viv" if args.no_qemu else "viv,qemu")


with contextlib.suppress(KeyboardInterrupt):
    main()
