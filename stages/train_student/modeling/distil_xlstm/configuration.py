"""What a student's ``config.json`` holds. Written and read by Hugging Face, made by the student."""

from typing import Any

from transformers import PretrainedConfig

from stages.train_student.modeling.distil_xlstm.package_stack import StackSettings


class DistilXLSTMConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Block settings (see ``DistilXLSTMSettings``) and the teacher's sizes.

    ``vocab_size`` ids take part in the softmax; embedding and head have ``head_rows`` rows, the
    rest being padding. ``embedding_dtype`` is the precision of the frozen copies, which is kept
    whatever precision the blocks are loaded in; so is the float32 of a head that was trained.
    ``teacher`` (source, revision and hashes) and ``cache_id`` say what a published student learned
    from, ``num_steps`` for how many optimizer steps.
    """

    model_type = "distil_xlstm"
    keys_to_ignore_at_inference = ("state",)

    vocab_size: int = 256
    head_rows: int = 256
    hidden_size: int = 64
    embedding_dtype: str = "float32"
    num_blocks: int = 6
    slstm_at: tuple[int, ...] | list[int] = (0, 2, 4)
    num_heads: int = 16
    conv_kernel: int = 4
    qkv_block_size: int = 32
    feedforward_factor: float = 1.7
    mlstm_factor: float = 2.0
    dropout: float = 0.0
    train_head: bool = False
    teacher: dict[str, str] | None = None
    cache_id: str | None = None
    num_steps: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def num_hidden_layers(self) -> int:
        """What Hugging Face tools call ``num_blocks``."""
        return self.num_blocks

    def stack_settings(self) -> StackSettings:
        """What the package's stack is made from. Raises ValueError where settings do not fit."""
        return StackSettings(
            hidden_size=self.hidden_size,
            num_blocks=self.num_blocks,
            slstm_at=tuple(self.slstm_at),
            num_heads=self.num_heads,
            conv_kernel=self.conv_kernel,
            qkv_block_size=self.qkv_block_size,
            feedforward_factor=self.feedforward_factor,
            mlstm_factor=self.mlstm_factor,
            dropout=self.dropout,
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: or saving would copy this file, alone, into the model's directory."""
