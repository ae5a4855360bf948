"""The user's own code: found by name, called with the run's seed, blamed by file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from emucsd.stannis.errors import FactoryFailed, MemoryExceeded
from emucsd.stannis.training.errors import ModelFailed
from emucsd.stannis.training.factory import (
    AUXILIARY_WEIGHT,
    blamed,
    build_loss,
    build_model,
    build_optimizer,
    load,
    seed_all,
)
from emucsd.stannis.training.schedule import learning_rate
from tests.unit.stannis_ranks import NETS, spec


def line_of(mark: str) -> int:
    """The line of the nets' file with that mark."""
    return next(n for n, line in enumerate(NETS.read_text().splitlines(), 1) if line.endswith(f"# {mark}"))


def test_load(tmp_path: Path) -> None:
    """By module, by file, by attribute; two files of one name are two modules, and a file sees its neighbours."""
    assert load("torch.nn:Linear") is torch.nn.Linear
    assert load("torch:nn.Linear") is torch.nn.Linear
    assert load(f"{NETS}:plain") is load(f"{NETS}:plain")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"beside_{name}.py").write_text(f"NAME = '{name}'\n")
        (tmp_path / name / "model.py").write_text(f"from beside_{name} import NAME\ndef name(): return NAME\n")
    assert [load(f"{tmp_path / name / 'model.py'}:name")() for name in ("a", "b")] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_such_module:f", r"importing no_such_module raised ModuleNotFoundError"),
        ("torch.nn:NoSuch", "torch.nn has no function 'NoSuch'"),
        ("/no/such/file.py:f", "no such file"),
        (f"{NETS}:never", r"no function 'never'; it has .*plain"),
        ("plain", "names no function"),
        ("torch:__version__", "no function"),
    ],
)
def test_not_found(name: str, text: str) -> None:
    """Each way to be wrong has its text."""
    with pytest.raises(FactoryFailed, match=text):
        load(name)


def test_file_with_a_mistake(tmp_path: Path) -> None:
    """A syntax error and an exception at import name the file and the line; the next try reads the file again."""
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n\ndef f(:\n")
    with pytest.raises(FactoryFailed, match="SyntaxError") as raised:
        load(f"{path}:f")
    assert raised.value.where == f"{path}:3"
    path.write_text("x = 1\nx.no_such\n")
    with pytest.raises(FactoryFailed, match="AttributeError") as raised:
        load(f"{path}:f")
    assert raised.value.where == f"{path}:2"
    path.write_text("def f(): return 5\n")
    assert load(f"{path}:f")() == 5


def test_factory_that_raises() -> None:
    """The user's line, not ours, and what it said; a factory that gives no module is told so."""
    with pytest.raises(FactoryFailed, match=r"KeyError.*'width'") as raised:
        build_model(spec("raising"))
    assert raised.value.where == f"{NETS}:{line_of('RAISING')}"
    with pytest.raises(FactoryFailed, match=r"gave a str; it must return a torch\.nn\.Module"):
        build_model(spec("nothing"))
    with pytest.raises(FactoryFailed, match=r"TypeError.*no_such"):
        build_model(spec("plain", arguments={"no_such": 1}))
    with pytest.raises(FactoryFailed, match=r"must return a torch\.optim\.Optimizer"):
        build_optimizer(spec("plain", optimizer="builtins:slice"), build_model(spec("plain")))


def test_seeds() -> None:
    """The run's seed decides the weights; each step and rank draws its own."""
    first, again = (torch.nn.utils.parameters_to_vector(build_model(spec("plain")).parameters()) for _ in range(2))
    other = torch.nn.utils.parameters_to_vector(build_model(spec("plain", seed=6)).parameters())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    drawn = set()
    for parts in ((1, 2), (1, 3), (2, 2), (1, 2)):
        seed_all(*parts)
        drawn.add(float(torch.rand(1)))
    assert len(drawn) == 3


def test_losses() -> None:
    """Mean over the batch; auxiliary outputs count their weight; a loss of one's own is taken."""
    outputs, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    plain = float(torch.nn.functional.cross_entropy(outputs, labels))
    loss = build_loss(spec("plain"))
    assert float(loss(outputs, labels)) == pytest.approx(plain)
    assert float(loss((outputs, outputs), labels)) == pytest.approx(plain * (1 + AUXILIARY_WEIGHT))
    assert float(loss((outputs, None), labels)) == pytest.approx(plain)
    assert float(build_loss(spec("plain", label_smoothing=0.2))(outputs, labels)) != pytest.approx(plain)
    assert float(build_loss(spec("plain", loss=f"{NETS}:squared"))(outputs, labels)) == pytest.approx(1.5)


def test_no_memory() -> None:
    """Python's and torch's ways to say it are one error; others keep their text, but where samples are private."""

    def failing(problem: Exception) -> Any:
        raise problem

    for problem in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")):
        with pytest.raises(MemoryExceeded, match="smaller batch"), blamed("the model"):
            failing(problem)
    with pytest.raises(ModelFailed, match="pixel 12") as raised, blamed("the model"):
        failing(ValueError("pixel 12"))
    assert raised.value.where.startswith(__file__)
    with pytest.raises(ModelFailed) as raised, blamed("the model", private=True):
        failing(ValueError("pixel 12"))
    assert "12" not in str(raised.value).replace(raised.value.where, "")
    assert raised.value.__suppress_context__


def test_learning_rate() -> None:
    """Linear scaling, warm-up in equal increments from the unscaled rate, then constant, milestones or a cosine."""
    about = spec("plain", lr=0.1, base_batch=32, warmup_epochs=2.0)
    rates = [learning_rate(about, 128, epoch / 2, 10) for epoch in range(6)]
    assert rates == pytest.approx([0.1, 0.175, 0.25, 0.325, 0.4, 0.4])
    assert learning_rate(about, 16, 0.0, 10) == learning_rate(about, 16, 5.0, 10) == pytest.approx(0.05)
    steps = spec("plain", lr=0.1, base_batch=32, warmup_epochs=0.0, decay="milestones", milestones=(2.0, 4.0))
    rates = [learning_rate(steps, 64, epoch, 10) for epoch in (1.9, 2.0, 3.9, 4.0)]
    assert rates == pytest.approx([0.2, 0.02, 0.02, 0.002])
    cosine = spec("plain", lr=0.1, base_batch=32, warmup_epochs=1.0, decay="cosine")
    rates = [learning_rate(cosine, 32, epoch, 5.0) for epoch in (1.0, 3.0, 5.0, 9.0)]
    assert rates == pytest.approx([0.1, 0.05, 0.0, 0.0], abs=1e-12)
