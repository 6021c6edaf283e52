"""What a cache holds after a run of stage one, what the run did for it, and the next command."""

from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote

from cache_format.metadata.manifest import Manifest
from pipeline.reporting.progress_bar import short, size
from pipeline.reporting.stages import device_figures
from pipeline.reports.corpus_shares import shares_text
from pipeline.reports.scored_share import conversations_text, scored_text
from stages.cache_teacher.reporting.progress import CacheProgress
from stages.cache_teacher.reporting.split_shares import shares_of
from stages.cache_teacher.reporting.summary import conversation_counts, corpus_figures


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the cache holds, and what this run did for it."""

    manifest: Manifest
    progress: CacheProgress


def cached_text(outcome: Outcome, out: Path | str, recipe_name: str) -> str:
    """What the cache holds, on the first line; what was made, and the next command."""
    held, heading, command = _held_text(outcome, out, recipe_name).partition("Next:\n")
    manifest = outcome.manifest
    lines = [held.rstrip(), *_corpus_lines(manifest), *_chat_lines(manifest), *_run_lines(outcome)]
    return "\n".join([*lines, heading + command] if command else lines)


def _corpus_lines(manifest: Manifest) -> list[str]:
    """The share of each of several corpora."""
    figures = corpus_figures(manifest) or {}
    return [f"{name}: {shares_text(found)}." for name, found in figures.items()]


def _chat_lines(manifest: Manifest) -> list[str]:
    """How much of the conversations is learned, and what became of those left out."""
    counts = conversation_counts(manifest.shards)
    if counts is None:
        return []
    num_scored = sum(shard.statistics.num_scored for shard in manifest.shards)
    num_conversations = sum(shard.num_documents for shard in manifest.shards)
    num_skipped = sum(shard.num_skipped_documents for shard in manifest.shards)
    lines = [
        f"{num_conversations:,} conversations, {num_skipped:,} skipped, "
        f"{scored_text(num_scored, manifest.num_tokens)}."
    ]
    outcomes = conversations_text(asdict(counts))
    return [*lines, f"Conversations: {outcomes}."] if outcomes else lines


def _run_lines(outcome: Outcome) -> list[str]:
    """How fast it went, if anything was made."""
    progress = outcome.progress
    if progress.tokens_cached_this_run == 0 or progress.seconds <= 0:
        return []
    rate = progress.tokens_cached_this_run / progress.seconds
    figures = [
        f"Cached {short(progress.tokens_cached_this_run)} tokens in {progress.seconds:,.0f} s",
        f"{short(round(rate))} tokens/s",
        *device_figures(progress),
        f"{size(progress.bytes_written)}, "
        f"{progress.bytes_written / progress.tokens_cached_this_run:.1f} bytes/token",
    ]
    return [" · ".join(figures) + "."]


def _held_text(outcome: Outcome, out: Path | str, recipe_name: str) -> str:
    manifest, missing = outcome.manifest, outcome.progress.missing_units
    num_tokens = manifest.num_tokens
    held = f"{out} holds {short(num_tokens)} tokens in {len(manifest.shards)} shards."
    if missing:
        return (
            f"{held} This worker has finished its share; {len(missing)} units of other workers are "
            f"not finished yet ({_some(missing)}). The last worker to finish completes the cache. "
            "If a worker is lost, run the same command without --worker to make its units."
        )
    if not manifest.complete:
        return (
            f"{held} It is a part: earlier or later units are missing. When the other parts are "
            f"finished:\n  pipeline merge {quote(str(out))} OTHER... --out CACHE"
        )
    shares = shares_of(manifest)
    held = f"{held} Validation is {shares.validation_share:.1%} of the rows."
    if shares.advice:
        held = f"{held} {shares.advice}"
    if shares.num_validation_rows == shares.num_rows:
        return held
    return (
        f"{held} Next:\n  pipeline train-student --recipe {recipe_name} "
        f"--cache {quote(str(out))} --out RUN"
    )


def _some(units: tuple[int, ...]) -> str:
    return ", ".join(map(str, units[:10])) + (", …" if len(units) > 10 else "")
