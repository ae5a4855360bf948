"""Who may import whom, read from the sources: no step of the drive calls back up."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOMES = {
    "emucsd_wire": "firmware",
    "emucsd_firmware": "firmware",
    "emucsd_agent": "firmware",
    "emucsd_images": "images",
    "emucsd_femu": "femu",
    "emucsd": "host",
}

# package -> the packages of this distribution that it may import
PACKAGES = {
    "emucsd_wire": {"emucsd_wire"},
    "emucsd_firmware": {"emucsd_wire", "emucsd_firmware"},
    "emucsd_images": {"emucsd_wire", "emucsd_images"},
    "emucsd_femu": {"emucsd_wire", "emucsd_firmware", "emucsd_images", "emucsd_femu"},
    "emucsd": {"emucsd_wire", "emucsd"},
    "emucsd_agent": {"emucsd_wire", "emucsd", "emucsd_agent"},
}

# part of the firmware -> what it must not know (folders and modules of emucsd_firmware)
STEPS_ABOVE = {
    "memory": {"nvme", "ftl", "nand", "lookup", "drive", "plane", "dataplane", "port", "controller", "subsystem"},
    "clock": {"nvme", "ftl", "nand", "lookup", "drive", "plane", "dataplane", "port", "controller", "subsystem"},
    "nand": {"nvme", "ftl", "lookup", "drive", "plane", "dataplane", "port", "controller", "subsystem"},
    "ftl": {"nvme", "lookup", "drive", "plane", "dataplane", "port", "controller", "subsystem"},
    "lookup": {"nvme", "drive", "plane", "dataplane", "port", "controller", "subsystem"},
    "session": {"nvme", "ftl", "nand", "drive", "plane", "dataplane", "port", "controller", "subsystem"},
    "tunnel": {"nvme", "ftl", "nand", "lookup", "drive", "plane", "dataplane", "port", "controller", "subsystem"},
    "nvme": {"plane", "dataplane", "port"},
    "dataplane": {"plane", "port", "controller"},
}

# package -> modules outside of the distribution that it must not import
FORBIDDEN = {
    "emucsd_wire": {"socket", "socketserver", "asyncio", "multiprocessing", "torch", "matplotlib"},
    "emucsd_firmware": {"socket", "socketserver", "asyncio", "multiprocessing", "subprocess", "torch", "matplotlib"},
    "emucsd_femu": {"torch", "matplotlib"},
}

# where torch may be imported at import: nothing that the command line or a coordinator loads
LOADS_TORCH = ("emucsd.torch.", "emucsd.stannis.training.", "emucsd.stannis.models.", "emucsd.stannis.group.gloo")


class Import(NamedTuple):
    """One import statement: the module that is imported, and where."""

    module: str
    line: int


def sources() -> dict[str, Path]:
    """Dotted name -> file, over all packages."""
    found: dict[str, Path] = {}
    for package, home in HOMES.items():
        for path in sorted((ROOT / home / package).rglob("*.py")):
            parts = path.relative_to(ROOT / home).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, without those under `if TYPE_CHECKING`: annotations couple nothing at run time."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from statements(child)


@functools.cache
def imports(name: str) -> list[Import]:
    """Everything that a module imports, `from package import module` resolved to the module."""
    found = []
    for node in statements(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
            continue
        base = node.module or ""
        if node.level:
            parent = name.split(".") if SOURCES[name].name == "__init__.py" else name.split(".")[:-1]
            base = ".".join([*parent[: len(parent) - node.level + 1], *([base] if base else [])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            found.append(Import(inner if inner in SOURCES else base, node.lineno))
    return found


def edges() -> dict[str, set[str]]:
    """Module -> modules of the distribution that it imports."""
    return {name: {i.module for i in imports(name) if i.module in SOURCES and i.module != name} for name in SOURCES}


def part(module: str) -> str:
    """`emucsd_firmware.nand.timing` -> `nand`; empty outside of the firmware."""
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "emucsd_firmware" and len(pieces) > 1 else ""


@pytest.mark.parametrize("name", SOURCES)
def test_package_rule(name: str) -> None:
    """wire < firmware < femu and wire < host: no package imports one above or beside it."""
    allowed = PACKAGES[name.split(".")[0]]
    for module, line in imports(name):
        top = module.split(".")[0]
        assert top not in HOMES or top in allowed, f"{SOURCES[name]}:{line} imports {module}"


@pytest.mark.parametrize("name", SOURCES)
def test_outside_rule(name: str) -> None:
    """The drive knows no socket, no process and no torch."""
    forbidden = FORBIDDEN.get(name.split(".")[0], set())
    for module, line in imports(name):
        assert module.split(".")[0] not in forbidden, f"{SOURCES[name]}:{line} imports {module}"


@pytest.mark.parametrize("name", [n for n in SOURCES if part(n) in STEPS_ABOVE])
def test_no_step_calls_back_up(name: str) -> None:
    """nand/ knows not who asked, lookup/ knows no NVMe, nothing below the data plane knows it."""
    above = STEPS_ABOVE[part(name)]
    for module, line in imports(name):
        assert part(module) not in above, f"{SOURCES[name]}:{line} imports {module}"


def test_no_cycles() -> None:
    """Modules import each other in one direction only."""
    graph = edges()
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(graph[name]):
            visit(target)
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_command_line_starts_light() -> None:
    """`import emucsd` pulls in neither torch nor matplotlib: they are loaded where they are used."""
    heavy = {"torch", "matplotlib"}
    for name, path in SOURCES.items():
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = heavy & {n.split(".")[0] for n in names}
            assert not found or name.startswith(LOADS_TORCH), (
                f"{path}:{node.lineno} imports {', '.join(found)} at import"
            )
