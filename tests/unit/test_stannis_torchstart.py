"""emucsd.stannis.torchstart: PyTorch without compiler and meta device trains the same, and gets them when asked."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from emucsd.stannis import torchstart

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

TRAIN = """
import gc, json, sys
{start}
import torch
import torch.distributed
torch.set_num_threads(1)

def loaded():
    names = ("torch._meta_registrations", "torch._dynamo", "torch.quantization")
    return [bool(getattr(sys.modules.get(name), "__spec__", None)) for name in names]

torch.manual_seed(1)
layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 10)]
model = torch.nn.Sequential(*layers)
sums = []
for make in (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.01)):
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4))
        loss.backward()
        optimizer.step()
        sums.append(loss.item())
    optimizer.load_state_dict(optimizer.state_dict())
told = {{"losses": sums, "grad": torch.is_grad_enabled(), "gc": gc.isenabled(), "trained": loaded()}}
told["ao"] = torch.ao.quantization.__name__
torch._dynamo.reset()
told["completed"] = loaded()
told["meta"] = list(torch.nn.Conv2d(3, 4, 3, device="meta")(torch.zeros(2, 3, 8, 8, device="meta")).shape)
print(json.dumps(told))
"""


def told(start: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-c", TRAIN.format(start=start)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_trains_the_same() -> None:
    """Losses are equal bit for bit; what was left out is not imported for it, and is there when it is used."""
    plain, quick = told(""), told("from emucsd.stannis import torchstart; torchstart.start()")
    assert quick["losses"] == plain["losses"]
    assert quick["trained"] == [False, False, False]
    assert plain["trained"] == [True, True, True]
    for one in (plain, quick):
        assert (one["grad"], one["gc"], one["completed"]) == (True, True, [True, True, True])
        assert (one["ao"], one["meta"]) == ("torch.ao.quantization", [2, 4, 6, 6])


def test_nothing_changes_where_torch_is_imported() -> None:
    """Called late, or twice, it returns what is there."""
    torch = importlib.import_module("torch")
    before = sys.modules["torch._meta_registrations"]
    assert torchstart.start() is torchstart.start() is torch
    torchstart.complete()
    assert sys.modules["torch._meta_registrations"] is before
