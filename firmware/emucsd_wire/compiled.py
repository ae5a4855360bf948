"""How the data plane is compiled: three ways to declare a function.

- ``jit``: an ordinary compiled function. Its callers get a copy of its code, and LLVM optimises that copy again in each
  of them and in each of their callers: right for small and middling functions;
- ``jit_inline``: a one-liner that LLVM must inline;
- ``jit_unit``: a compilation unit of its own. It is optimised once and called by its symbol, as C calls a function
  of another file. The large functions at the borders between parts are units: without them most of a first start
  would go into optimising the same code again at every level above it.

All are free of the GIL, cached on disk and divide as C does. Arguments are State pointers and int64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.extending import _Intrinsic

from emucsd_wire.layout import State

F = TypeVar("F", bound=Callable[..., Any])

# LLVM's code generator moves address arithmetic next to its use, as pointer plus offset, and takes any of an address's
# summands for the pointer. Numba hands what has been through it to callers, and optimises it again there: where such a
# summand is 0 (a row's offset, say), LLVM sees an access to a null pointer, and drops it. So: sums of integers.
llvm.set_option("emucsd", "-addr-sink-using-gep=0")

_records: dict[type, Any] = {}
_units: dict[int, Unit] = {}  # by id of the function that callers name


def record_type(layout: type, dtype: np.dtype[Any] | None = None) -> Any:
    """Numba's type of a layout. Raw bytes are no field in compiled code.

    :param dtype: for layouts other than States, whose Codec has it: to be given once, by ``pointer_to``
    """
    if dtype is None and issubclass(layout, State):
        dtype = layout.dtype
    if layout not in _records:
        if dtype is None:
            raise TypeError(f"{layout.__name__} has no pointer yet; call pointer_to({layout.__name__}, …) first")
        fields = [(n, *spec[:2]) for n, spec in (dtype.fields or {}).items() if not _raw(spec[0])]
        names, formats, offsets = zip(*fields, strict=True)
        shape: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize}
        _records[layout] = numba.from_dtype(np.dtype(shape, align=dtype.isalignedstruct))
    return _records[layout]


def _raw(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "V" and dtype.names is None and dtype.subdtype is None


def jit(function: F) -> F:
    """Compile for the data plane."""
    compiled: F = numba.njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)(function)
    return _linked(_one_version(compiled))


def jit_inline(function: F) -> F:
    """As ``jit``, for one-liners: LLVM is told to inline them wherever they are called."""
    compiled: F = numba.njit(nogil=True, cache=True, error_model="numpy", boundscheck=False, forceinline=True)(function)
    return _linked(_one_version(compiled))


def jit_unit(function: F) -> F:
    """As ``jit``, but compiled apart and called by symbol."""
    unit = Unit(function)
    called: F = unit.callable()
    _units[id(called)] = unit
    return called


def _one_version(compiled: F) -> F:
    """Calls with constants and with narrow fields use the int64 version.

    Numba would compile the function, and all that it calls, once more for each constant and each width that it is
    called with: most of the time of a first start, for no gain, since LLVM propagates constants anyway.
    """
    dispatcher: Any = compiled
    original = dispatcher.get_call_template

    def widened(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        return original(tuple(_wide_type(a) for a in args), {name: _wide_type(a) for name, a in kws.items()})

    dispatcher.get_call_template = widened
    return compiled


def _wide_type(kind: Any) -> Any:
    kind = types.unliteral(kind)
    return types.int64 if isinstance(kind, types.Integer) and kind.bitwidth < 64 else kind


def _linked(compiled: F) -> F:
    """Before code is compiled, or loaded from the cache, the units that it calls must have their symbols."""
    dispatcher: Any = compiled
    original = dispatcher.compile

    def compile_linked(signature: Any) -> Any:
        for unit in _called_units(dispatcher.py_func, set()):
            unit.link()
        return original(signature)

    dispatcher.compile = compile_linked
    return compiled


def _called_units(function: Any, seen: set[int]) -> Iterator[Unit]:
    """Units that a Python function names, directly or through other compiled functions, modules or its closure.

    Code that comes from the cache is not looked at by the compiler: whatever it calls must be found here, or its call
    would go to address 0.
    """
    for value in _named_values(function):
        if id(value) in seen:
            continue
        seen.add(id(value))
        if id(value) in _units:
            yield _units[id(value)]
        elif hasattr(value, "py_func"):
            yield from _called_units(value.py_func, seen)


def _named_values(function: Any) -> Iterator[Any]:
    names = function.__code__.co_names
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    for value in found:
        if isinstance(value, ModuleType):
            found += [vars(value)[name] for name in names if name in vars(value)]  # module.function
    yield from found
    for cell in function.__closure__ or ():
        yield cell.cell_contents


class _Called(_Intrinsic):  # type: ignore[misc]
    """What stands in a unit's place in its module: an intrinsic for compiled code, the function itself for Python."""

    unit: Unit

    def __call__(self, *arguments: Any) -> Any:
        return self.unit.run(*arguments)


class Unit:
    """One separately compiled function: its dispatcher, its symbol, and the call that its users compile."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.symbol = f"emucsd.{function.__module__}.{function.__name__}"
        self._dispatcher: Any = jit(function)
        self._result: Any = None

    def _arguments(self) -> tuple[Any, ...]:
        hints = get_type_hints(self.function)
        hints.pop("return", None)
        return tuple(types.int64 if kind is int else record_type(kind) for kind in hints.values())

    def link(self) -> Any:
        """Compile (or load) it if that has not been done, and publish its address. :returns: its result's type"""
        if self._result is None:
            arguments = self._arguments()
            self._dispatcher.compile(arguments)
            compiled = self._dispatcher.overloads[arguments]
            address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
            llvm.add_symbol(self.symbol, address)
            self._result = compiled.signature.return_type
        return self._result

    def run(self, *arguments: Any) -> Any:
        """Call it from Python, as tests do; State pointers are np.void views."""
        self.link()
        return self._dispatcher(*arguments)

    def callable(self) -> Any:
        """What takes the function's place in its module."""

        def typed(*given: Any) -> Any:
            result = self.link()
            arguments = self._arguments()
            if len(given) != len(arguments):
                raise TypeError(f"{self.symbol} takes {len(arguments)} arguments, {len(given)} were given")
            return result(*arguments), self._call

        names = ", ".join(f"a{i}" for i in range(self.function.__code__.co_argcount))
        scope: dict[str, Any] = {"typed": typed}
        exec(f"def {self.function.__name__}(typingctx, {names}): return typed({names})", scope)  # numba wants names
        called = _Called(self.function.__name__, scope[self.function.__name__])
        called.unit = self
        called._register()
        return called

    def _call(self, context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = context.call_conv.get_function_type(signature.return_type, signature.args)
        function = cgutils.get_or_insert_function(builder.module, kind, self.symbol)
        _, result = context.call_conv.call_function(builder, function, signature.return_type, signature.args, args)
        return result
