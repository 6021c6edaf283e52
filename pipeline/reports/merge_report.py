"""What came of merging caches, and the commands that make what is missing."""

from pathlib import Path
from shlex import quote

from cache_format.tools.merge import Merged
from pipeline.recipes.cached_recipe import recipe_in
from pipeline.reporting.progress_bar import short


def merge_text(merged: Merged, out: Path | str) -> str:
    """What there is now, and what is still to be done."""
    state = "complete" if merged.is_complete else "NOT complete"
    lines = [
        f"{out}: {state}; {short(merged.num_tokens)} of {short(merged.num_tokens_requested)} "
        f"requested tokens, in {merged.num_units} shards."
    ]
    if merged.is_complete and merged.num_tokens < merged.num_tokens_requested:
        lines.append("The corpus ended there.")
    if merged.damaged_units:
        units = ", ".join(map(str, merged.damaged_units[:10]))
        more = ", …" if len(merged.damaged_units) > 10 else ""
        lines.append(
            f"Units {units}{more} were damaged in {out}: their receipt is not intact, or their "
            "shard is missing or not whole. Those that no given cache has were left out."
        )
    if merged.differing_units:
        units = ", ".join(map(str, merged.differing_units[:10]))
        more = ", …" if len(merged.differing_units) > 10 else ""
        lines.append(
            f"Units {units}{more} are in two caches with different bytes, because rounding differs "
            f"between machines; the first was used. In total: {len(merged.differing_units)}."
        )
    again = f"pipeline cache-teacher --recipe {recipe_in(out)} --out {quote(str(out))}"
    if merged.missing_units:
        lines.append("Units are missing. Merge a cache that has them, or make them:")
        lines += [f"  {again} --units {gap.start}:{gap.stop}" for gap in merged.missing_units]
    elif not merged.is_complete:
        lines += [
            "There are no gaps between the units. To cache the units after the last one, or to "
            "check that the corpus ends there:",
            f"  {again}",
        ]
    return "\n".join(lines)
