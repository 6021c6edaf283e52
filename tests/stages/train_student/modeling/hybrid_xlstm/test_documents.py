"""Documents packed into a row, and a reference of what a mixer computes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.hybrid_students import (
    TEACHERS,
    make_ids,
    make_noisy_hybrid,
    make_teacher,
    starts,
)

PATTERN = "hybrid,mlstm,window"
IDS = make_ids(2, 40)
MARKS = starts(2, 40, (0, 13), (0, 14), (1, 25))
DOCUMENTS = ((0, 0, 13), (0, 13, 14), (0, 14, 40), (1, 0, 25), (1, 25, 40))


def make(name: str = "qwen3", **settings: Any) -> Any:
    settings = {"pattern": PATTERN, "window": 6, "num_sinks": 2} | settings
    return make_noisy_hybrid(make_teacher(name), **settings)


@pytest.mark.parametrize("chunk_length", [None, 1, 5, 16, 40])
@pytest.mark.parametrize("name", TEACHERS)
@torch.no_grad()
def test_documents_packed_are_documents_alone(name: str, chunk_length: int | None) -> None:
    student = make(name, pattern="hybrid,attention,hybrid")
    student.set_chunk_length(chunk_length)
    packed = student.hidden_states(IDS, MARKS)
    for row, first, stop in DOCUMENTS:
        alone = student.hidden_states(IDS[row : row + 1, first:stop])
        torch.testing.assert_close(packed[row : row + 1, first:stop], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("pattern", ["hybrid", "mlstm", "window", "attention"])
def test_a_document_does_not_depend_on_the_others_by_a_bit(pattern: str) -> None:
    """Neither its states nor the gradients of its loss."""
    student = make(pattern=pattern, trained="all")
    found: list[tuple[Tensor, Tensor]] = []
    for seed in (1, 2):
        ids = make_ids(1, 40, seed)
        ids[:, 13:30] = IDS[:1, 13:30]
        embedded: list[Tensor] = []
        handle = student.model.embed_tokens.register_forward_hook(
            lambda _, __, output, kept=embedded: kept.append(output) or output.retain_grad()
        )
        hidden = student.hidden_states(ids, starts(1, 40, (0, 13), (0, 30)))
        handle.remove()
        hidden[:, 13:30].square().sum().backward()
        gradient = embedded[0].grad
        assert gradient is not None
        assert not gradient[:, :13].any()
        assert not gradient[:, 30:].any()
        found.append((hidden[:, 13:30].detach(), gradient[:, 13:30]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("pattern", ["hybrid", "mlstm", "window", "attention"])
@torch.no_grad()
def test_no_position_depends_on_later_ones(pattern: str) -> None:
    student = make(pattern=pattern)
    other = IDS.clone()
    other[:, 20:] = make_ids(2, 20, 5)
    first, second = student.hidden_states(IDS), student.hidden_states(other)
    torch.testing.assert_close(first[:, :20], second[:, :20], rtol=0, atol=1e-6)
    assert float((first[:, 20:] - second[:, 20:]).abs().max()) > 0.01


@torch.no_grad()
def test_a_mixer_is_what_its_formula_says() -> None:
    """Position by position in float64, from the definition."""
    student = make("qwen3", pattern="hybrid").double()
    mixer = student.layers[1].self_attn
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    layout = student.lay_out(torch.zeros(1, 12).long(), None, has_state=False)
    cosine, sine = student.model.rotary_emb(x, torch.arange(12)[None])
    found = mixer(x, (cosine, sine), layout, None, False).out_BTD

    def heads(projection: Any, norm: Any) -> Any:  # [heads, T, H]
        parts = projection(x[0]).view(12, -1, 16)
        return (parts if norm is None else norm(parts)).transpose(0, 1)

    def turned(part: Tensor) -> Any:
        half = torch.cat([-part[..., 8:], part[..., :8]], -1)
        return part * cosine[0] + half * sine[0]

    def features(part: Tensor, weight: Tensor) -> Tensor:
        return torch.cat([(part @ weight).softmax(-1), (-part @ weight).softmax(-1)], -1)

    query, key = heads(mixer.q_proj, mixer.q_norm), heads(mixer.k_proj, mixer.k_norm)
    value = heads(mixer.v_proj, None)
    input_TN = torch.exp(x[0] @ mixer.input_gate.weight.T)
    forget_TN = torch.sigmoid(x[0] @ mixer.forget_gate.weight.T + mixer.forget_gate.bias)
    outputs = []
    for head in range(4):
        group = head // 2
        q, k, v = query[head], key[group], value[group]
        turned_q, turned_k = turned(q), turned(k)
        phi_q = features(turned_q, mixer.feature_q.weight[head])
        phi_k = features(turned_k, mixer.feature_k.weight[group])
        matrix, normaliser = torch.zeros(16, 16).double(), torch.zeros(16).double()
        given = []
        for t in range(12):
            gain, keep = input_TN[t, group], forget_TN[t, group]
            matrix = keep * matrix + gain * torch.outer(phi_k[t], v[t])
            normaliser = keep * normaliser + gain * phi_k[t]
            memory = phi_q[t] @ matrix / (phi_q[t] @ normaliser)
            seen = [s for s in range(t + 1) if s > t - 6 or s < 2]
            weights = (turned_k[seen] @ turned_q[t] / 4.0).softmax(-1)
            gate = torch.sigmoid(
                mixer.output_gate.weight[head] @ torch.cat([q[t], k[t], v[t]])
                + mixer.output_gate.bias[head]
            )
            given.append(gate * memory + (1 - gate) * weights @ v[seen])
        outputs.append(torch.stack(given))
    expected = mixer.o_proj(torch.stack(outputs, 1).flatten(1))
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_one_signed_features_are_the_softmax_of_the_whole_width() -> None:
    student = make(pattern="hybrid", feature_map="one_signed")
    mixer = student.layers[0].self_attn
    assert mixer.feature_k.weight.shape == (2, 16, 16)
    x = torch.randn(1, 2, 5, 16)
    expected = torch.einsum("bnth,nhf->bntf", x, mixer.feature_k.weight).softmax(-1)
    torch.testing.assert_close(mixer.feature_k(x), expected)
    other = make(pattern="hybrid").hidden_states(IDS)
    assert not torch.allclose(student.hidden_states(IDS), other, atol=1e-3)


def test_marks_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"is_document_start: expected the shape of input_ids"):
        make().hidden_states(IDS, MARKS[:, 1:])


def test_labels_across_documents_and_of_minus_100_are_not_scored() -> None:
    student = make()
    labels = IDS.masked_fill(torch.arange(40) < 4, -100)
    output = student(IDS, labels=labels, is_document_start=MARKS)
    logprobs = output.logits[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])[..., 0]
    is_scored = ~MARKS[:, 1:] & (torch.arange(1, 40) >= 4)
    torch.testing.assert_close(output.loss, -logprobs[is_scored].mean())
