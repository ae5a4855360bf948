"""One rank of a measurement: gradients of MobileNetV2 added up over ranks, again and again, as the trainer does it.

    python -m emucsd.bench.allreduce --rank 0 --size 2 --address 10.77.0.1 --rounds 30

Rank 0 prints ``{"store": PORT}``, the others are given it (``--store 10.77.0.1:PORT``), and each prints ``{"bytes",
"seconds": [one a round]}`` at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import time

WARM_UP = 3  # rounds that don't count


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser()
    for name in ("--rank", "--size", "--rounds"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--store", default="")
    given = parser.parse_args()

    import torch

    from emucsd.stannis.group.gloo import GlooGroup
    from emucsd.stannis.models import mobilenet_v2
    from emucsd.stannis.training.gradients import Gradients, Part

    torch.set_num_threads(1)
    group = GlooGroup(given.rank, given.size, 0)
    host, _, port = given.store.rpartition(":")
    group.form(
        given.address,
        store=lambda: (host, int(port)) if host else None,
        announce=lambda port: print(json.dumps({"store": port}), flush=True),
    )
    gradients = Gradients(mobilenet_v2(), given.size)
    part = Part(1, 1.0, 0, 0.0)
    seconds = []
    for _ in range(given.rounds + WARM_UP):
        gradients.begin(group)
        group.all_reduce(torch.zeros(1))  # nobody begins before the others are there
        begun = time.perf_counter()
        gradients.reduce(part)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"bytes": gradients.bytes, "seconds": seconds[WARM_UP:]}), flush=True)
    group.close()
    os._exit(0)  # Gloo's threads and the store's end as they like


if __name__ == "__main__":
    main()
