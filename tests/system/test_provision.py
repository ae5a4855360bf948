"""scripts/provision.sh in a fresh Debian 13: systemd and the package manager are all that is there; then emucsd runs.

The root is made by mmdebstrap and entered by chroot in namespaces of its own, so that nothing stays mounted. It gets
this machine's settings for apt and pip, and its additional certificates, but nothing else. Needs root, a mirror and a
package index; skipped, with the reason, without them.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.system.bare import ROOT, Bare, NotHere, Provisioned

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def bare(provisioning: Provisioned) -> Bare:
    try:
        return provisioning.result()
    except NotHere as problem:
        pytest.skip(str(problem))


def test_a_bare_debian_gets_emucsd(bare: Bare) -> None:
    """After one run `emucsd` is on the PATH, says what the machine can run, and a plain drive is among it."""
    assert "Debian packages: ca-certificates python3" in bare.steps
    assert "done. Next:" in bare.steps
    doctor = json.loads(bare.run("emucsd", "doctor", "--json").stdout)
    assert next(iter(doctor["uses"].values()))["can"], doctor
    states = {finding["name"]: finding["state"] for finding in doctor["findings"]}
    assert states["mmdebstrap"] == states["libfuse2"] == states["matplotlib"] == "ok"


def test_the_service_is_for_the_next_boot(bare: Bare) -> None:
    """systemd accepts the unit, which starts the testbed at boot as its user."""
    unit = bare.root / "etc/systemd/system/emucsd-testbed.service"
    wanted = bare.root / "etc/systemd/system/multi-user.target.wants" / unit.name
    assert os.readlink(wanted) == f"/etc/systemd/system/{unit.name}"
    assert "ExecStart=/opt/emucsd/.venv/bin/emucsd up" in unit.read_text()
    checked = bare.run("systemd-analyze", "verify", f"/etc/systemd/system/{unit.name}", check=False)
    assert unit.name not in checked.stderr, checked.stderr


def test_a_second_run_changes_nothing(bare: Bare) -> None:
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
