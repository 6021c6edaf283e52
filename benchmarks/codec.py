"""The codec alone: bytes of the targets, what they cost in exactness, and how fast it is on a core.

Every column of the targets is counted (kept ids, levels, tail log-masses at two temperatures,
log-probability of the next token, number of kept ids), in cells as they lie in a shard; hidden
states and the tokens themselves are not. The error is KL(exact ‖ decoded) over the kept ids and
everything else, averaged over positions.

Positions come from --logits FILE, or from the demo's teacher over the demo's documents. Ids are
stored by rank. The table of ranks is the one that stage one makes, where the corpus is known: of
the demo's documents, or of --corpus through --tokenizer. For a logits file alone, its positions are
cut into two halves, and the ids kept in each make the table of the other.

`hidden_…` are figures of `hidden` targets: bytes of the coefficients, the least that coding them
one by one would take, KL to the teacher, and speed. They are of the demo's teacher and documents,
or of --teacher and --corpus, which then are those of the other figures too.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.hidden_codec import measure_hidden
from benchmarks.positions import (
    NODES,
    SEQUENCE_LENGTH,
    Positions,
    corpus_ranks,
    load_teacher,
    make_rows,
    make_spec,
    read_logits,
    teacher_positions,
)
from benchmarks.progress import Progress
from benchmarks.quick import quick_option, show
from cache_format.codec.row_codec import Encoded, Row, decode_row, encode_row
from cache_format.metadata.spec import CacheSpec
from cache_format.tables.shared_files import SharedFiles
from cache_format.tables.vocabulary_ranks import RankTable
from pipeline.comparison.compared import LEVELS

_TARGET_COLUMNS = ("num_kept", "kept", "tail_log_mass", "next_logprob")
_FILE = click.Path(exists=True, path_type=Path)


@click.command("codec", help=__doc__)
@quick_option(rows=8, repeats=1)
@click.option("--logits", type=_FILE, help="A safetensors file of positions; see positions.py.")
@click.option("--teacher", type=_FILE, help="Directory of another teacher than the demo's.")
@click.option("--corpus", type=_FILE, help="Text of --teacher; or whose tokens make the ranks.")
@click.option("--tokenizer", type=_FILE, help="Directory of the tokenizer for --corpus.")
@click.option("--rows", type=int, default=32, show_default=True, help="Rows of the teacher.")
@click.option("--repeats", type=int, default=7, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def codec(
    logits: Path | None,
    teacher: Path | None,
    corpus: Path | None,
    tokenizer: Path | None,
    rows: int,
    repeats: int,
    as_json: bool,
) -> None:
    if teacher is None and (corpus is None) != (tokenizer is None):
        raise click.UsageError("--corpus and --tokenizer belong together")
    with Progress("codec", 2 * len(LEVELS) + 1) as progress:
        figures = _figures(logits, (teacher, corpus, tokenizer), rows, repeats, progress)
    show(figures, as_json)


def _figures(
    logits: Path | None,
    model: tuple[Path | None, Path | None, Path | None],
    rows: int,
    repeats: int,
    progress: Progress,
) -> dict[str, Any]:
    """``model``: teacher, corpus and tokenizer, as they were given."""
    progress.say("making positions")
    teacher, corpus, tokenizer = model
    loaded = load_teacher(teacher, corpus if teacher else None, rows)
    positions = read_logits(logits) if logits else teacher_positions(*loaded)
    if len(positions) < 2 * SEQUENCE_LENGTH:
        raise click.UsageError(f"at least {2 * SEQUENCE_LENGTH} positions are needed")
    ranks = corpus_ranks(corpus, tokenizer) if corpus and tokenizer else positions.corpus_ranks
    figures: dict[str, Any] = {
        "positions": len(positions),
        "ranks": "from the corpus" if ranks else "from the ids kept in the file's other half",
    }
    progress.start()
    for top_k in LEVELS:
        figures |= _measure(positions, top_k, ranks, repeats)
        progress.done(f"k = {top_k}", 2)
    figures |= measure_hidden(*loaded, repeats)
    progress.done("hidden")
    return figures


def _measure(
    positions: Positions, top_k: int, ranks: RankTable | None, repeats: int
) -> dict[str, float]:
    half = len(positions) // (2 * SEQUENCE_LENGTH) * SEQUENCE_LENGTH
    halves = [positions.slice(0, half), positions.slice(half, 2 * half)]
    tables = [ranks or RankTable.by_weight(other.kept_weights()) for other in reversed(halves)]
    num_bytes, encode_seconds, decode_seconds = dict.fromkeys(_TARGET_COLUMNS, 0), 0.0, 0.0
    errors: dict[float, list[NDArray[np.float64]]] = {node: [] for node in NODES}
    for part, table in zip(halves, tables, strict=True):
        spec, rows = make_spec(top_k, table), make_rows(part, top_k)
        shared = SharedFiles(ranks=table)
        encoded, seconds = _timed(lambda: [encode_row(r, spec, shared) for r in rows], repeats)  # noqa: B023
        encode_seconds += seconds
        decoded, seconds = _timed(lambda: _decode(encoded, spec, shared), repeats)  # noqa: B023
        decode_seconds += seconds
        for row in encoded:
            for name in _TARGET_COLUMNS:
                num_bytes[name] += len(row[name])
        for index, node in enumerate(NODES):
            errors[node].append(_divergence(part, top_k, decoded, index))
    return {
        f"bytes_per_token_k{top_k}": round(sum(num_bytes.values()) / (2 * half), 2),
        **{f"{name}_bytes_k{top_k}": round(n / (2 * half), 2) for name, n in num_bytes.items()},
        f"kl_nats_t1_k{top_k}": float(f"{np.concatenate(errors[1.0]).mean():.3g}"),
        f"kl_nats_t2_k{top_k}": float(f"{np.concatenate(errors[0.5]).mean():.3g}"),
        f"encode_tokens_per_s_k{top_k}": round(2 * half / encode_seconds),
        f"decode_tokens_per_s_k{top_k}": round(2 * half / decode_seconds),
    }


def _decode(encoded: list[Encoded], spec: CacheSpec, shared: SharedFiles) -> list[Row]:
    starts = np.empty(0, np.int32)
    return [decode_row(row, starts, spec, shared) for row in encoded]  # type: ignore[arg-type]


def _timed(action: Any, repeats: int) -> tuple[Any, float]:
    """What ``action`` gives, and the median of its seconds."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = action()
        seconds.append(time.perf_counter() - begin)
    return result, statistics.median(seconds)


def _divergence(
    positions: Positions, top_k: int, decoded: list[Row], node: int
) -> NDArray[np.float64]:
    """KL(exact ‖ decoded) over k + 1 outcomes at the temperature of ``node``, [positions].

    Matched by id, so that an id that came back at another place would show.
    """
    s, count = NODES[node], len(decoded) * SEQUENCE_LENGTH
    kept_ids = np.concatenate([row.kept.ids for row in decoded]).reshape(count, top_k)
    gaps = np.concatenate([row.kept.gaps for row in decoded]).reshape(count, top_k)
    decoded_tail = np.concatenate([row.kept.tail_log_mass[:, node] for row in decoded])
    by_id, exact_by_id = np.argsort(kept_ids, 1), np.argsort(positions.ids[:count, :top_k], 1)
    exact_gaps = positions.logits[:count, :1] - positions.logits[:count, :top_k]
    assert np.array_equal(np.sort(kept_ids, 1), np.sort(positions.ids[:count, :top_k], 1))
    exact = _normalised(
        -s * np.take_along_axis(exact_gaps, exact_by_id, 1),
        positions.tail_log_mass(top_k)[:count, node],
    )
    approximate = _normalised(
        -s * np.take_along_axis(gaps.astype(np.float64), by_id, 1), decoded_tail
    )
    divergence: NDArray[np.float64] = (np.exp(exact) * (exact - approximate)).sum(1)
    return divergence


def _normalised(kept: NDArray[np.float64], tail: NDArray[np.floating]) -> NDArray[np.float64]:
    outcomes = np.concatenate([kept, tail[:, None]], 1)
    normalised: NDArray[np.float64] = outcomes - np.logaddexp.reduce(outcomes, 1)[:, None]
    return normalised
