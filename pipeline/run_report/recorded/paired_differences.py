"""How far two recipes lie apart, seed by seed.

Runs of one seed draw the same rows in the same order, so the difference of two of them varies less
over seeds than either does.
"""

import statistics

from pipeline.run_report.recorded.seed_groups import SeedGroup, Spread
from pipeline.run_report.recorded.settings import SEED


def paired_difference(group: SeedGroup, baseline: SeedGroup, metric: str) -> Spread | None:
    """``group`` − ``baseline``: the mean over the seeds that both have finished exactly once.

    None where there is no such seed. The deviation is that of the differences.
    """
    ours, theirs = _by_seed(group, metric), _by_seed(baseline, metric)
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not differences:
        return None
    return Spread(
        mean=statistics.fmean(differences),
        deviation=statistics.stdev(differences) if len(differences) > 1 else None,
        num_runs=len(differences),
    )


def _by_seed(group: SeedGroup, metric: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in group.runs:
        value = run.metrics.last(metric)
        if run.state == "finished" and value is not None:
            found.setdefault(str(run.identity.get(SEED)), []).append(value)
    return {seed: values[0] for seed, values in found.items() if len(values) == 1}
