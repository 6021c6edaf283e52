"""Stage two from top to bottom, in the order in which the data flows.

cache → loader → student → loss → optimizer → checkpoint → Hugging Face model directory. The teacher
is not loaded: the cache contains its embedding, head and tokenizer, and all its weights if students
are to hold them.

``out/`` receives ``recipe.toml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and, at the
end, ``model/``. Of several processes, only the first one writes.
"""

import dataclasses
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from cache_format.reader import Cache
from stages.recipe_table import table_toml
from stages.train_student.config import TrainStudentConfig
from stages.train_student.data.mixture import CacheMixture, mixture_of
from stages.train_student.data.teacher_weights import checked_teacher
from stages.train_student.distributed.context import distributed_context
from stages.train_student.losses.teacher_signal import LoadTeacher
from stages.train_student.new_student import load_student
from stages.train_student.preflight import require_caches
from stages.train_student.students.required_packages import require_packages
from stages.train_student.tracking.environment import run_environment
from stages.train_student.tracking.run_progress import Report
from stages.train_student.tracking.trackers import require_trackers
from stages.train_student.trainer import run_directory
from stages.train_student.trainer.initial_weights import load_initial_weights
from stages.train_student.trainer.precision import choose_precision
from stages.train_student.trainer.rank_slice import require_processes
from stages.train_student.trainer.stopping import Stopping, StopRequest
from stages.train_student.trainer.training_run import TrainingRun


def train_student(
    config: TrainStudentConfig,
    cache: Cache | CacheMixture,
    out: Path,
    *,
    resume: bool = False,
    recipe_toml: str | None = None,
    report: Report = lambda _: None,
    stop: StopRequest | None = None,
    load_teacher: LoadTeacher | None = None,
    init: Path | None = None,
    teacher: Path | None = None,
    extend_to: int | None = None,
) -> dict[str, float]:
    """Train a student from ``cache``; returns the metrics of the last validation.

    ``out`` is a new directory or, with ``resume``, that of the same run. ``report`` is called after
    every step, validation and checkpoint. ``recipe_toml`` is stored as ``recipe.toml``; the default
    is ``config`` as TOML. The student is saved to ``out/model``, a Hugging Face model directory.

    >>> from pathlib import Path
    >>> import cache_format
    >>> from stages.train_student import TrainStudentConfig, student_settings, train_student
    >>> config = TrainStudentConfig(
    ...     student=student_settings(
    ...         "distil_xlstm", num_blocks=2, slstm_at=(0,), num_heads=4, qkv_block_size=4
    ...     ),
    ...     batch_size=4,
    ...     gradient_accumulation_steps=1,
    ...     max_steps=2,
    ...     precision="fp32",
    ...     compile="off",
    ...     report_to=(),
    ... )
    >>> cache = cache_format.open("my-cache")  # that stage one wrote
    >>> metrics = train_student(config, cache, Path("my-run"))
    >>> metrics["validation/loss"] > 0
    True
    >>> Path("my-run/model/config.json").is_file()
    True

    Several caches of one teacher are given as a mixture, ``mix([one, other], [0.4, 0.6])``: rows
    are drawn from each in proportion to its weight, see ``data.mixed_sampler``.

    With ``load_teacher``, the loss uses that teacher's full distribution on the same rows, for
    comparison. A new run begins from the weights of the student at ``init``, if given; a resumed
    run continues to the step ``extend_to``, if given. A kind of student that
    begins with all of its teacher's weights takes them from the cache or, if it holds none, from
    the model directory ``teacher``, whose hash must be the cache's.
    Under torchrun, all processes train one student.

    When ``stop`` is requested in any process, a checkpoint of the last finished step is written and
    StoppedError is raised; a validation that was due at that step is run first on resume. A single
    process abandons the step in progress; several processes stop together between steps, or between
    batches of validation. Before there is a run to resume, StopNow is raised.

    Raises ValueError if recipe, cache and ``out`` do not match, CacheError if the cache is corrupt
    or still being written, and NonFiniteLossError if the loss diverges.
    """
    if recipe_toml is None:
        recipe_toml = table_toml("train_student", config)
    is_online = load_teacher is not None
    mixture = mixture_of(cache)
    require_caches(config, mixture, teacher, online=is_online)
    require_trackers(config.report_to)
    require_packages(config.student)
    with distributed_context(config.device) as (context, device), ExitStack() as stack:
        require_processes(config, context.num_ranks)
        choice = context.run_on_rank0(lambda: choose_precision(config.precision, out, device))
        config = dataclasses.replace(config, precision=choice.precision)
        stopping = Stopping(stop or StopRequest(), context)
        context.run_on_rank0(lambda: stack.enter_context(run_directory.held(out)))
        with stopping.interruptible():
            whole_teacher = checked_teacher(teacher, mixture.reference) if teacher else None
            initial = load_initial_weights(init, config, mixture.reference) if init else None
        prepare = partial(run_directory.prepare, resume=resume, recipe_toml=recipe_toml)
        environment = run_environment(device, context.num_ranks)
        prepare = partial(prepare, online=is_online, initial=initial, environment=environment)
        record = context.run_on_rank0(partial(prepare, out, mixture, config))
        with stopping.interruptible():
            online = load_teacher(device) if load_teacher else None
            make_student = partial(load_student, config, mixture, whole_teacher)
            run = TrainingRun(
                *(config, mixture, record, context, device, out, report, online, make_student)
            )
            run.restore(initial)
        del initial, prepare  # their weights are in the model now
        if extend_to is not None:
            run.extend(extend_to)
        return run.train(stopping, choice.sentence)
