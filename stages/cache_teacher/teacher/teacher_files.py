"""The teacher's files: a name becomes a directory, hashes and a ``TeacherSpec``; no weights yet.

In: the ``teacher*`` settings. Out: ``TeacherSource``, after every refusal that the files allow, so
that a wrong setting costs seconds and not a model's loading time.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cache_format.metadata.spec_parts.teacher import TeacherSpec
from stages.cache_teacher.config import CacheTeacherConfig
from stages.cache_teacher.corpus.chat.chat_template import template_of, template_sha256
from stages.cache_teacher.corpus.chat.unit_conversations import ChatEncoder
from stages.cache_teacher.corpus.document_tokenizer import DocumentTokenizer
from stages.cache_teacher.corpus.hub import model_snapshot
from stages.cache_teacher.teacher.attention import choose_attention
from stages.cache_teacher.teacher.locate import local_directory
from stages.model_files.file_hashes import tokenizer_sha256, weights_sha256
from stages.model_files.redirects import refuse_redirects
from stages.model_files.tokenizer_files import (
    CONFIG,
    READ_FILES,
    TOKENIZER_FILES,
    load_tokenizer,
)
from stages.model_files.weight_files import pickled_note, weight_files

# An adapter, and a checkpoint that several processes wrote.
_INSTEAD = re.compile(r"adapter_config\.json|shard-[0-9]{5}-model-.*\.safetensors")
_LOGIT_CAPS = ("final_logit_softcapping",)
_LOGIT_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """A teacher on disk: what it is, and what reads its text."""

    directory: Path
    spec: TeacherSpec
    tokenizer: Any
    """transformers' tokenizer, as a student gets it."""

    @cached_property
    def document_tokenizer(self) -> DocumentTokenizer:
        """What turns documents into token ids."""
        return DocumentTokenizer(
            self.tokenizer.backend_tokenizer, self.spec.vocab_size, self.spec.eos_token_id
        )

    @cached_property
    def chat_encoder(self) -> ChatEncoder:
        """What turns conversations into token ids."""
        return ChatEncoder(self.tokenizer, self.spec.vocab_size, self.spec.eos_token_id)


def resolve_teacher(config: CacheTeacherConfig) -> TeacherSource:
    """Find the teacher's files, fetching them from the Hub if need be, and describe them.

    ``config`` names the teacher's dtype. Raises ValueError where there is no such model, or it
    cannot be cached faithfully.
    """
    from transformers import AutoConfig

    assert config.teacher_dtype != "auto", "chosen by now"
    name = f"teacher {config.teacher!r}"
    directory, revision = _directory_of(config)
    _require_weights(directory, name)
    if not any((directory / file).is_file() for file in READ_FILES):
        raise ValueError(f"{name}: {directory} holds no tokenizer")
    refuse_redirects(directory / "config.json")
    refuse_redirects(directory / CONFIG)
    try:
        model_config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        tokenizer = load_tokenizer(directory)
    except MemoryError:
        raise
    except Exception as error:  # transformers' own, of whatever type, for a wrong file
        raise ValueError(
            f"{name}: its configuration or tokenizer is unreadable: {error}"
        ) from error
    text_config = model_config.get_text_config()
    attention = choose_attention(config.attention, config.teacher_dtype, text_config)
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    _refuse_model(name, text_config, config.sequence_length)
    _refuse_attention(name, text_config, attention)
    _refuse_vocabulary(name, tokenizer, vocab_size, text_config.vocab_size, config.top_k)
    spec = TeacherSpec(
        source=config.teacher if revision else "local",
        revision=revision,
        weights_sha256=weights_sha256(directory),
        tokenizer_sha256=tokenizer_sha256(directory),
        dtype=config.teacher_dtype,
        attention=attention,
        hidden_size=text_config.hidden_size,
        num_layers=text_config.num_hidden_layers,
        vocab_size=vocab_size,
        head_rows=text_config.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        chat_template_sha256=_chat_template_sha256(name, tokenizer, config),
    )
    return TeacherSource(
        directory=directory,
        spec=spec,
        tokenizer=tokenizer,
    )


def _chat_template_sha256(name: str, tokenizer: Any, config: CacheTeacherConfig) -> str | None:
    """Of the template that conversations are rendered with, where there are any."""
    if not config.has_conversations:
        return None
    try:
        return template_sha256(template_of(tokenizer))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _directory_of(config: CacheTeacherConfig) -> tuple[Path, str]:
    """The directory with the teacher's files, and the commit if it came from the Hub."""
    directory = local_directory(config.teacher)
    if directory is not None:
        return directory, ""
    snapshot = model_snapshot(config, TOKENIZER_FILES)
    return snapshot, snapshot.name


def _require_weights(directory: Path, name: str) -> None:
    """Raise ValueError unless there are safetensors weights; pickled ones are never read."""
    if not (directory / "config.json").is_file():
        raise ValueError(f"{name}: {directory} is not a model directory: it has no config.json")
    for path in sorted(directory.iterdir()):
        if _INSTEAD.fullmatch(path.name):
            raise ValueError(
                f"{name}: {directory} holds {path.name}, which makes transformers load other "
                "weights than the model's own. Merge an adapter into its model, and use a "
                "directory that `save_pretrained` wrote and that holds nothing else."
            )
    if not weight_files(directory):
        raise ValueError(
            f"{name}: {directory} holds no safetensors weights{pickled_note(directory)}. Save the "
            "model with save_pretrained(..., safe_serialization=True) and use that directory."
        )


def _refuse_model(name: str, text_config: Any, sequence_length: int) -> None:
    """Raise ValueError for a model whose targets this stage would get wrong."""
    if getattr(text_config, "is_encoder_decoder", False):
        raise ValueError(f"{name}: an encoder-decoder; the teacher must be a causal language model")
    for key in (*_LOGIT_CAPS, *_LOGIT_SCALES):
        value = getattr(text_config, key, None)
        if value is not None and (value != 1 or key in _LOGIT_CAPS):
            raise ValueError(
                f"{name}: changes its logits after the head ({key} = {value}), which a student "
                "with a copy of the head would not do. Use a teacher without it."
            )
    longest = getattr(text_config, "max_position_embeddings", None)
    if longest is not None and sequence_length > longest:
        raise ValueError(
            f"sequence_length: {sequence_length} is more than the {longest} positions of {name}"
        )
    _refuse_windows(name, text_config, sequence_length)
    _refuse_long_rope(name, text_config, sequence_length)


def _refuse_attention(name: str, text_config: Any, attention: str) -> None:
    """Soft-capped scores are transformers' own code alone; other kernels may pass over the cap."""
    cap = getattr(text_config, "attn_logit_softcapping", None)
    if cap is not None and attention != "eager":
        raise ValueError(
            f"{name}: caps its attention scores (attn_logit_softcapping = {cap}), which attention "
            f'{attention!r} does not. Set attention to "eager".'
        )


def _refuse_windows(name: str, text_config: Any, sequence_length: int) -> None:
    layer_types = set(getattr(text_config, "layer_types", None) or ["unknown"])
    known = {"full_attention", "sliding_attention", "chunked_attention", "unknown"}
    if layer_types - known:
        kinds = ", ".join(sorted(layer_types - known))
        raise ValueError(
            f"{name}: has layers ({kinds}) in which documents in one row would see each "
            "other. Use a teacher with full attention."
        )
    if layer_types == {"full_attention"}:
        return
    for key in ("sliding_window", "attention_chunk_size"):
        window = getattr(text_config, key, None)
        if window is not None and window < sequence_length:
            raise ValueError(
                f"{name}: attends within {window} positions only ({key}). Set sequence_length to "
                f"{window} or less, or use a teacher with full attention."
            )


def _refuse_long_rope(name: str, text_config: Any, sequence_length: int) -> None:
    """Beyond a length, longrope has other angles for all rows of a batch if one is longer."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return
    longest = rope.get("original_max_position_embeddings") or getattr(
        text_config, "original_max_position_embeddings", None
    )
    if longest is not None and sequence_length > longest:
        raise ValueError(
            f"sequence_length: {sequence_length} is more than {longest}, beyond which {name} "
            "treats a document differently if another one in the batch is long (longrope). Lower "
            "it."
        )


def _refuse_vocabulary(
    name: str, tokenizer: Any, vocab_size: int, head_rows: int, top_k: int
) -> None:
    if vocab_size > head_rows:
        raise ValueError(
            f"{name}: its tokenizer makes ids up to {vocab_size - 1}, but its head has "
            f"{head_rows} rows. The tokenizer does not match the model."
        )
    if top_k > vocab_size:
        raise ValueError(f"top_k: {top_k} is more than the {vocab_size} ids of {name}")
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(
            f"{name}: its tokenizer ({type(tokenizer).__name__}) is not from the tokenizers "
            "library, the only one known to keep control tokens out of documents. Use a teacher "
            "with a tokenizer.json."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{name}: its tokenizer has no end-of-text token (eos_token), so documents cannot be "
            "told apart. Set one in tokenizer_config.json."
        )
