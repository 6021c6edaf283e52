"""Which files of a repository or a directory are read, by patterns.

In: names with "/" between their parts, and patterns as `hf download --include` takes them. Out: the
names that match any, sorted.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def matching(what: str, names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The ``names`` that match. Raises ValueError where a pattern matches none."""
    known = sorted(names)
    found: set[str] = set()
    for pattern in patterns:
        own = [name for name in known if fnmatchcase(name, pattern)]
        if not own:
            some = ", ".join(known[:5]) + (", …" if len(known) > 5 else "")
            raise ValueError(
                f"{what}: corpus_data_files: no file matches {pattern!r}; there are {len(known):,} "
                f"files: {some or 'none'}"
            )
        found.update(own)
    return sorted(found)
