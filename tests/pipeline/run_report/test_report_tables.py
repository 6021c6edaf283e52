"""What the tables say of recipes that are nearly equal, and of figures that not all runs have."""

import json
from pathlib import Path

from pipeline.run_report.recorded.find_runs import find_runs
from pipeline.run_report.recorded.seed_groups import comparable, group_runs
from pipeline.run_report.report import make_report
from pipeline.run_report.report_tables import differences_table
from pipeline.run_report.results_tables import results_table
from pipeline.run_report.table import Table
from stages.train_student.checkpoints.recorded_caches import RecordedCache
from tests.support.run_directories import write_run


def differences(place: Path) -> dict[str, dict[str, tuple[str, bool]]]:
    """By recipe and setting: text, and whether it is marked."""
    table = differences_table(group_runs(find_runs([place])))
    if table is None:
        return {}
    return {
        row[0].text: {
            heading: (cell.text, cell.is_marked)
            for heading, cell in zip(table.headings[1:], row[1:], strict=True)
        }
        for row in table.rows
    }


def results(place: Path) -> tuple[Table, dict[str, str]]:
    """The only table of results, and its first row by headings."""
    groups = group_runs(find_runs([place]))
    (found,) = comparable(groups, "validation/loss", is_lower_better=True)
    table = results_table(found)
    texts = [cell.text for cell in table.rows[0]]
    return table, dict(zip(table.headings, texts, strict=True))


def test_initial_weights_are_a_difference(tmp_path: Path) -> None:
    for name in ("random", "scratch"):
        write_run(tmp_path / name, seed=len(name))
    write_run(
        tmp_path / "warm", initial_weights_sha256="12" * 32, init_location="/elsewhere/run/model"
    )
    assert differences(tmp_path) == {
        "random and 1 more": {"begins from": ("random weights", False)},
        "warm": {"begins from": ("/elsewhere/run/model (weights 121212121212)", True)},
    }


def test_weights_of_each_seed_s_own_are_said(tmp_path: Path) -> None:
    for seed in range(2):
        sha256 = f"{seed}" * 64
        write_run(tmp_path / f"own-{seed}", seed=seed, initial_weights_sha256=sha256)
        write_run(tmp_path / f"scratch-{seed}", seed=seed)
    found = differences(tmp_path)
    assert found["own"]["begins from"][0] == (
        "weights of its own for each seed (000000000000, 111111111111)"
    )
    assert found["scratch"]["begins from"][0] == "random weights"


def test_equal_weights_in_other_places_are_no_difference(tmp_path: Path) -> None:
    for name, beta in (("a", 0.0), ("b", 0.05)):
        write_run(
            tmp_path / name, beta_end=beta, initial_weights_sha256="12" * 32, init_location=name
        )
    assert set(differences(tmp_path)["a"]) == {"beta_end"}


def test_repeats_of_a_seed_are_no_spread_over_seeds(tmp_path: Path) -> None:
    for number, loss in enumerate((4.0, 4.0, 4.3)):
        write_run(tmp_path / f"run-{number}", loss=loss)
    table, row = results(tmp_path)
    assert (row["runs"], row["loss"]) == ("3 (seed 0 ×3: repeats or copies)", "4.1000")
    assert "Runs of one seed are repeats or copies, over which there is no ±." in table.note
    assert "±" not in " ".join(row.values())


def test_a_copy_beside_other_seeds_is_said(tmp_path: Path) -> None:
    for number, seed in enumerate((0, 1, 0)):
        write_run(tmp_path / f"run-{number}", seed=seed, loss=4.0 + seed)
    _, row = results(tmp_path)
    assert row["runs"] == "3 (seeds 0 ×2, 1: repeats or copies)"
    assert "±" not in row["loss"]


def test_seeds_are_a_spread(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"run-{seed}", seed=seed, loss=4.0 + seed / 5)
    table, row = results(tmp_path)
    assert (row["runs"], row["loss"]) == ("2 (seeds 0, 1)", "4.1000 ± 0.1414")
    assert "repeats" not in table.note


def test_a_mean_of_fewer_runs_says_so(tmp_path: Path) -> None:
    for seed in range(3):
        path = write_run(tmp_path / f"run-{seed}", seed=seed, loss=4.0 + seed)
        if seed:
            text = (path / "metrics.jsonl").read_text()
            damaged = text.replace(f'"validation/loss": {4.0 + seed},', '"validation/loss": NaN,')
            (path / "metrics.jsonl").write_text(damaged)
    _, row = results(tmp_path)
    assert (row["runs"], row["loss"]) == ("3 (seeds 0, 1, 2)", "4.0000 (1 of 3 runs)")
    assert "runs)" not in row["KL"]


def mixed_run(place: Path, seed: int, web_weight: float, math_loss: float) -> None:
    """A run of the caches web and math."""
    ids = {"web": "a" * 64, "math": "b" * 64}
    caches = tuple(
        RecordedCache(cache_id=key, label=label, location=f"/nowhere/{label}")
        for label, key in ids.items()
    )
    weights = {"web": web_weight, "math": round(1 - web_weight, 3)}
    write_run(
        place,
        seed=seed,
        recorded_caches=caches,
        figures={"validation/web/loss": 3.5, "validation/math/loss": math_loss},
        caches={
            ids[label]: {"weight": weight, "num_validation_rows": 5}
            for label, weight in weights.items()
        },
    )


def test_figures_of_each_of_several_caches_have_a_table(tmp_path: Path) -> None:
    mixed_run(tmp_path / "even-0", 0, 0.5, 4.0)
    mixed_run(tmp_path / "even-1", 1, 0.5, 5.0)
    mixed_run(tmp_path / "mostly-web", 0, 0.9, 6.0)
    report = make_report(find_runs([tmp_path]), "loss")
    whole, _, by_cache = report.results
    assert len(whole.rows) == 2  # they compare, as their validation rows are the same
    assert ", 10 rows." in whole.note
    assert [[cell.text for cell in row][:3] for row in by_cache.rows] == [
        ["web", "even", "3.5000 ± 0.0000"],
        ["web", "mostly-web", "3.5000"],
        ["math", "even", "4.5000 ± 0.7071"],
        ["math", "mostly-web", "6.0000"],
    ]
    assert differences(tmp_path) == {
        "even": {"weights of the caches": ("web 0.5, math 0.5", False)},
        "mostly-web": {"weights of the caches": ("web 0.9, math 0.1", True)},
    }


def test_a_run_of_one_cache_has_no_table_by_cache(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    assert len(make_report(find_runs([tmp_path]), "loss").results) == 1


def test_a_gradient_norm_is_the_median_of_its_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    norms = [0.9, 0.4, 0.5]  # the newest is neither
    lines = (run / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if "gradient_norm" not in line]
    kept += [json.dumps({"step": n, "train/gradient_norm": norm}) for n, norm in enumerate(norms)]
    (run / "metrics.jsonl").write_text("\n".join([*kept, ""]))
    table, row = results(tmp_path)
    assert row["gradient norm"] == "0.50"
    assert "medians over steps" in table.note
