"""Reports of stage one."""

from stages.cache_teacher.reporting.progress import CacheProgress, Phase


def caching(tokens_done: int, phase: Phase = "caching") -> CacheProgress:
    return CacheProgress(
        phase=phase,
        tokens_done=tokens_done,
        tokens_total=10_000,
        tokens_cached_this_run=tokens_done,
        bytes_written=1_000_000,
        bytes_held=1_500_000,
        unit=3,
        corpus_position="a.parquet, documents 30-39",
        documents=2000,
    )
