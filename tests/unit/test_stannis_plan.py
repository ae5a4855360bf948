"""Specs and plans of a run: strict JSON both ways, and nothing in them that doesn't add up."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emucsd.errors import EmucsdError
from emucsd.stannis import errors, fields
from emucsd.stannis.errors import DoesNotFit, FactoryFailed, MemoryExceeded, PlanError, SpecError, StannisError
from emucsd.stannis.plan.balancer import balance
from emucsd.stannis.plan.measured import Measured
from emucsd.stannis.plan.plan import Engine, Plan, Pool, Rest, Share
from emucsd.stannis.plan.replan import lose
from emucsd.stannis.spec import Spec
from tests.unit.fleet_rig import fleets, private, public, published

SPEC = Spec("emucsd.stannis.models:mobilenet_v2", {"num_classes": 10, "w": [1, 2.5]}, clip=1.0, milestones=(1.0, 2.0))


def small_plan() -> Plan:
    """Two ranks, by hand."""
    pools = (public(90, ["host", "csd0"]), private(10, "csd0"))
    shares = (Share(0, "host", 9, {"public": 90}), Share(1, "csd0", 1, {"of csd0": 10}))
    return Plan(7, 0, 10, shares, pools, step_seconds=4.0)


# -- spec


def test_spec_round_trip() -> None:
    """A spec comes back from its JSON equal, with its tuples as tuples."""
    assert Spec.from_json(SPEC.to_json()) == SPEC
    assert Spec.from_json(SPEC.to_json(indent=2).encode()) == SPEC
    assert Spec.from_json('{"factory": "a:b", "lr": 1}').lr == 1.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "must be an object"),
        ("{}", "'factory' missing"),
        ('{"factory": "a:b", "batch": 3}', "unknown 'batch'"),
        ('{"factory": "a:b", "factory": "c:d"}', "comes twice"),
        ('{"factory": 3}', "factory: 3, must be a string"),
        ('{"factory": "a:b", "lr": true}', "lr: True, must be a number"),
        ('{"factory": "a:b", "lr": NaN}', "lr: nan, must be finite"),
        ('{"factory": "a:b", "epochs": 1.5}', "must be a whole number"),
        ('{"factory": "a:b", "image": [3, 32]}', "2 values, must be 3"),
        ('{"factory": "a:b", "decay": "linear"}', "must be one of 'constant'"),
        ('{"factory": "a:b", "batches": {"host": "8"}}', "batches.host: '8'"),
        ('{"factory": "a:b", "arguments": ' + '{"a": ' * 40 + "1" + "}" * 40 + "}", "nested deeper"),
    ],
)
def test_spec_from_bad_json(text: str, says: str) -> None:
    """What is no spec is refused with the field's path, and nothing is converted in silence."""
    with pytest.raises(SpecError, match=says):
        Spec.from_json(text)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"factory": "resnet"}, "module:function"),
        ({"loss": "mse"}, "'cross_entropy', 'module:function'"),
        ({"optimizer": "lamb"}, "optimizer is 'lamb'"),
        ({"lr": -1.0}, "lr is -1.0; 0.0 to"),
        ({"epochs": 0}, "epochs is 0; 1 to"),
        ({"image": (3, 0, 32)}, "image is"),
        ({"mean": (0.5,)}, "mean has 1 values; one for each of 3"),
        ({"std": (0.5, 0.0, 0.5)}, "each above 0"),
        ({"milestones": (2.0, 1.0), "decay": "milestones"}, "epochs that rise"),
        ({"batches": {"host": 0}}, "batches of 'host' is 0"),
        ({"tune": False}, "name each node's batch"),
    ],
)
def test_spec_out_of_range(change: dict[str, Any], says: str) -> None:
    """A value out of its range is refused with the value and the limit."""
    with pytest.raises(SpecError, match=says):
        replace(SPEC, **change)


def test_spec_that_json_has_no_form_for() -> None:
    """Arguments that JSON can't hold are told when the spec is to be written."""
    with pytest.raises(SpecError, match="can't be written as JSON"):
        Spec("a:b", {"x": object()}).to_json()


def test_model_hash() -> None:
    """Tunings are kept by what decides an engine's speed: the model counts, the learning rate does not."""
    assert SPEC.model_hash == replace(SPEC, lr=3.0, epochs=9, seed=4).model_hash
    others = [replace(SPEC, image=(3, 64, 64)), replace(SPEC, arguments={}), replace(SPEC, factory="a:b")]
    assert len({SPEC.model_hash, *(other.model_hash for other in others)}) == 4


# -- fields


@settings(max_examples=50)
@given(st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3))
def test_fields_refuse_or_keep(value: object) -> None:
    """Any JSON value for any field of a pool is either taken as it is or refused as a FieldError."""
    for name in ("name", "count", "at"):
        given_ = {"name": "x", "private": False, "count": 1, "sample_bytes": 1, "at": {"n": "/"}} | {name: value}
        try:
            pool = fields.load(Pool, given_)
        except (fields.FieldError, PlanError):
            continue
        assert getattr(pool, name) == value


# -- engines


def test_engine_times() -> None:
    """Between measured points times lie on the line that joins them; outside the rate stays."""
    engine = Engine("a", 20, 10.0, curve=((10, 1.5), (40, 3.5)))
    assert [engine.seconds(batch) for batch in (0, 5, 10, 15, 20, 30, 40, 80)] == pytest.approx(
        [0, 0.75, 1.5, 1.75, 2.0, 2.75, 3.5, 7.0]
    )
    plain = Engine("b", 25, 3.08)
    assert plain.step_seconds == plain.seconds(25) == pytest.approx(8.117, abs=1e-3)
    slow = engine.at(10, 3.0)
    assert slow.batch == 10
    assert [slow.step_seconds, slow.seconds(80)] == pytest.approx([4.5, 21.0])


@given(
    st.dictionaries(st.integers(1, 100), st.floats(0.01, 10), min_size=1, max_size=6),
    st.floats(0.01, 200),
)
def test_engine_time_and_its_inverse(points: dict[int, float], batch: float) -> None:
    """A larger batch never takes less time, and ``within`` finds the largest that fits a time."""
    first, *_ = points
    engine = Engine("a", first, first / points[first], curve=tuple(sorted(points.items())))
    seconds = engine.seconds(batch)
    assert engine.seconds(batch * 1.5) >= seconds
    assert engine.within(seconds) >= batch * (1 - 1e-9)
    assert engine.seconds(engine.within(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Engine("a", 0, 1.0),
        lambda: Engine("a", 1, 0.0),
        lambda: Engine("a", 1, float("nan")),
        lambda: Engine("a", 1, 1.0, memory_limit_batch=0),
        lambda: Engine("a", 1, 1.0, curve=((2, 1.0), (2, 1.0))),
        lambda: Pool("", False, 1, 1, {"a": "/"}),
        lambda: Pool("a", False, -1, 1, {"a": "/"}),
        lambda: Measured(4, 0.0),
    ],
)
def test_what_is_no_engine_or_pool(make: Any) -> None:
    """Numbers that can't be are refused where they come in."""
    with pytest.raises(PlanError):
        make()


# -- plans


@settings(max_examples=60)
@given(fleets())
def test_plan_round_trip(fleet: tuple[list[Engine], list[Pool]]) -> None:
    """A plan comes back from its JSON equal."""
    plan = balance(*fleet, sync_seconds=0.01)
    assert Plan.from_json(plan.to_json()) == plan


def test_plan_says_no_sample() -> None:
    """A plan holds names of pools and nodes, places and counts: nothing of a sample."""
    plan = balance(published(2), [public(900, ["host", "csd0", "csd1"]), private(100, "csd1")])
    assert set(json.loads(plan.to_json())["pools"][1]) == {"name", "private", "count", "sample_bytes", "at"}
    assert "ns:2" not in plan.table()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "0 steps"),
        ({"shares": ()}, "0 ranks"),
        ({"version": 2}, "version 2"),
        ({"shares": small_plan().shares[::-1]}, "in order"),
        ({"pools": small_plan().pools[:1] * 2}, "comes twice"),
        ({"steps": 9}, "90 samples in 9 steps of 9"),
        ({"pools": (public(91, ["host", "csd0"]), private(10, "csd0"))}, "90 of 91"),
        (
            {"shares": (Share(0, "host", 10, {"public": 90, "of csd0": 10}), Share(1, "csd0", 1, {}))},
            "10 samples of 'of csd0': no way to it",
        ),
        (
            {"shares": (Share(0, "host", 99, {"public": 90}, {"public": 91}), Share(1, "csd0", 1, {"of csd0": 10}))},
            "each sample once more",
        ),
    ],
)
def test_plan_that_does_not_add_up(change: dict[str, Any], says: str) -> None:
    """A plan in which a sample is lost, or a private one goes where it can't be read, can't be made at all."""
    with pytest.raises(PlanError, match=says):
        replace(small_plan(), **change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quotas": ({"public": 45},)}, "1 ranks"),
        ({"done": 1.5}, "after 1.5"),
        ({"steps": 4}, "does not fit 4 steps of 9"),
        ({"quotas": ({"public": 44}, {"of csd0": 5})}, "44 of 45"),
        ({"quotas": ({"public": 45, "of csd0": 5}, {}), "steps": 9}, "5 samples of 'of csd0': no way to it"),
        ({"spent": {"public": ((30, 60), (0, 15)), "of csd0": ((0, 5),)}}, "ranges that rise"),
        ({"spent": {"public": ((-5, 40),), "of csd0": ((0, 5),)}}, "ranges that rise"),
        ({"spent": {"public": ((0, 45),)}}, "5 of 10 samples"),
    ],
)
def test_rest_that_does_not_add_up(change: dict[str, Any], says: str) -> None:
    """What is left of an epoch is checked like one: each sample that was not trained, once, where it can be read."""
    spent = {"public": ((0, 15), (30, 60)), "of csd0": ((0, 5),), "of one that left": ((0, 9),)}
    rest = Rest(2, 5, 0.5, ({"public": 45}, {"of csd0": 5}), spent)
    plan = replace(small_plan(), rest=rest)
    assert (plan.steps_in(2), plan.steps_in(3), plan.progress(2, 1)) == (5, 10, 2.6)
    with pytest.raises(PlanError, match=says):
        replace(plan, rest=replace(rest, **change))


def test_plan_from_damaged_json() -> None:
    """A saved plan that was altered is refused."""
    text = small_plan().to_json()
    for old, new in (('"steps": 10', '"steps": 9'), ('"host"', '"h\\u00f6st"'), ('"seed"', '"sed"'), ("}", "")):
        with pytest.raises(PlanError):
            Plan.from_json(text.replace(old, new, 1))


def test_table() -> None:
    """The printed plan has a line a rank with its batch, samples and waiting, and what decided."""
    plan = balance(published(2), [public(9_000, ["host", "csd0", "csd1"]), private(500, "csd1")], sync_seconds=0.5)
    lines = plan.table().splitlines()
    assert lines[0] == "node  rank  batch  private  public  repeated  images/s  s/step  waits"
    assert lines[2].split()[:6] == ["host", "0", "315", "0", f"{plan.shares[0].unique:,}", "0"]
    assert lines[4].split()[:4] == ["csd1", "2", "25", "500"]
    assert "global batch 365" in lines[5]
    assert any(line.startswith("public: public samples even out all ranks") for line in lines)
    after = lose(plan, "csd0", epoch=3, step=13)
    assert after.table().splitlines()[-1] == "epoch 3 (from 0), 48% done, goes on for 15 steps"


def test_documented_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The example of docs/stannis-plan.md prints what the page shows."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "stannis-plan.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    printed = capsys.readouterr().out
    trace, plan = names["found"].table(), names["plan"].table()
    assert printed == f"{trace}\n{plan}\n"
    engines, pools = names["engines"], names["pools"]
    lacking = balance(engines, [replace(pools[0], count=4_000), *pools[1:]], seed=1, sync_seconds=0.4).table()
    for shown in (trace, plan, lacking):
        assert f"```\n{shown}\n```" in page


# -- errors


def test_errors_pickle_and_tell() -> None:
    """Every error is below StannisError, keeps what it carries through pickle, and says what is missing."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EmucsdError)]
    for kind in kinds:
        if kind.__module__ == errors.__name__:
            again = pickle.loads(pickle.dumps(kind("told")))
            assert isinstance(again, StannisError)
            assert str(again) == "told"
    unfit = pickle.loads(pickle.dumps(DoesNotFit("no", 1, 300, 200, "csd0")))
    assert (unfit.missing, unfit.node) == (100, "csd0")
    assert MemoryExceeded("no", 4).missing == 0
    assert pickle.loads(pickle.dumps(FactoryFailed("no", "net.py:3"))).where == "net.py:3"
