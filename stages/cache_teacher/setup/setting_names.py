"""What a recipe calls the fields of a cache's spec, so that errors speak of what was set."""

import re

from cache_format.metadata.spec import CacheSpec
from cache_format.storage.base import Storage
from cache_format.writer import require_same_spec

_SETTINGS = {
    "teacher.source": "teacher",
    "teacher.revision": "teacher_revision",
    "teacher.dtype": "teacher_dtype",
    "teacher.attention": "attention",
    "targets.kind": "targets",
    "targets.kept.top_k": "top_k",
    "targets.kept.keep_mass": "top_p",
    "targets.kept.inverse_temperatures": "inverse_temperatures",
    "targets.draws.num_draws": "num_samples",
    "targets.hidden.max_kl": "hidden_kl",
    "targets.hidden.quantization": "hidden_quantization",
    "targets.moment.dim": "tail_moment_dim",
    "sketch.kind": "hidden_projection",
    "sketch.hidden_states": "hidden_states",
    "sketch.dim": "hidden_projection_dim",
    "sketch.dtype": "hidden_projection_dtype",
    "sequence_length": "sequence_length",
    "validation_every": "validation_every",
    "validation_split": "validation_split",
    "seed": "seed",
}
_SETTINGS_OF_CORPUS = {
    "source": "corpus",
    "config": "corpus_config",
    "split": "corpus_split",
    "revision": "corpus_revision",
}
_SAME_NAMES = {
    *("text_column", "text_documents", "on_bad_document", "documents_per_unit", "messages_column"),
    *("prompt_column", "completion_column", "train_on", "long_conversations", "name", "weight"),
}
_OF_CORPUS = re.compile(r"(corpora\[\d+\]\.)?(?:corpus\.)?(?:chat\.)?(\w+)")


def setting_of(field: str) -> str:
    """The key of the recipe that decides ``field``; ``field`` itself where none does alone."""
    if field in _SETTINGS:
        return f"cache_teacher.{_SETTINGS[field]}"
    if match := _OF_CORPUS.fullmatch(field):
        entry, own = match[1] or "", match[2]
        if own in _SETTINGS_OF_CORPUS or own in _SAME_NAMES:
            return f"cache_teacher.{entry}{_SETTINGS_OF_CORPUS.get(own, own)}"
    return field


def require_same_settings(storage: Storage, expected: CacheSpec, found: CacheSpec) -> None:
    """``require_same_spec``, in the recipe's words."""
    require_same_spec(storage, expected, found, called=setting_of)
