"""The data plane's thread, and how the control thread gets it out of compiled code."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from emucsd_firmware import dataplane
from emucsd_firmware.errors import PlaneError

log = logging.getLogger(__name__)

_RUN, _PARK, _STOP = 0, 1, 2
_PR_SET_TIMERSLACK = 29
_SLACK_NS = 1000
_libc = ctypes.CDLL(None)


class Plane:
    """Runs ``dataplane.run`` in a thread. Shared state may be changed only inside ``paused()``.

    Without ``start`` there is no thread: ``step`` runs rounds in the caller, and ``paused()`` costs nothing.

    :param address: of the drive's state
    :param word: one int64 that compiled code watches
    :param kick_fd: eventfd that ends a sleep of the data plane
    :param sync: brings what was written to the disk (durability "machine")
    """

    def __init__(self, address: int, word: np.ndarray[tuple[int], np.dtype[np.int64]], kick_fd: int) -> None:
        self._address = address
        self._word = word
        self._kick_fd = kick_fd
        self.sync: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        self._depth = 0
        # two semaphores in strict turns: an Event could be cleared again before the other side had looked at it
        self._parked = threading.Semaphore(0)
        self._resume = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None

    @property
    def running(self) -> bool:
        """Whether a thread runs the data plane."""
        return self._thread is not None

    def kick(self) -> None:
        """Wake the data plane if it sleeps."""
        os.eventfd_write(self._kick_fd, 1)

    def start(self) -> None:
        """Start the thread. Compiled code must have been made ready (``warm``), else the first round compiles it."""
        if self._thread is not None:
            raise PlaneError("the data plane is running already; stop it first")
        self._thread = threading.Thread(target=self._live, name="emucsd-dataplane", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; commands that were fetched and have not completed are dropped."""
        if self._thread is None:
            return
        with self._lock:
            self._word[0] = _STOP
            self.kick()
            self._thread.join()
            self._thread = None
            self._word[0] = _RUN

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hold the data plane out of compiled code; may be nested. Takes some 20 us when it is busy or asleep.

        :raises PlaneError: the data plane has died of an error of its own
        """
        if self._thread is None:
            yield
            return
        with self._lock:
            if self._depth == 0:
                self._park()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._word[0] = _RUN
                    self._resume.release()

    def step(self, rounds: int = 1) -> int:
        """Run rounds in this thread. :returns: how much was done. :raises PlaneError: the thread is running"""
        if self._thread is not None:
            raise PlaneError("step() is for a data plane without a thread; stop() it first")
        work = dataplane.step(self._address, rounds)
        if dataplane.wants_sync(self._address):
            self._sync()
        return work

    def _park(self) -> None:
        self._word[0] = _PARK
        self.kick()
        while not self._parked.acquire(timeout=1.0):
            if self.failure is not None:
                raise PlaneError(f"the data plane has ended: {self.failure!r}") from self.failure

    def _sync(self) -> None:
        self.sync()
        dataplane.finish_sync(self._address)

    def _live(self) -> None:
        _libc.prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0)  # of this thread; by default naps last 50 us longer
        try:
            while True:
                reason = dataplane.run(self._address)
                if reason == dataplane.SYNC:
                    self._sync()
                    continue
                if self._word[0] == _STOP:
                    return
                self._parked.release()
                self._resume.acquire()
        except BaseException as error:
            self.failure = error
            log.exception("the data plane has ended")
