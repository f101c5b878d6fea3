# SPDX-License-Identifier: Apache-2.0
"""Where workloads run: natively in a chroot, in viv, in QEMU.  One class, three ways to start its agent.

Natively means: the very files of the guest's disk, unpacked, with this host's kernel.  A Machine speaks the protocol
of agent.c; what it returns holds both clocks, the machine's own and this host's.
"""
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import select
import shutil
import subprocess
import time

MESSAGE = re.compile(rb"@(ready|start|end|failed|bad)\b([^\r\n]*)\r?\n")
GUEST_MEM_MIB = 1024
GUEST_ADDRESS_OF_HOST = "10.0.2.2"


class Broken(Exception):
    """The machine does not answer any more; the reason is for people."""


@dataclasses.dataclass
class Result:
    status: int
    guest_s: float  # by the machine's clock
    host_min_s: float  # by this host's clock, from the agent's first message, however late it was read
    host_max_s: float  # from the request
    text: str  # what the script printed, or its errors


class Machine:
    def __init__(self, name, command, log, env=None):
        self.name, self.log_path = name, log
        self.log = open(log, "wb")
        self.buffer = b""
        self.start = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        env=env, start_new_session=True)
        self.ready_s = None

    def wait_ready(self, limit):
        self._message({b"ready"}, time.monotonic() + limit)
        self.ready_s = time.monotonic() - self.start

    def run(self, phase, workload, limit):
        """One phase; raises Broken when there is no answer."""
        asked = time.monotonic()
        self.process.stdin.write(f"{phase} {workload} {limit}\n".encode())
        self.process.stdin.flush()
        # The agent's own limit is by its clock: this one is for machines whose clock stands still.
        end = time.monotonic() + 2 * limit + 30
        self._message({b"start"}, end)
        begin = time.monotonic()
        fields = self._message({b"end"}, end).split()
        now = time.monotonic()
        if len(fields) != 4 or fields[0].decode() != workload:
            raise Broken(f"{self.name}: the agent's answer is garbled: {fields}")
        text = bytes.fromhex(fields[3].decode().replace("-", "")).decode(errors="replace").strip()
        return Result(int(fields[1]), int(fields[2]) / 1e9, now - begin, now - asked, text)

    def close(self, at_once=False):
        if self.process.poll() is None and not at_once:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self.process.stdin.write(b"bye\n")
                self.process.stdin.close()
                self.process.wait(20)
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 15)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()
        self.log.close()

    def _message(self, kinds, end):
        while True:
            found = MESSAGE.search(self.buffer)
            if found:
                self.buffer = self.buffer[found.end():]
                if found[1] in kinds:
                    return found[2]
                if found[1] in (b"failed", b"bad"):
                    raise Broken(f"{self.name}: {found[1].decode()}{found[2].decode(errors='replace')}")
                continue
            self.read(end)

    def read(self, end):
        stream = self.process.stdout.fileno()
        left = end - time.monotonic()
        if left <= 0 or not select.select([stream], [], [], left)[0]:
            raise Broken(f"{self.name} did not answer in time; what it wrote is in {self.log_path}")
        data = os.read(stream, 65536)
        if not data:
            raise Broken(f"{self.name} ended; what it wrote is in {self.log_path}")
        self.log.write(data)
        self.log.flush()
        self.buffer = (self.buffer + data)[-65536:]


# ---- what they are started from ----

def newc(name, mode, data):
    """One member of a cpio archive of the kind that kernels unpack."""
    encoded = name.encode() + b"\0"
    head = "070701" + "".join(f"{n:08x}" for n in (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0))
    member = head.encode() + encoded
    member += b"\0" * (-len(member) % 4) + data
    return member + b"\0" * (-len(member) % 4)


def make_initrd(image_initrd, init, target):
    """The image's initrd with another /init: later archives win."""
    base = pathlib.Path(image_initrd).read_bytes()
    extra = newc("init", 0o100755, pathlib.Path(init).read_bytes()) + newc("TRAILER!!!", 0, b"")
    pathlib.Path(target).write_bytes(base + b"\0" * (-len(base) % 512) + extra)


def unpack_tree(disk, tree):
    """The files of the image's disk as a directory; kept as long as the disk is the same."""
    stat = os.stat(disk)
    stamp, mark = f"{disk} {stat.st_size} {stat.st_mtime_ns}", tree.with_name(tree.name + ".from")
    if mark.exists() and mark.read_text() == stamp:
        return
    shutil.rmtree(tree, ignore_errors=True)
    mark.unlink(missing_ok=True)
    tree.mkdir(parents=True)
    # As a plain user the owners are lost, which debugfs tells for each file; what matters is that the programs are there.
    subprocess.run(["debugfs", "-R", f"rdump / {tree}", disk], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    if not (tree / "bin" / "sh").exists():
        raise Broken(f"the disk {disk} could not be unpacked into {tree}")
    for name in ("bench", "task", "proc", "dev", "run", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    mark.write_text(stamp)


NATIVE = """
set -e
cd "$1"
mount --bind "$2" bench
mount -t tmpfs -o size=768M task task
mount -t tmpfs run run
mount -t tmpfs tmp tmp
mount --rbind /proc proc
mount --rbind /dev dev
touch run/scratch && mount --bind "$3" run/scratch
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/task LC_ALL=C BENCH_HOST=127.0.0.1 BENCH_PORT="$4" \\
	BENCH_IPERF="$5" chroot . /bench/agent
"""


@dataclasses.dataclass
class Parts:
    """What a run of the benchmark has made before any machine starts."""
    work: pathlib.Path  # logs and files of this run
    image: dict  # image.json, with absolute paths
    tree: pathlib.Path
    payload: pathlib.Path  # directory
    payload_disk: pathlib.Path
    scratch: dict  # of each machine
    initrd: pathlib.Path
    port: int
    iperf_port: int
    viv: str
    qemu: str
    cpu: str  # of QEMU
    cpus: int  # of a guest


def start_native(parts, log):
    command = ["unshare", "--mount", "--propagation", "private"]
    if os.getuid() != 0:
        command += ["--user", "--map-root-user"]
    return Machine("native", [*command, "sh", "-c", NATIVE, "sh", str(parts.tree), str(parts.payload),
                              str(parts.scratch["native"]), str(parts.port), str(parts.iperf_port)], log)


def append(parts):
    return (f"console=ttyS0 quiet loglevel=1 root=/dev/vda rw PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/task LC_ALL=C "
            f"BENCH_HOST={GUEST_ADDRESS_OF_HOST} BENCH_PORT={parts.port} BENCH_IPERF={parts.iperf_port}")


def start_viv(parts, log, name="bench", engine="dbt"):
    home = parts.work / "viv-home"
    home.mkdir(exist_ok=True)
    command = [parts.viv, "run", "--name", name, "--rm", "--engine", engine, "--net", "nat", "--mem", f"{GUEST_MEM_MIB}M",
               "--cpus", str(parts.cpus), "--kernel", parts.image["kernel"], "--initrd", str(parts.initrd), "--append", append(parts),
               "--disk", f"{parts.image['disk']},snapshot", "--disk", f"{parts.payload_disk},ro",
               "--disk", str(parts.scratch["viv"])]
    machine = Machine("viv", command, log, env={**os.environ, "VIVARIUM_HOME": str(home)})
    machine.home, machine.vm_name = home, name
    return machine


def start_qemu(parts, log):
    def disk(path, *options):
        # Without locks of its own: viv holds the image at the same time, which neither writes to.
        form = "qcow2" if str(path).endswith(".qcow2") else "raw"  # as viv reads the name
        return ["-drive", ",".join([f"file.filename={path}", "file.locking=off", f"format={form}", "if=virtio", *options])]

    return Machine("qemu", [
        parts.qemu, "-accel", "tcg", "-cpu", parts.cpu, "-smp", str(parts.cpus), "-m", f"{GUEST_MEM_MIB}M", "-nodefaults",
        "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", parts.image["kernel"], "-initrd",
        str(parts.initrd), "-append", append(parts), *disk(parts.image["disk"], "snapshot=on"),
        *disk(parts.payload_disk, "read-only=on"), *disk(parts.scratch["qemu"]), "-nic", "user,model=virtio-net-pci",
        "-device", "virtio-rng-pci"], log)


STARTERS = {"native": start_native, "viv": start_viv, "qemu": start_qemu}


# ---- what they are ----

def first_line(*command):
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()[0]
    return "unknown"


def viv_info(machine, viv):
    """The engine's counters, for the record, and the process's number."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run([viv, "info", "--json", machine.vm_name], capture_output=True, text=True, timeout=20,
                              check=True, env={**os.environ, "VIVARIUM_HOME": str(machine.home)})
        return json.loads(done.stdout)
    return {}


def resident_beside_ram(pid):
    """MiB that the process @pid holds beside the guest's RAM, the largest of its mappings; None if it can't be read."""
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return None
    mappings = [(int(m[1]), int(m[2])) for m in re.finditer(r"^Size: +(\d+) kB\n(?:.*\n)*?Pss: +(\d+) kB", text, re.M)]
    ram = GUEST_MEM_MIB * 1024
    return sum(pss for size, pss in mappings if size < ram * 3 // 4) / 1024


SHELL = re.compile(rb"login: |root@[^\r\n]*# ")


def time_to_login(parts, name, log, engine, limit):
    """Seconds from exec to the console's shell or login with the image's own initrd and services, and MiB resident beside
    the guest's RAM then; None, None: never."""
    plain = dataclasses.replace(parts, initrd=pathlib.Path(parts.image["initrd"]))
    if name == "viv":
        machine = start_viv(plain, log, "login", engine)
    else:
        machine = start_qemu(plain, log)
    end, seen = machine.start + limit, b""
    try:
        while not SHELL.search(seen):
            machine.read(end)
            seen = machine.buffer
        took = time.monotonic() - machine.start
        pid = viv_info(machine, parts.viv).get("pid") if name == "viv" else machine.process.pid
        return took, resident_beside_ram(pid) if pid else None
    except Broken:
        return None, None
    finally:
        machine.close(at_once=True)
