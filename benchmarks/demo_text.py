"""The text that benchmarks cache where none is named: the demo's documents."""

from pathlib import Path

from cache_format.storage.atomic import publish_directory
from pipeline.demo.corpus import write_parquet

_NUM_CHARS = 9_000_000
_CHARS_PER_TOKEN = 50  # ten times what a token takes, so that little text is of many files, too


def make_demo_text(directory: Path, num_tokens: int | None = None) -> None:
    """Write the documents to ``directory``, unless it is there; it is whole or absent.

    With ``num_tokens``, no more than a cache of so many tokens is drawn from.
    """
    if directory.exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    num_chars = min(_NUM_CHARS, _CHARS_PER_TOKEN * (num_tokens or _NUM_CHARS))
    with publish_directory(directory) as new:
        write_parquet(new / "python-documentation.parquet", "demo", num_chars)
