"""``python -m emucsd_firmware profile [NAME] [KEY=VALUE …]``: its settings as JSON; nothing is compiled."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from emucsd_firmware.errors import ProfileError
from emucsd_firmware.femu_knobs import FEMU_NAMES
from emucsd_firmware.profile import KNOBS, Profile, load, names

USAGE = "usage: python -m emucsd_firmware profile [NAME] [KEY=VALUE ...]"


def described(profile: Profile) -> dict[str, Any]:
    """A profile with every setting's value, limits and meaning."""
    settings = []
    for key, row in KNOBS.items():
        value: Any = profile
        for part in key.split("."):
            value = getattr(value, part)
        limits: dict[str, Any] = {"choices": row.choices} if row.choices else {"low": row.low, "high": row.high}
        settings.append({"key": key, "value": value, **limits, "about": row.about})
    return {"name": profile.name, "source": profile.source, "settings": settings, "femu_names": FEMU_NAMES}


def main(arguments: Sequence[str]) -> int:
    """One profile, or all built-in ones in a line each. :returns: 1 for one that can't be used, 2 for wrong usage"""
    if not arguments or arguments[0] != "profile":
        print(USAGE, file=sys.stderr)
        return 2
    try:
        if len(arguments) == 1:
            loaded = map(load, names())
            found: dict[str, Any] = {"profiles": {p.name: {"shape": str(p), "source": p.source} for p in loaded}}
        else:
            pairs = [word.partition("=") for word in arguments[2:]]
            found = described(load(arguments[1], **{key: value for key, _, value in pairs}))
    except ProfileError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
