"""A merged student's directory: complete, loadable, with its ancestry; or nothing at all."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.model_files.weight_files import INDEX
from stages.train_student.export.published_files import is_complete, published_files
from stages.train_student.export.stored_student import load_stored_student
from stages.train_student.merging import publish_merged as module
from stages.train_student.merging.parents import Parent, read_parent
from stages.train_student.merging.publish_merged import publish_merged
from tests.support import ROOT
from tests.support.experts import change_weights, make_expert, tensors_of
from tests.support.hostile import change_json
from tests.support.students import publish_student


@pytest.fixture(scope="module")
def origin(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_student(tiny_cache, tmp_path_factory.mktemp("origin") / "run")


@pytest.fixture
def parents(origin: Path, tmp_path: Path) -> list[Parent]:
    runs = [make_expert(origin, tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2))]
    return [read_parent(run.name, run / "model") for run in runs]


def test_the_result_is_an_ordinary_student(
    origin: Path, parents: list[Parent], tmp_path: Path
) -> None:
    change_json(parents[0].directory / "config.json", {"num_steps": 7, "custom_pipelines": {}})
    parents[0] = read_parent("a", parents[0].directory)
    target = tmp_path / "merged/model"
    publish_merged(parents, (0.25, 0.75), target, "The weights were given.")
    assert is_complete(target)
    expected = {path.name for path in (origin / "model").iterdir()} | {"SHA256SUMS"}
    assert {path.name for path in target.iterdir()} == expected == set(published_files(target))
    student = load_stored_student(target)
    one, other = (tensors_of(parent.directory.parent) for parent in parents)
    for name, tensor in tensors_of(target.parent).items():
        assert torch.equal(student.state_dict()[name], tensor)
        assert torch.allclose(tensor, 0.25 * one[name] + 0.75 * other[name], atol=1e-6)
    fields = json.loads((target / "config.json").read_text())
    assert (fields["cache_id"], fields["num_steps"]) == (None, None)
    assert "custom_pipelines" not in fields
    assert [
        (each["name"], each["weight"], each["num_steps"]) for each in fields["merged_from"]
    ] == [
        ("a", 0.25, 7),
        ("b", 0.75, None),
    ]
    assert all(len(each["weights_sha256"]) == 64 for each in fields["merged_from"])
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# A merge of 2 xLSTM students of a model not on the Hub" in card
    assert f"| a | 0.25 | 7 | {parents[0].config.cache_id} | " in card
    assert "The weights were given." in card


def test_a_merge_can_be_merged_again(parents: list[Parent], tmp_path: Path) -> None:
    publish_merged(parents, (0.5, 0.5), tmp_path / "merged", "")
    again = [read_parent("merged", tmp_path / "merged"), parents[0]]
    publish_merged(again, (0.5, 0.5), tmp_path / "again", "")
    fields = json.loads((tmp_path / "again/config.json").read_text())
    assert [each["name"] for each in fields["merged_from"]] == ["merged", "a"]


def test_weights_in_several_files_stay_in_as_many(parents: list[Parent], tmp_path: Path) -> None:
    """The second parent keeps its one file: how weights are spread over files is no difference."""
    run = parents[0].directory.parent
    tensors = tensors_of(run)
    halves = [dict(list(tensors.items())[part::2]) for part in range(2)]
    files = [f"model-0000{part + 1}-of-00002.safetensors" for part in range(2)]
    for file, half in zip(files, halves, strict=True):
        save_file(half, run / "model" / file, metadata={"format": "pt"})
    names = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (run / "model" / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (run / "model/model.safetensors").unlink()
    spread = [read_parent("a", run / "model"), parents[1]]
    publish_merged(spread, (0.5, 0.5), tmp_path / "merged", "")
    assert {path.name for path in (tmp_path / "merged").glob("*.safetensors")} == set(files)
    merged = load_stored_student(tmp_path / "merged").state_dict()
    other = tensors_of(parents[1].directory.parent)
    for name, tensor in tensors.items():
        assert torch.allclose(merged[name], 0.5 * tensor + 0.5 * other[name], atol=1e-6)


@pytest.mark.parametrize(
    "ancestry",
    [3, ["a"], [{}], [{"name": "a", "weight": 2}], [{"auto_map": "x"}], {"name": "a"}],
)
def test_an_ancestry_that_cannot_be_is_refused(
    parents: list[Parent], tmp_path: Path, ancestry: object
) -> None:
    publish_merged(parents, (0.5, 0.5), tmp_path / "merged", "")
    change_json(tmp_path / "merged/config.json", {"merged_from": ancestry})
    with pytest.raises(ValueError, match="merged_from: impossible value"):
        load_stored_student(tmp_path / "merged")


def test_what_is_there_is_not_replaced(parents: list[Parent], tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/mine.txt").touch()
    with pytest.raises(FileExistsError):
        publish_merged(parents, (0.5, 0.5), tmp_path / "merged", "")
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def test_a_failure_in_the_middle_leaves_nothing(parents: list[Parent], tmp_path: Path) -> None:
    """The last weight of the file is no number: all before it are written by then."""
    before = sorted(path.name for path in tmp_path.iterdir())
    run = parents[1].directory.parent

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[max(tensors)].view(-1)[0] = float("nan")

    change_weights(run, spoil)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        publish_merged(parents, (0.5, 0.5), tmp_path / "merged", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


_KILLED = """
import os, signal, sys
from pathlib import Path
from stages.train_student.merging import publish_merged as module
from stages.train_student.merging.parents import read_parent

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

module.write_checksums = kill  # the last step before the directory gets its name
a, b, out = map(Path, sys.argv[1:])
module.publish_merged([read_parent("a", a), read_parent("b", b)], (0.5, 0.5), out, "")
"""


def test_killed_at_the_last_step_it_leaves_nothing_that_the_next_run_keeps(
    parents: list[Parent], tmp_path: Path
) -> None:
    assert hasattr(module, "write_checksums")
    places = [parent.directory for parent in parents]
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, *map(str, places), str(tmp_path / "merged")],
        cwd=ROOT,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "merged").exists()
    assert len(list(tmp_path.glob(".tmp-merged-*"))) == 1
    publish_merged(parents, (0.5, 0.5), tmp_path / "merged", "")
    assert not list(tmp_path.glob(".tmp-*"))
    assert is_complete(tmp_path / "merged")
