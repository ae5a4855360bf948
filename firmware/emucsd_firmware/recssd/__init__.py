"""RecSSD in the controller's firmware: sums made by the controller's own processor, page by page.

``state`` what it keeps · ``requests`` a request from its write to its last read · ``pages`` its two passes over the
pairs and what flash pages bring · ``caches`` page buffer and embedding cache · ``waiters`` reads that are held.
"""
