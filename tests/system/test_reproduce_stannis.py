"""Stannis' reproduction, small, through the command line: all is measured, really trained, written and shown."""

from __future__ import annotations

import contextlib
import html
import io
import json
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from emucsd.cli.main import main
from emucsd.cli.reproduce import show_stannis
from emucsd.reproduce.stannis import published as paper
from emucsd.reproduce.stannis.plots import PLOTS
from emucsd.reproduce.stannis.settings import QUICK
from emucsd.stannis.fleet import profiles

TRAINS = find_spec("torch") is not None


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stannis")


@pytest.fixture(scope="module")
def result(out: Path) -> dict[str, Any]:
    """What one run of everything prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["reproduce", "stannis", "--quick", "--scale", "--real", "--json", "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(printed.getvalue())
    return found


def test_everything_was_measured(result: dict[str, Any]) -> None:
    """Every network on every number of CSDs has its point; every claim its figure, its source and its note."""
    assert {"environment", "claims", "parameters", "tuned", "points", "energy", "scale"} <= result.keys()
    points = {(point["network"], point["csds"]) for point in result["points"]}
    assert points == {(name, csds) for name in profiles.networks() for csds in QUICK.csds}
    for claim in result["claims"]:
        assert {"claim", "published", "source", "ours", "deviation", "note"} <= claim.keys()
        assert claim["ours"] == pytest.approx(claim["published"] * (1 + claim["deviation"]), rel=1e-3)
        assert claim["note"].startswith(("Predicted", "Fitted", "Input", "Real", "No check"))
    speed = next(one for one in result["claims"] if one["published"] == paper.SPEEDUP)
    assert speed["ours"] == pytest.approx(paper.SPEEDUP, rel=0.05)


def test_speed_and_energy_make_sense(result: dict[str, Any]) -> None:
    """More CSDs are faster and take less energy an image; the all-reduce takes longer, and each CSD loses more."""
    for name in profiles.networks():
        points = [point for point in result["points"] if point["network"] == name and point["csds"] >= 1]
        for key in ("rate", "reduce_seconds", "slowdown"):
            values = [point[key] for point in points if key != "rate" or point["csds"] >= 4]
            assert all(after > 0.95 * before for before, after in pairwise(values)), (name, key)
            assert values[-1] > values[0]
        alone = [point["reduce_seconds"] for point in points]
        assert alone == sorted(alone)
    joules = [row["joules_per_image"] for row in result["energy"]["rows"]]
    assert joules == sorted(joules, reverse=True)
    rows = {row["what"]: row["speedups"]["mobilenet_v2"] for row in result["sensitivity"]}
    assert rows["engines' ends of the tunnel half as fast"] < rows["nothing"]
    assert rows["nothing"] < rows["engines' ends of the tunnel twice as fast"]


def test_scale_makes_sense(result: dict[str, Any]) -> None:
    """Large fleets lose a part of their rate, unequal private data costs time, and following slow engines gains."""
    scale = result["scale"]
    hosts = {(row["network"], row["algorithm"], row["servers"]): row["efficiency"] for row in scale["hosts"]}
    for (network, algorithm, servers), efficiency in hosts.items():
        assert 0 < efficiency <= hosts[network, algorithm, 1] * 1.001 <= 1.001, servers
    for network in ("mobilenet_v2", "inception_v3"):
        last = max(QUICK.servers)
        assert hosts[network, "hierarchical", last] > hosts[network, "ring", last] > hosts[network, "tree", last]
    assert [row["bound_by"] for row in scale["one_host"] if row["algorithm"] == "ring"] == ["drives", "hosts"]
    assert scale["imbalance"][0]["epoch_over_even"] == 1
    assert scale["imbalance"][-1]["epoch_over_even"] > 1.2
    for row in scale["retuning"]:
        assert row["gain"] > 1.1
        assert row["energy_gain"] > 1
        assert row["changes"] >= 1
        assert row["global_batch"] == scale["retuning"][0]["global_batch"]


@pytest.mark.skipif(not TRAINS, reason="training for real needs PyTorch")
def test_six_ranks_are_one_process(result: dict[str, Any]) -> None:
    """Six unequal ranks really train, with private samples, to the loss and accuracy of one process."""
    real = result["real"]
    assert real["six"]["loss"] == pytest.approx(real["one"]["loss"], rel=0.005)
    assert real["six"]["accuracy"] == real["one"]["accuracy"]
    assert real["six"]["curve"] == pytest.approx(real["one"]["curve"], rel=1e-4)
    assert real["weights_apart"] < 1e-5
    assert [rank["batch"] for rank in real["ranks"]] == [72, 16, 12, 12, 8, 8]
    assert all(rank["private"] for rank in real["ranks"][1:])
    assert real["spread"]["losses"][0] != real["one"]["loss"]


def test_files_hold_what_was_printed(result: dict[str, Any], out: Path) -> None:
    """The JSON file is what is printed; the page has every claim, parameter and plot; the command shows the claims."""
    stored = json.loads((out / "stannis.json").read_text())
    assert stored["claims"] == result["claims"]
    assert all(Path(path).stat().st_size for path in result["files"])
    page = (out / "stannis.html").read_text()
    for claim in result["claims"]:
        assert html.escape(claim["claim"]) in page
    for parameter in result["parameters"]:
        assert f"<td>{parameter['name']}</td>" in page
    drawn = {Path(path).stem for path in result["files"] if path.endswith(".svg")}
    if find_spec("matplotlib"):
        assert drawn == set(PLOTS) - (set() if TRAINS else {"real"})
    assert page.count("<svg") == len(drawn)
    console = Console(record=True, width=250)
    show_stannis(result, console)
    text = console.export_text()
    for claim in result["claims"]:
        assert claim["claim"] in text
    assert "stannis.html" in text
