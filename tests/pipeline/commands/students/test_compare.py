"""``pipeline compare``, as it is typed."""

import json
import shutil
from pathlib import Path

import pytest

import cache_format
from pipeline.student_comparison.row_figures import FOLDER, RowFigures
from stages.train_student.checkpoints.run_record import read_record, write_record
from stages.train_student.run_files import parse_run_file, write_run_file
from tests.support.command_line import done, fail_with, run
from tests.support.student_caches import TARGETS, write_cache
from tests.support.students import publish_student
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import run as train_run


@pytest.fixture(scope="module")
def trained(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs, one of which has trained for longer."""
    place = tmp_path_factory.mktemp("runs")
    for name, num_steps in (("short", 1), ("long", 9)):
        config = tiny_train_config(max_steps=num_steps, report_to=(), dropout=0.0)
        train_run(config, tiny_cache, place / name)
    return place / "short", place / "long"


@pytest.fixture
def runs(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies that a test may change."""
    short, long = (shutil.copytree(path, tmp_path / path.name) for path in trained)
    return Path(short), Path(long)


def test_the_longer_trained_student_is_better(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.student_comparison.comparison.FEW_ROWS", 27)
    result = done("compare", *runs)
    assert "loss: the difference is real: B is better than A, by " in result.stdout
    assert json.loads(done("compare", *runs, "--json").stdout)["figures"]["loss"]["is_real"] is True


def test_few_rows_are_no_verdict(runs: tuple[Path, Path]) -> None:
    result = done("compare", *runs)
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"A: {runs[0]}", f"B: {runs[1]}"]
    assert lines[3].split() == ["A", "B", "B", "−", "A", "95%", "interval", "share"]
    assert "27 validation rows" in result.stdout
    assert "loss: too few rows to tell: 27 rows, and a verdict takes 30." in result.stdout
    assert "real" not in result.stdout
    assert "evaluate A: 27 of 27 rows" in result.stderr


def test_one_row_is_one_row(runs: tuple[Path, Path]) -> None:
    result = done("compare", *runs, "--rows", "1", "--resamples", "1")
    assert "1 validation row, " in result.stdout
    assert "1 resample of" in result.stdout
    assert "loss: too few rows to tell: 1 row, and a verdict takes 30." in result.stdout


def test_json_has_the_figures_that_evaluate_has(runs: tuple[Path, Path], tiny_cache: Path) -> None:
    found = json.loads(done("compare", *runs, "--json", "--resamples", "500").stdout)
    for letter, place in zip("ab", runs, strict=True):
        alone = json.loads(done("evaluate", place, "--cache", tiny_cache, "--json").stdout)
        for name in ("loss", "kl", "agreement"):
            expected = pytest.approx(alone["student"][name], rel=1e-5)
            assert found["figures"][name][letter] == expected
        assert found["positions"] == alone["positions"]
    loss = found["figures"]["loss"]
    assert loss["difference"] == pytest.approx(loss["b"] - loss["a"])
    assert loss["interval"][0] < loss["difference"] < loss["interval"][1] < 0
    assert loss["is_real"] is None
    assert found["bootstrap"] == {"resamples": 500, "level": 0.95, "seed": 0}


def test_a_second_comparison_evaluates_nothing(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = done("compare", *runs, "--json").stdout
    assert [len(list((run / FOLDER).iterdir())) for run in runs] == [1, 1]
    monkeypatch.setattr(
        "pipeline.student_comparison.row_figures.evaluate_rows", fail_with(AssertionError())
    )
    assert done("compare", *runs, "--json").stdout == first
    by_model = done("compare", runs[0] / "model", runs[1] / "model", "--json")
    assert json.loads(by_model.stdout)["figures"] == json.loads(first)["figures"]
    assert isinstance(run("compare", *runs, "--fresh").exception, AssertionError)


def test_other_rows_are_evaluated(runs: tuple[Path, Path]) -> None:
    done("compare", *runs)
    result = done("compare", *runs, "--rows", "4")
    assert "evaluate A: 4 of 4 rows" in result.stderr
    assert len(list((runs[0] / FOLDER).iterdir())) == 2


def test_a_changed_student_is_evaluated_again(runs: tuple[Path, Path]) -> None:
    done("compare", *runs)
    shutil.rmtree(runs[0] / "model")
    shutil.copytree(runs[1] / "model", runs[0] / "model")
    result = done("compare", *runs)
    assert "evaluate A: 27 of 27 rows" in result.stderr
    assert "A and B are the same student." in result.stdout


def test_a_damaged_file_is_made_anew(runs: tuple[Path, Path]) -> None:
    expected = done("compare", *runs).stdout
    file = next((runs[0] / FOLDER).iterdir())
    file.write_bytes(file.read_bytes().replace(b'"kl"', b'"kL"'))
    result = done("compare", *runs)
    assert f"{file}: damaged" in result.stderr
    assert result.stdout == expected
    assert done("compare", *runs).stderr.count("damaged") == 0


def test_a_file_of_another_cache_is_not_used(runs: tuple[Path, Path]) -> None:
    expected = done("compare", *runs).stdout
    file = next((runs[0] / FOLDER).iterdir())
    kept = parse_run_file(RowFigures, file.read_bytes(), file, "")
    fields = vars(kept) | {"validation_sha256": "0" * 64, "kl": (0.0,) * len(kept.rows)}
    write_run_file(file, RowFigures(**fields))
    assert done("compare", *runs).stdout == expected


def test_columns_of_other_lengths_are_damage(runs: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="expected 1 rows in each column"):
        RowFigures(
            cache_id="",
            validation_sha256="",
            model_sha256="",
            rows=(0,),
            num_scored=(1, 2),
            cross_entropy=(0.0,),
            kl=(0.0,),
            num_agreeing=(0.0,),
        )


def test_figures_are_told_where_they_cannot_be_kept(runs: tuple[Path, Path]) -> None:
    (runs[0] / FOLDER).write_text("in the way")
    result = done("compare", *runs, "--rows", "3")
    assert "not written" in result.stderr
    assert "loss" in result.stdout


def test_an_unfinished_run_is_its_newest_checkpoint(runs: tuple[Path, Path]) -> None:
    shutil.rmtree(runs[1] / "model")
    result = done("compare", *runs)
    assert "step 9 of an unfinished run" in result.stderr
    gap = next(line for line in result.stdout.splitlines() if line.startswith("loss")).split()[3]
    assert float(gap) < 0


def test_runs_of_different_caches_need_one_named(runs: tuple[Path, Path], tiny_cache: Path) -> None:
    record = read_record(runs[1])
    record.identity["cache_id"] = "0" * 64
    write_record(runs[1], record)
    refused = run("compare", *runs)
    assert refused.exit_code == 1
    assert "their validation rows are not the same" in refused.stderr
    result = done("compare", *runs, "--cache", tiny_cache, "--rows", "3")
    assert f"{runs[1]} was trained from another cache" in result.stdout


def test_a_student_of_several_caches_needs_one_named(
    runs: tuple[Path, Path], tiny_cache: Path
) -> None:
    cache_id = cache_format.open(tiny_cache).cache_id
    record = read_record(runs[1])
    record.identity.update(cache_id="0" * 64, caches={cache_id: {}, "1" * 64: {}})
    write_record(runs[1], record)
    refused = run("compare", *runs)
    assert refused.exit_code == 1
    assert f"{runs[1]} learned from 2 caches. Give the one to compare on" in refused.stderr
    result = done("compare", *runs, "--cache", tiny_cache, "--rows", "3")
    assert "was trained from another cache" not in result.stdout


def test_a_cache_that_has_gone_is_asked_for(runs: tuple[Path, Path]) -> None:
    for place, location in zip(runs, ("s3://bucket/cache", "/nowhere/cache"), strict=True):
        fields = vars(read_record(place)) | {"cache_location": location}
        write_record(place, type(read_record(place))(**fields))
    refused = run("compare", *runs)
    assert refused.exit_code == 1
    assert "it was at 's3://bucket/cache'. Give its location with --cache" in refused.stderr


def test_students_of_different_teachers_are_refused(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    write_cache(tmp_path / "cache", TARGETS["top_k"])
    record = read_record(runs[1])
    record.identity["teacher"]["weights_sha256"] = "f" * 64
    write_record(runs[1], record)
    refused = run("compare", *runs)
    assert refused.exit_code == 1
    assert "their teachers differ (weights_sha256 " in refused.stderr


def test_model_directories_alone_name_no_cache(tiny_cache: Path, tmp_path: Path) -> None:
    models = [publish_student(tiny_cache, tmp_path / name) / "model" for name in ("a", "b")]
    refused = run("compare", *models)
    assert "neither records where it is. Give its location with --cache" in refused.stderr
    result = done("compare", *models, "--cache", tiny_cache, "--rows", "3")
    assert "A and B are the same student." in result.stdout
    assert (models[0] / FOLDER).is_dir()


def test_what_is_no_student_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused = run("compare", runs[0], tmp_path / "empty")
    assert refused.exit_code == 1
    assert "neither a run of stage two nor a model directory" in refused.stderr
