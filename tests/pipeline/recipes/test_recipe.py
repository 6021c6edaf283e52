"""Recipes: what loads, what is refused, and how the refusal is worded."""

import dataclasses
import itertools
import os
import subprocess
import sys
import tomllib
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.recipes.recipe import (
    _RENAMED,
    _TABLES,
    Override,
    Recipe,
    RecipeError,
    listed_recipes,
    load_recipe,
    parse_override,
    recipe_names,
    recipe_text,
    require_teacher_and_corpus,
    token_budget,
)
from stages.cache_teacher.config import CacheTeacherConfig
from stages.train_student.config import TrainStudentConfig
from stages.train_student.modeling.distil_xlstm.settings import DistilXLSTMSettings
from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings
from tests.support import ROOT
from tests.support.train_configs import train_config


def written(tmp_path: Path, text: str) -> str:
    """A recipe file with ``text``; its path."""
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def with_set(*settings: str) -> Recipe:
    return load_recipe("distil-xlstm", [parse_override(setting) for setting in settings])


def refusal(tmp_path: Path, text: str) -> str:
    """What a recipe file with ``text`` is refused with; always names the file."""
    path = written(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(path)
    return str(caught.value)


def set_refusal(setting: str, recipe: str = "distil-xlstm") -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [parse_override(setting)])
    assert "--set " in str(caught.value)
    return str(caught.value)


class TestShipped:
    def test_shipped_recipes_are_listed(self) -> None:
        assert {"demo", "distil-xlstm"} <= set(recipe_names())

    @pytest.mark.parametrize("name", recipe_names())
    def test_every_shipped_recipe_loads_and_has_a_description(self, name: str) -> None:
        assert load_recipe(name).description

    def test_the_paper_recipe_equals_the_defaults(self) -> None:
        recipe = load_recipe("distil-xlstm")
        assert recipe.cache_teacher == CacheTeacherConfig()
        assert recipe.train_student == TrainStudentConfig()

    def test_the_paper_recipe_states_every_key(self) -> None:
        document = tomllib.loads(recipe_text("distil-xlstm"))
        assert list(document["cache_teacher"]) == _keys(CacheTeacherConfig)
        student = document["train_student"].pop("student")
        assert list(student) == _keys(DistilXLSTMSettings)
        assert ["student", *document["train_student"]] == _keys(TrainStudentConfig)

    def test_the_paper_recipe_says_where_every_value_is_from(self) -> None:
        lines = recipe_text("distil-xlstm").splitlines()
        for previous, line in itertools.pairwise(lines):
            if "=" in line.partition("#")[0] and not line.startswith("description"):
                assert "#" in line or previous.startswith("#"), line


def _keys(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


class TestHybrid:
    @pytest.mark.parametrize("prefix", ["", "demo-"])
    def test_the_second_stage_goes_on_with_what_the_first_one_trained(self, prefix: str) -> None:
        align, distill = (load_recipe(f"{prefix}hybrid-{name}") for name in ("align", "distill"))
        assert align.train_student.objective == "alignment"
        assert distill.train_student.objective == "distillation"
        first, second = align.train_student.student, distill.train_student.student
        assert first.trains_new_alone
        assert not second.trains_new_alone
        for key in first.weight_keys:
            assert getattr(first, key) == getattr(second, key), key

    @pytest.mark.parametrize("prefix", ["", "demo-"])
    def test_both_stages_learn_from_one_cache(self, prefix: str) -> None:
        align, distill = (
            dataclasses.replace(load_recipe(f"{prefix}hybrid-{name}").cache_teacher, num_tokens=1)
            for name in ("align", "distill")
        )
        assert align == distill
        assert align.keep_teacher_weights

    def test_a_step_of_the_alignment_is_the_papers(self) -> None:
        recipe = load_recipe("hybrid-align")
        config = recipe.train_student
        rows = config.batch_size * config.gradient_accumulation_steps
        assert rows * recipe.cache_teacher.sequence_length * 2500 == 655_360_000
        assert config.max_steps == 2500


class TestUnsetTeacherAndCorpus:
    @pytest.mark.parametrize("name", recipe_names())
    def test_only_recipes_for_small_teachers_leave_teacher_and_corpus_unset(
        self, name: str
    ) -> None:
        recipe = load_recipe(name)
        needs = not (recipe.cache_teacher.teacher and recipe.cache_teacher.corpus)
        assert needs is (name.startswith("demo") or name == "small")
        if needs:
            with pytest.raises(RecipeError, match=rf"recipe {name}: .* not set"):
                require_teacher_and_corpus(name, recipe)
        else:
            require_teacher_and_corpus(name, recipe)

    def test_an_unset_teacher_or_corpus_is_named(self) -> None:
        one = [parse_override("cache_teacher.teacher=t")]
        with pytest.raises(RecipeError) as caught:
            require_teacher_and_corpus("small", load_recipe("small", one))
        assert str(caught.value).startswith("recipe small: cache_teacher.corpus not set. Add:\n")
        both = [*one, parse_override("cache_teacher.corpus=c")]
        require_teacher_and_corpus("small", load_recipe("small", both))

    def test_the_demo_recipe_alone_points_to_pipeline_demo(self) -> None:
        with pytest.raises(RecipeError, match="Run `pipeline demo`, which sets them"):
            require_teacher_and_corpus("demo", load_recipe("demo"))

    def test_experts_differ_in_their_corpora_alone(self) -> None:
        experts = [load_recipe(f"expert-{name}") for name in ("math", "code", "stem", "chat")]
        assert len({recipe.cache_teacher.corpus for recipe in experts}) == 4
        assert all(recipe.cache_teacher.chat is not None for recipe in experts)
        for other in experts[1:]:
            assert other.train_student == experts[0].train_student
            own = {
                *("corpus", "corpus_config", "messages_column"),
                *("prompt_column", "completion_column"),
            }
            changes = {key: getattr(experts[0].cache_teacher, key) for key in own}
            assert dataclasses.replace(other.cache_teacher, **changes) == experts[0].cache_teacher

    def test_the_demo_recipe_is_not_listed(self) -> None:
        assert list(listed_recipes()) == [
            *("demo-hybrid-align", "demo-hybrid-distill", "distil-xlstm"),
            *("expert-chat", "expert-code", "expert-math", "expert-stem"),
            *("hybrid-align", "hybrid-distill", "small"),
        ]


class TestFiles:
    def test_a_missing_table_or_key_is_the_default(self, tmp_path: Path) -> None:
        recipe = load_recipe(written(tmp_path, "[cache_teacher]\ntop_k = 8\n"))
        assert recipe == Recipe(cache_teacher=CacheTeacherConfig(top_k=8))

    def test_toml_values_are_converted_to_the_types_of_the_fields(self, tmp_path: Path) -> None:
        text = """
            [cache_teacher]
            num_tokens = "1.5M"
            top_p = 1
            [train_student.student]
            slstm_at = []
            [train_student]
            max_steps = 7
            precision = "bf16"
        """
        recipe = load_recipe(written(tmp_path, text))
        assert recipe.cache_teacher.num_tokens == 1_500_000
        assert type(recipe.cache_teacher.top_p) is float
        assert recipe.train_student.student == DistilXLSTMSettings(slstm_at=())
        assert recipe.train_student.max_steps == 7
        assert recipe.train_student.precision == "bf16"

    def test_a_missing_file_names_the_shipped_recipes(self) -> None:
        with pytest.raises(
            RecipeError,
            match=r"distil\.toml: neither a file.*recipes: demo-.*, hybrid-distill, small;",
        ):
            load_recipe("distil.toml")

    def test_a_directory_is_refused_as_a_recipe(self, tmp_path: Path) -> None:
        with pytest.raises(
            RecipeError, match=r"a directory; expected the name of a shipped recipe or a TOML"
        ):
            load_recipe(str(tmp_path))

    @pytest.mark.timeout(20)
    def test_a_pipe_and_a_device(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.toml")
        for path in (tmp_path / "pipe.toml", Path("/dev/zero")):
            with pytest.raises(RecipeError, match=rf"{path}: not a regular file, but a pipe or a"):
                load_recipe(str(path))

    def test_a_file_that_is_too_large(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_bytes(b" " * (1 << 20))
        assert load_recipe(str(path)) == Recipe()
        path.write_bytes(b" " * ((1 << 20) + 1))
        with pytest.raises(RecipeError, match=r"mine\.toml: larger than 1,048,576 bytes"):
            load_recipe(str(path))

    def test_a_recipe_that_is_not_utf8_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(RecipeError, match=r"mine\.toml: a recipe is UTF-8 text"):
            load_recipe(str(path))

    def test_invalid_toml_is_refused_with_its_line(self, tmp_path: Path) -> None:
        assert "line 2" in refusal(tmp_path, "[cache_teacher]\ntop_k = = 3\n")


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "[train_student]\nlearning_rat = 1.0",
                '"learning_rat"; the nearest is "learning_rate"',
            ),
            (
                "[cache_teacher]\nnum_blocks = 1",
                '"num_blocks"; it belongs to [train_student.student]',
            ),
            ("[cache_teachers]\ntop_k = 1", '"cache_teachers"; the nearest is "cache_teacher"'),
            (
                "[train_student]\nnum_blocks = 1",
                '[train_student] num_blocks: unknown key "num_blocks"; it belongs to '
                "[train_student.student]",
            ),
            (
                '[train_student]\nslstm = "auto"',
                'it belongs to [train_student.student], where it is called "slstm_backend"',
            ),
            (
                "[train_student.student]\nnum_block = 1",
                '[train_student.student] num_block: unknown key "num_block"; the nearest is "num_b',
            ),
            (
                '[train_student.student]\nkind = "hybrid"',
                "[train_student.student] kind: unknown kind 'hybrid'; the known ones are "
                '"distil_xlstm"',
            ),
            (
                '[train_student.student]\nkind = "hybrid_xlstm"\nnum_blocks = 2',
                'unknown key "num_blocks"; students of kind distil_xlstm have it',
            ),
            ("[train_student.student]\nkind = [1]", "unknown kind [1]"),
            ("[train_student.student]\nweight_keys = 1", 'unknown key "weight_keys"'),
            ("train_student.student = 1", "train_student.student: expected a table, found 1"),
            ("top_k = 1", 'unknown table "top_k"'),
            ("cache_teacher = 1", "cache_teacher: expected a table, found 1"),
            ("description = 1", "description: expected a string, found 1"),
        ],
    )
    def test_an_unknown_key_or_table_names_the_nearest(
        self, tmp_path: Path, text: str, expected: str
    ) -> None:
        assert expected in refusal(tmp_path, text)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("cache_teacher.sketch_dim=32", "hidden_projection_dim"),
            ("cache_teacher.keep_mass=0.9", "top_p"),
            ("train_student.accumulation=2", "gradient_accumulation_steps"),
            ("train_student.warmup_fraction=0", "warmup_ratio"),
        ],
    )
    def test_a_renamed_key_is_refused_with_its_new_name(self, old: str, new: str) -> None:
        with pytest.raises(RecipeError, match=f'it is now called "{new}"'):
            load_recipe("distil-xlstm", [parse_override(old)])

    def test_the_new_name_of_every_renamed_key_exists(self) -> None:
        keys = {key for kinds in _TABLES.values() for kind in kinds for key in _keys(kind)}
        assert set(_RENAMED.values()) <= keys
        assert not set(_RENAMED) & keys

    @pytest.mark.parametrize(
        ("table", "line", "expected"),
        [
            (
                "train_student.student",
                "num_blocks = 2.0",
                'whole number, such as 512 or "512M", found the',
            ),
            ("train_student.student", "num_blocks = true", "found true"),
            ("train_student.student", 'num_blocks = "four"', 'found the string "four"'),
            ("train_student.student", 'num_blocks = "none"', 'found the string "none"'),
            ("train_student", 'max_steps = "some"', 'found the string "some"'),
            ("train_student", 'learning_rate = "2e-4"', "expected a number, found the string"),
            ("train_student", "learning_rate = false", "expected a number, found false"),
            ("train_student", "learning_rate = nan", "expected a number, found the float nan"),
            ("train_student", "learning_rate = inf", "expected a number, found the float inf"),
            (
                "train_student",
                f"learning_rate = 1{'0' * 400}",
                "expected a number, found the integer",
            ),
            ("train_student.student", "slstm_at = 0", "expected a list, each item a whole number"),
            ("train_student.student", "slstm_at = [0, 1.5]", "found the float 1.5"),
            ("train_student.student", "slstm_at = [[0]]", "found the array [0]"),
            (
                "train_student",
                'precision = "fp8"',
                'one of "auto", "fp32", "bf16", "fp16", found the string',
            ),
            ("train_student", "precision = 16", "found the integer 16"),
            ("train_student", "seed = {a = 1}", "found a dict"),
            ("cache_teacher", "teacher = 1", "expected a string, found the integer 1"),
            ("cache_teacher", 'num_tokens = "512MB"', 'found the string "512MB"'),
            ("cache_teacher", 'num_tokens = "1.0005K"', 'found the string "1.0005K"'),
            ("cache_teacher", 'num_tokens = "-1K"', 'found the string "-1K"'),
        ],
    )
    def test_a_value_of_the_wrong_type_says_what_was_expected(
        self, tmp_path: Path, table: str, line: str, expected: str
    ) -> None:
        message = refusal(tmp_path, f"[{table}]\n{line}\n")
        assert f"[{table}] {line.partition(' ')[0]}: expected " in message
        assert expected in message

    def test_a_value_out_of_bounds_names_its_table_and_key(self, tmp_path: Path) -> None:
        message = refusal(tmp_path, "[cache_teacher]\ntop_p = 1.5\n")
        assert "[cache_teacher] top_p: must be above 0 and at most 1, found 1.5" in message

    def test_a_default_that_contradicts_a_given_value_is_named(self, tmp_path: Path) -> None:
        message = refusal(tmp_path, "[train_student.student]\nnum_blocks = 2\n")
        assert "[train_student.student] slstm_at: must be rising block indices below" in message
        assert "found the default (0, 2, 4)" in message


_INTEGERS = [
    (table, key, kind)
    for table, kinds in _TABLES.items()
    for kind in kinds
    for key, hint in get_type_hints(kind).items()
    if hint in (int, int | None)
]


class TestIntegers:
    """None is beyond 64 bits: what is written with it could not be read."""

    @pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30 - 1])
    @pytest.mark.parametrize(("table", "key", "kind"), _INTEGERS)
    def test_integers_beyond_64_bits_are_refused(
        self, table: str, key: str, kind: Any, number: int
    ) -> None:
        recipe = "hybrid-align" if kind is HybridXLSTMSettings else "distil-xlstm"
        message = set_refusal(f"{table}.{key}={number}", recipe)
        assert message.startswith(f"--set {table}.{key}={number}: must be ")
        assert message.endswith(f", found {number}")
        with pytest.raises(ValueError, match=rf"^{key}: must be "):
            kind(**{key: number})

    @pytest.mark.parametrize(
        "key", ["cache_teacher.num_tokens", "train_student.max_steps", "train_student.eval_steps"]
    )
    def test_a_refused_integer_names_the_64_bit_range(self, key: str) -> None:
        assert "an integer of 64 bits, from −2^63 to 2^63 − 1, found" in set_refusal(f"{key}=1e19")
        assert attrgetter(key)(with_set(f"{key}={2**63 - 1}")) == 2**63 - 1

    def test_a_token_budget_beyond_64_bits_is_refused(self) -> None:
        with pytest.raises(RecipeError, match=r"^--tokens 10000000000000B: must be an integer of"):
            load_recipe("small", [token_budget("10000000000000B")])

    @pytest.mark.parametrize("key", ["seed", "max_steps", "learning_rate", "precision"])
    def test_a_number_of_thousands_of_digits_is_refused(self, tmp_path: Path, key: str) -> None:
        message = refusal(tmp_path, f"[train_student]\n{key} = 0x{'f' * 9999}\n")
        assert f"[train_student] {key}: " in message
        assert message.endswith("a number of thousands of digits")


class TestOverrides:
    @pytest.mark.parametrize("kind", ["distil_xlstm", "'distil_xlstm'"])
    def test_the_student_kind_may_be_set_after_its_keys(self, kind: str) -> None:
        recipe = with_set("train_student.student.dropout=0.5", f"train_student.student.kind={kind}")
        assert recipe.train_student.student == DistilXLSTMSettings(dropout=0.5)
        assert "the known ones are" in set_refusal("train_student.student.kind=hybrid")

    def test_the_last_of_repeated_settings_wins(self) -> None:
        key = "train_student.student.num_heads"
        recipe = with_set(f"{key}=2", f"{key}=8")
        assert recipe.train_student.student == DistilXLSTMSettings(num_heads=8)

    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("cache_teacher.num_tokens=512M", 512_000_000),
            ("cache_teacher.num_tokens=2b", 2_000_000_000),
            ("cache_teacher.num_tokens=1_000", 1000),
            ("cache_teacher.num_tokens=1e6", 1_000_000),
            ("cache_teacher.num_tokens=2.5e6", 2_500_000),
            ("cache_teacher.teacher=Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
            ("cache_teacher.teacher='with space'", "with space"),
            ("cache_teacher.teacher=a=b", "a=b"),
            ("cache_teacher.teacher_revision=1234567", "1234567"),
            ("cache_teacher.teacher_revision=1e5", "1e5"),
            ("cache_teacher.teacher=a\nseed = 3", "a\nseed = 3"),
            ("cache_teacher.inverse_temperatures=[0.5, 1]", (0.5, 1.0)),
            (" cache_teacher.seed = 3 ", 3),
            ("train_student.learning_rate=1", 1.0),
            ("train_student.max_steps=3", 3),
            ("train_student.max_steps=none", None),
            ("train_student.precision=fp32", "fp32"),
            ("train_student.student.slstm_at=[1]", (1,)),
        ],
    )
    def test_set_converts_values_to_the_type_of_the_field(
        self, setting: str, value: object
    ) -> None:
        path = setting.partition("=")[0].strip()
        assert attrgetter(path)(with_set(setting)) == value

    @pytest.mark.parametrize("text", ["", "train_student", "num_blocks=1", "train_student.=1"])
    def test_settings_without_table_or_value_are_refused(self, text: str) -> None:
        with pytest.raises(RecipeError, match=r"^--set .*: expected TABLE\.KEY=VALUE"):
            parse_override(text)

    def test_refusals_quote_the_setting(self) -> None:
        assert set_refusal("train_student.student.num_block=1").startswith(
            '--set train_student.student.num_block=1: unknown key "num_block"; the nearest is '
            '"num_blocks"'
        )
        assert "unknown table" in set_refusal("student.num_blocks=1")
        assert 'found the string "x"' in set_refusal("train_student.student.num_blocks=x")
        assert set_refusal("train_student.student.dropout=1").startswith(
            "--set train_student.student.dropout=1: must be at least 0 and below 1, found 1.0"
        )

    def test_a_setting_that_makes_another_value_invalid_is_named(self) -> None:
        setting = "train_student.student.num_blocks=2"
        message = set_refusal(setting)
        assert f"[train_student.student] slstm_at (with --set {setting}): must" in message

    def test_setting_a_table_to_a_value_is_refused(self) -> None:
        message = set_refusal("train_student.student=x")
        assert message.endswith("is a table: expected train_student.student.KEY=VALUE")

    def test_the_tokens_option_sets_and_checks_the_budget(self) -> None:
        recipe = load_recipe("distil-xlstm", [token_budget("64K")])
        assert recipe.cache_teacher.num_tokens == 64_000
        with pytest.raises(RecipeError, match=r"^--tokens lots: expected a whole number"):
            load_recipe("distil-xlstm", [token_budget("lots")])
        with pytest.raises(RecipeError, match=r"^--tokens 0: must be 1 or more, found 0"):
            load_recipe("distil-xlstm", [token_budget("0")])


class TestToml:
    @pytest.mark.parametrize("name", recipe_names())
    def test_a_resolved_recipe_loads_back_equal(self, tmp_path: Path, name: str) -> None:
        recipe = load_recipe(name)
        assert load_recipe(written(tmp_path, recipe.to_toml())) == recipe

    def test_corpora_load_back_equal(self, tmp_path: Path) -> None:
        corpora = '[{name="web", weight=2}, {name="math", weight=1.5, corpus_config="math"}]'
        override = parse_override(f"cache_teacher.corpora={corpora}")
        recipe = load_recipe("distil-xlstm", [override])
        assert recipe.cache_teacher.corpora is not None
        assert load_recipe(written(tmp_path, recipe.to_toml())) == recipe

    def test_a_resolved_recipe_writes_every_value_that_is_not_none(self) -> None:
        document = tomllib.loads(Recipe().to_toml())
        nothing = {
            "cache_teacher": {
                "sampling_temperature",
                "rows_per_forward",
                "messages_column",
                "prompt_column",
                "completion_column",
                "corpora",
                "corpus_data_files",
            },
            "train_student": {
                *("sampled_softmax_size", "max_steps", "shuffle_shards"),
                "mixer_learning_rate",
            },
        }
        configs = {"cache_teacher": CacheTeacherConfig, "train_student": TrainStudentConfig}
        for table, config in configs.items():  # the values that are None are left out
            expected = [key for key in _keys(config) if key not in nothing[table]]
            assert sorted(document[table]) == sorted(expected)
        assert list(document["train_student"]["student"]) == _keys(DistilXLSTMSettings)

    @given(
        description=st.text(st.characters(exclude_categories=["Cs"])),
        teacher=st.text(st.characters(exclude_categories=["Cs"])),
        learning_rate=st.floats(min_value=1e-300, allow_infinity=False),
        seed=st.integers(0, 2**63 - 1),
        max_steps=st.none() | st.integers(1, 2**40),
        slstm_at=st.sets(st.integers(0, 5)),
    )
    def test_any_recipe_loads_back_equal(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        description: str,
        teacher: str,
        learning_rate: float,
        seed: int,
        max_steps: int | None,
        slstm_at: set[int],
    ) -> None:
        recipe = Recipe(
            description=description,
            cache_teacher=CacheTeacherConfig(teacher=teacher, seed=seed),
            train_student=train_config(
                learning_rate=learning_rate,
                max_steps=max_steps,
                slstm_at=tuple(sorted(slstm_at)),
            ),
        )
        path = tmp_path_factory.getbasetemp() / "any.toml"
        path.write_bytes(recipe.to_toml().encode())
        assert load_recipe(str(path)) == recipe


def test_refusing_a_recipe_or_setting_imports_nothing_heavy() -> None:
    program = """
import sys
from click.testing import CliRunner
from pipeline.cli import main
for arguments in (
    ["cache-teacher", "--recipe", "demo", "--out", "x", "--set", "cache_teacher.topk=1"],
    ["train-student", "--recipe", "nowhere", "--cache", ".", "--out", "x"],
):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
heavy = {"torch", "transformers", "datasets", "pyarrow", "numpy", "xlstm", "tensorboard"}
print(sorted(heavy & set(sys.modules)))
"""
    root = ROOT
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=False
    )
    assert finished.stdout.strip() == "[]", finished.stderr


def test_an_override_is_parsed_into_table_key_and_value() -> None:
    assert parse_override("a.b=c") == Override("--set a.b=c", "a", "b", "c")


def test_the_recipe_of_a_kind_shows_all_of_its_keys() -> None:
    for key in get_type_hints(HybridXLSTMSettings):
        is_setting = key not in ("weight_keys", "speed_keys", "holds_teacher")
        assert not is_setting or key in recipe_text("hybrid-align"), key


@pytest.mark.parametrize(
    ("recipe", "setting", "advice"),
    [
        ("hybrid-distill", "train_student.student.window=0", "hybrid-align` those of a hybrid_xl"),
        ("hybrid-distill", "train_student.student.windoow=9", "hybrid-align` those of a hybrid_xl"),
        ("hybrid-distill", "train_student.student.pattern=a", "hybrid-align` those of a hybrid_xl"),
        ("distil-xlstm", "train_student.student.num_heads=0", "with its default."),
        ("distil-xlstm", "train_student.student.kind=x", "with its default."),
    ],
)
def test_a_refusal_names_the_recipe_that_shows_the_keys(
    recipe: str, setting: str, advice: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [parse_override(setting)])
    assert "`pipeline recipes distil-xlstm` prints every key" in caught.value.advice
    assert advice in caught.value.advice
