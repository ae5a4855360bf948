"""A garbage-collection policy of one's own: leave young blocks alone, then be greedy, and spare worn blocks.

    emucsd up disk0 --drive-only --firmware firmware/emucsd_firmware/examples/windowed_gc.py

A block that was filled a moment ago is still losing pages to overwrites: emptying it now copies pages that would soon
have died by themselves. So blocks younger than a window score low, whatever they hold. Among the others the emptiest
wins, less a small price for each erase that it has behind it, so that wear spreads while space is being won.
"""

from __future__ import annotations

WINDOW = 4  # blocks' worth of host writes within which a block counts as young
PRICE = 0.05  # pages that one earlier erase costs in the comparison


def gc_score(valid: int, pages: int, age: int, erases: int) -> float:
    """Higher is emptied sooner. See ``emucsd_firmware.policies.collection`` for what the arguments are."""
    gain = float(pages - valid) - PRICE * erases
    if age < WINDOW * pages:
        return 0.1 * gain
    return gain
