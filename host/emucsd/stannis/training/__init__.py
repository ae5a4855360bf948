"""Training on one rank: gradients weighted by samples, batch norm over all ranks, checkpoints, measurements.

Nothing in here knows a socket or a node: a rank meets the others through ``collective.Collective`` alone, its samples
through an iterable of batches. Needs PyTorch; what is used of it exists in 2.6 and in 2.13.
"""
