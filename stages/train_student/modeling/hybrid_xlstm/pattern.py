"""What replaces the attention of each layer, written as a short expression.

``hybrid`` means all layers; ``attention*2,hybrid*24,attention*2`` names each, first to last.
"""

import re
from typing import Literal, cast, get_args

LayerKind = Literal["hybrid", "mlstm", "window", "attention"]
"""mLSTM and window, either of them alone, or the teacher's own softmax attention."""

KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
MOST_LAYERS = 4096
_PART = re.compile(rf"\s*({'|'.join(KINDS)})\s*(?:\*\s*([1-9]\d{{0,3}}))?\s*", re.ASCII)


def parse_pattern(pattern: str) -> tuple[LayerKind, ...]:
    """The kinds that ``pattern`` names, each as often as it says. Raises ValueError for others.

    >>> parse_pattern("attention,hybrid*2")
    ('attention', 'hybrid', 'hybrid')
    """
    kinds: list[LayerKind] = []
    for part in pattern.split(","):
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(
                f"pattern: {part.strip()[:40]!r} is no layer; write one of {', '.join(KINDS)}, or "
                "several of it as hybrid*10, and commas between"
            )
        kinds += [cast(LayerKind, found[1])] * int(found[2] or 1)
        if len(kinds) > MOST_LAYERS:
            raise ValueError(f"pattern: names more than {MOST_LAYERS} layers")
    return tuple(kinds)


def is_for_all(pattern: str) -> bool:
    """Whether ``pattern`` is a single word, which stands for any number of layers."""
    return pattern.strip() in KINDS


def layer_kinds(pattern: str, num_layers: int) -> tuple[LayerKind, ...]:
    """What each of ``num_layers`` layers is. Raises ValueError where the pattern names others."""
    kinds = parse_pattern(pattern)
    if is_for_all(pattern):
        return kinds * num_layers
    if len(kinds) != num_layers:
        raise ValueError(
            f"pattern: names {len(kinds)} layers, but the teacher has {num_layers}. Name as many, "
            'or write one word, such as "hybrid", for all of them.'
        )
    return kinds
