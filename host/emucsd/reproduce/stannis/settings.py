"""What is run: numbers of drives, steps, sweeps; each value once, with its reason; two sets, the second for tests."""

from __future__ import annotations

from dataclasses import dataclass

NEWPORT_LIST = (1, 2, 4, 5, 8, 10, 15, 16, 20, 25, 32, 40, 50, 64, 100)
DRIVES_A_SERVER = 24


@dataclass(frozen=True)
class Settings:
    """:ivar csds: drives whose engines work, of the sweep behind Figures 6 and 7
    :ivar steps: of a point
    :ivar servers: of 24 drives each, of the sweep over several hosts
    :ivar in_one: drives of one host, of the sweep that shows where it saturates
    :ivar large_steps: of a point of these two
    :ivar imbalance: samples of the fullest drive's private pool over the mean
    :ivar slowed_steps: of a run whose engines slow down
    :ivar images: of the real run's training set, and of its test set
    :ivar real_epochs: of the real run
    :ivar real_seeds: shuffles of the one process that it is compared with
    """

    csds: tuple[int, ...]
    steps: int
    servers: tuple[int, ...]
    in_one: tuple[int, ...]
    large_steps: int
    imbalance: tuple[float, ...]
    slowed_steps: int
    images: tuple[int, int]
    real_epochs: int
    real_seeds: int


FULL = Settings(
    csds=(0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24),
    steps=20,
    servers=(1, 2, 4, 10, 21, 42),
    in_one=(8, 24, 48, 96, 192, 384),
    large_steps=3,
    imbalance=(1, 2, 4, 6, 8, 16, 24),
    slowed_steps=90,
    images=(5000, 1000),
    real_epochs=4,
    real_seeds=3,
)

QUICK = Settings(
    csds=(0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24),
    steps=3,
    servers=(1, 4),
    in_one=(24, 96),
    large_steps=1,
    imbalance=(1, 8),
    slowed_steps=60,
    images=(320, 160),
    real_epochs=1,
    real_seeds=1,
)

REASONS = {
    "csds": "0 to 24, as Figures 6 and 7 have them",
    "steps": "each with its own jitter of 1 %: the mean of 20 is good to a few parts in a thousand",
    "servers": "of 24 drives, as the paper's server: to 1,008 drives",
    "in_one": "a server that had more bays: where its host can't carry more",
    "imbalance": "one drive holds so many times the mean; the others share the rest evenly",
    "slowed_steps": "the retuner looks for 11 steps, waits for 5 that agree, and rests 30 after a change",
    "images": "of the real run: CIFAR-10's, as many as train in a minute and a half on two cores",
    "real_seeds": "the same one process with other orders and augmentations: how far two runs may be apart by chance",
}
