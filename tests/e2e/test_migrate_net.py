# SPDX-License-Identifier: Apache-2.0
"""Machines that move over TCP: TLS with certificates of both sides, and in the clear only if somebody says so."""
import os
import re
import signal
import socket
import subprocess

import guests
import pytest
import tiny
from conftest import VIV, processes_in
from migration import Host


def openssl(*args, **options):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, **options)


class Authority:
    """Gives certificates to hosts."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", 2, "-subj", "/CN=authority",
                "-keyout", folder / "ca.key", "-out", folder / "ca.pem")

    def certify(self, folder, name="DNS:localhost", use="serverAuth,clientAuth", believes=None):
        """@folder for --certificates: a certificate for @name, believing @believes (default: this authority)."""
        folder.mkdir(parents=True)
        (folder / "ext").write_text(f"subjectAltName={name}\nextendedKeyUsage={use}\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=host", "-keyout", folder / "key.pem",
                "-out", folder / "csr")
        openssl("x509", "-req", "-in", folder / "csr", "-CA", self.folder / "ca.pem", "-CAkey", self.folder / "ca.key", "-CAcreateserial",
                "-days", 2, "-extfile", folder / "ext", "-out", folder / "cert.pem")
        (folder / "ca.pem").write_bytes(((believes or self).folder / "ca.pem").read_bytes())
        (folder / "key.pem").chmod(0o600)
        return folder


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture
def hosts(tmp_path):
    a, b = Host(tmp_path / "a"), Host(tmp_path / "b")
    yield a, b
    for host in (a, b):
        for pid in processes_in(host.home):
            os.kill(pid, signal.SIGKILL)


def listen(host, where, *args):
    """viv receive; and the port that it listens on."""
    listener = subprocess.Popen([VIV, "receive", "--listen", where, *map(str, args)], env=host.env, text=True, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return listener, int(re.search(r"waiting for machines on .*:(\d+)$", listener.stderr.readline()).group(1))


def run(host, tmp_path, name="m"):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(guests.multiboot(guests.SLEEP))
    host.ok("run", "--detach", "--name", name, "--kernel", kernel, "--mem", "16M")


def test_tls(hosts, authority, tmp_path):
    a, b = hosts
    authority.certify(a.home / "tls")  # the default folder
    own = authority.certify(tmp_path / "b-tls", "DNS:localhost,IP:127.0.0.1")
    run(a, tmp_path)
    listener, port = listen(b, "tls://127.0.0.1:0", "--certificates", own)
    # Who says nothing, or something else, is in nobody's way.
    silent = socket.create_connection(("127.0.0.1", port))
    other = socket.create_connection(("127.0.0.1", port))
    other.sendall(b"GET / HTTP/1.0\r\n\r\n")
    a.ok("migrate", "m", f"tls://localhost:{port}", "--verify", "--copy", "--links", 3)
    assert b.state("m") == "running"
    a.wait_until(lambda: a.is_clean("m"), "the source is clean")
    silent.close()
    other.close()
    # The other way, by address; and the question after a loss goes the same way.
    run(b, tmp_path, "n")
    back, port = listen(a, "tls://127.0.0.1:0", "--once", "--certificates", own)
    b.ok("migrate", "m", f"tls://127.0.0.1:{port}", "--verify", "--certificates", own)
    assert back.wait(30) == 0 and a.state("m") == "running"
    listener.terminate()
    listener.wait()
    a.ok("rm", "-f", "m")
    b.ok("rm", "-f", "n")


def test_peers_that_are_not_believed(hosts, authority, tmp_path):
    a, b = hosts
    stranger = Authority(tmp_path / "stranger")
    good = authority.certify(tmp_path / "good")
    listener, port = listen(b, "tls://127.0.0.1:0", "--certificates", good)
    run(a, tmp_path)

    def fails(says, folder, host="localhost"):
        a.fails("migrate", "m", f"tls://{host}:{port}", "--certificates", folder, says=[says])
        assert a.state("m") == "running" and b.state("m") is None

    fails("not believed", good, "127.0.0.1")  # another name than in the certificate
    fails("does not believe", stranger.certify(tmp_path / "s1", believes=authority))
    fails("not believed", authority.certify(tmp_path / "s2", believes=stranger))
    fails("does not believe", authority.certify(tmp_path / "s3", use="serverAuth"))
    fails("ca.pem", tmp_path / "nowhere")
    open_key = authority.certify(tmp_path / "s4")
    (open_key / "key.pem").chmod(0o644)
    fails("chmod", open_key)
    a.fails("migrate", "m", "tls://localhost", says=["tls://HOST:PORT"])
    a.fails("migrate", "m", f"tls://no.such.host.invalid:{port}", says=["no host"])
    # TLS 1.2 is not spoken.
    old = subprocess.run(["openssl", "s_client", "-tls1_2", "-connect", f"localhost:{port}"], stdin=subprocess.DEVNULL, capture_output=True)
    assert old.returncode != 0
    # What is there all the same takes whom it believes.
    a.ok("migrate", "m", f"tls://localhost:{port}", "--certificates", good)
    listener.terminate()
    listener.wait()
    with pytest.raises(OSError):
        for _ in range(100):  # it goes with viv receive
            socket.create_connection(("127.0.0.1", port)).close()
    b.ok("rm", "-f", "m")
    b.fails("receive", "--listen", "tls://127.0.0.1:0", says=["ca.pem"])


def test_connections_through_nat_end(debian, tmp_path):
    """A guest that waits for what never comes is told that its connection is over."""
    a, b = Host(tmp_path / "a"), Host(tmp_path / "b")
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    script = f"""
$b ip link set eth0 up; $b ip addr add 10.0.2.15/24 dev eth0
$b nc 10.0.2.2 {port} -e $b sh -c 'echo here; read x; echo "ended" >/dev/console'
$b sleep 1000
"""
    initrd = tiny.make(debian, tmp_path, script, tiny.NETWORK)
    try:
        a.ok("run", "--name", "m", "--detach", "--kernel", debian / "vmlinuz", "--initrd", initrd, "--append", "console=ttyS0 quiet",
             "--mem", "128M", "--net", "nat")
        server.settimeout(60)
        peer, _ = server.accept()
        peer.settimeout(60)
        assert peer.recv(5) == b"here\n"  # it is there, and waits
        listener = b.receive("--once")
        a.migrate("m", b.socket, "--verify")
        assert listener.wait(60) == 0
        console = b.spawn("console", "m")
        console.expect("ended")
        console.close(force=True)
        b.ok("rm", "-f", "m")
    finally:
        for host in (a, b):
            for pid in processes_in(host.home):
                os.kill(pid, signal.SIGKILL)


def test_in_the_clear(hosts, tmp_path):
    a, b = hosts
    run(a, tmp_path)
    b.fails("receive", "--listen", "tcp://127.0.0.1:0", says=["--insecure"])
    listener, port = listen(b, "tcp://127.0.0.1:0", "--insecure", "--once")
    a.fails("migrate", "m", f"tcp://127.0.0.1:{port}", says=["--insecure"])
    a.ok("migrate", "m", f"tcp://127.0.0.1:{port}", "--insecure", "--links", 2, "--verify")
    assert listener.wait(30) == 0
    b.ok("rm", "-f", "m")
    a.fails("migrate", "m", f"tcp://127.0.0.1:{port}", "--insecure")
