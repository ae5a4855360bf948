"""A subsystem of two ports with a host at each, for the control plane's tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.nvme_host import Bench, Host


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For a store: in memory where there is such a place, since every change of nvram.json waits for the disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="emucsd-test-") as name:
        yield Path(name)


@pytest.fixture
def bench(folder: Path) -> Iterator[Bench]:
    bench = Bench(folder)
    yield bench
    bench.close()


@pytest.fixture
def host(bench: Bench) -> Host:
    """Port 0's, with its controller enabled."""
    return bench.hosts[0].enable()


@pytest.fixture
def engine(bench: Bench) -> Host:
    """Port 1's: the drive's own engine."""
    return bench.hosts[1].enable()
