"""The tuner: Algorithm 1 as published, memory caps, and a cache that never stands in the way."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd.stannis.errors import DoesNotFit, MemoryExceeded, PlanError
from emucsd.stannis.plan.cache import TuningCache, tuning_key
from emucsd.stannis.plan.measured import Bench, Measured
from emucsd.stannis.plan.tuner import BATCH_MOST, tune, tune_all, tune_fixed
from emucsd.stannis.plan.tuning import Tuning

UNLIMITED = 1 << 40


def engine(rate: float, overhead: float = 0.0, most: int = UNLIMITED) -> Bench:
    """An engine that takes ``overhead`` seconds for a step and computes ``rate`` images/s, with memory for ``most``."""

    def bench(batch: int) -> Measured:
        if batch > most:
            raise MemoryExceeded(f"{batch} images of 1,000 bytes", batch, 1000 * batch, 1000 * most)
        return Measured(batch, overhead + batch / rate, 1000 * batch)

    return bench


def batches_of(tuning: Tuning, kind: str) -> list[int]:
    """What was measured, in order."""
    return [trial.batch for trial in tuning.trials if trial.engine == kind]


# -- Algorithm 1


@pytest.mark.parametrize(
    ("network", "newport", "host"),
    [
        ("MobileNetV2", (25, 3.08), (315, 31.05)),
        ("NASNet", (15, 2.80), (325, 47.31)),
        ("InceptionV3", (16, 1.85), (370, 30.80)),
        ("SqueezeNet", (50, 16.3), (850, 219.0)),
    ],
)
def test_table_1(network: str, newport: tuple[int, float], host: tuple[int, float]) -> None:
    """From the rates of Table I come its batches: E = 4 and a search from above explain the host's to 15 %."""
    found = tune(engine(newport[1]), engine(host[1]), batches=[newport[0]])
    assert found.tuned["newport"].batch == newport[0]
    assert found.tuned["host"].batch == pytest.approx(host[0], rel=0.15), network
    assert 1.2 <= found.tuned["host"].seconds / found.tuned["newport"].seconds <= 1.25


def test_the_rule() -> None:
    """Each batch follows from the one before by BS += BS * (time_newport - time_host) / C, to the whole number."""
    found = tune(engine(3.08), engine(31.05, overhead=0.5), batches=[25], c=60.0, start=700)
    times = {trial.batch: trial.seconds for trial in found.trials if trial.engine == "host"}
    batches = batches_of(found, "host")
    assert batches[0] == 700
    assert len(batches) > 5
    for batch, after in pairwise(batches):
        assert after == round(batch + batch * (25 / 3.08 - (times[batch] or 0)) / 60.0)
    target = 25 / 3.08
    assert all(abs(target - (times[batch] or 0)) > target / 4 for batch in batches[:-1])
    assert abs(target - (times[batches[-1]] or 0)) <= target / 4


def test_smallest_batch_of_a_flat_curve() -> None:
    """Newport's rate is flat above 16: the smallest batch within the tolerance of the best rate is taken."""
    rates = {4: 2.0, 8: 2.6, 16: 3.0, 25: 3.08, 50: 3.1, 100: 3.05}
    found = tune(lambda batch: Measured(batch, batch / rates[batch]), engine(30), batches=list(rates))
    assert found.tuned["newport"].batch == 16
    assert batches_of(found, "newport") == list(rates)
    exact = tune(lambda batch: Measured(batch, batch / rates[batch]), engine(30), batches=list(rates), tolerance=0)
    assert exact.tuned["newport"].batch == 50
    several = tune_all({"csd": lambda batch: Measured(batch, batch / rates[batch])}, batches=list(rates))
    assert batches_of(several, "csd") == [4, 8, 16, 25, 50]  # two sizes without gain, and it is not followed further


@settings(max_examples=100)
@given(
    st.floats(0.1, 1000),
    st.floats(0.1, 1000),
    st.floats(0, 2),
    st.floats(1.5, 30),
    st.integers(1, 500),
    st.none() | st.floats(0.01, 1000),
)
def test_it_ends_within_the_margin(
    newport: float, host: float, overhead: float, margin: float, most: int, c: float | None
) -> None:
    """Whatever the engines, E and C: it ends in the margin, at the memory's limit, or at the nearest whole number."""
    found = tune(engine(newport), engine(host, overhead, most), batches=[8, 16], margin=margin, c=c)
    target, chosen = found.tuned["newport"].seconds, found.tuned["host"]
    measured = batches_of(found, "host")
    assert len(set(measured)) == len(measured) < 60
    if abs(chosen.seconds - target) > target / margin:
        low = max((batch for batch in measured if overhead + batch / host < target), default=0)
        high = min(
            (batch for batch in measured if batch > most or overhead + batch / host > target), default=BATCH_MOST
        )
        assert high - low <= 1 or (chosen.memory_limit_batch and high - low <= most / 16)


@settings(max_examples=100)
@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=20), st.floats(0.2, 50))
def test_it_ends_though_times_scatter(times: list[float], c: float) -> None:
    """Benchmarks that say anything at all don't keep it running: no batch is tried twice, bounds only close in."""
    count = iter(range(BATCH_MOST * 2))
    found = tune(engine(10), lambda batch: Measured(batch, times[next(count) % len(times)]), batches=[16], c=c)
    measured = batches_of(found, "host")
    assert len(set(measured)) == len(measured) < 60


def test_bad_settings() -> None:
    """A margin, C or list that makes no sense is refused before anything is measured."""
    wrong: tuple[dict[str, Any], ...] = ({"margin": 0.0}, {"c": -1.0}, {"batches": []}, {"batches": [0, 4]})
    for one in wrong:
        with pytest.raises(PlanError):
            tune(engine(1), engine(10), **one)
    with pytest.raises(PlanError, match="no engine"):
        tune_all({})


# -- memory


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 60))
def test_memory_caps(host: int, newport: int) -> None:
    """No batch is chosen that didn't fit; the cap is found to 1/16 and the failed trials are in the trace."""
    found = tune(engine(3, most=newport), engine(300, most=host), batches=[4, 8, 16, 32])
    for kind, most in (("newport", newport), ("host", host)):
        chosen = found.tuned[kind]
        failed = [trial.batch for trial in found.trials if trial.engine == kind and trial.seconds is None]
        assert chosen.batch <= most
        assert all(batch > most for batch in failed)
        assert (chosen.memory_limit_batch is not None) == bool(failed)
        assert chosen.memory_limit_batch is None or chosen.batch <= chosen.memory_limit_batch <= most
    wanted = found.tuned["newport"].seconds * 300 * 0.75
    if wanted > host * 1.1:
        assert found.tuned["host"].batch >= host * 15 / 16 - 1


def test_does_not_fit() -> None:
    """A model too large for an engine is told with the engine, the batch and how much is missing."""
    with pytest.raises(DoesNotFit, match=r"host: the model with a batch of 1 .* 1,000 bytes are missing") as raised:
        tune(engine(3), engine(300, most=0), batches=[8])
    assert (raised.value.node, raised.value.missing) == ("host", 1000)
    with pytest.raises(DoesNotFit, match="host: the model with a batch of 1 "):
        tune(engine(3), engine(300, most=0), batches=[8], start=100)
    with pytest.raises(DoesNotFit, match="newport"):
        tune(engine(3, most=0), engine(300))
    with pytest.raises(DoesNotFit, match="fits none"):
        tune_all({"a": engine(1, most=0), "b": engine(2, most=0)}, allow_missing=True)


# -- n kinds


def test_kinds() -> None:
    """The slowest kind sets the time; every other one comes to it from above; one that is too small is left out."""
    kinds = {"host": engine(1000, 0.001), "csd": engine(100, 0.002), "mid": engine(300), "small": engine(50, most=0)}
    with pytest.raises(DoesNotFit, match="small"):
        tune_all(kinds)
    found = tune_all(kinds, allow_missing=True)
    assert found.slowest == "csd"
    assert list(found.missing) == ["small"]
    time = found.tuned["csd"].seconds
    for kind in ("host", "mid"):
        assert time <= found.tuned[kind].seconds <= time * 1.1
    assert found.tuned["host"].engine("h").batch == found.tuned["host"].batch
    assert found.tuned["host"].engine("h").seconds(500) == pytest.approx(0.501, rel=0.02)


def test_fixed() -> None:
    """Batches that the user wants are measured, not searched; one that doesn't fit is told."""
    found = tune_fixed({"host": engine(100), "csd": engine(10, most=8)}, {"host": 50, "csd": 8})
    assert {kind: one.batch for kind, one in found.tuned.items()} == {"host": 50, "csd": 8}
    assert found.slowest == "csd"
    with pytest.raises(DoesNotFit, match="csd: the model with a batch of 9"):
        tune_fixed({"csd": engine(10, most=8)}, {"csd": 9})


def test_trace() -> None:
    """Every measurement is in the printed trace, with the chosen ones marked; it survives JSON."""
    found = tune(engine(3), engine(30, most=60), batches=[4, 8])
    lines = found.table().splitlines()
    assert lines[0].split() == ["engine", "batch", "s/step", "images/s", "of", "newport's", "time", "why"]
    assert len(lines) == 2 + len(found.trials)
    assert sum(" * " in line for line in lines) == 2
    assert any("no memory" in line for line in lines)
    assert Tuning.from_json(found.to_json()) == found
    with pytest.raises(PlanError, match="tuning: "):
        Tuning.from_json('{"slowest": 3}')


# -- cache


def found_once() -> tuple[Callable[[], Tuning], list[int]]:
    """A tuning, and how often it was made."""
    calls: list[int] = []

    def measure() -> Tuning:
        calls.append(1)
        return tune(engine(3), engine(30), batches=[8])

    return measure, calls


def test_cache(tmp_path: Path) -> None:
    """A tuning is measured once a key; ``fresh`` measures again and keeps that; other engines have other keys."""
    cache, (measure, calls) = TuningCache(tmp_path / "deep" / "tuning.json"), found_once()
    key = tuning_key("abc", {"host": "x86", "csd": "a53"}, batches=(8,))
    first, known = cache.tuned(key, measure)
    again, known_again = cache.tuned(key, measure)
    assert (first, known, known_again, len(calls)) == (again, False, True, 1)
    assert cache.tuned(key, measure, fresh=True) == (first, False)
    assert len(calls) == 2
    others = [("abd", {"host": "x86", "csd": "a53"}, (8,)), ("abc", {"host": "x86", "csd": "a55"}, (8,))]
    assert (
        len(
            {key, tuning_key("abc", others[0][1], batches=(8, 9)), *(tuning_key(a, b, batches=c) for a, b, c in others)}
        )
        == 4
    )
    assert not list(tmp_path.glob("deep/.tuning-*"))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 9, "tunings": {}}', b"\xff\0" * 99]
)
def test_damaged_cache(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A cache that is no cache is told in the log, ignored, and replaced by a whole one."""
    cache, (measure, calls) = TuningCache(tmp_path / "tuning.json"), found_once()
    cache.path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert cache.tuned("key", measure)[1] is False
    assert "is not used" in caplog.text
    assert cache.tuned("key", measure)[1] is True
    assert len(calls) == 1


def test_damaged_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An entry that is no tuning is measured again; the others stay."""
    cache, (measure, calls) = TuningCache(tmp_path / "tuning.json"), found_once()
    cache.tuned("good", measure)
    content: dict[str, Any] = json.loads(cache.path.read_text())
    content["tunings"]["bad"] = {"slowest": 1}
    cache.path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert cache.tuned("bad", measure)[1] is False
    assert "an entry is not used" in caplog.text
    assert cache.tuned("good", measure)[1] is True
    assert len(calls) == 2


def test_cache_that_can_not_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a place to keep it a tuning is of use all the same."""
    (tmp_path / "file").write_text("in the way")
    cache, (measure, _) = TuningCache(tmp_path / "file" / "tuning.json"), found_once()
    with caplog.at_level(logging.WARNING):
        found, known = cache.tuned("key", measure)
    assert (found.slowest, known) == ("newport", False)
    assert "not kept" in caplog.text


def put_many(path: Path, name: str) -> None:
    """What each of several runs does at the same time."""
    cache, (measure, _) = TuningCache(path), found_once()
    for number in range(10):
        cache.put(f"{name}{number}", measure())


def test_cache_of_several_runs(tmp_path: Path) -> None:
    """Runs that keep their tunings at the same time lose none of each other's."""
    path = tmp_path / "tuning.json"
    workers = [threading.Thread(target=put_many, args=(path, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(json.loads(path.read_text())["tunings"]) == 30


def test_cache_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the newest tunings are kept."""
    monkeypatch.setattr("emucsd.stannis.plan.cache.ENTRIES", 3)
    put_many(tmp_path / "tuning.json", "a")
    assert list(json.loads((tmp_path / "tuning.json").read_text())["tunings"]) == ["a7", "a8", "a9"]
