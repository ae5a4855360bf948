"""The whole reproduction, small, through the command line: same figures again, and everything in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emucsd.cli.main import main
from emucsd.reproduce.rm_ssd.run import run_reproduce
from emucsd.reproduce.rm_ssd.settings import BASELINES, MODELS, QUICK

MEASURED = {"environment", "seconds", "files"}  # the only parts that differ from run to run


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    told: list[float] = []
    found = run_reproduce(quick=True, tell=lambda _, done: told.append(done))
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] <= 1
    return found


def test_same_again_and_on_the_command_line(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another run gives the same figures, digit for digit; `--json` prints what the JSON file and the report hold."""
    assert main(["reproduce", "rm-ssd", "--quick", "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    again = json.loads(json.dumps(result))
    assert {k: v for k, v in printed.items() if k not in MEASURED} == {
        k: v for k, v in again.items() if k not in MEASURED
    }
    assert json.loads((tmp_path / "rm-ssd.json").read_text())["claims"] == printed["claims"]
    assert all(Path(path).stat().st_size for path in printed["files"])
    assert "<table" in (tmp_path / "rm-ssd.html").read_text()


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
