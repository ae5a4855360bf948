"""The coordinator's end of all connections: one thread that reads, checks, and writes; nothing here decides.

What comes is put into a queue, for the thread that leads the run. Nothing that a peer does can hold up the others: it
is read without waiting, what it does not take is kept up to a limit, and silence ends it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from emucsd.stannis.errors import GroupViolation, NotAdmitted
from emucsd.stannis.group import protocol
from emucsd.stannis.group.protocol import Beat, Hello, Lines, Message, Pulse, Refused

HELLO_SECONDS = 10.0
_STRANGERS = 256  # connections that have not shown the token, at most
_UNSENT_LIMIT = 256 << 20
_TURN_SECONDS = 0.25
_AWAY_SECONDS = 2.0  # a turn that took longer: this process was suspended, and hears late


@dataclass(eq=False)
class Peer:
    """One connection.

    :ivar node: its name, once it has shown the token
    :ivar heard: when it said something last
    """

    sock: socket.socket
    where: str
    lines: Lines = field(default_factory=lambda: Lines(protocol.HELLO_LIMIT))
    out: bytearray = field(default_factory=bytearray)
    node: str = ""
    heard: float = field(default_factory=time.monotonic)
    ending: bool = False

    def __repr__(self) -> str:
        return f"<Peer {self.node or 'stranger'} {self.where}>"


class Came(NamedTuple):
    """Something for the controller.

    :ivar peer: None: nobody in particular
    :ivar message: what it said; None: it is gone, and ``why`` says why
    """

    peer: Peer | None
    message: Message | None
    why: str = ""


class Server:
    """Listens from its making; ``start`` begins to serve.

    :param silence: seconds without a line after which a peer is gone
    :raises OSError: the address can't be had
    """

    def __init__(self, host: str, port: int, token: str, silence: float) -> None:
        self._token, self._silence = token, silence
        self.inbox: queue.Queue[Came] = queue.Queue()
        self._listener = socket.create_server((host, port), backlog=128)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)[::-1]
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._peers: set[Peer] = set()
        self._lock = threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        found = self._listener.getsockname()
        return str(found[0]), int(found[1])

    def start(self) -> None:
        """Serve, on a thread of its own."""
        self._thread.start()

    def send(self, peer: Peer, message: Message) -> None:
        """From any thread; never waits. A peer that is gone misses it."""
        data = protocol.pack(message)
        with self._lock:
            peer.out += data
        self._poke()

    def end(self, peer: Peer, last: Message | None = None) -> None:
        """Close a connection once what is out has gone; nothing of it comes any more."""
        if last is not None:
            self.send(peer, last)
        peer.ending = True
        self._poke()

    def close(self, seconds: float = 2.0) -> None:
        """End all, giving last words so much time to go."""
        self._closing = True
        self._poke()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._listener.close()

    # -- the thread

    def _run(self) -> None:
        before = time.monotonic()
        deadline = float("inf")
        while True:
            now = time.monotonic()
            if now - before > _AWAY_SECONDS:
                for peer in self._peers:
                    peer.heard += now - before  # what they said meanwhile has not been read yet
            before = now
            if self._closing:
                deadline = min(deadline, now + 1.0)
                if now > deadline or not any(peer.out for peer in self._peers):
                    break
            self._turn()
            self._expire(time.monotonic())
        for peer in list(self._peers):
            self._drop(peer, "")
        self._selector.close()

    def _turn(self) -> None:
        for peer in list(self._peers):
            self._watch(peer)
        for key, events in self._selector.select(_TURN_SECONDS):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj == self._woken:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
            else:
                self._serve(key.data, events)

    def _watch(self, peer: Peer) -> None:
        """Ask for writability only while there is something to write; close what has ended."""
        if peer.ending and not peer.out:
            self._drop(peer, "")
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.out else 0)
        if self._selector.get_key(peer.sock).events != wanted:
            self._selector.modify(peer.sock, wanted, peer)

    def _accept(self) -> None:
        try:
            sock, address = self._listener.accept()
        except OSError:
            return
        strangers = [peer for peer in self._peers if not peer.node]
        if len(strangers) >= _STRANGERS:
            self._drop(min(strangers, key=lambda peer: peer.heard), "")
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock, f"{address[0]}:{address[1]}")
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, peer)

    def _serve(self, peer: Peer, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._write(peer)
            if events & selectors.EVENT_READ and peer in self._peers:
                self._read(peer)
        except GroupViolation as problem:
            self._refuse(peer, problem)
        except NotAdmitted as problem:
            self._refuse(peer, problem)
        except OSError as problem:
            self._drop(peer, f"its connection broke: {problem.strerror or problem}")

    def _write(self, peer: Peer) -> None:
        with self._lock:
            sent = peer.sock.send(memoryview(peer.out)[: 1 << 20])
            del peer.out[:sent]

    def _read(self, peer: Peer) -> None:
        data = peer.sock.recv(1 << 18)
        if not data:
            self._drop(peer, "its connection ended")
            return
        if peer.ending:
            return
        if peer.node:
            peer.heard = time.monotonic()
        for line in peer.lines.feed(data):
            message = protocol.parse(line, protocol.FROM_WORKER)
            if not peer.node:
                self._admit(peer, message)
            elif isinstance(message, Hello):
                raise GroupViolation("a second hello on one connection")
            elif isinstance(message, Beat):
                self.send(peer, Pulse())
                continue
            self.inbox.put(Came(peer, message))

    def _admit(self, peer: Peer, message: Message) -> None:
        if not isinstance(message, Hello):
            raise GroupViolation(f"the first line is {type(message).__name__}, must be Hello")
        if not protocol.same_token(message.token, self._token):
            raise NotAdmitted("the token is not this run's")
        if message.protocol != protocol.VERSION:
            raise NotAdmitted(
                f"{message.node} speaks version {message.protocol} of the group's protocol, the coordinator "
                f"{protocol.VERSION}; install the same release on both"
            )
        peer.node = message.node
        peer.heard = time.monotonic()
        peer.lines.limit = protocol.WORKER_LIMIT

    def _refuse(self, peer: Peer, problem: GroupViolation | NotAdmitted) -> None:
        """A peer that breaks the protocol is told so and gone."""
        if not peer.ending:
            self.inbox.put(Came(peer if peer.node else None, None, f"{peer.where}: {problem}"))
        peer.node = ""
        self.end(peer, Refused(type(problem).__name__, str(problem)[:1000]))

    def _expire(self, now: float) -> None:
        for peer in list(self._peers):
            quiet = now - peer.heard
            if len(peer.out) > _UNSENT_LIMIT:
                self._drop(peer, "it does not read what it is sent")
            elif peer.ending and quiet > HELLO_SECONDS:
                self._drop(peer, "")
            elif not peer.node and quiet > HELLO_SECONDS:
                self._drop(peer, "")  # it never said hello
            elif peer.node and not peer.ending and quiet > self._silence:
                self._silent(peer, quiet)

    def _silent(self, peer: Peer, quiet: float) -> None:
        """Suspended, cut off, or dead: if it wakes, it reads why it was dropped, and may come again."""
        why = f"nothing was heard of it for {quiet:.1f} s"
        self.inbox.put(Came(peer, None, why))
        peer.node = ""
        peer.heard = time.monotonic()
        self.end(peer, Refused("PeerLost", why, again=True))

    def _drop(self, peer: Peer, why: str) -> None:
        if peer not in self._peers:
            return
        self._peers.discard(peer)
        self._selector.unregister(peer.sock)
        peer.sock.close()
        if why and peer.node and not peer.ending:
            self.inbox.put(Came(peer, None, why))

    def _poke(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake, b"\0")
