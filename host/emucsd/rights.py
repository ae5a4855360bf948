"""Who may use a table of a volume: an owner and a mode, as a file has them, checked as open(2) checks them.

The volume's directory keeps them, and this library checks: whoever may open the drive itself may read any block of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from emucsd.errors import EmucsdError, InvalidArgument

READ, WRITE = 4, 2
MODE = 0o600  # of a new table
_WORDS = {READ: "read", WRITE: "change"}


class NoRight(EmucsdError, PermissionError):
    """The caller may not do that with a table. :ivar table: its name"""

    def __init__(self, table: str, owner: Owner, uid: int, wanted: int) -> None:
        bit = "r" if wanted == READ else "w"
        super().__init__(
            f"user {uid} may not {_WORDS[wanted]} table {table!r}: it is user {owner.uid}'s, group {owner.gid}, mode "
            f"{owner.mode:#o}; its owner can create it with a mode that has {bit} for others (mode=0o644, 0o666), or "
            f"do it as user {owner.uid} or root"
        )
        self.table, self.owner, self.uid = table, owner, uid


class Owner(NamedTuple):
    """A table's user, group and permission bits."""

    uid: int
    gid: int
    mode: int

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Owner | None:
        """As an entry of a volume says; None where it does not: then it is everybody's."""
        if "uid" not in attributes:
            return None
        return cls(int(attributes["uid"]), int(attributes.get("gid", -1)), int(attributes.get("mode", MODE)))

    @classmethod
    def new(cls, name: str, mode: int = MODE, uid: int | None = None) -> Owner:
        """Of a table that the caller makes. :raises NoRight: for another user, by one who is not root"""
        if not 0 <= mode <= 0o777:
            raise InvalidArgument(f"mode {mode:#o}: 0 to 0o777, as a file's permission bits")
        owner = cls(os.geteuid() if uid is None else uid, os.getegid(), mode)
        if os.geteuid() not in (0, owner.uid):
            raise NoRight(name, owner, os.geteuid(), WRITE)
        return owner

    def allows(self, wanted: int, uid: int, groups: frozenset[int]) -> bool:
        """Whether a user of these groups may READ or WRITE."""
        if uid == 0:
            return True
        shift = 6 if uid == self.uid else 3 if self.gid in groups else 0
        return self.mode >> shift & wanted == wanted


def check_right(name: str, owner: Owner | None, wanted: int) -> None:
    """:raises NoRight: this process' user may not"""
    uid = os.geteuid()
    if owner is not None and not owner.allows(wanted, uid, frozenset([os.getegid(), *os.getgroups()])):
        raise NoRight(name, owner, uid, wanted)
