"""A cache at a URL that fsspec can reach: ``s3://``, ``gs://``, ``hf://`` and others.

An object store shows whole objects or none, so nothing half-written is ever there: a file is
uploaded as one object. Requests that the network fails are made again a few times, after longer and
longer waits, before the failure is named.

**Exclusively.** S3 and Google Cloud Storage create an object only if it is not there, by one
request (``If-None-Match: *``, ``ifGenerationMatch=0``). Other drivers look first and write then, so
of two writers at the same instant the last one's receipt may stay. That loses nothing: the shards
of a unit have their hash in their names, and a receipt whose shard the other one has removed counts
as no receipt, so that the unit is made again by the next run.
"""

import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from cache_format.errors import Action, NextStep, StorageError
from cache_format.storage.atomic import files_below
from cache_format.storage.base import LocalSpace
from cache_format.storage.retry import retrying
from cache_format.storage.shard_cache import LocalCopies, default_directory

_WAITS_SECONDS = (0.5, 2.0, 8.0)
_CHUNK_BYTES = 1 << 24  # a request each: few enough to be fast, short enough to be made again
_VERDICTS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)

_LOOK_AFTER_NETWORK = NextStep(
    "Check the network, the endpoint and the credentials, then run again: it resumes after the "
    "finished work.",
    Action.RUN_AGAIN,
)

_T = TypeVar("_T")


class RemoteStorage:
    """A URL; see ``Storage`` for the methods."""

    num_requests = 16

    def __init__(self, url: str) -> None:
        self.root = url.rstrip("/")
        self._fs, self._base = _connect(self.root)

    def locate(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def read(self, name: str) -> bytes:
        return self._retrying(name, "read", lambda: bytes(self._fs.cat_file(self._key(name))))

    def chunks(self, name: str, num_bytes: int) -> Iterator[bytes]:
        for start in range(0, num_bytes, _CHUNK_BYTES):
            yield self._range(name, start, min(start + _CHUNK_BYTES, num_bytes))

    def size(self, name: str) -> int | None:
        def look() -> int | None:
            self._fs.invalidate_cache()  # what drivers remember of listings may be out of date
            info = self._fs.info(self._key(name))
            return int(info["size"]) if info["type"] == "file" else None

        try:
            return self._retrying(name, "read", look)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def identity(self, name: str) -> tuple[int, int, int] | None:
        return None

    def has(self, name: str) -> bool:
        return self.size(name) is not None

    def list_names(self, directory: str) -> list[str]:
        below = self._listed(directory, lambda key: self._fs.ls(key, detail=False))
        return sorted(name.rpartition("/")[2] for name in below)

    def files_below(self, directory: str) -> list[str]:
        return sorted(self._listed(directory, self._fs.find))

    def prepare(self, directory: str) -> None:
        """There are no directories, and nothing is ever half-written."""

    def publish(self, name: str, data: bytes) -> None:
        self._writing(name, lambda: self._fs.pipe_file(self._key(name), data))

    def publish_exclusive(self, name: str, data: bytes) -> bool:
        def create() -> bool:
            try:
                self._fs.pipe_file(self._key(name), data, mode="create")
            except FileExistsError:
                return False
            except Exception:
                # Drivers have their own ways to say that it is there, and an answer may get lost.
                if self.has(name):
                    return False
                raise
            return True

        return self._writing(name, create)

    @contextmanager
    def publish_file(self, name: str) -> Iterator[BinaryIO]:
        sink = io.BytesIO()
        yield sink
        self.publish(name, sink.getvalue())

    @contextmanager
    def publish_directory(self, name: str) -> Iterator[Path]:
        # Two processes at once upload the same bytes, if their libraries are the same; otherwise
        # one's receipt does not fit the other's files, which every reader notices.
        directory = Path(tempfile.mkdtemp(prefix="xlstm-distill-"))
        try:
            yield directory
            for path in files_below(directory):
                self._put(path, f"{name}/{path.relative_to(directory).as_posix()}")
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._retrying(name, "removed", lambda: self._fs.rm_file(self._key(name)))

    def remove_directory(self, name: str) -> None:
        for file in self.files_below(name):
            self.remove(file)

    def locked(self, directory: str) -> AbstractContextManager[None]:
        return nullcontext()

    def sync(self, directory: str) -> None:
        """What has been uploaded stays."""

    def local_files(self, cache_id: str, space: LocalSpace) -> LocalCopies:
        directory = (space.directory or default_directory()) / cache_id
        return LocalCopies(self, directory, space.num_bytes)

    def _key(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def _range(self, name: str, start: int, end: int) -> bytes:
        def fetch() -> bytes:
            data = bytes(self._fs.cat_file(self._key(name), start=start, end=end))
            if len(data) != end - start:
                raise OSError(f"expected {end - start} bytes from {start} on, found {len(data)}")
            return data

        return self._retrying(name, "read", fetch)

    def _listed(self, directory: str, listing: Callable[[str], list[str]]) -> list[str]:
        """Names that ``listing`` finds below ``directory``. Some programs make an empty object in
        the name of a directory: it is passed over."""
        key = self._key(directory)

        def look() -> list[str]:
            self._fs.invalidate_cache()
            return listing(key)

        try:
            found = self._retrying(directory, "read", look)
        except (FileNotFoundError, NotADirectoryError):
            return []
        below = (name.rstrip("/") for name in found if name.rstrip("/") != key)
        return [name[len(self._base) + 1 :] for name in below]

    def _put(self, path: Path, name: str) -> None:
        self._writing(name, lambda: self._fs.put_file(str(path), self._key(name)))

    def _writing(self, name: str, action: Callable[[], _T]) -> _T:
        try:
            return self._retrying(name, "written", action)
        except FileNotFoundError as error:
            raise StorageError(
                f"{self.locate(name)}: could not be written: {error}.",
                NextStep("Create the bucket or repository, then run again.", Action.RUN_AGAIN),
            ) from error

    def _retrying(self, name: str, what: str, action: Callable[[], _T]) -> _T:
        """``action``'s result, tried again after a failure of the network."""

        def failed(error: Exception) -> StorageError:
            return StorageError(
                f"{self.locate(name)}: could not be {what}: {str(error) or type(error).__name__}. "
                "The object itself may be intact.",
                _LOOK_AFTER_NETWORK,
            )

        def attempt() -> _T:
            try:
                return action()
            except PermissionError as error:
                raise failed(error) from error
            except FileNotFoundError as error:
                if (cause := error.__cause__) is not None and _says_nothing(cause):
                    raise OSError(str(cause) or type(cause).__name__) from cause
                raise

        return retrying(attempt, _WAITS_SECONDS, may_pass=_may_pass, given_up=failed)


def _may_pass(error: Exception) -> bool:
    """All but verdicts: each driver has errors of its own, and they have no common base."""
    return not isinstance(error, (*_VERDICTS, StorageError))


def _says_nothing(cause: BaseException) -> bool:
    """Whether a file was called missing because nobody could be asked, as the driver for http does:
    no connection, or an answer that is not about the file."""
    is_network = isinstance(cause, OSError) and not isinstance(cause, _VERDICTS)
    status = getattr(cause, "status", None)
    return is_network or (isinstance(status, int) and status not in (404, 410))


def _connect(url: str) -> tuple[Any, str]:
    """fsspec's file system for ``url``, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        raise StorageError(
            f"{url}: no driver for it is installed: {error}.",
            NextStep(
                "For s3:// `pip install s3fs`, for gs:// `pip install gcsfs`, then run again.",
                Action.RUN_AGAIN,
            ),
        ) from error
    except ValueError as error:
        raise StorageError(
            f"{url}: {error}. Give a directory, or a URL that fsspec knows, such as s3://."
        ) from error
    return fs, path.rstrip("/")
