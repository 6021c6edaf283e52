"""What one row of a cache says, as data and as text.

In: a cache's directory or URL, and the number of a row. Out: a plain dictionary, fit for JSON, and
its text.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

import cache_format
from cache_format.codec.row_codec import Row
from cache_format.codec.targets.kinds import kind_of
from cache_format.errors import CacheError
from cache_format.reader import Cache
from pipeline.reports.hidden_preview import add_likeliest

_TOP = 5


def decode_row(
    path: Path | str, split: Literal["train", "validation"], index: int
) -> dict[str, Any]:
    """What row ``index`` of ``split`` holds at each position.

    Raises ValueError if there is no such row, CacheError if it cannot be read.
    """
    cache = cache_format.open(path, allow_incomplete=True)
    num_rows = cache.num_rows(split)
    if index >= num_rows:
        raise ValueError(f"{path}: no row {index}: {split} has {num_rows:,} rows, from 0 on")
    unit, row = cache.read_row(split, index, with_sketch=False)
    previews = add_likeliest(kind_of(cache.spec).preview(row, _TOP), row, cache, _TOP)
    return {
        "split": split,
        "row": index,
        "unit": unit,
        "document_starts": [0, *row.document_starts.tolist()],
        "positions": _positions(row, previews, _piece_of(cache)),
    }


def row_text(decoded: dict[str, Any]) -> str:
    """``decode_row``'s result as a table."""
    lines = [
        f"{decoded['split']} row {decoded['row']}, unit {decoded['unit']}: documents start at "
        f"{', '.join(map(str, decoded['document_starts']))}",
        f"{'':>5}  {'token':18}{'next token':18}{'p(next)':>8}  {'tail':>7}  likeliest",
    ]
    for position in decoded["positions"]:
        line = f"{position['position']:5}  {_cell(position['token'])}{_cell(position['next'])}"
        lines.append(f"{line}{_number(position, 'p_next', 8)}  {_number(position, 'tail_mass', 7)}")
        lines[-1] += f"  {_ids_text(position) if position['is_scored'] else _why_not(position)}"
    return "\n".join(lines)


def _number(position: dict[str, Any], name: str, width: int) -> str:
    """A number that positions have of some kinds of target, if they are scored."""
    value = position.get(name)
    return f"{'–':>{width}}" if value is None else f"{value:{width}.4f}"


def _ids_text(position: dict[str, Any]) -> str:
    if "kept" not in position and "num_nonzero" in position:
        return f"{position['num_nonzero']} coefficients that are not 0"
    text = "  ".join(f"{one['text']!r} {one['p']:.3f}" for one in position.get("kept", ()))
    if position.get("num_drawn"):
        drawn = "  ".join(f"{one['text']!r} ×{one['count']}" for one in position["drawn"])
        text += f"  and {position['num_drawn']} drawn: {drawn}"
    return text


def _why_not(position: dict[str, Any]) -> str:
    """Why a position is not scored."""
    if position["is_context"]:
        return "the next token is context, not to be learned"
    return "the next token begins another document"


def _positions(
    row: Row, previews: list[dict[str, Any]], piece: Callable[[int], str]
) -> list[dict[str, Any]]:
    scored = row.scored()
    is_context = np.zeros(len(scored), bool) if row.is_context is None else row.is_context
    positions = []
    for t, preview in enumerate(previews):
        token, following = int(row.token_ids[t]), int(row.token_ids[t + 1])
        position: dict[str, Any] = {
            "position": t,
            "token": {"id": token, "text": piece(token)},
            "next": {"id": following, "text": piece(following)},
            "is_scored": bool(scored[t]),
            "is_context": bool(is_context[t]),
        }
        if scored[t]:
            position |= {key: _with_texts(value, piece) for key, value in preview.items()}
        positions.append(position)
    return positions


def _with_texts(value: Any, piece: Callable[[int], str]) -> Any:
    """Each id of a list with its text; a number as it is."""
    if not isinstance(value, list):
        return value
    return [{"id": entry["id"], "text": piece(entry["id"])} | entry for entry in value]


def _piece_of(cache: Cache) -> Callable[[int], str]:
    """Text of a token by the teacher's tokenizer; the bare id where its kind is another one."""
    if "tokenizer.json" not in cache.attachments():
        return lambda token_id: f"#{token_id}"
    from tokenizers import Tokenizer

    path = cache.attachment("tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no type of its own
        raise CacheError(
            f"{path}: not a valid tokenizer: {error}. The cache was written with this file: ask "
            "its author for another cache."
        ) from error
    return lambda token_id: str(tokenizer.decode([token_id], skip_special_tokens=False))


def _cell(token: dict[str, Any]) -> str:
    text = repr(token["text"])
    return f"{text if len(text) <= 16 else text[:15] + '…':18}"
