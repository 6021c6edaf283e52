"""Stage two, from top to bottom in the order the data flows.

cache → loader → student → loss → optimizer → checkpoint → Hugging Face model directory. The teacher
is never loaded: what a student needs of it (embedding, head, tokenizer) lies inside the cache.

``out/`` receives ``recipe.toml``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and, at the
end, ``model/``.
"""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from cache_format.atomic import publish_directory
from cache_format.reader import Cache
from stages.device import choose_device
from stages.train_student import evaluate
from stages.train_student.batches.loader import Batch, Loader, row_order
from stages.train_student.config import TrainStudentConfig
from stages.train_student.objective.objective import Objective
from stages.train_student.objective.schedule import learning_rate, loss_weights
from stages.train_student.requirements import require_targets
from stages.train_student.student.model import DistilXLSTMForCausalLM, build_student
from stages.train_student.training import checkpoint, run_directory
from stages.train_student.training.metrics import MetricsLog
from stages.train_student.training.run_directory import RunRows

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """One report: what happened, where the run stands, and the newest figures."""

    event: Literal["step", "validation", "checkpoint", "message"]
    step: int
    num_steps: int
    tokens_done: int
    tokens_total: int
    metrics: dict[str, float] = field(default_factory=dict)
    message: str = ""


Report = Callable[[TrainProgress], None]


class NonFiniteLossError(ValueError):
    """The loss or its gradient is NaN or infinite."""


def train_student(
    config: TrainStudentConfig,
    cache: Cache,
    out: Path,
    *,
    resume: bool,
    recipe_toml: str,
    report: Report,
) -> dict[str, float]:
    """Train a student from ``cache``; returns its last validation's metrics.

    Raises ValueError where recipe, cache and ``out`` do not fit together, CacheError for a cache
    that is corrupt or still being written, and NonFiniteLossError when the loss diverges.
    """
    require_targets(config, cache)
    device = choose_device(config.device)
    rows = run_directory.prepare(out, cache, config, resume=resume, recipe_toml=recipe_toml)
    return _Run(config, cache, rows, device, out, report).train()


class _Run:
    """The state of one training run: model, optimizer, scaler and step."""

    def __init__(
        self,
        config: TrainStudentConfig,
        cache: Cache,
        rows: RunRows,
        device: torch.device,
        out: Path,
        report: Report,
    ) -> None:
        self.config, self.cache, self.rows, self.out = config, cache, rows, out
        self.device, self._report = device, report
        self.order = row_order(cache, config, rows.train)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.num_steps = config.max_steps or self.steps_per_epoch * config.num_epochs
        self.uses_sketch = max(config.beta_start, config.beta_end) > 0
        torch.manual_seed(config.seed)
        self.model = load_student(config, cache).to(self.device)  # type: ignore[arg-type]
        dtype = _PRECISIONS[config.precision]
        self.objective = Objective(
            # On a processor, products in half precision would round the logits, too.
            head_VD=self.model.lm_head.weight[: cache.spec.teacher.vocab_size].to(
                dtype if device.type == "cuda" else torch.float32
            ),
            spec=cache.spec,
            chunk=config.loss_chunk,
            dtype=dtype,
        )
        self.optimizer = _adamw(config, self.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.step = 0
        self.validation: dict[str, float] = {}

    def train(self) -> dict[str, float]:
        """Resume if there is a checkpoint, train to the last step, publish the model."""
        self._restore()
        self.model.train()
        with (
            MetricsLog(self.out, from_step=self.step) as log,
            Loader(
                self.cache,
                self.order,
                num_threads=self.config.reader_threads,
                with_sketch=self.uses_sketch,
            ) as loader,
        ):
            if self.step == 0:
                self._validate(log)
            for batch in loader.steps(self.step, self.num_steps):
                metrics = self._optimize(batch)
                self._after_step(metrics, log)
        _publish_model(self.model, self.cache, self.out / "model")
        return self.validation

    def _optimize(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        begin = time.monotonic()
        weights = loss_weights(self.config, self.step, self.steps_per_epoch)
        rate = learning_rate(self.config, self.step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        num_scored = batch.num_scored
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        for part in batch.split(self.config.batch_size):
            loss_tensor, terms = self.objective.terms(
                self.model, part.to(self.device), weights, num_scored, batch.num_rows
            )
            self.scaler.scale(loss_tensor).backward()  # type: ignore[no-untyped-call]
            sums += terms
        loss, cross_entropy, kl, frobenius = sums.tolist()
        self._require_finite(loss, "loss")
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self.config.clip_norm
        ).item()
        # A step that overflowed in fp16 is skipped by the scaler, which then halves its scale; once
        # that cannot help any more, the gradient itself is not finite.
        if not self.scaler.is_enabled() or self.scaler.get_scale() <= 1.0:
            self._require_finite(norm, "gradient norm")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "train/loss": loss,
            "train/cross_entropy": cross_entropy,
            "train/kl": kl,
            "train/frobenius": frobenius,
            "train/gradient_norm": norm,
            "schedule/alpha": weights.alpha,
            "schedule/beta": weights.beta,
            "schedule/temperature": weights.temperature,
            "schedule/learning_rate": rate,
            "speed/tokens_per_second": batch.input_ids.numel() / (time.monotonic() - begin),
        }

    def _after_step(self, metrics: dict[str, float], log: MetricsLog) -> None:
        self.step += 1
        is_last = self.step == self.num_steps
        if is_last or self.step == 1 or self.step % self.config.log_every == 0:
            log.write(self.step, metrics)
        self._tell("step", metrics)
        if is_last or self.step % self.config.validate_every == 0:
            self._validate(log)
        if is_last or self.step % self.config.checkpoint_every == 0:
            self._save()

    def _validate(self, log: MetricsLog) -> None:
        self.validation = evaluate.validate(
            self.model,
            self.objective,
            self.cache,
            num_rows=self.rows.validation,
            max_rows=self.config.validation_rows,
            batch_size=self.config.batch_size,
        )
        self._require_finite(self.validation["validation/loss"], "validation loss")
        log.write(self.step, self.validation)
        self._tell("validation", self.validation)

    def _save(self) -> None:
        trainable = {
            f"model.{name}": parameter.detach()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        tensors = trainable | checkpoint.optimizer_tensors(self.optimizer, self.model)
        path = checkpoint.save(
            self.out / "checkpoints",
            self.step,
            {name: tensor.contiguous() for name, tensor in tensors.items()}
            | checkpoint.generator_tensors(self.device),
            {
                "cache_id": self.cache.cache_id,
                "config": dataclasses.asdict(self.config),
                "scaler": self.scaler.state_dict(),
                "validation": self.validation,
            },
            self.config.keep_checkpoints,
        )
        self._tell("checkpoint", message=f"checkpoint {path}")

    def _restore(self) -> None:
        found, problems = checkpoint.load_newest(self.out / "checkpoints")
        for problem in problems:
            self._tell("message", message=problem)
        if found is None:
            if problems:
                self._tell("message", message="no checkpoint is whole: training begins anew")
            return
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in found.tensors.items():
                if name.startswith("model."):
                    parameters[name.removeprefix("model.")].copy_(tensor)
        checkpoint.restore_optimizer(self.optimizer, self.model, found.tensors)
        checkpoint.restore_generators(found.tensors, self.device)
        self.scaler.load_state_dict(found.state["scaler"])
        self.step, self.validation = found.step, found.state["validation"]
        self._tell("message", message=f"resuming from {found.path}")

    def _require_finite(self, value: float, name: str) -> None:
        if not math.isfinite(value):
            found, _ = checkpoint.load_newest(self.out / "checkpoints")
            last = f"The last good checkpoint is {found.path}." if found else "There is none yet."
            raise NonFiniteLossError(
                f"the {name} of step {self.step} is {value}. {last} Lower "
                "train_student.learning_rate, or use precision bf16 or fp32, and run again with "
                "another --out."
            )

    def _tell(
        self,
        event: Literal["step", "validation", "checkpoint", "message"],
        metrics: dict[str, float] | None = None,
        message: str = "",
    ) -> None:
        tokens_per_step = self.order.rows_per_step * self.cache.spec.sequence_length
        self._report(
            TrainProgress(
                event=event,
                step=self.step,
                num_steps=self.num_steps,
                tokens_done=self.step * tokens_per_step,
                tokens_total=self.num_steps * tokens_per_step,
                metrics=metrics or {},
                message=message,
            )
        )


def load_student(config: TrainStudentConfig, cache: Cache) -> DistilXLSTMForCausalLM:
    """A new student around the teacher's embedding and head, which lie in the cache."""
    frozen = load_file(cache.attachment("embedding.safetensors"))
    teacher = cache.spec.teacher
    return build_student(
        config,
        hidden_size=teacher.hidden_size,
        vocab_size=teacher.vocab_size,
        head_rows=teacher.head_rows,
        eos_token_id=teacher.eos_token_id,
        embedding=frozen["embedding"],
        head=frozen.get("head"),
        seed=config.seed,
    )


def _adamw(config: TrainStudentConfig, model: DistilXLSTMForCausalLM) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        fused=True,
    )


def _publish_model(model: DistilXLSTMForCausalLM, cache: Cache, target: Path) -> None:
    """``save_pretrained`` with the teacher's tokenizer beside it, published by rename."""
    if target.exists():
        return
    with publish_directory(target) as temporary:
        model.save_pretrained(temporary)
        for name in cache.attachments():
            if name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "added_tokens")):
                shutil.copyfile(cache.attachment(name), temporary / name)
