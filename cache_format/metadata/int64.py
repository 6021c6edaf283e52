"""The range of integers: 64 bits, as most languages and libraries have them.

In: fields as they are written, or the settings of a config. Out: a ValueError that names the first
one beyond the range. Readers refuse such a number, so it must not be written.
"""

from collections.abc import Mapping

INT64 = range(-(2**63), 2**63)


def require_int64(fields: Mapping[str, object]) -> None:
    """Raise ValueError naming the dotted place of an integer in ``fields`` that is beyond 64 bits.

    Only mappings, lists and tuples are looked into.
    """
    place = _place_beyond(fields, "")
    if place is not None:
        raise ValueError(f"{place}: must be an integer of 64 bits, from −2^63 to 2^63 − 1")


def _place_beyond(value: object, where: str) -> str | None:
    if isinstance(value, int):
        return None if value in INT64 else where
    items: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        dot = f"{where}." if where else ""
        items = [(f"{dot}{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    places = (_place_beyond(item, name) for name, item in items)
    return next((place for place in places if place is not None), None)
