"""Inference sessions: RM-SSD's MMIO manager and its pipeline of lookups, bottom MLP and top MLP.

A batch is cut into mini-batches. Each asks the lookup engine (``lookup``) for the sums of every table, which land where
the MLP engine (``mlp``) reads them. ``batches`` takes batches up and gives them back, ``requests`` feeds the lookup
engine, ``pipeline`` keeps the modelled times, ``inference`` computes, a bounded slice at a time, ``sessions`` is the
control thread's side. Nothing here knows NVMe commands, queues or sockets.
"""
