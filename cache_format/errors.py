"""Every way in which a cache can be refused. Imports nothing, so that it is cheap to catch.

Each message says what is wrong, where, what was expected and found, and what to do next.
"""


class CacheError(ValueError):
    """A cache cannot be used as asked. Base of all errors of this package about caches."""


class CorruptFileError(CacheError):
    """A file's bytes are not those that were written."""


class CorruptShardError(CorruptFileError):
    """A shard's bytes are not those that were written, or cannot be decoded."""


class CorruptArchiveError(CacheError):
    """A packed cache is damaged, cut short, or something else."""


class MissingFileError(CacheError):
    """A file that the cache names is not there."""


class MissingShardError(MissingFileError):
    """A shard that the cache names is not there."""


class SpecMismatchError(CacheError):
    """The cache was made from another spec than the one asked for."""


class UnsupportedFormatError(CacheError):
    """The cache was written in a format that this version does not know."""


class IncompleteCacheError(CacheError):
    """The cache is still being written, or its writing was cut short."""


class ForeignDirectoryError(CacheError):
    """A directory that should be a cache, or empty, holds something else."""


class StorageError(CacheError):
    """The system refused to read or write a file; what the file holds is another matter."""


class NoSpaceError(StorageError):
    """The disk or the quota is full."""
