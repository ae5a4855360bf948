"""The Vagrantfile: Vagrant accepts it, and every provider's part of it says what it should.

Vagrant skips the parts for providers that are not installed, so a few lines of Ruby run those and write down what they
ask for. Both are skipped, with the reason, where the program is missing; a machine is not made here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 120
RECORDER = r"""
require "json"
class Recorder < BasicObject
  def initialize(path, log); @path = path; @log = log; end
  def method_missing(name, *words, **options, &block)
    at = @path + [name.to_s.delete_suffix("=")]
    if block
      at += words.map(&:to_s)
      block.call(::Recorder.new(at, @log))
    elsif name.end_with?("=") || !words.empty? || !options.empty?
      @log << [at.join("."), words, options.transform_keys(&:to_s)]
    end
    ::Recorder.new(at, @log)
  end
  def [](key); ::Recorder.new(@path, @log); end
  def []=(key, value); @log << [(@path + [key]).join("."), [value], {}]; end
  def respond_to_missing?(*) = true
end
module Vagrant
  LOG = []
  def self.configure(version); yield Recorder.new([], LOG); end
end
load "Vagrantfile"
puts JSON.generate(Vagrant::LOG)
"""


def environment(**settings: str) -> dict[str, str]:
    """This one, without the settings that its user has for machines of their own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("EMUCSD_", "VAGRANT_"))}
    return {**kept, "VAGRANT_CHECKPOINT_DISABLE": "1", **settings}


def asked(**settings: str) -> dict[str, Any]:
    """What the Vagrantfile asks for: the last value of each setting by its dotted name."""
    if shutil.which("ruby") is None:
        pytest.skip("ruby is not installed (Debian's package vagrant brings it)")
    done = subprocess.run(
        ["ruby", "-e", RECORDER], cwd=ROOT, env=environment(**settings), capture_output=True, text=True, check=False,
        timeout=SECONDS, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: words[0] if len(words) == 1 and not options else [*words, options]
            for name, words, options in json.loads(done.stdout)}  # fmt: skip


@pytest.mark.parametrize(
    "settings", [{}, {"EMUCSD_BOX": "mine", "EMUCSD_BOX_URL": "/tmp/my.box", "EMUCSD_NESTED": "0"}]
)
def test_vagrant_accepts_it(settings: dict[str, str], tmp_path: Path) -> None:
    """`vagrant validate`, with the provider that is there."""
    if shutil.which("vagrant") is None:
        pytest.skip("vagrant is not installed (apt-get install vagrant)")
    folders = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "state")}
    done = subprocess.run(
        ["vagrant", "validate"], cwd=ROOT, env=environment(**folders, **settings), capture_output=True, text=True,
        check=False, timeout=SECONDS, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def test_every_provider_gets_memory_and_processors() -> None:
    """As they were chosen, in each provider's own words and units."""
    given = asked(EMUCSD_MEMORY="3000", EMUCSD_CPUS="3")
    for provider in ("libvirt", "virtualbox", "hyperv", "parallels"):
        assert given[f"vm.provider.{provider}.memory"] == 3000
        assert given[f"vm.provider.{provider}.cpus"] == 3
    for provider in ("vmware_desktop", "vmware_fusion", "vmware_workstation"):
        assert given[f"vm.provider.{provider}.vmx.memsize"] == "3000"
        assert given[f"vm.provider.{provider}.vmx.numvcpus"] == "3"
    assert given["vm.provider.qemu.memory"] == "3000M"
    assert given["vm.provider.libvirt.nested"] is asked()["vm.provider.libvirt.nested"]
    assert asked(EMUCSD_NESTED="0")["vm.provider.libvirt.nested"] is False


def test_box_folder_and_provisioning() -> None:
    """Debian 13 unless another box is named, a copy of the checkout without what was built, one script for the rest."""
    given = asked()
    assert given["vm.box"] == "debian/trixie64"
    assert "vm.box_url" not in given
    *places, options = given["vm.synced_folder"]
    assert places == [".", "/vagrant"]
    assert options["type"] == "rsync"
    assert {".git/", ".venv/"} <= set(options["rsync__exclude"])
    words = given["vm.provision.emucsd.args"]
    assert words == ["--user", "vagrant", "--venv", "/opt/emucsd", "--service", "--images", "small"]
    assert not any("forwarded_port" in name for name in given)
    named = asked(EMUCSD_BOX="mine", EMUCSD_BOX_URL="mine.box", EMUCSD_UP="disk0 --drive-only", EMUCSD_IMAGES="none")
    assert (named["vm.box"], named["vm.box_url"]) == ("mine", "mine.box")
    assert named["vm.provision.emucsd.args"][-3:] == ["none", "--up", "disk0 --drive-only"]


def test_provisioning_knows_the_words() -> None:
    """scripts/provision.sh has every option that the Vagrantfile gives it."""
    known = subprocess.run(
        [ROOT / "scripts/provision.sh", "--help"], capture_output=True, text=True, check=True, timeout=SECONDS
    ).stdout
    words = asked(EMUCSD_UP="x")["vm.provision.emucsd.args"]
    assert all(f"  {word}" in known for word in words if word.startswith("--"))
