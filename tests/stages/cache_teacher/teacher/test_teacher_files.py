"""What a teacher's files pin, and every teacher that is refused before its weights are loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.cache_teacher.teacher import teacher_files
from stages.cache_teacher.teacher.teacher_files import TeacherSource, resolve_teacher
from tests.support.tiny import tiny_cache_config


def resolve(teacher: Path | str, **changes: Any) -> TeacherSource:
    return resolve_teacher(tiny_cache_config(teacher, "unused", **changes))


@pytest.fixture
def copy(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A teacher to spoil."""
    return Path(shutil.copytree(tiny_teacher, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_spec_describes_the_teacher(tiny_teacher: Path) -> None:
    spec = resolve(tiny_teacher).spec
    assert (spec.source, spec.revision, spec.dtype, spec.attention) == (
        "local",
        "",
        "float32",
        "sdpa",
    )
    assert (spec.hidden_size, spec.num_layers, spec.eos_token_id) == (32, 2, 0)
    assert (spec.vocab_size, spec.head_rows) == (320, 328)


def test_a_copied_teacher_has_the_same_spec(tiny_teacher: Path, copy: Path) -> None:
    assert resolve(copy).spec == resolve(tiny_teacher).spec


def test_changed_weights_configuration_or_tokenizer_change_the_hashes(copy: Path) -> None:
    before = resolve(copy).spec
    edit(copy / "config.json", rms_norm_eps=1e-5)
    reconfigured = resolve(copy).spec
    assert reconfigured.weights_sha256 != before.weights_sha256
    assert reconfigured.tokenizer_sha256 == before.tokenizer_sha256
    edit(copy / "tokenizer_config.json", remark="new")
    assert resolve(copy).spec.tokenizer_sha256 != before.tokenizer_sha256
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert resolve(copy).spec.weights_sha256 != reconfigured.weights_sha256


def test_sharded_weights_are_those_the_index_names(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    before = resolve(copy).spec
    (copy / "other.safetensors").write_bytes(b"not one of them")
    assert resolve(copy).spec == before
    index.write_text(json.dumps({"weight_map": {"a": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(ValueError, match="lacks model-00002-of-00002"):
        resolve(copy)


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"no safetensors weights \(its pytorch_model\.bin is a pick"
    ):
        resolve(copy)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("config.json", "is not a model directory: it has no config.json"),
        ("model.safetensors", "holds no safetensors weights"),
        ("tokenizer", "holds no tokenizer"),
    ],
)
def test_missing_files_are_named(copy: Path, name: str, problem: str) -> None:
    for path in copy.glob(f"{name}*"):
        path.unlink()
    with pytest.raises(ValueError, match=problem):
        resolve(copy)


def test_a_damaged_configuration_is_named(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ValueError, match="configuration or tokenizer is unreadable"):
        resolve(copy)


def test_a_missing_teacher_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        resolve(tmp_path / "nowhere")


def test_a_hub_model_that_cannot_be_fetched_says_what_to_do() -> None:
    with pytest.raises(
        ValueError,
        match=r"teacher 'org/model' \(revision 'v2'\): no such local dir.*"
        "set teacher to a directory",
    ):
        resolve("org/model", teacher_revision="v2")


def test_a_hub_model_is_pinned_by_its_commit(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    snapshot = tmp_path / "snapshots" / "0123456789abcdef"
    shutil.copytree(tiny_teacher, snapshot)

    def download(name: str, **options: Any) -> str:
        assert (name, options["revision"]) == ("org/model", "v2")
        assert "*.bin" not in options["allow_patterns"]
        assert {"tokenizer.model", "chat_template.jinja"} <= set(options["allow_patterns"])
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    spec = resolve("org/model", teacher_revision="v2").spec
    assert (spec.source, spec.revision) == ("org/model", "0123456789abcdef")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"is_encoder_decoder": True}, "an encoder-decoder"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"final_logit_softcapping": 1.0}, "final_logit_softcapping = 1.0"),
        ({"attn_logit_softcapping": 50.0}, r"softcapping = 50.0\), which attention \'sdpa\'"),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "original_max_position_embeddings": 31,
                }
            },
            "sequence_length: 32 is more than 31, beyond which .*longrope",
        ),
        ({"logits_scaling": 8.0}, "logits_scaling = 8.0"),
        ({"logit_scale": 0.0625}, "logit_scale = 0.0625"),
        ({"max_position_embeddings": 31}, "sequence_length: 32 is more than the 31 positions"),
        (
            {
                "layer_types": ["full_attention", "sliding_attention"],
                "use_sliding_window": True,
                "sliding_window": 31,
                "max_window_layers": 1,
            },
            r"attends within 31 positions only \(sliding_window\)",
        ),
        (
            {"layer_types": ["full_attention", "linear_attention"]},
            r"has layers \(linear_attention\)",
        ),
        ({"vocab_size": 319}, "makes ids up to 319, but its head has 319 rows"),
    ],
)
def test_teachers_that_cannot_be_cached_faithfully_are_refused(
    copy: Path, changes: dict[str, Any], problem: str
) -> None:
    edit(copy / "config.json", **changes)
    with pytest.raises(ValueError, match=problem):
        resolve(copy, attention="sdpa")


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_logit_softcapping": 50.0},  # auto is eager then
        {"logits_scaling": 1.0},
        {"max_position_embeddings": 32},
        {
            "layer_types": ["full_attention", "sliding_attention"],
            "use_sliding_window": True,
            "sliding_window": 32,
            "max_window_layers": 1,
        },
        {"sliding_window": 8, "use_sliding_window": False},
        {"vocab_size": 320},
    ],
)
def test_teachers_just_inside_the_bounds_are_accepted(copy: Path, changes: dict[str, Any]) -> None:
    edit(copy / "config.json", **changes)
    resolve(copy)


def test_attention_is_chosen_by_the_model_and_its_precision(copy: Path) -> None:
    def chosen(**changes: Any) -> str:
        return resolve(copy, **({"teacher_dtype": "bfloat16"} | changes)).spec.attention

    assert chosen() == chosen(teacher_dtype="float16") == "varlen"
    assert chosen(teacher_dtype="float32") == "sdpa"
    assert [chosen(attention=name) for name in ("eager", "sdpa")] == ["eager", "sdpa"]
    assert chosen(attention="varlen", teacher_dtype="float32") == "varlen"
    edit(copy / "config.json", head_dim=12)  # the kernels take multiples of 8
    assert chosen() == "sdpa"
    edit(copy / "config.json", head_dim=256)
    assert chosen() == "varlen"
    edit(copy / "config.json", head_dim=264)
    assert chosen() == "sdpa"
    edit(copy / "config.json", model_type="stablelm", head_dim=8)
    assert chosen() == "sdpa"


def test_top_k_beyond_the_vocabulary_is_refused(tiny_teacher: Path) -> None:
    resolve(tiny_teacher, top_k=320)
    with pytest.raises(ValueError, match="top_k: 321 is more than the 320 ids"):
        resolve(tiny_teacher, top_k=321)


def test_a_tokenizer_without_end_of_text_is_refused(copy: Path) -> None:
    edit(copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ValueError, match="no end-of-text token"):
        resolve(copy)


def test_a_tokenizer_outside_the_tokenizers_library_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import ByT5Tokenizer

    monkeypatch.setattr(teacher_files, "load_tokenizer", lambda _: ByT5Tokenizer(extra_ids=0))
    with pytest.raises(ValueError, match=r"its tokenizer \(ByT5Tokenizer\) is not from the tok"):
        resolve(copy)
