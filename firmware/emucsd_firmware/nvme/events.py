"""Asynchronous events (Base 5.1.2): requests that wait, events that wait, types that are masked until read about."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from emucsd_firmware.nvme.request import Refused
from emucsd_wire.identify import Oaes
from emucsd_wire.logs import CriticalWarning, Event, EventType, LogId
from emucsd_wire.nvme import Status

LIMIT = 4  # outstanding requests; Identify Controller AERL is this minus 1
CONFIGURABLE = int(Oaes.NAMESPACE_ATTRIBUTE) | 0xFF  # bits of feature 0Bh that mean something here

_LOG = {EventType.ERROR: LogId.ERROR, EventType.SMART: LogId.SMART, EventType.IO_COMMAND_SET: LogId.SANITIZE}
_WARNING = {
    Event.SPARE: CriticalWarning.SPARE,
    Event.TEMPERATURE: CriticalWarning.TEMPERATURE,
    Event.RELIABILITY: CriticalWarning.RELIABILITY,
}


def event_type(event: Event) -> EventType:
    return EventType(event >> 8)


def log_of(event: Event) -> LogId:
    """The log page whose reading clears an event."""
    return LogId.CHANGED_NAMESPACES if event == Event.NAMESPACE_ATTRIBUTE else _LOG[event_type(event)]


def enabled(event: Event, config: int) -> bool:
    """Whether Asynchronous Event Configuration lets an event out; errors and I/O command set events always go."""
    if event in _WARNING:
        return bool(config & _WARNING[event])
    return event != Event.NAMESPACE_ATTRIBUTE or bool(config & Oaes.NAMESPACE_ATTRIBUTE)


class Delivery(NamedTuple):
    """A completion of an Asynchronous Event Request."""

    cid: int
    dw0: int


class Events:
    """One controller's asynchronous events."""

    def __init__(self) -> None:
        self._requests: deque[int] = deque()
        self._pending: deque[Event] = deque()
        self._masked: set[EventType] = set()

    def request(self, cid: int) -> None:
        """Keep a request until something happens. :raises Refused: too many wait already"""
        if len(self._requests) == LIMIT:
            raise Refused(Status.AER_LIMIT)
        self._requests.append(cid)

    def waits(self, cid: int) -> bool:
        return cid in self._requests

    def abort(self, cid: int) -> bool:
        """Forget a request. :returns: whether it was one"""
        if cid not in self._requests:
            return False
        self._requests.remove(cid)
        return True

    def report(self, event: Event, config: int) -> None:
        """Something happened. What is disabled, masked or queued already is dropped: its log page tells all of it.

        :param config: the current Asynchronous Event Configuration
        """
        if enabled(event, config) and event not in self._pending and event_type(event) not in self._masked:
            self._pending.append(event)

    def clear(self, log: LogId) -> None:
        """The host has read a log page without Retain Asynchronous Event: its events may come again."""
        self._pending = deque(event for event in self._pending if log_of(event) != log)
        self._masked = {kind for kind in self._masked if not self._clears(kind, log)}

    def deliver(self) -> list[Delivery]:
        """Pair waiting requests with pending events."""
        out = []
        for event in list(self._pending):
            kind = event_type(event)
            if not self._requests:
                break
            if kind in self._masked:
                continue
            self._pending.remove(event)
            self._masked.add(kind)
            out.append(Delivery(self._requests.popleft(), kind | (event & 0xFF) << 8 | log_of(event) << 16))
        return out

    def reset(self) -> None:
        """Controller reset: requests end without completions, events are forgotten."""
        self._requests.clear()
        self._pending.clear()
        self._masked.clear()

    @staticmethod
    def _clears(kind: EventType, log: LogId) -> bool:
        return log == (LogId.CHANGED_NAMESPACES if kind == EventType.NOTICE else _LOG[kind])
