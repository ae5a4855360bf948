"""Energy: exact where it was calibrated, near where it was not, and never out of thin air."""

from __future__ import annotations

import pytest

from emucsd.stannis.energy import BUSY, Meter, Power, PowerError, Use, calibrate, parameters

TABLE_II = {0: (13.10, 5.87), 4: (8.30, 7.05), 8: (6.84, 8.18), 16: (5.05, 10.37), 24: (4.02, 12.26)}


@pytest.mark.parametrize("use", [BUSY, Use(host=0.8, csd=0.9, link=0.3)])
@pytest.mark.parametrize(("alone", "all_on"), [(31.05, 83.8), (32.3, 87.2), (30.0, 75.0)])
def test_ends_are_exact(alone: float, all_on: float, use: Use) -> None:
    """Whatever rates and waiting, published energies come out at 0 and 24 CSDs, and FLOPS per watt in their ratio."""
    model = calibrate(alone, all_on, use)
    assert model.watts(0) / alone == pytest.approx(TABLE_II[0][0])
    assert model.watts(24, use) / all_on == pytest.approx(TABLE_II[24][0])
    bare = (all_on / model.watts(24, use, others=False)) / (alone / model.watts(0, others=False))
    assert bare == pytest.approx(TABLE_II[24][1] / TABLE_II[0][1])


def test_middle_agrees_with_published() -> None:
    """At the rates that the 2.7x and the energies imply, both rows of Table II come out in the middle, within 5 %."""
    model = calibrate()
    for csds, (energy, flops) in TABLE_II.items():
        rate = 31.05 * 2.7 * 4.02 / energy if csds else 31.05
        assert model.watts(csds) / rate == pytest.approx(energy, rel=0.05)
        bare = rate / model.watts(csds, others=False) * model.watts(0, others=False) / 31.05
        assert bare == pytest.approx(flops / TABLE_II[0][1], rel=0.05)


def test_more_engines_draw_more() -> None:
    """Each engine, busy time and link time adds; an idle node draws its idle watts."""
    model = calibrate()
    watts = [model.watts(csds) for csds in range(1, 25)]
    assert watts == sorted(watts)
    assert model.watts(24, Use(host=0.5)) < model.watts(24)
    node = model.node("csd")
    assert node.joules(2.0) == pytest.approx(2 * node.idle)
    assert node.joules(1.0, 0.5, 0.5) == pytest.approx(node.busy + 0.5 * node.link)


def test_meter_adds_up() -> None:
    """A meter's joules are its nodes' sum; an image's are those over the images."""
    model = calibrate()
    meter = Meter(model, {"host": "host", "isp0": "csd"})
    first = meter.add("host", 10.0, computing=10.0)
    second = meter.add("isp0", 10.0, computing=5.0, communicating=2.0)
    assert first == pytest.approx(10 * model.host.busy)
    assert meter.joules == pytest.approx(first + second)
    assert meter.record(100)["joules_per_image"] == pytest.approx((first + second) / 100)


def test_impossible_is_refused() -> None:
    """Rates that would leave a drive nothing to draw, more work than time, and unknown names are errors that say so."""
    with pytest.raises(PowerError, match="a CSD draw"):
        calibrate(31.05, 40.0)
    with pytest.raises(PowerError, match="more than 0"):
        calibrate(0.0)
    with pytest.raises(PowerError, match="no more than all of it"):
        Power("host", 1.0, 2.0, 0.0).joules(1.0, 0.8, 0.3)
    with pytest.raises(PowerError, match="host, csd, ssd"):
        calibrate().node("gpu")
    with pytest.raises(PowerError, match="24 bays"):
        calibrate().watts(25)
    with pytest.raises(PowerError, match="isp9"):
        Meter(calibrate(), {"host": "host"}).add("isp9", 1.0)


def test_every_parameter_has_a_reason() -> None:
    """Nothing is in the model without a unit, a meaning and a reason."""
    for parameter in parameters():
        assert parameter.unit
        assert parameter.what
        assert parameter.reason
