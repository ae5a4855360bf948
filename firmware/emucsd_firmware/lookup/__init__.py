"""The lookup engine: sums of embedding vectors, made where the vectors lie.

One bag walks through: ``requests`` (what was sent, under which tag) -> ``translator`` (row id -> extent -> place in the
flash address space) -> ``fmc`` (vector reads over channels and dies) -> ``vsum`` (FP32 adds in index order) ->
``requests`` (when the sums are ready). ``tables`` is the control thread's side: open, close, list, count.
"""
