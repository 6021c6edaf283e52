"""Bytes as zstd frames whose size is known before anything is allocated.

In: bytes. Out: one zstd frame, or the bytes again. A frame says how large its content is; what a
column holds follows from the spec and the columns before it. The two are compared first, so no
frame, whatever it claims, makes a reader allocate more than a row takes.
"""

import threading

import zstandard

_EMPTY_BLOCK = b"\x01\0\0"  # raw, the last
_LEVEL = 1  # the content has no repetitions to look for, only frequencies

_local = threading.local()


def compress(data: bytes) -> bytes:
    """``data`` as one zstd frame that carries its content's size."""
    frame: bytes = _compressor().compress(data)
    return frame


def decompress(frame: bytes | memoryview, num_bytes: int) -> bytes:
    """The ``num_bytes`` bytes in ``frame``; raises ValueError if it holds another number."""
    try:
        claimed = zstandard.frame_content_size(frame)
        if claimed != num_bytes:
            raise ValueError(f"expected a frame of {num_bytes} bytes, found one of {claimed}")
        # zstandard looks no further where the content is empty.
        if not claimed and frame[zstandard.frame_header_size(frame) :] != _EMPTY_BLOCK:
            raise ValueError("expected a frame of 0 bytes, found more in it")
        data: bytes = _decompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd cannot read it: {error}") from error
    if len(data) != num_bytes:
        raise ValueError(f"expected {num_bytes} bytes in a frame, found {len(data)}")
    return data


def _compressor() -> zstandard.ZstdCompressor:
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=_LEVEL)
    compressor: zstandard.ZstdCompressor = _local.compressor
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _local.decompressor
    return decompressor
