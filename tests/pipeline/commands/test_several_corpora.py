"""Several corpora in one cache by the commands a person types: cache, inspect, train, evaluate."""

import json
from math import fsum
from pathlib import Path
from typing import Any

import pytest

import cache_format
from tests.support import tiny
from tests.support.command_line import done, run
from tests.support.train_runs import metrics

_RECIPE = """
[cache_teacher]
teacher = "{root}/teacher"
teacher_dtype = "float32"
device = "cpu"
num_tokens = 5000
sequence_length = 32
documents_per_unit = 10
validation_every = 4
top_k = 12
hidden_projection_dim = 8
rows_per_forward = 4
compile = "off"

[[cache_teacher.corpora]]
name = "web"
corpus = "{root}/web.parquet"
weight = 2

[[cache_teacher.corpora]]
name = "math"
corpus = "{root}/math.jsonl"
text_column = "body"
weight = 1

[train_student.student]
num_blocks = 1
slstm_at = [0]
num_heads = 2
qkv_block_size = 4
[train_student]
batch_size = 4
gradient_accumulation_steps = 2
max_steps = 2
validation_rows = 24
precision = "fp32"
compile = "off"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a recipe of two corpora, them and their teacher, a cache and a run."""
    root = tmp_path_factory.mktemp("corpora")
    (root / "tiny.toml").write_text(_RECIPE.format(root=root))
    tiny.save_tiny_teacher(root / "teacher")
    tiny.write_fineweb_parquet(root / "web.parquet", tiny.tiny_texts(300))
    lines = [json.dumps({"body": text}) for text in tiny.tiny_texts(300, seed=1)]
    (root / "math.jsonl").write_text("\n".join(lines) + "\n")
    recipe = ("--recipe", str(root / "tiny.toml"))
    done("cache-teacher", *recipe, "--out", str(root / "cache"))
    done("train-student", *recipe, "--cache", str(root / "cache"), "--out", str(root / "run"))
    return root


def test_inspect_shows_the_share_of_each(root: Path) -> None:
    found = json.loads(done("inspect", str(root / "cache"), "--json").stdout)["corpora"]
    cache = cache_format.open(root / "cache")
    for split in ("train", "validation"):
        assert sum(one["rows"][split] for one in found.values()) == cache.num_rows(split)
    assert found["web"]["asked_share"] == pytest.approx(2 / 3)
    assert fsum(one["share"] for one in found.values()) == pytest.approx(1)
    text = done("inspect", str(root / "cache")).stdout
    assert f"web: {found['web']['share']:.1%} of the tokens (asked 66.7%)" in text


def test_validation_is_reported_by_corpus_and_adds_up(root: Path) -> None:
    last = [row for row in metrics(root / "run") if "validation/loss" in row][-1]
    _require_adding_up(
        {name: _of(last, f"validation/{name}/") for name in ("web", "math")},
        _of(last, "validation/"),
        ("loss", "kl", "accuracy", "agreement", "teacher_loss"),
    )


def test_several_caches_are_reported_by_corpus_where_they_have_several(
    root: Path, tmp_path: Path
) -> None:
    recipe = ("--recipe", str(root / "tiny.toml"))
    done(
        *("cache-teacher", *recipe, "--out", str(tmp_path / "plain"), "--tokens", "2K"),
        *("--set", "cache_teacher.corpora=none"),
        *("--set", f"cache_teacher.corpus={root / 'web.parquet'}"),
    )
    caches = ("--cache", str(root / "cache"), "--cache", str(tmp_path / "plain"))
    done("train-student", *recipe, *caches, "--out", str(tmp_path / "run"))
    last = [row for row in metrics(tmp_path / "run") if "validation/loss" in row][-1]
    names = ("cache.web", "cache.math", "plain")
    _require_adding_up(
        {name: _of(last, f"validation/{name}/") for name in names},
        _of(last, "validation/"),
        ("loss", "accuracy"),
    )


def test_evaluate_reports_by_corpus_what_it_reports_of_all(root: Path) -> None:
    command = ("evaluate", str(root / "run"), "--cache", str(root / "cache"))
    found = json.loads(done(*command, "--json").stdout)
    parts = found["corpora"]
    assert sum(part["positions"] for part in parts.values()) == found["positions"]
    for who, names in (("student", ("loss", "kl", "accuracy")), ("teacher", ("loss", "accuracy"))):
        each = {name: part[who] | {"positions": part["positions"]} for name, part in parts.items()}
        _require_adding_up(each, found[who], names)
    lines = done(*command).stdout.splitlines()
    starts = [line[:13].strip() for line in lines[1:7]]
    expected = ["teacher", "student", "teacher, web", "student, web"]
    assert starts == [*expected, "teacher, math", "student, math"]


def test_dry_run_says_which_corpus_ends_first(root: Path, tmp_path: Path) -> None:
    words = ("cache-teacher", "--recipe", str(root / "tiny.toml"), "--out", str(tmp_path / "new"))
    fields = json.loads(done(*words, "--dry-run", "--json").stdout.splitlines()[-1])["corpora"]
    assert fields["ends_first"] in ("web", "math")
    ends_after = min(30 * sum(_periods(fields)) // own for own in _periods(fields))
    assert abs(fields["units"] - ends_after) <= 2
    text = done(*words, "--dry-run").stderr + done(*words, "--dry-run").stdout
    assert f"until {fields['ends_first']} ends, which has 30" in text


def test_dry_run_loses_no_line_to_the_name_of_a_corpus(root: Path, tmp_path: Path) -> None:
    text = (root / "tiny.toml").read_text().replace('"web"', '"teacher"')
    (tmp_path / "names.toml").write_text(text.replace('"math"', '"targets"'))
    words = ("--recipe", str(tmp_path / "names.toml"), "--out", str(tmp_path / "new"))
    lines = done("cache-teacher", *words, "--dry-run").stdout.splitlines()
    for name in ("teacher", "targets", "corpus teacher", "corpus targets"):
        assert len([line for line in lines if line.startswith(f"  {name} ")]) == 1, lines


def test_extend_makes_more_of_the_same(root: Path, tmp_path: Path) -> None:
    recipe = ("--recipe", str(root / "tiny.toml"))
    done("cache-teacher", *recipe, "--out", str(tmp_path / "cache"), "--tokens", "2K")
    done("extend", str(tmp_path / "cache"), "--tokens", "5K")
    extended = cache_format.open(tmp_path / "cache")
    assert extended.manifest == cache_format.open(root / "cache").manifest


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ('[{name="a", weight=1, wieght=2}]', 'a: unknown key "wieght"; the nearest is "weight"'),
        ('[{name="a", weight="x"}]', "a: weight: expected a number"),
        ("[{weight=1}]", "name is missing"),
        ('[{name="a", weight=1}]', "must be two or more, found 1"),
        ('[{name="a", weight=1}, {name="a", weight=1}]', "a: 2 entries have this name"),
        ('[{name="a", weight=1}, {name="b", weight=0}]', "b: weight: must be above 0"),
        ('[{name="a", weight=1}, {name="b", tokens="1M"}]', "give all of them the one"),
        ('[{name="a", weight=1, tokens=5}, {name="b", tokens=5}]', "found both"),
        ('[{name="a", weight=1}, {name="b", weight=1, corpus="./gone"}]', "no such file"),
    ],
)
def test_wrong_corpora_are_refused_at_once(root: Path, corpora: str, message: str) -> None:
    result = run(
        *("cache-teacher", "--recipe", str(root / "tiny.toml"), "--out", str(root / "new")),
        *(
            "--set",
            f"cache_teacher.corpora={corpora}",
            "--set",
            f"cache_teacher.corpus={root}/web.parquet",
        ),
    )
    assert result.exit_code != 0
    assert message in result.stderr
    assert not (root / "new").exists()


def test_tokens_of_each_make_the_budget(root: Path, tmp_path: Path) -> None:
    text = (root / "tiny.toml").read_text().replace("num_tokens = 5000\n", "")
    text = text.replace("weight = 2", 'tokens = "2K"').replace("weight = 1", 'tokens = "1K"')
    (tmp_path / "tokens.toml").write_text(text)
    done("cache-teacher", "--recipe", str(tmp_path / "tokens.toml"), "--out", str(tmp_path / "c"))
    manifest = cache_format.open(tmp_path / "c").manifest
    assert manifest.num_tokens_requested == 3_000
    assert manifest.complete


def _periods(fields: dict[str, Any]) -> list[int]:
    return [one["units_of_period"] for one in fields["each"]]


def _of(row: dict[str, float], prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): row[key] for key in row if key.startswith(prefix)}


def _require_adding_up(
    parts: dict[str, dict[str, float]], whole: dict[str, float], names: tuple[str, ...]
) -> None:
    total = sum(part["positions"] for part in parts.values())
    for name in names:
        mean = fsum(part[name] * part["positions"] for part in parts.values()) / total
        assert mean == pytest.approx(whole[name], rel=1e-5)
