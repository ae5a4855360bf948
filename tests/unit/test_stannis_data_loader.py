"""Decoding, augmentation, and the loader: the right pixels, in the right order, ahead of time."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from emucsd.stannis.data.decode import decode, encode, fit
from emucsd.stannis.data.errors import DataFormat, DriveGone, ShardDamaged, ShardMissing
from emucsd.stannis.data.loader import Loader
from emucsd.stannis.data.samples import Payload
from emucsd.stannis.data.source import Source
from emucsd.stannis.data.source import open as open_source
from emucsd.stannis.data.transform import MEAN, PADDING, STD, Transform, pool_key
from emucsd.stannis.errors import FactoryFailed
from tests.drive_process import until
from tests.unit.stannis_samples import encoded, folder, picture

IMAGE = (3, 32, 32)
Order = list[list[tuple[str, int]]]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    with open_source(str(folder(tmp_path / "images", suffix="png"))) as opened:
        yield opened


def seen(
    transform: Transform, payload: Payload, *, seed: int = 1, epoch: int = 0, index: int = 0
) -> NDArray[np.float32]:
    out = np.zeros(transform.image, np.float32)
    transform(payload, out, seed, epoch, pool_key("pool"), index, False)
    return out


# -- decoding ----------------------------------------------------------------------------------------------------------


def as_file(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_pixels() -> None:
    """PNG gives back the pixels, JPEG nearly."""
    pixels = picture(1)
    assert np.array_equal(decode(encode(pixels), 3), pixels)
    assert np.abs(decode(encoded(1), 3).astype(int) - pixels).mean() < 16


def test_modes() -> None:
    """Grey, palette, transparent and 16-bit pictures become RGB; colour becomes grey where that is asked for."""
    pixels = picture(2)
    image = Image.fromarray(pixels)
    grey = np.asarray(image.convert("L"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(decode(as_file(image.convert("L")), 3), np.repeat(grey[..., None], 3, 2))
        assert np.array_equal(decode(as_file(image.convert("RGBA")), 3), pixels)
        assert np.array_equal(decode(as_file(image), 1)[..., 0], grey)
        palette = image.convert("P")
        assert np.array_equal(decode(as_file(palette), 3), np.asarray(palette.convert("RGB")))
        palette.info["transparency"] = bytes(range(256))
        assert decode(as_file(palette), 3).shape == (32, 32, 3)
    deep = Image.fromarray(grey.astype(np.uint16) << 8)
    assert np.array_equal(decode(as_file(deep), 1)[..., 0], grey)


def test_size() -> None:
    """A picture is brought to the size asked for, by the same filter from a file and from an array."""
    pixels = picture(3, 64, 48)
    found = decode(encode(pixels), 3, (24, 20))
    wanted = np.asarray(Image.fromarray(pixels).resize((20, 24), Image.Resampling.BILINEAR))
    assert np.array_equal(found, wanted)
    assert np.array_equal(fit(pixels, 3, (24, 20)), wanted)
    assert fit(pixels, 3, (64, 48)) is pixels
    assert fit(pixels[..., :1], 3, None).shape == (64, 48, 3)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", encoded(1)[:300], encoded(1, "PNG")[:-60], b"GIF89a" + bytes(99)]
)
def test_no_picture(data: bytes) -> None:
    """What is no whole JPEG or PNG is ShardDamaged, with its size and nothing else of it, and without a cause."""
    with pytest.raises(ShardDamaged, match=f"{len(data)} bytes") as caught:
        decode(data, 3)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_without_pillow() -> None:
    """Where Pillow is missing the error says how to install it."""
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from emucsd.stannis.data.decode import decode\n"
        "try:\n    decode(b'', 3)\nexcept Exception as problem:\n    print(type(problem).__name__, problem)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.startswith("DecoderMissing")
    assert "python3-pil" in done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# -- augmentation ------------------------------------------------------------------------------------------------------


def test_normalised() -> None:
    """(value / 255 - mean) / std for each channel, mean and std of ImageNet or the run's own."""
    pixels = picture(4)
    found = seen(Transform("none", IMAGE), encode(pixels))
    wanted = (pixels.transpose(2, 0, 1) / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    assert np.allclose(found, wanted, atol=1e-6)
    own = seen(Transform("none", IMAGE, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)), pixels)
    assert np.allclose(own, pixels.transpose(2, 0, 1) / 255 - 0.5, atol=1e-6)
    with pytest.raises(DataFormat, match="3 channels"):
        Transform("none", IMAGE, (0.5,), (1.0,))


def test_standard() -> None:
    """A crop of the picture with 4 black pixels around it, flipped or not; over many samples all of them."""
    pixels = picture(5)
    pixels[...] = np.random.default_rng(0).integers(1, 256, pixels.shape)
    plain = Transform("none", (3, 40, 40))
    around = seen(plain, np.pad(pixels, ((PADDING, PADDING), (PADDING, PADDING), (0, 0))))
    transform = Transform("standard", IMAGE)
    kinds = set()
    for index in range(400):
        found = seen(transform, pixels, index=index)
        for flip, down, right in itertools.product((False, True), range(9), range(9)):
            view = around[:, ::1, ::-1] if flip else around
            if np.array_equal(found, view[:, down : down + 32, right : right + 32]):
                kinds.add((flip, down, right))
                break
        else:
            raise AssertionError(f"sample {index} is no crop of the picture")
    assert len({kind[0] for kind in kinds}) == 2
    assert {kind[1] for kind in kinds} == {kind[2] for kind in kinds} == set(range(9))


def test_chance_is_the_sample_s() -> None:
    """What is random hangs on seed, epoch, pool and index: on each of them, and on nothing else."""
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    transform = Transform("standard", IMAGE)
    first = [seen(transform, pixels, index=index).tobytes() for index in range(20)]
    again = [seen(Transform("standard", IMAGE), pixels, index=index).tobytes() for index in reversed(range(20))]
    assert first == again[::-1]
    for other in ({"seed": 2}, {"epoch": 1}):
        changed = [seen(transform, pixels, index=index, **other).tobytes() for index in range(20)]
        assert sum(a != b for a, b in zip(first, changed, strict=True)) > 15
    out = np.zeros(IMAGE, np.float32)
    differ = 0
    for index in range(20):
        transform(pixels, out, 1, 0, pool_key("another"), index, False)
        differ += out.tobytes() != first[index]
    assert differ > 15


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox4x64-10, as Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3") define it."""
    mask, key_0, key_1, words = (1 << 64) - 1, *key, list(counter)
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * words[0], 0xCA5A826395121157 * words[2]
        words = [high >> 64 ^ words[1] ^ key_0, high & mask, low >> 64 ^ words[3] ^ key_1, low & mask]
        key_0, key_1 = key_0 + 0x9E3779B97F4A7C15 & mask, key_1 + 0xBB67AE8584CAA73B & mask
    return words


@pytest.mark.parametrize("seed", [0, 7, (1 << 63) - 1])
def test_chance_is_philox(seed: int) -> None:
    """Crop and flip are the first words of Philox at the sample's place, for keys of all 64 bits."""
    pixels = np.random.default_rng(1).integers(1, 256, (32, 32, 1), np.uint8)
    transform = Transform("standard", (1, 32, 32), (0.0,), (1.0,))
    for index in range(10):
        words = philox((seed, pool_key("pool")), (1, index, 3, 0))
        view = np.pad(pixels[:, ::-1, 0] if words[0] & 1 else pixels[..., 0], PADDING)
        down, right = words[1] % 9, words[2] % 9
        wanted = view[down : down + 32, right : right + 32]
        found = seen(transform, pixels, seed=seed, epoch=3, index=index)[0]
        assert np.array_equal(np.round(found * 255).astype(np.uint8), wanted)


def test_flips() -> None:
    """``flip`` turns about half of the samples around, and moves none."""
    pixels = picture(6)
    plain = seen(Transform("none", IMAGE), pixels)
    transform = Transform("flip", IMAGE)
    found = [seen(transform, pixels, index=index) for index in range(300)]
    turned = sum(np.array_equal(one, plain[..., ::-1]) for one in found)
    assert sum(np.array_equal(one, plain) for one in found) + turned == 300
    assert 110 < turned < 190


def turned(image: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """A user's transform: a rotation by chance."""
    return np.rot90(image, int(rng.integers(4)))


def raising(image: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """A user's transform with a bug, whose message has the sample in it."""
    raise KeyError(f"secret {image[0, 0, 0]}")


def test_the_user_s_function(tmp_path: Path) -> None:
    """A function by name or from a file gets the picture in its own size, and a generator of the sample's."""
    pixels = picture(7, 64, 64)
    sizes = []

    def looking(image: NDArray[np.uint8], rng: Generator) -> NDArray[np.float32]:
        sizes.append(image.shape)
        return rng.random(IMAGE).astype(np.float32)

    own = Transform(looking, IMAGE)
    assert np.array_equal(seen(own, pixels, index=3), seen(own, pixels, index=3))
    assert not np.array_equal(seen(own, pixels, index=3), seen(own, pixels, index=4))
    assert sizes[0] == (64, 64, 3)
    (tmp_path / "mine.py").write_text("def half(image, rng):\n    return image[:32]\n")
    half = seen(Transform(f"{tmp_path}/mine.py:half", IMAGE), pixels)
    assert np.array_equal(half, seen(Transform("none", IMAGE), pixels[:32]))
    named = Transform(f"{__name__}:turned", IMAGE)
    assert len({seen(named, pixels, index=index).tobytes() for index in range(20)}) == 4
    for text in ("nothing", "no.such.module:f", "math:no_such", f"{tmp_path}/none.py:f", "math:pi"):
        with pytest.raises(FactoryFailed):
            Transform(text, IMAGE)
    with pytest.raises(FactoryFailed, match=r"u8\[H, W, 3\] is wanted"):
        seen(Transform(lambda image, rng: image[0], IMAGE), pixels)


def test_a_failing_function_keeps_private_samples() -> None:
    """The user's exception is told with its place; of a private pool without its text."""
    transform = Transform(raising, IMAGE)
    with pytest.raises(FactoryFailed, match="secret") as caught:
        seen(transform, picture(8))
    assert Path(__file__).name in caught.value.where
    out = np.zeros(IMAGE, np.float32)
    with pytest.raises(FactoryFailed, match="KeyError at") as caught:
        transform(picture(8), out, 1, 0, 1, 0, True)
    assert "secret" not in f"{caught.value} {caught.value.__context__!r}"


# -- the loader --------------------------------------------------------------------------------------------------------


def test_batches(source: Source) -> None:
    """Batches in the order's order, of its sizes, empty ones too, with the run's labels."""
    order: Order = [[("a", 3), ("a", 0)], [], [("a", 11)], [("b", 11), ("a", 5), ("b", 0)]]
    classes = ("zebra", "cat", "bee", "ant")
    plain = Transform("none", IMAGE)
    with Loader({"a": source, "b": source}, order, "none", image=IMAGE, classes=classes) as loader:
        batches = list(loader)
    assert [len(batch.labels) for batch in batches] == [2, 0, 1, 3]
    assert batches[1].images.shape == (0, *IMAGE)
    for batch, wanted in zip(batches, order, strict=True):
        assert batch.images.dtype == np.float32
        assert batch.labels.dtype == np.int64
        assert not batch.skipped
        for row, label, (_, index) in zip(batch.images, batch.labels, wanted, strict=True):
            payload, own = source.sample(index)
            assert np.array_equal(row, seen(plain, payload))
            assert classes[label] == source.classes[own]
    assert loader.seconds > 0
    with pytest.raises(StopIteration):
        next(loader)


def test_tensors(source: Source) -> None:
    """``tensors`` are the batch's own memory."""
    torch = pytest.importorskip("torch")
    with Loader({"a": source}, [[("a", 1), ("a", 2)]], image=IMAGE) as loader:
        images, labels = next(loader).tensors()
    assert (images.shape, labels.dtype) == ((2, *IMAGE), torch.int64)


def test_same_pixels_in_any_batch(source: Source) -> None:
    """Two ranks with parts of a step see what one process with all of it sees."""
    whole: Order = [[("a", index) for index in range(12)]]
    parts: list[Order] = [[[("a", index) for index in range(7)]], [[("a", index) for index in range(7, 12)]]]
    found = []
    for order in (whole, *parts):
        with Loader({"a": source}, order, "standard", 5, image=IMAGE, epoch=2) as loader:
            found.append(next(loader).images)
    assert np.array_equal(found[0], np.concatenate(found[1:]))


def test_ahead_but_not_far(source: Source) -> None:
    """The thread works ahead by ``prefetch`` batches and the one in the making, and waits then."""
    asked = []

    def order() -> Iterator[list[tuple[str, int]]]:
        for step in itertools.count():
            asked.append(step)
            yield [("a", step % 12)]

    with Loader({"a": source}, order(), image=IMAGE, prefetch=3) as loader:
        until(lambda: len(asked) == 4)
        for _ in range(5):
            next(loader)
        until(lambda: len(asked) == 9)
    assert len(asked) == 9
    assert not loader._thread.is_alive()


def test_closing(source: Source) -> None:
    """``close`` ends the thread, also while it waits for room, and a consumer that waits for a batch."""
    stuck = threading.Event()

    def order() -> Iterator[list[tuple[str, int]]]:
        yield [("a", 0)]
        stuck.wait(30)
        yield [("a", 1)]

    loader = Loader({"a": source}, order(), image=IMAGE)
    next(loader)
    ended: list[bool] = []

    def consume() -> None:
        ended.append(next(loader, None) is None)

    consumer = threading.Thread(target=consume)
    consumer.start()
    closer = threading.Thread(target=loader.close)
    closer.start()
    consumer.join(10)
    assert ended == [True]
    stuck.set()
    closer.join(10)
    loader.close()
    assert not loader._thread.is_alive()


def damaged(source: Source, index: int) -> None:
    """Cut a sample's file short, in its own size: its end is zeros."""
    path = Path(source.where(index))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))


def test_a_damaged_sample_fails(source: Source) -> None:
    """Policy ``fail``: the error comes at the step that needs the sample, after those before, with pool and index."""
    damaged(source, 4)
    order: Order = [[("a", 1)], [("a", 2)], [("a", 3), ("a", 4)], [("a", 5)]]
    with Loader({"a": source}, order, image=IMAGE) as loader:
        assert len(next(loader).labels) == 1
        assert len(next(loader).labels) == 1
        with pytest.raises(ShardDamaged, match="pool 'a', sample 4") as caught:
            next(loader)
        assert (caught.value.pool, caught.value.index) == ("a", 4)
        with pytest.raises(StopIteration):
            next(loader)


def test_a_damaged_sample_is_skipped(source: Source) -> None:
    """Policy ``skip``: it is left out, counted by pool, and the batch is smaller by it, down to none."""
    damaged(source, 4)
    Path(source.where(7)).unlink()
    order: Order = [[("a", 3), ("a", 4), ("a", 5)], [("a", 7)], [("a", 8)]]
    with Loader({"a": source, "b": source}, order, "none", image=IMAGE, policy="skip") as loader:
        batches = list(loader)
    assert [(len(batch.labels), batch.skipped) for batch in batches] == [(2, 1), (0, 1), (1, 0)]
    assert loader.skipped == {"a": 2, "b": 0}
    assert isinstance(loader.first_error, ShardDamaged)
    plain = Transform("none", IMAGE)
    assert np.array_equal(batches[0].images[1], seen(plain, source.sample(5)[0]))


def test_what_is_never_skipped(source: Source) -> None:
    """A drive that is gone, an order of other pools, a transform that fails: no policy goes on."""

    class Gone:
        location, private, count = "ns:2", True, 12
        classes, labels, sizes = source.classes, source.labels, source.sizes

        def samples(self, indices: Sequence[int]) -> list[Payload]:
            raise DriveGone("the drive does not answer")

    for sources, transform, error in (
        ({"a": Gone()}, "none", DriveGone),
        ({"a": source}, raising, FactoryFailed),
        ({"other": source}, "none", DataFormat),
    ):
        with Loader(sources, [[("a", 0)]], transform, image=IMAGE, policy="skip") as loader, pytest.raises(error):  # type: ignore[arg-type]
            next(loader)


def test_private_names_stay_unsaid(tmp_path: Path) -> None:
    """A damaged private sample is told by pool and index, and not by its file."""
    root = folder(tmp_path / "images", suffix="png")
    with open_source(str(root)) as open_one:
        damaged(open_one, 0)
        paths = [Path(open_one.where(index)) for index in (0, 1)]
    with open_source(str(root), private=True) as source:
        paths[1].unlink()
        for index, kind in ((0, ShardDamaged), (1, ShardMissing)):
            with Loader({"p": source}, [[("p", index)]], image=IMAGE) as loader, pytest.raises(kind) as caught:
                next(loader)
            told = f"{caught.value!r} {caught.value.__cause__!r}"
            assert f"pool 'p', sample {index}" in told
            assert not any(path.name in told for path in paths)


def test_classes_that_the_run_lacks(source: Source) -> None:
    """A pool with a class that is not in the run's list is refused before anything is read."""
    with pytest.raises(DataFormat, match="'cat'"):
        Loader({"a": source}, [], image=IMAGE, classes=("ant", "bee"))


def test_tensors_that_are_normalised(tmp_path: Path) -> None:
    """f32 tensors are taken as they are, of any number of channels, and refused where their size is another."""
    rows = np.random.default_rng(0).standard_normal((4, 5, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", images=rows, labels=np.arange(4))
    with open_source(str(tmp_path / "x.npz")) as source:
        with Loader({"a": source}, [[("a", 2)]], "none", image=(5, 8, 8)) as loader:
            assert np.array_equal(next(loader).images[0], rows[2])
        with (
            Loader({"a": source}, [[("a", 2)]], image=(5, 9, 8)) as loader,
            pytest.raises(DataFormat, match="run's image"),
        ):
            next(loader)
