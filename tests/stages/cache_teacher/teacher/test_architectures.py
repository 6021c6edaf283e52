"""Packed documents equal each document alone, in every architecture and attention that is offered.

Alone means transformers' own forward pass of the causal language model: no mask, no positions, no
packing, its own head. B rows, T positions, D width, V vocabulary.
"""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.cache_teacher.teacher.attention import VARLEN_TESTED
from stages.cache_teacher.teacher.teacher import Teacher
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from tests.support.tiny import save_tiny_tokenizer, tiny_cache_config

STARTS = [[], [5], [1, 2, 31], [7, 19, 32]]
NUM_LAYERS = 3
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": NUM_LAYERS}
CHANGES: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 1.0},
    "gemma2": {"final_logit_softcapping": None, "sliding_window": 64},
    "gemma3_text": {"sliding_window": 64},
    "gpt2": {"n_positions": 128, "n_embd": 32, "n_layer": NUM_LAYERS, "n_head": 4},
    "granite": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "mistral": {"sliding_window": 64},
    # As many experts as blocks: the list of experts is not the list of blocks.
    "mixtral": {"num_local_experts": NUM_LAYERS},
    "olmoe": MIXTURE,
    "qwen2_moe": MIXTURE | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": MIXTURE,
}
NOT_VARLEN = ("cohere", "falcon", "gpt2", "nemotron", "stablelm")


def save_teacher(directory: Path, model_type: str, **changes: Any) -> Path:
    """A random model of any architecture, with the tiny tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    num_ids = save_tiny_tokenizer(directory)
    settings: dict[str, Any] = {
        "vocab_size": num_ids + 8,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if model_type not in ("falcon", "gpt2"):
        settings["head_dim"] = 8
    settings |= CHANGES.get(model_type, {}) | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class: Any = AutoModelForCausalLM
        model = model_class.from_config(AutoConfig.for_model(model_type, **settings))
    model.save_pretrained(directory)
    return directory


def load(directory: Path, **changes: Any) -> Teacher:
    config = tiny_cache_config(directory, "unused", **changes)
    return Teacher(resolve_teacher(config), torch.device("cpu"))


def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 320, (4, 32)).astype(np.int32)


def starts_of(lists: list[list[int]]) -> list[np.ndarray]:
    return [np.array(starts, dtype=np.int32) for starts in lists]


def require_equal_to_documents_alone(teacher: Teacher) -> None:
    """Logits, and the hidden states of every layer."""
    from transformers import AutoModelForCausalLM

    spec, ids_BT = teacher.source.spec, rows()
    all_layers = range(1, NUM_LAYERS + 1)
    last_BTD, layers = teacher.forward(ids_BT, starts_of(STARTS), layers=all_layers)
    dtype = getattr(torch, spec.dtype)
    model = AutoModelForCausalLM.from_pretrained(
        teacher.source.directory, dtype=dtype, attn_implementation="eager"
    )
    for row, starts in enumerate(STARTS):
        for begin, end in pairwise([0, *(start for start in starts if start < 32), 32]):
            alone_T = torch.from_numpy(ids_BT[row, begin:end]).long()[None]
            with torch.no_grad():
                output = model(alone_T, output_hidden_states=True, use_cache=False)
            expected_TV = output.logits[0, :, : spec.vocab_size].float()
            logits_TV = teacher.head.logits(last_BTD[row, begin:end])
            require_close(logits_TV, expected_TV, spec.dtype)
            for layer in all_layers:
                expected_TD = output.hidden_states[layer][0]
                require_close(layers[layer - 1][row, begin:end], expected_TD, spec.dtype)


def require_close(found_TX: torch.Tensor, expected_TX: torch.Tensor, dtype: str) -> None:
    scale = float(expected_TX.abs().max())
    if dtype == "float32":
        torch.testing.assert_close(found_TX, expected_TX, atol=1e-4 * scale, rtol=0)
    else:
        # Three layers round to 0.11 of it at most; another document changes it by all of it.
        torch.testing.assert_close(found_TX.float(), expected_TX.float(), atol=0.25 * scale, rtol=0)


@pytest.fixture(scope="module", params=VARLEN_TESTED)
def varlen_teacher(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Heads tied and untied take turns; Qwen2, Qwen3, Llama and OLMo 2 are tested with both."""
    tie = VARLEN_TESTED.index(request.param) % 2 == 0
    directory = tmp_path_factory.mktemp(request.param)
    return save_teacher(directory, request.param, tie_word_embeddings=tie)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "varlen"])
def test_packed_documents_equal_documents_alone(varlen_teacher: Path, attention: str) -> None:
    require_equal_to_documents_alone(load(varlen_teacher, attention=attention))


def test_packed_documents_equal_documents_alone_in_bfloat16(
    varlen_teacher: Path, tmp_path: Path
) -> None:
    """Of all experts where there are several: rounding would choose between them."""
    directory = Path(shutil.copytree(varlen_teacher, tmp_path / "teacher"))
    config = json.loads((directory / "config.json").read_text())
    if "num_experts_per_tok" in config:
        config["num_experts_per_tok"] = NUM_LAYERS
        (directory / "config.json").write_text(json.dumps(config))
    teacher = load(directory, teacher_dtype="bfloat16")
    assert teacher.source.spec.attention == "varlen"
    require_equal_to_documents_alone(teacher)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "olmo2"])
@pytest.mark.parametrize("tie", [True, False])
def test_packed_documents_equal_documents_alone_with_tied_and_own_heads(
    tmp_path: Path, model_type: str, tie: bool
) -> None:
    teacher = load(save_teacher(tmp_path, model_type, tie_word_embeddings=tie))
    assert (teacher.head_weight.data_ptr() == teacher.embedding.data_ptr()) is tie
    require_equal_to_documents_alone(teacher)


@pytest.mark.parametrize("model_type", NOT_VARLEN)
def test_packed_documents_equal_documents_alone_under_a_mask(
    tmp_path: Path, model_type: str
) -> None:
    directory = save_teacher(tmp_path, model_type)
    for dtype in ("float32", "bfloat16"):
        teacher = load(directory, teacher_dtype=dtype)
        assert teacher.source.spec.attention == "sdpa"
        require_equal_to_documents_alone(teacher)


def test_a_teacher_with_capped_attention_uses_eager_attention(tmp_path: Path) -> None:
    directory = save_teacher(tmp_path, "gemma2", attn_logit_softcapping=5.0)
    teacher = load(directory)
    assert teacher.source.spec.attention == "eager"
    require_equal_to_documents_alone(teacher)
    with pytest.raises(ValueError, match=r"attn_logit_softcapping = 5\.0\).* attention to \"eager"):
        load(directory, attention="sdpa")


@pytest.mark.parametrize(
    ("model_type", "changes", "problem"),
    [
        ("phi", {}, "teacher 'phi': its head has a bias"),
        # It hands the ends of documents to nothing.
        (
            "nemotron",
            {"attention": "varlen"},
            'depend on the document before.*Set attention to "sd',
        ),
        ("falcon", {"attention": "varlen"}, 'attention is \'varlen\': set it to "sdpa" or "eager"'),
        ("mpt", {"attention": "sdpa"}, 'attention is \'sdpa\': set it to "sdpa" or "eager"'),
        ("bloom", {"attention": "eager"}, "teacher 'bloom': fails on packed documents"),
        ("opt", {}, "its head is 328 × 16, expected vocab_size × hidden_size .*, 328 × 32"),
    ],
)
def test_unsupported_architectures_are_refused_with_the_reason(
    tmp_path: Path, model_type: str, changes: dict[str, Any], problem: str
) -> None:
    settings: dict[str, Any] = {
        "mpt": {"d_model": 32, "n_heads": 4, "n_layers": NUM_LAYERS},
        "opt": {"word_embed_proj_dim": 16, "ffn_dim": 48},
    }.get(model_type, {})
    directory = save_teacher(tmp_path, model_type, **settings)
    with pytest.raises(ValueError, match=f"(?s){problem}"):
        load(directory, **changes)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 1.0}),
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.25}),
    ],
)
def test_changed_logits_are_detected_without_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, changes: dict[str, Any]
) -> None:
    """What the configuration does not give away, the logits do."""
    from stages.cache_teacher.teacher import teacher_files

    directory = save_teacher(tmp_path, model_type, **changes)
    with pytest.raises(ValueError, match="changes its logits after the head"):
        load(directory, attention="eager")
    monkeypatch.setattr(teacher_files, "_LOGIT_CAPS", ())
    monkeypatch.setattr(teacher_files, "_LOGIT_SCALES", ())
    with pytest.raises(ValueError, match="its logits are not its head applied to"):
        load(directory, attention="eager")
