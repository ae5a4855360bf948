"""What the documents say can be done, can be done: links lead somewhere, commands parse, examples compile."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from emucsd.cli.main import commands, make_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def code(page: Path, language: str) -> str:
    """All code blocks of a language, one after the other."""
    return "\n".join(
        re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )


@PAGE
def test_links(page: Path) -> None:
    """Every relative link and picture leads to a file."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@PAGE
def test_commands(page: Path) -> None:
    """Every `emucsd` command line in a shell block is one that the parser takes."""
    for line in code(page, "sh").splitlines():
        if line.startswith("emucsd "):
            make_parser(commands()).parse_args(shlex.split(line, comments=True)[1:])


@PAGE
def test_python(page: Path) -> None:
    """Python blocks are Python."""
    ast.parse(code(page, "python"))


@PAGE
def test_scripts(page: Path) -> None:
    """Scripts that are named exist."""
    for name in re.findall(r"\bscripts/[\w.-]+\.sh", page.read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), f"{page.name} names {name}"
