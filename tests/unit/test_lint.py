"""The whole tree is lint-clean, typed and small: pytest green is the whole gate."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = ("firmware", "host", "femu", "tests")
MODULE_LINES = 500
FUNCTION_LINES = 60


def modules() -> list[Path]:
    return [path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]


def scripts() -> list[Path]:
    found = [*ROOT.glob(".ci/*"), *ROOT.glob("scripts/**/*"), *ROOT.glob("images/**/*")]
    return sorted(p for p in found if p.is_file() and (p.suffix == ".sh" or p.read_bytes()[:9] == b"#!/bin/sh"))


def check(*argv: str) -> None:
    """Run a linter from this interpreter's environment; its output is the failure's text."""
    done = subprocess.run(argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"


def tool(name: str) -> str:
    """A linter of the `test` extra, or skip."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed beside {sys.executable}: pip install -e '.[test]' -c constraints.txt")
    return str(path)


def test_ruff() -> None:
    """No lint rule of pyproject.toml is broken."""
    check(tool("ruff"), "check", "--no-fix", "--quiet", "--output-format=concise", *TREES)


def test_format() -> None:
    """`ruff format` would change nothing."""
    check(tool("ruff"), "format", "--check", "--quiet", *TREES)


def test_types() -> None:
    """mypy --strict accepts every package and every test."""
    check(tool("mypy"))


def test_shell() -> None:
    """shellcheck accepts every script."""
    check(tool("shellcheck"), "-x", *map(str, scripts()))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_size(path: Path) -> None:
    """Modules stay under 500 lines and functions under 60."""
    text = path.read_text()
    assert len(text.splitlines()) <= MODULE_LINES, "too long for a module: split it by noun"
    long = [f"{name} ({lines} lines)" for name, lines in functions(ast.parse(text)) if lines > FUNCTION_LINES]
    assert not long, f"too long for a function: {', '.join(long)}"


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1
