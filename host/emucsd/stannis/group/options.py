"""The command lines of coordinator and worker."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from emucsd.stannis.errors import NotAdmitted, SpecError
from emucsd.stannis.group.protocol import SILENCE_SECONDS

TOKEN_VARIABLE = "EMUCSD_STANNIS_TOKEN"
PORT = 7078
BENCH_SECONDS = 0.5


def coordinator_parser() -> argparse.ArgumentParser:
    """``python3 -m emucsd.stannis.group.coordinator``."""
    parser = argparse.ArgumentParser(
        prog="python3 -m emucsd.stannis.group.coordinator",
        description="Lead a training run: wait for the workers, tune, plan, train, evaluate. Events are JSON lines on "
        "standard output. SIGTERM, or the end of standard input, saves a checkpoint and stops; a second SIGTERM stops "
        "at once.",
    )
    add = parser.add_argument
    add("--listen", default=f"127.0.0.1:{PORT}", metavar="ADDR:PORT", help="port 0: any; the first event says which")
    add("--spec", required=True, type=Path, metavar="FILE", help="the run: emucsd.stannis.spec as JSON")
    add("--cluster", required=True, type=Path, metavar="FILE", help="nodes, pools, places: group.cluster as JSON")
    add("--token-file", type=Path, metavar="FILE", help=f"the run's secret; else ${TOKEN_VARIABLE}")
    add("--join-seconds", type=float, default=120.0, metavar="S", help="wait so long for all nodes to say hello")
    add(
        "--silence",
        type=float,
        default=SILENCE_SECONDS,
        metavar="S",
        help="a node is lost after so long without a word",
    )
    add("--batches", metavar="N,N,...", help="batch sizes that the tuner tries; else powers of 2")
    add("--margin", type=float, metavar="E", help="Algorithm 1's E")
    add("--grain", type=float, metavar="C", help="Algorithm 1's C")
    add(
        "--bench-seconds", type=float, default=BENCH_SECONDS, metavar="S",
        help="measure each batch for so long: the longer, the less bursts of a throttled engine matter",
    )  # fmt: skip
    add("--tuning", type=Path, metavar="FILE", help="the tuner's cache; else that in ~/.cache")
    add("--no-cache", action="store_true", help="tune anew, whatever the cache says")
    add("--equal", action="store_true", help="equal batches on all ranks (plain data parallel), to compare with")
    add("--dry-run", action="store_true", help="tune and plan, don't train")
    add("--resume", action="store_true", help="go on from the newest checkpoint")
    add("--ignore-stdin", action="store_true", help="don't stop when standard input ends")
    add("--debug", action="store_true", help="errors carry tracebacks")
    return parser


def worker_parser() -> argparse.ArgumentParser:
    """``python3 -m emucsd.stannis.group.worker``."""
    parser = argparse.ArgumentParser(
        prog="python3 -m emucsd.stannis.group.worker",
        description="Be one rank of a training run; the coordinator says what to do. Exit status 0: the run is done; "
        "1: it failed; 3: the coordinator is gone; 4: not admitted.",
    )
    add = parser.add_argument
    add("--coordinator", required=True, metavar="ADDR:PORT")
    add("--node", required=True, metavar="NAME", help="this node's name in the run")
    add("--token-file", type=Path, metavar="FILE", help=f"the run's secret; else ${TOKEN_VARIABLE}")
    add("--address", metavar="ADDR", help="where other ranks reach this one; else the way to the coordinator decides")
    add("--connect-seconds", type=float, default=60.0, metavar="S", help="try so long to reach the coordinator")
    add("--no-rejoin", action="store_true", help="end when the coordinator has dropped this node")
    add("--debug", action="store_true", help="print tracebacks")
    return parser


def endpoint(text: str, option: str) -> tuple[str, int]:
    """``ADDR:PORT``. :raises SpecError: it is none"""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SpecError(f"{option} is {text!r}; use ADDR:PORT, such as 10.77.0.1:{PORT}")
    return host.strip("[]"), int(port)


def token_of(file: Path | None) -> str:
    """The run's secret. :raises NotAdmitted: there is none"""
    try:
        token = file.read_text().strip() if file is not None else os.environ.get(TOKEN_VARIABLE, "")
    except OSError as problem:
        raise NotAdmitted(
            f"the token file can't be read: {problem.strerror}; give --token-file or ${TOKEN_VARIABLE}"
        ) from None
    if len(token) < 8 or len(token) > 1000 or not token.isprintable():
        raise NotAdmitted(
            f"the run's token has {len(token)} characters; 8 to 1000, by --token-file or ${TOKEN_VARIABLE}"
        )
    return token


def batches_of(text: str | None) -> tuple[int, ...] | None:
    """``16,32,64``. :raises SpecError: not rising whole numbers"""
    if text is None:
        return None
    parts = text.split(",")
    found = tuple(int(part) for part in parts if part.strip().isdecimal())
    if len(found) != len(parts) or list(found) != sorted(set(found)) or found[0] < 1:
        raise SpecError(f"--batches is {text!r}; rising whole numbers from 1, such as 16,32,64")
    return found
