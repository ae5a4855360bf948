"""docs/wire.md is what the declarations say."""

from __future__ import annotations

from pathlib import Path

from emucsd_wire import reference
from emucsd_wire.nvme import CQE, SQE

ROOT = Path(__file__).resolve().parents[2]


def test_up_to_date() -> None:
    """docs/wire.md equals what the generator makes of today's declarations."""
    stored = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    assert stored == reference.page(), "run: PYTHONPATH=firmware python -m emucsd_wire.reference docs/wire.md"


def test_layouts_are_listed_with_offsets() -> None:
    """A field's row holds its offset, its size and the comment behind its declaration."""
    page = reference.page()
    assert f"### Sqe ({SQE.size} bytes)" in page
    assert f"| {SQE.offset('prp1')} | 8 | `prp1` | unsigned | or the first half of SGL1 |" in page
    assert f"| {CQE.offset('status')} | 2 | `status` | unsigned | phase 0," in page


def test_every_declaring_module_is_a_section() -> None:
    """No module of wire declarations is left out of the page."""
    page = reference.page()
    for name in reference.names():
        assert f"## `emucsd_wire.{name}`" in page, name
