"""FEMU: a profile in its knobs and back, what its SSD can't have, where its binary is, and how it is built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from emucsd_femu import description, femu, femu_build, plans
from emucsd_femu.errors import DescriptionError, QemuMissing, SettingsError
from emucsd_firmware.profile import load

SIZE = 4 << 30
EVERYBODY = ("null", "femu", "rmssd", "newport", "cosmosplus")
# a repository of a QEMU that is built in no time: what `femu build` does with it is what it does with FEMU's
CONFIGURE = r"""#!/bin/sh
printf '%s\n' "$@" >asked
cat >build.ninja <<END
rule copy
  command = cp \$in \$out && chmod +x \$out
build qemu-system-x86_64: copy $(dirname "$0")/program
build qemu-img: copy $(dirname "$0")/program
END
"""
PROGRAM = "#!/bin/sh\n[ \"$1\" != --version ] || echo 'QEMU emulator version 10.1.0 (not FEMU: a test)'\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no binary that the user has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(femu.CHOSEN, raising=False)
    return tmp_path / "cache" / "emucsd"


@pytest.mark.parametrize("name", EVERYBODY)
def test_knobs_describe_the_same_drive(name: str) -> None:
    """What FEMU is told, read as FEMU's knobs, is a profile of the same size, flash and times."""
    profile = load(name, capacity_bytes=SIZE)
    knobs = femu.translated(profile).knobs
    told = {
        key: value for key, value in knobs.items() if key not in ("femu_mode", "namespaces", "lba_index", "op_pcent")
    }
    back = load("femu", **told)
    assert back.capacity_bytes == profile.capacity_bytes
    flash, wanted = back.geometry, profile.geometry
    assert (flash.channels, flash.dies, flash.pages, flash.page_bytes) == (
        wanted.channels, wanted.dies, wanted.pages, wanted.page_bytes,
    )  # fmt: skip
    assert flash.blocks_per_die >= wanted.blocks_per_die
    for field in ("read_ns", "program_ns", "erase_ns", "transfer_ns_per_4k"):
        assert getattr(back.nand, field) == getattr(profile.nand, field), field
    assert (back.link.bytes_per_us, back.front_end.command_ns) == (
        profile.link.bytes_per_us, profile.front_end.command_ns,
    )  # fmt: skip


def test_femus_own_profile_is_its_own_command_line() -> None:
    """The profile `femu` comes out as FEMU's run-blackbox.sh has it."""
    knobs = femu.translated(load("femu")).knobs
    script = {
        "devsz_mb": 12288, "namespaces": 1, "femu_mode": 1, "secsz": 512, "secs_per_pg": 8, "pgs_per_blk": 256,
        "blks_per_pl": 256, "pls_per_lun": 1, "luns_per_ch": 8, "nchs": 8, "pg_rd_lat": 40000, "pg_wr_lat": 200000,
        "blk_er_lat": 2000000, "ch_xfer_lat": 0, "gc_thres_pcent_high": 95,
    }  # fmt: skip
    assert {key: knobs[key] for key in script} == script


@pytest.mark.parametrize("name", EVERYBODY)
def test_collection_has_room(name: str) -> None:
    """The lines beyond the mark of forced collection, and one to write to, are free of data: FEMU refuses less."""
    profile = load(name, capacity_bytes=SIZE)
    knobs = femu.translated(profile).knobs
    line = knobs["nchs"] * knobs["luns_per_ch"] * knobs["pgs_per_blk"] * knobs["secs_per_pg"] * 512
    reserve = (100 - knobs["gc_thres_pcent_high"]) * knobs["blks_per_pl"] // 100 + 1
    assert (knobs["blks_per_pl"] - reserve) * line >= profile.capacity_bytes
    assert knobs["gc_thres_pcent"] <= knobs["gc_thres_pcent_high"] <= 99


def test_what_femu_lacks_is_said() -> None:
    """Planes, the channel's time and a write buffer are notes, and a drive without them has none of these."""
    with_all = load("femu", **{"nand.transfer_ns_per_4k": 6000, "geometry.planes": 2, "buffer.pages": 64})
    notes = " ".join(femu.translated(with_all).notes)
    assert "planes" in notes
    assert "ch_xfer_lat is not heeded" in notes
    assert "no write buffer" in notes
    assert femu.translated(load("femu")).notes == femu.translated(load("null", capacity_bytes=SIZE)).notes[-2:]


def test_femus_limits_are_errors() -> None:
    """More flash than a signed 32-bit count of sectors, or more data than this computer has memory."""
    with pytest.raises(SettingsError, match="2147483647 sectors"):
        femu.translated(load("femu", capacity_bytes=2 << 40))
    profile = load("femu", capacity_bytes=SIZE)
    with pytest.raises(SettingsError, match=r"4096 MiB and 1024 MiB to spare .* 5119 MiB"):
        femu.device(profile, memory=SIZE + (1 << 30) - 1)
    words = femu.device(profile, memory=SIZE + (1 << 30))
    assert words[0] == "-device"
    assert json.loads(words[1])["driver"] == "femu"


def test_a_testbed_asks_for_femu() -> None:
    """In the file's [host]: its binary, and with it its SSD, of the first drive's profile and size."""
    drive = {"name": "csd", "profile": "femu", "size": "2GiB", "set": {"nand.read_ns": 50000}}
    found = description.parse({"host": {"qemu": "femu", "compare": "femu"}, "drive": [drive]})
    assert (found.host.qemu, found.host.compare) == ("femu", "femu")
    told: list[str] = []
    knobs = json.loads(femu.beside(found.drives[0], told.append)[1])
    assert (knobs["devsz_mb"], knobs["pg_rd_lat"]) == (2048, 50000)
    assert "nothing outlives QEMU" in told[0]
    assert description.parse({}).host.qemu == "auto"
    with pytest.raises(DescriptionError, match='say qemu = "femu" as well'):
        description.parse({"host": {"compare": "femu"}})
    with pytest.raises(SettingsError, match=r"nand\.no_such"):
        femu.beside(description.DriveOf("csd", set=(("nand.no_such", "1"),)), told.append)


def test_guests_of_femus_binary_are_told_the_ids() -> None:
    """Also where there is no tunnel to wait for; guests of another QEMU are not."""
    for tunnel in (True, False):
        found = description.parse({"tunnel": {"enabled": tunnel}})
        service, *_ = plans.services(found, None, bind=True)
        assert service.startswith("echo 1d1d 1f1f >/sys/bus/pci/drivers/nvme/new_id; ")
    assert not any("new_id" in service for service in plans.services(description.parse({}), None))


def test_no_build_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a build nor a binary of the user's: the error names the command and the setting."""
    with pytest.raises(QemuMissing, match="femu build makes one, or EMUCSD_FEMU names"):
        femu.find()
    monkeypatch.setenv(femu.CHOSEN, str(tmp_path / "nothing"))
    with pytest.raises(QemuMissing, match="which is no program"):
        femu.find()


def test_status_in_words_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`femu status` and `femu where` end with 1 and the reason when there is none."""
    assert femu_build.main(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["there"] is False
    assert femu_build.main(["where"]) == 1
    assert "there is no FEMU build" in capsys.readouterr().err


def test_dry_run_fetches_nothing(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands are printed, with the pinned commit, and the cache stays empty."""
    assert femu_build.main(["build", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"git clone --filter=tree:0 --no-checkout {femu.REPOSITORY}" in printed
    assert f"checkout --detach {femu.PIN}" in printed
    assert not cache.exists()


@pytest.fixture
def upstream(tmp_path: Path) -> tuple[str, str]:
    """A repository with history, served as the public one is. :returns: its address and the commit to build"""
    folder = tmp_path / "upstream"
    folder.mkdir()
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]

    def run(*words: str) -> str:
        return subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()

    run("init", "--quiet", "--initial-branch=master")
    run("config", "uploadpack.allowFilter", "true")
    run("config", "uploadpack.allowAnySHA1InWant", "true")
    (folder / "configure").write_text(CONFIGURE)
    (folder / "configure").chmod(0o755)
    (folder / "program").write_text(PROGRAM)
    run("add", ".")
    run("commit", "--quiet", "-m", "the one to build")
    wanted = run("rev-parse", "--short=9", "HEAD")
    (folder / "configure").write_text("#!/bin/sh\nexit 1\n")
    run("commit", "--quiet", "-am", "a later one that is broken")
    return f"file://{folder}", wanted


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("git", "ninja"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    monkeypatch.setattr(femu_build, "missing", list)  # this repository needs no libraries


@pytest.mark.usefixtures("tools")
def test_build_from_a_repository(upstream: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """The commit that is asked for is cloned, configured and compiled once; a second call finds it."""
    address, commit = upstream
    assert femu_build.main(["build", "--repository", address, "--commit", commit]) == 0
    binary = Path(capsys.readouterr().out.strip())
    assert binary == femu.folder(commit) / "build" / femu.BINARY
    assert os.access(binary, os.X_OK)
    asked = (binary.parent / "asked").read_text().split()
    assert asked == list(femu_build.CONFIGURE)
    about = json.loads((femu.folder(commit) / femu.MARK).read_text())
    assert about["commit"].startswith(commit)
    assert "10.1.0" in about["version"]
    assert femu_build.main(["build", "--repository", address, "--commit", commit]) == 0
    assert "there is one already" in capsys.readouterr().err


@pytest.mark.usefixtures("tools")
def test_no_network_is_said_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A repository out of reach: an error that says so, and the next try begins anew."""
    assert femu_build.main(["build", "--repository", f"file://{tmp_path}/nowhere"]) == 1
    told = capsys.readouterr().err
    assert "clone failed" in told
    assert "is the repository in reach?" in told
    assert not (femu.folder() / "source").exists()
    assert not (femu.folder() / femu.MARK).exists()


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without compilers the error is the command that installs them."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert femu_build.main(["build"]) == 1
    told = capsys.readouterr().err
    assert "apt-get install bison" in told
    assert "ninja-build" in told
