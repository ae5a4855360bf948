"""Import PyTorch in half the time, for programs that train on an emulated processor.

On the emulated Cortex-A53 of a drive's machine ``import torch`` takes 27 s of processor time, the first optimizer 8 s
more. Much of it is for the compiler (``torch.compile``), for tensors without storage (the ``meta`` device) and for
quantisation, which training does not use. ``start()`` leaves those out: 11 s, and 0 s. Whoever asks for them gets them
then, late.
"""

from __future__ import annotations

import gc
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LEFT_OUT = ("torch._meta_registrations", "torch._dynamo", "torch.quantization")  # the second needs the first


class _Late(types.ModuleType):
    """Stands where a module belongs, and becomes it when something is asked for that it does not have."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # what the import system asks of every module
            raise AttributeError(f"module {self.__name__} has no attribute {name}: it was left out by torchstart")
        complete()
        return getattr(sys.modules[self.__name__], name)


def start() -> Any:
    """Import PyTorch without what training does not use; nothing changes where it is imported already.

    :returns: the module ``torch``
    :raises ModuleNotFoundError: it is not installed
    """
    if "torch" in sys.modules:
        return sys.modules["torch"]
    late = {name: _Late(name) for name in _LEFT_OUT}
    # what Optimizer calls of it, compiled or not
    vars(late["torch._dynamo"]).update(graph_break=_nothing, disable=_as_it_is)
    sys.modules.update(late)
    try:
        with _no_garbage():
            torch: Any = importlib.import_module("torch")
    except BaseException:
        for name in late:
            sys.modules.pop(name, None)
        raise
    for name, module in late.items():
        setattr(torch, name.rpartition(".")[2], module)
    if not hasattr(torch, "ao"):  # comes with quantisation, which is now a part of it
        torch.ao = _Late("torch.ao")
    _let_generators_be(torch)
    return torch


def _let_generators_be(torch: Any) -> None:
    """PyTorch 2.13 makes its Generator usable in a module that only the compiler imports."""
    try:
        torch.Generator()
    except RuntimeError:
        importlib.import_module("torch._prims.rng_prims")


def complete() -> None:
    """Import what ``start`` left out. Happens by itself when something of it is used, as far as that can be seen."""
    for name in _LEFT_OUT:
        if isinstance(sys.modules.get(name), _Late):
            del sys.modules[name]
            importlib.import_module(name)


def _nothing(*_: Any, **__: Any) -> None:
    """Without a compiler there is no graph to break."""


def _as_it_is(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """Without a compiler a function needs no protection from it."""
    return function if function is not None else _as_it_is


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Collections would walk over all that was imported, again and again, and find nothing: a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # modules stay: no later collection has to look at them
        if was:
            gc.enable()
