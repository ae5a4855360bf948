"""The program that trains: one rank of a run.

    python3 -m emucsd.stannis.group.worker --coordinator 10.77.0.1:7078 --node host

It does what the coordinator asks, one request after the other. When it was dropped, because it was suspended or its
network away, it says hello again and comes back as a new rank. When the coordinator is gone, it keeps a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from typing import TypeVar

from emucsd.errors import EmucsdError
from emucsd.stannis.errors import CheckpointError, GroupError, NotAdmitted
from emucsd.stannis.group import protocol, versions
from emucsd.stannis.group.failures import failure_of
from emucsd.stannis.group.link import Link, connect
from emucsd.stannis.group.options import endpoint, token_of, worker_parser
from emucsd.stannis.group.protocol import Answer, Hello, Message, Refused, Request, Stop
from emucsd.stannis.group.rank import Rank

T = TypeVar("T")
_WORKED_SECONDS, _PAUSE_MOST = 10.0, 30.0
DONE, FAILED, ORPHANED, REFUSED = 0, 1, 3, 4


class Worker:
    """The program's state over several admissions."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.host, self.port = endpoint(options.coordinator, "--coordinator")
        self.token = token_of(options.token_file)
        self.versions = versions.versions()
        self._rank: Rank | None = None
        self._pause = 0.0  # seconds before it comes back, longer each time that it fails soon after it came

    def run(self) -> int:
        """:returns: the exit status"""
        seconds = self.options.connect_seconds
        while True:
            try:
                link = connect(self.host, self.port, self._hello, seconds, self._hear)
            except NotAdmitted as problem:
                return _say(f"not admitted: {problem}", REFUSED)
            except GroupError as problem:
                return self._orphaned(str(problem))
            self._leave()
            begun = time.monotonic()
            status = self._serve(link)
            if status is not None:
                return status
            if isinstance(link.over, Refused) and link.over.error == "NodeFailed":
                self._rest(time.monotonic() - begun)
            seconds = link.welcome.silence

    def _serve(self, link: Link) -> int | None:
        """Do requests until the connection ends. :returns: the exit status; None: try to come back"""
        self._rank = Rank(link.welcome, self.options.node, self._address(link.address), link.send)
        link.open()
        while (request := link.requests.get()) is not None:
            link.send(self._do(request))
        link.close()
        over = link.over
        if isinstance(over, Stop):
            self._leave()
            return _say(over.text, over.status) if over.text else over.status
        if isinstance(over, Refused):
            self._leave()
            if over.again and not self.options.no_rejoin:
                return _say(f"dropped: {over.text}; joining again", None)
            return _say(f"thrown out: {over.text}", REFUSED)
        return _say(f"{over}; looking for it", None)

    def _rest(self, worked: float) -> None:
        """What failed on this node may be well again later: its drive, its memory."""
        self._pause = 1.0 if worked > _WORKED_SECONDS else min(2 * self._pause or 1.0, _PAUSE_MOST)
        time.sleep(self._pause)

    def _do(self, request: Request) -> Message:
        assert self._rank is not None
        try:
            return Answer(request.request, self._rank.do(request))
        except Exception as problem:  # whatever it is, the coordinator is to hear of it
            if self.options.debug:
                traceback.print_exc()
            return failure_of(request.request, problem, debug=self._rank.welcome.debug)

    def _hear(self, message: Message) -> None:
        """On the link's thread."""
        rank = self._rank
        if rank is None:
            return
        if isinstance(message, Stop | Refused):
            rank.abandon(sys.maxsize, message.text or "the run is over")
        else:
            rank.hear(message)

    def _leave(self) -> None:
        rank, self._rank = self._rank, None
        if rank is not None:
            rank.close()

    def _orphaned(self, why: str) -> int:
        """The coordinator is gone for good: what was trained is kept."""
        rank = self._rank
        if rank is None:
            return _say(why, ORPHANED)
        try:
            kept = rank.keep()
        except CheckpointError as problem:
            return _say(f"{why}; the state of the last step could not be kept: {problem}", ORPHANED)
        if kept is None:
            return _say(f"{why}; this node keeps no checkpoints, others may: start again with --resume", ORPHANED)
        return _say(f"{why}; step {kept.step} is kept in {kept.where}: start again with --resume", ORPHANED)

    # -- hello

    def _address(self, address: str) -> str:
        return self.options.address or address

    def _hello(self, address: str) -> Hello:
        return Hello(
            token=self.token,
            node=self.options.node,
            protocol=protocol.VERSION,
            versions=self.versions,
            machine=versions.machine(),
            computer=versions.computer(),
            cores=versions.cores(),
            memory_bytes=versions.memory_bytes(),
            address=self._address(address),
            pid=os.getpid(),
        )


def _say(text: str, status: T) -> T:
    """For whoever reads this program's log."""
    print(text, file=sys.stderr, flush=True)
    return status


def main(argv: list[str] | None = None) -> int:
    """The program. :returns: its exit status"""
    options = worker_parser().parse_args(argv)
    _load_torch()
    try:
        return Worker(options).run()
    except EmucsdError as problem:
        if options.debug:
            traceback.print_exc()
        return _say(str(problem), REFUSED if isinstance(problem, NotAdmitted) else FAILED)
    except KeyboardInterrupt:
        return FAILED


def _load_torch() -> None:
    """Before the hello: no heartbeat can be sent while a large library is mapped on a slow processor."""
    from emucsd.stannis import torchstart

    try:
        torchstart.start()
    except ImportError as problem:
        print(f"PyTorch can't be imported: {problem}", file=sys.stderr, flush=True)  # the coordinator hears it as well


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread may still be inside of Gloo, waiting for a rank that never comes
