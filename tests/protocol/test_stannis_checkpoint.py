"""Checkpoints on a raw namespace of a real drive, which is killed while it is written to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from emucsd import Drive
from emucsd.isp.diskserver import DiskServer
from emucsd.stannis.errors import CheckpointError, CheckpointMissing
from emucsd.stannis.training import checkpoint

FLOATS = 40_000


def state(step: int) -> dict[str, Any]:
    """Says in each element which one it is."""
    return {"at": {"step": step}, "weight": torch.full((FLOATS,), float(step))}


@contextmanager
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Drive, checkpoint.Store]]:
    """The drive of that store, and its first namespace as a place for checkpoints."""
    with Drive.start("null", size="4MiB", store=home / "store") as drive, DiskServer(drive, home / "disk") as server:
        monkeypatch.setenv("EMUCSD_DISK", server.uri())
        place = checkpoint.keeper("ns:1")
        yield drive, place
        place.close()


def save_until_killed(drive: Drive, place: checkpoint.Store, last: int) -> int:
    """Save again and again; after the third time the drive is killed, from the side. :return: the last acknowledged"""
    assert drive.process is not None
    killer = threading.Timer(0.004, drive.process.kill)
    begin = last
    try:
        while last < begin + 10_000:
            assert place.save(state(last + 1)).where.startswith("ns:1, slot")
            last += 1
            if last == begin + 3:
                killer.start()
    except CheckpointError:
        pass  # the drive is gone
    killer.join()
    assert begin + 3 <= last < begin + 10_000
    return last


def test_drive_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of the drive amid saving: started again, it has the last state that was acknowledged or the one after it,
    and takes the next."""
    with served(tmp_path, monkeypatch) as (drive, place):
        with pytest.raises(CheckpointMissing):
            place.load()
        kept = save_until_killed(drive, place, 0)
    with served(tmp_path, monkeypatch) as (drive, place):
        found = place.load().state
        step = int(found["at"]["step"])
        assert kept <= step <= kept + 1
        assert torch.equal(found["weight"], state(step)["weight"])
        place.save(state(step + 1))
        assert place.load().state["at"] == {"step": step + 1}
