"""Numbers of a model with their reasons: TOML files in which each value stands once."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

SURE = ("published", "derived", "recalled", "calibrated", "chosen")
"""How sure a value is: stands in the paper; follows from what stands there; remembered from a publication and not
checked against it; solved for from published figures; ours, published nowhere."""


class Parameter(NamedTuple):
    """One value, and why it is that."""

    name: str
    value: float
    unit: str
    what: str
    reason: str
    sure: str


@cache
def load_parameters(package: str, name: str) -> dict[str, Parameter]:
    """All parameters of a file of the package, by name."""
    return make_parameters(name, tomllib.loads(files(package).joinpath(name).read_text(encoding="utf-8")))


def make_parameters(name: str, document: dict[str, Any]) -> dict[str, Parameter]:
    """Parameters of a table of tables.

    :param name: of the file, for the text of an error
    :raises KeyError: a parameter lacks a field
    """
    found = {}
    for key, one in document.items():
        assert one["sure"] in SURE, f"{name}: {key}: sure is {one['sure']!r}, not one of {', '.join(SURE)}"
        found[key] = Parameter(key, float(one["value"]), one["unit"], one["what"], one["reason"], one["sure"])
    return found
