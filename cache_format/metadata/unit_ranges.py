"""Which units an unfinished cache holds, and what that says of how it came about.

Called where a cache is refused or shown because it is not complete.
"""

from collections.abc import Sequence

from cache_format.metadata.manifest import Manifest


def unit_ranges(manifest: Manifest) -> list[range]:
    """The runs of units without a gap, in rising order."""
    ranges: list[range] = []
    for entry in manifest.shards:
        if ranges and ranges[-1].stop == entry.unit:
            ranges[-1] = range(ranges[-1].start, entry.unit + 1)
        else:
            ranges.append(range(entry.unit, entry.unit + 1))
    return ranges


def looks_like_part(units: Sequence[range]) -> bool:
    """Whether units are missing before the last one: one machine alone makes them in order."""
    return bool(units) and (len(units) > 1 or units[0].start > 0)


def ranges_text(units: Sequence[range]) -> str:
    """``20:40, 60:80``, ends excluded; the first few."""
    text = ", ".join(f"{one.start}:{one.stop}" for one in units[:5])
    return f"{text}, …" if len(units) > 5 else text
