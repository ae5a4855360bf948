"""The user's own code: finding it, calling it, and saying where it failed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from emucsd.errors import EmucsdError
from emucsd.stannis.errors import FactoryFailed, MemoryExceeded
from emucsd.stannis.spec import Spec
from emucsd.stannis.training.errors import ModelFailed

Loss = Callable[[Any, torch.Tensor], torch.Tensor]

_LOADING = threading.RLock()
AUXILIARY_WEIGHT = 0.3  # of a classifier inside of the network: Szegedy et al., "Going Deeper with Convolutions", 5
_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent), importlib.__file__ or "", "<frozen")


def load(name: str) -> Callable[..., Any]:
    """A function by ``module:function`` or ``path/to/file.py:function``.

    :raises FactoryFailed: there is no such file, module or function, or importing it raised
    """
    home, _, function = name.rpartition(":")
    if not home or not function:
        raise FactoryFailed(f"{name!r} names no function: give 'module:function' or 'path/to/file.py:function'")
    module = _load_file(Path(home)) if home.endswith(".py") else _load_module(home)
    found: Any = module
    for attribute in function.split("."):
        found = getattr(found, attribute, None)
    if not callable(found):
        names = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise FactoryFailed(f"{home} has no function {function!r}; it has {', '.join(names[:12]) or 'none at all'}")
    return found  # type: ignore[no-any-return]


def _load_module(name: str) -> ModuleType:
    with blamed(f"importing {name}", FactoryFailed):
        return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise FactoryFailed(f"{path}: no such file; paths are those of the node that trains")
    # a name of its own, so that two files called model.py don't meet; pickles and dataclasses look it up
    name = f"emucsd_user_{path.stem}_{hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()}"
    with _LOADING:  # else a second thread would find the module while it is still empty
        return sys.modules[name] if name in sys.modules else _run_file(path, name)


def _run_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # its neighbours, as `python file.py` has them
    try:
        with blamed(f"importing {path}", FactoryFailed):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def build_model(spec: Spec) -> torch.nn.Module:
    """The user's model, with the weights that ``spec.seed`` gives: the same on every rank.

    :raises FactoryFailed: the factory can't be loaded, raised, or gave no torch.nn.Module
    :raises MemoryExceeded: there is no memory for it
    """
    factory = load(spec.factory)
    seed_all(spec.seed)
    with blamed(f"factory {spec.factory}", FactoryFailed):
        model = factory(**spec.arguments)
    if not isinstance(model, torch.nn.Module):
        raise FactoryFailed(f"factory {spec.factory} gave a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def build_loss(spec: Spec) -> Loss:
    """:raises FactoryFailed: the user's loss can't be loaded"""
    if spec.loss != "cross_entropy":
        return load(spec.loss)
    smoothing = spec.label_smoothing

    def cross_entropy(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Mean over the batch; outputs of auxiliary classifiers count ``AUXILIARY_WEIGHT``."""
        parts = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        losses = [
            torch.nn.functional.cross_entropy(o, labels, label_smoothing=smoothing) for o in parts if o is not None
        ]
        return losses[0] + AUXILIARY_WEIGHT * sum(losses[1:]) if len(losses) > 1 else losses[0]

    return cross_entropy


def build_optimizer(spec: Spec, model: torch.nn.Module) -> torch.optim.Optimizer:
    """:raises FactoryFailed: the user's can't be loaded, raised, or gave no torch.optim.Optimizer"""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with blamed(f"optimizer {spec.optimizer}", FactoryFailed):
        if spec.optimizer == "sgd":
            return torch.optim.SGD(
                parameters,
                lr=spec.lr,
                momentum=spec.momentum,
                nesterov=spec.nesterov,
                weight_decay=spec.weight_decay,
            )
        if spec.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=spec.lr, weight_decay=spec.weight_decay)
        made = load(spec.optimizer)(parameters, spec.lr)
    if not isinstance(made, torch.optim.Optimizer):
        raise FactoryFailed(f"{spec.optimizer} gave a {type(made).__name__}; it must return a torch.optim.Optimizer")
    return made


def main_output(outputs: Any) -> torch.Tensor:
    """Of a model with auxiliary classifiers the last one's, which comes first; of any other what it gives."""
    return outputs[0] if isinstance(outputs, tuple | list) else outputs


def seed_all(*parts: int) -> None:
    """Seed torch's, NumPy's and Python's generators, which models draw weights and dropout from, by several numbers."""
    state = np.random.SeedSequence(parts).generate_state(3, np.uint64)
    torch.default_generator.manual_seed(int(state[0] >> np.uint64(1)))
    np.random.seed(int(state[1] & np.uint64(0xFFFFFFFF)))
    random.seed(int(state[2]))


@contextmanager
def blamed(what: str, kind: type[FactoryFailed] = ModelFailed, *, private: bool = False) -> Iterator[None]:
    """Turn what the user's code raises into an error that says where in *their* code.

    :param private: the exception's own text is kept back, and the exception with it: it may quote a sample
    """
    try:
        yield
    except EmucsdError:
        raise
    except Exception as problem:
        if is_memory(problem):
            raise MemoryExceeded(f"{what}: no memory left; take a smaller batch or a smaller model") from None
        where = users_line(problem)
        said = "" if private else f": {problem}"
        hint = "; what it said is kept back, for the rank has private samples: try it on generated ones" * private
        text = f"{what} raised {type(problem).__name__} at {where}{said}{hint}"
        raise kind(text, where) from (None if private else problem)


def is_memory(problem: BaseException) -> bool:
    """Whether an exception is torch's or Python's way to say that memory is used up."""
    text = str(problem)
    return isinstance(problem, MemoryError) or (
        isinstance(problem, RuntimeError)
        and any(
            sign in text for sign in ("can't allocate memory", "not enough memory", "std::bad_alloc", "out of memory")
        )
    )


def users_line(problem: BaseException) -> str:
    """``file:line`` of the innermost frame that is neither torch's nor ours; where there is none, of the innermost."""
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{problem.filename}:{problem.lineno}"
    frames = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}"
