"""Low-rank adapters of a hybrid student's copied weights, by the package ``peft``.

    y = W x + B A x        (LoRA, Hu et al., arXiv 2106.09685, with α = r)

In: a student whose copies are frozen. Out: the same with trained A and B beside each projection of
its layers; and, from that, a student of plain weights W + BA. The modelling code knows adapters
only by their names, and what is published has none.

r rank, O and I outputs and inputs of a projection.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stages.train_student.modeling.hybrid_xlstm.build import make_rotation
from stages.train_student.modeling.hybrid_xlstm.mixer import is_new
from stages.train_student.modeling.hybrid_xlstm.modeling import (
    MERGED,
    HybridXLSTMForCausalLM,
    is_trained,
)

_NAME = "default"
_BASE = ".base_layer."


def add_adapters(student: HybridXLSTMForCausalLM, rank: int, seed: int) -> None:
    """Put an adapter beside each projection of the layers, in float32; BA is 0 at first.

    A is a function of ``seed`` alone. The global random state is untouched.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = list(_projections(student))
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, student, _NAME)
    student.freeze()
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge_adapters(student: HybridXLSTMForCausalLM) -> HybridXLSTMForCausalLM:
    """A student of plain weights that computes the same; ``student`` stays as it is.

    The weights that had an adapter are float32, all others are those of ``student`` itself.
    """
    config = copy.deepcopy(student.config)
    config.trained = MERGED
    with torch.device("meta"):
        merged = HybridXLSTMForCausalLM(config)
    deltas = {
        f"{name}.weight": module.get_delta_weight(_NAME)
        for name, module in student.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    plain = {
        name.replace(_BASE, "."): tensor
        for name, tensor in student.state_dict().items()
        if not is_adapter(name)
    }
    for name, delta_OI in deltas.items():
        plain[name] = _sum(plain[name], delta_OI)
    merged.load_state_dict(plain, assign=True)
    merged.tie_weights()
    make_rotation(merged)
    merged.freeze()
    merged.train(student.training)
    return merged


def is_adapter(name: str) -> bool:
    """Whether the parameter ``name`` is an A or a B."""
    return ".lora_A." in name or ".lora_B." in name


@torch.no_grad()
def _sum(weight_OI: Tensor, delta_OI: Tensor) -> Tensor:
    return (weight_OI.float() + delta_OI.float()).detach()


def _projections(student: HybridXLSTMForCausalLM) -> Iterator[str]:
    for name, module in student.named_modules():
        weight = f"{name}.weight"
        if isinstance(module, nn.Linear) and is_trained(weight, MERGED) and not is_new(weight):
            yield name
