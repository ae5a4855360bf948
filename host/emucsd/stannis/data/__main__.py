"""``emucsd data`` where the command line's packages are missing, as in the machines: results are JSON.

python3 -m emucsd.stannis.data put /dev/nvme0 /data/train --private
python3 -m emucsd.stannis.data list /dev/nvme0
python3 -m emucsd.stannis.data check /dev/nvme0 --namespace 2
python3 -m emucsd.stannis.data inspect ns:2
python3 -m emucsd.stannis.data take /dev/nvme0 2 --delete
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from emucsd.errors import EmucsdError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m emucsd.stannis.data", description="Training samples on drives.")
    actions = parser.add_subparsers(dest="do", required=True)
    for name in ("put", "list", "check", "inspect", "take"):
        action = actions.add_parser(name)
        action.add_argument("where", help="a location" if name == "inspect" else "a drive, such as /dev/nvme0")
        if name in ("put", "inspect"):
            action.add_argument("--private", action="store_true")
    put, check, take = (actions.choices[name] for name in ("put", "check", "take"))
    put.add_argument("source", help="a folder of class folders, a .tar, '*.tar', x.tar/train, a .npz or .pt")
    put.add_argument("--namespace", type=int, help="write to this one, not to a new one")
    put.add_argument("--force", action="store_true", help="overwrite what it holds")
    check.add_argument("--namespace", type=int, required=True)
    take.add_argument("namespace", type=int)
    take.add_argument("--delete", action="store_true", help="delete it, with its data")
    return parser


def run(settings: argparse.Namespace) -> dict[str, Any]:
    """What an action found or did."""
    from emucsd.drive import Drive
    from emucsd.stannis.data.found import check, listing, open_namespace
    from emucsd.stannis.data.inspect import inspect
    from emucsd.stannis.data.put import put
    from emucsd.stannis.data.take import take

    if settings.do == "inspect":
        return inspect(settings.where, private=settings.private).to_json()
    with Drive.open(settings.where) as drive:
        if settings.do == "put":
            return put(drive, settings.source, private=settings.private, namespace=settings.namespace,
                       force=settings.force).to_json()  # fmt: skip
        if settings.do == "list":
            return listing(drive).to_json()
        if settings.do == "check":
            with open_namespace(drive, settings.namespace) as source:
                return check(source).to_json()
        take(drive, settings.namespace, delete=settings.delete)
        return {"namespace": settings.namespace, "deleted": settings.delete}


def main() -> int:
    """:returns: 0, or 1 with a line on standard error"""
    try:
        print(json.dumps(run(_parser().parse_args())))
    except EmucsdError as problem:
        print(f"emucsd data: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
