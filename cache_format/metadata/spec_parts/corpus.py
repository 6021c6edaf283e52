"""Which corpus a cache is of."""

from dataclasses import dataclass

from cache_format.metadata.spec_parts.bounds import require


@dataclass(frozen=True, kw_only=True)
class CorpusSpec:
    """The documents, their order, and how they are cut into units."""

    source: str
    """Hub dataset id, or a name for local files."""
    config: str
    """Configuration of the Hub dataset."""
    split: str
    """Split of the Hub dataset."""
    revision: str
    """Commit on the Hub; empty for local files."""
    files: tuple[tuple[str, str], ...]
    """Name and SHA-256 of every file in reading order; no hash where the revision pins it."""
    text_column: str
    """Column that holds a document's text."""
    on_bad_document: str
    """What a document that is not text does."""
    documents_per_unit: int
    """Documents in one unit, hence in one shard."""
    text_documents: str | None = None
    """What a document is in plain text: ``paragraph`` or ``file``; None where it is a line, and for
    other kinds of file."""

    def __post_init__(self) -> None:
        require(
            self.documents_per_unit >= 1, "documents_per_unit", self.documents_per_unit, "1 or more"
        )
        require(
            self.text_documents in (None, "paragraph", "file"),
            "text_documents",
            self.text_documents,
            "'paragraph' or 'file', or left out",
        )
