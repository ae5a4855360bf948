"""The thread that keeps the store's checkpoint fresh and watches the disk under it."""

from __future__ import annotations

import logging
import threading

from emucsd_firmware.errors import StoreError
from emucsd_firmware.ftl.store import Store

log = logging.getLogger(__name__)

GLANCE_S = 0.25
GUARD_EVERY = 8  # glances: the disk fills slower than the trim journal


class Keeper:
    """Checkpoints when the store wants one; the data plane runs on meanwhile."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._live, name="emucsd-keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; a checkpoint under way is finished first."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _live(self) -> None:
        glances = 0
        while not self._stop.wait(GLANCE_S):
            glances += 1
            try:
                if self._store.checkpoint_due():
                    self._store.checkpoint()
                elif glances % GUARD_EVERY == 0:
                    self._store.guard()
            except StoreError:
                log.exception("no checkpoint could be written; the last one stays in force")
