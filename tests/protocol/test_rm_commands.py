"""`emucsd rm` and `emucsd bench rm` on real drives."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from emucsd.bench.rm import KEYS, run_rm_bench, sized
from emucsd.cli.command import FAILED, OK
from emucsd.cli.main import main
from emucsd.errors import InvalidArgument

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def drive() -> Iterator[str]:
    """A drive that is up, with folders of its own; killed in the end."""
    patch = pytest.MonkeyPatch()
    with tempfile.TemporaryDirectory(prefix="emucsd-test-") as folder:
        patch.setenv("EMUCSD_RUNTIME", f"{folder}/run")
        patch.setenv("EMUCSD_STORE", f"{folder}/store")
        up = ["up", "r0", "--drive-only", "--profile", "rmssd", "--size", "256MiB", "--clock", "virtual", "--json"]
        assert main(up) == OK
        yield "r0"
        main(["down", "--all", "--force"])
        patch.undo()


def told(capsys: Capture, *argv: str, code: int = OK) -> dict[str, Any]:
    """What a command's --json says."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_models(capsys: Capture) -> None:
    """The published models are listed with their shapes, for people too."""
    models = told(capsys, "rm", "models")["models"]
    assert {model["name"]: model["lookups"] for model in models}["rmc2"] == 3840
    assert main(["rm", "models"]) == OK
    assert "8 x 4 M x 32" in capsys.readouterr().out


def test_infer(drive: str, capsys: Capture) -> None:
    """Tables are made where there are none and used where there are; every answer is checked against NumPy's."""
    argv = ["rm", "infer", drive, "rmc1", "--rows", "500", "--samples", "20", "--batch", "8"]
    first = told(capsys, *argv)
    again = told(capsys, *argv, "--without", "decompose", "--grain", "page")
    assert [first["tables_made"], again["tables_made"]] == [True, False]
    assert first["worst_difference"] < 1e-5
    assert first["first"] == again["first"]
    assert first["session"]["inferred"] == 20
    assert first["modelled_s"] < again["modelled_s"]
    assert main([*argv, "--samples", "3"]) == OK
    assert "differs by" in capsys.readouterr().out


def test_info(drive: str, capsys: Capture) -> None:
    """A mapping is told without a weight being sent; a command line of DLRM's names a model as well."""
    said = told(capsys, "rm", "info", drive, "rmc3", "--rows", "50", "--fpga", "XC7A200T")["session"]
    assert said["fpga"] == "XC7A200T"
    assert said["resources"]["dsp"]["used"] <= said["resources"]["dsp"]["total"]
    assert [layer["group"] for layer in said["layers"]].count("embedding") == 1
    assert main(["rm", "info", drive, "dlrm", "--dlrm=--arch-mlp-bot=13-64-2"]) == OK
    assert "13 x 64" in capsys.readouterr().out
    assert main(["rm", "info", drive, "dlrm", "--dlrm=--learning-rate=1"]) == FAILED
    assert "learning-rate" in capsys.readouterr().err


def test_bench() -> None:
    """The benchmark says what it promises, of the models that were asked for, with sums equal bit for bit."""
    result = run_rm_bench(seconds=0.01, models=("rmc1",), batches=(1, 2), table_bytes=1 << 20)
    assert tuple(result) == KEYS
    assert result["rmc1_inferences_per_s"] > 0
    assert result["rmc2_inferences_per_s"] is None
    assert result["bit_equal"]
    assert result["worst_difference"] < 1e-5
    assert list(result["environment"]["rm"]["rmc1"]["batches"]) == ["1", "2"]
    assert sized("rmc1", 1 << 40).table_bytes == 8 * 4_000_000 * 128, "no more rows than published"
    with pytest.raises(InvalidArgument):
        run_rm_bench(seconds=0)
