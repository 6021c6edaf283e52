"""Caches and models of strangers, through every command: nothing of theirs is run or published."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from jinja2.exceptions import SecurityError, UndefinedError

import cache_format
from cache_format.errors import CorruptFileError
from cache_format.metadata.recipe_file import seal_recipe
from pipeline.cli import main
from pipeline.recipes.recipe import Recipe
from stages.cache_teacher.teacher.teacher_files import resolve_teacher
from stages.model_files.tokenizer_files import load_tokenizer
from stages.train_student.export.published_files import published_files
from stages.train_student.modeling.distil_xlstm.directory_code import directory_code
from tests.support import hostile
from tests.support.sample_cache import contents, reseal
from tests.support.students import publish_student
from tests.support.tiny import tiny_cache_config as stage_one_config
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run as train

STUDENT_FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "README.md"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    *directory_code(),
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What is there after a test if anything of a stranger's was run."""
    return tmp_path / "canary"


@pytest.fixture
def cache(tiny_cache: Path, tmp_path: Path, canary: Path) -> Path:
    return hostile.spoil_cache(tiny_cache, tmp_path / "cache", canary)


@pytest.fixture(scope="module")
def honest(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_student(tiny_cache, tmp_path_factory.mktemp("honest")) / "model"


@pytest.fixture
def model(honest: Path, tmp_path: Path, canary: Path) -> Path:
    return hostile.spoil_model(Path(shutil.copytree(honest, tmp_path / "model")), canary)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> Result:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result


class TestPayloads:
    """They are live: where they are trusted, they run."""

    def test_transformers_would_run_the_planted_code_if_remote_code_were_trusted(
        self, model: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import AutoTokenizer

        modules = str(canary.parent / "modules")
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        monkeypatch.syspath_prepend(modules)
        tokenizer: Any = AutoTokenizer
        tokenizer.from_pretrained(model, trust_remote_code=True)
        assert canary.exists()

    def test_the_planted_pickle_would_run_if_it_were_loaded(self, canary: Path) -> None:
        pickle.loads(hostile.pickled(canary))
        assert canary.exists()

    def test_the_planted_chat_template_is_stopped_by_the_sandbox(
        self, model: Path, canary: Path
    ) -> None:
        tokenizer = load_tokenizer(model)
        assert "__subclasses__" in tokenizer.chat_template
        with pytest.raises((SecurityError, UndefinedError)):
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}])
        assert not canary.exists()


class TestCache:
    def test_training_from_a_hostile_cache_runs_no_planted_code(
        self, cache: Path, tmp_path: Path, canary: Path
    ) -> None:
        messages = []
        train(
            tiny_train_config(max_steps=1, eval_steps=1, save_steps=1),
            cache,
            tmp_path / "run",
            report=lambda progress: messages.append(progress.message),
        )
        model = tmp_path / "run" / "model"
        assert {path.name for path in model.iterdir()} == STUDENT_FILES | {"SHA256SUMS"}
        written = json.loads((model / "tokenizer_config.json").read_text())
        assert written.keys() & {"auto_map", "tokenizer_file"} == set()
        assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert published_files(model)
        for key in ("auto_map", "tokenizer_file"):
            assert any(message.startswith(f"{key} of the teacher's") for message in messages)
        tokenizer = load_tokenizer(model)
        assert tokenizer.decode(tokenizer("the student")["input_ids"]) == "the student"
        assert not canary.exists()

    def test_inspect_verify_pack_merge_and_export_run_no_planted_code(
        self, cache: Path, tmp_path: Path, canary: Path
    ) -> None:
        done("inspect", cache)
        done("inspect", cache, "--row", "0")
        done("verify", cache)
        done("pack", cache, tmp_path / "packed")
        done("unpack", tmp_path / "packed", tmp_path / "unpacked")
        done("merge", cache, "--out", tmp_path / "merged")
        done("export", cache, tmp_path / "parquet")
        assert not canary.exists()

    def test_training_with_the_teacher_of_a_hostile_cache_runs_no_planted_code(
        self, cache: Path, tmp_path: Path, canary: Path
    ) -> None:
        """The recipe leads to a directory that the stranger wrote, too."""
        teacher = shutil.copytree(cache.parent / "cache" / "teacher", tmp_path / "elsewhere")
        recipe = f"[cache_teacher]\nteacher = {json.dumps(str(teacher))}\n"
        cache_id = cache_format.open(cache).cache_id
        (cache / "recipe.toml").write_bytes(seal_recipe(recipe, cache_id))
        result = invoke(
            *("train-student", "--recipe", "demo", "--cache", cache, "--out", tmp_path / "run"),
            "--teacher-in-the-loop",
        )
        assert result.exit_code == 1
        assert "elsewhere holds no safetensors weights (its adapter_model.bin" in result.stderr
        assert not canary.exists()

    def test_a_recipe_naming_a_private_file_puts_none_of_it_into_the_cache(
        self, tiny_cache: Path, cache: Path, tmp_path: Path
    ) -> None:
        """It is said from where is read, and nothing of it ends in the cache."""
        secret = tmp_path / "secret.txt"
        secret.write_text("my password\n" * 100)
        recipe = Recipe(
            cache_teacher=stage_one_config(tiny_cache.parent / "teacher", secret, num_tokens=100)
        )
        cache_id = cache_format.open(cache).cache_id
        (cache / "recipe.toml").write_bytes(seal_recipe(recipe.to_toml(), cache_id))
        reseal(cache / "manifest.json", lambda fields: fields.update(num_tokens_requested=100))
        before = contents(cache)
        result = invoke("extend", cache, "--tokens", "1B")
        assert result.exit_code == 1
        assert f"the corpus from {str(secret)!r}" in result.stderr
        assert "made from another recipe, teacher or corpus" in result.stderr
        assert contents(cache) == before

    @pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", ".hidden", "a//b", ""])
    def test_attachment_names_that_lead_out_of_the_cache_are_refused(
        self, cache: Path, name: str
    ) -> None:
        hostile.write_teacher_receipt(cache, {name: (0, "0" * 64)})
        with pytest.raises(CorruptFileError, match="cannot be a file of a cache"):
            cache_format.open(cache).attachments()

    def test_attachments_that_link_out_of_the_cache_are_refused(
        self, cache: Path, tmp_path: Path
    ) -> None:
        """What lies behind one is no more used than another wrong file."""
        (tmp_path / "secret").write_text("mine")
        path = cache / "teacher" / "tokenizer.json"
        path.unlink()
        path.symlink_to(tmp_path / "secret")
        with pytest.raises(CorruptFileError, match=r"tokenizer\.json: damaged"):
            train(tiny_train_config(), cache, tmp_path / "run")

    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("embedding.safetensors", b"\xff" * 64),
            ("tokenizer_config.json", b"[" * 100_000),
            ("tokenizer_config.json", b'{"a": 1, "a": 2}'),
        ],
        ids=["no tensors", "nested", "ambiguous"],
    )
    def test_unreadable_model_files_are_named_before_training_starts(
        self, cache: Path, tmp_path: Path, name: str, data: bytes
    ) -> None:
        (cache / "teacher" / name).write_bytes(data)
        hostile.rehash_teacher(cache)
        with pytest.raises(ValueError, match=rf"{name}: .*[Mm]ake the cache again"):
            train(tiny_train_config(), cache, tmp_path / "run")

    def test_an_unreadable_tokenizer_is_named_by_inspect(self, cache: Path) -> None:
        (cache / "teacher" / "tokenizer.json").write_text("{}")
        hostile.rehash_teacher(cache)
        result = invoke("inspect", cache, "--row", "0")
        assert result.exit_code == 1
        assert "tokenizer.json: not a valid tokenizer: " in result.stderr


class TestModel:
    def test_generating_from_a_hostile_model_runs_no_planted_code(
        self, model: Path, honest: Path, canary: Path
    ) -> None:
        words = ("--prompt", "the student", "--max-new-tokens", "4", "--temperature", "0")
        assert done("generate", model, *words).stdout == done("generate", honest, *words).stdout
        assert not canary.exists()

    def test_evaluating_a_hostile_model_runs_no_planted_code(
        self, model: Path, tiny_cache: Path, canary: Path
    ) -> None:
        found = json.loads(done("evaluate", model, "--cache", tiny_cache, "--json").stdout)
        assert found["student"]["loss"] > 0
        assert not canary.exists()

    def test_a_tokenizer_with_ids_beyond_the_embeddings_is_refused(
        self, honest: Path, tmp_path: Path
    ) -> None:
        model = Path(shutil.copytree(honest, tmp_path / "model"))
        fields = json.loads((model / "tokenizer.json").read_text())
        fields["model"]["vocab"] = {k: v + 5000 for k, v in fields["model"]["vocab"].items()}
        (model / "tokenizer.json").write_text(json.dumps(fields))
        result = invoke("generate", model, "--prompt", "the student")
        assert result.exit_code == 1
        assert "makes ids up to 5319, but the student has 328 embeddings" in result.stderr

    def test_a_model_with_foreign_code_or_settings_is_not_uploaded(
        self, model: Path, honest: Path
    ) -> None:
        with pytest.raises(ValueError, match=r"/config\.json: auto_map names foreign code"):
            published_files(model)
        shutil.copyfile(honest / "config.json", model / "config.json")
        pipelines = {"text-generation": {"impl": "stranger/repo--code.Class"}}
        hostile.change_json(model / "config.json", {"custom_pipelines": pipelines})
        hostile.change_json(model / "tokenizer_config.json", {"auto_map": None})
        with pytest.raises(ValueError, match=r"config\.json: custom_pipelines: not a setting"):
            published_files(model)
        shutil.copyfile(honest / "config.json", model / "config.json")
        hostile.change_json(model / "tokenizer_config.json", hostile.TOKENIZER_CONFIG)
        with pytest.raises(ValueError, match=r"tokenizer_config\.json: auto_map names for"):
            published_files(model)
        shutil.copyfile(honest / "tokenizer_config.json", model / "tokenizer_config.json")
        with pytest.raises(ValueError, match="not what this version of the package writes"):
            published_files(model)
        shutil.copyfile(honest / "modeling_distil_xlstm.py", model / "modeling_distil_xlstm.py")
        assert set(published_files(model)) == STUDENT_FILES
        with (model / "stack_distil_xlstm.py").open("a") as file:
            file.write("\nimport os\n")
        with pytest.raises(ValueError, match=r"/stack_distil_xlstm\.py: not what this version"):
            published_files(model)
        shutil.copyfile(honest / "stack_distil_xlstm.py", model / "stack_distil_xlstm.py")
        (model / "README.md").unlink()
        (model / "README.md").symlink_to("/etc/passwd")
        with pytest.raises(ValueError, match=r"README\.md: not a regular file"):
            published_files(model)

    def test_a_model_with_pickled_weights_alone_is_refused(self, model: Path, canary: Path) -> None:
        (model / "model.safetensors").unlink()
        result = invoke("generate", model, "--prompt", "a")
        assert result.exit_code == 1
        assert "adapter_model.bin is a pickle, which is never loaded" in result.stderr
        assert not canary.exists()

    def test_generated_terminal_escape_sequences_are_shown_escaped(
        self, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stream(run: Path, prompt: str, sampling: object, write: Any) -> None:
            write("a\x1b]52;c;Y3VybA==\x07\n東京")

        monkeypatch.setattr("pipeline.students.generation.stream_text", stream)
        shown = done("generate", model, "--prompt", "a").stdout
        assert shown == "a\\x1b]52;c;Y3VybA==\\x07\n東京"


class TestTeacher:
    @pytest.fixture
    def teacher(self, tiny_cache: Path, tmp_path: Path, canary: Path) -> Path:
        copied = Path(shutil.copytree(tiny_cache.parent / "teacher", tmp_path / "teacher"))
        return hostile.spoil_model(copied, canary)

    def test_files_that_redirect_loading_elsewhere_are_refused(
        self, teacher: Path, canary: Path
    ) -> None:
        config = stage_one_config(teacher, "unused")
        with pytest.raises(
            ValueError, match=r"holds adapter_config\.json, which makes transformers"
        ):
            resolve_teacher(config)
        (teacher / "adapter_config.json").rename(
            teacher / "shard-00001-model-00001-of-00001.safetensors"
        )
        with pytest.raises(ValueError, match="holds shard-00001-model-00001"):
            resolve_teacher(config)
        (teacher / "shard-00001-model-00001-of-00001.safetensors").unlink()
        with pytest.raises(
            ValueError, match="transformers_weights makes transformers read other files"
        ):
            resolve_teacher(config)
        assert not canary.exists()

    def test_a_cache_of_a_hostile_teacher_receives_no_code_or_redirects(
        self, teacher: Path, tmp_path: Path, canary: Path
    ) -> None:
        from stages.cache_teacher.teacher.teacher import Teacher

        (teacher / "adapter_config.json").unlink()
        config = json.loads((teacher / "config.json").read_text())
        for key in ("quantization_config", "transformers_weights", "attn_implementation"):
            del config[key]
        (teacher / "config.json").write_text(json.dumps(config))
        source = resolve_teacher(stage_one_config(teacher, "unused"))
        (tmp_path / "out").mkdir()
        Teacher(source, torch.device("cpu")).export(tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {
            *("config.json", "embedding.safetensors", "teacher.json", "chat_template.jinja"),
            *("tokenizer.json", "tokenizer_config.json"),
        }
        assert "evil" not in (tmp_path / "out" / "tokenizer_config.json").read_text().lower()
        assert not canary.exists()

    def test_a_tokenizer_that_needs_remote_code_is_refused(
        self, teacher: Path, canary: Path
    ) -> None:
        """As that of Qwen 1 and ChatGLM: a clear word, where it would have to be run."""
        (teacher / "adapter_config.json").unlink()
        hostile.change_json(teacher / "config.json", {"transformers_weights": None})
        (teacher / "tokenizer.json").rename(teacher / "vocab.txt")
        with pytest.raises(ValueError, match=r"Python code from its repository \(auto_map\)"):
            resolve_teacher(stage_one_config(teacher, "unused"))
        assert not canary.exists()
