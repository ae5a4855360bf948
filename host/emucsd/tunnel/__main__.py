"""`python3 -m emucsd.tunnel host|isp`: one end of the tunnel as a process."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from emucsd.errors import EmucsdError
from emucsd.tunnel import network
from emucsd.tunnel.errors import TunnelError
from emucsd.tunnel.loop import Loop
from emucsd.tunnel.opening import open_port
from emucsd.tunnel.port import TunnelPort

EXAMPLES = """examples:
  python3 -m emucsd.tunnel host --drive my-drive               the host's end, as root
  python3 -m emucsd.tunnel host --drive my-drive --proxy /tmp/p   without root: in a network of its own, with a way in
  python3 -m emucsd.tunnel host --drive my-drive --private -- ping 10.77.0.2
  python3 -m emucsd.tunnel isp --drive /dev/nvme0              the ISP engine's end, on its Linux
"""


class End(Protocol):
    """What both ends are, here."""

    @property
    def loop(self) -> Loop:
        """Runs it."""

    @property
    def up(self) -> bool:
        """Whether it is ready."""

    def status(self) -> dict[str, Any]:
        """Plain values."""

    def close(self) -> None:
        """Leave."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m emucsd.tunnel",
        description="One end of the TCP/IP tunnel through a drive.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ends = parser.add_subparsers(dest="end", required=True, metavar="host|isp")
    for name, about in (("host", "the host's end, over all drives"), ("isp", "an ISP engine's end")):
        end = ends.add_parser(name, help=about)
        end.add_argument("--drive", action="append", required=True, metavar="DRIVE",
                         help="name, runtime folder or node of a drive; for the host repeatable, in order")  # fmt: skip
        end.add_argument("--interface", default=network.INTERFACE, help="name of the TUN device (%(default)s)")
        end.add_argument("--private", action="store_true", help="in a network namespace of its own (default without "
                         "root)")  # fmt: skip
        end.add_argument("--ready-fd", type=int, metavar="N", help="write a line of JSON here when the tunnel is open")
        end.add_argument("--lifeline-fd", type=int, metavar="N", help="end when this reaches its end of file")
        end.add_argument("--debug", action="store_true", help="say more")
        if name == "host":
            end.add_argument("--network", default=network.DEFAULT_NETWORK, help="(%(default)s)")
            end.add_argument("--mtu", type=int, default=network.DEFAULT_MTU, help="(%(default)s)")
            end.add_argument("--proxy", type=Path, metavar="SOCKET",
                             help="let programs outside of the namespace connect through this Unix socket")  # fmt: skip
        end.add_argument("command", nargs="*", help="after --: run this in the tunnel's namespace, end with it")
    return parser


def opener(where: str, number: int) -> tuple[str, Callable[[], TunnelPort]]:
    return where, lambda: open_port(where, number)


class Process:
    """An end, its signals, and whoever waits for it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._child: subprocess.Popen[bytes] | None = None
        self._end = self._make()

    def _make(self) -> End:
        options = self._options
        if options.end == "host":
            from emucsd.tunnel.host import HostEnd

            plan = network.plan(options.network, options.mtu)
            drives = [opener(where, 0) for where in options.drive]
            return HostEnd.make(plan, drives, options.interface, self._changed)
        if len(options.drive) > 1:
            raise TunnelError(f"{len(options.drive)} drives: an ISP engine is inside of one")
        from emucsd.tunnel.isp import IspEnd

        return IspEnd(*opener(options.drive[0], 1), options.interface, self._changed)

    def _changed(self) -> None:
        """Called by the loop when a drive's tunnel opens or goes."""
        options = self._options
        if not self._ready():
            return
        if options.ready_fd is not None:
            fd, options.ready_fd = options.ready_fd, None
            os.write(fd, json.dumps({"ok": True, "pid": os.getpid(), **self._end.status()}).encode() + b"\n")
            os.close(fd)
        if options.command and self._child is None:
            self._child = subprocess.Popen(options.command)

    def _ready(self) -> bool:
        return all(channel.up for channel in self._end.loop.channels)

    def run(self) -> int:
        """:returns: the exit code: the command's, where there is one"""
        loop = self._end.loop
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: loop.interrupt())
        signal.signal(signal.SIGCHLD, lambda *_: self._child_ended(loop))
        proxy = None
        if getattr(self._options, "proxy", None) is not None:
            from emucsd.tunnel.proxy import Proxy

            proxy = Proxy(self._options.proxy)
        if self._options.lifeline_fd is not None:
            _follow(self._options.lifeline_fd, loop)
        try:
            loop.run()
        finally:
            self._end.close()
            if proxy is not None:
                proxy.close()
        return self._reap()

    def _child_ended(self, loop: Loop) -> None:
        if self._child is not None and self._child.poll() is not None:
            loop.interrupt()

    def _reap(self) -> int:
        if self._child is None:
            return 0
        if self._child.poll() is None:
            self._child.terminate()
        status = self._child.wait()
        return status if status >= 0 else 128 - status


def _follow(fd: int, loop: Loop) -> None:
    import threading

    def wait() -> None:
        while os.read(fd, 64):
            pass
        loop.interrupt()

    threading.Thread(target=wait, daemon=True).start()


def main(words: Sequence[str] | None = None) -> int:
    options = arguments().parse_args(words)
    logging.basicConfig(level=logging.DEBUG if options.debug else logging.INFO,
                        format="emucsd.tunnel: %(message)s", stream=sys.stderr)  # fmt: skip
    try:
        if options.private or not network.may_configure():
            network.enter_private()
        return Process(options).run()
    except (EmucsdError, OSError) as problem:
        print(f"emucsd.tunnel: {problem}", file=sys.stderr)
        if options.debug:
            raise
        return 1


if __name__ == "__main__":
    sys.exit(main())
