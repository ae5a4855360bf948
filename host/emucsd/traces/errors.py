"""Errors of trace files: whose line, and which field of it."""

from __future__ import annotations

from pathlib import Path

from emucsd.errors import EmucsdError


class TraceError(EmucsdError):
    """A trace cannot be had as asked."""


class TraceFormat(TraceError, ValueError):
    """A file is not in the format that it is read as.

    :ivar path: the file
    :ivar line: its line, from 1 on; None: the file as a whole
    :ivar field: the field's name, or its number from 1 on; None: the whole line
    """

    def __init__(self, path: str | Path, text: str, *, line: int | None = None, field: str | int | None = None) -> None:
        self.path, self.line, self.field = str(path), line, field
        where = "" if line is None else f", line {line}"
        where += "" if field is None else f", field {field}"
        super().__init__(f"{path}{where}: {text}")
        self._text = text

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.path, self._text, self.line, self.field)


class TraceNeedsTorch(TraceError, ImportError):
    """A file of PyTorch's, where PyTorch is not installed."""


def _rebuild(path: str, text: str, line: int | None, field: str | int | None) -> TraceFormat:
    return TraceFormat(path, text, line=line, field=field)
