"""A published student: what lies in its directory, and that strangers can load it."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import cache_format
from stages.train_student.export.model_card import corpus_lines
from stages.train_student.export.publish_model import publish_model
from stages.train_student.modeling.distil_xlstm.directory_code import directory_code
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
from stages.train_student.new_student import load_student
from tests.support.golden_cache import GOLDEN
from tests.support.train_configs import tiny_train_config


@pytest.fixture(scope="module")
def published(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = cache_format.open(tiny_cache)
    config = tiny_train_config()
    target = tmp_path_factory.mktemp("published") / "model"
    metrics = {"validation/loss": 4.25, "validation/ece": 0.0625, "validation/unknown": 1.0}
    publish_model(load_student(config, cache), cache, target, config=config, metrics=metrics)
    return target


def test_the_published_directory_has_exactly_these_files(published: Path, tiny_cache: Path) -> None:
    assert {path.name for path in published.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("README.md", "SHA256SUMS", "tokenizer.json", "tokenizer_config.json"),
        *directory_code(),
    }
    written = json.loads((published / "config.json").read_text())
    cache = cache_format.open(tiny_cache)
    assert written["cache_id"] == cache.cache_id
    assert written["teacher"]["weights_sha256"] == cache.spec.teacher.weights_sha256
    assert written["teacher"]["source"] == "local"


def test_the_model_card_names_teacher_cache_and_metrics(published: Path, tiny_cache: Path) -> None:
    card = (published / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    front = card.split("---\n")[1]
    assert "base_model" not in front  # the tiny teacher is no model of the Hub
    assert "license" not in front
    assert "| loss, nats per token | 4.2500 |\n| calibration error | 0.0625 |" in card
    assert "unknown" not in card
    assert cache_format.open(tiny_cache).cache_id in card
    recipe = tomllib.loads(card.split("```toml\n")[1].split("```")[0])["train_student"]
    assert recipe["learning_rate"] == tiny_train_config().learning_rate
    assert recipe["student"]["slstm_at"] == [0]
    assert "slstm_backend" not in recipe["student"]  # a matter of speed
    assert "device" not in recipe


def test_a_model_card_without_recipe_and_metrics_leaves_them_out(
    tiny_cache: Path, tmp_path: Path
) -> None:
    cache = cache_format.open(tiny_cache)
    publish_model(
        load_student(tiny_train_config(train_head=True), cache), cache, tmp_path / "model"
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert "## Recipe" not in card
    assert "## Results" not in card
    assert "a head initialized from the teacher's" in card
    assert "An xLSTM student of a model that is not on the Hub" in card


def test_the_model_card_has_shares_of_corpora_whatever_their_weights_add_up_to() -> None:
    cache = cache_format.open(GOLDEN / "corpora")
    assert cache.spec.corpora is not None
    weights = {"web": 3.0, "math": 1.0}
    corpora = tuple(replace(one, weight=weights[one.name]) for one in cache.spec.corpora)
    lines = corpus_lines(replace(cache.spec, corpora=corpora))
    assert [line.split(": ")[0] for line in lines] == ["corpus web", "corpus math"]
    assert [line.split(", ")[-1] for line in lines] == [
        "75.0% of the tokens asked for",
        "25.0% of the tokens asked for",
    ]


_BEFORE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("stages", "cache_format", "pipeline"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Refuse())
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(".", trust_remote_code=False)
except ValueError as error:
    print("trust_remote_code=True" in str(error))
"""
_AFTER = """
import torch
from safetensors.torch import save_file
model.save_pretrained(sys.argv[1])
again = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = torch.arange(3, 12)[None]
save_file({"first": model(ids).logits, "again": again(ids).logits}, sys.argv[2])
print(type(model).__module__)
"""


def test_the_code_of_the_model_card_loads_the_model_without_this_project(
    published: Path, tmp_path: Path
) -> None:
    """Bit for bit; and what is saved again has all that it had."""
    directory = Path(shutil.copytree(published, tmp_path / "elsewhere"))
    card = (directory / "README.md").read_text()
    code = _BEFORE + card.split("```python\n")[1].split("```")[0] + _AFTER
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again"), str(tmp_path / "logits")],
        env=environment | {"HF_HOME": str(tmp_path / "home")},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    refused, *text, module = done.stdout.splitlines()
    assert refused == "True"
    assert module.startswith("transformers_modules.")
    assert "The cell" in "".join(text)
    student: Any = DistilXLSTMForCausalLM.from_pretrained(published)
    with torch.no_grad():
        expected = student(torch.arange(3, 12)[None]).logits
    for found in load_file(tmp_path / "logits").values():
        assert torch.equal(found, expected)
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *directory_code(),
    }
    for name, source in directory_code().items():
        assert (tmp_path / "again" / name).read_text() == source
