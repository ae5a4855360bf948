"""What each network costs: ``python -m emucsd.stannis.models [--json] [--memory MIB] [NAME ...]``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

from emucsd.stannis import models

NAMES = [name for name in models.__all__ if name.islower() and name != "describe"]
LARGER = {"inception_v3": 299}  # images' sides that are not 224
_FOR_SMALL = {"small": 32}


def costs(name: str, side: int | None = None, num_classes: int = 1000) -> models.Description:
    """``describe`` of a network, which is not made in memory for it.

    :param side: height and width of its images; default: those that it was made for
    """
    side = side or LARGER.get(name) or _FOR_SMALL.get(name, 224)
    with torch.device("meta"):
        model = getattr(models, name)(num_classes)
    return models.describe(model, (3, side, side))


def main(argv: list[str] | None = None) -> int:
    """The program. :returns: its exit status"""
    parser = argparse.ArgumentParser(prog="python -m emucsd.stannis.models", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of them")
    parser.add_argument("--side", type=int, help="height and width of images; default: what each was made for")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--memory", type=int, default=6000, metavar="MB", help="of which the largest batch is told")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    if unknown := sorted(set(given.names) - set(NAMES)):
        parser.error(f"no such network: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    found = {name: costs(name, given.side, given.classes) for name in given.names or NAMES}
    if given.json:
        print(json.dumps({name: one.to_json() for name, one in found.items()}, indent=1))
        return 0
    print(f"{'network':18}{'image':>7}{'parameters':>13}{'MACs':>9}{'MB kept':>9}{'batch in':>10}")
    print(f"{'':18}{'':>7}{'':>13}{'million':>9}{'an image':>9}{f'{given.memory} MB':>10}")
    for name, one in found.items():
        print(_line(name, one, given.memory * 1_000_000))
    return 0


def _line(name: str, one: Any, memory: int) -> str:
    kept, batch = one.activation_bytes / 1e6, one.largest_batch(memory)
    return f"{name:18}{one.image[-1]:7}{one.parameters:13,}{one.macs / 1e6:9,.0f}{kept:9.1f}{batch:10,}"


if __name__ == "__main__":
    sys.exit(main())
