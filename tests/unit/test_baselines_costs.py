"""The host's costs: each parameter once, with its reason, and the sums that the baselines make of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from emucsd.baselines.costs import SURE, Costs, load_costs, parameters, parse
from emucsd.errors import InvalidArgument


def _found() -> dict[str, Any]:
    return {p.name: {key: getattr(p, key) for key in p._fields if key != "name"} for p in parameters()}


def test_every_parameter_has_a_reason() -> None:
    """Each field of Costs stands in the file once, with unit, reason and how sure it is."""
    assert [p.name for p in parameters()] == [field.name for field in dataclasses.fields(Costs)]
    assert all(p.unit and p.what and p.reason and p.sure in SURE and p.value > 0 for p in parameters())


@pytest.mark.parametrize("change", ["missing", "unknown", "negative", "unsure", "no reason"])
def test_a_wrong_file_is_refused(change: str) -> None:
    """A file that lacks something, or says too much, gives no costs."""
    found = _found()
    match change:
        case "missing":
            del found["wakeup"]
        case "unknown":
            found["fudge"] = found["wakeup"]
        case "negative":
            found["wakeup"]["value"] = -1
        case "unsure":
            found["wakeup"]["sure"] = "fitted"
        case "no reason":
            del found["wakeup"]["reason"]
    with pytest.raises(InvalidArgument, match="costs"):
        parse(found)


def test_no_parameter_is_inert() -> None:
    """Every parameter changes at least one of the sums that the baselines use."""

    def sums(costs: Costs) -> list[float]:
        return [
            costs.vector_read,
            costs.miss,
            costs.mmio_rows(256),
            costs.send,
            costs.receive,
            costs.gather(10, 128),
            costs.layer(64, 100_000, 4),
            costs.layer(1, 1, 400_000),
            costs.operator,
        ]

    plain = load_costs()
    for field in dataclasses.fields(Costs):
        other = dataclasses.replace(plain, **{field.name: 3 * getattr(plain, field.name)})
        assert sums(other) != sums(plain), field.name


def test_sums() -> None:
    """A hit is two calls and a copy; a miss adds the way through the kernel; layers are bound by one of two rates."""
    costs = load_costs()
    assert costs.vector_read == 2 * costs.crossing + costs.seek_call + costs.read_call + costs.page_cache_hit
    assert costs.miss > costs.vector_read
    assert costs.mmio_rows(64) < costs.mmio_rows(65) == costs.mmio_rows(128)
    assert costs.layer(1000, 10**6, 4 * 10**6) == pytest.approx(1000 * 10**6 / (costs.mac_rate * costs.threads))
    assert costs.layer(1, 10**6, 4 * 10**6) == pytest.approx(4 * 10**6 / costs.weight_bytes_per_ns)
