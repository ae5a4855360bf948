"""`bench io` in small, as a series in artefacts/: asserts nothing about speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emucsd.bench.io import KEYS, run_io_bench

pytestmark = pytest.mark.perf
SERIES = Path(__file__).resolve().parents[2] / "artefacts" / "bench-io.jsonl"


def test_bench_io() -> None:
    """Every figure is measured, and added to the series with its environment."""
    found = run_io_bench(seconds=1.0)
    assert tuple(found) == KEYS
    SERIES.parent.mkdir(exist_ok=True)
    with open(SERIES, "a") as series:
        series.write(json.dumps(found) + "\n")
    print(json.dumps(found, indent=2))
