"""Engines as their profiles have them: how long a step of a network takes at any batch, and what fits into memory."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from emucsd.stannis.errors import MemoryExceeded, PlanError
from emucsd.stannis.parameters import Parameter, make_parameters
from emucsd.stannis.plan.measured import Measured

PACKAGE = "emucsd.stannis.fleet"
FP32 = 4


class Known(NamedTuple):
    """What is published of an engine and a network: images/s at one batch."""

    batch: int
    rate: float


@dataclass(frozen=True)
class Network:
    """One of Table I.

    :ivar activation_bytes: of one image: kept for backward, and gradients of the largest
    :ivar model: its name in ``emucsd.stannis.models``
    """

    name: str
    title: str
    parameters: float
    model: str
    activation_bytes: int
    newport: Known
    host: Known

    @property
    def gradient_bytes(self) -> float:
        """What every rank all-reduces in a step: FP32."""
        return FP32 * self.parameters

    def training_bytes(self, batch: int) -> int:
        """Memory of a step."""
        copies = values()["parameter_copies"]
        return int(copies * self.gradient_bytes + batch * self.activation_bytes)


@dataclass(frozen=True)
class Profile:
    """One kind of engine with one network: seconds(b) = fixed + b x image + b^2 x growth.

    :ivar fixed: s of a step, whatever its batch
    :ivar image: s an image
    :ivar growth: s, of each pair of images: what a larger working set costs
    """

    engine: str
    network: Network
    fixed: float
    image: float
    growth: float
    memory_bytes: float

    def seconds(self, batch: float) -> float:
        """Of one step, alone. :param batch: images, at least 0; a rank without any takes no time"""
        return self.fixed + batch * (self.image + batch * self.growth) if batch else 0.0

    def rate(self, batch: int) -> float:
        """Images/s."""
        return batch / self.seconds(batch)

    @property
    def largest_batch(self) -> int:
        """What fits into its memory."""
        left = self.memory_bytes - self.network.training_bytes(0)
        return max(0, int(left // self.network.activation_bytes))

    def bench(self, batch: int) -> Measured:
        """A step in virtual time, as the tuner asks for it. :raises MemoryExceeded: it does not fit"""
        needed = self.network.training_bytes(batch)
        if needed > self.memory_bytes:
            raise MemoryExceeded(
                f"{self.engine}: {self.network.title} with a batch of {batch} takes {needed / 1e9:.2f} GB, there are "
                f"{self.memory_bytes / 1e9:.2f} GB: at most {self.largest_batch} images",
                batch,
                needed,
                int(self.memory_bytes),
                self.engine,
            )
        return Measured(batch, self.seconds(batch), needed)


@cache
def networks() -> dict[str, Network]:
    """Table I's, by name."""
    return {
        name: Network(
            name,
            one["title"],
            one["parameters"],
            one["model"],
            one["activation_bytes"],
            Known(**one["newport"]),
            Known(**one["host"]),
        )
        for name, one in _document()["networks"].items()
    }


def network(name: str) -> Network:
    """:raises PlanError: none of that name"""
    if name not in networks():
        raise PlanError(f"no network {name!r} in the profiles; there are {', '.join(networks())}")
    return networks()[name]


def newport(of: Network) -> Profile:
    """A drive's engine: its best rate is the published one, at the published batch; it is flat around it."""
    share = values()["newport_overhead"]
    seconds = of.newport.batch / of.newport.rate
    return Profile(
        "newport",
        of,
        share * seconds,
        (1 - 2 * share) * seconds / of.newport.batch,
        share * seconds / of.newport.batch**2,
        values()["newport_memory"],
    )


def host(of: Network) -> Profile:
    """The server: the published rate at the published batch; it still gains a little with larger ones."""
    share = values()["host_overhead"]
    seconds = of.host.batch / of.host.rate
    return Profile("host", of, share * seconds, (1 - share) * seconds / of.host.batch, 0.0, values()["host_memory"])


def parameters() -> list[Parameter]:
    """All but the networks' own, with reasons."""
    return list(_parameters().values())


@cache
def values() -> dict[str, float]:
    """The same by name."""
    return {name: parameter.value for name, parameter in _parameters().items()}


@cache
def _parameters() -> dict[str, Parameter]:
    return make_parameters("engines.toml", {name: one for name, one in _document().items() if name != "networks"})


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(files(PACKAGE).joinpath("engines.toml").read_text(encoding="utf-8"))
