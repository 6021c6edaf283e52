"""Transform coefficients, whole numbers that are mostly small, in few bytes.

In: the coefficients of P positions, J each, and a ``CoefficientCode`` that was fitted on others
like them. Out: one string of bytes, and back. A coefficient v of component j is clipped to ±m_j,
its limit. As many components in a row as fit into a byte, each a digit 0 … 2m of base 2m + 1, make
a symbol, which interleaved rANS codes with the frequencies of its place (see ``rans.py``). What is
at a limit has its excess |v| − m_j ≥ 0 in a list of its own.

Why bytes of several components: a coefficient takes a bit or two, and coding one costs as much time
as coding a byte. Limits do not rise with j, so that neighbors share one.

Shapes: P positions, J components, S symbols of a position.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_format.coding import bits, rans

MAX_LIMIT = 127
MAX_VALUE = 32_767

_MOST_AT_LIMIT = 0.01
_EXCESS_BITS = 8
_SMOOTHING = 0.1  # of a count, for values that have not occurred

Coefficients = NDArray[np.int16]


class _Group(NamedTuple):
    """Neighbors that make one symbol."""

    first: int
    last: int
    """The component after the last."""
    limit: int


@dataclass(frozen=True)
class CoefficientCode:
    """How coefficients are coded; raises ValueError where the two parts do not fit together."""

    limits: NDArray[np.uint8]
    """m, [J]: from 1 to 127, never rising"""
    frequencies: rans.Frequencies
    """[S, 256], each row adding up to 2¹⁴"""

    def __post_init__(self) -> None:
        limits = self.limits.astype(np.int64)
        if not len(limits) or limits.min() < 1 or limits.max() > MAX_LIMIT:
            raise ValueError(f"limits: expected numbers from 1 to {MAX_LIMIT}")
        if (np.diff(limits) > 0).any():
            raise ValueError("limits: expected numbers that do not rise")
        if self.frequencies.shape != (len(self._groups), rans.NUM_SYMBOLS):
            raise ValueError(
                f"frequencies: expected {len(self._groups)} rows, found {len(self.frequencies)}"
            )
        for group, row in zip(self._groups, self.frequencies, strict=True):
            num_symbols = (2 * group.limit + 1) ** (group.last - group.first)
            if not row[:num_symbols].all() or row[num_symbols:].any():
                raise ValueError(f"frequencies: expected {num_symbols} symbols, found others")
        _ = self._tables  # refuses other sums

    @cached_property
    def _groups(self) -> tuple[_Group, ...]:
        return tuple(_groups_of(self.limits))

    @cached_property
    def _tables(self) -> rans.Tables:
        return rans.make_tables(self.frequencies)

    def prices(self) -> NDArray[np.float32]:
        """About how many bits each value from −127 to 127 of each component costs, [J, 255].

        Of what is beyond a limit the excess is priced as if it were a byte.
        """
        values = np.arange(-MAX_LIMIT, MAX_LIMIT + 1)
        prices = np.empty((len(self.limits), len(values)), np.float32)
        for (first, last, limit), row in zip(self._groups, self.frequencies, strict=True):
            base, num_digits = 2 * limit + 1, last - first
            joint = row[: base**num_digits].reshape((base,) * num_digits) / rans.TOTAL
            clipped = np.clip(values, -limit, limit) + limit
            for digit in range(num_digits):
                others = tuple(axis for axis in range(num_digits) if axis != digit)
                prices[first + digit] = -np.log2(joint.sum(others))[clipped]
            prices[first:last] += _EXCESS_BITS * (np.abs(values) >= limit)
        return prices

    def encode(self, coefficients: NDArray[np.integer]) -> bytes:
        """The bytes of [P, J]; raises ValueError where one is larger than a 16-bit number."""
        values = coefficients.astype(np.int64)
        if values.size and np.abs(values).max() > MAX_VALUE:
            raise ValueError(f"expected coefficients of at most ±{MAX_VALUE}")
        limits = self.limits.astype(np.int64)
        excess = np.abs(values.T) - limits[:, None]
        stream = rans.encode(_symbols(values, self._groups), self._tables)
        return bits.with_length(stream) + bits.encode_numbers(excess[excess >= 0])

    def decode(self, data: bytes | memoryview, num_positions: int) -> Coefficients:
        """The coefficients, [P, J]; raises ValueError unless ``data`` is what ``encode`` wrote."""
        stream, rest = bits.split_length(data)
        symbols = rans.decode(stream, num_positions, self._tables)
        values = np.empty((len(self.limits), num_positions), np.int16)
        for group, symbol in zip(self._groups, symbols, strict=True):
            table = _digits(group.limit, group.last - group.first)
            table.take(symbol, axis=1, out=values[group.first : group.last], mode="clip")
        at_limit = np.abs(values) == self.limits[:, None]
        excess = bits.decode_numbers(rest, int(np.count_nonzero(at_limit)))
        if len(excess):
            clipped = values[at_limit].astype(np.int64)
            whole = clipped + np.sign(clipped) * excess
            if np.abs(whole).max() > MAX_VALUE:
                raise ValueError(f"expected coefficients of at most ±{MAX_VALUE}")
            values[at_limit] = whole
        return np.ascontiguousarray(values.T)


def fit_code(coefficients: NDArray[np.integer]) -> CoefficientCode:
    """The code for coefficients like these, [N, J], the components in the order of their spread.

    A limit is passed by one coefficient in a hundred at most. The components of a symbol are taken
    as independent.
    """
    values = coefficients.astype(np.int64)
    sizes = np.sort(np.abs(values), 0)
    # The smallest m that no more than so many of |v| reach.
    most_at_limit = int(len(values) * _MOST_AT_LIMIT)
    reached = sizes[len(values) - 1 - most_at_limit] + 1
    limits = np.clip(reached, 1, MAX_LIMIT)
    limits = np.maximum.accumulate(limits[::-1])[::-1].astype(np.uint8)
    weights = np.zeros((len(groups := list(_groups_of(limits))), rans.NUM_SYMBOLS))
    for row, group in zip(weights, groups, strict=True):
        joint = np.ones(1)
        for component in range(group.first, group.last):
            clipped = np.clip(values[:, component], -group.limit, group.limit) + group.limit
            counts = np.bincount(clipped, minlength=2 * group.limit + 1) + _SMOOTHING
            joint = np.outer(joint, counts / counts.sum()).ravel()
        row[: len(joint)] = joint
    return CoefficientCode(limits, rans.quantize_frequencies(weights))


def _groups_of(limits: NDArray[np.uint8]) -> list[_Group]:
    """As many neighbors of one limit as have no more than 256 values together, again and again."""
    groups: list[_Group] = []
    first = 0
    while first < len(limits):
        limit = int(limits[first])
        base = size = 2 * limit + 1
        last = first + 1
        while last < len(limits) and limits[last] == limit and size * base <= rans.NUM_SYMBOLS:
            size *= base
            last += 1
        groups.append(_Group(first, last, limit))
        first = last
    return groups


def _symbols(values: NDArray[np.int64], groups: tuple[_Group, ...]) -> rans.Symbols:
    """[S, P], the first component being the most significant digit."""
    symbols = np.empty((len(groups), len(values)), np.uint8)
    for out, (first, last, limit) in zip(symbols, groups, strict=True):
        digits = (np.clip(values[:, first:last], -limit, limit) + limit).astype(np.uint8)
        out[:] = digits[:, 0]
        for digit in range(1, last - first):
            out *= np.uint8(2 * limit + 1)
            out += digits[:, digit]
    return symbols


def _digits(limit: int, num_digits: int) -> Coefficients:
    """Of each of 256 symbols the values of its components, [number of digits, 256]."""
    base = 2 * limit + 1
    symbols = np.arange(rans.NUM_SYMBOLS)
    powers = base ** np.arange(num_digits - 1, -1, -1)
    values: Coefficients = (symbols // powers[:, None] % base - limit).astype(np.int16)
    return values
