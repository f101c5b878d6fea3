#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""run_guests.py --images DIR (--viv VIV [--mode MODE] | --kvm RUNNER) [--hostile] [NAME...]

Runs the bare-metal test guests and judges each by its serial output and its exit status: a line a guest,
`[       OK ]`, `[  FAILED  ]` with what it printed, `[  SKIPPED ]` with the reason.
MODE: translate (default), interp, strict, lockstep, no-returns, no-room (translations are dropped all the time),
plain (no technique), counting and counting-lockstep (instructions are counted; blocks are compared with the interpreter, their counts too).  With --kvm a small runner forces the kvm engine, also where `viv` would refuse it.
--hostile: the guests that must be ended by `viv`, or survive.
"""
import argparse
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent

# name, CPUs, further arguments of `viv run`.  %DISK% is a scratch disk.
GUESTS = [
    ("library64", 2, []),
    ("exceptions64", 1, []),
    ("paging64", 1, []),
    ("segments32", 1, []),
    ("realmode32", 1, []),
    ("sixteen32", 1, []),
    ("interrupts64", 1, []),
    ("smp64", 2, []),
    ("smp64", 4, []),
    ("kvmpv64", 2, []),
    ("smc64", 1, []),
    ("flags64", 1, []),
    ("returns64", 1, []),
    ("returns32", 1, []),
    ("strings64", 1, []),
    ("loops64", 1, []),
    ("fpu64", 1, []),
    ("debug64", 1, []),
    ("syscall64", 1, []),
    ("devices64", 1, []),
    ("virtio64", 2, ["--disk", "%DISK%"]),
    ("iommu64", 1, ["--iommu", "intel", "--device", "edu"]),
]

# Argument, exit status, what the last message says; None: it must be ended from outside (SIGTERM), which must work.
HOSTILE = [
    ("triple", 1, "triple fault"),
    ("nothing-mapped", 1, "triple fault"),
    ("hole", 1, "triple fault"),
    ("recursion", 1, "triple fault"),
    ("page-tables", 1, "triple fault"),
    ("cr3-garbage", 1, "triple fault"),
    ("poweroff", 0, "switched the machine off"),
    ("reset-cf9", 0, "reset"),
    ("reset-kbd", 0, "reset"),
    ("exit-7", 15, "debug exit port"),
    ("ports", 1, "debug exit port"),
    ("pci", 1, "debug exit port"),
    ("lapic", 1, "debug exit port"),
    ("msrs", 1, "debug exit port"),
    ("random-code", 1, "debug exit port"),
    ("spin", None, ""),
    ("halt", None, ""),
    ("storm", None, ""),
    ("string", None, ""),
]
MODES = {"translate": [], "interp": ["--interp-only"], "strict": ["--strict"], "lockstep": ["--check", "1"],
         "counting": ["--counting", "--strict"], "counting-lockstep": ["--counting", "--check", "7"],
         "no-returns": ["--without", "returns"], "no-room": ["--without", "code-room"],
         "plain": ["--without", "dead-flags,coalescing,returns,chaining,branch-table,second-tlb,system,in-place"]}
# A guest takes seconds; a hang is a failure, a loaded machine is not, nor a KVM that emulates half a million instructions a second.
TIMEOUT_S, KVM_TIMEOUT_S = 120, 400
STOP_S = 20


def report(kind, name, detail=""):
    print({"OK": "[       OK ]", "FAILED": "[  FAILED  ]", "SKIPPED": "[  SKIPPED ]"}[kind], name)
    if detail:
        print(detail.rstrip())
    sys.stdout.flush()


class Runner:
    def __init__(self, args, scratch):
        self.args = args
        self.disk = scratch / "disk.raw"
        self.disk.write_bytes(bytes(4 << 20))
        self.limit = KVM_TIMEOUT_S if args.kvm else TIMEOUT_S

    def command(self, image, cpus, extra, append=""):
        image = self.args.images / image
        if self.args.kvm:
            return [self.args.kvm, image, cpus, append]
        return [self.args.viv, "run", "--engine", "dbt", *MODES[self.args.mode], "--no-reboot", "--mem", "64M",
                "--cpus", cpus, "--kernel", image, "--append", append,
                *(str(self.disk) if e == "%DISK%" else e for e in extra)]

    def run(self, *what, **options):
        command = [str(c) for c in self.command(*what, **options)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  timeout=self.limit)
            return done.returncode, done.stdout.decode(errors="replace")
        except subprocess.TimeoutExpired as e:
            return None, (e.stdout or b"").decode(errors="replace")


def known_deviations():
    """What paravirtual KVM, which emulates ring 0, does otherwise: 'guest: check', or 'guest: *' with the reason."""
    known = {}
    for line in (HERE / "known_kvm_emulated.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            guest, _, check = line.partition(": ")
            known.setdefault(guest, set()).add(check)
    return known


def judge(status, output, known):
    """'' if all is well, else what is wrong."""
    if status is None:
        return "it did not end in time"
    bad = [re.match(r"fail (.*?)(: (got|exception) .*)?$", l)[1] for l in output.splitlines() if l.startswith("fail ")]
    done = re.search(r"^done (\d+) ok, (\d+) failed\r?$", output, re.M)
    if not done:
        return f"it did not come to its end, status {status}"
    unknown = [b for b in bad if b not in known]
    if unknown:
        return "; ".join(unknown)
    if not int(done[1]):
        return "it checked nothing"
    if len(bad) != int(done[2]) or status != (3 if bad else 1):
        return f"status {status} with {done[2]} failed checks"
    return ""


def run_guests(runner, names):
    failed = 0
    is_emulated = False
    known = {}
    if runner.args.kvm:
        probe = subprocess.run([runner.args.kvm, "--probe"], stdout=subprocess.PIPE, text=True)
        print(f"# {probe.stdout.strip()}")
        if probe.returncode == 77:
            report("SKIPPED", "all guests on kvm", f"skip: {probe.stdout.strip()}")
            return 77
        is_emulated = probe.returncode == 2
        known = known_deviations() if is_emulated else {}
    for name, cpus, extra in GUESTS:
        title = f"{name}-{cpus}cpu" if cpus > 1 else name
        if names and name not in names:
            continue
        if extra and runner.args.kvm:
            continue  # about devices, not the engine
        reason = [k for k in known.get(name, ()) if k.startswith("*")]
        if reason:
            report("SKIPPED", title, f"skip {title}: {reason[0][1:].strip()}")
            continue
        start = time.monotonic()
        status, output = runner.run(f"{name}.elf", cpus, extra)
        wrong = judge(status, output, known.get(name, set()))
        for line in output.splitlines():
            if line.startswith("skip "):
                print(f"# {title}: {line}")
        if wrong:
            failed += 1
            told = "\n".join(l for l in output.splitlines() if not l.startswith("ok "))
            report("FAILED", title, f"{wrong}\n{told[-6000:]}")
            continue
        count = re.search(r"^done (\d+) ok, (\d+)", output, re.M)
        print(f"# {title}: {count[1]} checks, {time.monotonic() - start:.1f} s"
              + (f"; {count[2]} known deviations of this emulating KVM" if int(count[2]) else ""))
        report("OK", title)
    return 1 if failed else 0


def stop_from_outside(runner, append):
    command = [str(c) for c in runner.command("hostile64.elf", 1, [], append)]
    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = b""
    while b"reached" not in output:
        piece = p.stdout.read1(4096)
        if not piece:
            break
        output += piece
    time.sleep(0.5)
    if p.poll() is not None:
        return f"it ended by itself, status {p.returncode}", output
    start = time.monotonic()
    p.send_signal(signal.SIGTERM)
    try:
        output += p.communicate(timeout=STOP_S)[0]
    except subprocess.TimeoutExpired:
        p.kill()
        p.communicate()
        return f"SIGTERM did not end it within {STOP_S} s", output
    if p.returncode < 0 and p.returncode != -signal.SIGTERM:
        return f"it died of signal {-p.returncode}", output
    print(f"# hostile-{append}: ended {time.monotonic() - start:.1f} s after SIGTERM, status {p.returncode}")
    return "", output


def run_hostile(runner, names):
    failed = 0
    for append, want, text in HOSTILE:
        title = f"hostile-{append}"
        if names and append not in names:
            continue
        if want is None:
            wrong, output = stop_from_outside(runner, append)
            output = output.decode(errors="replace")
        else:
            status, output = runner.run("hostile64.elf", 1, [], append=append)
            wrong = ""
            if f"reached {append}" not in output:
                wrong = "it did not get there"
            elif status != want:
                wrong = f"status {status}, not {want}"
            elif text not in output:
                wrong = f"nothing is said of \"{text}\""
        failed += bool(wrong)
        report("FAILED" if wrong else "OK", title, f"{wrong}\n{output[-3000:]}" if wrong else "")
    return 1 if failed else 0


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--images", type=pathlib.Path, required=True)
    ap.add_argument("--viv")
    ap.add_argument("--kvm")
    ap.add_argument("--mode", choices=MODES, default="translate")
    ap.add_argument("--hostile", action="store_true")
    ap.add_argument("names", nargs="*")
    args = ap.parse_args()
    if bool(args.viv) == bool(args.kvm):
        ap.error("one of --viv and --kvm")
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(args, pathlib.Path(scratch))
        return (run_hostile if args.hostile else run_guests)(runner, args.names)


if __name__ == "__main__":
    sys.exit(main())
