"""emucsd.stannis.models: sizes as published, shapes, gradients, and what training keeps in memory."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from emucsd.stannis import models  # noqa: E402  (there is PyTorch)

PARAMETERS = {
    "mobilenet_v1": 4_231_976,
    "mobilenet_v2": 3_504_872,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def made(name: str, *arguments: Any, **words: Any) -> Any:
    return getattr(models, name)(*arguments, **words)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    """As many parameters as the papers' authors and torchvision state for 1000 classes."""
    with torch.device("meta"):
        model = made(name)
    assert sum(one.numel() for one in model.parameters()) == PARAMETERS[name]
