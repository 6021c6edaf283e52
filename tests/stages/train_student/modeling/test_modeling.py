"""The student as a Hugging Face model: sizes, files, documents, generation."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from stages.train_student.modeling.distil_xlstm import auto_classes  # noqa: F401 (registers them)
from stages.train_student.modeling.distil_xlstm.build import build_student
from stages.train_student.modeling.distil_xlstm.configuration import DistilXLSTMConfig
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from stages.train_student.students.parameter_count import count_parameters
from tests.support.noisy_students import (
    EOS,
    ROWS,
    VOCAB,
    WIDTH,
    make_ids,
    make_noisy_student,
    make_student,
)


def starts(batch: int, num_positions: int, *row_and_position: tuple[int, int]) -> Tensor:
    is_start = torch.zeros(batch, num_positions, dtype=torch.bool)
    for row, position in row_and_position:
        is_start[row, position] = True
    return is_start


def test_the_paper_s_student_has_the_paper_s_parameter_count() -> None:
    with torch.device("meta"):
        student = build_student(
            DistilXLSTMSettings(),
            hidden_size=1536,
            vocab_size=151_665,
            head_rows=151_936,
            eos_token_id=151_643,
            embedding=None,
            head=None,
            seed=0,
        )
    trainable, total = count_parameters(student)
    assert (trainable, total) == (84_175_968, 550_923_360)
    assert f"{trainable / total:.2%}" == "15.28%"
    assert student.lm_head.weight is student.token_embedding.weight


def test_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = make_student(1), make_student(1), make_student(2)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        elsewhere = make_student(1, embedding=torch.zeros(ROWS, WIDTH))
    for name, weight in first.xlstm_block_stack.state_dict().items():
        assert torch.equal(weight, again.xlstm_block_stack.state_dict()[name])
        assert torch.equal(weight, elsewhere.xlstm_block_stack.state_dict()[name])
        assert weight.dtype == torch.float32
    key = "blocks.0.ffn.proj_up.weight"
    assert not torch.equal(
        first.xlstm_block_stack.state_dict()[key], other.xlstm_block_stack.state_dict()[key]
    )


def test_initial_weights_are_those_of_the_package() -> None:
    """Zero recurrence and gates, rising forget-gate biases, untouched by Hugging Face."""
    stack: Any = make_student().xlstm_block_stack
    slstm, mlstm = stack.blocks[0].xlstm, stack.blocks[1].xlstm
    assert not slstm.slstm_cell._recurrent_kernel_.any()
    forget_bias = slstm.slstm_cell._bias_.view(4, 4, WIDTH // 4)[1]
    torch.testing.assert_close(forget_bias[:, [0, -1]], torch.tensor([[5.0, -7.0]] * 4))
    torch.testing.assert_close(mlstm.mlstm_cell.fgate.bias, torch.linspace(3.0, 6.0, 4))
    assert mlstm.learnable_skip.eq(1.0).all()
    assert not mlstm.mlstm_cell.igate.weight.any()
    std = float(mlstm.proj_up.weight.detach().std())
    assert std == pytest.approx((2 / (5 * WIDTH)) ** 0.5, rel=0.05)


def test_weights_move_to_and_from_the_package_s_model() -> None:
    import xlstm

    student = make_noisy_student(torch.float32)
    package_config = student.xlstm_block_stack.config
    package = xlstm.xLSTMBlockStack(package_config)
    package.load_state_dict(student.xlstm_block_stack.state_dict())
    ids = make_ids(2, 20)
    expected = student.hidden_states(ids)
    embedded = student.token_embedding(ids)
    for block in package.blocks:
        if hasattr(block.xlstm, "mlstm_cell"):
            block.xlstm.mlstm_cell.causal_mask = None
    torch.testing.assert_close(package(embedded), expected, rtol=0, atol=1e-5)

    back = make_student(7)
    back.xlstm_block_stack.load_state_dict(package.state_dict())
    back.token_embedding.load_state_dict(student.token_embedding.state_dict())
    assert torch.equal(back.eval().hidden_states(ids), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": torch.zeros(ROWS, 8)}, r"embedding: expected .*\(100, 32\), found \(100, 8"),
        ({"head": torch.zeros(8, WIDTH)}, r"head: expected .*\(100, 32\), found \(8, 32\)"),
        (
            {"head": torch.zeros(ROWS, WIDTH).half()},
            r"head is torch.float16, its embedding .*32: expected the same\. Make the cache again",
        ),
    ],
)
def test_a_teacher_s_tensor_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_student(**changes)


def test_only_the_blocks_are_trained() -> None:
    embedding = torch.randn(ROWS, WIDTH).bfloat16()
    student = make_student(embedding=embedding, head=torch.randn(ROWS, WIDTH).bfloat16())
    assert student.token_embedding.weight.data_ptr() == embedding.data_ptr()
    output = student(make_ids(2, 9), labels=make_ids(2, 9))
    output.loss.backward()
    untrained = {name for name, p in student.named_parameters() if p.grad is None}
    assert untrained == {"token_embedding.weight", "lm_head.weight"}
    trainable, total = count_parameters(student)
    assert total - trainable == 2 * ROWS * WIDTH


def test_logits_leave_padding_rows_out_and_use_a_half_precision_head_exactly() -> None:
    student = make_noisy_student()
    ids = make_ids(2, 7)
    hidden = student.hidden_states(ids)
    logits = student(ids).logits
    assert logits.shape == (2, 7, VOCAB)
    assert logits.dtype == torch.float32
    expected = hidden.double() @ student.lm_head.weight[:VOCAB].double().T
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-4)
    last = student(ids, logits_to_keep=2).logits
    torch.testing.assert_close(last, logits[:, -2:], rtol=0, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert student(ids).logits.dtype == torch.float32


def test_loss_shifts_labels_and_skips_masked_ones_and_document_starts() -> None:
    student = make_noisy_student()
    ids = make_ids(2, 8)
    labels = ids.clone()
    labels[0, 3] = -100
    is_start = starts(2, 8, (1, 4))
    output = student(ids, is_document_start=is_start, labels=labels)
    logprobs = output.logits.log_softmax(-1)
    scored = [
        -logprobs[row, t, ids[row, t + 1]]
        for row in range(2)
        for t in range(7)
        if (row, t + 1) not in {(0, 3), (1, 4)}
    ]
    torch.testing.assert_close(output.loss, torch.stack(scored).mean())
    as_tuple = student(ids, is_document_start=is_start, labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss)


def test_packed_documents_equal_the_documents_alone() -> None:
    student = make_noisy_student()
    ids = make_ids(2, 20)
    packed = student(ids, is_document_start=starts(2, 20, (0, 0), (0, 6), (0, 7), (1, 19))).logits
    for row, first, stop in [(0, 0, 6), (0, 6, 7), (0, 7, 20), (1, 0, 19), (1, 19, 20)]:
        alone = student(ids[row : row + 1, first:stop]).logits[0]
        torch.testing.assert_close(packed[row, first:stop], alone, rtol=0, atol=1e-4)


def test_document_starts_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"is_document_start: expected .*\(2, 6\), found \(1, 6\)"):
        make_student()(make_ids(2, 6), is_document_start=starts(1, 6))


def test_saving_and_loading_is_bitwise(tmp_path: Path) -> None:
    student = make_noisy_student()  # bfloat16 embedding and head, float32 blocks
    student.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, DistilXLSTMForCausalLM)
    expected = dict(student.named_parameters())
    found = dict(loaded.named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype, name
        assert torch.equal(found[name], weight), name
        assert found[name].requires_grad == weight.requires_grad, name
    assert torch.equal(loaded(make_ids(2, 9)).logits, student(make_ids(2, 9)).logits)
    assert loaded.config.to_dict() | {"_name_or_path": ""} == student.config.to_dict() | {
        "_name_or_path": ""
    }
    assert AutoConfig.from_pretrained(tmp_path).stack_settings() == student.config.stack_settings()


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    student = make_student(embedding=torch.randn(ROWS, WIDTH).bfloat16())
    student.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert sum(tensor.shape == (ROWS, WIDTH) for tensor in stored.values()) == 1
    result: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    loaded, info = result
    assert not info["missing_keys"]
    assert loaded.lm_head.weight is loaded.token_embedding.weight
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert not loaded.lm_head.weight.requires_grad
    assert count_parameters(loaded) == count_parameters(student)


def test_loading_in_another_precision_leaves_the_frozen_copies(tmp_path: Path) -> None:
    make_noisy_student(torch.float16).save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.xlstm_block_stack.blocks[0].ffn.proj_up.weight.dtype == torch.bfloat16
    assert loaded.token_embedding.weight.dtype == torch.float16
    assert loaded(make_ids(1, 5)).logits.isfinite().all()


def test_a_directory_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    make_student().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["xlstm_block_stack.blocks.1.xlstm.learnable_skip"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, 'xlstm_block_stack\.blocks\.1"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_invalid_settings_are_refused_by_name(tmp_path: Path) -> None:
    make_student().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_heads": 7}))
    with pytest.raises(ValueError, match="num_heads = 7 must divide"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("splits", [(0, 12), (0, 5, 6, 7, 12), tuple(range(13))])
def test_continuing_from_a_state_equals_one_forward(splits: tuple[int, ...]) -> None:
    student = make_noisy_student()
    ids = make_ids(3, 12)
    with torch.no_grad():
        whole = student(ids).logits
        state = None
        sizes = set()
        for first, stop in pairwise(splits):
            output = student(ids[:, first:stop], state=state, use_cache=True)
            state = output.state
            sizes.add(sum(part.numel() for layer in state for part in (layer[0], *layer[1])))
            torch.testing.assert_close(output.logits, whole[:, first:stop], rtol=0, atol=1e-4)
    assert len(sizes) == 1  # the state does not grow


def greedy_without_state(student: Any, ids: Tensor, num_new: int) -> Tensor:
    for _ in range(num_new):
        ids = torch.cat([ids, student(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@torch.no_grad()
def test_greedy_generation_equals_rereading_everything() -> None:
    student = make_noisy_student()
    ids = make_ids(3, 6)
    expected = greedy_without_state(student, ids, 12)
    assert len(set(expected[:, 6:].flatten().tolist())) > 4  # not one token over and over
    found = student.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(found, expected)


@torch.no_grad()
def test_left_padding_does_not_reach_the_state() -> None:
    student = make_noisy_student()
    long, short = make_ids(1, 7), make_ids(1, 4) + 1
    padding = torch.tensor([[EOS, 17, 60]])
    ids = torch.cat([long, torch.cat([padding, short], dim=1)])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    found = student.generate(
        ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert torch.equal(found[:1], greedy_without_state(student, long, 8))
    assert torch.equal(found[1:, 3:], greedy_without_state(student, short, 8))


def test_right_padding_is_refused_where_it_would_enter_the_state() -> None:
    student = make_student()
    ids = make_ids(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with pytest.raises(ValueError, match="Pad on the left"):
        student(ids, attention_mask=mask, use_cache=True)
    padded = student(ids, attention_mask=mask).logits[1, :3]
    torch.testing.assert_close(padded, student(ids[1:, :3]).logits[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_beam_search_and_sampling_do_not_depend_on_the_state() -> None:
    student = make_noisy_student(torch.float32)
    student.lm_head.weight.mul_(0.2)  # so flat a distribution that beams overtake each other
    ids = make_ids(2, 5)
    choices: list[dict[str, Any]] = [{"num_beams": 4, "do_sample": False}, {"do_sample": True}]
    for options in choices:
        runs = []
        for use_cache in (True, False):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(11)
                runs.append(
                    student.generate(
                        ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=10,
                        use_cache=use_cache,
                        eos_token_id=None,
                        **options,
                    )
                )
        assert torch.equal(*runs)


def test_generation_stops_at_the_end_of_text() -> None:
    student = make_noisy_student()
    ids = make_ids(1, 4)
    eos = int(greedy_without_state(student, ids, 3)[0, -1])
    found = student.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=eos,
    )
    assert found[0, 4:].tolist().index(eos) == found.shape[1] - 5
    assert student.generation_config.eos_token_id == EOS


def test_defaults_of_settings_and_model_config_agree() -> None:
    """A field of the recipe that is forgotten here would be silently lost on loading."""
    written = DistilXLSTMConfig()
    for name in (
        *("num_blocks", "slstm_at", "num_heads", "conv_kernel", "qkv_block_size"),
        *("feedforward_factor", "mlstm_factor", "dropout"),
    ):
        assert getattr(written, name) == getattr(DistilXLSTMSettings(), name)
