"""Which teacher a cache is of."""

from dataclasses import dataclass

from cache_format.metadata.spec_parts.bounds import SHA256, require

_MAX_IDS = 2**24


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """The model whose predictions the cache holds."""

    source: str
    """Hub id, or name of the directory it was read from."""
    revision: str
    """Commit on the Hub; empty for a directory, which its hashes pin."""
    weights_sha256: str
    """Hash over the weight files."""
    tokenizer_sha256: str
    """Hash over the tokenizer's files."""
    dtype: str
    """Precision of the body, such as ``bfloat16``."""
    attention: str
    """Attention implementation."""
    hidden_size: int
    """Width of a hidden state."""
    num_layers: int
    """Layers of the body."""
    vocab_size: int
    """Ids that take part in the softmax: 0 to vocab_size − 1."""
    head_rows: int
    """Rows of the head, padding included."""
    eos_token_id: int
    """Id that ends a document."""
    chat_template_sha256: str | None = None
    """Hash of the template that conversations are rendered with; None where there are none."""

    def __post_init__(self) -> None:
        require(self.hidden_size >= 1, "hidden_size", self.hidden_size, "1 or more")
        require(self.num_layers >= 1, "num_layers", self.num_layers, "1 or more")
        require(
            1 <= self.head_rows <= _MAX_IDS, "head_rows", self.head_rows, f"from 1 to {_MAX_IDS}"
        )
        require(
            1 <= self.vocab_size <= self.head_rows,
            "vocab_size",
            self.vocab_size,
            f"from 1 to head_rows ({self.head_rows}): a tokenizer larger than the head cannot work",
        )
        require(
            0 <= self.eos_token_id < self.vocab_size,
            "eos_token_id",
            self.eos_token_id,
            f"below vocab_size ({self.vocab_size})",
        )
        template = self.chat_template_sha256
        require(
            template is None or SHA256.fullmatch(template) is not None,
            "chat_template_sha256",
            template,
            "64 hex digits, or left out",
        )
