"""Sources of samples: folders, tars, tensors; what each says when it is not what it should be."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from emucsd.stannis.data.errors import DataError, DataFormat, ShardDamaged, ShardMissing, SplitsFound
from emucsd.stannis.data.found import check
from emucsd.stannis.data.inspect import inspect
from emucsd.stannis.data.location import parse
from emucsd.stannis.data.pack import Pack
from emucsd.stannis.data.reader import FileReader
from emucsd.stannis.data.source import Source, classes_of, digest
from emucsd.stannis.data.source import open as open_source
from emucsd.stannis.data.split import split
from emucsd.stannis.data.tar import TarSource
from emucsd.traces.data import find_data
from tests.unit.stannis_samples import CLASSES, encoded, folder, picture, tarred

CIFAR = "cifar10-7000.tar"


def everything(source: Source) -> list[tuple[object, int]]:
    return [source.sample(index) for index in range(source.count)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder(tmp_path / "images")


# -- the same samples, whatever holds them -------------------------------------------------------------------------


def test_folder(images: Path) -> None:
    """Classes by name, samples by class and name; what is hidden, no image, or an empty class does not count."""
    with open_source(str(images)) as source:
        assert (source.count, source.classes) == (12, CLASSES)
        assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        files = [name for cls in CLASSES for name in sorted(os.listdir(images / cls)) if name[0] in "0123456789"]
        for index, name in enumerate(files):
            data, label = source.sample(index)
            assert data == (images / CLASSES[label] / name).read_bytes()
            assert source.bytes_of(index) == len(data)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_is_the_folder(images: Path, tmp_path: Path, kind: int) -> None:
    """A tar of a folder, and shards of it in any order, have each sample at the folder's index."""
    if kind != tarfile.USTAR_FORMAT:
        (images / "bee" / ("long" * 40 + ".jpg")).write_bytes(encoded(99))
        (images / "cat" / "ümläut" / "é.jpg").parent.mkdir()
        (images / "cat" / "ümläut" / "é.jpg").write_bytes(encoded(98))
        odd = os.fsencode(images) + b"/no\xffutf"
        os.mkdir(odd)
        with open(odd + b"/\xfe.jpg", "wb") as file:
            file.write(encoded(97))
    one = tarred(tmp_path / "all.tar", images, kind=kind)
    for number in range(3):
        tarred(tmp_path / f"part-{number:05}-of-00003.tar", images, step=3, first=number, kind=kind)
    with open_source(str(images)) as wanted:
        for location in (str(one), f"{tmp_path}/part-*.tar"):
            with open_source(location) as source:
                assert everything(source) == everything(wanted)
                assert digest(source) == digest(wanted)
                assert source.samples([5, 0, 5]) == [wanted.sample(n)[0] for n in (5, 0, 5)]


def test_folder_inside_a_tar(images: Path, tmp_path: Path) -> None:
    """``x.tar/train`` is what lies in train/; of a set with train/ and test/ neither is taken for a class."""
    whole = tmp_path / "set"
    for part in ("train", "test"):
        folder(whole / part, 6 if part == "train" else 3)
    tar = tarred(tmp_path / "x.tar", whole)
    for root in (str(whole), str(tar)):
        with pytest.raises(SplitsFound, match="name one") as caught:
            open_source(root)
        assert caught.value.parts == {"test": f"{root}/test", "train": f"{root}/train"}
        with open_source(f"{root}/train") as source:
            assert (source.count, source.classes) == (6, CLASSES)
    with pytest.raises(DataFormat, match="no samples in nothing/"):
        open_source(f"{tar}/nothing")


def test_cifar() -> None:
    """The real thing: 6000 and 1000 images of ten classes, all whole."""
    home = find_data(CIFAR)
    if home is None:
        pytest.skip(f"no {CIFAR}: put it into shared/data beside the project, or name its folder in $EMUCSD_DATA")
    told = inspect(f"{home / CIFAR}/train")
    assert (told.count, len(told.classes), told.counts) == (6000, 10, (600,) * 10)
    with open_source(f"{home / CIFAR}/test") as source:
        found = check(source)
    assert (found.count, found.damaged, found.smallest, found.largest) == (1000, 0, (32, 32), (32, 32))


def test_class_lists() -> None:
    """Numbers are in order of value, names by name; a run has the union of its pools' classes."""

    class Some:
        def __init__(self, *classes: str) -> None:
            self.classes = classes

    assert classes_of([Some("b", "a"), Some("c")]) == ("a", "b", "c")  # type: ignore[list-item]
    assert classes_of([Some("10", "9"), Some("2")]) == ("2", "9", "10")  # type: ignore[list-item]
    assert classes_of([Some("10", "x"), Some("2")]) == ("10", "2", "x")  # type: ignore[list-item]


def test_inspect_keeps_silent_about_private(images: Path) -> None:
    """Of a private pool there are count, mean size and class names, and no digest, sum, or count of a class."""
    told = inspect(str(images), private=True).to_json()
    assert {key for key, value in told.items() if value is not None} == {
        "location", "private", "count", "classes", "sample_bytes",
    }  # fmt: skip
    public = inspect(str(images)).to_json()
    assert (public["counts"], public["count"], public["sample_bytes"]) == ([4, 4, 4], 12, told["sample_bytes"])


def test_digest_sees_content(tmp_path: Path) -> None:
    """Two pools of the same counts and sizes are not taken for copies of one."""
    for name, shift in (("a", 0), ("b", 1)):
        rows = np.arange(24 * 8 * 8 * 3, dtype=np.uint8).reshape(24, 8, 8, 3) + np.uint8(shift)
        np.savez(tmp_path / f"{name}.npz", images=rows, labels=np.arange(24) % 4)
    assert inspect(str(tmp_path / "a.npz")).digest != inspect(str(tmp_path / "b.npz")).digest


# -- tensors -------------------------------------------------------------------------------------------------------


def test_tensors(tmp_path: Path) -> None:
    """Channels first, last, or none; names or numbers for classes; samples come by class, as everywhere."""
    rows = np.stack([picture(n, 8, 12) for n in range(5)])
    labels = np.array([2, 0, 1, 0, 2])
    layouts = {"last": rows, "first": rows.transpose(0, 3, 1, 2), "grey": rows[..., 0]}
    for name, held in layouts.items():
        np.savez(tmp_path / f"{name}.npz", images=held, labels=labels, classes=["x", "y", "z"])
        with open_source(str(tmp_path / f"{name}.npz")) as source:
            assert (source.classes, source.labels.tolist()) == (("x", "y", "z"), [0, 0, 1, 2, 2])
            for index, row in enumerate([1, 3, 2, 0, 4]):
                found = source.sample(index)[0]
                wanted = rows[row] if name != "grey" else rows[row][..., :1]
                assert isinstance(found, np.ndarray)
                assert np.array_equal(found, wanted)
    np.savez(tmp_path / "plain.npz", images=rows, labels=labels + 9)
    assert open_source(str(tmp_path / "plain.npz")).classes[9:] == ("9", "10", "11")


def test_torch_tensors(tmp_path: Path) -> None:
    """A .pt file of a dict, or of a pair, is the same; nothing in it is run."""
    torch = pytest.importorskip("torch")
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([1, 0, 1, 0])
    for name, held in (("a", {"images": images, "labels": labels}), ("b", (images, labels))):
        torch.save(held, tmp_path / f"{name}.pt")
        with open_source(str(tmp_path / f"{name}.pt")) as source:
            found = source.sample(0)[0]
            assert isinstance(found, np.ndarray)
            assert np.array_equal(found, images[1].numpy())
    torch.save(Path("x"), tmp_path / "evil.pt")
    with pytest.raises(ShardDamaged, match=r"torch\.save"):
        open_source(str(tmp_path / "evil.pt"))


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({"images": np.zeros((2, 8, 8, 3))}, "uint8 is wanted"),
        ({"images": np.zeros((2, 8, 8, 5), np.uint8)}, "neither axis 1 nor axis 3"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "n at least 1"),
        ({}, "'images'"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0.0, 1.0])}, "whole numbers"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0, -1])}, "whole numbers"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0])}, "one for each of 2"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0, 2]), "classes": ["a", "b"]}, "2 names"),
        (
            {"images": np.zeros((2, 8, 8), np.uint8), "labels": np.array([0, 1]), "classes": ["a", "a/b"]},
            "a folder could",
        ),
    ],
)
def test_tensors_of_other_shapes(tmp_path: Path, held: dict[str, object], text: str) -> None:
    """Arrays that are no pictures with labels are refused, with what would do."""
    np.savez(tmp_path / "x.npz", **held)  # type: ignore[arg-type]
    with pytest.raises(DataFormat, match=text):
        open_source(str(tmp_path / "x.npz"))


# -- what can't be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("ns:0", "ns:N"),
        ("ns:two", "ns:N@K"),
        ("/data/x.tar.gz", "gunzip"),
        ("/data/x.tgz", "unpack it first"),
        ("/data/*.jpg", "folder of class folders"),
        ("", "give a folder"),
    ],
)
def test_bad_locations(location: str, text: str) -> None:
    """A text of no known form is refused before anything is opened, with the forms that are."""
    with pytest.raises(DataFormat, match=text):
        parse(location)


def test_good_locations() -> None:
    """What a location is taken for."""
    assert (parse("ns:3@1").nsid, parse("ns:3@1").variable) == (3, "EMUCSD_DISK_1")
    assert parse("ns:2").variable == "EMUCSD_DISK"
    assert (parse("/a/b.tar/x/y").path, parse("/a/b.tar/x/y").inside) == ("/a/b.tar", "x/y")
    assert [parse(text).kind for text in ("/a", "/a/b.tar", "/a/*.tar", "/a.npz", "/a.pt", "ns:9")] == [
        "folder", "tar", "tar", "tensors", "tensors", "namespace",
    ]  # fmt: skip


def test_missing(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there is ShardMissing; of numbered shards the lacking ones are told."""
    monkeypatch.delenv("EMUCSD_DISK", raising=False)
    for location in ("/no/folder", "/no/x.tar", "/no/*.tar", "/no/x.npz", "ns:2"):
        with pytest.raises(ShardMissing):
            open_source(location)
    for number in (0, 3):
        tarred(tmp_path / f"x-{number:05}-of-00004.tar", images, step=4, first=number)
    with pytest.raises(ShardMissing, match="of 4 shards 2 are not there: 1, 2"):
        open_source(f"{tmp_path}/x-*.tar")
    (tmp_path / "blank.tar").write_bytes(bytes(10240))
    with pytest.raises(ShardMissing, match="holds no tar"):
        open_source(str(tmp_path / "blank.tar"))


def test_gone_while_in_use(tmp_path: Path, images: Path) -> None:
    """A file or shard that goes away, or changes its size, fails the samples in it and no others."""
    for number in range(2):
        tarred(tmp_path / f"part{number}.tar", images, step=2, first=number)
    with open_source(f"{tmp_path}/part*.tar") as source, open_source(str(images)) as files:
        (tmp_path / "part1.tar").unlink()
        found = source.samples(range(12))
        assert {type(one) for one in found} == {bytes, ShardMissing}
        (images / "ant" / "000.jpg").write_bytes(b"short")
        assert isinstance(files.samples([0])[0], ShardDamaged)
        (images / "ant" / "000.jpg").unlink()
        with pytest.raises(ShardMissing, match="gone"):
            files.sample(0)
        assert isinstance(files.samples([1])[0], bytes)


def test_links_and_holes(tmp_path: Path, images: Path) -> None:
    """A sparse member or a link in a shard has no bytes in one place: refused, with how to pack again."""
    member = tarfile.TarInfo("ant/a.jpg")
    for kind, text in ((tarfile.LNKTYPE, "hard-dereference"), (tarfile.SYMTYPE, "-h"), (tarfile.FIFOTYPE, "no file")):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            member.type, member.linkname = kind, "b.jpg"
            archive.addfile(member)
        with pytest.raises(ShardDamaged, match=f"offset 0: .*{text}"):
            open_source(str(tmp_path / "x.tar"))
    sparse = tarfile.TarInfo("ant/a.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    header = sparse.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "x.tar").write_bytes(header + bytes(1024))
    with pytest.raises(ShardDamaged, match="sparse"):
        open_source(str(tmp_path / "x.tar"))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("top.jpg"))
    with pytest.raises(DataFormat, match="CLASS/name"):
        open_source(str(tmp_path / "x.tar"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[object]]:
    """A tar as ``put`` writes it: with checksums."""
    home = tmp_path_factory.mktemp("packed")
    with open_source(str(folder(home / "images", 6))) as source:
        data = b"".join(Pack(source, range(6)).pieces())
        return home, data, [source.sample(index)[0] for index in range(6)]


@hypothesis.settings(max_examples=150)
@hypothesis.given(data=st.data())
def test_any_damage_is_seen(packed: tuple[Path, bytes, list[object]], data: st.DataObject) -> None:
    """Cut off anywhere, or with any byte changed, a shard is refused or its samples are: none is silently another."""
    home, whole, wanted = packed
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:at]
    else:
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    (home / "x.tar").write_bytes(damaged)
    try:
        source = open_source(str(home / "x.tar"))
    except DataError:
        return
    found = source.samples(range(source.count))
    good = [one for one in found if isinstance(one, bytes)]
    assert all(isinstance(one, ShardDamaged) for one in found if not isinstance(one, bytes))
    assert all(one in wanted for one in good)
    assert source.count == 6
    if len(damaged) < len(whole) - 1024:
        raise AssertionError("a shard without its end was taken for whole")


@hypothesis.given(data=st.binary(max_size=4096))
def test_garbage(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever bytes a shard has, the answer is a typed error."""
    path = tmp_path_factory.getbasetemp() / "garbage.tar"
    path.write_bytes(b"\1" + data)
    with pytest.raises(DataError):
        open_source(str(path))


def test_private_names_stay_unsaid(tmp_path: Path, images: Path) -> None:
    """No error of a private source has the name of a file, shard or member in it, nor in its cause."""
    shards = tmp_path / "hidden"
    shards.mkdir()
    tarred(shards / "secretshard.tar", images)
    errors: list[BaseException] = []
    with open_source(f"{shards}/*.tar", private=True) as source, open_source(str(images), private=True) as files:
        (shards / "secretshard.tar").unlink()
        (images / "ant" / "000.jpg").unlink()
        errors += [one for held in (source, files) for one in held.samples([0]) if isinstance(one, ShardMissing)]
        assert "secretshard" not in source.where(0)
        assert "000.jpg" not in files.where(0)
    with tarfile.open(shards / "secretshard.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("000.jpg"))
    for damage in (None, 700):
        if damage:
            (shards / "secretshard.tar").write_bytes((tmp_path / "images" / "bee" / "037.jpg").read_bytes()[:damage])
        with pytest.raises(DataError) as caught:
            open_source(f"{shards}/*.tar", private=True)
        errors.append(caught.value)
    assert len(errors) == 4
    for problem in errors:
        told = f"{problem!r} {problem.__cause__!r} {problem.__context__!r}"
        assert "secretshard" not in told
        assert "000.jpg" not in told


# -- how it is read ------------------------------------------------------------------------------------------------


class Counting(FileReader):
    """A shard that counts what is read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), path.name)
        self.reads: list[int] = []

    def read(self, offset: int, count: int) -> bytes:
        """Counted."""
        found = super().read(offset, count)
        self.reads.append(len(found))
        return found


def test_headers_alone_are_read(tmp_path: Path) -> None:
    """An index reads headers: of shards with large bodies a small part, of small ones in few reads."""
    for size, share, reads in ((1 << 20, 0.02, 200), (900, 1.2, 40)):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for number in range(32 if size > 1000 else 2000):
                member = tarfile.TarInfo(f"c/{number:05}.jpg")
                member.size = size
                archive.addfile(member, io.BytesIO(bytes(size)))
        reader = Counting(tmp_path / "x.tar")
        TarSource(parse("x.tar"), shards=[reader])
        assert sum(reader.reads) < share * reader.size + 8192
        assert len(reader.reads) < reads


def test_neighbours_are_read_together(tmp_path: Path, images: Path) -> None:
    """A batch is read by offset, neighbours in one go, and comes in the order asked for."""
    reader = Counting(tarred(tmp_path / "x.tar", images))
    with open_source(str(images)) as wanted:
        source = TarSource(parse("x.tar"), shards=[reader])
        reader.reads.clear()
        order = [7, 3, 11, 0, 1, 2]
        assert source.samples(order) == [wanted.sample(index)[0] for index in order]
        assert len(reader.reads) == 1


# -- dealing out ---------------------------------------------------------------------------------------------------


def test_split(tmp_path: Path) -> None:
    """Every sample goes to one place, classes in equal parts, and private ones as many as asked for."""
    np.savez(tmp_path / "x.npz", images=np.zeros((600, 4, 4), np.uint8), labels=np.repeat(np.arange(6), 100))
    with open_source(str(tmp_path / "x.npz")) as source:
        parts = split(source, 3, 0.2, shares=[2, 1, 1])
        assert [(part.drive, part.private, len(part.indices)) for part in parts] == [
            (0, True, 60), (0, False, 240), (1, True, 30), (1, False, 120), (2, True, 30), (2, False, 120),
        ]  # fmt: skip
        assert sorted(np.concatenate([part.indices for part in parts]).tolist()) == list(range(600))
        for part in parts:
            counts = np.bincount(source.labels[part.indices], minlength=6)
            assert counts.max() - counts.min() <= 2
        copies = split(source, 2, 0.5, copies=True)
        assert [len(part.indices) for part in copies] == [150, 300, 150, 300]
        assert np.array_equal(copies[1].indices, copies[3].indices)
        with pytest.raises(DataFormat, match="one share for each of 3"):
            split(source, 3, 0.2, shares=[1, 1])


def test_packed_tar_is_a_tar(packed: tuple[Path, bytes, list[object]]) -> None:
    """What is put on a drive is a tar that others read, without the files' names, with every byte of the samples."""
    _, data, wanted = packed
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        assert names == [f"{cls}/{number:04}.jpg" for number, cls in enumerate(sorted(CLASSES * 2))] + [".emucsd/crc32"]
        bodies = [archive.extractfile(name) for name in names[:-1]]
        assert [body.read() for body in bodies if body] == wanted
