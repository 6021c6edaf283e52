"""Open a file wherever it lies, and hash it. A network that fails is tried again.

A corpus on the Hub is read through here by ranges, so that nothing is fetched that nobody reads.
"""

import hashlib
import io
from collections.abc import Callable
from typing import IO, Any, TypeVar, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from cache_format.storage.base import is_url
from stages.cache_teacher.corpus.network import retrying

_BLOCK_BYTES = 4 << 20

_T = TypeVar("_T")


def open_binary(url: str) -> IO[bytes]:
    """Open a local path or a URL for reading; nothing is downloaded before it is read.

    What a network lets fail is tried again, see ``network``; NetworkFailedError once it has failed
    for good.
    """
    if is_url(url):
        return cast(IO[bytes], _RemoteFile(url))
    # Of a path nothing is resolved: "::" in a name would chain file systems.
    return cast(IO[bytes], LocalFileSystem().open(url, "rb"))


class _RemoteFile(io.RawIOBase):
    """A file behind a network. A read that fails is made again on a new connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._file: Any = None
        self._position = 0
        self._retrying(lambda file: None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:  # only this asks the network
            offset += self._retrying(lambda file: int(file.size))
        self._position = offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Up to ``size`` bytes, fewer only at the end of the file."""

        def read(file: Any) -> bytes:
            file.seek(self._position)
            data: bytes = file.read(-1 if size is None else size)
            return data

        data = self._retrying(read)
        self._position += len(data)
        return data

    def close(self) -> None:
        self._drop()
        super().close()

    def _retrying(self, action: Callable[[Any], _T]) -> _T:
        def attempt() -> _T:
            try:
                if self._file is None:
                    filesystem, path = url_to_fs(self._url)
                    # Whoever reads knows how much is wanted: nothing more is fetched ahead.
                    self._file = filesystem.open(path, "rb", cache_type="none")
                return action(self._file)
            except Exception:
                self._drop()  # whatever it remembers of a connection
                raise

        return retrying(attempt, self._url)

    def _drop(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def sha256_of(url: str) -> str:
    """SHA-256 of the whole file, in hex."""
    digest = hashlib.sha256()
    with open_binary(url) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
