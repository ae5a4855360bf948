"""The program that leads a run. It needs no PyTorch.

    python3 -m emucsd.stannis.group.coordinator --listen 10.77.0.1:7078 --spec spec.json --cluster cluster.json

Exit status 0: done, or stopped as asked; 1: the run failed, its last event says why; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from emucsd.errors import EmucsdError
from emucsd.stannis.errors import GroupError, SpecError
from emucsd.stannis.group.cluster import Cluster
from emucsd.stannis.group.controller import Controller
from emucsd.stannis.group.events import Events
from emucsd.stannis.group.options import batches_of, coordinator_parser, endpoint, token_of
from emucsd.stannis.group.server import Server
from emucsd.stannis.spec import Spec


def main(argv: list[str] | None = None) -> int:
    """The program. :returns: its exit status"""
    options = coordinator_parser().parse_args(argv)
    events = Events()
    try:
        return _lead(options, events)
    except EmucsdError as problem:
        if options.debug:
            traceback.print_exc()
        events.tell("failed", error=type(problem).__name__, text=str(problem), node="")
        return 1
    except Exception as problem:
        traceback.print_exc()
        events.tell(
            "failed",
            error=type(problem).__name__,
            text="a bug of the coordinator's; its log has the traceback",
            node="",
        )
        return 1
    finally:
        events.close()


def _lead(options: argparse.Namespace, events: Events) -> int:
    spec = Spec.from_json(_text(options.spec, "--spec"))
    cluster = Cluster.from_json(_text(options.cluster, "--cluster"))
    batches_of(options.batches)
    host, port = endpoint(options.listen, "--listen")
    token = token_of(options.token_file)
    try:
        server = Server(host, port, token, options.silence)
    except OSError as problem:
        raise GroupError(f"--listen {options.listen}: {problem.strerror or problem}; choose another") from problem
    try:
        controller = Controller(spec, cluster, options, server, events)
        _heed(controller, options)
        server.start()
        address = server.address
        events.tell(
            "listening", address=f"{address[0]}:{address[1]}", host=address[0], port=address[1], pid=os.getpid()
        )
        return controller.run()
    finally:
        server.close()


def _heed(controller: Controller, options: argparse.Namespace) -> None:
    """SIGTERM, SIGINT and the end of standard input ask the run to stop."""

    def stop(*_: Any) -> None:
        controller.stops += 1

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def read() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            return
        stop()

    if not options.ignore_stdin:
        threading.Thread(target=read, name="stdin", daemon=True).start()


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise SpecError(f"{option} {path}: {getattr(problem, 'strerror', None) or 'no text'}") from None


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the thread that reads standard input would wait for its end
