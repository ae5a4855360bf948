"""Static wear levelling: data that never changes moves off the youngest blocks, so that they take their share.

Dynamic levelling is in ``blocks.take_free``.
"""

from __future__ import annotations

from emucsd_firmware.ftl.state import ABSENT, BAD, FULL, Ftl
from emucsd_wire.words import get_u8, get_u32, jit

WEAR_EVERY = 16  # victims of a die between two looks at its wear


@jit
def coldest_block(ftl: Ftl, die: int) -> int:
    """The die's least worn full block, if its wear lies more than ``wear_gap`` below the most worn block's; else -1."""
    first = die << ftl.block_bits
    least, most, coldest = 1 << 40, 0, -1
    for block in range(first, first + ftl.blocks):
        kind = get_u8(ftl.kinds, block)
        if kind == BAD or kind == ABSENT:
            continue
        erases = get_u32(ftl.erases, block)
        most = max(most, erases)
        if kind == FULL and erases < least:
            least, coldest = erases, block
    return coldest if coldest >= 0 and most - least > ftl.wear_gap else -1
