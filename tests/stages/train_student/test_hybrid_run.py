"""The hybrid student from its cache: aligned layer by layer, then distilled from those weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import cache_format
from stages.train_student.config import TrainStudentConfig
from stages.train_student.export.published_files import published_files
from stages.train_student.export.saved_student import find_checkpoint, publish_checkpoint
from stages.train_student.tracking.run_progress import TrainProgress
from stages.train_student.trainer.stopping import StoppedError
from tests.support.hybrid_runs import (
    NEW,
    align_config,
    distill_config,
    hybrid_cache,
    save_tiny_llama,
)
from tests.support.train_configs import tiny_train_config
from tests.support.train_runs import metrics, run, weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``teacher``, and ``cache`` with its weights."""
    path = tmp_path_factory.mktemp("hybrid")
    hybrid_cache(path)
    return path


@pytest.fixture(scope="module")
def cache(root: Path) -> Path:
    return root / "cache"


@pytest.fixture(scope="module")
def bare(root: Path) -> Path:
    """The same cache without the teacher's weights."""
    return hybrid_cache(root, keep_teacher_weights=False)


@pytest.fixture(scope="module")
def aligned(root: Path) -> Path:
    """An alignment of 9 steps, with checkpoints of 6 and 9."""
    run(align_config(), root / "cache", root / "aligned")
    return root / "aligned"


@pytest.fixture(scope="module")
def distilled(root: Path, aligned: Path) -> Path:
    """A distillation of 3 steps that began with the weights of ``aligned``."""
    run(distill_config(max_steps=3), root / "cache", root / "distilled", init=aligned)
    return root / "distilled"


def is_new(name: str) -> bool:
    return any(f".{part}." in name for part in NEW)


def values(out: Path, key: str) -> list[float]:
    return [row[key] for row in metrics(out) if key in row]


def assert_equal_runs(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    expected = weights(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, expected[name]), name


class TestAlignment:
    def test_layers_come_nearer_to_the_teachers(self, aligned: Path) -> None:
        before, *_, after = values(aligned, "validation/alignment")
        assert after < 0.96 * before

    def test_only_new_weights_are_trained_and_saved(self, root: Path, aligned: Path) -> None:
        teacher = load_file(root / "teacher/model.safetensors")
        for name, tensor in weights(aligned).items():
            assert (name in teacher) is not is_new(name)
            assert is_new(name) or torch.equal(tensor, teacher[name]), name
        saved = load_file(aligned / "checkpoints/step-0000009/tensors.safetensors")
        assert all(is_new(name) for name in saved)

    def test_no_vocabulary_term_is_reported_in_training(self, aligned: Path) -> None:
        trained = next(row for row in metrics(aligned) if "train/loss" in row)
        names = {name for name in trained if name.startswith(("train/", "schedule/"))}
        assert names == {
            *("train/loss", "train/alignment", "train/gradient_norm"),
            "schedule/learning_rate",
        }
        assert trained["train/loss"] == pytest.approx(3 * trained["train/alignment"])

    def test_validation_reports_layers_beside_loss_and_kl(self, aligned: Path) -> None:
        found = metrics(aligned)[-1]
        layers = [found[f"validation/alignment_layer_{index:02}"] for index in range(3)]
        assert found["validation/alignment"] == pytest.approx(sum(layers) / 3)
        gates = [found[f"validation/output_gate_layer_{index:02}"] for index in range(3)]
        assert min(gates) < found["validation/mlstm_share"] < max(gates) + 0.05
        assert found["validation/loss"] > found["validation/teacher_loss"]
        assert found["validation/kl"] > 0

    def test_micro_batches_add_up_to_the_step(self, cache: Path, tmp_path: Path) -> None:
        found = []
        for batch_size, name in ((4, "one"), (1, "four")):
            sizes = {"batch_size": batch_size, "gradient_accumulation_steps": 4 // batch_size}
            run(align_config(max_steps=3, **sizes), cache, tmp_path / name)
            found.append(values(tmp_path / name, "train/loss"))
        assert found[0] == pytest.approx(found[1], rel=1e-5)

    def test_a_stopped_run_resumes_bitwise(
        self, cache: Path, aligned: Path, tmp_path: Path
    ) -> None:
        out, last = tmp_path / "run", 0

        def report(progress: TrainProgress) -> None:
            nonlocal last
            last = progress.step

        with pytest.raises(StoppedError):
            run(align_config(), cache, out, report=report, stop=lambda: last >= 5)
        assert not (out / "model").exists()
        run(align_config(), cache, out, resume=True)
        assert_equal_runs(out, aligned)

    def test_half_precision_is_close(self, cache: Path, aligned: Path, tmp_path: Path) -> None:
        run(align_config(max_steps=3, precision="bf16"), cache, tmp_path / "run")
        losses = values(tmp_path / "run", "train/loss")
        assert losses == pytest.approx(values(aligned, "train/loss")[:3], rel=0.02)
        assert losses != values(aligned, "train/loss")[:3]

    @pytest.mark.parametrize(
        ("pattern", "compared", "gated"),
        [("attention,hybrid,window", [1], [1]), ("window,mlstm,hybrid", [1, 2], [2])],
    )
    def test_layers_without_an_mlstm_are_not_compared(
        self, cache: Path, tmp_path: Path, pattern: str, compared: list[int], gated: list[int]
    ) -> None:
        run(align_config(max_steps=1, pattern=pattern), cache, tmp_path / "run")
        found = metrics(tmp_path / "run")[-1]
        for key, indices in (("alignment", compared), ("output_gate", gated)):
            names = {name for name in found if name.startswith(f"validation/{key}_layer")}
            assert names == {f"validation/{key}_layer_{index:02}" for index in indices}


class TestDistillation:
    def test_it_begins_where_the_alignment_ended(self, aligned: Path, distilled: Path) -> None:
        for key in ("loss", "kl", "mlstm_share"):
            begin = values(distilled, f"validation/{key}")[0]
            assert begin == values(aligned, f"validation/{key}")[-1]

    def test_all_weights_are_trained(self, root: Path, distilled: Path) -> None:
        teacher = load_file(root / "teacher/model.safetensors")
        found = weights(distilled)
        assert found.keys() >= teacher.keys()
        for name, tensor in teacher.items():
            assert not torch.equal(found[name], tensor), name

    def test_a_changed_copy_is_no_teacher_to_compare_with(self, distilled: Path) -> None:
        assert not any("alignment" in name for row in metrics(distilled) for name in row)

    def test_it_resumes_without_the_initial_weights(
        self, cache: Path, distilled: Path, tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(distilled, tmp_path / "run"))
        with pytest.raises(ValueError, match="initial_weights_sha256"):
            run(distill_config(max_steps=3), cache, out, resume=True, init=distilled)
        run(distill_config(max_steps=3), cache, out, resume=True)
        assert_equal_runs(out, distilled)

    def test_a_run_that_broke_off_resumes_bitwise(self, cache: Path, tmp_path: Path) -> None:
        def report(progress: TrainProgress) -> None:
            if progress.step == 5:
                raise OSError("killed")

        whole, broken = tmp_path / "whole", tmp_path / "broken"
        config = distill_config(max_steps=6, mixer_learning_rate=1e-2, precision="bf16")
        run(config, cache, whole)
        with pytest.raises(OSError, match="killed"):
            run(config, cache, broken, report=report)
        run(config, cache, broken, resume=True)
        assert_equal_runs(broken, whole)

    @pytest.mark.parametrize("fixture", ["aligned", "distilled"])
    def test_a_checkpoint_can_be_published_as_the_model_was(
        self, fixture: str, cache: Path, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        out = request.getfixturevalue(fixture)
        checkpoint, _ = find_checkpoint(out)
        publish_checkpoint(checkpoint, cache_format.open(cache), tmp_path / "model")
        expected = weights(out)
        found = weights(tmp_path)
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
        assert published_files(tmp_path / "model")

    def test_the_mixers_have_a_learning_rate_of_their_own(
        self, cache: Path, distilled: Path, aligned: Path, tmp_path: Path
    ) -> None:
        """AdamW's first step moves each weight by its rate, whatever the gradient's size."""
        out = tmp_path / "run"
        config = distill_config(
            max_steps=1, mixer_learning_rate=1e-2, weight_decay=0.0, learning_rate=1e-4
        )
        run(config, cache, out, init=aligned)
        before, after = weights(aligned), weights(out)
        for name, tensor in after.items():
            step = (tensor - before[name]).abs().max()
            assert step == pytest.approx(1e-2 if is_new(name) else 1e-4, rel=0.02), name
        (row,) = [row for row in metrics(out) if "train/loss" in row]
        assert row["schedule/learning_rate"] == 1e-4
        assert row["schedule/mixer_learning_rate"] == 1e-2

    def test_a_student_that_has_trained_more_cannot_begin_one_that_trains_less(
        self, cache: Path, distilled: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=r"trained weights, such as .*, are frozen in this"):
            run(align_config(), cache, tmp_path / "run", init=distilled)

    def test_another_window_is_another_architecture(
        self, cache: Path, aligned: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="window was 6 and is 7"):
            run(distill_config(window=7), cache, tmp_path / "run", init=aligned)

    def test_a_checkpoint_begins_a_distillation_as_its_model_does(
        self, cache: Path, aligned: Path, distilled: Path, tmp_path: Path
    ) -> None:
        step = aligned / "checkpoints/step-0000009"
        run(distill_config(max_steps=3), cache, tmp_path / "run", init=step)
        assert_equal_runs(tmp_path / "run", distilled)


class TestTeachersWeights:
    def test_a_directory_serves_as_well_as_the_cache(
        self, root: Path, bare: Path, aligned: Path, tmp_path: Path
    ) -> None:
        run(align_config(), bare, tmp_path / "run", teacher=root / "teacher")
        assert_equal_runs(tmp_path / "run", aligned)

    def test_a_run_may_find_them_elsewhere_when_it_is_resumed(
        self, cache: Path, root: Path, aligned: Path, tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(aligned, tmp_path / "run"))
        run(align_config(), cache, out, resume=True, teacher=root / "teacher")
        assert_equal_runs(out, aligned)

    def test_without_either_the_next_step_is_named(self, bare: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"holds no weights of its teacher.*keep_teacher_we"):
            run(align_config(), bare, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_another_teacher_is_refused_by_both_hashes(self, bare: Path, tmp_path: Path) -> None:
        other = save_tiny_llama(tmp_path / "other", seed=1)
        expected = cache_format.open(bare).spec.teacher.weights_sha256
        with pytest.raises(ValueError, match=f"expected weights_sha256 {expected}, found [0-9a-f]"):
            run(align_config(), bare, tmp_path / "run", teacher=other)

    def test_a_changed_configuration_is_another_teacher(
        self, root: Path, bare: Path, tmp_path: Path
    ) -> None:
        other = Path(shutil.copytree(root / "teacher", tmp_path / "other"))
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
        with pytest.raises(ValueError, match="not the one that"):
            run(align_config(), bare, tmp_path / "run", teacher=other)

    def test_a_directory_without_weights_is_named(self, bare: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"expected a directory with config.json and safeten"):
            run(align_config(), bare, tmp_path / "run", teacher=tmp_path)

    def test_a_student_without_its_teacher_takes_none(
        self, tiny_cache: Path, root: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="takes no more of its teacher than the cache holds"):
            run(tiny_train_config(), tiny_cache, tmp_path / "run", teacher=root / "teacher")


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"objective": "alignment"}, 'objective: must be "distillation" for students of kind'),
            ({"mixer_learning_rate": 1e-3}, "mixer_learning_rate: must be none for students"),
            ({"min_learning_rate": 3e-4}, "min_learning_rate: must be from 0 to the peak, 0.0002"),
            ({"min_learning_rate": -1e-9}, "min_learning_rate: must be from 0"),
            (
                {"min_learning_rate": 1e-5, "learning_rate_schedule": "constant"},
                "min_learning_rate: must be 0 with learning_rate_schedule constant",
            ),
        ],
    )
    def test_impossible_settings_are_refused(
        self, settings: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=f"^{message}"):
            TrainStudentConfig(**settings)  # type: ignore[arg-type]

    def test_the_least_rate_may_be_the_peak_itself(self) -> None:
        assert TrainStudentConfig(min_learning_rate=2e-4).min_learning_rate == 2e-4
        with pytest.raises(ValueError, match="to the peak, 1e-05"):
            distill_config(mixer_learning_rate=1e-5, min_learning_rate=1e-4)

    @pytest.mark.parametrize("trained", ["mixers", "all", "lora"])
    def test_an_alignment_leaves_the_copies_alone(self, trained: str) -> None:
        with pytest.raises(
            ValueError, match=r'^objective: must be "distillation" unless student\.'
        ):
            align_config(trained=trained)

    def test_a_pattern_without_new_weights_cannot_train_them_alone(self) -> None:
        with pytest.raises(
            ValueError, match=r'^trained: must be "mixers", "all" or "lora" with the p'
        ):
            align_config(pattern="window")


@pytest.mark.parametrize(
    ("changes", "is_warned"),
    [
        ({"window": 5000}, True),
        ({"window": 32}, True),
        ({"window": 31}, False),
        ({"window": 32, "pattern": "mlstm"}, False),
    ],
)
def test_a_window_as_long_as_a_row_is_warned_of(
    cache: Path, tmp_path: Path, changes: dict[str, Any], is_warned: bool
) -> None:
    heard: list[TrainProgress] = []
    run(align_config(max_steps=1, **changes), cache, tmp_path / "run", report=heard.append)
    warnings = [each.message for each in heard if each.event == "warning"]
    assert any("every row of 32 positions fits into it" in each for each in warnings) is is_warned
