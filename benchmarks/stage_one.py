"""Stage one beside its teacher alone: what everything but the forward pass costs.

A teacher of random weights reads the demo's documents, cut to the length that FineWeb's have, with
the full Qwen vocabulary. ``bare`` is its body and head over the same rows, in the same batches and
precision, with nothing kept; ``cached`` is the whole of stage one: reading, tokenising, body, head,
targets, sketch, encoding, hashing, fsync. Runs alternate, and a ratio is that of two neighbours;
figures are medians. Neither speed nor memory depends on what the weights are. `bare` has the head
for every kind of target, `hidden` too, whose stage one has none where it rounds to the nearest.
Fitting their transform to the first unit is not in the figures: it is done once for a cache.
"""

import json
import resource
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import pipeline.demo
from benchmarks.progress import Done, Progress
from benchmarks.quick import quick_option, show

if TYPE_CHECKING:
    import torch

    from stages.cache_teacher.corpus.packing import PackedUnit
    from stages.cache_teacher.corpus.unit_reader import PreparedUnit
    from stages.cache_teacher.reporting.progress import CacheProgress

PRESETS = {
    "94M": (512, 1536, 5, 8, 2),
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": (1536, 8960, 28, 12, 2),
    "small": (256, 768, 4, 4, 2),  # with a vocabulary of 32 thousand, for --quick
    "tiny": (32, 48, 2, 4, 2),  # whose figures say nothing: to see that a benchmark runs
}
"""Width, feed-forward width, layers, heads, key-value heads."""
HEAD_ROWS, NUM_IDS = 151_936, 151_665  # Qwen2.5's
_OF_SMALL = {"small": (32_768, 32_700), "tiny": (4_400, 4_300)}
"""Rows of the head and ids of the presets that have fewer."""
_CHARS_OF_A_DOCUMENT = 3_000
_NUM_UNITS = 3  # so that one is read, one on the device, one written


@click.command("stage-one", help=__doc__)
@quick_option(preset="small", sequence_length=256, documents=1, compile_mode="off", repeats=2)
@click.option(
    "--teacher",
    "preset",
    type=click.Choice(sorted(PRESETS)),
    default="qwen2.5-0.5b",
    show_default=True,
    help="Dimensions of the teacher.",
)
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", default="float32", show_default=True)
@click.option("--sequence-length", type=int, default=512, show_default=True)
@click.option("--rows", type=int, help="Rows of a forward pass; found if not given.")
@click.option("--chunk", type=int, default=1024, show_default=True, help="Positions of a chunk.")
@click.option("--documents", type=int, default=2, show_default=True, help="Documents of a unit.")
@click.option("--targets", default="top_k", show_default=True)
@click.option(
    "--quantization",
    type=click.Choice(["nearest", "rate_distortion"]),
    default="rate_distortion",
    show_default=True,
    help="Of hidden targets.",
)
@click.option("--compile", "compile_mode", default="auto", show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option(
    "--inputs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A directory that `inputs` wrote: its teacher and text in place of new ones.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stage_one(preset: str, repeats: int, as_json: bool, **options: Any) -> None:
    # Of each repeat a turn without and one with caching; then the parts of a chunk.
    with (
        tempfile.TemporaryDirectory() as directory,
        Progress("stage-one", 2 * (repeats + 1) + 1) as progress,
    ):
        progress.say(f"making a teacher ({preset}) and text")
        bench = _Bench(Path(directory), preset, **options)
        progress.start()
        figures = bench.measure(repeats, progress.done)
    show(figures, as_json)


class _Bench:
    """A teacher, some units of text, and a cache that they are written to again and again."""

    def __init__(
        self,
        work: Path,
        preset: str,
        *,
        device: str,
        dtype: Any,
        sequence_length: int,
        rows: int | None,
        chunk: int,
        documents: int,
        targets: Any,
        quantization: Any,
        compile_mode: Any,
        inputs: Path | None,
    ) -> None:
        from stages.cache_teacher.config import ALL_UNITS, CacheTeacherConfig
        from stages.cache_teacher.corpus.corpora import resolve_corpora
        from stages.cache_teacher.corpus.unit_reader import UnitReader
        from stages.cache_teacher.engine.unit_maker import Job, UnitMaker
        from stages.cache_teacher.reporting.progress import Progress
        from stages.cache_teacher.setup.open_or_create import CacheOpener
        from stages.cache_teacher.teacher.lazy_teacher import LazyTeacher
        from stages.cache_teacher.teacher.teacher_files import resolve_teacher
        from stages.compute.device import choose_device

        self.preset, self.device = preset, choose_device(device)
        if inputs is None:
            save_random_teacher(teacher_in(work, preset), preset)
            write_corpus(text_in(work), num_documents=_NUM_UNITS * documents)
        self._out, inputs = work / "cache", inputs or work
        self.config = config = CacheTeacherConfig(
            teacher=str(teacher_in(inputs, preset)),
            teacher_dtype=dtype,
            corpus=str(text_in(inputs)),
            device=device,
            sequence_length=sequence_length,
            documents_per_unit=documents,
            rows_per_forward=rows,
            head_chunk=chunk,
            targets=targets,
            hidden_quantization=quantization,
            compile=compile_mode,
        )
        self._last: CacheProgress | None = None
        progress = Progress(1, ALL_UNITS, self._note)
        lazy = LazyTeacher(resolve_teacher(config), self.device, progress)
        corpora = resolve_corpora(config)
        beginning = CacheOpener(config=config, out=self._out, corpora=corpora, teacher=lazy)
        self.writer, identity = beginning.open(beginning.identity())
        self.spec, self.shared = identity.spec, identity.shared
        job = Job(config=config, spec=self.spec, shared=self.shared, teacher=lazy)
        self.reader = UnitReader(corpora, lazy.source, self.spec)
        self.maker = UnitMaker(job, self.reader, self.writer, progress)
        self.teacher = self.maker.load()
        units = [self.reader.read(unit) for unit in range(_NUM_UNITS)]
        self.packed = [unit.packed for unit in units if unit is not None]
        self.num_tokens = sum(packed.scored_RT().size for packed in self.packed)

    def measure(self, repeats: int, done: Done) -> dict[str, Any]:
        """All figures. The first run of each is not counted: it compiles, and fills caches."""
        import torch

        def pair() -> tuple[float, float]:
            bare = self.bare()
            done("bare")
            cached = self.cached()
            done("cached")
            return bare, cached

        pair()
        before = self._busy_seconds()
        pairs = [pair() for _ in range(repeats)]
        busy = self._busy_seconds() - before
        bare, cached = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(one / other for one, other in pairs)
        of_chunk = self._chunk_milliseconds(repeats)
        done("parts of a chunk")
        return {
            "teacher": self.preset,
            "device": device_name(self.device),
            "dtype": self.spec.teacher.dtype,
            "attention": self.spec.teacher.attention,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "tokens": self.num_tokens,
            "sequence_length": self.spec.sequence_length,
            "rows_per_forward": self.maker.rows_per_forward,
            "head_chunk": self.config.head_chunk,
            "targets": self.config.targets,
            "bare_tokens_per_s": round(self.num_tokens / bare, 1),
            "cached_tokens_per_s": round(self.num_tokens / cached, 1),
            "ratio_to_bare_forward": round(statistics.median(ratios), 4),
            "ratio_least": round(ratios[0], 4),
            "ratio_most": round(ratios[-1], 4),
            "device_wait_share": round(1 - busy / sum(one for _, one in pairs), 4),
            "mfu": self._mfu(self.num_tokens / cached),
            "bytes_per_token": round(self._stored_bytes() / self.num_tokens, 1),
            "stored_bytes_per_s": round(self._stored_bytes() / cached),
            "peak_bytes": _peak_bytes(self.device),
            **of_chunk,
        }

    def bare(self) -> float:
        """Seconds of body and head over all rows; logits are made and dropped."""
        import torch

        begin = time.perf_counter()
        with torch.inference_mode():
            for batch in self._batches():
                hidden_BTD, _ = self.teacher.forward(
                    batch.token_ids_RT[:, :-1], batch.document_starts, layers=()
                )
                for hidden_CD in torch.split(hidden_BTD.flatten(0, 1), self.config.head_chunk):
                    self.teacher.head.padded_logits(hidden_CD)
        _synchronize(self.device)
        return time.perf_counter() - begin

    def cached(self) -> float:
        """Seconds of stage one over all units, from text to durable shards."""
        from stages.cache_teacher.engine.local_engine import make_units

        for unit in range(_NUM_UNITS):
            self.writer.discard_unit(unit)
        units = iter(range(_NUM_UNITS))
        lock = threading.Lock()

        def next_unit() -> "PreparedUnit | None":
            with lock:
                unit = next(units, None)
                return None if unit is None else self.maker.prepare(unit)

        begin = time.perf_counter()
        make_units(self.maker, next_unit, lambda _: None)
        return time.perf_counter() - begin

    def _batches(self) -> "Iterator[PackedUnit]":
        num_rows = self.maker.rows_per_forward
        for packed in self.packed:
            for first in range(0, len(packed.token_ids_RT), num_rows):
                yield packed.rows(first, first + num_rows)

    def _note(self, progress: "CacheProgress") -> None:
        self._last = progress

    def _busy_seconds(self) -> float:
        """How long the device has been busy for stage one, all runs together."""
        assert self._last is not None
        return (1 - (self._last.device_wait_share or 0.0)) * self._last.seconds

    def _stored_bytes(self) -> int:
        """Of all shards of one run."""
        return sum(path.stat().st_size for path in (self._out / "shards").iterdir())

    def _mfu(self, tokens_per_second: float) -> float | None:
        """Operations that the model needs over those that a known GPU could do."""
        import torch

        from stages.cache_teacher.reporting.device_use import model_operations
        from stages.compute.peak_flops import peak_operations

        operations = model_operations(self.teacher.source.directory)
        if self.device.type != "cuda" or operations is None:
            return None
        peak = peak_operations(torch.cuda.get_device_name(self.device), self.spec.teacher.dtype)
        if peak is None:
            return None
        needed = sum(operations.of(packed) for packed in self.packed) / self.num_tokens
        return round(needed * tokens_per_second / peak, 4)

    def _chunk_milliseconds(self, repeats: int) -> dict[str, float]:
        """Of one chunk: the head, all that is taken from its logits, and torch.topk alone.

        Of ``hidden`` targets: the head, which they do without, and what is made of the states.
        """
        import torch

        from stages.cache_teacher.targets.kinds import kind_of
        from stages.cache_teacher.targets.target_maker import TargetMaker

        num, targets = self.config.head_chunk, self.spec.targets
        hidden_CD = torch.randn(num, self.spec.teacher.hidden_size, device=self.device)
        labels_C = torch.zeros(num, dtype=torch.int64, device=self.device)
        kind = kind_of(targets)
        uniform_CM = torch.rand(
            num, kind.num_uniform(targets), dtype=torch.float64, device=self.device
        )
        with torch.inference_mode():
            logits_CV = self.teacher.head.padded_logits(hidden_CD)
            head = self._milliseconds(lambda: self.teacher.head.padded_logits(hidden_CD), repeats)
            figures = {"head_ms": head}
            if targets.hidden is not None:
                coder = kind.make_maker(
                    self.teacher.head, targets, self.shared, chunk=num, compile="off"
                )
                work = partial(coder.make, hidden_CD, labels_C, uniform_CM)
                return figures | {"coefficients_ms": self._milliseconds(work, repeats)}
            modes: dict[str, Literal["auto", "on", "off"]] = {
                "topk_ms": self.config.compile,
                "topk_eager_ms": "off",
            }
            for name, mode in modes.items():
                maker = kind.make_maker(
                    self.teacher.head, targets, self.shared, chunk=num, compile=mode
                )
                assert isinstance(maker, TargetMaker), "others take nothing from logits"
                figures[name] = self._milliseconds(
                    partial(maker.reduce, logits_CV, labels_C, uniform_CM), repeats
                )
            num_ids = targets.sampling.num_draws if targets.kept is None else targets.kept.top_k
            figures["torch_topk_ms"] = self._milliseconds(
                lambda: torch.topk(logits_CV, num_ids, dim=1), repeats
            )
            figures["torch_topk_and_logsumexp_ms"] = self._milliseconds(
                lambda: (torch.topk(logits_CV, num_ids, dim=1), logits_CV.logsumexp(1)),
                repeats,
            )
        return figures

    def _milliseconds(self, work: Callable[[], object], repeats: int) -> float:
        """Median, after one call that is not counted."""
        seconds = []
        for _ in range(repeats + 1):
            begin = time.perf_counter()
            work()
            _synchronize(self.device)
            seconds.append(time.perf_counter() - begin)
        return round(1000 * statistics.median(seconds[1:]), 2)


def teacher_in(directory: Path, preset: str) -> Path:
    """Where a benchmark's teacher lies."""
    return (directory / f"teacher-{preset}").resolve()


def text_in(directory: Path) -> Path:
    """Where a benchmark's corpus lies."""
    return directory / "text.parquet"


def save_random_teacher(target: Path, preset: str, device: str = "cpu") -> None:
    """A ``Qwen2ForCausalLM`` of these dimensions, and a tokenizer with as many ids as Qwen2's, or
    as its preset has.

    The ids are the demo's and others that no text is made of: they take part in every sum. On a
    GPU, ``device``, its weights are drawn in a fraction of the time.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    width, feed_forward, layers, heads, kv_heads = PRESETS[preset]
    head_rows, num_ids = _OF_SMALL.get(preset, (HEAD_ROWS, NUM_IDS))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=head_rows,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # peak memory is to be that of stage one
    try:
        with torch.device(device):
            model = Qwen2ForCausalLM(config)
        model.save_pretrained(target)
    finally:
        torch.set_default_dtype(default)
    demo = Path(pipeline.demo.__file__).parent / "teacher"
    tokenizer = json.loads((demo / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"<unused {number}>": number for number in range(len(vocabulary), num_ids)}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    shutil.copyfile(demo / "tokenizer_config.json", target / "tokenizer_config.json")


def write_corpus(path: Path, num_documents: int) -> None:
    from itertools import islice

    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.demo.corpus import documents

    texts = (
        document.text[start : start + _CHARS_OF_A_DOCUMENT]
        for document in documents("demo")
        for start in range(0, len(document.text), _CHARS_OF_A_DOCUMENT)
    )
    table = pa.table({"text": list(islice(texts, num_documents))})
    pq.write_table(table, path, row_group_size=16)


def _synchronize(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: "torch.device") -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _peak_bytes(device: "torch.device") -> int:
    """The most that was allocated on a GPU; of a CPU, the most that the process has held."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
