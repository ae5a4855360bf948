"""Stannis' reproduction, small, through the command line: everything is measured, written and shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emucsd.cli.main import main
from emucsd.reproduce.stannis import published as paper
from emucsd.reproduce.stannis.claims import real_claims
from emucsd.reproduce.stannis.settings import QUICK
from emucsd.stannis.fleet import profiles


def test_quick_run_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--quick --json` prints what the JSON file and the report hold: every claim, every network on every CSD."""
    assert main(["reproduce", "stannis", "--quick", "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "stannis.json").read_text())
    assert stored["claims"] == printed["claims"]
    assert {"environment", "claims", "parameters", "tuned", "points", "energy"} <= printed.keys()
    assert {"claim", "published", "source", "ours", "deviation", "note"} <= printed["claims"][0].keys()
    points = {(point["network"], point["csds"]) for point in printed["points"]}
    assert points == {(name, csds) for name in profiles.networks() for csds in QUICK.csds}
    speed = next(one for one in printed["claims"] if one["published"] == paper.SPEEDUP)
    assert speed["ours"] == pytest.approx(paper.SPEEDUP, rel=0.05)
    assert all(Path(path).stat().st_size for path in printed["files"])
    assert "<table" in (tmp_path / "stannis.html").read_text()


def test_six_ranks_are_one_process() -> None:
    """Six unequal ranks really train, with private samples, to the loss and accuracy of one process."""
    pytest.importorskip("torch")
    from emucsd.reproduce.stannis.real import BATCHES, run_real

    told: list[float] = []
    real = run_real(QUICK, None, 1, lambda _text, done: told.append(done))
    assert told == sorted(told)
    assert real["six"]["loss"] == pytest.approx(real["one"]["loss"], rel=0.005)
    assert real["six"]["accuracy"] == real["one"]["accuracy"]
    assert real["weights_apart"] < 1e-5
    assert tuple(rank["batch"] for rank in real["ranks"]) == BATCHES
    assert all(rank["private"] for rank in real["ranks"][1:])
    loss, accuracy = real_claims(real)
    assert loss.ours == pytest.approx(1, abs=0.005)
    assert accuracy.ours == 1
