"""A corpus behind a network that fails: a local HTTP server that does what it is told."""

import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.cache_teacher.corpus import units as corpus_module
from stages.cache_teacher.corpus.formats.document_file import DataFile, DocumentFile
from stages.cache_teacher.corpus.formats.parquet import open_parquet
from stages.cache_teacher.corpus.network import NUM_TRIES, NetworkFailedError, is_passing, retrying
from stages.cache_teacher.corpus.open_file import open_binary
from tests.support.sample_cache import contents, sample_spec
from tests.support.stage_one_runs import TEXTS, Bench
from tests.support.tiny import tiny_texts, write_fineweb_parquet

ARROWS_FIRST_READ = 1 << 16
"""Bytes at the end of a file, in which Arrow looks for the footer."""

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


class Server:
    """Serves a directory by ranges; the first ``num_failures`` requests fail as ``how`` says."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.how: str = ""
        self.num_failures = 0
        self.asked: list[tuple[str, int, int]] = []
        """Name, first byte and end of what was sent."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, how: str, num_failures: int) -> None:
        self.how, self.num_failures = how, num_failures

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def log_message(self, *arguments: Any) -> None:
                pass

            def _answer(self, *, with_body: bool) -> None:
                with server._lock:
                    fails = server.num_failures > 0
                    server.num_failures -= fails
                if fails and server.how == "reset":
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.close()
                    self.close_connection = True
                    return
                if fails and server.how != "cut":
                    self.send_error(int(server.how))
                    return
                data = (server.root / self.path[1:]).read_bytes()
                first, end = 0, len(data)
                if wanted := self.headers.get("Range"):
                    low, _, high = wanted.removeprefix("bytes=").partition("-")
                    first, end = int(low), min(len(data), int(high) + 1)
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Length", str(end - first))
                self.send_header("Accept-Ranges", "bytes")
                if wanted:
                    self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
                self.end_headers()
                if not with_body:
                    return
                if fails:
                    self.wfile.write(data[first : (first + end) // 2])
                    self.close_connection = True
                    return
                server.asked.append((self.path[1:], first, end))
                self.wfile.write(data[first:end])

        return Handler


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    running = Server(tmp_path / "served")
    yield running
    running.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long would have been waited."""
    found: list[float] = []
    monkeypatch.setattr("cache_format.storage.retry.time.sleep", found.append)
    return found


def opened(url: str) -> DocumentFile[bytes]:
    spec = sample_spec().sole_corpus  # whose documents are in the column "text"
    return open_parquet(DataFile(url, "a.parquet"), spec)


@pytest.mark.parametrize("how", ["503", "500", "429", "reset", "cut"])
def test_transient_network_failures_are_retried(
    server: Server, pauses: list[float], how: str
) -> None:
    write_fineweb_parquet(server.root / "a.parquet", TEXTS)
    server.fail(how, 3)
    file = opened(f"{server.url}/a.parquet")
    server.fail(how, 2)
    assert list(file.read(16, 30)) == TEXTS[16:46]
    assert server.num_failures == 0
    file.close()
    assert pauses
    assert all(pause <= 1.2 * 2 ** (NUM_TRIES - 2) for pause in pauses)


@pytest.mark.parametrize("how", ["503", "reset"])
def test_a_persistent_network_failure_names_the_file(
    server: Server, pauses: list[float], how: str
) -> None:
    write_fineweb_parquet(server.root / "a.parquet", TEXTS)
    file = opened(f"{server.url}/a.parquet")
    server.fail(how, 10**6)
    expected = rf"{server.url}/a\.parquet: the network has failed 5 times in a row"
    with pytest.raises(NetworkFailedError, match=expected):
        list(file.read(0, 80))
    assert len(pauses) == NUM_TRIES - 1
    with pytest.raises(NetworkFailedError, match=expected):
        opened(f"{server.url}/a.parquet")


def test_a_file_can_seek_after_a_lost_connection(server: Server, pauses: list[float]) -> None:
    """Whoever cleans up after a failure sees that failure, and no other."""
    (server.root / "a.bin").write_bytes(bytes(range(100)))
    file = open_binary(f"{server.url}/a.bin")
    server.fail("503", 10**6)
    with pytest.raises(NetworkFailedError):
        file.read(10)
    assert file.seek(40) == 40
    assert file.seek(2, os.SEEK_CUR) == 42
    with pytest.raises(NetworkFailedError):
        file.seek(-1, os.SEEK_END)
    server.fail("503", 0)
    assert file.read(1) == b"\x2a"
    assert file.seek(-1, os.SEEK_END) == 99
    assert file.read() == b"\x63"


@pytest.mark.parametrize(("how", "expected"), [("404", FileNotFoundError), ("403", Exception)])
def test_non_network_errors_are_raised_at_once(
    server: Server, pauses: list[float], how: str, expected: type[Exception]
) -> None:
    server.fail(how, 10**6)
    with pytest.raises(expected) as caught:
        open_binary(f"{server.url}/a.parquet").read()
    assert not isinstance(caught.value, NetworkFailedError)
    assert pauses == []


def test_retry_pauses_double_and_end_after_the_last_try(pauses: list[float]) -> None:
    def fail() -> None:
        raise ConnectionResetError("by peer")

    with pytest.raises(NetworkFailedError, match=r"the Hub: .* ConnectionResetError: by peer"):
        retrying(fail, "the Hub")
    assert len(pauses) == NUM_TRIES - 1
    for pause, expected in zip(pauses, (1, 2, 4, 8), strict=True):
        assert 0.8 * expected <= pause <= 1.2 * expected


def test_transient_and_permanent_errors_are_told_apart() -> None:
    class TransportError(Exception):
        pass

    class ReadError(TransportError):
        pass

    class StatusError(Exception):
        def __init__(self, status: int) -> None:
            self.status = status

    def caused(error: Exception, cause: Exception) -> Exception:
        error.__cause__ = cause
        return error

    passing = [TimeoutError(), ReadError(), StatusError(503), StatusError(429), BrokenPipeError()]
    lasting = [StatusError(404), StatusError(401), OSError("disk"), ValueError("x")]
    assert all(is_passing(error) for error in passing)
    assert not any(is_passing(error) for error in lasting)
    assert is_passing(caused(FileNotFoundError("url"), StatusError(502)))
    assert not is_passing(caused(FileNotFoundError("url"), StatusError(404)))


class Remote:
    """A corpus of three files on the server, as the Hub would name them."""

    def __init__(self, bench: Bench, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench, self.server = bench, server
        bench.corpus = Path("someone/corpus")
        self.names = ["a.parquet", "b.parquet", "c.parquet"]
        for seed, name in enumerate(self.names):
            texts = tiny_texts(200, seed=seed)
            pages = [random.Random(text).randbytes(4000) for text in texts]  # nobody wants these
            table = pa.table({"text": texts, "html": pages})
            path = server.root / name
            pq.write_table(table, path, row_group_size=20, write_statistics=False)
        urls = [f"{server.url}/{name}" for name in self.names]
        monkeypatch.setattr(corpus_module, "split_files", lambda _: ("commit", urls))

    def asked_by(self, action: Callable[[], Any]) -> dict[str, list[tuple[int, int]]]:
        """The ranges of each file that ``action`` asks for."""
        before = len(self.server.asked)
        action()
        ranges: dict[str, list[tuple[int, int]]] = {name: [] for name in self.names}
        for name, first, end in self.server.asked[before:]:
            ranges[name].append((first, end))
        return ranges


def test_a_resumed_run_reads_only_what_it_lacks(
    bench: Bench, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(bench, server, monkeypatch)
    whole = bench.run("whole", documents_per_unit=20)
    assert len(whole.shards) == 30
    before = contents(bench.root / "whole")
    late = whole.shards[25]  # half-way into the third file
    (bench.root / "whole" / late.file).unlink()
    ranges = remote.asked_by(lambda: bench.run("whole", documents_per_unit=20))
    assert contents(bench.root / "whole") == before

    num_read = 0
    for name in remote.names:
        path = server.root / name
        begin = pq.ParquetFile(path).metadata.row_group(5).column(0).dictionary_page_offset
        for first, end in ranges[name]:
            is_footer = first >= path.stat().st_size - ARROWS_FIRST_READ
            is_late_unit = name == "c.parquet" and first >= begin and end - first < 4000
            num_read += is_late_unit
            assert is_footer or is_late_unit, (name, first, end)
    assert num_read > 0


def test_a_run_over_a_failing_network_makes_the_same_cache(
    bench: Bench, server: Server, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    Remote(bench, server, monkeypatch)
    whole = bench.run("whole", documents_per_unit=100)
    server.fail("503", 4)
    assert bench.run("cache", documents_per_unit=100) == whole
    assert contents(bench.root / "cache") == contents(bench.root / "whole")
    assert pauses
