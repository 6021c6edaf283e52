"""Relational recall: rows hold what they ask for, windows do not reach it, trainings are kept."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.recall.mixers import MIXERS, ModelSizes, make_model
from benchmarks.recall.task import LEAD_IN, NOISE_IDS, VOCABULARY, RecallTask
from benchmarks.recall.training import TrainingSettings, accuracy, train

SIZES = ModelSizes(vocabulary=VOCABULARY, width=32)


def draw(task: RecallTask, num_rows: int, seed: int = 0) -> Any:
    return task.draw(num_rows, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("length", "pairs"), [(16, 4), (40, 6), (100, 28)])
def test_the_label_of_a_query_is_the_value_after_its_key(length: int, pairs: int) -> None:
    ids_BT, labels_BT = draw(RecallTask(length=length, pairs=pairs), 50)
    assert ids_BT.shape == labels_BT.shape == (50, length)
    first_value = NOISE_IDS + (VOCABULARY - NOISE_IDS) // 2
    for ids, labels in zip(ids_BT.tolist(), labels_BT.tolist(), strict=True):
        shown = ids[LEAD_IN : LEAD_IN + 2 * pairs]
        value_of = dict(zip(shown[::2], shown[1::2], strict=True))
        assert len(value_of) == pairs
        assert all(
            NOISE_IDS <= key < first_value <= value < VOCABULARY for key, value in value_of.items()
        )
        assert sorted(ids[-pairs:]) == sorted(value_of)
        assert labels[-pairs:] == [value_of[key] for key in ids[-pairs:]]
        assert set(labels[:-pairs]) == {-100}
        noise = ids[:LEAD_IN] + ids[LEAD_IN + 2 * pairs : -pairs]
        assert all(token < NOISE_IDS for token in noise)


def test_rows_are_a_function_of_the_generator_and_keys_come_in_any_order() -> None:
    task = RecallTask(length=40, pairs=6)
    assert torch.equal(draw(task, 8).input_ids, draw(task, 8).input_ids)
    assert not torch.equal(draw(task, 8).input_ids, draw(task, 8, seed=1).input_ids)
    ids_BT = draw(task, 64).input_ids
    assert not torch.equal(ids_BT[:, LEAD_IN : LEAD_IN + 12 : 2], ids_BT[:, -6:])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"length": 21, "pairs": 6}, "must be at least 4 \\+ 3 × pairs = 22"),
        ({"length": 200, "pairs": 29}, "leaves 28 keys for pairs = 29"),
        ({"length": 40, "pairs": 0}, "pairs at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecallTask(**sizes)
    RecallTask(length=22, pairs=6)
    RecallTask(length=200, pairs=28)


@pytest.mark.parametrize("mixer", MIXERS)
def test_all_of_a_model_is_trained_and_a_function_of_its_seed(mixer: str) -> None:
    model, same, other = (make_model(mixer, SIZES, seed) for seed in (3, 3, 4))
    weights = dict(model.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in same.named_parameters())
    ids_BT, labels_BT = draw(RecallTask(length=32, pairs=6), 2)
    logits = model(input_ids=ids_BT).logits
    assert logits.shape == (2, 32, VOCABULARY)
    assert not torch.equal(logits, other(input_ids=ids_BT).logits)
    loss: Any = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels_BT.flatten())
    loss.backward()
    assert [name for name, p in weights.items() if not p.requires_grad or p.grad is None] == []


@pytest.mark.parametrize("mixer", MIXERS)
def test_windows_alone_do_not_reach_the_pairs(mixer: str) -> None:
    """The logits of the queries change with the last value, but for window and sinks."""
    pairs = 6
    length = RecallTask.least_length(pairs, SIZES.reach)
    ids_BT = draw(RecallTask(length=length, pairs=pairs), 1).input_ids
    changed_BT = ids_BT.clone()
    changed_BT[:, LEAD_IN + 2 * pairs - 1] = NOISE_IDS  # no value, so surely another one
    model = make_model(mixer, SIZES, 0).eval()
    with torch.no_grad():
        logits, changed = (model(input_ids=ids).logits[:, -pairs:] for ids in (ids_BT, changed_BT))
    assert torch.equal(logits, changed) == (mixer == "window")


def test_attention_learns_to_recall_and_stops() -> None:
    task = RecallTask(length=16, pairs=2, vocabulary=16)
    model = make_model("attention", ModelSizes(vocabulary=16, width=32), 0)
    settings = TrainingSettings(steps=600, learning_rate=5e-3, check_every=25)
    figures = train(model, task, settings, 0)
    assert figures["accuracy"] > 0.9  # a guess among two values is right half of the time
    assert figures["solved_after"] == 25 * len(figures["checks"]) < 600
    assert accuracy(model, draw(task, 64, seed=99)) > 0.9


def invoke(*arguments: str) -> Any:
    words = ["--steps", "2", "--width", "16", "--lengths", "26,24,32", "--pairs", "4", *arguments]
    return CliRunner().invoke(main, ["recall", *words])


def test_the_benchmark_prints_and_keeps_its_figures(tmp_path: Path) -> None:
    work, picture = tmp_path / "work", tmp_path / "recall.svg"
    arguments = ("--seeds", "2", "--work", str(work), "--json", "--plot", str(picture))
    first = invoke(*arguments, "--lengths", "24,20")
    assert first.exit_code == 0, first.output
    figures = json.loads(first.stdout)
    assert [row["mixer"] for row in figures["rows"]] == list(MIXERS)
    assert "4 pairs in rows of 20: left out" in first.stderr
    for row in figures["rows"]:
        assert (row["length"], row["pairs"], len(row["trainings"])) == (24, 4, 2)
        assert all(0 <= one["accuracy"] < 1 for one in row["trainings"])
        assert all(one["solved_after"] is None for one in row["trainings"])
    assert "full attention" in picture.read_text()
    assert len(list(work.glob("*.json"))) == 2 * len(MIXERS)
    kept = next(iter(work.glob("window-24-4-0-*.json")))
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"accuracy": 0.5}))
    again = json.loads(invoke(*arguments, "--lengths", "24").stdout)
    rows = {row["mixer"]: row for row in again["rows"]}
    assert rows["window"]["trainings"][0]["accuracy"] == 0.5  # read, not trained again
    rows["window"]["trainings"][0] = figures["rows"][MIXERS.index("window")]["trainings"][0]
    assert again == figures
    kept.unlink()
    so_far = json.loads(invoke(*arguments, "--lengths", "24", "--kept").stdout)["rows"]
    counts = {row["mixer"]: len(row["trainings"]) for row in so_far}
    assert counts == dict.fromkeys(MIXERS, 2) | {"window": 1}
    assert not kept.exists()


def test_there_is_something_to_print_or_it_is_said(tmp_path: Path) -> None:
    found = invoke("--work", str(tmp_path), "--kept")
    assert found.exit_code == 2
    assert "no training of these options is finished" in found.stderr


def test_rows_too_short_for_all_pairs_are_refused() -> None:
    found = invoke("--lengths", "20")
    assert found.exit_code == 2
    assert "rows of 24 are long enough" in found.stderr
