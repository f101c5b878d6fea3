# SPDX-License-Identifier: Apache-2.0
"""A Debian guest that compiles and moves money in a database all the time, and what it is asked for: snapshot-soak, migrate-soak."""
import json
import os
import pathlib
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
VIV = os.environ.get("VIV", str(ROOT / "build" / "viv"))
PACKAGES = "gcc\nlibc6-dev\nsqlite3\n"
WORK = r"""
cd /root; i=0; while [ $i -lt 400 ]; do echo "int f$i(int a) { return a * $i + (a >> 3); }"; i=$((i+1)); done >c.c
gcc -O1 -S -o - c.c | sha256sum >first
sqlite3 bank "create table a(id integer primary key, v); create table log(n, t);
  with recursive r(i) as (select 1 union all select i+1 from r where i<100) insert into a select i, 1000 from r"
touch begun
( while :; do gcc -O1 -S -o - c.c | sha256sum >now; cmp -s first now || cp now BAD-compile; done ) &
n=0; while :; do n=$((n+1)); x=$((n*7%100+1)); y=$((n*13%100+1))
  echo "begin; update a set v=v-1 where id=$x; update a set v=v+1 where id=$y; insert into log values($n, hex(randomblob(500))); delete from log where n<$n-2000; commit;" | sqlite3 -cmd '.timeout 9000' bank || touch BAD-database
done
"""
CHECK = r"""cd /root; ls BAD* 2>/dev/null; dmesg | grep -E 'EXT4-fs (error|warning)|I/O error|BUG:|Oops|Call Trace'
sqlite3 -cmd '.timeout 20000' bank 'pragma integrity_check; select sum(v) from a'; echo x >here && sync"""
RIGHT = ["ok", "100000"]
CLOCK_S = 0.5


class Home:
    """A home of viv's with such machines in it."""

    def __init__(self, home):
        home.mkdir(exist_ok=True)
        self.home, self.env = home, {**os.environ, "VIVARIUM_HOME": str(home)}

    def viv(self, *args, limit=300):
        done = subprocess.run([VIV, *args], env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=limit)
        if done.returncode:
            raise SystemExit(f"viv {' '.join(args)}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def image(self, name):
        packages = self.home / "packages"
        packages.write_text(PACKAGES)
        subprocess.run([ROOT / "tools" / "build-image.sh", "--name", name, "--add", packages], env=self.env, check=True)
        packages.unlink()

    def start(self, image, name):
        self.viv("run", image, "--name", name, "--mem", "512M", "--detach")
        subprocess.run([VIV, "exec", "-i", name, "--", "sh", "-c", "cat >/root/work"], env=self.env, input=WORK, text=True, check=True)
        self.viv("exec", name, "--", "systemd-run", "--unit=work", "sh", "/root/work")
        self.viv("exec", name, "--", "sh", "-c", "while ! [ -e /root/begun ]; do sleep 0.5; done")


class Findings:
    """What is found wrong, and how much was looked at."""

    def __init__(self):
        self.found, self.count, self.worst_clock = 0, {}, 0

    def complain(self, text):
        self.found += 1
        print("FOUND", text, flush=True)

    def counts(self, what):
        self.count[what] = self.count.get(what, 0) + 1

    def check(self, at, name, how):
        """Ask the guest @name of the home @at. The agent sets the clock as soon as it comes to it: it is asked again for some seconds."""
        end = time.monotonic() + 20
        while True:
            lines = at.viv("exec", name, "--", "sh", "-c", CHECK).split("\n")[:-1]
            before = time.time()
            date = float(at.viv("exec", name, "--", "date", "+%s.%N"))
            off = max(before - date, date - time.time(), 0)
            if lines != RIGHT:
                self.complain(f"{how}: {lines}")
            if off < CLOCK_S or lines != RIGHT:
                break
            if time.monotonic() > end:
                self.complain(f"{how}: the clock is off by {off:.1f} s")
                break
        self.worst_clock = max(self.worst_clock, off)
        self.counts("checks")

    def check_disk(self, at, name):
        """What a machine that was ended at once left behind: after its journal is replayed nothing may be wrong."""
        folder, flat = at.home / "vms" / name, at.home / "flat.raw"
        for layer in folder.glob("layer-*.qcow2"):
            # QEMU takes a reader's lock on a whole file for a writer's: it gets a copy, which stands on nothing.
            subprocess.run(["cp", "--sparse=always", layer, flat], check=True)
            subprocess.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", flat], check=True)
            done = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", flat], capture_output=True, text=True)
            flat.unlink()
            if done.returncode not in (0, 3):  # 3: lost room, which a kill may leave
                self.complain(f"qemu-img check {layer}: {done.returncode} {done.stdout}{done.stderr}")
        top = pathlib.Path(json.loads((folder / "machine.json").read_text())["disks"][0]["path"])
        at.viv("image", "convert", "--backing", str(top.parent), str(top), str(flat))
        # 1: the journal was replayed, nothing else: a second look finds it clean.
        first = subprocess.run(["e2fsck", "-fp", flat], capture_output=True, text=True)
        again = subprocess.run(["e2fsck", "-fn", flat], capture_output=True, text=True)
        if first.returncode > 1 or again.returncode:
            self.complain(f"e2fsck of {name}: {first.returncode} {again.returncode}: {first.stdout}{again.stdout}")
        flat.unlink()
        self.counts("disks")
