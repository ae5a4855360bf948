"""Binary layouts, declared once.

A layout is a class whose annotations carry the field widths. Two kinds:

- a *wire* layout is a ``NamedTuple`` of little-endian, packed fields (NVMe and vfio-user structures). ``Codec``
  gives it bytes in and out, a NumPy dtype, and the offsets that docs and tests use;
- a *state* layout derives from ``State``: aligned, mutable, lives in memory that compiled code and Python share.

``pointer(layout)`` is how compiled code reaches either: ``die_at = pointer(Die)`` and then ``die_at(address, 3).busy``
is one load. Inside the data plane every wide integer is *signed* 64-bit: Numba turns a mix of signed and unsigned
64-bit operands into float64 without a word.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

U8 = Annotated[int, "u1"]
U16 = Annotated[int, "<u2"]
U32 = Annotated[int, "<u4"]
U64 = Annotated[int, "<u8"]
I32 = Annotated[int, "<i4"]
I64 = Annotated[int, "<i8"]
F64 = Annotated[float, "<f8"]

_FORMATS = {"u1": "B", "<u2": "H", "<u4": "I", "<u8": "Q", "<i4": "i", "<i8": "q", "<f8": "d"}


class Raw(NamedTuple):
    """Marks a field of raw bytes: ``serial: Annotated[bytes, Raw(20)]``."""

    size: int


class Array(NamedTuple):
    """Marks a fixed array of scalars: ``heads: Annotated[MutableSequence[int], Array("<i8", 3)]``."""

    scalar: str
    length: int


class Field(NamedTuple):
    """One field of a layout: its NumPy type and, for wire layouts, its byte offset."""

    name: str
    dtype: Any
    offset: int


def _field_dtype(owner: type, name: str, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, State):
        return hint.dtype
    if get_origin(hint) is Annotated:
        marker = get_args(hint)[1]
        if isinstance(marker, str):
            return np.dtype(marker)
        if isinstance(marker, Raw):
            return np.dtype((np.void, marker.size))
        if isinstance(marker, Array):
            return np.dtype((marker.scalar, (marker.length,)))
    raise TypeError(f"{owner.__name__}.{name}: {hint!r} says no width; use U32, I64, Annotated[..., Raw(n)] …")


def _layout(owner: type, *, align: bool) -> np.dtype[Any]:
    hints = get_type_hints(owner, include_extras=True)
    return np.dtype([(name, _field_dtype(owner, name, hint)) for name, hint in hints.items()], align=align)


class State:
    """Base of state layouts. ``State.dtype`` is the aligned NumPy dtype; nested states become nested records."""

    dtype: np.dtype[Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        hints = get_type_hints(cls, include_extras=True)
        hints.pop("dtype", None)
        cls.dtype = np.dtype([(n, _field_dtype(cls, n, h)) for n, h in hints.items()], align=True)


T = TypeVar("T")
W = TypeVar("W", bound=tuple[Any, ...])


class Codec(Generic[W]):
    """Bytes in and out for one wire layout.

    :param layout: a NamedTuple class whose annotations are widths of this module
    :param size: the size that the specification states; a different sum is a TypeError at import
    """

    def __init__(self, layout: type[W], size: int) -> None:
        self.layout = layout
        self.dtype = _layout(layout, align=False)
        self.size = size
        self._fields: dict[str, Any] = dict(self.dtype.fields or {})
        if self.dtype.itemsize != size:
            raise TypeError(f"{layout.__name__} is {self.dtype.itemsize} bytes, its specification says {size}")
        self._struct = struct.Struct("<" + "".join(self._format(f.dtype) for f in self))

    def _format(self, dtype: np.dtype[Any]) -> str:
        if dtype.kind == "V":
            return f"{dtype.itemsize}s"
        if dtype.subdtype is not None:
            raise TypeError(f"{self.layout.__name__}: arrays belong to state layouts; use Raw(n) on the wire")
        return _FORMATS[dtype.str.replace("|", "")]

    def __iter__(self) -> Iterator[Field]:
        for name in self.dtype.names or ():
            dtype, offset = self._fields[name][:2]
            yield Field(name, dtype, offset)

    def offset(self, name: str) -> int:
        """Byte offset of a field. :raises KeyError: no such field."""
        return int(self._fields[name][1])

    def pack(self, value: W) -> bytes:
        """``size`` bytes. Never use it on memory that a guest polls: struct zeroes the target before it fills it."""
        return self._struct.pack(*value)

    def unpack(self, data: bytes | bytearray | memoryview, offset: int = 0) -> W:
        """:raises struct.error: fewer than ``size`` bytes at ``offset``."""
        make: Callable[[Any], W] = self.layout._make  # type: ignore[attr-defined]
        return make(self._struct.unpack_from(data, offset))
