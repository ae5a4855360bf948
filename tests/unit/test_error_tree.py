"""All errors of the client library are in one place."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

import emucsd
from emucsd import errors
from tests.unit.test_imports import LOADS_TORCH


def all_errors(kind: type[Exception] = errors.EmucsdError) -> Iterator[type[Exception]]:
    for child in kind.__subclasses__():
        yield child
        yield from all_errors(child)


def test_every_error_is_found() -> None:
    """Whatever error a module of the library declares, ``emucsd.errors`` has it by its name."""
    for module in pkgutil.walk_packages(emucsd.__path__, "emucsd."):
        needs_torch = module.name.startswith(LOADS_TORCH) and not module.name.endswith(".errors")
        if not module.name.endswith("__main__") and not (needs_torch and find_spec("torch") is None):
            importlib.import_module(module.name)
    ours = [kind for kind in all_errors() if kind.__module__.startswith("emucsd.")]
    assert len(ours) > 50
    lacking = [
        f"{kind.__module__}.{kind.__name__}" for kind in ours if getattr(errors, kind.__name__, None) is not kind
    ]
    assert not lacking, f"name their modules in emucsd.errors._PARTS: {', '.join(lacking)}"


def test_a_part_s_error() -> None:
    """An error of a part is the same class from either place, and what is none is no attribute."""
    from emucsd.volume import VolumeFull

    found = getattr(errors, VolumeFull.__name__)
    assert found is VolumeFull
    assert pickle.loads(pickle.dumps(found("no room"))).args == ("no room",)
    for name in ("NoSuchError", "Namespace", "no_such_function"):
        with pytest.raises(AttributeError, match=name):
            getattr(errors, name)
