"""Binary layouts, declared once.

A layout is a class whose annotations carry the field widths. Two kinds:

- a *wire* layout is a ``NamedTuple`` of little-endian, packed fields (NVMe and vfio-user structures). ``Codec``
  gives it bytes in and out, a NumPy dtype, and the offsets that docs and tests use;
- a *state* layout derives from ``State``: aligned, mutable, lives in memory that compiled code and Python share.

``pointer(layout)`` is how compiled code reaches either: ``die_at = pointer(Die)`` and then ``die_at(address, 3).busy``
is one load. Inside the data plane every wide integer is *signed* 64-bit: Numba turns a mix of signed and unsigned
64-bit operands into float64 without a word.

NumPy is loaded by the first dtype that is asked for: programs that only pack and unpack do without it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
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


def _no_width(owner: type, name: str, hint: Any) -> TypeError:
    return TypeError(f"{owner.__name__}.{name}: {hint!r} says no width; use U32, I64, Annotated[..., Raw(n)] …")


def _field_format(owner: type, name: str, hint: Any) -> str:
    """The ``struct`` format of a wire field."""
    marker = get_args(hint)[1] if get_origin(hint) is Annotated else None
    if isinstance(marker, Array):
        raise TypeError(f"{owner.__name__}: arrays belong to state layouts; use Raw(n) on the wire")
    if isinstance(marker, Raw):
        return f"{marker.size}s"
    if isinstance(marker, str):
        return _FORMATS[marker]
    raise _no_width(owner, name, hint)


def _field_dtype(owner: type, name: str, hint: Any) -> Any:
    import numpy as np

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
    raise _no_width(owner, name, hint)


def _layout(owner: type, hints: dict[str, Any], *, align: bool) -> np.dtype[Any]:
    import numpy as np

    return np.dtype([(name, _field_dtype(owner, name, hint)) for name, hint in hints.items()], align=align)


class State:
    """Base of state layouts. ``State.dtype`` is the aligned NumPy dtype; nested states become nested records."""

    if TYPE_CHECKING:  # no field of the layout
        dtype: np.dtype[Any]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.dtype = _layout(cls, get_type_hints(cls, include_extras=True), align=True)


T = TypeVar("T")
W = TypeVar("W", bound=tuple[Any, ...])


class Codec(Generic[W]):
    """Bytes in and out for one wire layout.

    :param layout: a NamedTuple class whose annotations are widths of this module
    :param size: the size that the specification states; a different sum is a TypeError at import
    """

    def __init__(self, layout: type[W], size: int) -> None:
        self.layout = layout
        self._hints: dict[str, Any] = get_type_hints(layout, include_extras=True)
        self._offsets: dict[str, int] = {}
        formats, at = "<", 0
        for name, hint in self._hints.items():
            self._offsets[name] = at
            formats += _field_format(layout, name, hint)
            at = struct.calcsize(formats)
        self.size = size
        if at != size:
            raise TypeError(f"{layout.__name__} is {at} bytes, its specification says {size}")
        self._struct = struct.Struct(formats)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype, packed."""
        return _layout(self.layout, self._hints, align=False)

    def __iter__(self) -> Iterator[Field]:
        fields: dict[str, Any] = dict(self.dtype.fields or {})
        for name, offset in self._offsets.items():
            yield Field(name, fields[name][0], offset)

    def offset(self, name: str) -> int:
        """Byte offset of a field. :raises KeyError: no such field."""
        return self._offsets[name]

    def pack(self, value: W) -> bytes:
        """``size`` bytes. Never use it on memory that a guest polls: struct zeroes the target before it fills it."""
        return self._struct.pack(*value)

    def unpack(self, data: bytes | bytearray | memoryview, offset: int = 0) -> W:
        """:raises struct.error: fewer than ``size`` bytes at ``offset``."""
        make: Callable[[Any], W] = self.layout._make  # type: ignore[attr-defined]
        return make(self._struct.unpack_from(data, offset))
