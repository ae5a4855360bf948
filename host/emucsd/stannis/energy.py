"""What training takes from the socket: watts of each node, and the joules of a run.

A node draws ``idle`` watts, ``busy`` while it computes or moves gradients, and ``link`` more while its link is in use.
The three nodes of Stannis' experiment are solved for, once, from the ends of its Table II (``calibrate``)::

    energy(0)  x rate(0)  = host + 24 x ssd            both busy: what the meter showed without CSDs
    energy(24) x rate(24) = host + 24 x csd
    FLOPS per watt(24) / FLOPS per watt(0) = rate(24) / rate(0) x host / (host + 24 x csd)

The third takes the table's second row for what it is if it shall not contradict the first: the energy of an image falls
3.26 times there, FLOPS per watt rises 2.09 times, and the two are one figure unless the machines differ. With a
server that holds no drives but the CSDs in use they agree along the whole row, within 5 %.

::

    power = calibrate()
    meter = Meter(power, {"host": "host", "isp0": "csd"})
    meter.add("isp0", 10.0, computing=8.5, communicating=1.0)
    print(meter.joules, power.watts(24))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emucsd.errors import InvalidArgument
from emucsd.stannis.errors import StannisError
from emucsd.stannis.parameters import Parameter, load_parameters


class PowerError(StannisError, InvalidArgument):
    """The caller's: rates that no machine can have drawn these energies at, a profile or a time that there is not."""


@dataclass(frozen=True)
class Power:
    """One kind of node. All in watts.

    :ivar idle: nothing to do, or waiting for others
    :ivar busy: while it computes or moves gradients
    :ivar link: on top, while its link is in use
    """

    name: str
    idle: float
    busy: float
    link: float

    def joules(self, seconds: float, computing: float = 0.0, communicating: float = 0.0) -> float:
        """What it took in this time.

        :param computing: seconds of it that it computed
        :param communicating: seconds of it that it moved gradients
        :raises PowerError: a negative time, or more work than time
        """
        working = computing + communicating
        if min(seconds, computing, communicating) < 0 or working > seconds * (1 + 1e-9) + 1e-9:
            raise PowerError(
                f"{self.name}: {computing:g} s of computing and {communicating:g} s of communicating in {seconds:g} s: "
                "times are at least 0, and no more than all of it"
            )
        return self.idle * seconds + (self.busy - self.idle) * working + self.link * communicating


@dataclass(frozen=True)
class Use:
    """How a step's time is used: shares, 0 to 1.

    :ivar host: of the host's time that is not waiting
    :ivar csd: of a CSD's
    :ivar link: of a CSD's time that its link is in use
    """

    host: float = 1.0
    csd: float = 1.0
    link: float = 0.0


BUSY = Use()  # nobody waits: what the published table is calibrated with where nothing else is given


@dataclass(frozen=True)
class PowerModel:
    """The nodes of a server with drives.

    :ivar host: the server without its drives
    :ivar csd: a computational storage drive, its flash and its engine
    :ivar ssd: the ordinary drive of the baseline
    :ivar bays: drives in the server
    """

    host: Power
    csd: Power
    ssd: Power
    bays: int

    def node(self, profile: str) -> Power:
        """``host``, ``csd`` or ``ssd``. :raises PowerError: none of these"""
        found = {"host": self.host, "csd": self.csd, "ssd": self.ssd}
        if profile not in found:
            raise PowerError(f"no power profile {profile!r}; there are {', '.join(found)}")
        return found[profile]

    def watts(self, csds: int, use: Use = BUSY, *, others: bool = True) -> float:
        """The whole server while ``csds`` engines and the host train.

        Without CSDs it is the baseline: its bays hold SSDs. With some, they hold CSDs, and those beyond ``csds`` idle.

        :param others: False for a server that holds no drives but the CSDs in use
        :raises PowerError: more CSDs than bays
        """
        if not 0 <= csds <= self.bays:
            raise PowerError(f"{csds} CSDs in a server of {self.bays} bays")
        host = self.host.joules(1.0, computing=use.host)
        working = self.csd.joules(1.0, computing=max(use.csd - use.link, 0.0), communicating=use.link)
        idle = self.ssd.idle if csds == 0 else self.csd.idle
        return host + csds * working + (self.bays - csds) * (idle if others else 0.0)

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def parameters() -> list[Parameter]:
    """Everything the model is made of, with reasons."""
    return list(_values().values())


def calibrate(rate_0: float | None = None, rate_24: float | None = None, use: Use = BUSY) -> PowerModel:
    """The model whose energy at 0 and at 24 CSDs is the published one.

    :param rate_0: images/s of the server alone; None for the published one
    :param rate_24: images/s with 24 CSDs; None for the published speed-up over ``rate_0``
    :param use: how the time of a step with 24 CSDs is used
    :raises PowerError: rates at which a drive would have to draw nothing, or less
    """
    values = {name: parameter.value for name, parameter in _values().items()}
    alone = values["rate_0"] if rate_0 is None else rate_0
    all_on = values["speedup_24"] * alone if rate_24 is None else rate_24
    if not (alone > 0 and all_on > 0):
        raise PowerError(f"rates of {alone:g} and {all_on:g} images/s: both must be more than 0")
    bays = int(values["bays"])
    whole = values["energy_24"] * all_on
    host = whole * values["flops_per_watt_24"] / values["flops_per_watt_0"] * alone / all_on
    drives = whole - host + (1 - use.host) * values["host_swing"]
    csd = drives / bays + (1 - use.csd) * values["engine_swing"] - use.link * values["link"]
    ssd = (values["energy_0"] * alone - host) / bays
    _possible(
        {"the host": host - values["host_swing"], "a CSD": csd - values["engine_swing"], "an SSD": ssd},
        alone,
        all_on,
    )
    return PowerModel(
        Power("host", host - values["host_swing"], host, 0.0),
        Power("csd", csd - values["engine_swing"], csd, values["link"]),
        Power("ssd", ssd, ssd, values["link"]),
        bays,
    )


def _possible(watts: dict[str, float], alone: float, all_on: float) -> None:
    for name, value in watts.items():
        if value <= 0:
            raise PowerError(
                f"{alone:g} images/s alone and {all_on:g} with 24 CSDs would have {name} draw {value:.1f} W when idle: "
                "the published energies can't have been taken at these rates"
            )


def _values() -> dict[str, Parameter]:
    return load_parameters("emucsd.stannis", "power.toml")


class Meter:
    """Joules of a run as it goes on.

    :param profiles: node -> ``host``, ``csd`` or ``ssd``
    :raises PowerError: a profile that there is not
    """

    def __init__(self, model: PowerModel, profiles: Mapping[str, str]) -> None:
        self._powers = {node: model.node(profile) for node, profile in profiles.items()}
        self._spent = dict.fromkeys(self._powers, 0.0)

    def add(self, node: str, seconds: float, computing: float = 0.0, communicating: float = 0.0) -> float:
        """A node's next stretch of time, as ``Power.joules`` takes it. :returns: its joules"""
        if node not in self._powers:
            raise PowerError(f"no node {node!r} on this meter; there are {', '.join(self._powers) or 'none'}")
        joules = self._powers[node].joules(seconds, computing, communicating)
        self._spent[node] += joules
        return joules

    @property
    def joules(self) -> float:
        """Of all nodes."""
        return sum(self._spent.values())

    def record(self, images: int | None = None) -> dict[str, Any]:
        """Joules of each node and in all, and of an image where there were any."""
        found: dict[str, Any] = {"joules": self.joules, "nodes": dict(self._spent), "sure": "modelled, not measured"}
        if images:
            found["joules_per_image"] = self.joules / images
        return found
