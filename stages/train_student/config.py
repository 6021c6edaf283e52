"""The settings of stage two: the ``[train_student]`` table of a recipe.

Imports nothing heavy, so that a wrong recipe is refused at once. What the cache already holds
(teacher, vocabulary, sequence length, sketch) is never asked for again.
"""

from dataclasses import dataclass, field
from typing import Literal

from cache_format.metadata.int64 import require_int64
from stages.train_student.students.registry import DEFAULT_KIND, SETTINGS, StudentSettings


@dataclass(frozen=True, kw_only=True)
class TrainStudentConfig:
    """Settings of stage two. The defaults are the paper's (arXiv 2503.18565)."""

    student: StudentSettings = field(default_factory=SETTINGS[DEFAULT_KIND])
    """What is trained: the table ``[train_student.student]``, whose ``kind`` decides its keys."""

    objective: Literal["distillation", "alignment"] = "distillation"
    """What the loss compares: the student's predictions with labels and teacher, or each of its
    layers with the teacher's layer it replaces. Alignment trains what is new in a student that
    holds its teacher, reads token ids alone, and uses none of α, β, T, ``epoch_*``, ``loss_chunk``
    and ``sampled_softmax_size`` but in validation."""

    alpha_start: float = 0.8
    """Weight α of the KL term at step 0. With both α and β at 0, labels alone are used."""
    alpha_end: float = 0.5
    """What α is annealed to."""
    temperature_start: float = 2.0
    """Temperature T of the KL term at step 0."""
    temperature_end: float = 1.0
    """What T is annealed to."""
    beta_start: float = 0.1
    """Weight β of the Frobenius term at step 0."""
    beta_end: float = 0.1
    """What β is annealed to."""
    state_mse_weight: float = 0.0
    """Weight of the mean square between the student's states before the head and the teacher's, of
    a cache that holds these (``hidden``, ``top_k+hidden``). What it, α and β leave is the labels'.
    """
    layer_mse_weight: float = 0.0
    """Weight of the mean square between single layers of a student that holds its teacher and the
    teacher's, relative to the teacher's, of a cache that holds layers each by itself
    (``hidden_states`` is ``each:…``). What it and the other weights leave is the labels'."""
    epoch_rule: Literal["subtract", "scale_restart"] = "subtract"
    """After an epoch: lower the start values by ``epoch_delta`` (the paper), or scale them by
    1 − ``epoch_delta`` and restart the annealing (the authors' code)."""
    epoch_delta: float = 0.05
    """Δ of the epoch rule, for α and T alike."""

    learning_rate: float = 2e-4
    """Peak learning rate of AdamW."""
    mixer_learning_rate: float | None = None
    """Peak learning rate of what is new in a student that holds its teacher; absent: the same."""
    learning_rate_schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: a cosine down to ``min_learning_rate``, or the peak to the end."""
    min_learning_rate: float = 0.0
    """Where the cosine ends, for all parameters alike."""
    warmup_ratio: float = 0.1
    """Share of all steps over which the learning rate rises from 0."""
    adam_beta1: float = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: float = 0.999
    """Decay of AdamW's second moment."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, on matrices only."""
    max_grad_norm: float = 1.0
    """Largest gradient norm."""
    batch_size: int = 8
    """Sequences in one forward pass. When memory runs out, lower it and raise
    ``gradient_accumulation_steps``."""
    gradient_accumulation_steps: int = 4
    """Forward passes in one optimizer step, all processes taken together."""
    num_train_epochs: int = 10
    """Passes over the cache's training rows; of several caches, times as many rows as all have."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, and fit the schedules to them; absent: all epochs."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast precision; fp16 comes with a gradient scaler. Gates and sums stay in fp32. ``auto``
    is that of the run, if it is resumed; else fp16 on GPUs (the paper's), bf16 on CPUs that have
    instructions for it, and fp32 on others, which are ten times as slow in half precision."""
    loss_chunk: int = 256
    """Positions whose full logits exist at once; lower it when memory runs out."""
    sampled_softmax_size: int | None = None
    """Columns of a frozen head, drawn by frequency for every chunk, that stand for all those which
    its labels and kept ids do not name: a fraction of the time, for noise in the gradient (``python
    -m benchmarks sampled-softmax``); absent: all. A GPU reads what is named by several positions of
    ``loss_chunk`` several times. Where that comes to more than all columns, and in validation, all
    are read once."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the loss: ``auto`` where a compiler is found. Speed only."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What more than one process (torchrun) shares: gradients, or weights and moments as well."""
    device: str = "auto"
    """``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``."""
    seed: int = 0
    """Seed of the weights, the dropout and the order of the rows."""
    shuffle_shards: int | None = None
    """Shards of a cache whose rows are mixed at a time, drawn anew every pass; absent: all. A cache
    at a URL that is larger than its local copies may be needs a number."""
    reader_threads: int = 2
    """Threads that read the cache ahead of the training, in each process."""

    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Who is told the figures, beside ``metrics.jsonl``."""
    logging_steps: int = 10
    """Optimizer steps between two lines of ``metrics.jsonl``."""
    eval_steps: int = 2000
    """Optimizer steps between two validations; the last step is always validated."""
    validation_rows: int = 256
    """The most rows of the validation split that a validation reads, of each cache."""
    save_steps: int = 2000
    """Optimizer steps between two checkpoints; the last step always gets one."""
    save_total_limit: int = 2
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        for key in (
            *(
                "batch_size",
                "gradient_accumulation_steps",
                "num_train_epochs",
                "loss_chunk",
                "reader_threads",
                "logging_steps",
            ),
            *("eval_steps", "validation_rows", "save_steps", "save_total_limit"),
        ):
            _require(getattr(self, key) >= 1, key, "1 or more")
        for key in ("max_steps", "shuffle_shards", "sampled_softmax_size"):
            value = getattr(self, key)
            _require(value is None or value >= 1, key, "1 or more")
        _require(
            self.sampled_softmax_size is None or not self.student.train_head,
            "sampled_softmax_size",
            "none if student.train_head is true, because training the head needs all of its "
            "columns",
        )
        _require(len(set(self.report_to)) == len(self.report_to), "report_to", "each named once")
        for key in (
            *("alpha_start", "alpha_end", "beta_start", "beta_end"),
            *("state_mse_weight", "layer_mse_weight", "epoch_delta"),
        ):
            _require(0.0 <= getattr(self, key) <= 1.0, key, "from 0 to 1")
        _require(
            self.layer_mse_weight == 0.0 or self.student.holds_teacher,
            "layer_mse_weight",
            f'0 for students of kind "{self.student.kind}", whose layers are not their teacher\'s',
        )
        self._require_objective()
        others = max(self.beta_start, self.beta_end)
        formula = "1 − β"
        for key in ("state_mse_weight", "layer_mse_weight"):
            if weight := getattr(self, key):
                others, formula = others + weight, f"{formula} − {key}"
        for key in ("alpha_start", "alpha_end"):
            at_most = f"at most {formula} = {1 - others:g}, or the labels' weight would be negative"
            _require(getattr(self, key) + others <= 1.0 + 1e-9, key, at_most)
        for key in ("temperature_start", "temperature_end"):
            _require(1.0 <= getattr(self, key) <= 8.0, key, "from 1 to 8")
        for name in ("alpha", "temperature"):
            _require(
                self.epoch_rule == "subtract"
                or getattr(self, f"{name}_start") >= getattr(self, f"{name}_end"),
                f"{name}_start",
                f"at least {name}_end under the epoch rule scale_restart, which only decreases it",
            )
        self._require_learning_rates()
        _require(self.max_grad_norm > 0.0, "max_grad_norm", "above 0")
        for key in ("warmup_ratio", "adam_beta1", "adam_beta2"):
            _require(0.0 <= getattr(self, key) < 1.0, key, "at least 0 and below 1")
        _require(self.weight_decay >= 0.0, "weight_decay", "0 or more")
        _require(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 − 1")
        require_int64(vars(self))

    def _require_objective(self) -> None:
        if self.objective != "alignment":
            return
        for key in ("state_mse_weight", "layer_mse_weight"):
            _require(
                getattr(self, key) == 0.0,
                key,
                "0 with the objective alignment, which reads token ids alone",
            )
        _require(
            self.student.holds_teacher,
            "objective",
            f'"distillation" for students of kind "{self.student.kind}", none of whose layers '
            "stands in the place of a teacher's",
        )
        _require(
            self.student.trains_new_alone,
            "objective",
            '"distillation" unless student.trained is "new": an alignment compares with the '
            "student's copies of its teacher's weights, which it must leave as they are",
        )

    def _require_learning_rates(self) -> None:
        _require(self.learning_rate > 0.0, "learning_rate", "above 0")
        if self.mixer_learning_rate is not None:
            _require(self.mixer_learning_rate > 0.0, "mixer_learning_rate", "above 0")
            _require(
                self.student.holds_teacher,
                "mixer_learning_rate",
                f'none for students of kind "{self.student.kind}", which have one learning rate',
            )
        lowest = min(self.learning_rate, self.mixer_learning_rate or self.learning_rate)
        _require(
            0.0 <= self.min_learning_rate <= lowest,
            "min_learning_rate",
            f"from 0 to the peak, {lowest:g}",
        )
        _require(
            self.learning_rate_schedule == "cosine" or self.min_learning_rate == 0.0,
            "min_learning_rate",
            "0 with learning_rate_schedule constant, which does not fall",
        )


def _require(holds: bool, key: str, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{key}: must be {allowed}")
