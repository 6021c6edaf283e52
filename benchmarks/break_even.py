"""When a cache pays off: what it costs once against a teacher in the loop of every run.

Of three speeds in tokens/s, printed for runs that each read the same tokens once: the time of N
runs from one cache, its making included, over that of N runs with the teacher in the loop. A cache
pays off from the first N on at which that is not longer. `online` prints the same of seconds that
it measures; the speeds are printed by `stage-one` and `stage-two`.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

NUMBERS_OF_RUNS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True)
class RunCosts:
    """Seconds: of one cache, of a run from it, and of a run with the teacher in the loop."""

    cache: float
    run_from_cache: float
    run_online: float

    def totals(self, num_runs: int) -> tuple[float, float]:
        """Seconds of that many runs, from one cache and with the teacher in the loop."""
        return self.cache + num_runs * self.run_from_cache, num_runs * self.run_online

    @property
    def break_even(self) -> int | None:
        """The least number of runs of which the cache costs no more; None where it never does."""
        saved = self.run_online - self.run_from_cache
        return max(1, math.ceil(self.cache / saved)) if saved > 0 else None

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        totals = {str(n): self.totals(n) for n in NUMBERS_OF_RUNS}
        return {
            "cache_seconds": self.cache,
            "run_from_cache_seconds": self.run_from_cache,
            "run_online_seconds": self.run_online,
            "from_cache_total_seconds": {n: round(both[0], 3) for n, both in totals.items()},
            "online_total_seconds": {n: round(both[1], 3) for n, both in totals.items()},
            "break_even_runs": self.break_even,
        }


def costs_per_token(*, cached: float, from_cache: float, online: float) -> RunCosts:
    """The costs of one token that is cached once and read once by each run, of tokens/s."""
    return RunCosts(cache=1 / cached, run_from_cache=1 / from_cache, run_online=1 / online)


def pays_off(costs: RunCosts) -> str:
    """From which number of runs on, in words."""
    if costs.break_even is None:
        return "the cache never pays off: runs from it are no faster"
    if costs.break_even == 1:
        return "the cache pays off from the first run on"
    return f"the cache pays off from {costs.break_even} runs on"


def cost_table(costs: RunCosts) -> str:
    """Total seconds for some numbers of runs, and from which on the cache pays off."""
    totals = [costs.totals(n) for n in NUMBERS_OF_RUNS]
    lines = [
        _line("runs", [str(n) for n in NUMBERS_OF_RUNS]),
        _line("one cache, s", [f"{both[0]:,.1f}" for both in totals]),
        _line("teacher in the loop, s", [f"{both[1]:,.1f}" for both in totals]),
        _line("ratio", _ratios(costs)),
    ]
    return "\n".join([*lines, pays_off(costs)])


@click.command("break-even", help=__doc__)
@click.option("--cached", type=float, required=True, help="Tokens/s of stage one.")
@click.option("--from-cache", type=float, required=True, help="Tokens/s of a run from the cache.")
@click.option("--online", type=float, required=True, help="… with the teacher in the loop.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def break_even(as_json: bool, **speeds: float) -> None:
    for name, speed in speeds.items():
        if not (0 < speed < math.inf):
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} {speed}: expected tokens/s above 0")
    costs = costs_per_token(**speeds)
    if as_json:
        ratios = {str(n): round(_ratio(costs, n), 3) for n in NUMBERS_OF_RUNS}
        click.echo(json.dumps({"ratio": ratios, "break_even_runs": costs.break_even}))
        return
    lines = [_line("runs", [str(n) for n in NUMBERS_OF_RUNS]), _line("ratio", _ratios(costs))]
    click.echo("\n".join([*lines, pays_off(costs)]))


def _ratio(costs: RunCosts, num_runs: int) -> float:
    from_cache, online = costs.totals(num_runs)
    return from_cache / online


def _ratios(costs: RunCosts) -> list[str]:
    return [f"{_ratio(costs, n):.2f}" for n in NUMBERS_OF_RUNS]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:22}" + "".join(f"{cell:>10}" for cell in cells)
