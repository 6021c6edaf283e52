"""The kind ``distil_xlstm`` (arXiv 2503.18565): xLSTM blocks between teacher's embedding and head.

MFU (Chowdhery et al. 2022, appendix B) counts what the model's definition needs, whatever is done.
A token meets each trained weight three times, forward and twice backward, at 2 operations; a frozen
head twice, since no gradient is taken for it. An mLSTM's state of H × H a head is written and read:
4 operations for each of its numbers, and twice that backward.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch

from stages.train_student.modeling.distil_xlstm import auto_classes  # noqa: F401 (registers them)
from stages.train_student.modeling.distil_xlstm.build import build_student
from stages.train_student.modeling.distil_xlstm.configuration import DistilXLSTMConfig
from stages.train_student.modeling.distil_xlstm.directory_code import AUTO_MAP, directory_code
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from stages.train_student.modeling.layers.slstm_backend import choose_scan
from stages.train_student.students.parameter_count import count_parameters
from stages.train_student.students.stored_values import is_factor, is_list_of_ids, is_size
from stages.train_student.students.student import DirectoryCode, Sharding, StudentKind, TeacherParts

_BLOCK = re.compile(r"\bblocks\.(\d+)\.")


class _DistilXLSTM:
    config_class = DistilXLSTMConfig
    model_class = DistilXLSTMForCausalLM
    stored_settings: ClassVar[Mapping[str, Callable[[object], bool]]] = {
        **dict.fromkeys(("num_blocks", "num_heads", "conv_kernel", "qkv_block_size"), is_size),
        **dict.fromkeys(("feedforward_factor", "mlstm_factor", "dropout"), is_factor),
        "slstm_at": is_list_of_ids,
    }

    def stored_problem(self, key: str, value: object) -> str:
        return ""

    def row_warning(self, settings: DistilXLSTMSettings, sequence_length: int) -> str:
        return ""

    @property
    def directory_code(self) -> DirectoryCode:
        return DirectoryCode(auto_map=AUTO_MAP, files=directory_code())

    def build(
        self, settings: DistilXLSTMSettings, teacher: TeacherParts, seed: int
    ) -> DistilXLSTMForCausalLM:
        return build_student(
            settings,
            hidden_size=teacher.hidden_size,
            vocab_size=teacher.vocab_size,
            head_rows=teacher.head_rows,
            eos_token_id=teacher.eos_token_id,
            embedding=teacher.embedding,
            head=teacher.head,
            seed=seed,
        )

    def publishable(self, model: DistilXLSTMForCausalLM) -> DistilXLSTMForCausalLM:
        return model

    def prepare(
        self, settings: DistilXLSTMSettings, model: DistilXLSTMForCausalLM, device: torch.device
    ) -> str:
        """Who computes the sLSTM's recurrence; the student asks for it by the device."""
        if not settings.slstm_at:
            return ""
        heads = settings.num_heads
        width = model.config.hidden_size // heads
        return choose_scan(settings.slstm_backend, device, heads, width).sentence

    def sharding(self, model: DistilXLSTMForCausalLM) -> Sharding:
        # Not `hidden_states`: FSDP moves what that is given to the device, marks on the host, too.
        return Sharding(root=model, units=list(model.blocks), forward_method="run_stack")

    def mixer_parameters(self, model: DistilXLSTMForCausalLM) -> frozenset[str]:
        return frozenset()

    def operations_per_token(self, model: DistilXLSTMForCausalLM) -> float:
        config = model.config
        num_weights = sum(weight.numel() for weight in model.xlstm_block_stack.parameters())
        inner = config.stack_settings().inner_size
        num_mlstm = config.num_blocks - len(config.slstm_at)
        cells = 12 * inner * (inner // config.num_heads) * num_mlstm
        per_weight = 6 if model.lm_head.weight.requires_grad else 4
        head = per_weight * config.vocab_size * config.hidden_size
        return float(6 * num_weights + cells + head)

    def description(self, model: DistilXLSTMForCausalLM) -> str:
        config = model.config
        trainable, total = count_parameters(model)
        slstm = ", ".join(map(str, config.slstm_at)) or "none"
        head = "a frozen copy of the teacher's embedding and a head initialized from the teacher's"
        if not config.train_head:
            head = "frozen copies of the teacher's embedding and head"
        return (
            f"{config.num_blocks} xLSTM blocks (sLSTM: {slstm}; the others mLSTM) of width "
            f"{config.hidden_size} between {head}: {trainable:,} of {total:,} parameters were "
            "trained, as in Distil-xLSTM (arXiv 2503.18565)"
        )

    def blocks_differ(self, settings: Any, weights: Iterable[str]) -> str:
        blocks = {match[1] for name in weights if (match := _BLOCK.search(name))}
        if len(blocks) == settings.num_blocks:
            return ""
        return f"num_blocks is {settings.num_blocks}, but the weights have {len(blocks)} blocks."


KIND: StudentKind[DistilXLSTMSettings, DistilXLSTMForCausalLM] = _DistilXLSTM()
