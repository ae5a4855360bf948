"""The program that trains: one rank of a run.

python3 -m emucsd.stannis.group.worker --coordinator 10.77.0.1:7078 --node host

"""

from __future__ import annotations

import sys

from emucsd.stannis.group.options import worker_parser


def main(argv: list[str] | None = None) -> int:
    """The program. :returns: its exit status"""
    worker_parser().parse_args(argv)
    return 1


if __name__ == "__main__":
    sys.exit(main())
