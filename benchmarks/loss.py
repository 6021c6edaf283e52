"""The student's loss beside the same written out in PyTorch, beside labels alone, beside others'.

Every contender takes the same random hidden states through the same frozen head, forward and
backward. ``with_moments`` is ``ours`` for a cache that holds the tail's moments in ``--moment-dim``
directions. ``dense`` has the logits of all positions, two log_softmax and autograd; ``ours`` and
``labels_only`` are this project's, with and without KL. cut-cross-entropy's (cross-entropy alone)
and Liger's (Jensen-Shannon at β = 0, which is the forward KL, with the teacher's own hidden states
and head, and always the student's head's gradient) are measured where they are installed.

Runs alternate, a ratio is that of two of the same round, and figures are medians. On a processor
the ratios of its own seconds stand beside those of the clock's, which others' work disturbs. Peaks
are each of a process of its own, above what it held after its inputs and a first small run.
"""

import gc
import importlib
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.progress import Done, Progress
from benchmarks.quick import quick_option, show

if TYPE_CHECKING:
    import torch

    from stages.compute.compiling import Mode
    from stages.train_student.data.targets.sparse_targets import SparseTargets
    from stages.train_student.data.targets.tail_moment import TailMoments

NODES = (0.5, 0.625, 0.75, 0.875, 1.0)
WEIGHTING = (0.3, 0.7, 1.5)
OURS = ("dense", "ours", "labels_only", "with_moments")
PEERS = ("cut_cross_entropy", "liger")
_FEW = 8  # positions of a run that is not measured
_CLEAR_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured at."""

    tokens: int
    vocabulary: int
    width: int
    top_k: int
    chunk: int
    moment_dim: int
    precision: str
    device: str
    compile: "Mode" = "auto"


@dataclass(frozen=True)
class Inputs:
    """N positions of a student, and of a teacher as the cache keeps one."""

    hidden_ND: "torch.Tensor"
    head_VD: "torch.Tensor"
    labels_N: "torch.Tensor"
    targets: "SparseTargets"
    with_moments: "SparseTargets"

    def first(self, count: int) -> "Inputs":
        """The first ``count`` positions."""
        hidden_ND = self.hidden_ND[:count].detach().requires_grad_()
        both = (targets.chunk(0, count) for targets in (self.targets, self.with_moments))
        return Inputs(hidden_ND, self.head_VD, self.labels_N[:count], *both)


@click.command("loss", help=__doc__)
@quick_option(
    tokens=256,
    vocabulary=32_768,
    width=256,
    chunk=128,
    compile="off",
    repeats=2,
    peers=False,
    has_peaks=False,
)
@click.option("--tokens", type=int, default=2048, show_default=True)
@click.option("--vocabulary", type=int, default=151_936, show_default=True)
@click.option("--width", type=int, default=512, show_default=True)
@click.option("--top-k", type=int, default=64, show_default=True)
@click.option("--chunk", type=int, default=256, show_default=True)
@click.option("--moment-dim", type=int, default=16, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--compile", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True
)
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option("--peers/--no-peers", default=True, show_default=True, help="Others' losses, too.")
@click.option("--peaks/--no-peaks", "has_peaks", default=True, show_default=True, help="Memory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def loss(repeats: int, peers: bool, has_peaks: bool, as_json: bool, **size: Any) -> None:
    others = PEERS if peers else ()
    show(_figures(others, Size(**size), repeats, has_peaks), as_json)


def _figures(others: Sequence[str], size: Size, repeats: int, has_peaks: bool) -> dict[str, Any]:
    reasons, peaks = {}, {}
    num_processes = len(others) + (len(OURS) + len(others)) * has_peaks
    with Progress("loss, memory", num_processes, unit=" processes") as progress:
        for name in others:
            if reason := _in_new_process(_obstacle, name, size):
                reasons[name] = reason
            progress.done(f"{name} tried")
        able = [name for name in (*OURS, *others) if name not in reasons]
        for name in able if has_peaks else ():
            peaks[name] = _in_new_process(_peak_bytes, name, size)
            progress.done(name)
    clock, cpu = _in_new_process(_seconds, able, size, repeats)
    figures: dict[str, Any] = {}
    if has_peaks:
        ratio = peaks["ours"] / max(1, peaks["dense"])
        figures["peak_bytes_ratio_to_dense"] = round(ratio, 4)
    figures |= {
        "time_ratio_to_dense": _ratio(clock, "dense"),
        "kl_time_ratio_to_labels_only": _ratio(clock, "labels_only"),
        "time_ratio_to_with_moments": _ratio(clock, "with_moments"),
    }
    if size.device == "cpu":
        figures["cpu_time_ratio_to_dense"] = _ratio(cpu, "dense")
        figures["kl_cpu_time_ratio_to_labels_only"] = _ratio(cpu, "labels_only")
        figures["cpu_time_ratio_to_with_moments"] = _ratio(cpu, "with_moments")
    figures |= {f"{name}_peak_mib": round(peak / 2**20) for name, peak in peaks.items()}
    for name in able:
        figures[f"{name}_seconds"] = round(statistics.median(clock[name]), 4)
    return figures | {f"{name}_not_run": reason for name, reason in reasons.items()}


def _ratio(seconds: dict[str, list[float]], to: str) -> float:
    pairs = zip(seconds["ours"], seconds[to], strict=True)
    return round(statistics.median(ours / other for ours, other in pairs), 3)


def _in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _obstacle(name: str, size: Size) -> str:
    """Why others' loss cannot be run; empty if it can."""
    try:
        importlib.import_module(_module(name))
        contender(name, size)(make_inputs(replace(size, tokens=_FEW)))
    except Exception as error:  # another version may have other arguments, or not run here
        return str(error) or type(error).__name__
    return ""


def _module(name: str) -> str:
    return {"liger": "liger_kernel.chunked_loss.jsd_loss"}.get(name, name)


def _peak_bytes(name: str, size: Size) -> int:
    """The most that a run holds beyond its inputs."""
    import torch

    inputs = make_inputs(size)
    run = contender(name, size)
    for count in (_FEW, _FEW, 4 * _FEW):  # whatever is compiled is compiled now
        run(inputs.first(count))
    inputs = inputs.first(size.tokens)
    gc.collect()
    if size.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run(inputs)
        return torch.cuda.max_memory_allocated() - held
    held = _resident_bytes()
    run(inputs)
    return _peak_resident_bytes() - held


def _resident_bytes() -> int:
    """Bytes in use; the peak starts anew where the kernel allows it."""
    if not _CLEAR_PEAK.exists():
        return _peak_resident_bytes()
    _CLEAR_PEAK.write_text("5")
    return _status_bytes("VmRSS")


def _peak_resident_bytes() -> int:
    if not _CLEAR_PEAK.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _seconds(
    names: list[str], size: Size, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every run by the clock, and the processor's own; the first of each left out."""
    with Progress("loss, seconds", len(names) * (repeats + 1)) as progress:
        return _seconds_of(names, size, repeats, progress.done)


def _seconds_of(
    names: list[str], size: Size, repeats: int, done: Done
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    import torch

    inputs = make_inputs(size)
    runs = {name: contender(name, size) for name in names}
    clock: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for run in runs.values():
        run(inputs.first(_FEW))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            positions = inputs.first(size.tokens)
            begin, cpu_begin = time.perf_counter(), time.process_time()
            run(positions)
            if size.device != "cpu":
                torch.cuda.synchronize()
            if turn:
                clock[name].append(time.perf_counter() - begin)
                cpu[name].append(time.process_time() - cpu_begin)
            done(name)
    return clock, cpu


def make_inputs(size: Size) -> Inputs:
    """Random ones: neither speed nor memory depends on them."""
    import torch

    from stages.train_student.data.targets.sparse_targets import SparseTargets

    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(size.tokens, size.width, generator=generator)
    head_VD = torch.randn(size.vocabulary, size.width, generator=generator) / size.width**0.5
    labels_N = torch.randint(size.vocabulary, (size.tokens,), generator=generator)
    first_N1 = torch.randint(size.vocabulary, (size.tokens, 1), generator=generator)
    stride = size.vocabulary // size.top_k
    kept_NK = (first_N1 + stride * torch.arange(size.top_k)) % size.vocabulary
    gaps_NK = torch.rand(size.tokens, size.top_k, generator=generator).cumsum(1)
    gaps_NK -= gaps_NK[:, :1].clone()
    tail_NM = torch.randn(size.tokens, len(NODES), generator=generator) * 0.1 - 1
    device = torch.device(size.device)
    targets = SparseTargets(kept_NK.to(device), gaps_NK.to(device), tail_NM.to(device), NODES)
    head_VD = head_VD.to(device, dtype=_dtype(size) if size.device != "cpu" else torch.float32)
    moments = _make_moments(size, head_VD)
    both = (targets, replace(targets, moments=moments))
    return Inputs(hidden_ND.to(device), head_VD, labels_N.to(device), *both)


def _make_moments(size: Size, head_VD: "torch.Tensor") -> "TailMoments":
    """As many coefficients as two nodes have numbers."""
    import torch

    from stages.train_student.data.targets.tail_moment import MomentTables, TailMoments

    generator = torch.Generator().manual_seed(1)
    num_numbers, num_components = size.moment_dim + 1, 2 * size.moment_dim + 2
    basis_dD = torch.linalg.qr(torch.randn(size.width, size.moment_dim, generator=generator))[0].T
    basis_dD = basis_dD.to(head_VD.device)
    shape = (num_components, len(NODES), num_numbers)
    synthesis_Jne = torch.randn(shape, generator=generator).to(head_VD.device) / 100
    tables = MomentTables(
        basis_dD=basis_dD,
        table_Vd=head_VD.float() @ basis_dD.T,
        entropy_center=torch.zeros((), device=head_VD.device),
        synthesis_Jne=synthesis_Jne,
        mean_ne=torch.zeros_like(synthesis_Jne[0]),
        inverse_temperatures=NODES,
    )
    drawn = torch.randint(-3, 4, (size.tokens, num_components), generator=generator)
    return TailMoments(drawn.to(head_VD.device, torch.int16), tables)


def contender(name: str, size: Size) -> Callable[[Inputs], Any]:
    """Forward and backward of one loss."""
    import torch

    from stages.train_student.losses.sparse_kl import SparseDistillationLoss
    from stages.train_student.losses.vocabulary_pass import VocabularyWeights

    if name == "dense":
        return dense_run
    if name == "cut_cross_entropy":
        return _cut_cross_entropy_run
    if name == "liger":
        return _liger_run(size)
    sparse_loss = SparseDistillationLoss(
        chunk=size.chunk, dtype=_dtype(size), compile=size.compile, device=torch.device(size.device)
    )

    def run(inputs: Inputs) -> Any:
        positions = (inputs.hidden_ND, inputs.head_VD, inputs.labels_N)
        if name == "labels_only":
            sums = sparse_loss(*positions, None, VocabularyWeights(1.0, 0.0, 1.0))
        else:
            targets = inputs.with_moments if name == "with_moments" else inputs.targets
            sums = sparse_loss(*positions, targets, VocabularyWeights(*WEIGHTING))
        return sums.weighted, torch.autograd.grad(sums.weighted, inputs.hidden_ND)

    return run


def dense_run(inputs: Inputs) -> Any:
    """The same loss, as one would write it."""
    import torch
    from torch.nn import functional

    ce_weight, kl_weight, temperature = WEIGHTING
    targets = inputs.targets
    logits_NV = inputs.hidden_ND.to(inputs.head_VD.dtype) @ inputs.head_VD.T
    cross_entropy = functional.cross_entropy(logits_NV.float(), inputs.labels_N, reduction="sum")
    logq_NV = (logits_NV.float() / temperature).log_softmax(1)
    logq_NK = logq_NV.gather(1, targets.kept_ids_NK)
    log_q_tail_N1 = torch.log1p(-logq_NK.exp().sum(1, keepdim=True))
    logp_NK, log_p_tail_N = targets.logprobs(temperature)
    log_p = torch.cat((logp_NK, log_p_tail_N[:, None]), 1)
    log_q = torch.cat((logq_NK, log_q_tail_N1), 1)
    kl = functional.kl_div(log_q, log_p.float(), reduction="sum", log_target=True)
    weighted = ce_weight * cross_entropy + kl_weight * kl
    return weighted, torch.autograd.grad(weighted, inputs.hidden_ND)


def _cut_cross_entropy_run(inputs: Inputs) -> Any:
    import torch

    linear_cross_entropy: Any = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    hidden_ND = inputs.hidden_ND.to(inputs.head_VD.dtype)
    how = {"reduction": "sum", "impl": "cce" if hidden_ND.is_cuda else "torch_compile"}
    value = linear_cross_entropy(hidden_ND, inputs.head_VD, inputs.labels_N, **how)
    return value, torch.autograd.grad(value, inputs.hidden_ND)


def _liger_run(size: Size) -> Callable[[Inputs], Any]:
    import torch

    module: Any = importlib.import_module(_module("liger"))
    ce_weight, kl_weight, temperature = WEIGHTING
    jsd_loss = module.LigerFusedLinearJSDLoss(
        weight_hard_loss=ce_weight,
        weight_soft_loss=kl_weight,
        beta=0.0,
        temperature=temperature,
        chunk_size=size.chunk,
    )

    def run(inputs: Inputs) -> Any:
        hidden_ND = inputs.hidden_ND.to(inputs.head_VD.dtype)
        teacher_ND = hidden_ND.detach().flip(0)
        value = jsd_loss(hidden_ND, inputs.head_VD, teacher_ND, inputs.head_VD, inputs.labels_N)
        return value, torch.autograd.grad(value, inputs.hidden_ND)

    return run


def _dtype(size: Size) -> "torch.dtype":
    import torch

    return torch.bfloat16 if size.precision == "bf16" else torch.float32
