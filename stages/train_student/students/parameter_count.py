"""Count a student's parameters."""

from torch import nn


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters. As in the paper, a tied embedding and head count as two."""
    sizes = [
        (parameter.numel(), parameter.requires_grad)
        for _, parameter in model.named_parameters(remove_duplicate=False)
    ]
    return sum(n for n, is_trainable in sizes if is_trainable), sum(n for n, _ in sizes)
