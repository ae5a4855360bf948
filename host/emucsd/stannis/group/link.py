"""A worker's connection to its coordinator: lines both ways, heartbeats, and when it is over."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable

from emucsd.stannis.errors import GroupError, GroupViolation, NotAdmitted, PeerLost
from emucsd.stannis.group import protocol
from emucsd.stannis.group.protocol import Beat, Hello, Lines, Message, Refused, Request, Stop, Welcome

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 30.0
_SEND_SECONDS = 60.0


class Link:
    """One connection. Requests wait in ``requests`` for the thread that does them; all else goes to ``dispatch``.

    :param early: lines that came behind the welcome
    :ivar over: why no more will come, or None while it is alive: ``Stop``, ``Refused``, or the error that ended it
    """

    def __init__(
        self,
        sock: socket.socket,
        welcome: Welcome,
        lines: Lines,
        early: list[bytes],
        dispatch: Callable[[Message], None],
    ) -> None:
        self.welcome = welcome
        self.requests: queue.Queue[Request | None] = queue.Queue()
        self.over: Stop | Refused | GroupError | None = None
        self._sock, self._lines, self._early, self._dispatch = sock, lines, early, dispatch
        self._out = sock.dup()  # of another patience
        self._out.settimeout(_SEND_SECONDS)
        self._sending = threading.Lock()
        self._threads = [
            threading.Thread(target=self._read, name="reader", daemon=True),
            threading.Thread(target=self._beat, name="heartbeat", daemon=True),
        ]

    @property
    def address(self) -> str:
        """This end's, on the way to the coordinator."""
        return str(self._sock.getsockname()[0])

    def open(self) -> None:
        """Read and beat from now on."""
        for thread in self._threads:
            thread.start()

    def send(self, message: Message) -> None:
        """From any thread. What can't be sent is lost: ``over`` says so soon after."""
        data = protocol.pack(message)
        with self._sending:
            try:
                self._out.sendall(data)
            except OSError:
                self._shut()  # half a line may be out: nothing behind it would be understood

    def close(self) -> None:
        """Harmless when repeated."""
        self._shut()
        self._sock.close()
        self._out.close()

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    # -- threads

    def _read(self) -> None:
        try:
            for line in self._early:
                self._take(protocol.parse(line, protocol.FROM_COORDINATOR))
            while self.over is None:
                for line in self._lines.feed(self._receive()):
                    self._take(protocol.parse(line, protocol.FROM_COORDINATOR))
        except GroupError as problem:
            self._end(problem)
        except OSError as problem:
            self._end(PeerLost(f"the connection to the coordinator broke: {problem.strerror or problem}"))

    def _receive(self) -> bytes:
        """What comes next. Silence is counted in waits, not by the clock: a worker that was suspended is to hear first
        what it missed."""
        waits = 0.0
        while True:
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                waits += self.welcome.beat
                if waits > self.welcome.silence:
                    raise PeerLost(f"the coordinator said nothing for {waits:.0f} s") from None
                continue
            if not data:
                raise PeerLost("the coordinator closed the connection")
            return data

    def _take(self, message: Message) -> None:
        if isinstance(message, Request):
            self.requests.put(message)
        elif isinstance(message, Stop | Refused):
            self._end(message)
        else:
            self._dispatch(message)

    def _end(self, why: Stop | Refused | GroupError) -> None:
        if self.over is None:
            self.over = why
            self._dispatch(why if isinstance(why, Stop | Refused) else Stop(str(why)))
            self.requests.put(None)

    def _beat(self) -> None:
        while self.over is None:
            self.send(Beat())
            time.sleep(self.welcome.beat)


def connect(
    host: str, port: int, hello: Callable[[str], Hello], seconds: float, dispatch: Callable[[Message], None]
) -> Link:
    """Find the coordinator, and be let in.

    :param hello: what to say, given this end's address
    :param seconds: to try for; once it has listened, it has half a minute to answer
    :raises PeerLost: there is nobody
    :raises NotAdmitted: it does not want this worker
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _admitted(host, port, hello, dispatch)
        except (OSError, PeerLost) as problem:
            if time.monotonic() > deadline:
                raise PeerLost(
                    f"no coordinator answers at {host}:{port}: {getattr(problem, 'strerror', None) or problem}"
                ) from None
            time.sleep(_RETRY_SECONDS)


def _admitted(host: str, port: int, hello: Callable[[str], Hello], dispatch: Callable[[Message], None]) -> Link:
    sock = socket.create_connection((host, port), timeout=5.0)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(protocol.pack(hello(str(sock.getsockname()[0]))))
        sock.settimeout(_HELLO_SECONDS)
        lines = Lines(protocol.COORDINATOR_LIMIT)
        found: list[bytes] = []
        while not found:
            data = sock.recv(1 << 16)
            if not data:
                raise PeerLost("the coordinator closed the connection without a word")
            found = lines.feed(data)
        first = protocol.parse(found[0], protocol.FROM_COORDINATOR)
        if isinstance(first, Refused) and first.again:
            raise PeerLost(first.text)
        if isinstance(first, Refused):
            raise NotAdmitted(first.text)
        if not isinstance(first, Welcome):
            raise GroupViolation(f"the coordinator began with {type(first).__name__}, must be Welcome or Refused")
        sock.settimeout(first.beat)
    except BaseException:
        sock.close()
        raise
    return Link(sock, first, lines, found[1:], dispatch)
