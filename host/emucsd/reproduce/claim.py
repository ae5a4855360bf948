"""A published figure beside ours: what every report's table of claims is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Claim:
    """One published figure beside ours.

    :cvar near_share: a claim within this share of the published figure needs no explanation
    :ivar unit: as ``page.shown`` knows it
    :ivar deviation: ours over published, less one
    """

    near_share: ClassVar[float] = 0.25

    claim: str
    published: float
    unit: str
    source: str
    ours: float
    note: str

    @property
    def deviation(self) -> float:
        return self.ours / self.published - 1

    @property
    def near(self) -> bool:
        """Whether it is within ``near_share``."""
        return abs(self.deviation) <= self.near_share

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "claim": self.claim,
            "published": self.published,
            "unit": self.unit,
            "source": self.source,
            "ours": round(self.ours, 4),
            "deviation": round(self.deviation, 4),
            f"within_{100 * self.near_share:.0f}_percent": self.near,
            "note": self.note,
        }


def is_near(record: dict[str, Any]) -> bool:
    """Whether a claim's record says that it is near."""
    return any(value for key, value in record.items() if key.startswith("within_"))
