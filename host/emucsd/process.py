"""The drive process, `python -m emucsd_femu serve`: its command line, and starting it until it serves.

``embedded`` owns drives that end with their owner, ``background`` those that go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from emucsd.errors import StartFailed

START_TIMEOUT = 600.0  # the very first start compiles the firmware
_LOG_TAIL = 2000
_INTERRUPT_SECONDS = 10.0
_GLANCE = 0.2  # seconds between two looks at the log
_PASSED_ON = ("PATH", "HOME", "LANG", "TMPDIR", "NUMBA_", "EMUCSD_", "XDG_", "COVERAGE_")


def command(
    name: str, runtime: Path, store: Path, options: Mapping[str, str | None], settings: Iterable[str]
) -> list[str]:
    """The command line. What the options and settings mean is the drive's to check.

    :param options: flags without dashes; None is left out
    :param settings: of the profile, each ``key=value``
    """
    return [
        *(sys.executable, "-m", "emucsd_femu", "serve"),
        *("--name", name, "--runtime", str(runtime), "--store", str(store)),
        *(part for flag, value in options.items() if value is not None for part in (f"--{flag}", value)),
        *(part for setting in settings for part in ("--set", setting)),
    ]


def launch(
    argv: list[str],
    runtime: Path,
    *,
    lifeline: int | None = None,
    tell: Callable[[str], None] | None = None,
    timeout: float = START_TIMEOUT,
    what: str = "drive",
) -> subprocess.Popen[bytes]:
    """Start a drive, or a testbed, in a session of its own, and wait until it serves.

    :param runtime: its runtime folder, which exists; what it prints goes to ``output`` there
    :param lifeline: a descriptor whose end of file stops it
    :param tell: is given what it says of its progress, else the newest line of its log, while it starts
    :param what: it is, for errors
    :raises StartFailed: it could not start, ended, or was not ready in time; the text says why, and how to try by hand
    """
    ready, theirs = os.pipe()
    inherited = (theirs,) if lifeline is None else (theirs, lifeline)
    more = [] if lifeline is None else ["--lifeline-fd", str(lifeline)]
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, ready)
        with open(theirs, "wb"), open(runtime / "output", "wb") as output:
            process = subprocess.Popen(
                [*argv, "--ready-fd", str(theirs), *more],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=inherited,
                env=environment(),
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        try:
            _await_ready(process, ready, runtime, tell, timeout, what)
        except StartFailed as exc:
            process.kill()
            process.wait()
            raise StartFailed(f"{exc}\ncommand: {shlex.join(argv)}") from None
        except BaseException:
            _interrupt(process)
            raise
    return process


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """End one that still starts: asked first, since a testbed has more to end than itself."""
    process.terminate()
    try:
        process.wait(_INTERRUPT_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # it compiles and hears nothing, or the user is in a hurry
        process.kill()
        process.wait()


def _await_ready(
    process: subprocess.Popen[bytes],
    ready: int,
    runtime: Path,
    tell: Callable[[str], None] | None,
    timeout: float,
    what: str,
) -> None:
    """Until it has said, in one JSON line, that it serves. :raises StartFailed: it said why not, or nothing"""
    deadline = time.monotonic() + timeout
    poller = select.poll()
    poller.register(ready, select.POLLIN)
    received, note, told = b"", "", ""
    while True:
        while b"\n" in received:
            line, _, received = received.partition(b"\n")
            said = json.loads(line)
            if said.get("ok"):
                return
            if "progress" not in said:
                raise StartFailed(f"the {what} did not start: {said.get('error', {}).get('message')}")
            note = said["progress"]
        if tell is not None and (news := note or _doing(runtime)) not in ("", told):
            told = news
            tell(news)
        if poller.poll(_GLANCE * 1000):
            if not (part := os.read(ready, 4096)):
                status = process.wait(5.0)
                raise StartFailed(f"the {what} ended with {status} before it was ready\n{last_words(runtime)}")
            received += part
        elif time.monotonic() > deadline:
            raise StartFailed(f"the {what} was not ready in {timeout:g} s\n{last_words(runtime)}")


def _doing(runtime: Path) -> str:
    """The newest line of its log, without time, logger and settings; "" before there is one."""
    with contextlib.suppress(OSError):
        newest = (runtime / "log").read_text(errors="replace")[-_LOG_TAIL:].strip().rpartition("\n")[2]
        return newest.partition(": ")[2].partition(": {")[0]
    return ""


def last_words(runtime: Path) -> str:
    """The end of what a drive wrote: its log, and what never reached it."""
    tails = []
    for name in ("log", "output"):
        with contextlib.suppress(OSError):
            if text := (runtime / name).read_text(errors="replace")[-_LOG_TAIL:].strip():
                tails.append(text)
    return "\n".join(tails) or "it wrote no log"


def environment() -> dict[str, str]:
    """A small explicit environment; the drive finds its packages where we found ours."""
    chosen = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    chosen["PYTHONPATH"] = os.pathsep.join(str(Path(part).resolve()) for part in sys.path if part)
    return chosen
