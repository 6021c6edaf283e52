"""Sweep files: what they say, and all that is wrong with one at once."""

from pathlib import Path

import pytest

from pipeline.ablation.planning.sweep import SweepError, load_sweep
from tests.support.sweeps import write_sweep


def test_keys_may_be_dotted_nested_or_quoted(tmp_path: Path) -> None:
    sweep = load_sweep(
        write_sweep(
            tmp_path,
            """
            seeds = [3, 1]
            [set]
            train_student.max_steps = 5
            [variant.quoted]
            "train_student.alpha_end" = 0.25
            [variant.nested.train_student.student]
            num_blocks = 2
            [variant.plain]
            [grid]
            "train_student.student.slstm_at" = [[], [0]]
            """,
        )
    )
    assert sweep.seeds == (3, 1)
    assert sweep.recipe == str(tmp_path / "tiny.toml")
    assert sweep.settings == {"train_student.max_steps": 5}
    assert sweep.variants == {
        "quoted": {"train_student.alpha_end": 0.25},
        "nested": {"train_student.student.num_blocks": 2},
        "plain": {},
    }
    assert sweep.grid == {"train_student.student.slstm_at": ([], [0])}


def test_without_variants_there_is_the_base(tmp_path: Path) -> None:
    assert load_sweep(write_sweep(tmp_path, "")).variants == {"base": {}}


def test_a_shipped_recipe_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('recipe = "demo"\nseeds = [0]\n')
    assert load_sweep(path).recipe == "demo"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = 3", "seeds: expected whole numbers"),
        ("seeds = []", "seeds: expected whole numbers"),
        ("seeds = [true]", "seeds: expected whole numbers"),
        ("seeds = [-1]", "seeds: expected whole numbers"),
        ("seeds = [0, 1, 0]", "seeds: 0 is there twice"),
        ("variants = 1", "unknown key 'variants'; a sweep has"),
        ("[set]\nmax_steps = 3", "[set] max_steps: expected TABLE.KEY, such as train_student."),
        ("[set]\ncache_teacher.top_k = 3", "does not read [cache_teacher]"),
        ("[variant.a]\ntrain_student.seed = 3", "[variant.a] train_student.seed: a sweep's seeds"),
        ('[variant.a]\ntrain_student.x = 1\n"train_student.x" = 2', "train_student.x: is there"),
        ("[variant.b-0.1]\ntrain_student.x = 1", "in quotes: [variant."),
        ("[variant]\na = 1", "[variant.a]: expected a table of recipe keys, found 1"),
        ('[variant."../a"]', "expected letters, digits"),
        ('[variant."a b"]', "expected letters, digits"),
        ('[variant."a/b"]', "expected letters, digits"),
        ('[variant.".a"]', "expected letters, digits"),
        ('[variant."sweep.toml"]', "no .toml"),
        ("[variant.a]\n[variant.A]", "do not tell it from [variant.a]"),
        ("[grid]\ntrain_student.alpha_end = 0.5", "expected a list of values"),
        ("[grid]\ntrain_student.alpha_end = []", "expected a list of values"),
        ("grid = 1", "[grid]: expected a table"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SweepError) as caught:
        load_sweep(write_sweep(tmp_path, text))
    assert said in str(caught.value)


def test_everything_wrong_with_the_form_is_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('seed = 1\n[variant."a b"]\n[grid]\n"train_student.alpha_end" = 3\n')
    with pytest.raises(SweepError) as caught:
        load_sweep(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    for line, said in zip(
        lines[1:], ("'seed'", "recipe: missing", "seeds:", "'a b'", "[grid]"), strict=True
    ):
        assert said in line


@pytest.mark.parametrize("data", [b"\xff", b"a = ", b"a = " + b"[" * 5000])
def test_what_is_no_toml_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "sweep.toml"
    path.write_bytes(data)
    with pytest.raises(SweepError, match=r"sweep\.toml: not"):
        load_sweep(path)
