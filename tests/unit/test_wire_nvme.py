"""Wire structures lie where the specification puts their fields, and survive a round trip."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest

from emucsd_wire.layout import Codec
from emucsd_wire.nvme import Admin, Io, Status

DATA = Path(__file__).parents[1] / "data" / "nvme"
OFFSETS: dict[str, dict[str, dict[str, int]]] = tomllib.loads((DATA / "offsets.toml").read_text())
STRUCTURES = [(module, name) for module, structures in OFFSETS.items() for name in structures]


def codec(module: str, name: str) -> Codec[tuple[object, ...]]:
    found = getattr(importlib.import_module(f"emucsd_wire.{module}"), name)
    assert isinstance(found, Codec)
    return found


@pytest.mark.parametrize(("module", "name"), STRUCTURES)
def test_offsets(module: str, name: str) -> None:
    """Every field of a structure is at the specification's offset, and none is missing from the table."""
    expected = dict(OFFSETS[module][name])
    assert codec(module, name).size == expected.pop("bytes")
    found = {f.name: f.offset for f in codec(module, name)}
    assert {name: found[name] for name in expected} == expected
    unlisted = {f for f in found if f not in expected}
    assert all("reserved" in f or f.endswith("_high") for f in unlisted), unlisted


@pytest.mark.parametrize(("module", "name"), STRUCTURES)
def test_round_trip(module: str, name: str) -> None:
    """Unpacking any bytes and packing them again gives the same bytes: no field is lost or overlaps."""
    structure = codec(module, name)
    data = bytes(index * 37 & 0xFF for index in range(structure.size))
    assert structure.pack(structure.unpack(data)) == data


def test_status_codes_are_of_a_known_type() -> None:
    """Status codes carry a type of 0, 1, 2 or 7 above eight bits."""
    assert {status >> 8 for status in Status} <= {0, 1, 2, 7}


@pytest.mark.parametrize("opcodes", [Admin, Io])
def test_vendor_opcodes_say_their_direction(opcodes: type[Admin | Io]) -> None:
    """Linux passes data of a vendor command to the drive when bit 0 is set, else from it: no opcode says both ways."""
    vendor = [code for code in opcodes if code >= (0xC0 if opcodes is Admin else 0x80) and code != Admin.FEMU_FLIP]
    assert all(code & 3 != 3 for code in vendor)
