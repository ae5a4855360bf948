"""Errors of the client library: names, texts, and the tree that its docstring draws."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from emucsd import errors
from emucsd.errors import (
    EmucsdError,
    InvalidCommand,
    LbaOutOfRange,
    LookupRefused,
    NvmeError,
    UnrecoveredRead,
    error_for,
    status_name,
)
from emucsd_wire.nvme import DNR, Status


@pytest.mark.parametrize("status", [s for s in Status if s])
def test_every_status_has_a_typed_error(status: Status) -> None:
    """Any status of the declarations makes an error that names it and says its two numbers."""
    error = error_for("READ lba 5", status | DNR, 7)
    assert (error.status, error.sct, error.sc, error.dw0, error.dnr) == (status, status >> 8, status & 0xFF, 7, True)
    assert error.name == status.name
    assert str(error).startswith(f"READ lba 5: {status.name} (SCT {error.sct:#x}, SC {error.sc:#04x}, dw0 0x7)")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.INVALID_OPCODE, InvalidCommand),
        (Status.LBA_OUT_OF_RANGE, LbaOutOfRange),
        (Status.UNRECOVERED_READ, UnrecoveredRead),
        (Status.LOOKUP_INDEX_RANGE, LookupRefused),
        (Status.SANITIZE_IN_PROGRESS, NvmeError),
    ],
)
def test_common_statuses_have_classes(status: Status, kind: type[NvmeError]) -> None:
    """Statuses that callers tell apart have classes of their own."""
    assert type(error_for("X", status)) is kind


def test_unknown_status() -> None:
    """A status that no declaration knows is told by its numbers."""
    assert status_name(0x3FE) == "SCT 0x3 SC 0xfe"
    assert error_for("X", 0x3FE).name == "SCT 0x3 SC 0xfe"


def test_survives_pickling() -> None:
    """Errors cross process borders whole."""
    error = error_for("READ", Status.LBA_OUT_OF_RANGE | DNR, 3, index=9)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is LbaOutOfRange
    assert (str(again), again.dnr, again.index, again.dw0) == (str(error), True, 9, 3)


def test_tree_is_as_drawn() -> None:
    """The docstring's tree lists the classes of the module, each below its base."""
    drawn: list[tuple[str, int]] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│├└─ ]*)(\w+)  ", line):
            drawn.append((found[2], len(found[1])))
    classes = {n: c for n, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, EmucsdError)}
    assert {name for name, _ in drawn} <= set(classes)
    assert set(classes) <= {name for name, _ in drawn}
    above: list[tuple[str, int]] = []
    for name, depth in drawn:
        while above and above[-1][1] >= depth:
            above.pop()
        if above:
            assert classes[name].__bases__[0].__name__ == above[-1][0]
        above.append((name, depth))
