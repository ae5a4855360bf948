"""docs/wire.md, made from the declarations: `python -m emucsd_wire.reference docs/wire.md`.

Every module of this package that declares a layout, an enumeration or a constant becomes a section: its docstring, then
its declarations in source order. The comment behind a field or a member is its description.
"""

from __future__ import annotations

import ast
import importlib
import io
import pkgutil
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import emucsd_wire
from emucsd_wire.layout import Codec

_FIRST = "nvme registers identify logs features vendor rm recssd tunnel vfio_user"  # in reading order
FIRST = tuple(_FIRST.split())
SILENT = ("compiled", "layout", "paths", "reference", "words")  # no wire format in them

HEAD = """\
# Wire format

Generated from the declarations in `firmware/emucsd_wire` by `python -m emucsd_wire.reference docs/wire.md`; a test
keeps it up to date. Everything is little-endian and packed. Offsets and sizes are in bytes, bit ranges are `high:low`.
"""


def names() -> list[str]:
    """Modules that are documented, in reading order."""
    found = {module.name for module in pkgutil.iter_modules(emucsd_wire.__path__)} - set(SILENT)
    return [name for name in FIRST if name in found] + sorted(found - set(FIRST))


def comments(source: str) -> dict[int, str]:
    """Line number -> the comment that follows code on that line."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
            found[token.start[0]] = token.string.lstrip("# ").strip()
    return found


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; a column that is empty in every row is left out."""
    keep = [n for n in range(len(head)) if any(row[n] for row in rows)]
    lines = [tuple(head[n] for n in keep), tuple("---" for _ in keep)]
    lines += [tuple(row[n].replace("|", "\\|") for n in keep) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def type_name(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "V":
        return "bytes"
    return {"u": "unsigned", "i": "signed", "f": "float"}[dtype.kind]


def layout_section(node: ast.ClassDef, codec: Codec[Any], notes: dict[int, str]) -> str:
    lines = {ast.unparse(n.target): n.lineno for n in node.body if isinstance(n, ast.AnnAssign)}
    rows = [
        (f"{f.offset}", f"{f.dtype.itemsize}", f"`{f.name}`", type_name(f.dtype), notes.get(lines.get(f.name, 0), ""))
        for f in codec
    ]
    title = f"### {node.name} ({codec.size} bytes)"
    return "\n\n".join([title, *docstring(node), table(("offset", "size", "field", "type", ""), rows)])


def enum_section(node: ast.ClassDef, kind: type[Enum], notes: dict[int, str]) -> str:
    lines = {ast.unparse(n.targets[0]): n.lineno for n in node.body if isinstance(n, ast.Assign)}
    rows = [
        (f"{member.value:#x}" if isinstance(member.value, int) else str(member.value), f"`{name}`", notes.get(line, ""))
        for name, line in lines.items()
        if (member := kind.__members__.get(name)) is not None
    ]
    return "\n\n".join([f"### {node.name}", *docstring(node), table(("value", "name", ""), rows)])


def docstring(node: ast.ClassDef) -> list[str]:
    text = ast.get_docstring(node)
    return [text] if text else []


def constant_rows(node: ast.stmt, module: ModuleType, notes: dict[int, str]) -> Iterator[tuple[str, ...]]:
    """`NAME = 0x10  # meaning`, one or several to a line."""
    if not isinstance(node, ast.Assign):
        return
    targets = [t for target in node.targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
    for target in targets:
        name = target.id if isinstance(target, ast.Name) else ""
        value = getattr(module, name, None)
        if name.isupper() and not name.startswith("_") and type(value) in (int, str):
            shown = f"{value} ({value:#x})" if isinstance(value, int) and value > 9 else repr(value)
            yield shown, f"`{name}`", notes.get(node.end_lineno or node.lineno, "")


def section(name: str) -> str:
    """One module's part of the page, or nothing when it declares nothing."""
    module = importlib.import_module(f"emucsd_wire.{name}")
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    notes = comments(source)
    codecs = {codec.layout: codec for codec in vars(module).values() if isinstance(codec, Codec)}
    parts: list[str] = []
    constants: list[tuple[str, ...]] = []
    for node in ast.parse(source).body:
        constants += constant_rows(node, module, notes)
        if not isinstance(node, ast.ClassDef):
            continue
        kind = getattr(module, node.name)
        if kind in codecs:
            parts.append(layout_section(node, codecs[kind], notes))
        elif isinstance(kind, type) and issubclass(kind, Enum):
            parts.append(enum_section(node, kind, notes))
    if constants:
        parts.append("### Constants\n\n" + table(("value", "name", ""), constants))
    if not parts:
        return ""
    title = f"## `emucsd_wire.{name}`"
    return "\n\n".join([title, textwrap.dedent(module.__doc__ or "").strip(), *parts])


def page() -> str:
    """The whole of docs/wire.md."""
    sections = filter(None, map(section, names()))
    return "\n\n".join([HEAD.strip(), *sections]) + "\n"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
