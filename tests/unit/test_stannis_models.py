"""emucsd.stannis.models: sizes as published, shapes, gradients, and what training keeps in memory.

Most of it runs on PyTorch's meta device, which computes nothing: VGG alone would take seconds to be given values.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from emucsd.stannis import models  # noqa: E402  (there is PyTorch)
from emucsd.stannis.models.__main__ import NAMES, costs, main  # noqa: E402

# with 1000 classes, as torchvision states them; MobileNet and NASNet: as their authors' releases have them
PARAMETERS = {
    "densenet121": 7_978_856,
    "inception_v3": 23_834_568,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
    "nasnet_a_mobile": 5_289_978,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "squeezenet1_0": 1_248_424,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
}
TABLE_1 = {"mobilenet_v2": 3.47e6, "nasnet_a_mobile": 5.3e6, "inception_v3": 23.83e6, "squeezenet1_0": 1.25e6}
SMALLEST = {"inception_v3": 75}  # sides of images; the others: 32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def without_values(name: str, *arguments: Any, **words: Any) -> Any:
    with torch.device("meta"):
        return getattr(models, name)(*arguments, **words)


def batch(side: int, images: int = 2, **words: Any) -> tuple[Any, Any]:
    return torch.randn(images, 3, side, side, **words), torch.zeros(images, dtype=torch.long, **words)


def test_every_network_is_counted() -> None:
    """No network is left out of these tests."""
    assert {*NAMES} == {*PARAMETERS, "small"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    """As many parameters as are known; those of Table I within 1.5 % of what it says."""
    found = sum(one.numel() for one in without_values(name).parameters())
    assert found == PARAMETERS[name]
    assert found == pytest.approx(TABLE_1.get(name, found), rel=0.015)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_gradients(name: str) -> None:
    """Images of the smallest side that is stated give scores of each class, and every parameter a gradient."""
    model = without_values(name, 7)
    images, labels = batch(SMALLEST.get(name, 32), device="meta")
    scores = model(images)
    assert scores.shape == (2, 7)
    torch.nn.functional.cross_entropy(scores, labels).backward()
    assert not [name for name, one in model.named_parameters() if one.grad is None]
    assert model.eval()(images[:1]).shape == (1, 7), "a single image is evaluated"


@pytest.mark.parametrize(("name", "words", "lr"), [
    ("small", {}, 1e-3), ("mobilenet_v2", {"width": 0.35, "small_input": True}, 1e-3), ("squeezenet1_0", {}, 2e-4),
    ("resnet18", {"zero_init_residual": True}, 1e-3),
])  # fmt: skip
def test_it_learns(name: str, words: dict[str, Any], lr: float) -> None:
    """A few steps on eight images, whose brightness is their class, lower the loss: values at the start are usable."""
    torch.manual_seed(5)
    model = getattr(models, name)(4, **words)
    for dropout in (one for one in model.modules() if isinstance(one, torch.nn.Dropout)):
        dropout.p = 0.0  # so few steps would drown in it
    labels = torch.arange(8) % 4
    images = torch.randn(8, 3, 32, 32) + labels.view(8, 1, 1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    losses = []
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0], losses


def test_small_input_keeps_planes() -> None:
    """MobileNetV2 ends at 1x1 with 32x32 images, at 4x4 with `small_input`; ResNet at 4x4 too."""
    for name, words, side in (("mobilenet_v2", {}, 1), ("mobilenet_v2", {"small_input": True}, 4),
                              ("resnet18", {"small_input": True}, 4)):  # fmt: skip
        planes = without_values(name, 10, **words).features(batch(32, device="meta")[0])
        assert planes.shape[2:] == (side, side), (name, words)


def test_description_by_hand() -> None:
    """`small` on 32x32: each figure follows from its layers."""
    one = models.describe(models.small(10), (3, 32, 32))
    macs = 32 * 32 * 16 * 27 + 16 * 16 * 32 * 16 * 9 + 8 * 8 * 64 * 32 * 9 + 64 * 10
    # inputs of convolutions; what pooling takes (kept once: ReLU works in place) and its places, of 8 bytes; the last
    # ReLU's output; what the linear layer takes
    planes, pooled = 3 * 1024 + 16 * 1024 + 32 * 256 + 64 * 64, 16 * 256 + 32 * 64
    assert one.macs == macs
    assert one.parameters == 3 * 16 * 9 + 16 + 16 * 32 * 9 + 32 + 32 * 64 * 9 + 64 + 64 * 10 + 10
    assert one.activation_bytes == 4 * planes + (4 + 8) * pooled + 4 * 64
    assert one.largest_bytes == 4 * 16 * 1024
    assert (one.parameter_bytes, one.buffer_bytes) == (4 * one.parameters, 0)


def test_macs_as_published() -> None:
    """MobileNetV2 300 M (its Table 4), NASNet-A mobile 564 M and Inception v3 5.72 G (Table I of Stannis)."""
    found = {name: costs(name).macs for name in ("mobilenet_v2", "nasnet_a_mobile", "inception_v3")}
    assert found == {"mobilenet_v2": pytest.approx(300e6, rel=0.01), "nasnet_a_mobile": pytest.approx(564e6, rel=0.01),
                     "inception_v3": pytest.approx(5.72e9, rel=0.01)}  # fmt: skip


class Marked(torch.nn.Module):  # type: ignore[misc,name-defined]  # torch's types are not looked at
    """A model of somebody's own: it makes a tensor where the processor's memory is, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.spread = torch.nn.ConvTranspose2d(3, 4, 2, stride=2)

    def forward(self, images: Any) -> Any:
        mark = torch.tensor([1.0] * 3, device="cpu").view(3, 1, 1)
        return torch.nn.functional.dropout(self.spread(self.norm(images * mark)).mean((2, 3)))


@pytest.mark.parametrize("make", [Marked, lambda: models.mobilenet_v2(4, width=0.35)])
def test_description_leaves_all_as_it_was(make: Any) -> None:
    """Parameters, running means, modes and random numbers are the same; also of a model that needs memory."""
    model = make().eval()
    next(iter(model.children())).train()
    before, modes = {key: one.clone() for key, one in model.state_dict().items()}, [m.training for m in model.modules()]
    random = torch.get_rng_state()
    one = models.describe(model, (3, 32, 32))
    assert one.macs > 0
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[key], now) for key, now in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    if isinstance(model, Marked):
        assert one.macs == 32 * 32 * 3 * 4 * 4, "of a transposed convolution each input is spread"
    with pytest.raises(RuntimeError, match=r"channels|size of tensor"):
        models.describe(model, (2, 32, 32))


def test_largest_batch() -> None:
    """The largest batch fits, one more does not; nothing fits where parameters do not."""
    one = costs("mobilenet_v2", 32)
    largest = one.largest_batch(100_000_000)
    assert one.training_bytes(largest) <= 100_000_000 < one.training_bytes(largest + 1)
    assert one.largest_batch(1_000_000) == 0


MEASURE = """
import re, torch
from emucsd.stannis import models
torch.set_num_threads(1)
model = models.mobilenet_v2(10)
for images, side in ((2, 32), (16, 96)):
    torch.nn.functional.cross_entropy(model(torch.randn(images, 3, side, side)), torch.zeros(images).long()).backward()
    print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10)
"""


def test_memory_as_measured() -> None:
    """What a batch takes of a real process' memory is what was predicted, within 35 %."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-c", MEASURE]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    least, most = map(int, done.stdout.split())
    one = costs("mobilenet_v2", 96, 10)
    assert most - least == pytest.approx(one.training_bytes(16) - one.training_bytes(0), rel=0.35)


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m emucsd.stannis.models`: a line for each, or JSON; an unknown name is refused with those there are."""
    assert main(["small", "mobilenet_v2"]) == 0
    assert "3,504,872" in capsys.readouterr().out
    assert main(["--json", "--side", "64", "--classes", "10", "small"]) == 0
    assert json.loads(capsys.readouterr().out)["small"]["image"] == [3, 64, 64]
    with pytest.raises(SystemExit):
        main(["lenet"])
    assert "no such network: lenet; there are densenet121" in capsys.readouterr().err
