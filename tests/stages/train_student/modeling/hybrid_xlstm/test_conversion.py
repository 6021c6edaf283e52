"""A student made from its teacher: what is copied, what is new, and that it computes the same."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.train_student.modeling.hybrid_xlstm.build import build_student
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings
from tests.support.hybrid_students import (
    EOS,
    ROWS,
    TEACHERS,
    VOCAB,
    make_hybrid,
    make_ids,
    make_teacher,
    starts,
    teacher_config,
)

names = pytest.mark.parametrize("name", TEACHERS)
IDS = make_ids(2, 40)


@names
@pytest.mark.parametrize(
    "settings",
    [
        {"pattern": "attention"},
        {"pattern": "window", "window": 40},
        {"pattern": "window", "window": 1, "num_sinks": 40},
        {"pattern": "window,attention,window", "window": 30, "num_sinks": 10},
        {"pattern": "hybrid", "output_gate_bias": -80.0},
    ],
    ids=["attention", "window", "sinks", "mixed", "gate shut"],
)
@torch.no_grad()
def test_a_student_that_sees_all_positions_is_its_teacher(
    name: str, settings: dict[str, Any]
) -> None:
    teacher = make_teacher(name)
    expected = teacher(IDS).logits[..., :VOCAB]
    found = make_hybrid(teacher, **settings)(IDS).logits
    assert float(expected.std()) > 0.3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@names
@torch.no_grad()
def test_the_same_in_double_precision(name: str) -> None:
    teacher = make_teacher(name, torch.float64)
    student = make_hybrid(teacher, pattern="window,attention,window", window=40).double()
    found, expected = student(IDS).logits, teacher(IDS).logits[..., :VOCAB]
    assert found.dtype == torch.float64
    # The teacher's own rotation is float32, and its softmax of weights.
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)


@torch.no_grad()
def test_a_narrower_window_or_an_open_gate_is_not_the_teacher() -> None:
    teacher = make_teacher("qwen2")
    expected = teacher(IDS).logits[..., :VOCAB]
    for settings in ({"pattern": "window", "window": 8}, {"output_gate_bias": 0.0}):
        found = make_hybrid(teacher, **settings)(IDS).logits
        assert float((found - expected).abs().max()) > 0.01


@names
def test_every_parameter_is_copied_and_the_new_ones_are_named(name: str) -> None:
    teacher = make_teacher(name)
    student = make_hybrid(teacher, pattern="hybrid,mlstm,window")
    copied = teacher.state_dict()
    found = student.state_dict()
    for key, tensor in copied.items():
        assert torch.equal(found[key], tensor), key
    of_mlstm = ["feature_q.weight", "feature_k.weight", "input_gate.weight"]
    of_mlstm += ["forget_gate.weight", "forget_gate.bias"]
    of_hybrid = [*of_mlstm, "output_gate.weight", "output_gate.bias"]
    expected = {f"model.layers.0.self_attn.{part}" for part in of_hybrid}
    expected |= {f"model.layers.1.self_attn.{part}" for part in of_mlstm}
    assert set(student.new_parameters()) == expected
    assert found.keys() - copied.keys() == expected
    assert student.converted_layers == [0, 1]
    assert student.output_gates.keys() == {0}


def test_sizes_and_ids_of_the_teacher_are_in_the_config() -> None:
    student = make_hybrid(make_teacher("qwen3"))
    config = student.config
    assert (config.vocab_size, config.head_rows, config.hidden_size) == (VOCAB, ROWS, 32)
    assert (config.num_hidden_layers, config.eos_token_id, config.pad_token_id) == (3, EOS, EOS)
    assert student.attention_width == 4 * 16
    assert student(IDS).logits.shape == (2, 40, VOCAB)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_head_is_tied_if_the_teacher_s_is(name: str) -> None:
    student = make_hybrid(make_teacher(name))
    is_tied = student.lm_head.weight is student.model.embed_tokens.weight
    assert is_tied == (name == "qwen2")


def test_new_weights_are_a_function_of_the_seed_alone() -> None:
    teacher = make_teacher("llama")
    before = torch.get_rng_state()
    first, again, other = (make_hybrid(teacher, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        elsewhere = make_hybrid(teacher, seed=1, pattern="hybrid", window=7)
    feature = "model.layers.1.self_attn.feature_q.weight"
    for name in first.new_parameters():
        weight = first.get_parameter(name)
        assert weight.dtype == torch.float32
        assert torch.equal(weight, again.get_parameter(name))
        assert torch.equal(weight, elsewhere.get_parameter(name))
    assert not torch.equal(first.get_parameter(feature), other.get_parameter(feature))
    layers = [layer.self_attn.feature_k.weight for layer in first.layers]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(layers, 2))


def test_the_start_is_what_the_settings_say() -> None:
    settings: dict[str, Any] = {"output_gate_bias": -1.5, "forget_gate_bias": 4.0}
    mixer = make_hybrid(make_teacher("llama"), **settings).layers[0].self_attn
    assert not mixer.input_gate.weight.any()
    for gate in ("output", "forget"):
        found = getattr(mixer, f"{gate}_gate")
        assert not found.weight.any()
        assert (found.bias == settings[f"{gate}_gate_bias"]).all()
    # Queries begin with the feature map of the keys that they read.
    of_queries, of_keys = mixer.feature_q.weight, mixer.feature_k.weight
    assert torch.equal(of_queries[[0, 1, 2, 3]], of_keys[[0, 0, 1, 1]])
    assert float(of_keys.detach().std()) == pytest.approx(8**-0.5, rel=0.2)


@pytest.mark.parametrize(
    ("trained", "is_trained"),
    [
        ("new", lambda name, is_new: is_new),
        ("mixers", lambda name, is_new: ".self_attn." in name),
        ("all", lambda name, is_new: True),
    ],
)
def test_what_is_trained_is_float32_and_the_rest_keeps_the_teacher_s_precision(
    trained: str, is_trained: Any
) -> None:
    teacher = make_teacher("qwen3", torch.bfloat16)
    student = make_hybrid(teacher, trained=trained)
    new = set(student.new_parameters())
    for name, parameter in student.named_parameters():
        expected = is_trained(name, name in new)
        assert parameter.requires_grad == expected, name
        assert parameter.dtype == (torch.float32 if expected else torch.bfloat16), name
    again = make_hybrid(teacher)
    again.set_trained(trained)
    assert {n: (p.dtype, p.requires_grad) for n, p in again.named_parameters()} == {
        n: (p.dtype, p.requires_grad) for n, p in student.named_parameters()
    }
    student(IDS, labels=IDS).loss.backward()
    for name, parameter in student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_training_leaves_the_teacher_s_own_tensors_alone() -> None:
    teacher = make_teacher("llama")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = make_hybrid(teacher, trained="all")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], now) for name, now in teacher.state_dict().items())


def test_shapes_are_had_without_memory() -> None:
    teacher = make_teacher("qwen2")
    expected = {name: t.shape for name, t in make_hybrid(teacher).state_dict().items()}
    with torch.device("meta"):
        student = make_hybrid(teacher)
    assert {name: t.shape for name, t in student.state_dict().items()} == expected
    assert all(parameter.is_meta for parameter in student.parameters())


def build(weights: dict[str, Tensor], vocab_size: int = VOCAB, **changes: Any) -> Any:
    return build_student(
        HybridXLSTMSettings(),
        teacher_config=teacher_config("llama", **changes),
        weights=weights.items(),
        vocab_size=vocab_size,
        eos_token_id=EOS,
        seed=0,
    )


def test_weights_that_are_not_those_of_the_config_are_refused() -> None:
    weights: dict[str, Tensor] = make_teacher("llama").state_dict()
    build(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    key = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=f"lack 1 that its config.json asks for, '{key}'"):
        build({name: tensor for name, tensor in weights.items() if name != key})
    with pytest.raises(ValueError, match="no place for 1 of its weights, 'adapter'"):
        build(weights | {"adapter": torch.ones(1)})
    with pytest.raises(ValueError, match=r"up_proj.weight: expected the shape \[48, 32\] by"):
        build(weights | {key: torch.ones(48, 31)})
    with pytest.raises(ValueError, match=r"no 'model.embed_tokens.weight'"):
        build({"embed_tokens.weight": torch.ones(ROWS, 32)})
    with pytest.raises(ValueError, match=r"98 is more than the 97 rows .* Make the cache"):
        build(weights, vocab_size=98)
    with pytest.raises(ValueError, match=r"lack .* 'model\.layers\.3"):
        build(weights, num_hidden_layers=4)


@names
@torch.no_grad()
def test_documents_of_a_row_are_to_the_student_what_they_are_alone_to_the_teacher(
    name: str,
) -> None:
    teacher = make_teacher(name)
    student = make_hybrid(teacher, pattern="window,attention,window", window=30)
    marks = starts(2, 40, (0, 13), (0, 14), (1, 25))
    found = student(IDS, is_document_start=marks).logits
    for row, first, stop in ((0, 0, 13), (0, 13, 14), (0, 14, 40), (1, 0, 25), (1, 25, 40)):
        expected = teacher(IDS[row : row + 1, first:stop]).logits[..., :VOCAB]
        torch.testing.assert_close(found[row : row + 1, first:stop], expected, rtol=0, atol=1e-5)
