"""Archives of caches."""

import io
import tarfile
from pathlib import Path

import zstandard

import cache_format
from cache_format.tools.archive import pack


def packed(root: Path | str, num_threads: int = 2) -> bytes:
    sink = io.BytesIO()
    cache = cache_format.open(root, allow_incomplete=True)
    pack(cache, sink, num_threads=num_threads, report=lambda done, total: None)
    return sink.getvalue()


def tar_of(archive: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(archive)


def members(root: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """Headers and contents of a packed cache, to be tampered with."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(tar_of(packed(root)))) as tar:
        for info in tar:
            content = tar.extractfile(info)
            assert content is not None
            found.append((info, content.read()))
    return found


def archive_of(files: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A well-formed archive of whatever is given."""
    blocks = [
        info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
        for info, content in files
    ]
    return compressed(b"".join(blocks) + bytes(1024))


def compressed(tar: bytes, *, checksum: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=checksum).compress(tar)
