"""The ranks of a run and who leads them: one coordinator, one worker per engine, on the tunnel's network.

``coordinator`` and ``worker`` are the programs; see docs/stannis-group.md. The coordinator needs no PyTorch.
"""
