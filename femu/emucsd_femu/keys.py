"""SSH keys of a testbed: one for its user, one for each machine; new each time, and readable by their owner alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat


class KeyPair(NamedTuple):
    """An ed25519 key: the private half as OpenSSH's text, the public one as ``ssh-ed25519 ...``."""

    private: str
    public: str

    @classmethod
    def make(cls) -> KeyPair:
        """A new one."""
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return cls(private.decode(), public.decode())

    def write(self, path: Path) -> Path:
        """The private half to a file that only its owner can read, the public one beside it, as ``path``.pub."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w") as file:
            file.write(self.private)
        path.with_name(f"{path.name}.pub").write_text(f"{self.public} emucsd\n")
        return path
