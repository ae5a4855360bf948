"""Trees of unpacked Debian packages, in the user's cache: programs and kernels newer than the machine's own.

mmdebstrap's ``extract`` variant downloads, checks signatures and unpacks; nothing is configured and nothing of the tree
is run, so neither root nor emulation is needed. A tree is named by a hash of what is in it, and is either whole or not
there: it is made under another name and renamed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from emucsd_images.errors import PackagesMissing
from emucsd_wire.paths import cache_root

log = logging.getLogger(__name__)

_FORMAT = 1  # of a tree; another number makes new ones
_SECONDS = 900
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

Progress = Callable[[str], None]


class Packages(NamedTuple):
    """What a tree is made of."""

    label: str  # the tree's folder is called <label>-<hash>
    include: tuple[str, ...]
    suite: str = "trixie"
    backports: bool = False  # prefer <suite>-backports
    architecture: str = _ARCHITECTURES.get(platform.machine(), platform.machine())

    @property
    def folder(self) -> Path:
        """Where the tree is, or will be."""
        digest = hashlib.blake2b(json.dumps([_FORMAT, *self]).encode(), digest_size=6).hexdigest()
        return cache_root() / f"{self.label}-{digest}"


def mirror() -> str:
    """$EMUCSD_DEBIAN_MIRROR, else the one that this machine's apt takes Debian's packages from.

    :raises PackagesMissing: neither is there
    """
    if named := os.environ.get("EMUCSD_DEBIAN_MIRROR"):
        return named
    asked = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]
    found: list[str] = []
    if shutil.which("apt-get"):
        listed = subprocess.run(asked, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        found = [line.split()[1] for line in listed.stdout.splitlines() if line.startswith("Debian ")]
    if not found:
        raise PackagesMissing(
            "this machine's apt knows no Debian mirror; set EMUCSD_DEBIAN_MIRROR to the address of one, or on "
            "Debian run apt-get update first"
        )
    return found[0].rstrip("/")


def _command(packages: Packages, target: Path) -> list[str]:
    suites = [packages.suite, *([f"{packages.suite}-backports"] if packages.backports else [])]
    preferred = [f'--aptopt=APT::Default-Release "{suites[1]}"'] if packages.backports else []
    return [
        "mmdebstrap",
        "--variant=extract",
        "--format=directory",
        *([] if os.geteuid() == 0 else ["--mode=chrootless"]),  # extracting needs no namespace and no fakeroot
        f"--architectures={packages.architecture}",
        '--aptopt=Acquire::Languages "none"',
        *preferred,
        f"--include={','.join(packages.include)}",
        packages.suite,
        str(target),
        *(f"deb {mirror()} {suite} main" for suite in suites),
    ]


def tree(packages: Packages, *, build: bool = True, progress: Progress = log.info) -> Path:
    """The tree's folder; made first where it is not there yet (some seconds, some 100 MB of downloads).

    :param build: False: only look
    :raises PackagesMissing: it is not there and can't be had; says why and what to do
    """
    folder = packages.folder
    if folder.is_dir():
        return folder
    if not build:
        raise PackagesMissing(f"{folder} is not there; it was not asked for")
    if shutil.which("mmdebstrap") is None:
        raise PackagesMissing("mmdebstrap is not installed; apt-get install mmdebstrap debian-archive-keyring")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # somebody else may be making it
        if not folder.is_dir():
            _build(packages, folder, progress)
    return folder


def _build(packages: Packages, folder: Path, progress: Progress) -> None:
    draft = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    begun = time.monotonic()
    progress(f"unpacking {', '.join(packages.include)} from Debian {packages.suite} into {folder}")
    command = _command(packages, draft)
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR", "http_proxy")}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS, env=environment
        )
        if done.returncode:
            tail = "\n".join(done.stderr.splitlines()[-8:])
            raise PackagesMissing(
                f"mmdebstrap failed with exit code {done.returncode}; is the mirror in reach?\n{tail}"
            )
        draft.rename(folder)
    except subprocess.TimeoutExpired as problem:
        raise PackagesMissing(f"mmdebstrap took more than {_SECONDS} s; is {mirror()} in reach?") from problem
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    progress(f"unpacked {folder} in {time.monotonic() - begun:.0f} s")
