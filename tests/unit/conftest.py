"""A subsystem of two ports with a host at each, for the control plane's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.nvme_host import Bench, Host


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
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
