"""Bytes to a zstd frame and back, and every frame that is not the one that was called for."""

import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cache_format.coding import zstd_cells

CONTENT = bytes(range(100))
FRAME = zstd_cells.compress(CONTENT)


@given(st.binary(max_size=5000))
def test_any_bytes_round_trip_and_the_frame_names_their_size(data: bytes) -> None:
    frame = zstd_cells.compress(data)
    assert zstandard.frame_content_size(frame) == len(data)
    assert zstd_cells.decompress(frame, len(data)) == data
    assert zstd_cells.decompress(memoryview(frame), len(data)) == data


def test_a_megabyte_of_one_byte_round_trips() -> None:
    assert zstd_cells.decompress(zstd_cells.compress(bytes(2**20)), 2**20) == bytes(2**20)


@pytest.mark.parametrize("num_bytes", [0, 99, 101, 2**40])
def test_a_frame_of_another_size_than_expected_is_refused(num_bytes: int) -> None:
    with pytest.raises(
        ValueError, match=f"expected a frame of {num_bytes} bytes, found one of 100"
    ):
        zstd_cells.decompress(FRAME, num_bytes)


def frame_that_claims(num_bytes: int) -> bytes:
    """A frame of 8 bytes, whose header says ``num_bytes``."""
    # Magic; a content size of 8 bytes in one segment; the size; a last block of 8 zeros.
    return b"\x28\xb5\x2f\xfd\xe0" + num_bytes.to_bytes(8, "little") + b"\x43\x00\x00\x00"


def test_a_frame_that_claims_to_be_huge_is_refused_before_allocation() -> None:
    assert zstd_cells.decompress(frame_that_claims(8), 8) == bytes(8)
    bomb = frame_that_claims(2**40)
    assert zstandard.frame_content_size(bomb) == 2**40
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"expected a frame of 100 bytes.* of {2**40}"):
            zstd_cells.decompress(bomb, 100)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_bytes", [7, 9, 200_000])
def test_a_frame_that_holds_less_or_more_than_it_claims_is_refused(num_bytes: int) -> None:
    with pytest.raises(ValueError, match="zstd cannot read it"):
        zstd_cells.decompress(frame_that_claims(num_bytes), num_bytes)


@pytest.mark.parametrize("length", range(len(FRAME)))
def test_every_truncated_frame_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"zstd cannot read it|found one of"):
        zstd_cells.decompress(FRAME[:length], 100)


@pytest.mark.parametrize(
    "frame",
    [
        FRAME + FRAME,
        FRAME + zstd_cells.compress(b""),
        FRAME + b"\0",
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + FRAME,
        zstandard.ZstdCompressor(write_content_size=False).compress(CONTENT),
        CONTENT,
        b"",
    ],
    ids=[
        "two frames",
        "empty second frame",
        "extra byte",
        "skippable frame",
        "no size",
        "uncompressed",
        "no bytes",
    ],
)
def test_anything_but_one_frame_with_its_size_is_refused(frame: bytes) -> None:
    with pytest.raises(ValueError, match=r"zstd cannot read it|found one of"):
        zstd_cells.decompress(frame, 100)


@pytest.mark.parametrize("rest", [b"\0", zstd_cells.compress(b""), FRAME])
def test_data_after_an_empty_frame_is_refused(rest: bytes) -> None:
    with pytest.raises(ValueError, match="expected a frame of 0 bytes, found more"):
        zstd_cells.decompress(zstd_cells.compress(b"") + rest, 0)


def test_a_frame_that_needs_a_dictionary_is_refused() -> None:
    dictionary = zstandard.ZstdCompressionDict(CONTENT * 10, zstandard.DICT_TYPE_RAWCONTENT)
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(CONTENT)
    with pytest.raises(ValueError, match="zstd cannot read it"):
        zstd_cells.decompress(frame, 100)
