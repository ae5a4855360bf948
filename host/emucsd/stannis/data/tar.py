"""Tar shards: files, or a tar that lies on a namespace from its block 0."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from emucsd.stannis.data.errors import DataFormat, Lost, ShardDamaged, ShardMissing
from emucsd.stannis.data.index import Member, index
from emucsd.stannis.data.location import Location, check_classes, ordered
from emucsd.stannis.data.reader import Reader, readers
from emucsd.stannis.data.samples import Indexed, Payload

GAP = 32 << 10  # bytes between two samples of a batch that are read along rather than asked for apart
MOST = 4 << 20  # bytes of one read


class Run(NamedTuple):
    """Neighbours that one read brings."""

    shard: int
    begin: int
    end: int
    places: list[int]  # in the list that was asked for


class TarSource(Indexed):
    """Samples in one or more tars, in the order of all sources, however they are spread over shards.

    :param shards: their bytes, where the caller has them open; default: what the location names
    :raises ShardMissing, ShardDamaged, DriveGone, DataFormat: as ``source.open``
    """

    def __init__(self, location: Location, *, private: bool = False, shards: Sequence[Reader] = ()) -> None:
        self._readers = shards or readers(location, private=private)
        try:
            found = [
                (number, member)
                for number, reader in enumerate(self._readers)
                for member in index(reader, location.inside, private=private)
            ]
            classes = self._classes(location, found)
        except BaseException:
            self.close()
            raise
        place = {name: number for number, name in enumerate(classes)}
        found.sort(key=lambda entry: (place[entry[1].cls], entry[1].path, entry[0], entry[1].offset))
        count = len(found)
        self._shards = np.fromiter((shard for shard, _ in found), np.int32, count)
        self._offsets = np.fromiter((member.offset for _, member in found), np.int64, count)
        self._crcs = np.fromiter((member.crc for _, member in found), np.int64, count)
        labels = np.fromiter((place[member.cls] for _, member in found), np.int64, count)
        sizes = np.fromiter((member.size for _, member in found), np.int64, count)
        super().__init__(location.text, classes, labels, sizes, private=private)

    def _classes(self, location: Location, found: list[tuple[int, Member]]) -> tuple[str, ...]:
        if not found:
            folder = f" in {location.inside}/" if location.inside else ""
            raise DataFormat(f"{location.text}: no samples{folder}; members CLASS/name.jpg or .png are wanted")
        names = {member.cls for _, member in found}
        check_classes(location.text, names, "/".join(filter(None, (location.path or location.text, location.inside))))
        return ordered(names)

    @property
    def checked(self) -> bool:
        """Whether every sample has a checksum that is compared when it is read."""
        return bool((self._crcs >= 0).all())

    def where(self, index: int) -> str:
        """The shard and the offset; a name only of a file that is not private."""
        shard = self.location if self.private else self._readers[self._shards[index]].name
        return f"{shard}, offset {self._offsets[index]}"

    def samples(self, indices: Sequence[int]) -> list[Payload | Lost]:
        """Several at once, in the order asked for; an error stands where its sample would."""
        found: list[Payload | Lost] = [b""] * len(indices)
        for run in self._runs(indices):
            for place, payload in self._read(run, indices):
                found[place] = payload
        return found

    def _runs(self, indices: Sequence[int]) -> Iterator[Run]:
        """Reads that bring them, by offset, neighbours together."""
        wanted = np.asarray(indices, np.int64)
        shards, begins = self._shards[wanted], self._offsets[wanted]
        ends = begins + self.sizes[wanted]
        run: Run | None = None
        for place in np.lexsort((begins, shards)).tolist():
            shard, begin, end = int(shards[place]), int(begins[place]), int(ends[place])
            near = run is not None and run.shard == shard and begin <= run.end + GAP and end - run.begin <= MOST
            if run is None or not near:
                if run is not None:
                    yield run
                run = Run(shard, begin, end, [place])
            else:
                run.places.append(place)
                run = run._replace(end=max(run.end, end))
        if run is not None:
            yield run

    def _read(self, run: Run, indices: Sequence[int]) -> Iterator[tuple[int, Payload | Lost]]:
        reader = self._readers[run.shard]
        try:
            data = reader.read(run.begin, run.end - run.begin)
        except (ShardMissing, ShardDamaged) as problem:
            if len(run.places) == 1:
                yield run.places[0], self._told(problem)
                return
            data = None
        for place in run.places:
            if data is None:  # one of them is unreadable: each by itself, so that the others are had
                yield from self._read(self._alone(run.shard, place, indices), indices)
                continue
            number = indices[place]
            begin = int(self._offsets[number]) - run.begin
            yield place, self._checked(data[begin : begin + int(self.sizes[number])], number)

    def _alone(self, shard: int, place: int, indices: Sequence[int]) -> Run:
        begin = int(self._offsets[indices[place]])
        return Run(shard, begin, begin + int(self.sizes[indices[place]]), [place])

    def _checked(self, data: bytes, number: int) -> Payload | Lost:
        if len(data) != self.sizes[number]:
            return ShardDamaged(f"{self.where(number)}: {len(data)} of {self.sizes[number]} bytes are there")
        wanted = int(self._crcs[number])
        if wanted >= 0 and zlib.crc32(data) != wanted:
            return ShardDamaged(f"{self.where(number)}: its {len(data)} bytes differ from what was written (CRC-32)")
        return data

    def _told(self, problem: Lost) -> Lost:
        """Without the name of a private shard."""
        return type(problem)(f"{self.location}: a shard can't be read") if self.private else problem

    def close(self) -> None:
        """Let files and devices go. Harmless when repeated."""
        for reader in self._readers:
            reader.close()
