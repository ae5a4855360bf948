"""A host machine and the machine in a drive train one network together: an x86-64 and a Cortex-A53, both emulated.

Public samples lie on a namespace that both ports have, private ones on one that the engine made for itself; batches are
unequal. Every step's loss is that of one process here, on the same samples. The full images are booted for this alone:
a minute and a half on two busy cores, most of it boot and PyTorch's import in both machines.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
image_module = pytest.importorskip("PIL.Image")

import torch  # noqa: E402  (it is there)

from emucsd.cli.main import main  # noqa: E402
from emucsd.stannis.data.loader import Loader  # noqa: E402
from emucsd.stannis.data.source import open as open_source  # noqa: E402
from emucsd.stannis.plan.order import union  # noqa: E402
from emucsd.stannis.plan.plan import Plan  # noqa: E402
from emucsd.stannis.spec import Spec  # noqa: E402
from emucsd.stannis.training.factory import build_loss, build_model, build_optimizer  # noqa: E402
from emucsd.stannis.training.schedule import learning_rate  # noqa: E402
from emucsd.testbed import Testbed  # noqa: E402
from emucsd_images.errors import ImagesError  # noqa: E402
from emucsd_images.image import image  # noqa: E402
from tests.system.conftest import made  # noqa: E402

pytestmark = pytest.mark.vm

DESCRIPTION = """
[testbed]
name = "stannis"
images = "full"
[[drive]]
name = "csd"
profile = "null"
size = "128MiB"
[cluster]
ocfs2 = false
mount = ""
"""
STEPS, BATCHES = 10, {"host": 12, "isp0": 4}
PUBLIC, PRIVATE = 130, 30
CLASSES = ("dark", "red", "green", "blue")
CLOSE = 1e-5  # relative: FP32 sums, in the order of other processors' vector units; 4e-7 was seen
SPEC = Spec(
    "emucsd.stannis.models:small", {"num_classes": len(CLASSES), "channels": 4}, lr=6.4, steps=STEPS, seed=7,
    batches=BATCHES, threads={"host": 1, "isp0": 2},
)  # fmt: skip


def photographs(path: Path, count: int, seed: int) -> Path:
    """JPEGs of 32x32, noise of their class' colour, in a tar with a folder a class."""
    chance = np.random.default_rng(seed)
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            label = number % len(CLASSES)
            pixels = chance.integers(0, 120, (32, 32, 3), np.uint8)
            if label:
                pixels[:, :, label - 1] += 100
            encoded = io.BytesIO()
            image_module.fromarray(pixels).save(encoded, "jpeg", quality=90)
            member = tarfile.TarInfo(f"{CLASSES[label]}/{number}.jpg")
            member.size = len(encoded.getvalue())
            encoded.seek(0)
            archive.addfile(member, encoded)
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the samples of each pool lie here."""
    folder = tmp_path_factory.mktemp("samples")
    return {
        "public": photographs(folder / "public.tar", PUBLIC, 1),
        "private": photographs(folder / "private.tar", PRIVATE, 2),
    }


@pytest.fixture(scope="module")
def full() -> Iterator[Testbed]:
    """A testbed of the full images, with nothing on its drive."""
    try:
        for name in ("host", "isp"):
            image(name)
    except ImagesError as problem:
        pytest.skip(str(problem))
    with made(DESCRIPTION, "stannis") as started:
        yield started


def put(testbed: Testbed, samples: dict[str, Path]) -> dict[str, str]:
    """Each machine writes through its own port, to a namespace that it makes. :return: locations by pool

    First the namespace over the whole drive makes way for a smaller one: the tunnel, whose commands go through it in
    either machine, has to find the new one.
    """
    testbed.host.run(
        "nvme delete-ns /dev/nvme0 -n 1 && nvme create-ns /dev/nvme0 -s 4096 -c 4096 -f 0 -m 1 && "
        "nvme attach-ns /dev/nvme0 -n 1 -c 1,2",
        check=True,
    )
    machines = {"public": testbed.host, "private": testbed.isp(0)}

    def one(pool: str) -> str:
        machine, flag = machines[pool], " --private" if pool == "private" else ""
        machine.put(samples[pool], f"/root/{pool}.tar")
        done = machine.run(f"python3 -m emucsd.stannis.data put /dev/nvme0 /root/{pool}.tar{flag}", check=True)
        return str(json.loads(done.out)["location"])

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(machines, pool.map(one, machines), strict=True))


def alone(plan: Plan, pools: dict[str, Path]) -> list[float]:
    """The losses of one process that trains on all ranks' samples of each step."""
    torch.set_num_threads(1)
    model, loss = build_model(SPEC).train(), build_loss(SPEC)
    optimizer = build_optimizer(SPEC, model)
    losses = []
    sources = {name: open_source(str(path)) for name, path in pools.items()}
    batches = Loader(
        sources, union(plan, 0), SPEC.transform, SPEC.seed, image=SPEC.image, epoch=0, classes=sorted(CLASSES)
    )
    with batches:
        for step, batch in zip(range(STEPS), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(SPEC, plan.global_batch, step / plan.steps, SPEC.epochs)
            optimizer.zero_grad()
            images, labels = batch.tensors()
            value = loss(model(images), labels)
            value.backward()
            optimizer.step()
            losses.append(value.item())
    for source in sources.values():
        source.close()
    return losses


def test_two_machines_train_as_one(
    full: Testbed, samples: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten steps over the tunnel with batches of 12 and 4: losses equal one process', and no private byte has left."""
    monkeypatch.setenv("EMUCSD_RUNTIME", str(full.runtime.parent))
    at = put(full, samples)
    out = tmp_path / "run"
    words = ["train", SPEC.factory, "--data", at["public"], "--private", f"isp0={at['private']}", "--drives", "stannis"]
    assert main([*words, *options(), "--out", str(out)]) == 0
    record: dict[str, Any] = json.loads((out / "record.json").read_text())
    assert record["ended"]["how"] == "done"
    assert {node["kind"] for node in record["nodes"]} == {"host-machine", "machine"}
    plan = Plan.from_json(json.dumps(record["training"]["plans"][-1]))
    assert {share.node: share.batch for share in plan.shares} == BATCHES
    private = next(pool.name for pool in plan.pools if pool.private)
    assert plan.share("isp0").quota[private] == PRIVATE
    losses = [loss for _, loss in record["training"]["losses"]]
    assert len(losses) == STEPS
    assert losses == pytest.approx(alone(plan, {"public": samples["public"], private: samples["private"]}), rel=CLOSE)
    assert record["privacy"]["verdict"] == "kept", record["privacy"]
    assert record["privacy"]["port0_bytes"] == record["privacy"]["watch_hits"] == 0
    assert record["privacy"]["port1_bytes"] > samples["private"].stat().st_size // 2, "they were read, by the engine"


def options() -> list[str]:
    """SPEC in the command line's words."""
    words = ["--steps", str(STEPS), "--seed", str(SPEC.seed), "--lr", str(SPEC.lr), "--silence", "60", "--no-plot"]
    for name, value in SPEC.arguments.items():
        words += ["--arg", f"{name}={value}"]
    for node, batch in BATCHES.items():
        words += ["--batches", f"{node}={batch}", "--threads", f"{node}={SPEC.threads[node]}"]
    return words
