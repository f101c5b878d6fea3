# SPDX-License-Identifier: Apache-2.0
"""What is run: one row a workload.

run      shell script that is timed; its standard output goes to /task/run.out
prepare  before each run, not timed
check    after each run, not timed: what it prints must be the same on every machine.  Without it, the hash of
         /task/run.out.
seconds  where starting the program is not meant to count: prints the time that takes run's place, from what run
         measured by itself.  Programs that run for a fixed time tell how long a fixed amount of work takes at their speed.
limit    seconds after which it is given up

Scripts run in /task, a tmpfs that is emptied before each run; /bench holds this benchmark's own files and inputs.  Group "compute"
hardly needs the kernel, "system" hardly anything else, "io" goes through a device, "first" is a program's first run in a fresh
guest, done within a tenth of a second natively: that says more about starting a program than about running it.  What is in "compute" runs for
about a second.
"""
import dataclasses

COMPUTE, SYSTEM, FIRST, IO = "compute", "system", "first", "io"


@dataclasses.dataclass(frozen=True)
class Workload:
    name: str
    group: str
    title: str
    run: str
    prepare: str = ""
    check: str = "sha256sum < /task/run.out"
    needs: str = ""  # a program that the image must have
    serves: str = ""  # a program that this host must have: iperf3, started as a server
    seconds: str = ""
    scratch_mib: int = 128  # the least size of the disk /run/scratch
    limit: int = 180


def micro(name, group, title, test, count, arguments="", **more):
    return Workload(name, group, title, f"exec /bench/micro {test} {count} {arguments}".rstrip(), **more)


# What a program reads of itself is in the page cache before it is timed.
CC1_READ = 'cat "$(gcc -print-prog-name=cc1)" > /dev/null'
NODE_READ = "cat /usr/lib/x86_64-linux-gnu/libnode* > /dev/null || true"
FIO_SECONDS, IPERF_SECONDS, OPENSSL_SECONDS = 4, 4, 2


def fio(name, title, pattern, block, depth, work_mib):
    """@work_mib MiB of requests of @block bytes past the guest's page cache, @depth of them at a time."""
    # terse version 3: KiB and milliseconds of reads are fields 6 and 9, of writes 47 and 50
    kib, ms = (47, 50) if pattern.endswith("write") else (6, 9)
    half = "--offset=50% " if pattern.endswith("write") else ""  # the first one is what disk-read reads
    return Workload(
        name, IO, title,
        f"exec fio --name={name} --filename=/run/scratch --direct=1 --ioengine=libaio --rw={pattern} --bs={block} "
        f"--iodepth={depth} {half}--time_based --runtime={FIO_SECONDS} --randrepeat=1 --norandommap --output-format=terse",
        check="cut -d';' -f5 /task/run.out",  # the number of errors
        seconds=f"awk -F';' '{{ printf \"%.6f\", {work_mib} * 1024 / ${kib} * ${ms} / 1000 }}' /task/run.out",
        needs="fio", scratch_mib=1024, limit=60)


def iperf(name, title, arguments=""):
    """1 GiB of TCP, at the speed at which the receiver got it."""
    return Workload(
        name, IO, title,
        f"exec iperf3 --json -c $BENCH_HOST -p $BENCH_IPERF -t {IPERF_SECONDS} {arguments}".rstrip(),
        check="grep -c sum_received /task/run.out",
        seconds="awk '/\"sum_received\"/ { on = 1 } on && /\"bits_per_second\"/ { split($0, f, \"[:,]\"); "
                "printf \"%.6f\", 8 * 1073741824 / f[2]; exit }' /task/run.out",
        needs="iperf3", serves="iperf3", limit=60)


def openssl(name, title, algorithm, work):
    """How long @work bytes take at the speed that openssl measures."""
    return Workload(
        name, COMPUTE, title, f"exec openssl speed -mr -elapsed -bytes 8192 -seconds {OPENSSL_SECONDS} -evp {algorithm}",
        check="grep -c '^+F:' /task/run.out", seconds=f"awk -F: '/^\\+F:/ {{ printf \"%.6f\", {work} / $4 }}' /task/run.out",
        needs="openssl", limit=60)


WORKLOADS = [
    # ---- first runs: before the others, which use the same programs ----
    Workload("first-gcc", FIRST, "gcc -O2 of one C file", "exec gcc -O2 -w -c -o unit.o unit.i",
             prepare=f"cp /bench/unit.i /task/unit.i; {CC1_READ}", check="sha256sum < /task/unit.o", needs="gcc"),
    Workload("first-python", FIRST, "python3: objects, dicts, strings", "exec python3 -S /bench/load.py 1", needs="python3"),
    Workload("first-node", FIRST, "node: a just-in-time compiler", "exec node /bench/load.js 1", prepare=NODE_READ, needs="node"),
    Workload("first-openssl", FIRST, "openssl aes-128-cbc of 16 MiB", "openssl enc -aes-128-cbc -K 0 -iv 0 -in text 2>/dev/null | tail -c 64",
             prepare="cp /bench/text /task/text", needs="openssl"),

    # ---- programs that compute ----
    Workload("sysbench-cpu", COMPUTE, "sysbench cpu, 5000 events",
             "exec sysbench cpu --cpu-max-prime=10000 --time=0 --events=5000 run",
             check="grep 'total number of events' /task/run.out", needs="sysbench"),
    micro("core", COMPUTE, "lists, matrices, states, CRC", "core", 1000),
    openssl("openssl-sha256", "openssl sha256, 8 KiB each: 2 GiB", "sha256", 2 << 30),
    openssl("openssl-aes", "openssl aes-128-cbc, 8 KiB each: 1 GiB", "aes-128-cbc", 1 << 30),
    Workload("openssl-prime", COMPUTE, "openssl: is 2^2203 - 1 prime? 3 times", "exec openssl prime -hex $(cat /bench/prime)",
             needs="openssl"),
    micro("nbody", COMPUTE, "n-body, 10M steps", "nbody", 1000),
    micro("linpack", COMPUTE, "LINPACK, 1000 times n = 200", "linpack", 1000),
    Workload("gzip", COMPUTE, "gzip -6 of 64 MiB", "exec gzip -6 -c -n texts",
             prepare="cat /bench/text /bench/text /bench/text /bench/text > /task/texts", needs="gzip"),
    Workload("xz", COMPUTE, "xz -3 of 8 MiB", "exec xz -3 -c -T1 text",
             prepare="head -c 8388608 /bench/text > /task/text", needs="xz"),
    Workload("zstd", COMPUTE, "zstd -9 of 16 MiB", "exec zstd -q -9 --single-thread -c text",
             prepare="cp /bench/text /task/text", needs="zstd"),
    Workload("gcc", COMPUTE, "gcc -O2 of the files of viv's devices", "exec gcc -O2 -w -c *.i",
             prepare=f"cp /bench/units/*.i /task; {CC1_READ}", check="cat /task/*.o | sha256sum", needs="gcc"),
    Workload("python", COMPUTE, "python3: objects, dicts, strings", "exec python3 -S /bench/load.py 15", needs="python3"),
    Workload("perl", COMPUTE, "perl: regular expressions, hashes", "exec perl /bench/load.pl text",
             prepare="cp /bench/text /task/text", needs="perl"),
    Workload("node", COMPUTE, "node: a just-in-time compiler", "exec node /bench/load.js 20", prepare=NODE_READ, needs="node"),
    Workload("sqlite", COMPUTE, "sqlite3: 50k rows in, joined, out", "exec sqlite3 t.db < /bench/load.sql",
             needs="sqlite3"),
    Workload("memory", COMPUTE, "sysbench memory, 32 GiB written",
             "exec sysbench memory --memory-block-size=1M --memory-total-size=32G --time=0 run",
             check="grep 'Total operations' /task/run.out | cut -d'(' -f1", needs="sysbench"),

    # ---- pieces of programs ----
    micro("alu", COMPUTE, "one chain of arithmetic", "alu", 100),
    micro("calls", COMPUTE, "calls and returns: fib(27), 100 times", "calls", 100),
    micro("dispatch", COMPUTE, "indirect jumps, 50M", "dispatch", 50),
    micro("sort", COMPUTE, "qsort of 100k numbers, 20 times", "sort", 20),
    micro("random", COMPUTE, "20M updates all over 16 MiB", "random", 20),
    micro("chase", COMPUTE, "20M steps along a chain", "chase", 20),
    micro("copy", COMPUTE, "memcpy of 1 MiB, 4000 times", "copy", 40),
    micro("text", COMPUTE, "printf and strtol, 500k", "text", 50),

    # ---- what a kernel does ----
    micro("exec", SYSTEM, "fork + exec, 300 times", "exec", 300),
    micro("fork", SYSTEM, "fork, 500 times", "fork", 500),
    Workload("dash", SYSTEM, "500 times /bin/true from dash",
             "i=0; while [ $i -lt 500 ]; do /bin/true; i=$((i + 1)); done; echo $i"),
    Workload("script", SYSTEM, "a shell script with pipes and subshells", "exec sh /bench/load.sh"),
    Workload("dd", SYSTEM, "dd bs=1 count=500k", "exec dd if=/dev/zero bs=1 count=500000 status=none"),
    micro("getppid", SYSTEM, "getppid, 1M", "getppid", 100),
    micro("pipe", SYSTEM, "20k round trips over pipes", "pipe", 20),
    micro("signal", SYSTEM, "signals, 200k", "signal", 200),
    micro("fault", SYSTEM, "page faults, 40k", "fault", 20),
    Workload("files", SYSTEM, "tar of /usr/share and its unpacking",
             "tar -C /usr/share -cf - zoneinfo perl5 perl python3 2>/dev/null | tar -xf - ; find . -type f | wc -l",
             prepare="tar -C /usr/share -cf - zoneinfo perl5 perl python3 2>/dev/null | cat > /dev/null",
             check="cat /task/run.out", needs="tar"),
    Workload("redis", SYSTEM, "redis: 20k requests, SET, GET and LPUSH",
             "exec redis-benchmark -s /task/redis.sock -n 20000 -c 8 -r 1000 -t set,get,lpush --csv",
             prepare="redis-server --port 0 --unixsocket /task/redis.sock --daemonize yes --save '' --logfile /task/log\n"
                     "until redis-cli -s /task/redis.sock ping; do sleep 0.1; done",
             check="redis-cli -s /task/redis.sock llen mylist; redis-cli -s /task/redis.sock shutdown nosave",
             needs="redis-server"),

    # ---- devices ----
    micro("disk-read", IO, "4 KiB reads at random, 5000", "diskread", 50, "/run/scratch"),
    micro("disk-write", IO, "4 KiB writes at random, 5000", "diskwrite", 50, "/run/scratch"),
    micro("net-send", IO, "TCP to the host, 128 MiB", "send", 128, "$BENCH_HOST $BENCH_PORT"),
    micro("net-receive", IO, "TCP from the host, 128 MiB", "receive", 128, "$BENCH_HOST $BENCH_PORT"),
    fio("fio-randread-1", "fio: 4k random reads, one at a time: 40 MiB", "randread", "4k", 1, 40),
    fio("fio-randread-16", "fio: 4k random reads, 16 at a time: 40 MiB", "randread", "4k", 16, 40),
    fio("fio-randwrite-1", "fio: 4k random writes, one at a time: 40 MiB", "randwrite", "4k", 1, 40),
    fio("fio-randwrite-16", "fio: 4k random writes, 16 at a time: 40 MiB", "randwrite", "4k", 16, 40),
    fio("fio-read", "fio: 1 MiB reads in order, 4 at a time: 4 GiB", "read", "1M", 4, 4096),
    fio("fio-write", "fio: 1 MiB writes in order, 4 at a time: 4 GiB", "write", "1M", 4, 4096),
    iperf("iperf-send", "iperf3 to the host: 1 GiB"),
    iperf("iperf-receive", "iperf3 from the host: 1 GiB", "-R"),
]

# Those that stand for the rows by which the translator has been judged from the beginning.
FIRST_16 = ["sysbench-cpu", "core", "openssl-sha256", "openssl-aes", "nbody", "linpack", "gzip", "gcc", "python", "memory",
            "exec", "dash", "dd", "getppid", "pipe", "fault"]
# A first impression, in a few minutes: a few programs of each kind.
QUICK = ["openssl-sha256", "nbody", "gzip", "gcc", "python", "sqlite", "dispatch", "random", "exec", "dash", "getppid", "pipe",
         "fault", "disk-read", "net-send"]
