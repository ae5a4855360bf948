"""``python -m emucsd_images build host-small isp-small`` makes machines' images; ``list`` and ``path`` tell of them.

python -m emucsd_images build                     # all that the full testbed needs
python -m emucsd_images build host-small isp-small --json
python -m emucsd_images list
python -m emucsd_images path isp-small
python -m emucsd_images clean --dry-run           # what no recipe asks for and no machine uses
python -m emucsd_images box --out emucsd.box      # a Vagrant box: docs/vagrant.md
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from emucsd_images import box
from emucsd_images.errors import ImagesError
from emucsd_images.image import Image, image, image_folder
from emucsd_images.recipe import NAMES, load
from emucsd_images.tools import PACKAGES
from emucsd_wire.paths import cache_root

_FULL = ("host", "isp")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _told(made: Image) -> dict[str, str]:
    return {key: str(value) for key, value in made._asdict().items()}


def _show(options: argparse.Namespace, data: Any, text: str) -> None:
    print(json.dumps(data, indent=2) if options.json else text)


def _build(options: argparse.Namespace) -> None:
    names = options.images or list(_FULL)
    if options.dry_run:
        missing = [name for name in names if not image_folder(load(name)).is_dir()]
        _show(options, {"would_build": missing}, f"would build: {', '.join(missing) or 'nothing, all are there'}")
        return
    with ThreadPoolExecutor(2) as pool:  # one downloads while the other unpacks
        made = list(pool.map(lambda name: image(name, progress=_say), names))
    _show(options, [_told(one) for one in made], "\n".join(f"{one.name}: {one.folder}" for one in made))


def _list(options: argparse.Namespace) -> None:
    rows = []
    for name in NAMES:
        recipe = load(name)
        folder = image_folder(recipe)
        there = folder.is_dir()
        size = sum(path.stat().st_blocks * 512 for path in folder.iterdir()) if there else 0
        rows.append({"name": name, "architecture": recipe.architecture, "built": there, "bytes": size,
                     "folder": str(folder), "packages": list(recipe.packages)})  # fmt: skip
    lines = (
        f"{row['name']:12} {row['architecture']:8} "
        + (f"{int(str(row['bytes'])) / 1e6:6.0f} MB  {row['folder']}" if row["built"] else "not built")
        for row in rows
    )
    _show(options, rows, "\n".join(lines))


def _path(options: argparse.Namespace) -> None:
    found = image(options.image, build=False)
    _show(options, _told(found), str(found.folder))


def _open_folders() -> set[Path]:
    """Folders of files that some process has open, a machine its image's disk, as far as this user may see."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            found.add(Path(os.readlink(link)).parent)
    return found


def _clean(options: argparse.Namespace) -> None:
    recipes = [load(name) for name in NAMES]
    wanted = {image_folder(recipe) for recipe in recipes} | {recipe.unpacked.folder for recipe in recipes}
    wanted.add(PACKAGES.folder)
    used = _open_folders()
    old = [
        path
        for pattern in ("image-*", "root-*")
        for path in sorted(cache_root().glob(pattern))
        if path.is_dir() and path not in wanted and path not in used
    ]
    if not options.dry_run:
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
            Path(f"{path}.lock").unlink(missing_ok=True)
    did = "would remove" if options.dry_run else "removed"
    _show(options, [str(path) for path in old], "\n".join(f"{did} {path}" for path in old) or "nothing to remove")


def _box(options: argparse.Namespace) -> None:
    out: Path = options.out.absolute()
    if not options.dry_run:
        box.make(out, progress=_say)
    use = f"EMUCSD_BOX=emucsd EMUCSD_BOX_URL={shlex.quote(str(out))} vagrant up --provider libvirt"
    told = {"box": str(out), "packages": [*box.SYSTEM, *box.PROVISIONED], "use": use}
    _show(options, told, f"would make {out}" if options.dry_run else use)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m emucsd_images", description="Images of the testbed's machines.", epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="answer as JSON")
    common.add_argument("--debug", action="store_true", help="tracebacks for errors")
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", parents=[common], help="make images that are not there yet")
    builder.add_argument("images", nargs="*", metavar="IMAGE", help=f"of {', '.join(NAMES)}; none: {', '.join(_FULL)}")
    builder.add_argument("--dry-run", action="store_true", help="only say what would be made")
    commands.add_parser("list", parents=[common], help="all images and whether they are there")
    shown = commands.add_parser("path", parents=[common], help="an image's folder; fails when it is not there")
    shown.add_argument("image", metavar="IMAGE")
    cleaner = commands.add_parser("clean", parents=[common], help="remove images and trees of older recipes")
    cleaner.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    boxer = commands.add_parser("box", parents=[common], help="make a Vagrant box for the libvirt provider")
    boxer.add_argument("--out", type=Path, default=Path("emucsd.box"), metavar="FILE", help="default: emucsd.box")
    boxer.add_argument("--dry-run", action="store_true", help="only say what would be made")
    return parser


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "build": _build, "list": _list, "path": _path, "clean": _clean, "box": _box,
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """:returns: exit code"""
    options = _parser().parse_args(arguments)
    try:
        COMMANDS[options.command](options)
    except ImagesError as problem:
        if options.debug:
            raise
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
