"""A testbed for all system tests that do it no harm, and the means to make one of a test's own.

The shared one has a `null` drive of 4 GiB on the real clock, the small images, tunnel and cluster files. It is started
when a test first asks for it. A test that needs other drives, or that kills the supervisor, makes its own: two machines
more are slow, so few should.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emucsd.testbed import Testbed
from emucsd_femu import qemu_root
from emucsd_femu.errors import QemuMissing
from emucsd_images.errors import ImagesError
from emucsd_images.image import image
from tests.conftest import ARTEFACTS, ignore_special
from tests.system.bare import Provisioned

DESCRIPTION = """
[testbed]
name = "testbed"
images = "small"

[[drive]]
name = "csd"
profile = "null"
size = "4GiB"

[cluster]
mount = ""
"""
Make = Callable[[str], contextlib.AbstractContextManager[Testbed]]


def require_machines() -> None:
    """Skip, with the reason, where machines can't be run; else QEMU and images are there afterwards."""
    if os.environ.get("EMUCSD_SKIP_VM"):
        pytest.skip("EMUCSD_SKIP_VM is set")
    try:
        for architecture, name in (("x86_64", "host-small"), ("aarch64", "isp-small")):
            qemu_root.find(architecture)
            image(name)
    except (QemuMissing, ImagesError) as problem:
        pytest.skip(str(problem))


@contextlib.contextmanager
def made(description: str, label: str) -> Iterator[Testbed]:
    """A testbed in folders of its own; what it left to read is kept when a test failed meanwhile."""
    require_machines()
    folder = Path(tempfile.mkdtemp(prefix="emucsd-t-"))  # short: sockets lie in it
    (folder / "testbed.toml").write_text(description)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EMUCSD_RUNTIME", str(folder / "run"))
            patch.setenv("EMUCSD_STORE", str(folder / "store"))
            started = Testbed.start(folder / "testbed.toml", tell=lambda text: print(text, file=sys.stderr))
        with started:
            yield started
            _keep(folder, label)
    except BaseException:
        _keep(folder, label)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(folder: Path, label: str) -> None:
    """Consoles and logs, from before they are removed."""
    kept = ARTEFACTS / f"testbed-{label}"
    shutil.rmtree(kept, ignore_errors=True)
    with contextlib.suppress(OSError, shutil.Error):
        shutil.copytree(folder / "run", kept, ignore=ignore_special)


PROVISIONING = pytest.StashKey[Provisioned]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """A bare Debian is provisioned beside the tests that come before those of it."""
    if session.config.option.collectonly:
        return
    if any("provisioning" in getattr(item, "fixturenames", ()) for item in session.items):
        session.config.stash[PROVISIONING] = Provisioned()


@pytest.fixture(scope="session")
def provisioning(pytestconfig: pytest.Config) -> Provisioned:
    return pytestconfig.stash[PROVISIONING]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing of it stays, however the tests ended."""
    if PROVISIONING in config.stash:
        config.stash[PROVISIONING].remove()


@pytest.fixture(scope="session")
def testbed() -> Iterator[Testbed]:
    """The shared one: leave every machine up, and the drive's contents as you like."""
    with made(DESCRIPTION, "shared") as started:
        yield started


@pytest.fixture
def make_testbed(request: pytest.FixtureRequest) -> Make:
    """`with make_testbed(toml) as testbed`: one of a test's own."""
    return lambda description: made(description, request.node.name)
