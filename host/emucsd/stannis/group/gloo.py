"""A group of ranks over Gloo that can always be left.

Liveness is the coordinator's business: it hears every rank's heartbeat. So additions wait as long as it takes, and end
when ``abandon`` is called, from any thread. Gloo has no call for that, and a machine that was suspended or cut from
power closes no connection: the kernel is told to shut down the group's sockets, upon which all that Gloo waits for
fails at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from emucsd.stannis.errors import PeerLost
from emucsd.stannis.group.allreduce import all_reduce
from emucsd.stannis.training.collective import Done, Pending

if TYPE_CHECKING:
    import torch

TIMEOUT = timedelta(minutes=30)  # Gloo's own; only a bug of ours lets it pass
FORM_SECONDS = 300.0  # a rank may still build its model; one that dies is told of
_SLICE = timedelta(milliseconds=50)  # of waiting: so long an abandoned rank may take to notice
_THREADS = 2


class GlooGroup:
    """All ranks of a generation. A ``training.collective.Collective``.

    :param rank: this one, from 0
    :param generation: counts the groups of a run
    :ivar sent: bytes that this rank has given to the others in additions and broadcasts
    :param over_host: rank 0 is on the host, and the way between two others leads through it (``allreduce``)
    """

    def __init__(self, rank: int, size: int, generation: int, *, over_host: bool = False) -> None:
        self.rank, self.size, self.generation = rank, size, generation
        # one thread: all ranks' additions in one order
        self._adder = ThreadPoolExecutor(1, "adder") if over_host and size > 2 else None
        self.sent = 0
        self._left = threading.Event()
        self._why = ""
        self._group: Any = None
        self._store: Any = None
        self._before: dict[int, int] | None = None  # connections of this process when forming began
        self._sockets: dict[int, int] = {}  # file descriptor -> inode, so that one used anew is left alone
        self._lock = threading.Lock()

    # -- forming

    def form(
        self,
        address: str,
        *,
        store: Callable[[], tuple[str, int] | None],
        announce: Callable[[int], None],
        seconds: float = FORM_SECONDS,
    ) -> None:
        """Meet the others. Returns when all ranks are connected with each other.

        :param address: where the others reach this rank
        :param store: where rank 0's store is, (host, port); asked until it is known
        :param announce: on rank 0: is given the store's port, to tell the others
        :raises PeerLost: abandoned, or somebody did not come in time
        """
        if self.size == 1:
            return
        deadline = time.monotonic() + seconds
        place: tuple[str, int] | None = None
        while self.rank != 0 and (place := store()) is None:
            self._check(deadline)
            self._left.wait(0.005)
        outcome: list[BaseException | None] = []
        self._before = _sockets()
        thread = threading.Thread(
            target=self._form, args=(address, place, announce, seconds, outcome), name="gloo", daemon=True
        )
        thread.start()
        while thread.is_alive():
            self._check(deadline)
            thread.join(0.05)
        if outcome:
            raise PeerLost(f"the ranks could not meet: {told(outcome[0])}") from None
        self._check()

    def _form(
        self,
        address: str,
        place: tuple[str, int] | None,
        announce: Callable[[int], None],
        seconds: float,
        outcome: list[BaseException | None],
    ) -> None:
        """On a thread of its own: a rank that never comes holds this up, and nothing else."""
        from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

        try:
            limit = timedelta(seconds=seconds)
            host, port = place or (address, 0)
            self._store = TCPStore(
                host,
                port,
                is_master=self.rank == 0,
                wait_for_workers=False,
                timeout=limit,
                use_libuv=False,  # Debian builds PyTorch without it
            )
            if self.rank == 0:
                announce(int(self._store.port))
            options = ProcessGroupGloo._Options()
            options._devices = [ProcessGroupGloo.create_device(hostname=address)]
            options._timeout = TIMEOUT
            options._threads = _THREADS
            store = PrefixStore(f"generation {self.generation}", self._store)
            self._group = ProcessGroupGloo(store, self.rank, self.size, options)
        except BaseException as problem:
            outcome.append(problem)
        finally:
            with self._lock:
                self._sockets, self._before = self._made(), None
            if self._left.is_set():
                self._cut()

    # -- additions

    def begin(self, tensor: torch.Tensor) -> Pending:
        """Start a sum over all ranks, in place. :raises PeerLost: a rank is gone"""
        if self.size == 1:
            return Done()
        self._check()
        self._count(tensor)
        if self._adder is not None:
            return _Future(self, self._start(self._adder.submit, all_reduce, self._group, tensor))
        from torch.distributed import AllreduceOptions

        options = AllreduceOptions()
        options.timeout = TIMEOUT
        return _Work(self, self._start(self._group.allreduce, [tensor], options))

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Replace a tensor by its sum over all ranks: the same bits everywhere. :raises PeerLost: a rank is gone"""
        self.begin(tensor).wait()

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Replace a tensor by that of rank ``source``. :raises PeerLost: a rank is gone"""
        if self.size == 1 or not tensor.numel():
            return
        self._check()
        from torch.distributed import BroadcastOptions

        options = BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = source, 0, TIMEOUT
        if self.rank == source:
            self._count(tensor)
        _Work(self, self._start(self._group.broadcast, [tensor], options)).wait()

    def _count(self, tensor: torch.Tensor) -> None:
        """A tensor leaves: a drive's rank sends it once, the host's to each of the others."""
        self.sent += tensor.numel() * tensor.element_size() * (1 if self.rank else self.size - 1)

    def _start(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RuntimeError as problem:
            raise self._lost(problem) from None

    def wait_future(self, future: Future[None]) -> None:
        """Until the adder is done. :raises PeerLost: it failed, or the group was abandoned"""
        while True:
            try:
                return future.result(_SLICE.total_seconds())
            except TimeoutError:
                self._check()
            except (RuntimeError, CancelledError) as problem:
                raise self._lost(problem) from None

    def wait(self, work: Any) -> None:
        """Until a work of Gloo's is done. :raises PeerLost: it failed, or the group was abandoned"""
        while True:
            try:
                work.wait(_SLICE)
                return
            except RuntimeError as problem:
                if work.is_completed() and not _was_slice(problem):
                    raise self._lost(problem) from None
            self._check()

    # -- leaving

    def abandon(self, why: str = "") -> None:
        """From any thread: whoever waits for the others gets PeerLost, now and from now on. Harmless when repeated."""
        self._why = self._why or why
        self._left.set()
        self._cut()
        if self._adder is not None:
            self._adder.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """The group is of no more use to anybody: no addition is under way on any rank."""
        self._left.set()
        if self._adder is not None:
            self._adder.shutdown(wait=False, cancel_futures=True)
        self._group = self._store = None

    def _cut(self) -> None:
        with self._lock:
            found = self._sockets or self._made()
            self._sockets = {}
        for fd, inode in found.items():
            with contextlib.suppress(OSError):
                copy = os.dup(fd)
                with socket.socket(fileno=copy) as ours:
                    if os.fstat(copy).st_ino == inode:
                        ours.shutdown(socket.SHUT_RDWR)

    def _made(self) -> dict[int, int]:
        """Connections that forming has made so far. Nothing else of this process makes any meanwhile: its loader is
        closed, and the way to the coordinator was there before."""
        if self._before is None:
            return {}
        return {fd: inode for fd, inode in _sockets().items() if self._before.get(fd) != inode}

    def _check(self, deadline: float | None = None) -> None:
        if self._left.is_set():
            raise PeerLost(self._why or "the group of ranks was left")
        if deadline is not None and time.monotonic() > deadline:
            raise PeerLost("a rank did not come to form the group in time")

    def _lost(self, problem: BaseException) -> PeerLost:
        if self._left.is_set():
            return PeerLost(self._why or "the group of ranks was left")
        return PeerLost(f"the ranks' connection broke: {told(problem)}")


class _Work:
    """An addition under way; holds Gloo's own, which holds the tensor for as long as it is written to."""

    def __init__(self, group: GlooGroup, work: Any) -> None:
        self._group, self._work = group, work

    def wait(self) -> None:
        """Return when the tensor holds the sum. :raises PeerLost: a rank is gone"""
        self._group.wait(self._work)


class _Future:
    """An addition over the host."""

    def __init__(self, group: GlooGroup, future: Future[None]) -> None:
        self._group, self._future = group, future

    def wait(self) -> None:
        """Return when the tensor holds the sum. :raises PeerLost: a rank is gone"""
        self._group.wait_future(self._future)


def told(problem: BaseException | None) -> str:
    """What Gloo says, without its own source lines and hints."""
    text = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
    return text.rpartition("] ")[2].partition(". This is typically")[0][:200] if "gloo" in text else text[:200]


def _was_slice(problem: RuntimeError) -> bool:
    """Whether our own slice of waiting ended, and not the work."""
    return "timed out" in str(problem).lower() and "Operation timed out" in str(problem)


def _sockets() -> dict[int, int]:
    """This process's TCP connections: file descriptor -> inode. Listening sockets are none: Gloo and the store end the
    process when theirs fail."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            about = os.fstat(int(name))
            if stat.S_ISSOCK(about.st_mode) and _is_connection(int(name)):
                found[int(name)] = about.st_ino
    return found


def _is_connection(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as ours:
        return (
            ours.family in (socket.AF_INET, socket.AF_INET6)
            and ours.type == socket.SOCK_STREAM
            and not ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )
