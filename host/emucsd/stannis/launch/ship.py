"""The user's own code, taken along to every node: the file that a factory lies in, or the modules around it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from emucsd.stannis.errors import FactoryFailed

_OURS = "emucsd"
_MOST_FILES, _MOST_BYTES = 256, 4 << 20


def shipped(names: Iterable[str]) -> tuple[dict[str, str], dict[str, bytes | Path]]:
    """What nodes need besides what is installed there.

    :param names: factory, loss, optimizer, transform: ``module:function`` or ``path/file.py:function``; others
        (``sgd``) are ours
    :returns: each name as it is to be called on a node, in whose working folder the files lie; and these files
    :raises FactoryFailed: there is no such file or module
    """
    called: dict[str, str] = {}
    files: dict[str, bytes | Path] = {}
    for name in names:
        where, colon, function = name.rpartition(":")
        if not colon:
            called[name] = name
        elif where.endswith(".py"):
            path = Path(where)
            if not path.is_file():
                raise FactoryFailed(f"{where}: no such file; give path/file.py:function, or module:function")
            called[name] = f"{path.name}:{function}"
            files |= _beside(path)
        else:
            called[name] = name
            files |= _modules(where.partition(".")[0])
    return called, files


def _beside(path: Path) -> dict[str, bytes | Path]:
    """A file, and modules in its folder that it may import: those that it names."""
    found: dict[str, bytes | Path] = {path.name: path}
    text = path.read_text(errors="replace")
    for other in path.parent.glob("*.py"):
        if other != path and any(f"{word} {other.stem}" in text for word in ("import", "from")):
            found[other.name] = other
    return found


def _modules(top: str) -> dict[str, bytes | Path]:
    """A module or package of the user's, found from where they are; nothing for what is installed."""
    if top == _OURS or top in sys.stdlib_module_names:
        return {}
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # where `python -m` would find it
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError) as problem:
        raise FactoryFailed(f"module {top}: {problem}") from problem
    if found is None:
        raise FactoryFailed(f"there is no module {top!r} here; start where it lies, or give path/file.py:function")
    origin = Path(found.origin) if found.origin else None
    if origin is None or not origin.is_relative_to(here) or "site-packages" in origin.parts:
        return {}
    if found.submodule_search_locations is None:
        return {origin.name: origin}
    files = [path for path in sorted(origin.parent.rglob("*.py")) if "site-packages" not in path.parts]
    if len(files) > _MOST_FILES or sum(path.stat().st_size for path in files) > _MOST_BYTES:
        raise FactoryFailed(
            f"package {top} in {origin.parent} has {len(files)} files; {_MOST_FILES} files of {_MOST_BYTES >> 20} MiB "
            "in all can be taken along: put the network into a module of its own"
        )
    return {str(path.relative_to(origin.parents[1])): path for path in files}
