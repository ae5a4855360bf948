"""What one boot adds to an image: names, keys, network, services, and this project's own code.

A seed is an archive behind the image's initrd (the kernel unpacks one after the other); init copies it onto the
machine's disk, once for each different seed. Project code is never in an image: it comes this way.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from emucsd_images import bytecode
from emucsd_images.image import Image
from emucsd_images.initramfs import Initramfs
from emucsd_images.tools import tools

HOME = "opt/emucsd"  # the machines' PYTHONPATH
_TOP = "seed"
_PRIVATE = ("root", "root/.ssh")  # folders whose modes the machine takes over
_LEFT_OUT = ("__pycache__",)
_WORD = re.compile(r"[^A-Za-z0-9._-]+")


class Seed(NamedTuple):
    """All of it is optional but the name.

    :ivar hostname: as in the cluster's file, where there is one
    :ivar host_key: sshd's private key, ed25519, OpenSSH's text
    :ivar authorized_keys: who may log in as root, one line a key
    :ivar network: "slirp": eth0 is 10.0.2.15/24 behind QEMU's user network; "none"
    :ivar sources: package folders that go to /opt/emucsd
    :ivar services: shell command lines that init keeps alive, in this order
    :ivar cluster: /etc/ocfs2/cluster.conf
    :ivar hosts: name -> address, for /etc/hosts
    :ivar files: path -> content, mode 0644 (0600 below root/ and for keys)
    """

    hostname: str
    host_key: str = ""
    authorized_keys: str = ""
    network: str = "none"
    sources: Sequence[Path] = ()
    services: Sequence[str] = ()
    cluster: str | None = None
    hosts: Mapping[str, str] = {}
    files: Mapping[str, bytes] = {}

    def pack(self, *, progress: Callable[[str], None] = print) -> bytes:
        """The archive.

        :raises PackagesMissing: the Python that compiles the sources can't be had
        """
        entries = {**self._settings(), **self._sources(progress)}
        entries.update({path.lstrip("/"): content for path, content in self.files.items()})
        digest = hashlib.blake2b(digest_size=16)
        for path, content in sorted(entries.items()):
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
        entries["etc/emucsd/seed"] = f"{digest.hexdigest()}\n".encode()
        archive = Initramfs()
        for path in _PRIVATE:
            archive.folder(f"{_TOP}/{path}", 0o700)
        for path, content in sorted(entries.items()):
            archive.file(f"{_TOP}/{path}", content, _mode(path))
        return archive.pack()

    def write(self, image: Image, path: Path, *, progress: Callable[[str], None] = print) -> Path:
        """The one file that QEMU's ``-initrd`` takes: the image's, then this. :returns: ``path``"""
        path.write_bytes(image.initrd.read_bytes() + self.pack(progress=progress))
        return path

    def _settings(self) -> dict[str, bytes]:
        hosts = {"localhost": "127.0.0.1", self.hostname: "127.0.1.1", **self.hosts}
        texts = {
            "etc/hostname": f"{self.hostname}\n",
            "etc/hosts": "".join(f"{address} {name}\n" for name, address in hosts.items()),
            "etc/emucsd/network": f"{self.network}\n",
        }
        if self.host_key:
            texts["etc/ssh/ssh_host_ed25519_key"] = self.host_key.rstrip("\n") + "\n"
        if self.authorized_keys:
            texts["root/.ssh/authorized_keys"] = self.authorized_keys.rstrip("\n") + "\n"
        if self.cluster is not None:
            texts["etc/ocfs2/cluster.conf"] = self.cluster
        for number, (name, command) in enumerate(zip(service_names(self.services), self.services, strict=True)):
            texts[f"etc/emucsd/services/{number:02}-{name}"] = (
                f"exec {command}\n" if _simple(command) else f"{command}\n"
            )
        return {path: text.encode() for path, text in texts.items()}

    def _sources(self, progress: Callable[[str], None]) -> dict[str, bytes]:
        entries: dict[str, bytes] = {}
        helpers = tools(progress=progress) if self.sources else None
        for package in self.sources:
            below = package.resolve().parent
            found = [path for path in sorted(package.resolve().rglob("*")) if path.is_file() and _wanted(path)]
            entries.update({f"{HOME}/{path.relative_to(below)}": path.read_bytes() for path in found})
            assert helpers is not None
            modules = [path for path in found if path.suffix == ".py"]
            for name, code in bytecode.cached(modules, below, f"/{HOME}", helpers).items():
                entries[f"{HOME}/{name}"] = code
        return entries


def service_names(commands: Sequence[str]) -> list[str]:
    """What services are called (their logs are /var/log/NAME.log): what a leading ``: NAME;`` says, else the module
    after -m, else the program.
    """
    names: list[str] = []
    for command in commands:
        words = shlex.split(command) or ["service"]
        if words[0] == ":" and len(words) > 1:
            name = words[1].rstrip(";")
        else:
            name = words[words.index("-m") + 1] if "-m" in words[:-1] else Path(words[0]).name
        name = _WORD.sub("-", name)
        again = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{again + 1}" if again else name)
    return names


def _simple(command: str) -> bool:
    """One program with its words: the shell need not stay."""
    return not set(command) & set("|&;<>()$`\n=")


def _wanted(path: Path) -> bool:
    return not any(part in _LEFT_OUT or part.startswith(".") for part in path.parts[-4:])


def _mode(path: str) -> int:
    if path.startswith("root/") or path.endswith("_key"):
        return 0o600
    return 0o755 if path.startswith(("usr/bin/", "usr/sbin/")) else 0o644
