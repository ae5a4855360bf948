"""scripts/provision.sh in a fresh Debian 13: systemd and the package manager are all that is there; then emucsd runs.

The root is made by mmdebstrap and entered by chroot in namespaces of its own, so that nothing stays mounted. It gets
this machine's settings for apt and pip, and its additional certificates, but nothing else. Needs root, a mirror and a
package index; skipped, with the reason, without them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emucsd_images.debian import mirror
from emucsd_images.errors import ImagesError

pytestmark = pytest.mark.vm

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
        passed = ("PIP_", "http_proxy", "https_proxy", "no_proxy")
        self._environment = {key: value for key, value in os.environ.items() if key.lower().startswith(passed)}
        self._environment |= {key: value for key, value in os.environ.items() if key.startswith(passed)}
        self._environment |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin", "HOME": "/root"}
        self._folders = " ".join(index_folders())

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it; its output is shown by pytest when something fails."""
        apart = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
        done = subprocess.run(
            [*apart, "sh", "-c", ENTER, "enter", str(self.root), self._folders, *words],
            env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
            check=False,
        )  # fmt: skip
        print(f"$ {' '.join(words)}", done.stdout[-6000:], done.stderr[-6000:], sep="\n")
        assert not check or done.returncode == 0, f"exit code {done.returncode}"
        return done

    def provision(self, *options: str) -> str:
        """:returns: the steps that it printed"""
        return self.run(f"/{CHECKOUT}/scripts/provision.sh", *options).stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    if os.geteuid() != 0:
        pytest.skip("entering a Debian root needs root")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    try:
        source = mirror()
    except ImagesError as problem:
        pytest.skip(str(problem))
    root = tmp_path_factory.mktemp("bare") / "root"
    made = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--include=systemd", "trixie", str(root), source],
        capture_output=True, text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"no Debian 13 root from {source}: {made.stderr[-500:]}")
    _settle_in(root)
    yield Bare(root)
    shutil.rmtree(root)


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


@pytest.fixture(scope="module")
def provisioned(bare: Bare) -> str:
    return bare.provision("--images", "none", "--qemu", "none", "--service")


def test_a_bare_debian_gets_emucsd(bare: Bare, provisioned: str) -> None:
    """After one run `emucsd` is on the PATH, says what the machine can run, and a plain drive is among it."""
    assert "Debian packages: ca-certificates python3" in provisioned
    assert "done. Next:" in provisioned
    doctor = json.loads(bare.run("emucsd", "doctor", "--json").stdout)
    assert next(iter(doctor["uses"].values()))["can"], doctor
    states = {finding["name"]: finding["state"] for finding in doctor["findings"]}
    assert states["mmdebstrap"] == states["libfuse2"] == states["matplotlib"] == "ok"


def test_the_service_is_for_the_next_boot(bare: Bare, provisioned: str) -> None:
    """systemd accepts the unit, which starts the testbed at boot as its user."""
    unit = bare.root / "etc/systemd/system/emucsd-testbed.service"
    wanted = bare.root / "etc/systemd/system/multi-user.target.wants" / unit.name
    assert os.readlink(wanted) == f"/etc/systemd/system/{unit.name}"
    assert "ExecStart=/opt/emucsd/.venv/bin/emucsd up" in unit.read_text()
    checked = bare.run("systemd-analyze", "verify", f"/etc/systemd/system/{unit.name}", check=False)
    assert unit.name not in checked.stderr, checked.stderr


def test_a_second_run_changes_nothing(bare: Bare, provisioned: str) -> None:
    """What is there is left as it is: no package, no pip, no link, in seconds."""
    binary = bare.root / "opt/emucsd/.venv/bin/emucsd"
    before = binary.stat().st_mtime_ns
    steps = bare.provision("--images", "none", "--qemu", "none", "--service", "--no-doctor")
    assert "Debian packages: all there" in steps
    assert "installing" not in steps
    assert "is a link to it" not in steps
    assert binary.stat().st_mtime_ns == before


@pytest.mark.parametrize("options", [["--images", "huge"], ["--user"], ["--bogus"], ["--user", "nobody-at-all"]])
def test_wrong_options_are_refused(options: list[str]) -> None:
    """Before anything is done, with what to do instead."""
    done = subprocess.run(
        [ROOT / "scripts/provision.sh", *options], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert options[-1] in done.stderr
    assert "hint: " in done.stderr
