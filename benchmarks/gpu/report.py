"""The docs' figures of GPUs, made of what ``python -m benchmarks gpu`` wrote.

In: the files in ``benchmarks/results/``. Out: Markdown, which ``docs/gpu.md`` holds as it is, and a
sentence for the README and ``docs/results.md``. Tests compare both with the files.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

RESULTS = Path(__file__).parents[1] / "results"
NOT_MEASURED = "**Nothing has been measured on a GPU yet.**"
_NO_FIGURE = "—"


@click.command("gpu-report", help=__doc__)
def gpu_report() -> None:
    documents = load(RESULTS)
    click.echo(f"{sentence(documents)}\n\n{tables(documents)}")


def load(directory: Path) -> list[dict[str, Any]]:
    """What was written, by the file's name; files of other benchmarks, without parts, are left out.

    Raises ValueError for figures of small sizes.
    """
    found = []
    for path in sorted(directory.glob("*.json")):
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if "parts" not in document:
            continue
        if document["is_tiny"] or document["environment"]["device"] == "cpu":
            raise ValueError(f"{path}: its figures are of --tiny or a CPU, and say nothing")
        found.append(document)
    return found


def sentence(documents: Sequence[Mapping[str, Any]]) -> str:
    """Where measured, and the two figures that matter most; or that nothing is."""
    if not documents:
        return NOT_MEASURED
    return " ".join(
        f"On an {document['environment']['device']}, caching runs at "
        f"{_figure(document, 'stage_one_top_k_512', 'ratio_to_bare_forward')} of the speed of the "
        "teacher's forward pass alone, and training at "
        f"{_figure(document, 'stage_two', 'ratio_to_labels_only')} of that on labels only."
        for document in documents
    )


def tables(documents: Sequence[Mapping[str, Any]]) -> str:
    """A section for each GPU, or that nothing is measured."""
    if not documents:
        return "Not measured: no GPU's figures are in `benchmarks/results/`."
    return "\n\n".join("\n".join(_section(document)) for document in documents)


def _section(document: Mapping[str, Any]) -> Iterator[str]:
    where = document["environment"]
    versions = where["packages"]
    yield f"### {where['device']}"
    yield ""
    yield (
        f"Commit {where['commit'][:12]}, {where['date']}; driver {where['driver']}, CUDA "
        f"{where['cuda']}, Python {where['python']}, PyTorch {versions['torch']}, Triton "
        f"{versions.get('triton', 'none')}."
    )
    yield ""
    yield from _table(
        document,
        "stage_one_",
        {
            "bare_tokens_per_s": "bare, tokens/s",
            "cached_tokens_per_s": "cached, tokens/s",
            "ratio_to_bare_forward": "ratio",
            "mfu": "MFU",
            "device_wait_share": "device waits",
            "stored_bytes_per_s": "bytes/s stored",
        },
    )
    yield ""
    yield from _table(
        document,
        "stage_two",
        {
            "cache_tokens_per_s": "tokens/s",
            "mfu": "MFU",
            "ratio_to_labels_only": "to labels only",
            "speedup_over_online": "to teacher in the loop",
            "loader_ratio": "loader to training",
            "cache_peak_bytes": "peak bytes",
        },
    )
    yield ""
    yield from _table(
        document,
        "slstm",
        {
            "kernels_forward_backward_ms": "kernels, ms",
            "loop_forward_backward_ms": "loop, ms",
            "speedup_over_loop": "speedup",
            "kernels_step_us": "µs per step",
            "share_of_roofline": "share of roofline",
        },
    )
    yield ""
    yield from _table(
        document,
        "hybrid",
        {
            "prefill_ratio_32768": "prefill to teacher, 32k",
            "decode_ratio_32768": "decode to teacher, 32k",
            "decode_growth": "decode, 32k to 1k",
            "train_tokens_per_s": "training, tokens/s",
            "align_tokens_per_s": "alignment, tokens/s",
            "peak_bytes_training": "peak bytes",
        },
    )
    yield ""
    yield from _table(
        document,
        "loss",
        {
            "ours_seconds": "seconds",
            "dense_seconds": "dense",
            "labels_only_seconds": "labels only",
            "liger_seconds": "Liger",
            "cut_cross_entropy_seconds": "cut-cross-entropy",
            "ours_peak_mib": "peak, MiB",
            "dense_peak_mib": "dense, MiB",
        },
    )
    missing = {
        name: next(iter({"failed", "skipped"} & part.keys()))
        for name, part in document["parts"].items()
        if "figures" not in part
    }
    if missing:
        yield ""
        yield "Without figures: " + ", ".join(f"{n} ({why})" for n, why in missing.items()) + "."


def _table(document: Mapping[str, Any], prefix: str, columns: Mapping[str, str]) -> Iterator[str]:
    """A row for each part of this name that has figures."""
    yield f"| | {' | '.join(columns.values())} |"
    yield "|---" * (1 + len(columns)) + "|"
    for name, part in document["parts"].items():
        if name.startswith(prefix) and "figures" in part:
            cells = (_figure(document, name, key) for key in columns)
            yield f"| {name.replace('_', ' ')} | {' | '.join(cells)} |"


def _figure(document: Mapping[str, Any], part: str, key: str) -> str:
    value = document["parts"].get(part, {}).get("figures", {}).get(key)
    if value is None:
        return _NO_FIGURE
    return f"{value:,.0f}" if value >= 1_000 else f"{value:g}"
