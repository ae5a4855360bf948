"""The policies in force: plain Python functions, compiled with the rest of the firmware.

``gc_score`` (which block to empty), ``pick_die`` and ``stream_of`` (where pages go), ``schedule`` (which class of
traffic a die serves next), ``admit`` (which rows the lookup engine's hot cache takes). The defaults are in
``emucsd_firmware.policies``. The variable EMUCSD_FIRMWARE names a Python file whose functions of the same names and
parameters take their place; see docs/policies.md.

They are bound at import, never passed as arguments: a function argument would be compiled again in every process.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from emucsd_firmware.build import POLICY_VARIABLE
from emucsd_firmware.errors import ProfileError
from emucsd_firmware.policies import allocation, caching, collection
from emucsd_firmware.policies import schedule as scheduling
from emucsd_wire.words import jit

MODULE = "emucsd_user_policy"
DEFAULTS: dict[str, Callable[..., Any]] = {
    "gc_score": collection.gc_score,
    "pick_die": allocation.pick_die,
    "stream_of": allocation.stream_of,
    "schedule": scheduling.schedule,
    "admit": caching.admit,
}


class PolicyError(ProfileError):
    """The user's policy file can't be used: not there, not Python, or a function of it has other parameters."""


def load(path: Path) -> ModuleType:
    """Run a policy file as a module. :raises PolicyError: it isn't there, or it raises"""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise PolicyError(f"{POLICY_VARIABLE} = {path}: no such Python file; give the path of a file named *.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except Exception as exc:
        raise PolicyError(f"{POLICY_VARIABLE} = {path}: {type(exc).__name__}: {exc}; correct the file") from exc
    return module


def chosen(name: str, module: ModuleType | None) -> Callable[..., Any]:
    """The user's function of this name, else the default; not yet compiled.

    :raises PolicyError: it is no function, or its parameters are not the default's
    """
    default = DEFAULTS[name]
    function = getattr(module, name, default) if module is not None else default
    function = getattr(function, "py_func", function)
    if not inspect.isfunction(function):
        raise PolicyError(f"{name} = {function!r} in {module}: must be a function; define it with def")
    wanted, given = list(inspect.signature(default).parameters), list(inspect.signature(function).parameters)
    if len(given) != len(wanted):
        raise PolicyError(
            f"{name}({', '.join(given)}) in {function.__code__.co_filename}: takes {len(given)} parameters, must take "
            f"{len(wanted)}: ({', '.join(wanted)}); see docs/policies.md"
        )
    return function


def _user_module() -> ModuleType | None:
    path = os.environ.get(POLICY_VARIABLE)
    return load(Path(path)) if path else None


_user = _user_module()
gc_score: Callable[[int, int, int, int], float] = jit(chosen("gc_score", _user))
pick_die: Callable[..., int] = jit(chosen("pick_die", _user))
stream_of: Callable[[int, int, int], int] = jit(chosen("stream_of", _user))
schedule: Callable[[int, int, int, int, int, int, int], int] = jit(chosen("schedule", _user))
admit: Callable[[int, int, int], bool] = jit(chosen("admit", _user))


def source(name: str) -> str:
    """File and line of the policy in force, for people. :raises KeyError: no policy of this name"""
    function = chosen(name, _user) if name in DEFAULTS else DEFAULTS[name]
    return f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
