"""FEMU built on this machine from its public repository, at the commit that is pinned: an explicit wish of the user's.

    python -m emucsd_femu femu build     fetch, configure and compile it into the cache (a quarter of an hour, 3 GB)
    python -m emucsd_femu femu status    whether there is one, and whether it runs
    python -m emucsd_femu femu where     the binary's path

Nothing of FEMU's is part of this package, and nothing here fetches it unless it is told to. A build that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emucsd_femu import femu
from emucsd_femu.errors import QemuMissing

# program or pkg-config module -> Debian's package
_PROGRAMS = {
    "git": "git", "cc": "gcc", "make": "make", "ninja": "ninja-build", "pkg-config": "pkgconf", "flex": "flex",
    "bison": "bison", "python3": "python3-venv",
}  # fmt: skip
_LIBRARIES = {
    "glib-2.0": "libglib2.0-dev", "pixman-1": "libpixman-1-dev", "zlib": "zlib1g-dev", "slirp": "libslirp-dev",
    "libfdt": "libfdt-dev", "numa": "libnuma-dev", "libaio": "libaio-dev",
}  # fmt: skip
_HEADERS = {"libfdt": "libfdt.h", "numa": "numa.h", "libaio": "libaio.h"}  # where a package brings no pkg-config file
# what its own scripts/femu-compile.sh asks for, less what only takes longer
CONFIGURE = (
    "--target-list=x86_64-softmmu", "--enable-kvm", "--enable-tcg", "--enable-slirp", "--disable-werror",
    "--disable-docs", "--disable-libnfs", "--disable-libiscsi", "--disable-curl", "--disable-gtk", "--disable-sdl",
    "--disable-opengl", "--disable-rbd", "--disable-glusterfs", "--disable-spice", "--disable-guest-agent",
)  # fmt: skip
_TAIL = 15
_FETCH_SECONDS = 3600
_BUILD_SECONDS = 4 * 3600

Progress = Callable[[str], None]


class Source(NamedTuple):
    """What is to be built."""

    repository: str = femu.REPOSITORY
    commit: str = femu.PIN

    @property
    def folder(self) -> Path:
        """The build's own; only the pinned commit's is used by the testbed."""
        return femu.folder(self.commit)


class Step(NamedTuple):
    """One command of the build."""

    title: str
    words: list[str]
    cwd: Path
    seconds: int
    done: Path | None = None  # there: this step was done


def missing() -> list[str]:
    """Debian's packages that the build needs and that are not here."""
    packages = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    asked = [sys.executable, "-c", "import ensurepip, venv"]
    if subprocess.run(asked, capture_output=True, check=False, stdin=subprocess.DEVNULL).returncode:
        packages.append("python3-venv")
    packages += [package for library, package in _LIBRARIES.items() if not _library(library)]
    return sorted(set(packages))


def _library(name: str) -> bool:
    if header := _HEADERS.get(name):
        return any(Path(folder, header).is_file() for folder in ("/usr/include", "/usr/local/include"))
    if (tool := shutil.which("pkg-config")) is None:
        return False
    done = subprocess.run([tool, "--exists", name], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return done.returncode == 0


def steps(source: Source, jobs: int) -> list[Step]:
    """The whole build, in order.

    The clone has commits but neither trees nor files (``--filter=tree:0``): those of the one commit come with its
    checkout, and no other version of any file is fetched.
    """
    tree, build = source.folder / "source", source.folder / "build"
    git = ["git", "-C", str(tree), "-c", "advice.detachedHead=false"]
    clone = ["git", "clone", "--filter=tree:0", "--no-checkout", source.repository, str(tree)]
    return [
        Step("clone", clone, source.folder, _FETCH_SECONDS, tree / ".git" / "packed-refs"),
        Step("checkout", [*git, "checkout", "--detach", source.commit], source.folder, _FETCH_SECONDS),
        Step("configure", [str(tree / "configure"), *CONFIGURE], build, _FETCH_SECONDS, build / "build.ninja"),
        Step("compile", ["ninja", "-j", str(jobs), femu.BINARY, "qemu-img"], build, _BUILD_SECONDS),
    ]


def build(source: Source, jobs: int, progress: Progress = print) -> Path:
    """Build it, or go on with it. :returns: the binary

    :raises QemuMissing: a tool is missing, the network is, or a step failed; says which and what it said
    """
    if lacking := missing():
        raise QemuMissing(f"to build FEMU, first: apt-get install {' '.join(lacking)}")
    folder = source.folder
    binary = folder / "build" / femu.BINARY
    (folder / "build").mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise QemuMissing(f"another process builds FEMU in {folder}; wait for it") from problem
        if (folder / femu.MARK).is_file():
            progress(f"there is one already: {binary}")
            return binary
        begun = time.monotonic()
        for step in steps(source, jobs):
            if step.done is None or not step.done.exists():
                progress(f"[{time.monotonic() - begun:.0f} s] {step.title}: {shlex.join(step.words)}")
                _run(step, folder / f"{step.title}.log")
        head = _output(["git", "-C", str(folder / "source"), "rev-parse", "HEAD"])
        about = {"repository": source.repository, "commit": head, "version": _probed(binary), "made": time.time()}
        draft = folder / f"{femu.MARK}.new"
        draft.write_text(json.dumps(about) + "\n")
        draft.replace(folder / femu.MARK)
    progress(f"[{time.monotonic() - begun:.0f} s] built {binary}")
    return binary


def _run(step: Step, log: Path) -> None:
    """Run one step, its words to a log. :raises QemuMissing: it failed"""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}
    with open(log, "wb") as output:
        try:
            status = subprocess.run(
                step.words, cwd=step.cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                env=environment, timeout=step.seconds, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired as problem:
            raise QemuMissing(f"{step.title} took more than {step.seconds} s; see {log}, then build again") from problem
        except OSError as problem:
            raise QemuMissing(f"{step.title}: {problem}; {shlex.join(step.words)}") from problem
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL:])
        fetches = step.title in ("clone", "checkout", "configure")
        why = "; the network is needed for it: is the repository in reach?" if fetches else ""
        if step.title == "clone":  # what is there of it would pass for a clone the next time
            shutil.rmtree(step.words[-1], ignore_errors=True)
        raise QemuMissing(
            f"{step.title} failed with exit code {status}{why}\n{shlex.join(step.words)}\n{tail}\n({log})"
        )


def _output(words: Sequence[str]) -> str:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _probed(binary: Path) -> str:
    """Its version. :raises QemuMissing: it is no FEMU that attaches drives"""
    femu.probe_femu(binary)
    return _output([str(binary), "--version"]).partition("\n")[0]


def status() -> dict[str, Any]:
    """Whether there is a FEMU, and which."""
    told: dict[str, Any] = {"pin": femu.PIN, "repository": femu.REPOSITORY, "folder": str(femu.folder())}
    try:
        found = femu.find()
    except QemuMissing as problem:
        return {**told, "there": False, "why": str(problem)}
    version = ".".join(map(str, found.version))
    return {**told, "there": True, "binary": found.command[0], "version": version, "why": found.reason}


def main(arguments: Sequence[str]) -> int:
    """``build``, ``status``, ``where``."""
    options = _parser().parse_args(arguments)
    if options.action != "build":
        told = status()
        if options.json:
            print(json.dumps(told))
        elif told["there"]:
            print(told["binary"] if options.action == "where" else f"QEMU {told['version']}: {told['why']}")
        else:
            print(told["why"], file=sys.stderr)
        return 0 if told["there"] else 1
    source = Source(options.repository, options.commit)
    if options.dry_run:
        _show_plan(source, options.jobs, options.json)
        return 0
    try:
        built = build(source, options.jobs, progress=lambda text: print(text, file=sys.stderr, flush=True))
    except QemuMissing as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(built)
    return 0


def _show_plan(source: Source, jobs: int, as_json: bool) -> None:
    """The commands of a build, and what is missing for it."""
    lacking = missing()
    plan = {step.title: shlex.join(step.words) for step in steps(source, jobs)}
    if as_json:
        print(json.dumps({"folder": str(source.folder), "missing": lacking, "steps": plan}))
        return
    if lacking:
        print(f"apt-get install {' '.join(lacking)}")
    print("\n".join(plan.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m emucsd_femu femu",
        description="Build FEMU on this machine from its public repository, or say which build is there.",
        epilog="The testbed runs on it with qemu = \"femu\" in the file's [host]; docs/femu.md.",
    )  # fmt: skip
    parser.add_argument("action", choices=("build", "status", "where"))
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--dry-run", action="store_true", help="build: print the commands and do nothing")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at once")
    parser.add_argument("--repository", default=femu.REPOSITORY, help="default: %(default)s")
    parser.add_argument("--commit", default=femu.PIN, help="default: %(default)s, the one that the knobs were read at")
    return parser
