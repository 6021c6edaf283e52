"""What a cache will take, as JSON and as text, and how far the measurement is."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.reporting.progress_bar import Bar
    from stages.cache_teacher.estimate import Estimate
    from stages.cache_teacher.reporting.progress import CacheProgress


class EstimateReport:
    """Shows on ``bar`` how many of the ``seconds`` to measure have gone by."""

    def __init__(self, bar: "Bar", seconds: float) -> None:
        from pipeline.reporting.stages import CacheReport
        from pipeline.reporting.streams import ProgressOnStderr

        self._bar, self._seconds = bar, max(1, round(seconds))
        self._before = CacheReport(ProgressOnStderr(bar).send)

    def __call__(self, progress: "CacheProgress") -> None:
        from pipeline.reporting.progress_bar import short

        if progress.phase == "caching" and not progress.message:
            figures = f"{short(progress.tokens_cached_this_run)} tokens cached"
            if progress.seconds > self._seconds and not progress.tokens_cached_this_run:
                figures = "waiting for the first forward pass"
            self._bar.show(int(progress.seconds), self._seconds, figures)
        else:
            self._before(progress)


def estimate_figures(found: "Estimate") -> dict[str, Any]:
    """An estimate as JSON values; rounded, because it is one."""
    return {
        "tokens": found.num_tokens,
        "is_whole_corpus": found.is_whole_corpus,
        "documents": round(found.num_documents),
        "shards": max(1, round(found.num_shards)),
        "validation_share": round(found.shares.validation_share, 4),
        "hours": round(found.seconds / 3600, 4),
        "tokens_per_second": round(found.tokens_per_second, 1),
        "device_wait_share": found.device_wait_share,
        "mfu": found.mfu,
        "bytes": round(found.num_bytes),
        "teacher_bytes": found.teacher_bytes,
        "column_bytes_per_token": {
            name: round(size, 2) for name, size in found.column_bytes_per_token.items()
        },
        "probe_tokens": found.probe_tokens,
    }


def estimate_text(found: "Estimate") -> str:
    """An estimate for people."""
    from pipeline.reporting.progress_bar import short, size

    per_token = found.column_bytes_per_token
    lines = [
        f"{'The whole corpus, ' if found.is_whole_corpus else ''}{short(found.num_tokens)} tokens: "
        f"{size(found.num_bytes)} on disk, "
        f"{_duration(found.seconds)} on one device like this",
        f"  measured    {short(round(found.tokens_per_second))} tokens/s over "
        f"{short(found.probe_tokens)} tokens{_use(found)}",
        f"  documents   {short(round(found.num_documents))}, "
        f"{found.tokens_per_document:,.0f} tokens each",
        f"  shards      {max(1, round(found.num_shards)):,} of about "
        f"{size((found.num_bytes - found.teacher_bytes) / max(1, found.num_shards))}",
        f"  validation  {found.shares.validation_share:.1%} of the rows",
        *([f"    {found.shares.advice}"] if found.shares.advice else []),
        f"  {'column':18} {'bytes/token':>12} {'on disk':>10}",
        *(
            f"  {name:18} {one:12.2f} {size(one * found.num_tokens):>10}"
            for name, one in per_token.items()
        ),
        f"  {'teacher/':18} {'':12} {size(found.teacher_bytes):>10}",
    ]
    return "\n".join(lines)


def estimate_json(found: "Estimate") -> str:
    """An estimate as one JSON object."""
    return json.dumps(estimate_figures(found), indent=1)


def _use(found: "Estimate") -> str:
    parts = []
    if found.device_wait_share is not None:
        parts.append(f"the device waited {found.device_wait_share:.1%}")
    if found.mfu is not None:
        parts.append(f"MFU {found.mfu:.1%}")
    return f" ({', '.join(parts)})" if parts else ""


def _duration(seconds: float) -> str:
    """Seconds, minutes, hours or days."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
