# SPDX-License-Identifier: Apache-2.0
"""Completion in real shells, the manual pages, and where an installation puts both."""
import os
import re
import shutil
import subprocess

import pexpect
import pytest

import guests
from conftest import LIMIT, ROOT, VIV

# What stands in the place of viv shows the command line that it was given; completion asks the real one.
SHOW = """#!/bin/sh
[ "$1" = completion ] && exec "$REAL_VIV" "$@"
printf 'given:'; printf '<%s>' "$@"; echo .
"""
LINES = [
    ("viv pau\t", ["pause"]),
    ("viv stop al\t", ["stop", "alpha"]),
    ("viv run --ker\tgue\t", ["run", "--kernel", "guest.bin"]),
    ("viv run --kernel=gue\t", ["run", "--kernel=guest.bin"]),
    ("viv run --engine db\tdeb\t", ["run", "--engine", "dbt", "debian"]),
    ("viv run --engine=db\t", ["run", "--engine=dbt"]),
    ("viv image crea\tgue\t", ["image", "create", "guest.bin"]),
    ("viv snapshot rest\tal\tcle\t", ["snapshot", "restore", "alpha", "clean"]),
    ("viv run --from alpha@c\t", ["run", "--from", "alpha@clean"]),
]


@pytest.fixture
def home(empty_viv, tmp_path):
    """A machine with a snapshot, an image, a file; and `viv` in a folder of its own."""
    viv = empty_viv
    (tmp_path / "guest.bin").write_bytes(guests.multiboot(guests.say("up\n") + guests.ECHO))
    viv.ok("run", "--detach", "--name", "alpha", "--mem", "16M", "--kernel", tmp_path / "guest.bin")
    viv.ok("snapshot", "create", "alpha", "clean")
    viv.ok("stop", "--force", "alpha")
    (tmp_path / "images" / "debian").mkdir(parents=True)
    program = tmp_path / "bin" / "viv"
    program.parent.mkdir()
    program.write_text(SHOW)
    program.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "guest.bin").rename(work / "guest.bin")
    return tmp_path


def start(home, shell, viv):
    """The shell on a terminal with the script where the shell itself looks for it."""
    script = viv.ok("completion", shell).stdout
    env = {**viv.env, "PATH": f"{home}/bin:{os.environ['PATH']}", "REAL_VIV": str(VIV), "HOME": str(home), "TERM": "dumb",
           "XDG_CONFIG_HOME": str(home / "config"), "XDG_DATA_HOME": str(home / "data"), "LC_ALL": "C.UTF-8"}
    if shell == "bash":
        (home / "rc").write_text(script + "PS1='ready> '\nbind 'set bell-style none'\n")
        command = ["--rcfile", str(home / "rc"), "-i"]
    elif shell == "zsh":
        (home / "_viv").write_text(script)
        (home / ".zshrc").write_text(f"fpath=({home} $fpath)\nautoload -Uz compinit; compinit -u -D\nPS1='ready> '\nunsetopt beep\n")
        command = ["-d", "-i"]
    else:
        folder = home / "config" / "fish" / "completions"
        folder.mkdir(parents=True)
        # Without it the first start makes completions of all manual pages, in the background.
        (home / "data" / "fish" / "generated_completions").mkdir(parents=True)
        (folder / "viv.fish").write_text(script)
        (folder.parent / "config.fish").write_text("function fish_prompt; echo -n 'ready> '; end\nset -g fish_greeting\n"
                                                   "set -g fish_autosuggestion_enabled 0\n")
        command = ["-i"]
    child = pexpect.spawn(shell, command, env=env, cwd=str(home / "work"), timeout=LIMIT, encoding="utf-8",
                          codec_errors="replace", dimensions=(40, 200))
    child.expect("ready> ")
    return child


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell(empty_viv, home, shell):
    assert shutil.which(shell), f"{shell} is not installed: tools/deps.sh test"
    child = start(home, shell, empty_viv)
    try:
        for line, want in LINES:
            for part in re.split("(?<=\t)", line):
                child.send(part)
            child.send("\r")
            child.expect(r"given:((?:<[^>\r\n]*>)*)\.\r")
            assert re.findall("<([^>]*)>", child.match.group(1)) == want, f"{shell}: {line!r}"
    finally:
        child.close(force=True)


def test_unknown_shell(empty_viv):
    empty_viv.fails("completion", "tcsh", status=2, says=["tcsh"])
    empty_viv.fails("completion", status=2, says=["bash|zsh|fish"])
    assert empty_viv.ok("completion", "words", "--", "viv", "nosuch", "").stdout == ""


# ---- manual pages ----

def verbs(viv):
    return re.findall(r"^  (\w+) +\S", viv.ok("help").stdout, re.M)


def read_page(path):
    done = subprocess.run(["man", "--warnings", "-l", str(path)], env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "160",
                          "MANPAGER": "cat", "MANROFFOPT": ""}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stderr == "", f"{path}: {done.stderr}"
    return done.stdout


def test_manual_pages(empty_viv, tmp_path):
    """One page for viv and one for each verb; readers find nothing wrong with them; each option of the help is there."""
    viv = empty_viv
    viv.ok("man", "--dir", tmp_path / "man1")
    pages = {p.name: p for p in (tmp_path / "man1").iterdir()}
    assert set(pages) == {"viv.1", *(f"viv-{v}.1" for v in verbs(viv))}
    lint = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages.values()], stdout=subprocess.PIPE, text=True)
    # A date would make each build another one.
    found = [line for line in lint.stdout.splitlines() if "missing date" not in line]
    assert len(lint.stdout.splitlines()) - len(found) == len(pages) and found == []
    main = read_page(pages["viv.1"])
    for verb in verbs(viv):
        assert f"viv-{verb}(1)" in main
        text = read_page(pages[f"viv-{verb}.1"])
        options = re.findall(r"^ +(?:-\w, )?(--[a-z0-9-]+)", viv.ok(verb, "--help").stdout, re.M)
        assert options and [o for o in options if o not in text] == [], verb
    assert "--compression zlib|zstd" in read_page(pages["viv-image.1"])
    assert viv.ok("man", "run").stdout == pages["viv-run.1"].read_text()
    viv.fails("man", "nosuch", says=["nosuch"])


# ---- installation ----

def test_install(empty_viv, tmp_path):
    """What the build made, and where the shells and man look for it."""
    build = os.path.dirname(os.path.realpath(VIV))
    if not os.path.exists(os.path.join(build, "build.ninja")):
        pytest.skip(f"{VIV} is not in a build directory")
    subprocess.run(["ninja", "-C", build, "pages"], check=True, stdout=subprocess.DEVNULL)
    plan = subprocess.run(["meson", "install", "-C", build, "--no-rebuild", "--dry-run", "--destdir", str(tmp_path)], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    for what in (r"bash-completion/completions$", r"zsh/site-functions$", r"fish/vendor_completions.d$", r"share/man/man1$"):
        assert re.search(what, plan, re.M), plan
    for name, shell in (("viv.bash", "bash"), ("_viv", "zsh"), ("viv.fish", "fish")):
        with open(os.path.join(build, name), encoding="utf-8") as file:
            assert file.read() == empty_viv.ok("completion", shell).stdout
    assert set(os.listdir(os.path.join(build, "man1"))) == {"viv.1", *(f"viv-{v}.1" for v in verbs(empty_viv))}
