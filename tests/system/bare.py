"""A Debian 13 with next to no package, made and provisioned beside the other tests: it takes a minute and a half of
unpacking, which costs nothing while they run on one processor of two.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from emucsd_images.debian import mirror
from emucsd_images.errors import ImagesError

ROOT = Path(__file__).parents[2]
CHECKOUT = "opt/emucsd"
CERTIFICATES = "usr/local/share/ca-certificates"
SECONDS = 600
LEFT_BEHIND = (".git", ".venv", ".hypothesis", "*_cache", "__pycache__", "*.egg-info", "artefacts", "demo-out")
ENTER = r"""
root=$1; folders=$2; shift 2
mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" && mount --bind /sys "$root/sys" || exit 98
for folder in $folders; do mkdir -p "$root$folder" && mount --rbind "$folder" "$root$folder" || exit 98; done
exec chroot "$root" "$@"
"""


def index_folders() -> list[str]:
    """Folders of this machine that pip takes packages from, besides the network."""
    asked = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(asked, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout
    words = listed.replace("'", " ").replace('"', " ").replace("=", " ").split()
    paths = {Path(word.removeprefix("file://")) for word in words if word.startswith(("/", "file:///"))}
    return sorted(str(path) for path in paths if path.is_dir())


class Bare:
    """A Debian 13 with the checkout in it and next to no package."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told: list[str] = []
        self.steps = ""
        passed = ("PIP_", "http_proxy", "https_proxy", "no_proxy")
        self._environment = {key: value for key, value in os.environ.items() if key.lower().startswith(passed)}
        self._environment |= {key: value for key, value in os.environ.items() if key.startswith(passed)}
        self._environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin", "HOME": "/root"}
        self._folders = " ".join(index_folders())

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it; what it printed is kept in ``told``."""
        apart = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
        done = subprocess.run(
            [*apart, "sh", "-c", ENTER, "enter", str(self.root), self._folders, *words],
            env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
            check=False,
        )  # fmt: skip
        self.told += [f"$ {' '.join(words)}", done.stdout[-6000:], done.stderr[-6000:]]
        assert not check or done.returncode == 0, "\n".join([*self.told, f"exit code {done.returncode}"])
        return done

    def provision(self, *options: str) -> str:
        """:returns: the steps that it printed"""
        return self.run(f"/{CHECKOUT}/scripts/provision.sh", *options).stderr


class NotHere(Exception):
    """Why no such root can be had on this machine."""


def make(root: Path) -> Bare:
    """:raises NotHere: no root rights, no mmdebstrap, no mirror"""
    if os.geteuid() != 0:
        raise NotHere("entering a Debian root needs root")
    if shutil.which("mmdebstrap") is None:
        raise NotHere("mmdebstrap is not installed")
    try:
        source = mirror()
    except ImagesError as problem:
        raise NotHere(str(problem)) from problem
    made = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--include=systemd", "trixie", str(root), source],
        capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if made.returncode:
        raise NotHere(f"no Debian 13 root from {source}: {made.stderr[-500:]}")
    _settle_in(root)
    return Bare(root)


def _settle_in(root: Path) -> None:
    """The checkout, and this machine's settings for its package manager and its package index."""
    shutil.copytree(ROOT, root / CHECKOUT, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")  # nothing here is to survive
    for settings in Path("/etc/apt/apt.conf.d").iterdir():
        if "Acquire::" in settings.read_text(errors="replace") and "docker" not in settings.name:
            shutil.copy(settings, root / "etc/apt/apt.conf.d")
    if Path("/etc/pip.conf").is_file():
        shutil.copy("/etc/pip.conf", root / "etc")
    if Path("/", CERTIFICATES).is_dir():
        shutil.copytree(Path("/", CERTIFICATES), root / CERTIFICATES, dirs_exist_ok=True)


class Provisioned:
    """A root and the first run of scripts/provision.sh in it, in a thread.

    :ivar bare: where it happens; wait for ``result`` first
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="emucsd-bare-"))
        self._threads = ThreadPoolExecutor(1, "provision")
        self._future: Future[Bare] = self._threads.submit(self._run)

    def _run(self) -> Bare:
        bare = make(self.folder / "root")
        bare.steps = bare.provision("--images", "none", "--qemu", "none", "--service")
        return bare

    def result(self) -> Bare:
        """Once it is done. :raises NotHere: this machine can't :raises AssertionError: provision.sh failed"""
        return self._future.result()

    def remove(self) -> None:
        """Wait for its end, and let the folder go."""
        self._threads.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)
