"""A published student: what lies in its directory, and that strangers can load it."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import cache_format
from stages.train_student.export.publish_model import publish_model
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM
from stages.train_student.new_student import load_student
from tests.stages.train_student.test_run import tiny_config
from tests.support import ROOT


@pytest.fixture(scope="module")
def published(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = cache_format.open(tiny_cache)
    config = tiny_config()
    target = tmp_path_factory.mktemp("published") / "model"
    metrics = {"validation/loss": 4.25, "validation/ece": 0.0625, "validation/unknown": 1.0}
    publish_model(load_student(config, cache), cache, target, config=config, metrics=metrics)
    return target


def test_what_is_in_the_directory(published: Path, tiny_cache: Path) -> None:
    assert {path.name for path in published.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("modeling_distil_xlstm.py", "README.md", "tokenizer.json", "tokenizer_config.json"),
    }
    written = json.loads((published / "config.json").read_text())
    cache = cache_format.open(tiny_cache)
    assert written["cache_id"] == cache.cache_id
    assert written["teacher"]["weights_sha256"] == cache.spec.teacher.weights_sha256
    assert written["teacher"]["source"] == "local"


def test_the_card(published: Path, tiny_cache: Path) -> None:
    card = (published / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    front = card.split("---\n")[1]
    assert "base_model" not in front  # the tiny teacher is no model of the Hub
    assert "license" not in front
    assert "| loss, nats a token | 4.2500 |\n| calibration error | 0.0625 |" in card
    assert "unknown" not in card
    assert cache_format.open(tiny_cache).cache_id in card
    recipe = tomllib.loads(card.split("```toml\n")[1].split("```")[0])["train_student"]
    assert recipe["learning_rate"] == tiny_config().learning_rate
    assert recipe["student"]["slstm_at"] == [0]
    assert "slstm_backend" not in recipe["student"]  # a matter of speed
    assert "device" not in recipe


def test_a_card_without_recipe_and_figures_leaves_them_out(
    tiny_cache: Path, tmp_path: Path
) -> None:
    cache = cache_format.open(tiny_cache)
    publish_model(load_student(tiny_config(train_head=True), cache), cache, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "## Recipe" not in card
    assert "## Figures" not in card
    assert "a head that began as one" in card
    assert "An xLSTM student of a model that is not on the Hub" in card


_BEFORE = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(".", trust_remote_code=False)
except ValueError as error:
    print("trust_remote_code=True" in str(error))
assert "stages" not in sys.modules
"""
_AFTER = """
import torch
model.save_pretrained(sys.argv[1])
again = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model) is type(again))
print(again(torch.arange(3, 12)[None]).logits.double().sum().item())
"""


def test_the_card_s_code_loads_it_where_the_package_is_not_imported(
    published: Path, tmp_path: Path
) -> None:
    """And what is saved again has all that it had."""
    card = (published / "README.md").read_text()
    code = _BEFORE + card.split("```python\n")[1].split("```")[0] + _AFTER
    environment = {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "again")],
        env=os.environ | environment,
        cwd=published,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    refused, *text, same, total = done.stdout.splitlines()
    assert (refused, same) == ("True", "True")
    assert "The cell" in "".join(text)
    student: Any = DistilXLSTMForCausalLM.from_pretrained(published)
    with torch.no_grad():
        expected = float(student(torch.arange(3, 12)[None]).logits.double().sum())
    assert float(total) == pytest.approx(expected, rel=1e-4)
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {
        *("modeling_distil_xlstm.py", "config.json", "generation_config.json"),
        "model.safetensors",
    }


def test_without_the_package_the_error_names_it(published: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['stages'] = None\n"
        "from transformers import AutoConfig\n"
        f"AutoConfig.from_pretrained({str(published)!r}, trust_remote_code=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "this model needs the package xlstm-distill" in done.stderr
