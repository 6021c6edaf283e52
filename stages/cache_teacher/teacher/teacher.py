"""The teacher on a device: token ids become hidden states. The head is left to ``targets``.

In: rows of T ids and the places where documents start. Out: last hidden states, and those of the
layers asked for. Documents in one row do not attend to each other, and their
positions count from 0. B rows, T positions, D width, V vocabulary.
"""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError

from cache_format.metadata.spec_parts.teacher import TeacherSpec
from stages.cache_teacher.corpus.packing import IntArray
from stages.cache_teacher.targets.teacher_head import Head
from stages.cache_teacher.teacher.attention import VARLEN, body_inputs, register_varlen
from stages.cache_teacher.teacher.probes import refuse_unfaithful
from stages.cache_teacher.teacher.teacher_files import TeacherSource
from stages.model_files.tokenizer_files import pass_on_tokenizer
from stages.model_files.weight_files import INDEX, WHOLE, weight_files


class Teacher:
    """A causal language model without gradients. Loading it is what costs memory and time."""

    def __init__(self, source: TeacherSource, device: torch.device) -> None:
        """Raises ValueError if weights are missing, or documents or logits would come out wrong."""
        self.source, self.device = source, device
        spec = source.spec
        _refuse_attention(spec, device)
        self._model = model = _load_model(source).to(device)
        self.embedding = model.get_input_embeddings().weight
        self.head_weight = _head_weight(model, spec)
        self.head = Head(self.head_weight, spec.vocab_size)
        self._blocks = _blocks_of(model, spec.num_layers)
        refuse_unfaithful(
            model, spec, self.head, lambda ids, starts: self.forward(ids, starts, layers=())[0]
        )

    @torch.inference_mode()
    def forward(
        self,
        input_ids: IntArray,
        document_starts: Sequence[IntArray],
        *,
        layers: Sequence[int],
        check: Callable[[], None] = lambda: None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Last hidden states [B, T, D], and those of ``layers``, each [B, T, D], in that order.

        The last hidden state is what the head is applied to. Layer 1 is the first block's output;
        the last layer's is taken after the final norm, so it is the last hidden state. The
        embedding's output is no layer. Nothing is kept of a layer that is not asked for. ``check``
        is called before every block, and may raise.
        """
        attention = self.source.spec.attention
        inputs = body_inputs(input_ids, document_starts, attention, self._model.dtype, self.device)
        with _checked(self._blocks, check), _outputs_kept(self._blocks, layers) as kept:
            output = self._model.base_model(**inputs, use_cache=False)
        kept[len(self._blocks)] = output.last_hidden_state
        shape = (*input_ids.shape, -1)
        last_BTD = output.last_hidden_state.reshape(shape)
        return last_BTD, [kept[layer].reshape(shape) for layer in layers]

    def export(self, directory: Path, *, with_weights: bool = False) -> None:
        """Write what a student needs: config, tokenizer, embedding, and the head if untied.

        ``with_weights``, the files of all weights beside them: a whole model directory.
        """
        from safetensors.torch import save_file

        source = self.source
        shutil.copyfile(source.directory / "config.json", directory / "config.json")
        # Not copied: transformers may read the teacher's files as a tokenizer class of its own
        # choice; what is saved is what made the ids, whoever reads it.
        with TemporaryDirectory() as saved:
            source.tokenizer.save_pretrained(saved)
            pass_on_tokenizer(os.listdir(saved), Path(saved).joinpath, directory)
        tied = self.head_weight.data_ptr() == self.embedding.data_ptr()
        tensors = (
            {"embedding": self.embedding}
            if tied
            else {
                "embedding": self.embedding,
                "head": self.head_weight,
            }
        )
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            directory / "embedding.safetensors",
        )
        facts = {
            "tie_word_embeddings": tied,
            "hidden_size": source.spec.hidden_size,
            "vocab_size": source.spec.vocab_size,
            "head_rows": source.spec.head_rows,
            "eos_token_id": source.spec.eos_token_id,
        }
        (directory / "teacher.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
        if with_weights:
            names = weight_files(source.directory)
            for name in [*names, *([] if names == [WHOLE] else [INDEX])]:
                shutil.copyfile(source.directory / name, directory / name)


def _refuse_attention(spec: TeacherSpec, device: torch.device) -> None:
    """Raise ValueError for an attention that cannot run here, before the weights are loaded."""
    is_fast_gpu = device.type == "cuda" and spec.dtype != "float32"
    if spec.attention == "flash_attention_2":
        if not is_fast_gpu:
            raise ValueError(
                "attention: flash_attention_2 needs a GPU and half precision; use sdpa"
            )
        if importlib.util.find_spec("flash_attn") is None:
            raise ValueError(
                "attention: flash_attention_2 needs the flash-attn package; use varlen, which is "
                "PyTorch's own"
            )
    if spec.attention == VARLEN and device.type == "cuda" and not is_fast_gpu:
        raise ValueError("attention: varlen on a GPU needs half precision; use sdpa")


def _head_weight(model: Any, spec: TeacherSpec) -> torch.Tensor:
    """The head's weight [V, D]. Raises ValueError where a cache cannot do with it alone."""
    name = f"teacher {model.config.model_type!r}"
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{name}: has no head; the teacher must be a causal language model")
    if getattr(head, "bias", None) is not None:
        raise ValueError(f"{name}: its head has a bias, which a cache does not store")
    weight: torch.Tensor = head.weight
    expected = (spec.head_rows, spec.hidden_size)
    for part, found in (
        ("head", tuple(weight.shape)),
        ("embedding", tuple(model.get_input_embeddings().weight.shape)),
    ):
        if found != expected:
            raise ValueError(
                f"{name}: its {part} is {found[0]} × {found[1]}, expected vocab_size × hidden_size "
                f"of its config.json, {expected[0]} × {expected[1]}"
            )
    return weight


def _load_model(source: TeacherSource) -> Any:
    from transformers import AutoModelForCausalLM

    register_varlen()
    try:
        with _no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.directory,
                dtype=getattr(torch, source.spec.dtype),
                attn_implementation=source.spec.attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (ImportError, OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        hint = ""
        if "attention" in str(error) or repr(source.spec.attention) in str(error):
            hint = f'\nattention is {source.spec.attention!r}: set it to "sdpa" or "eager".'
        raise ValueError(
            f"{source.directory}: the teacher cannot be loaded: {error}{hint}"
        ) from error
    model, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:5])
        raise ValueError(f"{source.directory}: weights are missing: {missing}")
    return model.eval()


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Only the command line prints; transformers would show a bar of its own while loading."""
    from transformers.utils import logging

    library: Any = logging
    shown = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.enable_progress_bar()


def _blocks_of(model: Any, num_layers: int) -> list[torch.nn.Module]:
    """The blocks of the model's body, first to last. Raises ValueError where they are not found."""
    lists = {
        name: module
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == num_layers
    }
    # A block may hold lists of its own, such as experts, and as many of them.
    outer = [
        module
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    ]
    if len(outer) != 1:
        raise ValueError(
            f"teacher {model.config.model_type!r}: {len(outer)} lists of {num_layers} blocks in "
            "its body, expected 1. Use a teacher with one stack of layers."
        )
    return list(outer[0])


@contextmanager
def _checked(blocks: Sequence[torch.nn.Module], check: Callable[[], None]) -> Iterator[None]:
    """A block in which ``check`` is called before each of the model's ``blocks``."""

    def hook(block: torch.nn.Module, inputs: Any) -> None:
        check()

    handles = [block.register_forward_pre_hook(hook) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _outputs_kept(
    blocks: Sequence[torch.nn.Module], layers: Sequence[int]
) -> Iterator[dict[int, torch.Tensor]]:
    """What the blocks ``layers`` (from 1) return while this is open, by their number."""
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(block: torch.nn.Module, inputs: Any, output: Any) -> None:
            kept[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    # The last layer's output is wanted after the final norm, which is no block's.
    wanted = set(layers) - {len(blocks)}
    handles = [blocks[layer - 1].register_forward_hook(keep(layer)) for layer in wanted]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
