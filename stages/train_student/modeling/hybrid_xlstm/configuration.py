"""What a student's ``config.json`` holds. Written and read by Hugging Face, made by the student."""

from typing import Any

from transformers import PretrainedConfig

from stages.train_student.modeling.hybrid_xlstm.pattern import LayerKind, layer_kinds


class HybridXLSTMConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Mixer settings (see ``HybridXLSTMSettings``) and what the teacher's layers are built from.

    ``teacher_config`` holds those fields of the teacher's config.json (see ``teacher_family``).
    ``vocab_size`` ids take part in the softmax; embedding and head have ``head_rows`` rows, the
    rest being padding. ``embedding_dtype`` is the precision of what was copied and not trained,
    which is kept whatever precision the rest is loaded in. ``teacher`` (source, revision and
    hashes) and ``cache_id`` say what a published student learned from, ``num_steps`` for how many
    optimizer steps.
    """

    model_type = "hybrid_xlstm"
    keys_to_ignore_at_inference = ("state",)

    vocab_size: int = 256
    head_rows: int = 256
    hidden_size: int = 64
    embedding_dtype: str = "float32"
    teacher_config: dict[str, Any] | None = None
    pattern: str = "hybrid"
    window: int = 512
    num_sinks: int = 4
    feature_map: str = "two_signed"
    trained: str = "new"
    teacher: dict[str, str] | None = None
    cache_id: str | None = None
    num_steps: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the teacher, and so of the student."""
        return int((self.teacher_config or {}).get("num_hidden_layers", 0))

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """What each layer is. Raises ValueError where the pattern is of another number of them."""
        return layer_kinds(self.pattern, self.num_hidden_layers)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: or saving would copy this file, alone, into the model's directory."""
