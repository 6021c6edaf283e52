"""What the tables say of recipes that are nearly equal, and of figures that not all runs have."""

from pathlib import Path

from pipeline.run_report.recorded.find_runs import find_runs
from pipeline.run_report.recorded.seed_groups import group_runs
from pipeline.run_report.report_tables import differences_table
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
