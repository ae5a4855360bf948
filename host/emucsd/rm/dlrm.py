"""facebookresearch/dlrm's command line: the arguments that describe a model, and its inputs.

    arguments = Model.dlrm_arguments("--arch-sparse-feature-size=16 --arch-embedding-size=1000-2000 "
                                     "--arch-mlp-bot=13-512-256-64-16 --arch-mlp-top=512-256-1")
    arguments.model, arguments.inputs

Names, defaults and meaning are dlrm_s_pytorch.py's; the width of the top layers' input is computed, not given. An
argument that this does not know, or that asks for another kind of model (an interaction of a vector with itself, dot
products of sums of several widths), is refused by its name.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from emucsd.rm.errors import ModelError, UnknownArgument
from emucsd.rm.shape import EmbeddingTable, Shape, stack

__all__ = ["Arguments", "Inputs", "UnknownArgument", "parse"]

S = TypeVar("S", bound=Shape)
Bags = tuple[NDArray[np.int64], NDArray[np.int64]]

# argument -> default, as a text; "": a switch
_MODEL = {
    "arch-sparse-feature-size": "2",
    "arch-embedding-size": "4-3-2",
    "arch-mlp-bot": "4-3-2",
    "arch-mlp-top": "4-2-1",
    "arch-interaction-op": "dot",
    "max-ind-range": "-1",
    "quantize-emb-with-bit": "32",
    "weighted-pooling": "None",
}
_INPUTS = {
    "num-indices-per-lookup": "10",
    "num-indices-per-lookup-fixed": "False",
    "mini-batch-size": "1",
    "num-batches": "0",
    "data-size": "1",
    "data-generation": "random",
    "rand-data-dist": "uniform",
    "rand-data-min": "0",
    "rand-data-max": "1",
    "rand-data-mu": "-1",
    "rand-data-sigma": "1",
    "data-trace-file": "./input/dist_emb_j.log",
    "numpy-rand-seed": "123",
}
_SWITCHES = ("inference-only", "round-targets")  # what changes nothing of a model that is only run
_FLAG_VALUES = {"true": True, "1": True, "false": False, "0": False}


class Inputs(NamedTuple):
    """How batches are to be made.

    :ivar lookups: ids a bag, at the most; ``fixed``: exactly so many drawn (equal ones count once)
    :ivar batch: samples
    :ivar generation: ``random``; ``dataset`` or ``internal``, or a ``trace`` file, are for others to read
    :ivar distribution: of random ids: ``uniform``, or ``gaussian`` between ``low`` and ``high`` of the rows
    """

    lookups: int
    fixed: bool
    batch: int
    batches: int
    generation: str
    distribution: Literal["uniform", "gaussian"]
    mean: float
    deviation: float
    trace: str
    seed: int


@dataclass(frozen=True)
class Arguments(Generic[S]):
    """A command line, understood.

    :ivar row_bits: of a table's elements: 32, 16, 8 or 4
    :ivar weighted: per-sample weights are part of the model (``--weighted-pooling``)
    """

    model: S
    inputs: Inputs
    row_bits: int
    weighted: bool

    def random_batches(self, count: int | None = None) -> Iterator[tuple[NDArray[np.float32], list[Bags]]]:
        """Batches as ``--data-generation=random`` makes them: ids of a bag are distinct, so it may be short.

        :raises UnknownArgument: the ids come from somewhere else
        """
        if self.inputs.generation != "random":
            raise UnknownArgument(
                f"--data-generation={self.inputs.generation}: only random inputs can be made here", ("data-generation",)
            )
        rng = np.random.default_rng(self.inputs.seed)
        for _ in range(self.inputs.batches if count is None else count):
            dense = rng.random((self.inputs.batch, self.model.dense), np.float32)
            yield dense, [_draw(self.inputs, table.rows, rng) for table in self.model.tables]


def _draw(inputs: Inputs, rows: int, rng: np.random.Generator) -> Bags:
    bags = []
    for _ in range(inputs.batch):
        count = inputs.lookups if inputs.fixed else int(rng.integers(1, inputs.lookups + 1))
        if inputs.distribution == "gaussian":
            mean = rows / 2 if inputs.mean < 0 else inputs.mean
            drawn = np.clip(np.rint(rng.normal(mean, inputs.deviation, count)), 0, rows - 1).astype(np.int64)
        else:
            drawn = rng.integers(0, rows, count)
        bags.append(np.unique(drawn))
    offsets = np.cumsum([0, *(len(bag) for bag in bags[:-1])]).astype(np.int64)
    return np.concatenate(bags), offsets


def parse(arguments: str | Sequence[str], kind: type[S]) -> Arguments[S]:
    """Read a command line. ``Model.dlrm_arguments`` is the one to call.

    :param arguments: one text, or a list as ``sys.argv[1:]``
    :raises UnknownArgument: names (all of them) that mean nothing here, or a value that is none
    :raises ModelError: what is said makes no model
    """
    given = _split(shlex.split(arguments) if isinstance(arguments, str) else list(arguments))
    values = {**_MODEL, **_INPUTS, **given}
    bottom, top = _dashes("arch-mlp-bot", values), _dashes("arch-mlp-top", values)
    lookups = int(_number("num-indices-per-lookup", values, whole=True))
    rows = _rows(values)
    dim = int(_number("arch-sparse-feature-size", values, whole=True))
    interaction = values["arch-interaction-op"]
    if interaction not in ("dot", "cat"):
        raise UnknownArgument(f"--arch-interaction-op={interaction}: dot or cat", ("arch-interaction-op",))
    tables = tuple(EmbeddingTable(count, dim, lookups) for count in rows)
    vectors = len(tables) + 1
    width = bottom[-1] + (dim * len(tables) if interaction == "cat" else vectors * (vectors - 1) // 2)
    if interaction == "dot" and bottom[-1] != dim:
        raise ModelError(
            f"--arch-mlp-bot ends in {bottom[-1]}, --arch-sparse-feature-size is {dim}: dot products need one width"
        )
    layers = stack((width, *top), last="sigmoid")
    model = kind("dlrm", bottom[0], stack(bottom), tables, interaction, layers)  # type: ignore[arg-type]
    return Arguments(model, _inputs(values, lookups), _bits(values), values["weighted-pooling"] not in ("None", ""))


def _split(words: Sequence[str]) -> dict[str, str]:
    """``--name=value``, ``--name value`` and switches. :raises UnknownArgument: all that are unknown, at once"""
    given: dict[str, str] = {}
    unknown: list[str] = []
    at = 0
    while at < len(words):
        word, at = words[at], at + 1
        name, equals, value = word.removeprefix("--").partition("=")
        known = name in _MODEL or name in _INPUTS
        if not word.startswith("--") or not (known or name in _SWITCHES):
            unknown.append(word)
            if not equals and at < len(words) and not words[at].startswith("--"):
                at += 1  # its value
            continue
        if not equals and known:
            if at < len(words) and not words[at].startswith("--"):
                value, at = words[at], at + 1
            elif name != "num-indices-per-lookup-fixed":
                raise UnknownArgument(f"--{name} needs a value, like --{name}={({**_MODEL, **_INPUTS})[name]}", (name,))
            else:
                value = "true"
        given[name] = value
    if unknown:
        raise UnknownArgument(
            f"{', '.join(unknown)}: no argument of a model or its inputs; known are "
            + ", ".join(f"--{name}" for name in (*_MODEL, *_INPUTS, *_SWITCHES)),
            tuple(word.removeprefix("--").partition("=")[0] for word in unknown),
        )
    return given


def _number(name: str, values: dict[str, str], *, whole: bool) -> float:
    try:
        return int(values[name]) if whole else float(values[name])
    except ValueError:
        raise UnknownArgument(f"--{name}={values[name]}: give a number", (name,)) from None


def _dashes(name: str, values: dict[str, str]) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in values[name].split("-"))
    except ValueError:
        raise UnknownArgument(
            f"--{name}={values[name]}: whole numbers with dashes between, like 13-512-16", (name,)
        ) from None
    if min(numbers) < 1:
        raise ModelError(f"--{name}={values[name]}: every number is at least 1")
    return numbers


def _rows(values: dict[str, str]) -> tuple[int, ...]:
    """Rows of each table; --max-ind-range bounds them, as ids are taken modulo it."""
    most = int(_number("max-ind-range", values, whole=True))
    rows = _dashes("arch-embedding-size", values)
    return tuple(min(count, most) for count in rows) if most > 0 else rows


def _bits(values: dict[str, str]) -> int:
    bits = int(_number("quantize-emb-with-bit", values, whole=True))
    if bits not in (4, 8, 16, 32):
        raise UnknownArgument(f"--quantize-emb-with-bit={bits}: rows have 32, 16, 8 or 4", ("quantize-emb-with-bit",))
    return bits


def _inputs(values: dict[str, str], lookups: int) -> Inputs:
    fixed = _FLAG_VALUES.get(values["num-indices-per-lookup-fixed"].lower())
    if fixed is None:
        name = "num-indices-per-lookup-fixed"
        raise UnknownArgument(f"--{name}={values[name]}: true or false", (name,))
    distribution = values["rand-data-dist"]
    if distribution not in ("uniform", "gaussian"):
        raise UnknownArgument(f"--rand-data-dist={distribution}: uniform or gaussian", ("rand-data-dist",))
    batch = int(_number("mini-batch-size", values, whole=True))
    batches = int(_number("num-batches", values, whole=True))
    samples = int(_number("data-size", values, whole=True))
    chosen: Any = distribution
    return Inputs(
        lookups=lookups,
        fixed=fixed,
        batch=batch,
        batches=batches or -(-samples // max(batch, 1)),
        generation=values["data-generation"],
        distribution=chosen,
        mean=_number("rand-data-mu", values, whole=False),
        deviation=_number("rand-data-sigma", values, whole=False),
        trace=values["data-trace-file"],
        seed=int(_number("numpy-rand-seed", values, whole=True)),
    )
