"""Caches on a web server: read as others are; a server that does not answer is no missing file."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import cache_format
from cache_format.errors import ForeignDirectoryError, StorageError
from tests.support.sample_cache import write_sample_cache

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, status: list[int], **options: Any) -> None:
        self._status = status
        super().__init__(*arguments, **options)

    def send_head(self) -> Any:
        """The file, or an error in its place."""
        if not self._status:
            return super().send_head()
        self.send_error(self._status[0])
        return None

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def status() -> list[int]:
    """The status that the server answers everything with, if any."""
    return []


@pytest.fixture
def url(tmp_path: Path, status: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("cache_format.storage.remote._WAITS_SECONDS", (0.0,))
    handler = partial(_Handler, directory=str(tmp_path), status=status)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_cache_is_read_from_a_web_server(tmp_path: Path, url: str) -> None:
    write_sample_cache(tmp_path / "cache")
    there = cache_format.open(f"{url}/cache", local_directory=tmp_path / "copies")
    here = cache_format.open(tmp_path / "cache")
    ids = [
        [(unit, row.tokens.token_ids.tolist()) for unit, row in cache.iter_rows("train")]
        for cache in (there, here)
    ]
    assert ids[0] == ids[1] != []


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
def test_an_answer_that_is_not_about_the_file_is_no_missing_file(
    url: str, status: list[int], code: int
) -> None:
    status.append(code)
    with pytest.raises(StorageError, match=rf"could not be read: {code}.*Check the network"):
        cache_format.open(f"{url}/cache")


def test_a_server_that_cannot_be_reached_is_no_missing_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cache_format.storage.remote._WAITS_SECONDS", (0.0,))
    with pytest.raises(StorageError, match=r"could not be read: .*127\.0\.0\.1:9.*Check the"):
        cache_format.open("http://127.0.0.1:9/cache")


@pytest.mark.parametrize("code", [404, 410])
def test_what_the_server_does_not_have_is_missing(url: str, status: list[int], code: int) -> None:
    status.append(code)
    with pytest.raises(ForeignDirectoryError, match="not a cache: expected manifest"):
        cache_format.open(f"{url}/cache")
