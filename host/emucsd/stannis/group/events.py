"""What a run tells its launcher: a JSON object a line. Training never waits for whoever reads them.

Events are written by a thread of their own. While the reader is slow, steps are added up into one event; all else is
kept in order.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from typing import IO, Any

STEPS_WAITING = 64  # step events that wait for the reader, until further ones are added to the last
_LISTS = ("images", "compute", "load", "wait", "transfer", "left_out", "sent")


class Events:
    """:param file: where to"""

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file if file is not None else sys.stdout
        self._waiting: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()
        self._steps = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def tell(self, event: str, **about: Any) -> None:
        """One event; returns at once."""
        said = {"event": event, "time": round(time.time(), 6), **about}
        with self._changed:
            if not self._thread.is_alive():
                return
            if event == "step":
                self._add_step(said)
            else:
                self._waiting.append(said)
            self._changed.notify_all()

    def _add_step(self, said: dict[str, Any]) -> None:
        said["steps"] = 1
        last = self._waiting[-1] if self._waiting else {}
        if self._steps >= STEPS_WAITING and last.get("event") == "step" and last["nodes"] == said["nodes"]:
            self._waiting[-1] = merged(last, said)
            return
        self._steps += 1
        self._waiting.append(said)

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits, if the reader takes it in this time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                said = self._waiting.popleft()
                self._steps -= said["event"] == "step"
            try:
                self._file.write(json.dumps(said, separators=(",", ":")) + "\n")
                self._file.flush()
            except (OSError, ValueError):
                return  # nobody reads: the run is ended by the end of standard input, or goes on unseen


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two step events as one: the later one's figures; images, times and the number of steps are sums."""
    sums = {name: [a + b for a, b in zip(first[name], second[name], strict=True)] for name in _LISTS}
    both = {"steps": first["steps"] + second["steps"], "total": first["total"] + second["total"]}
    return {**second, **sums, **both}
