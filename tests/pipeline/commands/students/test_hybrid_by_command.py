"""A hybrid student by the command line: cached, converted, aligned, distilled, judged, used."""

import json
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file

import cache_format
from stages.train_student.export.published_files import published_files
from tests.support.command_line import done, run
from tests.support.hybrid_runs import save_tiny_llama
from tests.support.tiny import save_tiny_tokenizer, tiny_texts, write_fineweb_parquet

_CACHE = {
    **{"num_tokens": 10**9, "sequence_length": 32, "documents_per_unit": 10, "validation_every": 4},
    **{"top_k": 12, "hidden_projection_dim": 8, "rows_per_forward": 4, "compile": "off"},
}
_TRAIN = {
    **{"batch_size": 4, "max_steps": 4, "eval_steps": 4, "save_steps": 2, "validation_rows": 6},
    **{"student.window": 6, "loss_chunk": 40, "compile": "off", "report_to": "[]"},
}


def settings(table: str, values: dict[str, object]) -> list[str]:
    return [word for k, v in values.items() for word in ("--set", f"{table}.{k}={v}")]


def train(recipe: str, cache: Path, out: Path, *options: str | Path) -> str:
    """What a training by a shipped recipe said, its sizes those of a test."""
    return done(
        *("train-student", "--recipe", recipe, "--cache", cache, "--out", out, *options),
        *settings("train_student", _TRAIN),
    ).output


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("teacher") / "llama")


@pytest.fixture(scope="module")
def cache(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cached")
    corpus = write_fineweb_parquet(root / "corpus.parquet", tiny_texts(80))
    done(
        *("cache-teacher", "--recipe", "demo-hybrid-align", "--out", root / "cache"),
        *settings("cache_teacher", _CACHE | {"teacher": teacher, "corpus": corpus}),
    )
    return root / "cache"


@pytest.fixture(scope="module")
def untrained(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "new" / "untrained"
    said = done(
        *("convert", teacher, "--recipe", "demo-hybrid-align", "--out", out),
        *("--set", "train_student.student.window=6"),
    ).output
    (out.parent / "said").write_text(said)
    return out


@pytest.fixture(scope="module")
def aligned(cache: Path, untrained: Path) -> Path:
    out = untrained.parent / "aligned"
    said = train("demo-hybrid-align", cache, out, "--init", untrained)
    (untrained.parent / "said-aligned").write_text(said)
    return out


class TestConvert:
    def test_the_table_counts_every_value(self, teacher: Path, untrained: Path) -> None:
        lines = (untrained.parent / "said").read_text().splitlines()
        totals = {
            title: next(line.split()[-2:] for line in lines if line.startswith(title))
            for title in ("copied from the teacher", "new ")
        }
        copied = load_file(teacher / "model.safetensors")
        stored = load_file(untrained / "model.safetensors")
        new = stored.keys() - copied.keys()
        for title, names in (("copied from the teacher", copied.keys()), ("new ", new)):
            num_values = sum(stored[name].numel() for name in names)
            assert totals[title] == [str(len(names)), f"{num_values:,}"]
        assert any("layers.*.self_attn.q_proj.weight" in line for line in lines)

    def test_the_directory_is_as_one_that_training_publishes(
        self, teacher: Path, untrained: Path
    ) -> None:
        checked = subprocess.run(
            ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=untrained, check=False
        )
        assert checked.returncode == 0
        assert set(published_files(untrained)) == {path.name for path in untrained.iterdir()}
        names = {path.name for path in untrained.iterdir()}
        assert names >= {"tokenizer.json", "generation_config.json", "README.md"}
        assert "modeling_hybrid_xlstm.py" in names
        config = json.loads((untrained / "config.json").read_text())
        assert config["cache_id"] is None
        assert config["teacher"]["source"] == "local"
        assert "not trained" in (untrained / "README.md").read_text()

    def test_it_can_be_used_at_once(self, untrained: Path, cache: Path) -> None:
        done("generate", untrained, "--prompt", "the of", "--max-new-tokens", "3")
        said = done("evaluate", untrained, "--cache", cache).output
        assert "student" in said
        assert "may have been trained on these documents" not in said

    def test_an_existing_directory_is_refused(self, teacher: Path, untrained: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in untrained.iterdir()}
        result = run("convert", teacher, "--recipe", "demo-hybrid-align", "--out", untrained)
        assert result.exit_code == 1
        assert f"{untrained}: is there already. Nothing was changed." in result.stderr
        assert {path: path.stat().st_mtime_ns for path in untrained.iterdir()} == before

    def test_a_recipe_of_another_kind_is_refused(self, teacher: Path, tmp_path: Path) -> None:
        result = run("convert", teacher, "--recipe", "small", "--out", tmp_path / "out")
        assert result.exit_code == 1
        assert "kind 'distil_xlstm' does not hold its teacher" in result.stderr

    def test_an_unknown_family_is_refused_by_name(self, tmp_path: Path) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        directory = tmp_path / "gpt2"
        num_ids = save_tiny_tokenizer(directory)
        GPT2LMHeadModel(
            GPT2Config(vocab_size=num_ids, n_embd=16, n_layer=1, n_head=2)
        ).save_pretrained(directory)
        out = tmp_path / "out"
        result = run("convert", directory, "--recipe", "demo-hybrid-align", "--out", out)
        assert result.exit_code == 1
        assert "model_type 'gpt2'" in result.stderr
        assert "llama" in result.stderr
        assert not out.exists()

    def test_an_impossible_generation_config_is_named(self, tmp_path: Path) -> None:
        directory = save_tiny_llama(tmp_path / "llama")
        path = directory / "generation_config.json"
        path.write_text(json.dumps({"max_new_tokens": -1}))
        result = run(
            "convert", directory, "--recipe", "demo-hybrid-align", "--out", tmp_path / "out"
        )
        assert result.exit_code == 1
        assert f"{path}: transformers refuses it" in result.stderr


class TestTrain:
    def test_the_alignment_begins_with_the_converted_student(self, aligned: Path) -> None:
        said = (aligned.parent / "said-aligned").read_text()
        assert f"beginning from the weights of {aligned.parent / 'untrained'}" in said
        assert "alignment error" in said
        assert "mLSTM's share" in said

    def test_a_distillation_goes_on_from_the_alignment(
        self, cache: Path, aligned: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        said = train("demo-hybrid-distill", cache, out, "--init", aligned)
        assert f"beginning from the weights of {aligned / 'model'}" in said
        table = done("evaluate", out, "--cache", cache).output
        assert "teacher" in table
        done("generate", out, "--prompt", "the of", "--max-new-tokens", "3")

    def test_the_teacher_may_be_given_by_its_directory(
        self, teacher: Path, cache: Path, tmp_path: Path
    ) -> None:
        bare = tmp_path / "bare"
        corpus = cache.parent / "corpus.parquet"
        done(
            *("cache-teacher", "--recipe", "demo-hybrid-align", "--out", bare),
            *settings("cache_teacher", _CACHE | {"teacher": teacher, "corpus": corpus}),
            *("--set", "cache_teacher.keep_teacher_weights=false"),
        )
        assert cache_format.open(bare).cache_id == cache_format.open(cache).cache_id
        out = tmp_path / "run"
        refused = run(
            *("train-student", "--recipe", "demo-hybrid-align", "--cache", bare, "--out", out)
        )
        assert refused.exit_code == 1
        assert "holds no weights of its teacher" in refused.stderr
        assert "--teacher DIRECTORY|HUB-ID" in refused.stderr
        train("demo-hybrid-align", bare, out, "--teacher", teacher)
        assert (out / "model/config.json").is_file()

    def test_a_teacher_that_is_not_there_is_named(self, cache: Path, tmp_path: Path) -> None:
        result = run(
            *("train-student", "--recipe", "demo-hybrid-align", "--cache", cache),
            *("--out", tmp_path / "run", "--teacher", "./nowhere"),
        )
        assert result.exit_code == 1
        assert "teacher './nowhere': no such directory" in result.stderr
