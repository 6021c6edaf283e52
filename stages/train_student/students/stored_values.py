"""Which values the settings in a config.json may have, which anyone may have written."""

_MOST = 2**31
_LARGEST_FACTOR = 1024


def is_size(value: object, least: int = 1) -> bool:
    """A whole number of something that is there."""
    return type(value) is int and least <= value <= _MOST


def is_count(value: object) -> bool:
    """A whole number, or absent."""
    return value is None or is_size(value, 0)


def are_ids(value: object) -> bool:
    """An id of a token or an index, several of them, or none."""
    ids = value if isinstance(value, list) else [value]
    return value is None or all(is_size(one, 0) for one in ids)


def is_list_of_ids(value: object) -> bool:
    """Several ids, or an empty list."""
    return isinstance(value, list) and are_ids(value)


def is_factor(value: object) -> bool:
    """A multiple of a size, or a share."""
    return type(value) in (int, float) and 0 <= value <= _LARGEST_FACTOR  # type: ignore[operator]


def is_flag(value: object) -> bool:
    """True or false."""
    return isinstance(value, bool)


def is_text(value: object) -> bool:
    """A string, or absent."""
    return value is None or isinstance(value, str)


def are_texts(value: object) -> bool:
    """Several strings, or absent."""
    return value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def are_parents(value: object) -> bool:
    """The students that a merged one was made of, or absent."""
    return value is None or (isinstance(value, list) and all(map(_is_parent, value)))


def _is_parent(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"name", "weight", "weights_sha256", "cache_id", "num_steps"}
        and isinstance(value["name"], str)
        and is_factor(value["weight"])
        and isinstance(value["weights_sha256"], str)
        and is_text(value["cache_id"])
        and is_count(value["num_steps"])
    )
