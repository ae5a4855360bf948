"""Where the next page goes, and what it is put together with.

``pick_die`` names a plane, drive-wide: ``die * planes_of_a_die + plane``. It may look at anything in the FTL and in the
NAND model, and must change nothing. If the plane that it names has no room, the FTL goes on from there by turns.

``stream_of`` sorts the host's pages by temperature into streams that share no open block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emucsd_wire.words import get_u32

if TYPE_CHECKING:
    from emucsd_firmware.ftl.state import Ftl
    from emucsd_firmware.nand.state import Nand


def pick_die(ftl: Ftl, nand: Nand, stream: int, turn: int) -> int:
    """Stripe over channels, then dies, then planes. ``turn`` counts from 0 to the number of planes, over and over."""
    return get_u32(ftl.stripes, turn)


def stream_of(age: int, pages: int, streams: int) -> int:
    """0 for pages that will be overwritten soon (hot), 1 for others (cold); without hot/cold separation always 0.

    :param age: host pages written since the version that this one replaces was new; -1: the page is written first
    :param pages: logical pages in use: what a page's age is on average when all are overwritten alike
    :param streams: 3: hot, cold and GC; 2: host and GC; 1: one for all
    """
    if streams < 3:
        return 0
    return 0 if 0 <= age < pages >> 1 else 1
