"""What the rest of stage two asks about hybrid students."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings
from stages.train_student.students.hybrid_xlstm import KIND
from stages.train_student.students.student import (
    AlignableStudent,
    TeacherParts,
    TeacherWeights,
)
from tests.support.hybrid_students import (
    EOS,
    ROWS,
    VOCAB,
    make_hybrid,
    make_ids,
    make_teacher,
)


def parts(directory: Path | None, teacher: Any, **changes: Any) -> TeacherParts:
    weights = None
    if directory is not None:
        weights = TeacherWeights(config=teacher.config.to_dict(), directory=directory)
    sizes: dict[str, Any] = {"hidden_size": 32, "vocab_size": VOCAB, "head_rows": ROWS}
    return TeacherParts(
        **sizes | changes, eos_token_id=EOS, embedding=None, head=None, weights=weights
    )


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_student_is_built_from_the_teacher_s_directory(tmp_path: Path, shard: str) -> None:
    teacher = make_teacher("qwen3")
    teacher.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    settings = HybridXLSTMSettings(window=8)
    found = KIND.build(settings, parts(tmp_path, teacher), seed=3)
    expected = make_hybrid(teacher, window=8, seed=3)
    assert isinstance(found, AlignableStudent)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(found(make_ids(1, 9)).logits, expected(make_ids(1, 9)).logits)


def test_a_teacher_that_is_not_there_or_another_is_refused(tmp_path: Path) -> None:
    teacher = make_teacher("qwen3")
    with pytest.raises(ValueError, match="all of its teacher's weights, which are not there"):
        KIND.build(HybridXLSTMSettings(), parts(None, teacher), seed=0)
    with pytest.raises(ValueError, match="holds no safetensors weights"):
        KIND.build(HybridXLSTMSettings(), parts(tmp_path, teacher), seed=0)
    teacher.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected head_rows = 96, as in the cache, found 97"):
        KIND.build(HybridXLSTMSettings(), parts(tmp_path, teacher, head_rows=96), seed=0)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model.safetensors: damaged \("):
        KIND.build(HybridXLSTMSettings(), parts(tmp_path, teacher), seed=0)


def test_a_quantized_teacher_is_refused_by_its_tensors(tmp_path: Path) -> None:
    teacher = make_teacher("qwen3")
    scale = {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}
    tensors = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    save_file(tensors | scale, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no place for 1 of its weights, '\S+weight_scale'"):
        KIND.build(HybridXLSTMSettings(), parts(tmp_path, teacher), seed=0)


def test_operations_of_a_token_are_those_of_weights_windows_and_memories() -> None:
    """Frozen weights of 3 layers and the head at 4 operations, the new ones at 6."""
    student = make_hybrid(
        make_teacher("llama"), pattern="hybrid,mlstm,attention", window=8, num_sinks=2
    )
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    features, gates = (4 + 2) * 8 * 4, 2 * (2 * 32) + 2
    new = 2 * (features + gates) + 4 * (3 * 8 + 1)
    memory, window = 8 * 8 * (2 + 4), 2 * 4 * 8 * (8 + 2)
    expected = 4 * (3 * layer + VOCAB * 32) + 6 * (new + 2 * memory + window)
    assert KIND.operations_per_token(student) == expected
    student.set_trained("all")
    more = 6 * (3 * layer + VOCAB * 32) + 6 * (new + 2 * memory + window)
    assert KIND.operations_per_token(student) == more


def test_units_of_sharding_hold_all_weights_but_embedding_norm_and_head() -> None:
    student = make_hybrid(make_teacher("olmo2"))
    sharding = KIND.sharding(student)
    assert sharding.root is student
    assert callable(getattr(student, sharding.forward_method))
    held = {p for unit in sharding.units for p in unit.parameters()}
    rest = {name for name, p in student.named_parameters() if p not in held}
    assert rest == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_mixer_parameters_are_those_that_the_teacher_does_not_have() -> None:
    teacher = make_teacher("qwen2")
    student = make_hybrid(teacher, pattern="hybrid,attention,hybrid")
    expected = student.state_dict().keys() - teacher.state_dict().keys()
    assert KIND.mixer_parameters(student) == expected


def test_preparing_sets_what_only_affects_speed() -> None:
    student, cpu = make_hybrid(make_teacher("llama")), torch.device("cpu")
    settings = HybridXLSTMSettings(chunk_length=7, gradient_checkpointing=True)
    assert KIND.prepare(settings, student, cpu) == ""
    for layer in student.layers:
        assert layer.self_attn.chunk_length == 7
        assert layer.checkpoints_activations


def test_the_description_names_layers_window_and_parameters() -> None:
    student = make_hybrid(make_teacher("llama"), window=8, num_sinks=2, pattern="hybrid*3")
    found = KIND.description(student)
    assert "3 layers of the teacher, its attention replaced (hybrid*3) by mLSTM heads" in found
    assert "to the last 8 positions and the document's first 2:" in found
    num = sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert f"{num:,} of " in found
    without = make_hybrid(make_teacher("llama"), num_sinks=0)
    assert "positions:" in KIND.description(without)


def test_the_number_of_layers_is_compared_before_they_are_built() -> None:
    config = make_hybrid(make_teacher("llama")).config
    names = [f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1, 1, 2)]
    assert KIND.blocks_differ(config, [*names, "lm_head.weight"]) == ""
    found = KIND.blocks_differ(config, names[:2])
    assert found == "teacher_config has 3 layers, but the weights have 2."
    # A checkpoint has only weights that are trained, and "hybrid" is for any number of layers.
    assert KIND.blocks_differ(HybridXLSTMSettings(), names) == ""
    settings = HybridXLSTMSettings(pattern="hybrid,attention")
    assert KIND.blocks_differ(settings, names[:1]) == ""
    found = KIND.blocks_differ(settings, names)
    assert found == "pattern names 2 layers, but the weights have at least 3."
