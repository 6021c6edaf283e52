"""The settings of stage one: the ``[cache_teacher]`` table of a recipe.

Imports nothing heavy, so that a wrong recipe is refused at once.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal

from cache_format.metadata.int64 import require_int64
from cache_format.metadata.spec_parts.bounds import one_of
from cache_format.metadata.spec_parts.corpus import ChatSpec, LongConversations, TrainOn
from cache_format.metadata.spec_parts.targets import KINDS_WITH_MOMENT, Kind, Quantization
from stages.cache_teacher.corpus_settings import CorpusSettings, check_corpora, total_tokens
from stages.cache_teacher.target_settings import SETTINGS_OF_KINDS


@dataclass(frozen=True, kw_only=True)
class CacheTeacherConfig:
    """Settings of stage one. The defaults are the paper's (arXiv 2503.18565)."""

    teacher: str = "Qwen/Qwen2.5-1.5B"
    """Hub id or directory of a causal language model with safetensors weights."""
    teacher_revision: str = "main"
    """Branch, tag or commit of the teacher on the Hub; resolved to a commit before use."""
    teacher_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the teacher's body. The head always accumulates in float32. ``auto`` is that of
    the cache, if it was begun; else bfloat16, but on CPUs without instructions for it, which are
    ten times as slow in it, float32. For parts of one cache on unlike machines, name it."""
    attention: Literal["auto", "eager", "sdpa", "varlen", "flash_attention_2"] = "auto"
    """Attention implementation; ``auto`` is ``varlen`` in half precision for architectures that are
    tested with it, else ``sdpa``."""
    device: str = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``."""

    corpus: str = "HuggingFaceFW/fineweb"
    """Hub dataset id, or a local Parquet/JSONL/CSV/TSV/text file, a directory of them, or one that
    ``datasets.save_to_disk`` wrote."""
    corpus_config: str = "sample-10BT"
    """Configuration of the Hub dataset; unused for local files."""
    corpus_split: str = "train"
    """Split of the dataset; unused for local files without splits."""
    corpus_data_files: tuple[str, ...] | None = None
    """Patterns of the files that are read, such as ``data/train-*.parquet``, in the repository of
    the Hub dataset or below the local directory; ``*`` stands for "/", too. Then corpus_config and
    corpus_split are unused."""
    corpus_revision: str = "main"
    """Branch, tag or commit of the Hub dataset; resolved to a commit before use."""
    text_column: str = "text"
    """Column or key (JSONL) that holds a document's text; unused for plain text."""
    text_documents: Literal["line", "paragraph", "file"] = "line"
    """What a document is in plain text; unused for other kinds of file. Paragraphs are separated by
    blank lines."""
    messages_column: str | None = None
    """Column or key of conversations, which are lists of messages (``role`` and ``content``, or
    ``from`` and ``value``); documents are then conversations, rendered by the teacher's chat
    template, and text_column is unused."""
    prompt_column: str | None = None
    """Column or key of prompts, each a text or a list of messages, beside completion_column."""
    completion_column: str | None = None
    """Column or key of completions, each a text or a list of messages, beside prompt_column."""
    train_on: TrainOn = "assistant"
    """Whose tokens of a conversation are learned: those of the assistant, of its ``completion``
    alone (its last message, or what completion_column holds), or ``all``."""
    long_conversations: LongConversations = "split"
    """What becomes of a conversation that does not fit in a row: it is split before a user's
    message, dropped, or an error. It is never cut."""
    on_bad_document: Literal["error", "skip"] = "error"
    """What a document that is no text, or no conversation, does: stop the run, or be skipped and
    counted."""

    corpora: tuple[CorpusSettings, ...] | None = None
    """Several corpora in one cache, each with a name and a share of the tokens. What an entry
    leaves out, of the settings above and of documents_per_unit, is as in this table."""

    num_tokens: int = 512_000_000
    """Budget in positions; at most one unit more is cached. Not part of the cache's identity."""
    sequence_length: int = 512
    """T: positions of a packed sequence."""
    documents_per_unit: int = 512
    """Documents in one unit of work, hence in one shard."""
    validation_every: int = 50
    """n: one unit, or one row, in n is validation."""
    validation_split: Literal["units", "rows"] = "units"
    """What is validation: every n-th unit from unit 0 on, which shares no document with the others;
    or the last rows of every unit, one in n, so that a cache of few units has both splits."""

    targets: Kind = "top_k"
    """What is kept of a distribution. ``top_k``: the k largest logits and the mass of the rest;
    ``sampled``: ids drawn from all, with their counts (RS-KD, arXiv 2503.16870);
    ``top_k+sampled``: the k largest, and draws from the rest; ``hidden``: the state that the head
    is applied to, from which stage two rebuilds the whole distribution; ``top_k+hidden``: the k
    largest, and that state for how the rest is spread."""
    top_k: int = 64
    """K: the most kept ids of a position; not used where all are drawn."""
    top_p: float = 1.0
    """Stop keeping ids of a position once they hold this share of the mass; 1 keeps all K."""
    num_levels: int = 128
    """Steps of p^(1/4) in which probabilities are stored, 2 to 255. The error stays below 2e-4 nats
    with 104 at top_k = 32, 128 at 64 and 176 at 128; it falls with the square."""
    inverse_temperatures: tuple[float, ...] = (0.5, 0.625, 0.75, 0.875, 1.0)
    """Nodes 1/T at which the log-mass of the tail is stored: rising eighths that end at 1."""
    num_samples: int = 50
    """Draws at each position where ids are drawn, with replacement, 1 to 255."""
    sampling_temperature: float | None = None
    """T that ids are drawn at, 1/T being one of inverse_temperatures. By default 1 of all ids, and
    4/3 of the rest, which serves all temperatures from 1 to 2 nearly as well as the best for each.
    """
    hidden_kl: float = 0.05
    """What ``hidden`` may lose: KL(teacher ‖ cache) in nats at T = 1, a mean over positions. The
    step that states are rounded to is found from it on the first unit."""
    hidden_quantization: Quantization = "rate_distortion"
    """How ``hidden`` rounds a state: to what loses least for its bytes, given the position's own
    probabilities, or to the ``nearest``, which takes half as many bytes again or more for the same
    KL at T = 1, but never computes a logit."""
    tail_moment_dim: int = 0
    """d: directions in which the first moment of the tail is stored beside its mass, with its
    entropy, where targets is ``top_k`` or ``top_k+sampled``: a student whose head is the teacher's
    and frozen learns in them how the mass is spread. At most the teacher's width, which gives the
    KL over the full vocabulary; 0 stores none."""
    hidden_states: str = "mean_over_layers"
    """Which hidden states are projected: ``mean_over_layers``, ``last`` (after the final norm),
    ``layers:4,12`` (the mean of those; 1 is the first), ``each:4,12`` (each of those by itself) or
    ``random_layers:2`` (the mean of so many, drawn anew for every unit)."""
    hidden_projection: Literal["rademacher", "pca", "none"] = "rademacher"
    """How they are projected: by random signs drawn anew for every unit, or onto the principal
    components of the first unit's; ``none`` stores no hidden states."""
    hidden_projection_dim: int = 64
    """d: width of the sketch."""
    hidden_projection_dtype: Literal["int8", "float16", "float32"] = "int8"
    """How sketches are stored; int8 has a scale for each position."""
    keep_teacher_weights: bool = False
    """Whether a new cache also holds all of the teacher's weights, for students that begin with
    more of it than embedding and head. Not part of the cache's identity."""
    seed: int = 0
    """Seed of all that is drawn: the sketch's signs, ids, and random layers."""

    rows_per_forward: int | None = None
    """Sequences in one forward pass of the teacher; by default as many as fit and pay."""
    head_chunk: int = 1024
    """Positions whose full logits exist at once; lower it when memory runs out."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether PyTorch compiles what is done with the logits; ``auto``: if it finds a compiler."""

    def __post_init__(self) -> None:
        _require(2 <= self.sequence_length <= 65_535, "sequence_length", "from 2 to 65,535")
        _require(self.num_tokens >= 1, "num_tokens", "1 or more")
        _require(self.documents_per_unit >= 1, "documents_per_unit", "1 or more")
        _require(self.validation_every >= 2, "validation_every", "2 or more")
        _require(1 <= self.top_k <= 65_535, "top_k", "from 1 to 65,535")
        _require(0.0 < self.top_p <= 1.0, "top_p", "above 0 and at most 1")
        _require(2 <= self.num_levels <= 255, "num_levels", "from 2 to 255")
        _require(
            self.rows_per_forward is None or self.rows_per_forward >= 1,
            "rows_per_forward",
            '1 or more, or "none" to have it found',
        )
        _require(self.head_chunk >= 1, "head_chunk", "1 or more")
        _require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 − 1")
        _require(
            8 <= self.hidden_projection_dim <= 4096 and self.hidden_projection_dim % 8 == 0,
            "hidden_projection_dim",
            "a multiple of 8 from 8 to 4,096",
        )
        nodes = self.inverse_temperatures
        _require(
            1 <= len(nodes) <= 8
            and nodes[-1] == 1.0
            and list(nodes) == sorted(set(nodes))
            and all(0 < 8 * node <= 8 and float(8 * node).is_integer() for node in nodes),
            "inverse_temperatures",
            "1 to 8 rising multiples of 1/8 that end at 1.0, such as [0.5, 0.75, 1.0]",
        )
        _require(self.corpus_data_files != (), "corpus_data_files", "one pattern or more")
        _require(1 <= self.num_samples <= 255, "num_samples", "from 1 to 255")
        _require(0.0 < self.hidden_kl <= 10.0, "hidden_kl", "above 0 and at most 10 nats")
        _require(0 <= self.tail_moment_dim <= 65_535, "tail_moment_dim", "from 0 to 65,535")
        _require(
            not self.tail_moment_dim or self.targets in KINDS_WITH_MOMENT,
            "tail_moment_dim",
            f"0 unless targets is {one_of(KINDS_WITH_MOMENT)}",
        )
        _require(
            (self.prompt_column is None) == (self.completion_column is None),
            "prompt_column" if self.prompt_column is None else "completion_column",
            "set, too: prompts and completions have a column each",
        )
        _require(
            self.messages_column is None or self.prompt_column is None,
            "messages_column",
            "none where prompt_column and completion_column are set",
        )
        SETTINGS_OF_KINDS[self.targets].check(self)
        _require(
            _names_hidden_states(self.hidden_states),
            "hidden_states",
            "mean_over_layers, last, layers:4,12 or each:4,12 (rising), or random_layers:2",
        )
        if self.corpora is not None:
            self._check_corpora(self.corpora)
        require_int64(vars(self))

    def _check_corpora(self, corpora: tuple[CorpusSettings, ...]) -> None:
        check_corpora(corpora)
        total = total_tokens(corpora)
        _require(
            total is None or self.num_tokens >= total,
            "num_tokens",
            f"{total}, the sum of the corpora's tokens, or more",
        )
        for entry in corpora:
            try:
                self._of_corpus(entry)
            except ValueError as error:
                raise ValueError(f"corpora: {entry.name}: {error}") from error

    def _of_corpus(self, entry: CorpusSettings) -> "CacheTeacherConfig":
        changes: Mapping[str, Any] = entry.changes
        return replace(self, corpora=None, **changes)

    @property
    def each_corpus(self) -> "dict[str | None, CacheTeacherConfig]":
        """The settings of each corpus by its name, as if it were the only one; one that is the only
        one has the name None."""
        if self.corpora is None:
            return {None: self}
        return {entry.name: self._of_corpus(entry) for entry in self.corpora}

    @property
    def corpus_title(self) -> str:
        """What errors call what is read."""
        if self.corpora is None:
            return f"corpus {self.corpus!r}"
        return f"corpora {', '.join(entry.name for entry in self.corpora)}"

    @property
    def has_conversations(self) -> bool:
        """Whether any corpus is of conversations."""
        return any(settings.chat is not None for settings in self.each_corpus.values())

    @property
    def chat(self) -> ChatSpec | None:
        """How conversations are read; None where documents are plain text."""
        if self.messages_column is None and self.prompt_column is None:
            return None
        return ChatSpec(
            messages_column=self.messages_column,
            prompt_column=self.prompt_column,
            completion_column=self.completion_column,
            train_on=self.train_on,
            long_conversations=self.long_conversations,
        )


@dataclass(frozen=True, kw_only=True)
class UnitRange:
    """The units that a run makes, such as one machine's share; all of them by default."""

    first: int = 0
    end: int | None = None
    """The first unit after the range; None where only the budget or the corpus ends it."""

    def __post_init__(self) -> None:
        _require(self.first >= 0, "first", "0 or more")
        _require(self.end is None or self.first < self.end, "end", "more than the first unit")
        require_int64(vars(self))

    @classmethod
    def parse(cls, text: str) -> "UnitRange":
        """``100:200`` or ``100:``. Raises ValueError."""
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})?", text)
        if match is None:
            raise ValueError(f"{text!r}: expected FIRST:END, such as 100:200, or FIRST:")
        return cls(first=int(match[1]), end=None if match[2] is None else int(match[2]))

    def numbers(self) -> Iterable[int]:
        """The units, rising."""
        return count(self.first) if self.end is None else range(self.first, self.end)


def _names_hidden_states(text: str) -> bool:
    if match := re.fullmatch(r"(?:layers|each):([1-9]\d{0,4}(?:,[1-9]\d{0,4})*)", text):
        layers = [int(layer) for layer in match[1].split(",")]
        return layers == sorted(set(layers))
    return re.fullmatch(r"mean_over_layers|last|random_layers:[1-9]\d{0,4}", text) is not None


def _require(holds: bool, key: str, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{key}: must be {allowed}")


ALL_UNITS = UnitRange()
