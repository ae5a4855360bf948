"""Images: recipes, the root filesystem as an archive, kernel modules and their order, seeds."""

from __future__ import annotations

import io
import lzma
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from emucsd_images import image, kernel, recipe
from emucsd_images.__main__ import main
from emucsd_images.errors import ImageMissing, RecipeError
from emucsd_images.modules import Modules
from emucsd_images.root import EPOCH, Root
from emucsd_images.seed import Seed, service_names
from emucsd_images.tools import Tools


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """A cpio archive ("newc"), read by hand: path -> mode and content."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        field = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = field[1], field[6], field[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        assert (field[2], field[3]) == (0, 0), "everything is root's"
        found[name] = (mode, archive[start : start + size])
        at = (start + size + 3) // 4 * 4


def test_every_recipe_loads() -> None:
    """All recipes are whole; the small ones are the large ones without torch."""
    made = {name: recipe.load(name) for name in recipe.NAMES}
    assert len({one.digest for one in made.values()}) == len(made)
    assert {one.architecture for one in made.values()} == {"x86_64", "aarch64"}
    for kind in ("host", "isp"):
        small, full = made[f"{kind}-small"], made[kind]
        assert "python3-torch" in full.packages
        assert set(small.packages) < set(full.packages)
        assert small.modules == full.modules
        assert full.links[f"usr/lib/{full.triplet}/libblas.so.3"].startswith("openblas")
    assert "fio" in made["host"].packages
    assert "fio" not in made["isp"].packages
    assert "linux-image-arm64" in made["isp"].packages
    assert made["host"].append.startswith(made["isp"].append), "kernel words are added, not replaced"


def test_a_recipe_is_named_by_its_content() -> None:
    """Another package, file, kernel word or module is another image; the same recipe is the same one."""
    one = recipe.load("host-small")
    others = [
        one._replace(packages=(*one.packages, "vim")),
        one._replace(files={**one.files, "etc/motd": "hello\n"}),
        one._replace(append=f"{one.append} debug"),
        one._replace(modules=one.modules[1:]),
        one._replace(exclude=()),
    ]
    assert len({each.digest for each in (one, *others)}) == 6
    assert recipe.load("host-small").digest == one.digest
    assert others[1].unpacked.folder == one.unpacked.folder, "the packages need not be unpacked again"


def test_an_unknown_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the recipes that there are."""
    with pytest.raises(RecipeError, match="host-small, isp-small, host, isp"):
        recipe.load("guest")
    assert main(["path", "guest"]) == 1
    assert "no recipe 'guest'" in capsys.readouterr().err


def test_a_missing_image_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only looking makes nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ImageMissing, match="emucsd_images build isp-small"):
        image.image("isp-small", build=False)
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mmdebstrap: the reason, and no half of an image."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ImageMissing, match="apt-get install mmdebstrap"):
        image.image("isp-small", progress=print)
    assert [path.suffix for path in (tmp_path / "emucsd").iterdir() if path.name.startswith("image-isp")] == [".lock"]


def test_dry_runs_and_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of older recipes go, unless a machine has one open; the others stay."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = image.image_folder(recipe.load("host"))
    old = kept.with_name("image-host-0123456789ab")
    for folder in (kept, old, used := old.with_name("image-host-ba9876543210")):
        folder.mkdir(parents=True)
    assert main(["build", "host", "isp", "--dry-run"]) == 0
    assert capsys.readouterr().out == "would build: isp\n"
    assert main(["clean", "--dry-run"]) == 0
    assert old.is_dir()
    with open(used / "disk.raw", "w"):
        assert main(["clean"]) == 0
    assert kept.is_dir()
    assert used.is_dir()
    assert not old.exists()
    assert main(["list", "--json"]) == 0
    assert '"built": true' in capsys.readouterr().out


def test_a_root_is_an_archive_of_roots_files(tmp_path: Path) -> None:
    """Left out is what the patterns say; links, folders and files are added; owners and dates are fixed."""
    tree = tmp_path / "tree"
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/share/doc/bash").mkdir(parents=True)
    (tree / "usr/share/doc/bash/README").write_text("no")
    (tree / "usr/bin/mount").write_text("program")
    (tree / "usr/bin/mount").chmod(0o4755)
    (tree / "bin").symlink_to("usr/bin")
    made = recipe.load("host-small")
    root = Root()
    root.tree(tree, made.exclude)
    root.recipe(made)
    stream = io.BytesIO()
    root.archive(stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        entries = {info.name: info for info in archive}
        assert archive.extractfile("usr/bin/mount").read() == b"program"  # type: ignore[union-attr]
        script = archive.extractfile("usr/lib/emucsd/start")
        assert script is not None
        assert script.read().startswith(b"#!/usr/bin/busybox sh\n")
    assert {(info.uid, info.gid, info.mtime) for info in entries.values()} == {(0, 0, EPOCH)}
    assert entries["usr/bin/mount"].mode == 0o755
    assert "usr/share/doc" in entries
    assert "usr/share/doc/bash" not in entries
    assert entries["bin"].linkname == "usr/bin"
    assert entries["etc/mtab"].linkname == "../proc/self/mounts"  # mkfs.ocfs2 fails without
    assert entries["usr/lib/x86_64-linux-gnu/libblas.so.3"].issym()
    assert entries["tmp"].mode == 0o1777
    assert (entries["root/.ssh"].mode, entries["etc/shadow"].mode) == (0o700, 0o600)
    names = list(entries)
    assert all(str(Path(name).parent) in (".", *names[:n]) for n, name in enumerate(names)), "parents come first"


def module(depends: str, soft: str = "") -> bytes:
    """As much of a kernel module as is looked at."""
    return f"\x7fELF\0depends={depends}\0softdep=pre: {soft}\0end".encode()


def test_modules_bring_what_they_need(tmp_path: Path) -> None:
    """Dependencies come first, hard and soft, through xz and dashes; what is built in or unknown is left out."""
    kernel = tmp_path / "usr/lib/modules/6.12-test/kernel"
    kernel.mkdir(parents=True)
    for name, data in {
        "nvme": module("nvme-core"),
        "nvme-core": module("nvme-auth,built-in"),
        "nvme-auth": module("", "crc32c-generic"),
        "crc32c-generic": module(""),
        "other": module(""),
    }.items():
        (kernel / f"{name}.ko.xz").write_bytes(lzma.compress(data))
    (kernel.parent / "modules.builtin").write_text("kernel/lib/built-in.ko\n")
    modules = Modules(tmp_path)
    assert modules.closure(["nvme", "virtio_pci", "nvme-core"]) == ["crc32c_generic", "nvme_auth", "nvme_core", "nvme"]
    assert modules.path("nvme_core") == Path("kernel/nvme-core.ko")
    assert modules.content("nvme") == module("nvme-core")


def test_a_seed_holds_what_one_boot_adds() -> None:
    """Names, keys with the modes that sshd wants, network, services in order, cluster and files; the same twice."""
    seed = Seed(
        "isp0",
        host_key="KEY",
        authorized_keys="ssh-ed25519 AAAA me",
        services=["python3 -m emucsd_agent --drive /dev/nvme0", "while true; do sleep 9; done"],
        cluster="cluster:\n",
        hosts={"host": "10.77.0.1"},
        files={"/etc/emucsd/token": b"secret"},
    )
    packed = seed.pack()
    assert packed == seed.pack()
    assert len(packed) % 4 == 0
    found = unpacked(packed)
    modes = {path: stat.S_IMODE(mode) for path, (mode, _) in found.items()}
    assert modes["seed/root/.ssh"] == modes["seed/root"] == 0o700
    assert modes["seed/root/.ssh/authorized_keys"] == modes["seed/etc/ssh/ssh_host_ed25519_key"] == 0o600
    texts = {path.removeprefix("seed/"): content.decode() for path, (_, content) in found.items()}
    assert texts["etc/hostname"] == "isp0\n"
    assert "10.77.0.1 host\n" in texts["etc/hosts"]
    assert texts["etc/emucsd/network"] == "none\n"
    assert texts["etc/emucsd/services/00-emucsd_agent"] == "exec python3 -m emucsd_agent --drive /dev/nvme0\n"
    assert texts["etc/emucsd/services/01-while"] == "while true; do sleep 9; done\n"
    assert texts["etc/emucsd/token"] == "secret"
    assert texts["etc/ocfs2/cluster.conf"] == "cluster:\n"
    other = unpacked(seed._replace(network="slirp").pack())
    assert other["seed/etc/emucsd/seed"] != found["seed/etc/emucsd/seed"], "the machine sees that it is another one"


def test_services_have_names_of_their_own() -> None:
    """A log file each."""
    commands = ["python3 -m emucsd.tunnel host", "python3 -m emucsd.tunnel isp", "/bin/iperf3 -s", "", ": a; b -m c"]
    assert service_names(commands) == ["emucsd.tunnel", "emucsd.tunnel-2", "iperf3", "service", "a"]


def test_guest_scripts_are_valid_shell() -> None:
    """Every script that runs in a machine parses (shellcheck reads them in the lint tests)."""
    scripts = {*recipe.load("isp").scripts, "init.sh"}
    for script in scripts:
        subprocess.run(["sh", "-n"], input=recipe.guest_script(script), check=True, timeout=10)


def test_a_kernel_is_unpacked_where_it_can_be(tmp_path: Path) -> None:
    """An x86 kernel with zstd inside is handed to zstd, bytes exactly; any other one is taken as it is."""
    seen: list[bytes] = []

    class Unpacker(Tools):
        def run(self, program: str, *words: str, environment: dict[str, str] | None = None) -> bytes:
            assert program == "usr/bin/zstd"
            seen.append(Path(words[2]).read_bytes())
            Path(words[-1]).write_bytes(b"unpacked")
            return b""

    packed = b"\x28\xb5\x2f\xfd" + b"packed"
    setup = bytearray(4 * 512)
    setup[0x1F1] = 3
    setup[0x202:0x206] = b"HdrS"
    setup[0x248:0x250] = struct.pack("<II", 100, len(packed) + 4)
    source, target = tmp_path / "vmlinuz", tmp_path / "kernel"
    for payload, result, handed in ((packed, b"unpacked", [packed]), (b"\x1f\x8b" + packed[2:], None, [])):
        seen.clear()
        content = bytes(setup) + bytes(100) + payload + b"size" + b"more"
        source.write_bytes(content)
        kernel.write(source, target, Unpacker(tmp_path))
        assert target.read_bytes() == (result or content)
        assert seen == handed
    source.write_bytes(b"MZ" + bytes(4000))  # Arm's
    kernel.write(source, target, Unpacker(tmp_path))
    assert target.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernel", "vmlinuz"]
