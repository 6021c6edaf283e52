"""The learned functions of the mLSTM beside the teacher's attention: feature maps and gates.

A feature map turns queries or keys into positive features whose products imitate the exponential
of softmax attention (Hedgehog, Zhang et al., arXiv 2402.04347). A gate is one number per head.

Shapes: B batch, T positions, D width, N heads of keys and values, G heads of queries for each,
H width of a head, F features.
"""

import torch
from torch import Tensor, nn


class FeatureMap(nn.Module):
    """softmax(xW), or softmax(xW) and softmax(−xW) side by side; one W for each head.

    ``weight`` is [heads, H, F], F half the features where there are both signs.
    """

    def __init__(self, num_heads: int, head_width: int, *, is_two_signed: bool) -> None:
        super().__init__()
        self.is_two_signed = is_two_signed
        num_features = head_width // 2 if is_two_signed else head_width
        self.weight = nn.Parameter(torch.empty(num_heads, head_width, num_features))

    @property
    def num_features(self) -> int:
        """F, of both signs together."""
        return self.weight.shape[-1] * (2 if self.is_two_signed else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features of x [B, N, (G,) T, H], of its dtype; softmax in at least float32."""
        weight = self.weight.to(x.dtype).view(*x.shape[1:-2], *self.weight.shape[1:])
        logits = torch.matmul(x, weight)
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = logits.to(wide)
            signed = (logits, -logits) if self.is_two_signed else (logits,)
            return torch.cat([part.softmax(-1) for part in signed], -1).to(x.dtype)


class TokenGate(nn.Linear):
    """Pre-activations w·x (+ b), one per head, from the layer's input; in at least float32."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, heads, T] from [B, T, D]."""
        wide = _wide(x_BTD, self.weight)
        with torch.autocast(x_BTD.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(wide)
            gates_BTN = nn.functional.linear(x_BTD.to(wide), self.weight.to(wide), bias)
            return gates_BTN.transpose(1, 2)


class HeadGate(nn.Module):
    """Pre-activations w·[q; k; v] + b of each query head, with the keys and values that it reads.

    ``weight`` is [N·G, 3·H], ``bias`` [N·G].
    """

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, 3 * head_width))
        self.bias = nn.Parameter(torch.empty(num_heads))

    def forward(self, query_BNGTH: Tensor, key_BNTH: Tensor, value_BNTH: Tensor) -> Tensor:
        """[B, N, G, T], in at least float32."""
        num_groups, num_queries = query_BNGTH.shape[1:3]
        wide = _wide(query_BNGTH, self.weight)
        with torch.autocast(query_BNGTH.device.type, enabled=False):
            weight = self.weight.to(wide).view(num_groups, num_queries, -1)
            # Copies: products of strided rows depend on where in memory these lie, by a bit.
            of_query, of_key, of_value = (part.contiguous() for part in weight.chunk(3, dim=-1))
            shared = (
                torch.einsum("bnth,ngh->bngt", part.to(wide), of_part)
                for part, of_part in ((key_BNTH, of_key), (value_BNTH, of_value))
            )
            own = torch.einsum("bngth,ngh->bngt", query_BNGTH.to(wide), of_query)
            bias = self.bias.to(wide).view(num_groups, num_queries, 1)
            return own + sum(shared) + bias


def _wide(x: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
