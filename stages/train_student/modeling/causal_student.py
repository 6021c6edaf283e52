"""What the students share as Hugging Face models: loading, saving, logits, loss and generation.

In: a model that turns token ids into hidden states and carries a state. Out: a causal language
model with the usual methods, which keeps documents of a row apart.

Shapes: B batch, T positions, V vocabulary, R rows of the head (padding included), D width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils.generic import ModelOutput

from stages.train_student.modeling.layers.document_masks import DocumentLayout, lay_out_documents

_HEAD_CHUNK_ROWS = 8192  # rows of a half-precision head that are held in float32 at once


@dataclass
class CausalStudentOutput(ModelOutput):
    """Mean cross-entropy (where labels were given), logits [B, T, V], and the recurrent state."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: Any = None


class CausalStudent(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """A student as a causal language model; what it computes is said by its subclasses."""

    config: Any
    lm_head: nn.Linear
    auto_map: dict[str, str]
    """What names the classes in config.json."""
    _is_stateful = True  # generation cannot go back a token

    def run_stack(self, input_ids: Tensor, layout: DocumentLayout, state: Any) -> Any:
        """A tuple: states [B, T, D] after the final norm and, given a ``state``, the one after.

        What reads the weights of a training step, so that sharding has one method to hook into.
        """
        raise NotImplementedError

    def empty_state(self, batch: int) -> Any:
        """The state before the first position of a document."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Set what is trained, by the config."""
        raise NotImplementedError

    @staticmethod
    def write_directory_code(directory: Path) -> None:
        """Write the modules that ``auto_map`` needs."""
        raise NotImplementedError

    @property
    def stack_device(self) -> torch.device:
        """Where masks and states lie."""
        raise NotImplementedError

    @property
    def conv_kernel(self) -> int:
        """Width of the widest causal convolution, in positions; 1 without any."""
        return 1

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in Hugging Face, but refuses a directory that lacks weights, and offloading."""
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(
                f"{args[0] if args else 'model'}: {len(info['missing_keys'])} weights are missing, "
                f"{min(info['missing_keys'])!r} among them. Copy the whole directory again, or "
                "export the student anew from a checkpoint."
            )
        offloaded = [name for name, weight in model.named_parameters() if weight.is_meta]
        if offloaded:
            raise ValueError(
                f"device_map: {offloaded[0]!r} would be fetched for each use, which this model "
                "cannot do. Give it a map onto devices that hold it, such as device_map='cpu'."
            )
        model.freeze()
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in Hugging Face, with the code of this class beside the weights."""
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained: upload with `model.push_to_hub(…)` instead")
        self.config.auto_map = dict(self.auto_map)
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            self.write_directory_code(Path(save_directory))

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModelForCausalLM") -> None:
        """Nothing: or saving would copy this file, alone, into the model's directory."""

    def hidden_states(self, input_ids: Tensor, is_document_start: Tensor | None = None) -> Tensor:
        """States after the final norm, [B, T, D]; what the loss works on.

        ``is_document_start`` is bool [B, T], True where a document begins; index 0 always does.
        """
        layout = self.lay_out(input_ids, is_document_start, has_state=False)
        hidden: Tensor = self.run_stack(input_ids, layout, None)[0]
        return hidden

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        is_document_start: Tensor | None = None,
        labels: Tensor | None = None,
        state: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Logits over the ids that take part in the softmax, in float32.

        ``labels`` are shifted here, as in Hugging Face: pass the input ids. Labels of −100 and
        labels at which a document begins are not scored. ``state`` (returned with ``use_cache``)
        goes on where an earlier call ended; a document start at index 0 then has to be marked.
        ``attention_mask`` may hold padding; a document begins after it. It may also cover what came
        before ``state``. 0 for ``logits_to_keep`` means all positions.
        """
        return_dict = kwargs.pop("return_dict", True)
        if attention_mask is not None:
            if use_cache and not bool(attention_mask[:, -1].all()):
                raise ValueError(
                    "attention_mask: the last position of a row is padding, which would end up in "
                    "the recurrent state. Pad on the left (tokenizer.padding_side = 'left')."
                )
            after_padding = _starts_after_padding(attention_mask)
            if state is not None:
                after_padding = after_padding[:, -input_ids.shape[1] :]
            is_document_start = (
                after_padding if is_document_start is None else after_padding | is_document_start
            )
        if use_cache and state is None:
            state = self.empty_state(len(input_ids))
        layout = self.lay_out(input_ids, is_document_start, has_state=state is not None)
        hidden, state = self.run_stack(input_ids, layout, state)[:2]
        logits = self._logits(hidden[:, -logits_to_keep:])
        loss = None if labels is None else _next_token_loss(logits, labels, is_document_start)
        output = CausalStudentOutput(loss=loss, logits=logits, state=state)
        return output if return_dict else output.to_tuple()

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Padding and document starts belong to the prompt alone."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if inputs.get("state") is not None:
            inputs["attention_mask"] = inputs["is_document_start"] = None
        return inputs

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def lay_out(
        self, input_ids: Tensor, is_document_start: Tensor | None, *, has_state: bool
    ) -> DocumentLayout:
        """Where documents lie in the batch. Raises ValueError for marks of another shape."""
        if is_document_start is not None and is_document_start.shape != input_ids.shape:
            raise ValueError(
                f"is_document_start: expected the shape of input_ids, {tuple(input_ids.shape)}, "
                f"found {tuple(is_document_start.shape)}"
            )
        like_BT = input_ids.to(self.stack_device)
        return lay_out_documents(is_document_start, like_BT, self.conv_kernel, has_state=has_state)

    def _logits(self, hidden: Tensor) -> Tensor:
        """The head in float32, as bfloat16 would round logits near 19 by up to 0.06."""
        head = self.lm_head.weight[: self.config.vocab_size]
        hidden = hidden.to(head.device)
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, head.dtype), torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            if head.dtype == dtype:
                return nn.functional.linear(hidden.to(dtype), head)
            hidden = hidden.to(dtype)
            chunks = torch.split(head, _HEAD_CHUNK_ROWS)
            return torch.cat([nn.functional.linear(hidden, c.to(dtype)) for c in chunks], dim=-1)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module has initialised itself when it was made."""

    def _reorder_cache(self, state: Any, beam_indices: Tensor) -> Any:
        """Beam search: each beam goes on from the state of the one it came from."""
        raise NotImplementedError

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the state is made in `forward`


def _starts_after_padding(attention_mask: Tensor) -> Tensor:
    is_token = attention_mask.bool()
    before = torch.cat([torch.ones_like(is_token[:, :1]), is_token[:, :-1]], dim=1)
    return is_token & ~before


def _next_token_loss(logits: Tensor, labels: Tensor, is_document_start: Tensor | None) -> Tensor:
    labels = labels[:, 1:].to(logits.device)
    if is_document_start is not None:
        labels = labels.masked_fill(is_document_start[:, 1:].bool().to(logits.device), -100)
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
