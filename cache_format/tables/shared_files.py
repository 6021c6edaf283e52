"""The files that all shards of a cache share: tables that the spec names by their hash.

Stage one makes them before the first unit; readers need them to decode. To add one, write its way
to bytes and back in a module of its own, make it a field of ``SharedFiles``, and describe it in
``files_of``: all tools go by that.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cache_format.errors import CorruptFileError, NextStep
from cache_format.metadata import layout
from cache_format.metadata.spec import CacheSpec
from cache_format.storage.base import Storage, read_file
from cache_format.tables import principal_components
from cache_format.tables.hidden_transform import (
    HiddenTransform,
    transform_from_bytes,
    transform_num_bytes,
)
from cache_format.tables.principal_components import Projection
from cache_format.tables.tail_moment import (
    MomentTransform,
    moment_from_bytes,
    moment_num_bytes,
)
from cache_format.tables.vocabulary_ranks import RankTable

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedFiles:
    """What the files hold."""

    ranks: RankTable
    """Ids by frequency."""
    projection: Projection | None = None
    """W of a ``pca`` sketch, [D, d]."""
    transform: HiddenTransform | None = None
    """Of ``hidden`` targets."""
    moment: MomentTransform | None = None
    """Of the tail's moments."""

    def to_bytes(self) -> dict[str, bytes]:
        """The bytes of each file, by name, in the order in which they are written."""
        files = {layout.RANKS: self.ranks.to_bytes()}
        if self.projection is not None:
            files[layout.PROJECTION] = principal_components.projection_bytes(self.projection)
        if self.transform is not None:
            files[layout.TRANSFORM] = self.transform.to_bytes()
        if self.moment is not None:
            files[layout.MOMENT] = self.moment.to_bytes()
        return files

    @property
    def is_fitted(self) -> bool:
        """Whether any was fitted to a teacher's numbers, whose last bits may differ."""
        return not (self.projection is None and self.transform is None and self.moment is None)

    @property
    def hidden_transform(self) -> HiddenTransform:
        """``transform``, of a cache that has one."""
        assert self.transform is not None, "the kind of target has no transform"
        return self.transform

    @property
    def moment_transform(self) -> MomentTransform:
        """``moment``, of a cache that has one."""
        assert self.moment is not None, "the targets have no moments"
        return self.moment


@dataclass(frozen=True, kw_only=True)
class FileOfSpec:
    """One of the files, as the spec knows it."""

    num_bytes: int
    sha256: str
    next_step: NextStep
    """What to do if it is damaged or missing."""


def files_of(spec: CacheSpec) -> dict[str, FileOfSpec]:
    """The shared files of a cache, by name, in the order in which they are written."""
    files = {
        layout.RANKS: FileOfSpec(
            num_bytes=4 * spec.teacher.vocab_size,
            sha256=spec.ranks_sha256,
            next_step=layout.RANKS_STEP,
        )
    }
    if spec.sketch.projection_sha256 is not None:
        files[layout.PROJECTION] = FileOfSpec(
            num_bytes=principal_components.num_bytes(spec),
            sha256=spec.sketch.projection_sha256,
            next_step=layout.PROJECTION_STEP,
        )
    if spec.targets.hidden is not None:
        files[layout.TRANSFORM] = FileOfSpec(
            num_bytes=transform_num_bytes(spec),
            sha256=spec.targets.hidden.transform_sha256,
            next_step=layout.TRANSFORM_STEP,
        )
    if spec.targets.moment is not None:
        files[layout.MOMENT] = FileOfSpec(
            num_bytes=moment_num_bytes(spec),
            sha256=spec.targets.moment.transform_sha256,
            next_step=layout.MOMENT_STEP,
        )
    return files


def shared_from_bytes(data: Mapping[str, bytes], spec: CacheSpec) -> SharedFiles:
    """The files of ``spec`` from their bytes; raises ValueError if one holds something else."""
    projection, transform, moment = None, None, None
    if layout.PROJECTION in data:
        projection = principal_components.projection_from_bytes(data[layout.PROJECTION], spec)
    if layout.TRANSFORM in data:
        transform = transform_from_bytes(data[layout.TRANSFORM], spec)
    if layout.MOMENT in data:
        moment = moment_from_bytes(data[layout.MOMENT], spec)
    ranks = _ranks_from_bytes(data[layout.RANKS], spec)
    return SharedFiles(ranks=ranks, projection=projection, transform=transform, moment=moment)


def require_shared(shared: SharedFiles, spec: CacheSpec) -> None:
    """Raise ValueError unless ``shared`` are the files that ``spec`` names."""
    found, expected = shared.to_bytes(), files_of(spec)
    if found.keys() != expected.keys():
        raise ValueError(f"shared files: expected {', '.join(expected)}, found {', '.join(found)}")
    for name, data in found.items():
        if hashlib.sha256(data).hexdigest() != expected[name].sha256:
            raise ValueError(f"{name}: not the file that the spec names")
    shared_from_bytes(found, spec)


def read_ranks(storage: Storage, spec: CacheSpec) -> RankTable:
    """The table of the cache in ``storage``; raises MissingFileError or CorruptFileError."""
    return _read(storage, layout.RANKS, spec, _ranks_from_bytes)


def read_projection(storage: Storage, spec: CacheSpec) -> Projection | None:
    """W of the cache in ``storage``, None if its sketch needs none.

    Raises MissingFileError or CorruptFileError.
    """
    if layout.PROJECTION not in files_of(spec):
        return None
    return _read(storage, layout.PROJECTION, spec, principal_components.projection_from_bytes)


def read_transform(storage: Storage, spec: CacheSpec) -> HiddenTransform | None:
    """The transform of the cache in ``storage``, None if its targets need none.

    Raises MissingFileError or CorruptFileError.
    """
    if layout.TRANSFORM not in files_of(spec):
        return None
    return _read(storage, layout.TRANSFORM, spec, transform_from_bytes)


def read_moment(storage: Storage, spec: CacheSpec) -> MomentTransform | None:
    """What the tail's moments in ``storage`` are taken in, None if its targets have none.

    Raises MissingFileError or CorruptFileError.
    """
    if layout.MOMENT not in files_of(spec):
        return None
    return _read(storage, layout.MOMENT, spec, moment_from_bytes)


def _read(
    storage: Storage, name: str, spec: CacheSpec, parse: Callable[[bytes, CacheSpec], _T]
) -> _T:
    """What a file holds, its bytes compared with the spec's hash."""
    expected, path = files_of(spec)[name], storage.locate(name)
    data = read_file(storage, name, expected.next_step)
    found = hashlib.sha256(data).hexdigest()
    if found != expected.sha256:
        raise CorruptFileError(
            f"{path}: damaged: expected SHA-256 {expected.sha256}, found {found}.",
            expected.next_step,
        )
    try:
        return parse(data, spec)
    except ValueError as error:
        raise CorruptFileError(f"{path}: {error}.", expected.next_step) from error


def _ranks_from_bytes(data: bytes, spec: CacheSpec) -> RankTable:
    return RankTable.from_bytes(data, spec.teacher.vocab_size)
