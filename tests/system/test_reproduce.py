"""The whole reproduction, small, through the command line: same figures again, and everything in its place."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from emucsd.cli.main import main
from emucsd.reproduce.rm_ssd.settings import BASELINES, LOCALITY, MODELS, QUICK
from emucsd.reproduce.rm_ssd.stand import measure, stand


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("rm-ssd")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["reproduce", "rm-ssd", "--quick", "--json", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def test_on_the_command_line(result: dict[str, Any]) -> None:
    """`--json` prints what the JSON file and the report hold; every file that it names is there."""
    files = {Path(path).name: Path(path) for path in result["files"]}
    assert json.loads(files["rm-ssd.json"].read_text())["claims"] == result["claims"]
    assert all(path.stat().st_size for path in files.values())
    assert "<table" in files["rm-ssd.html"].read_text()


def test_the_same_again(result: dict[str, Any]) -> None:
    """A model served again, every way, in a new drive with the same seed: the same figures, digit for digit."""
    name, samples = MODELS[0], sum(size * count for size, count in QUICK.batches.items())
    with stand(QUICK.table_bytes, len(MODELS), result["seed"]) as bench:
        model = bench.model(name)
        trace = bench.trace(model, samples, LOCALITY)
        points = [asdict(point) for kind in BASELINES for point in measure(bench, kind, model, trace, QUICK.batches)]
    assert json.loads(json.dumps(points)) == [point for point in result["points"] if point["model"] == name]


def test_everything_was_measured(result: dict[str, Any]) -> None:
    """Every model, way and batch size has its point; every sweep its line; every claim its figure and its reason."""
    points = {(p["model"], p["baseline"], p["batch"]) for p in result["points"]}
    assert points == {(model, kind.name, size) for model in MODELS for kind in BASELINES for size in QUICK.batches}
    for name, sweep in result["sweeps"].items():
        others = {"scale": {"EMB-VectorSum"}, "processor": {"RecSSD"}}.get(name, {"EMB-VectorSum", "SSD-S"})
        ways = {"RM-SSD"} | others
        assert {p["baseline"] for p in sweep["points"]} >= ways
    for claim in result["claims"]:
        assert claim["ours"] == pytest.approx(claim["published"] * (1 + claim["deviation"]), abs=1e-2)
        assert claim["note"]
    assert {"claim", "published", "source", "ours", "deviation", "note"} <= result["claims"][0].keys()


def test_figures_make_sense(result: dict[str, Any]) -> None:
    """What must hold whatever the parameters are: order of the ways, linearity, a page cache that gains by locality."""
    rates = {(p["model"], p["baseline"], p["batch"]): p["rate"] for p in result["points"]}
    most = max(QUICK.batches)
    for model in MODELS:
        assert rates[model, "RM-SSD", most] > rates[model, "SSD-S", most]
        assert rates[model, "DRAM", most] > rates[model, "SSD-M", most]
        assert rates[model, "SSD-M", most] > rates[model, "SSD-S", most]
        assert rates[model, "EMB-VectorSum", most] > rates[model, "EMB-PageSum", most]
        assert rates[model, "RM-SSD", most] >= rates[model, "RM-SSD-Naive", most]
    linear = next(claim for claim in result["claims"] if claim["unit"] == "R2")
    assert linear["ours"] > 0.99
    found = [p["rate"] for p in result["sweeps"]["locality"]["points"] if p["baseline"] == "SSD-S"]
    assert found == sorted(found, reverse=True)
    dies = [p["rate"] for p in result["sweeps"]["dies"]["points"] if p["baseline"] == "RM-SSD"]
    assert dies == sorted(dies)
