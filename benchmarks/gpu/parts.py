"""The parts of the GPU benchmark, the most telling first: which benchmark, with which options.

Times are what an H100 is expected to take, imports and compiling included. Where less than that is
left of the budget a part is skipped, and at three times that it is stopped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stage_one import teacher_in

INPUTS = "inputs"
_KINDS = ("hidden", "top_k+hidden", "top_k+sampled", "sampled")
_LENGTHS = (512, 2048)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One benchmark, in a process of its own."""

    name: str
    arguments: tuple[str, ...]
    """Of ``python -m benchmarks``."""
    expected_seconds: int
    needs_inputs: bool = False
    """Whether it reads what the part ``INPUTS`` writes."""

    @property
    def limit_seconds(self) -> int:
        """Of the clock, after which it is stopped."""
        return 3 * self.expected_seconds


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    device: str
    is_tiny: bool
    work: Path
    """Where inputs and caches lie, of which nothing is kept."""

    @property
    def teacher(self) -> str:
        """Its dimensions."""
        return "tiny" if self.is_tiny else "qwen2.5-1.5b"


def all_parts(scale: Scale) -> Iterator[Part]:
    """In the order in which they run."""
    text = ("--documents", "24", "--words", "40") if scale.is_tiny else ()
    shared = ("--device", scale.device, "--teacher", scale.teacher)
    yield Part(
        name=INPUTS,
        arguments=("inputs", *shared, "--out", str(scale.work), *text),
        expected_seconds=40,
    )
    yield _stage_one(scale, "top_k", _LENGTHS[0])
    repeats, steps = ("1", "1") if scale.is_tiny else ("4", "3")
    turns = ("--repeats", repeats, "--steps", steps)
    peaks = "--no-peaks" if scale.is_tiny else "--peaks"  # a process for each
    yield _stage_two(scale, "stage_two", *turns, peaks, expected_seconds=120)
    yield _slstm(scale)
    yield _stage_one(scale, "hidden", _LENGTHS[0])
    sampled = ("--no-peaks", "--sampled-softmax-size", "64" if scale.is_tiny else "4096")
    yield _stage_two(scale, "stage_two_sampled_softmax", *turns, *sampled, expected_seconds=45)
    yield _hybrid(scale)
    yield _loss(scale)
    yield _stage_two(scale, "kernels", command="kernels", expected_seconds=40)
    yield _stage_one(scale, "top_k", _LENGTHS[1])
    for kind in _KINDS[1:]:
        yield _stage_one(scale, kind, _LENGTHS[0])
    for kind in () if scale.is_tiny else _KINDS:
        yield _stage_one(scale, kind, _LENGTHS[1])


def _stage_one(scale: Scale, kind: str, length: int) -> Part:
    sizes: tuple[str, ...] = ("--documents", "64", "--repeats", "3")
    dtype = "bfloat16"
    if scale.is_tiny:
        length //= 8
        sizes = ("--documents", "4", "--repeats", "1", "--rows", "4", "--chunk", "64")
        sizes, dtype = (*sizes, "--compile", "off"), "float32"
    return Part(
        name=f"stage_one_{kind}_{length}",
        arguments=(
            *("stage-one", "--teacher", scale.teacher, "--inputs", str(scale.work)),
            *("--device", scale.device, "--dtype", dtype, "--targets", kind),
            *("--sequence-length", str(length), *sizes),
        ),
        expected_seconds=35,
        needs_inputs=True,
    )


def _stage_two(
    scale: Scale, name: str, *options: str, command: str = "stage-two", expected_seconds: int
) -> Part:
    sizes: tuple[str, ...] = (
        *("--precision", "fp16", "--batch-size", "8", "--gradient-accumulation-steps", "4"),
    )
    if scale.is_tiny:
        sizes = ("--precision", "fp32", "--batch-size", "2", "--sequence-length", "64")
        sizes = (*sizes, "--heads", "2", "--blocks", "2", "--chunk", "64", "--compile", "off")
        sizes = (*sizes, "--gradient-accumulation-steps", "1")
    return Part(
        name=name,
        arguments=(
            *(command, "--teacher", scale.teacher, "--inputs", str(scale.work)),
            *("--work", str(scale.work / "stage-two"), "--device", scale.device),
            *sizes,
            *options,
        ),
        expected_seconds=expected_seconds,
        needs_inputs=True,
    )


def _slstm(scale: Scale) -> Part:
    sizes = ("--heads", "2", "--width", "8", "--positions", "16") if scale.is_tiny else ()
    arguments = ("slstm", "--device", scale.device, *sizes)
    return Part(name="slstm", arguments=arguments, expected_seconds=25)


def _hybrid(scale: Scale) -> Part:
    sizes: tuple[str, ...] = (
        *("--contexts", "1024,8192,32768", "--train-lengths", "1024,2048", "--repeats", "2"),
    )
    if scale.is_tiny:
        sizes = ("--contexts", "16,32", "--train-lengths", "32,64", "--repeats", "1")
    return Part(
        name="hybrid",
        arguments=(
            *("hybrid", "--teacher", str(teacher_in(scale.work, scale.teacher))),
            *("--device", scale.device, "--precision", "bf16", *sizes),
        ),
        expected_seconds=60,
        needs_inputs=True,
    )


def _loss(scale: Scale) -> Part:
    sizes: tuple[str, ...] = (
        *("--tokens", "4096", "--width", "1536", "--precision", "bf16", "--chunk", "1024"),
    )
    if scale.is_tiny:
        sizes = ("--tokens", "64", "--width", "16", "--vocabulary", "900", "--top-k", "8")
        sizes = (*sizes, "--chunk", "16", "--moment-dim", "4", "--repeats", "1", "--no-peers")
        sizes = (*sizes, "--no-peaks")
    arguments = ("loss", "--device", scale.device, *sizes)
    return Part(name="loss", arguments=arguments, expected_seconds=75)
