"""The samples of a run onto its temporary drives: a copy of the public ones on each, and each one's private part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from emucsd.cli.units import show_size
from emucsd.errors import InvalidArgument
from emucsd.stannis.data import source
from emucsd.stannis.data.location import parse
from emucsd.stannis.data.put import put
from emucsd.stannis.launch.fleet import Fleet
from emucsd.stannis.launch.request import Request

LEAST_BYTES = 512 << 20  # of a drive
SPARE = 1.3  # of a drive over its samples: tar headers, and what its flash keeps free
_OWN, _MIB = 64 << 20, 1 << 20

Tell = Callable[[str], None]


def needed_bytes(request: Request) -> int:
    """Size of a drive that takes the request's samples. :raises InvalidArgument: samples that can't be put there"""
    held = 0
    for location in request.data:
        found = parse(location)
        if found.kind == "namespace" or "=" in location:
            raise InvalidArgument(
                f"--data {location}: temporary drives are empty; name a folder, a .tar or a .npz, which is put onto "
                "them, or train on running drives: --drives NAMES"
            )
        files = [Path(file) for file in found.files()] if found.kind != "folder" else Path(found.path).rglob("*")
        held += sum(file.stat().st_size + 1024 for file in files if file.is_file())
    return max(-(-int(held * SPARE + _OWN) // _MIB) * _MIB, LEAST_BYTES)


def put_samples(request: Request, fleet: Fleet, tell: Tell) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write them. The private part is chosen by the request's seed, and dealt out evenly.

    :returns: locations of public and of private samples, for ``places``
    :raises DataError: the samples can't be read, or the drives are too small
    """
    assert fleet.embedded is not None
    drives = fleet.embedded.drives
    engines = list(fleet.where.drives)
    shuffle = np.random.default_rng(request.spec.seed)
    data: list[str] = []
    private: list[str] = []
    for location in request.data:
        with source.open(location) as samples:
            own = int(samples.count * request.private_share) // len(drives)
            order = shuffle.permutation(samples.count)
            parts = [np.sort(order[own * number : own * (number + 1)]) for number in range(len(drives))]
            rest = np.sort(order[own * len(drives) :])
            for node, drive, part in zip(engines, drives, parts, strict=True):
                tell(f"putting {len(rest) + own:,} samples onto the drive of {node}")
                where = put(drive, samples, indices=rest.tolist())
                tell(f"{node}: {len(rest):,} public samples, {show_size(where.bytes)}")
                if node == engines[0]:
                    data.append(where.location)
                if own:
                    private.append(f"{node}={put(drive, samples, indices=part.tolist(), private=True).location}")
    return tuple(data), (*request.private, *private)
