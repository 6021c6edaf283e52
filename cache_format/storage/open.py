"""The storage at a place: a directory of this machine, or a URL.

Local caches never import fsspec.
"""

from pathlib import Path

from cache_format.storage.base import Storage, is_url
from cache_format.storage.local import LocalStorage


def storage_at(place: str | Path) -> Storage:
    """The directory or URL ``place``; raises StorageError if a URL's driver is not installed."""
    if isinstance(place, str) and place.startswith("file://"):
        return LocalStorage(Path(place.removeprefix("file://")))
    if isinstance(place, str) and is_url(place):
        from cache_format.storage.remote import RemoteStorage

        return RemoteStorage(place)
    return LocalStorage(Path(place))
