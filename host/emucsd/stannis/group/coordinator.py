"""The program that leads a run. It needs no PyTorch.

    python3 -m emucsd.stannis.group.coordinator --listen 10.77.0.1:7078 --spec spec.json --cluster cluster.json

Exit status 0: done, or stopped as asked; 1: the run failed, its last event says why; 2: wrong usage.
"""

from __future__ import annotations

import sys

from emucsd.stannis.group.options import coordinator_parser


def main(argv: list[str] | None = None) -> int:
    """The program. :returns: its exit status"""
    coordinator_parser().parse_args(argv)
    return 1


if __name__ == "__main__":
    sys.exit(main())
