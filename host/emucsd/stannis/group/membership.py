"""Who is there: nodes that were let in, what each was asked, and what it answered."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from emucsd.stannis.errors import PeerLost, StannisError, VersionMismatch
from emucsd.stannis.group import failures, versions
from emucsd.stannis.group.cluster import Cluster
from emucsd.stannis.group.events import Events
from emucsd.stannis.group.protocol import Answer, Failure, Hello, Message, Refused, Request, Welcome
from emucsd.stannis.group.server import Came, Peer, Server

Outcome = dict[str, Any] | StannisError
Then = Callable[["Present", Outcome], None]


@dataclass(eq=False)
class Present:
    """A node that is there.

    :ivar asked: request -> what to do with its outcome
    :ivar found: what it said of the samples that lie there; None: it wasn't asked yet
    """

    name: str
    peer: Peer
    hello: Hello
    asked: dict[int, Then] = field(default_factory=dict)
    found: dict[str, Any] | None = None


class Watcher(Protocol):
    """Who is told of what nobody asked for."""

    def arrived(self, node: Present) -> None:
        """A node was let in."""

    def left(self, node: Present, why: str) -> None:
        """A node is gone; what it was asked has failed with PeerLost before."""

    def said(self, node: Present, message: Message) -> None:
        """A message that is no answer."""


class Membership:
    """The nodes of a run. For one thread: all that happens, happens in ``turn``.

    :ivar present: name -> node, in the order of arrival
    """

    def __init__(self, cluster: Cluster, welcome: Welcome, server: Server, events: Events) -> None:
        self.cluster, self.server, self.events = cluster, server, events
        self._welcome = welcome
        self.present: dict[str, Present] = {}
        self._numbers = count(1)
        self.watcher: Watcher | None = None
        self.known: set[str] = set()  # were here before
        self.refused: dict[str, Refused] = {}  # node -> why it may not come, however often it tries

    # -- what happens

    def turn(self, seconds: float) -> None:
        """Wait so long for something, and deal with all that is there."""
        try:
            came = self.server.inbox.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return
        while True:
            self._take(came)
            try:
                came = self.server.inbox.get_nowait()
            except queue.Empty:
                return

    def _take(self, came: Came) -> None:
        if isinstance(came.message, Hello) and came.peer is not None:
            self._arrive(came.peer, came.message)
            return
        node = self._of(came.peer)
        if node is None:
            if came.message is None:
                self.events.tell("refused", text=came.why)
        elif came.message is None:
            self._leave(node, came.why)
        elif isinstance(came.message, Answer | Failure):
            self._answered(node, came.message)
        elif self.watcher is not None:
            self.watcher.said(node, came.message)

    def _of(self, peer: Peer | None) -> Present | None:
        return next((node for node in self.present.values() if node.peer is peer), None) if peer is not None else None

    def _arrive(self, peer: Peer, hello: Hello) -> None:
        refused = self._objection(hello)
        if refused is not None:
            self.events.tell("refused", node=hello.node, error=refused.error, text=refused.text)
            if not refused.again and hello.node in self.cluster.names:
                self.refused[hello.node] = refused
            self.server.end(peer, refused)
            return
        node = Present(hello.node, peer, hello)
        self.present[node.name] = node
        member = self.cluster.member(node.name)
        welcome = self._welcome
        self.server.send(
            peer,
            Welcome(
                welcome.spec,
                welcome.beat,
                welcome.silence,
                member.memory_bytes or 0,
                member.checkpoint or "",
                welcome.debug,
            ),
        )
        self.events.tell(
            "hello",
            node=node.name,
            again=node.name in self.known,
            machine=hello.machine,
            cores=hello.cores,
            memory_bytes=hello.memory_bytes,
            versions=hello.versions,
            address=hello.address,
        )
        self.known.add(node.name)
        if self.watcher is not None:
            self.watcher.arrived(node)

    def _objection(self, hello: Hello) -> Refused | None:
        """Why a worker can't be let in."""
        names = self.cluster.names
        if hello.node not in names:
            return Refused("NotAdmitted", f"{hello.node!r} is no node of this run; they are {', '.join(names[:20])}")
        if hello.node in self.present:
            text = f"{hello.node} is here already; a second worker of that name is let in once the first is lost"
            return Refused("NotAdmitted", text, again=True)
        if not hello.versions.get("torch"):
            return Refused("NotAdmitted", f"PyTorch is not installed on {hello.node}; install it there")
        for other in self.present.values():
            try:
                versions.check(hello.node, hello.versions, other.name, other.hello.versions)
            except VersionMismatch as problem:
                return Refused("VersionMismatch", str(problem))
        return None

    def _leave(self, node: Present, why: str) -> None:
        del self.present[node.name]
        lost = PeerLost(f"{node.name} is lost: {why}", node.name)
        for then in list(node.asked.values()):
            then(node, lost)
        node.asked.clear()
        if self.watcher is not None:
            self.watcher.left(node, why)

    def _answered(self, node: Present, message: Answer | Failure) -> None:
        if isinstance(message, Failure) and message.request < 0:
            self.dismiss(node, message.text)
            return
        then = node.asked.pop(message.request, None)
        if then is None:
            self.dismiss(node, f"it answered request {message.request}, which it was not asked")
            return
        then(node, message.value if isinstance(message, Answer) else failures.error_of(node.name, message))

    # -- what is done

    def ask(self, node: Present, do: str, arguments: Mapping[str, Any], then: Then) -> None:
        """Ask a node; ``then`` is called with the outcome, in a later ``turn``."""
        number = next(self._numbers)
        node.asked[number] = then
        self.server.send(node.peer, Request(number, do, dict(arguments)))

    def ask_all(
        self, asked: Mapping[str, tuple[str, Mapping[str, Any]]], check: Callable[[], None] = lambda: None
    ) -> dict[str, Outcome]:
        """Ask several nodes at once, and wait until each has answered, failed or gone.

        :param check: is called at every turn; what it raises ends the waiting
        """
        outcomes: dict[str, Outcome] = {}
        for name, (do, arguments) in asked.items():
            node = self.present.get(name)
            if node is None:
                outcomes[name] = PeerLost(f"{name} is lost", name)
            else:
                self.ask(node, do, arguments, lambda one, outcome: outcomes.__setitem__(one.name, outcome))
        while len(outcomes) < len(asked):
            check()
            self.turn(0.2)
        return outcomes

    def tell(self, names: Iterable[str], message: Message) -> None:
        """Say something to those of them that are here."""
        for name in names:
            if (node := self.present.get(name)) is not None:
                self.server.send(node.peer, message)

    def dismiss(self, node: Present, why: str, *, again: bool = False) -> None:
        """A node is of no more use."""
        self.server.end(node.peer, Refused("NodeFailed", why, again))
        self._leave(node, why)

    def wait_for(self, done: Callable[[], bool], seconds: float, check: Callable[[], None] = lambda: None) -> bool:
        """Until something is true. :returns: whether it is"""
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            check()
            self.turn(min(0.2, max(deadline - time.monotonic(), 0.0)))
        return done()
