"""What is in a cache, as data and as text.

In: a cache's directory or URL. Out: a plain dictionary, fit for JSON, and its text. One of its rows
is in ``row_view.py``.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cache_format
from cache_format.codec.targets.kind import total_sums
from cache_format.codec.targets.kinds import kind_of
from cache_format.errors import CacheError
from cache_format.metadata import layout
from cache_format.metadata.manifest import ShardEntry
from cache_format.metadata.spec import CacheSpec
from cache_format.metadata.splits import SPLITS
from cache_format.metadata.unit_ranges import looks_like_part, ranges_text, unit_ranges
from cache_format.reader import Cache
from cache_format.tools.impossible_numbers import impossible_numbers
from pipeline.recipes.recipe import parse_recipe
from pipeline.reporting.printable import printable
from pipeline.reports.corpus_shares import shares_text
from pipeline.reports.lost_mass import mass_outside, self_kl
from pipeline.reports.scored_share import conversations_text, scored_text
from stages.cache_teacher.reporting.summary import conversation_counts, corpus_figures

_TOP = 5
_MAX_WARNINGS = 10
_MAX_LOSS = math.log(sys.float_info.max)


def summarise(path: Path | str) -> dict[str, Any]:
    """What the cache at ``path`` holds, from its manifest, its recipe and a few rows.

    Raises CacheError.
    """
    cache = cache_format.open(path, allow_incomplete=True)
    shards, warnings, outside = cache.manifest.shards, _warnings(cache), None
    try:
        outside = mass_outside(cache)
    except CacheError as error:
        warnings.append(str(error))
    return {
        "path": str(path),
        "cache_id": cache.cache_id,
        "format_version": cache.manifest.format_version,
        "complete": cache.manifest.complete,
        "warnings": warnings,
        "units": [[units.start, units.stop] for units in unit_ranges(cache.manifest)],
        "num_shards": len(shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "num_tokens": {
            split: cache.num_rows(split) * cache.spec.sequence_length for split in SPLITS
        },
        "num_documents": sum(shard.num_documents for shard in shards),
        "num_skipped_documents": sum(shard.num_skipped_documents for shard in shards),
        "num_dropped_tokens": sum(shard.num_dropped_tokens for shard in shards),
        "corpora": corpus_figures(cache.manifest),
        "conversations": _conversations(shards),
        "bytes_per_token": _bytes_per_token(shards),
        "teacher": _teacher_figures(shards, cache.spec),
        "self_kl": self_kl(cache.spec.targets),
        "mass_outside": outside,
        "recipe": _names_in_recipe(cache),
        "spec": cache.spec.to_json(),
    }


def summary_text(summary: dict[str, Any]) -> str:
    """``summarise``'s result for people."""
    spec, figures = summary["spec"], summary["teacher"]
    names = summary["recipe"] or {}
    tokens = summary["num_tokens"]
    share = tokens["validation"] / max(1, sum(tokens.values()))
    lines = [
        f"{summary['path']}: {_state(summary)}",
        *_warning_lines(summary["warnings"]),
        f"  cache id    {summary['cache_id']} (format {summary['format_version']})",
        f"  teacher     {_source(spec['teacher'], names.get('teacher'))}, "
        f"{spec['teacher']['dtype']}",
        *_corpus_lines(summary),
        f"  tokens      {tokens['train']:,} train, {tokens['validation']:,} validation "
        f"({share:.1%}), in rows of {spec['sequence_length']}",
        f"  documents   {summary['num_documents']:,}, {summary['num_skipped_documents']:,} "
        f"skipped; {summary['num_dropped_tokens']:,} tokens dropped (last row incomplete)",
        *_conversation_lines(summary["conversations"]),
        f"  shards      {summary['num_shards']:,}, {summary['num_bytes'] / 1e6:,.1f} MB",
    ]
    if figures is not None:
        lines += [
            f"  teacher     {_loss_text(figures)}"
            f"{scored_text(figures['num_scored'], sum(tokens.values()))}",
            f"  kept        {_kept(spec, figures)}",
            *_outside_lines(summary["mass_outside"]),
            "  bytes/token",
            *(f"    {name:18} {size:8.2f}" for name, size in summary["bytes_per_token"].items()),
        ]
    # One by one: a line break in a name is no line.
    return "\n".join(printable(line, keep="") for line in [*lines, "  spec", *_spec_lines(spec)])


def _corpus_lines(summary: dict[str, Any]) -> list[str]:
    """The corpus, or each of several and its share of the tokens."""
    spec, names = summary["spec"], summary["recipe"] or {}
    if summary["corpora"] is None:
        return [f"  corpus      {_source(spec['corpus'], names.get('corpus'))}"]
    sources = {share["name"]: _source(share["corpus"], None) for share in spec["corpora"]}
    return [
        f"  corpus      {name}: {shares_text(found)}; {found['units']:,} units, "
        f"{found['documents']:,} documents, {found['bytes'] / 1e6:,.1f} MB; {sources[name]}"
        for name, found in summary["corpora"].items()
    ]


def _warnings(cache: Cache) -> list[str]:
    """Numbers of receipts that are true of no unit, and shards here that are not as large."""
    warnings = []
    is_here = isinstance(cache.path, Path)  # elsewhere each size is a request
    for entry in cache.manifest.shards:
        wrong = impossible_numbers(entry, cache.spec)
        if is_here and (found := cache.storage.size(entry.file)) != entry.num_bytes:
            size = "is missing" if found is None else f"has {found:,}"
            wrong.append(f"num_bytes is {entry.num_bytes:,}, but {entry.file} {size}")
        warnings += [f"{layout.receipt_file(entry.unit)}: {what}" for what in wrong]
    return warnings


def _warning_lines(warnings: list[str]) -> list[str]:
    if not warnings:
        return []
    more = len(warnings) - _MAX_WARNINGS
    return [
        "  WARNING     the figures below are not reliable. Run `pipeline verify` on this cache, or "
        "get another copy of it.",
        *(f"    {warning}" for warning in warnings[:_MAX_WARNINGS]),
        *([f"    and {more:,} more (--json lists them)"] if more > 0 else []),
    ]


def _conversations(shards: tuple[ShardEntry, ...]) -> dict[str, int] | None:
    """What became of conversations; None where documents are plain text."""
    counts = conversation_counts(shards)
    return None if counts is None else asdict(counts)


def _conversation_lines(counts: dict[str, int] | None) -> list[str]:
    text = "" if counts is None else conversations_text(counts)
    return [f"              {text}"] if text else []


def _loss_text(figures: dict[str, float | None]) -> str:
    """The teacher's loss, of kinds of target that tell of it."""
    if (loss := figures.get("loss")) is None:
        return ""
    perplexity = figures["perplexity"]
    shown = "inf" if perplexity is None else f"{perplexity:.2f}"
    return f"perplexity {shown} (loss {loss:.4f} nats) on "


def _outside_lines(outside: dict[str, float] | None) -> list[str]:
    """What the kept ids leave out."""
    if outside is None:
        return []
    shares = ", ".join(
        f"{share:.2%} at T = {temperature}" for temperature, share in outside.items()
    )
    return [f"  left out    of the mass, in some rows: {shares}"]


def _kept(spec: dict[str, Any], figures: dict[str, float]) -> str:
    """What a position holds, in words."""
    parsed = CacheSpec.from_json(spec)
    return kind_of(parsed).describe(parsed.targets, figures)


def _bytes_per_token(shards: tuple[ShardEntry, ...]) -> dict[str, float]:
    """Bytes a position of each column, of what Arrow adds around them, and in all."""
    num_tokens = sum(shard.num_tokens for shard in shards)
    if not num_tokens:
        return {}
    num_bytes: dict[str, int] = {}
    for shard in shards:
        for name, size in shard.statistics.column_bytes.items():
            num_bytes[name] = num_bytes.get(name, 0) + size
    total = sum(shard.num_bytes for shard in shards)
    num_bytes |= {"(framing)": total - sum(num_bytes.values()), "(all)": total}
    return {name: size / num_tokens for name, size in num_bytes.items()}


def _teacher_figures(
    shards: tuple[ShardEntry, ...], spec: CacheSpec
) -> dict[str, float | None] | None:
    """What the teacher made of the corpus; None while nothing is scored, or where receipts hold
    impossible sums (``impossible_numbers`` names them).

    A perplexity that no float can hold is None: JSON has no infinity.
    """
    statistics = [shard.statistics for shard in shards]
    num_scored = sum(one.num_scored for one in statistics)
    if not num_scored:
        return None
    kind = kind_of(spec)
    sums = total_sums((one.sums for one in statistics), kind.bounds_of_sums(spec.targets))
    figures: dict[str, float | None] = {"num_scored": num_scored, **kind.figures(sums, num_scored)}
    if not all(math.isfinite(value) for value in figures.values() if value is not None):
        return None
    if (loss := figures.get("loss")) is not None:
        figures["perplexity"] = math.exp(loss) if loss < _MAX_LOSS else None
    return figures


def _state(summary: dict[str, Any]) -> str:
    if summary["complete"]:
        return "complete"
    units = [range(start, stop) for start, stop in summary["units"]]
    if looks_like_part(units):
        return (
            f"NOT COMPLETE: units {ranges_text(units)}, as in a part; `pipeline merge` puts parts "
            "together, `pipeline cache-teacher` without --worker makes what workers have left"
        )
    return "NOT COMPLETE: still being written, or interrupted"


def _names_in_recipe(cache: Cache) -> dict[str, str] | None:
    """How the recipe in the cache calls teacher and corpus; None if there is none that parses."""
    try:
        text = cache.storage.read(layout.RECIPE).decode()
        config = parse_recipe(layout.RECIPE, text).cache_teacher
    except (OSError, ValueError):  # what it says is for people: nothing depends on it
        return None
    return {"teacher": config.teacher, "corpus": config.corpus if config.corpora is None else ""}


def _source(part: dict[str, Any], name: str | None) -> str:
    """What the spec knows, after what the recipe calls it where that says more."""
    names = [part["source"], part.get("config"), part.get("split")]
    if name and name != part["source"]:
        names.insert(1, repr(name))
    if part["revision"]:
        names.append(f"at {part['revision'][:12]}")
    elif "weights_sha256" in part:
        names.append(f"(weights {part['weights_sha256'][:12]})")
    return " ".join(name for name in names if name)


def _spec_lines(spec: dict[str, Any]) -> list[str]:
    """``targets.kept.top_k  64`` and so on, for every leaf."""
    settings = dict(_settings(spec))
    width = max(map(len, settings))
    return [f"    {name:{width}} {value}" for name, value in settings.items()]


def _settings(spec: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The leaves and their values; lists of files are counted."""
    for key, value in spec.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        elif key == "corpora":
            for share in value:
                yield from _settings(share, f"{prefix}{key}.{share['name']}.")
        elif key == "files":
            yield prefix + key, f"{len(value):,} files (--json lists them)"
        else:
            yield prefix + key, value
