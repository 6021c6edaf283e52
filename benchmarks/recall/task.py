"""Multi-query associative recall (arXiv 2312.04927): pairs of key and value, then keys alone.

A row of T ids: lead-in, P pairs, noise, P queries. Each query is one of the row's keys, each key is
asked for once, and the label at a query is the value that came with its key. Nothing else is
scored. Keys of a row differ; values may repeat. Keys, values and noise are disjoint ranges of ids,
so that guessing among values is right once in as many tries as there are.

Shapes: B batch, T positions, P pairs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LEAD_IN = 4
"""Positions of noise before the pairs, so that attention sinks hold no pair."""
NOISE_IDS = 8
VOCABULARY = 64


class Rows(NamedTuple):
    """``input_ids`` [B, T], and ``labels`` [B, T] at the queries' own positions, −100 elsewhere."""

    input_ids: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """Sizes of the rows, and what they leave to look up."""

    length: int
    """T."""
    pairs: int
    """P."""
    vocabulary: int = VOCABULARY
    """Ids in all: noise first, then as many keys as values."""

    def __post_init__(self) -> None:
        if self.num_values < 2 or self.pairs > self.num_keys:
            raise ValueError(
                f"vocabulary = {self.vocabulary}: leaves {self.num_keys} keys for pairs = "
                f"{self.pairs}. Ask for fewer pairs, or a larger vocabulary."
            )
        if self.pairs < 1 or self.num_noise < 0:
            raise ValueError(
                f"length = {self.length}: must be at least {LEAD_IN} + 3 × pairs = "
                f"{LEAD_IN + 3 * self.pairs}, and pairs at least 1"
            )

    @property
    def num_keys(self) -> int:
        return (self.vocabulary - NOISE_IDS) // 2

    @property
    def num_values(self) -> int:
        return self.num_keys

    @property
    def num_noise(self) -> int:
        """Positions between pairs and queries."""
        return self.length - LEAD_IN - 3 * self.pairs

    @staticmethod
    def least_length(pairs: int, reach: int) -> int:
        """T from which on a query does not see the last value ``reach`` positions back."""
        return LEAD_IN + 3 * pairs + reach

    def draw(self, batch: int, generator: torch.Generator) -> Rows:
        """Rows that are a function of the generator's state alone."""
        keys_BP = _distinct(batch, self.num_keys, self.pairs, generator) + NOISE_IDS
        first_value = NOISE_IDS + self.num_keys
        values_BP = torch.randint(self.num_values, (batch, self.pairs), generator=generator)
        values_BP = values_BP + first_value
        asked_BP = _distinct(batch, self.pairs, self.pairs, generator)
        ids_BT = torch.randint(NOISE_IDS, (batch, self.length), generator=generator)
        end = LEAD_IN + 2 * self.pairs
        ids_BT[:, LEAD_IN:end:2] = keys_BP
        ids_BT[:, LEAD_IN + 1 : end : 2] = values_BP
        ids_BT[:, -self.pairs :] = keys_BP.gather(1, asked_BP)
        labels_BT = torch.full_like(ids_BT, -100)
        labels_BT[:, -self.pairs :] = values_BP.gather(1, asked_BP)
        return Rows(ids_BT, labels_BT)


def _distinct(batch: int, num_kinds: int, num_drawn: int, generator: torch.Generator) -> Tensor:
    """``num_drawn`` different numbers below ``num_kinds`` in each row, in random order."""
    return torch.rand(batch, num_kinds, generator=generator).argsort(1)[:, :num_drawn]
