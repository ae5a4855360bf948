"""Stannis' claims out of points: the right figures, notes that follow from them, a report that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emucsd.reproduce import drawing
from emucsd.reproduce.stannis import published as paper
from emucsd.reproduce.stannis.claims import all_claims, real_claims
from emucsd.reproduce.stannis.plots import PLOTS, draw_all
from emucsd.reproduce.stannis.points import energies, flash_seconds, knee, measure, tune_networks
from emucsd.reproduce.stannis.real_data import PRIVATE_SHARE, generated, prepare
from emucsd.reproduce.stannis.scale import imbalance
from emucsd.reproduce.stannis.sensitivity import sensitivity
from emucsd.reproduce.stannis.settings import FULL, QUICK, REASONS, Settings
from emucsd.stannis.data import source
from emucsd.stannis.fleet import profiles
from emucsd.stannis.fleet.training import Flash

STEPS = {"seconds": 1.0, "loss": 1.19, "accuracy": 0.31}
REAL: dict[str, Any] = {
    "about": "really <trained>",
    "train_images": 10,
    "test_images": 5,
    "epochs": 1,
    "ranks": [
        {"node": f"process{n}", "batch": 8 - n, "private": n, "public": 4, "private_share": n / (n + 4)}
        for n in range(6)
    ],
    "one": {"what": "one", **STEPS, "curve": [2.0, 1.5]},
    "six": {"what": "six", **STEPS, "loss": 1.1907, "curve": [2.0, 1.5]},
    "spread": {
        "losses": [1.2],
        "accuracies": [0.3],
        "curves": [[2.1, 1.6]],
        "apart": 0.02,
        "runs": [{"what": "another", **STEPS}],
    },
    "weights_apart": 1e-7,
}


def test_published_figures_come_out() -> None:
    """Table I, Table II, 2.7x and where it bends: each within 15 %, with other jitters than the report's too."""
    tuned = {name: one for name, (one, _) in tune_networks().items()}
    points, trained = measure(tuned, replace(FULL, steps=3), 2, Flash(), lambda _text, _done: None)
    claims = all_claims(tuned, points, energies(trained, list(paper.ENERGY))[1])
    assert {claim.claim: claim.deviation for claim in claims if not claim.near} == {}
    assert len(claims) >= 30
    speed = next(claim for claim in claims if claim.published == paper.SPEEDUP)
    assert speed.ours == pytest.approx(paper.SPEEDUP, rel=0.01)  # what the one fitted rate was solved for


def test_only_one_figure_hangs_on_what_was_fitted() -> None:
    """With the tunnels at another rate the speed-up is another, and the power model still meets both of its ends."""
    tuned = {name: one for name, (one, _) in tune_networks().items()}
    few = replace(QUICK, csds=(0, 4, 24), steps=1)
    points, trained = measure(tuned, few, 1, Flash(), lambda _text, _done: None)
    power, rows = energies(trained, [0, 4, 24])
    assert [rows[0].joules_per_image, rows[-1].joules_per_image] == pytest.approx([13.10, 4.02])
    assert rows[-1].flops_ratio == pytest.approx(12.26 / 5.87)
    assert power.watts(0) == pytest.approx(13.10 * trained[0].rate)
    assert {point.network for point in points} == set(profiles.networks())


def test_tuning_ends_within_the_margin() -> None:
    """The host's step is at most 1.25 of Newport's, and not below it; memory takes both batches."""
    for tuned, tuning in tune_networks().values():
        assert 1 < tuned.seconds[1] / tuned.seconds[0] <= 1.25
        assert tuned.newport <= tuned.fits[0]
        assert tuned.host <= tuned.fits[1]
        assert tuned.trials == len(tuning.trials)


def test_knee() -> None:
    """The bend of two straight lines is where they meet."""
    assert knee({x: min(x, 5 + 0.1 * (x - 5)) for x in range(1, 20)}) == 5


def test_reading_samples_is_small() -> None:
    """By the emulated drive's profile a sample takes some 0.1 ms, and longer through PCIe."""
    flash = flash_seconds()
    assert 50e-6 < flash.newport < flash.host < 300e-6


def test_drawn_again(tmp_path: Path) -> None:
    """The same result draws the same bytes, and nothing that it has no figures for."""
    pytest.importorskip("matplotlib")
    wanted = {"real": PLOTS["real"]}
    once, twice = (drawing.draw_all(tmp_path, {"real": REAL}, wanted)["real"][1].read_bytes() for _ in range(2))
    assert once == twice
    assert draw_all(tmp_path, {}) == {}


def test_claims_on_the_real_run() -> None:
    """Losses and accuracies of six ranks over one; the note has the chance between two runs."""
    loss, accuracy = real_claims(REAL)
    assert loss.published == pytest.approx(1.0040, abs=1e-4)
    assert loss.ours == pytest.approx(1.1907 / 1.19)
    assert "2.0%" in loss.note
    assert accuracy.ours == 1


def test_same_seed_same_figures() -> None:
    """Another run gives the same figures, digit for digit; another seed others."""
    tuned = {name: one for name, (one, _) in tune_networks().items()}
    few = replace(QUICK, csds=(0, 5, 24), steps=2)
    first, again, other = (measure(tuned, few, seed, Flash(), lambda _text, _done: None)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sensitivity(tuned, 1, 1) == sensitivity(tuned, 1, 1)


def test_unequal_private_data() -> None:
    """The paper's images, whoever has most of the private ones; an even epoch costs least."""
    tuned = {name: one for name, (one, _) in tune_networks().items()}["mobilenet_v2"]
    even, skewed = (imbalance(tuned, skew, QUICK, 1) for skew in (1.0, 12.0))
    assert even["strategy"] == "public"
    assert even["steps"] == -(-(paper.PUBLIC + paper.PRIVATE) // (315 + 24 * 25))
    assert skewed["fullest"] == 6000
    assert skewed["steps"] == 6000 // 25
    assert skewed["epoch_seconds"] > 2 * even["epoch_seconds"]


def test_settings_have_reasons() -> None:
    """Every reason is of a setting, and both sets have the figures that the paper's tables need."""
    assert set(REASONS) <= set(Settings.__dataclass_fields__)
    for settings in (FULL, QUICK):
        assert set(paper.ENERGY) <= set(settings.csds)
        assert settings.servers[0] == 1


def test_samples_of_the_real_run(tmp_path: Path) -> None:
    """Every image is in one pool, a fifth of them in private ones; generated ones come again from the same seed."""
    few = replace(QUICK, images=(200, 50))
    files = prepare(tmp_path, None, few, seed=3)
    pools = [source.open(str(path)) for path in (files.public, *files.private, files.test)]
    assert [pool.count for pool in pools] == [*files.counts, files.tests]
    assert sum(files.counts) == 200
    assert sum(files.counts[1:]) == round(PRIVATE_SHARE * 200)
    assert {len(pool.classes) for pool in (pools[0], pools[-1])} == {10}
    first, again = generated(20, 3), generated(20, 3)
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    for pool in pools:
        pool.close()
