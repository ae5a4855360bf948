"""What the tuner found before: one file for all runs of a user, by model and engines."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from emucsd.stannis.errors import PlanError
from emucsd.stannis.plan.tuning import Tuning
from emucsd_wire import paths

log = logging.getLogger(__name__)

VERSION = 1
ENTRIES = 256  # the newest are kept


def tuning_key(model_hash: str, fingerprints: Mapping[str, str], **settings: Any) -> str:
    """What a tuning is kept by.

    :param model_hash: of all that decides the work of a step (``Spec.model_hash``, the factory's source)
    :param fingerprints: kind -> what decides its speed: machine, cores, memory limit, releases of Python and torch
    :param settings: the tuner's own: batches, margin, c …
    """
    said = json.dumps([model_hash, dict(fingerprints), settings], sort_keys=True, default=list)
    return hashlib.sha256(said.encode()).hexdigest()


class TuningCache:
    """The file. Processes may use it at the same time; a damaged one is as good as none."""

    def __init__(self, path: Path | None = None) -> None:
        """:param path: None: ``tuning.json`` in the user's cache folder"""
        self.path = path or paths.cache_root() / "stannis" / "tuning.json"

    def tuned(self, key: str, measure: Callable[[], Tuning], *, fresh: bool = False) -> tuple[Tuning, bool]:
        """The tuning of a key, measured if there is none.

        :param fresh: measure in any case, and keep that
        :returns: it, and whether it comes from the file
        """
        found = None if fresh else self.get(key)
        if found is not None:
            return found, True
        found = measure()
        try:
            self.put(key, found)
        except OSError as problem:
            log.warning("%s: not kept for the next run: %s", self.path, problem)
        return found, False

    def get(self, key: str) -> Tuning | None:
        """What was kept."""
        text = self._entries().get(key)
        if text is None:
            return None
        try:
            return Tuning.from_json(json.dumps(text))
        except PlanError as problem:
            log.warning("%s: an entry is not used: %s", self.path, problem)
            return None

    def put(self, key: str, tuning: Tuning) -> None:
        """Keep it, in place of one of the same key. :raises OSError: it can't be written"""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            entries = self._entries()
            entries.pop(key, None)
            entries[key] = json.loads(tuning.to_json())
            self._write({"version": VERSION, "tunings": dict(list(entries.items())[-ENTRIES:])})

    def _entries(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as problem:
            log.warning("%s is not used: %s", self.path, problem)
            return {}
        tunings = found.get("tunings") if isinstance(found, dict) and found.get("version") == VERSION else None
        if not isinstance(tunings, dict):
            log.warning("%s is not used: of another version, or no tunings at all", self.path)
            return {}
        return tunings

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: what another one adds meanwhile is not lost."""
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, content: Any) -> None:
        """In one step: a reader sees the old file or the new one."""
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, prefix=".tuning-", delete=False) as file:
            try:
                json.dump(content, file)
                file.close()
                os.replace(file.name, self.path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
