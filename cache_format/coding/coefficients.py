"""Transform coefficients, whole numbers that are mostly small, in few bytes.

In: the coefficients of P positions, J each, and a ``CoefficientCode`` that was fitted on others
like them (``fitted_code``). Out: one string of bytes, and back. A coefficient v of component j is
clipped to ±m_j, its limit. As many components in a row as fit into a byte, each a digit 0 … 2m of
base 2m + 1, make a symbol, which interleaved rANS codes with the frequencies of its place (see
``rans.py``). What is at a limit has its excess |v| − m_j ≥ 0 in a list of its own.

Of the first components, the widest, only ⌊v / 2⌋ is treated so. Their lowest bits are as often 0 as
1, and are stored as they are: together with the excesses, in what rANS carries along for nothing.

Positions differ in how large their coefficients are, all at once. So each is of one of K classes,
which have frequencies of their own: the class in which it takes the fewest bits.

Why bytes of several components: a coefficient takes a bit or two, and coding one costs as much time
as coding a byte. Limits do not rise with j, so that neighbors share one.

Shapes: P positions, J components, S symbols of a position, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache_format.coding import bits, rans

MAX_LIMIT = 127
MAX_VALUE = 32_767

_COST_OF_A_BIT = 1 << 8
"""Costs are whole numbers, so that their sums are the same on every machine."""

Coefficients = NDArray[np.int16]
_Integer = TypeVar("_Integer", bound=np.integer)


class Group(NamedTuple):
    """Neighbors that make one symbol."""

    first: int
    last: int
    """The component after the last."""
    limit: int

    @property
    def num_symbols(self) -> int:
        """Values of the symbol."""
        num_symbols: int = (2 * self.limit + 1) ** (self.last - self.first)
        return num_symbols


class Run(NamedTuple):
    """Neighboring groups that are alike, so that NumPy makes their symbols at once."""

    symbols: slice
    components: slice
    limit: int
    num_digits: int
    """Components of a symbol."""

    def by_digit(self, components: NDArray[_Integer]) -> NDArray[_Integer]:
        """Its components, one row each, [symbols of the run, digits, P]: a view."""
        num_components, num_positions = components.shape
        return components.reshape(num_components // self.num_digits, self.num_digits, num_positions)


@dataclass(frozen=True)
class CoefficientCode:
    """How coefficients are coded; raises ValueError where the parts do not fit together."""

    limits: NDArray[np.uint8]
    """m, [J]: from 1 to 127, never rising"""
    shares: rans.Frequencies
    """[256], the frequencies of the K classes, adding up to 2¹⁴"""
    frequencies: rans.Frequencies
    """[K, S, 256], each row adding up to 2¹⁴"""
    num_raw_bits: int = 0
    """Of a position: those of as many of the first components."""

    def __post_init__(self) -> None:
        limits = self.limits.astype(np.int64)
        if not len(limits) or limits.min() < 1 or limits.max() > MAX_LIMIT:
            raise ValueError(f"limits: expected numbers from 1 to {MAX_LIMIT}")
        if (np.diff(limits) > 0).any():
            raise ValueError("limits: expected numbers that do not rise")
        if not 0 <= self.num_raw_bits <= len(limits):
            raise ValueError(f"raw bits: expected from 0 to {len(limits)} of a position")
        expected = (len(self._groups), rans.NUM_SYMBOLS)
        if self.frequencies.shape[1:] != expected:
            raise ValueError(
                f"frequencies: expected {expected[0]} rows, found {self.frequencies.shape[1]}"
            )
        for group, rows in zip(self._groups, self.frequencies.transpose(1, 0, 2), strict=True):
            if not rows[:, : group.num_symbols].all() or rows[:, group.num_symbols :].any():
                raise ValueError(f"frequencies: expected {group.num_symbols} symbols, found others")
        _ = self.tables  # refuses other sums

    @property
    def num_classes(self) -> int:
        """K"""
        return len(self.frequencies)

    @property
    def num_symbols(self) -> int:
        """S"""
        return len(self._groups)

    @cached_property
    def _groups(self) -> tuple[Group, ...]:
        return tuple(groups_of(self.limits))

    @cached_property
    def _limits(self) -> NDArray[np.int16]:
        """m as one column, [J, 1]."""
        return self.limits.astype(np.int16)[:, None]

    @cached_property
    def tables(self) -> rans.Tables:
        """Of the symbols, and of the classes."""
        return rans.make_tables(self.shares, self.frequencies)

    @cached_property
    def _costs(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of each class, [K], and of each symbol in it, [S, K, 256]."""
        shares, of_symbols = (
            np.rint(-np.log2(np.maximum(part, 1) / rans.TOTAL) * _COST_OF_A_BIT).astype(np.int32)
            for part in (self.shares[: self.num_classes], self.frequencies)
        )
        return shares, np.ascontiguousarray(of_symbols.transpose(1, 0, 2))

    def prices(self) -> NDArray[np.float32]:
        """About how many bits each value from −127 to 127 of each component costs in each class,
        [K, J, 255].

        The bits of the class itself are in all prices of its first component.
        """
        whole = np.arange(-MAX_LIMIT, MAX_LIMIT + 1)
        prices = np.empty((self.num_classes, len(self.limits), len(whole)), np.float32)
        for index, (first, last, limit) in enumerate(self._groups):
            base, num_digits = 2 * limit + 1, last - first
            rows = self.frequencies[:, index, : base**num_digits]
            joint = rows.reshape(-1, *(base,) * num_digits) / rans.TOTAL
            for digit in range(num_digits):
                others = tuple(1 + axis for axis in range(num_digits) if axis != digit)
                is_halved = first + digit < self.num_raw_bits
                values = whole >> 1 if is_halved else whole
                clipped, excess = np.clip(values, -limit, limit) + limit, np.abs(values) - limit
                price = -np.log2(joint.sum(others))[:, clipped] + is_halved
                price += np.where(excess >= 0, _excess_bits(excess), 0)
                prices[:, first + digit] = price
        prices[:, 0] -= np.log2(self.shares[: self.num_classes, None] / rans.TOTAL)
        return prices

    def classes_of(self, symbols: rans.Symbols) -> NDArray[np.uint8]:
        """The class in which each position takes the fewest bits, the lowest of several, [P].

        ``symbols`` is [S, P]. An excess costs as much in every class.
        """
        of_classes, of_symbols = self._costs
        costs = np.repeat(of_classes[:, None], symbols.shape[1], 1)
        for row, of_row in zip(symbols, of_symbols, strict=True):
            costs += of_row.take(row, axis=1)
        classes: NDArray[np.uint8] = costs.argmin(0).astype(np.uint8)
        return classes

    def encode(self, coefficients: NDArray[np.integer]) -> bytes:
        """The bytes of [P, J]; raises ValueError where one is larger than a 16-bit number."""
        if (
            coefficients.size
            and not -MAX_VALUE <= coefficients.min() <= coefficients.max() <= MAX_VALUE
        ):
            raise ValueError(f"expected coefficients of at most ±{MAX_VALUE}")
        values, raw = split(coefficients.astype(np.int16).T, self.num_raw_bits)
        symbols = symbols_of(values, self._groups)
        excess = np.abs(values)
        excess -= self._limits
        rest = raw + bits.encode_numbers(excess[excess >= 0])
        return rans.encode(np.vstack([self.classes_of(symbols), symbols]), self.tables, rest)

    def decode(self, data: bytes | memoryview, num_positions: int) -> Coefficients:
        """The coefficients, [P, J]; raises ValueError unless ``data`` is what ``encode`` wrote."""
        symbols, rest = rans.decode(data, num_positions, self.tables)
        values = np.empty((len(self.limits), num_positions), np.int16)
        for run in runs_of(self._groups):
            of_run, digits = symbols[1:][run.symbols], run.by_digit(values[run.components])
            for digit, table in enumerate(_digits(run.limit, run.num_digits)):
                digits[:, digit] = table.take(of_run)
        num_bytes = -(-self.num_raw_bits * num_positions // 8)
        raw = bits.unpack(rest[:num_bytes], np.ones(self.num_raw_bits * num_positions, np.uint8))
        at_limit = np.abs(values) == self._limits
        excess = bits.decode_numbers(rest[num_bytes:], int(np.count_nonzero(at_limit)))
        if len(excess):
            clipped = values[at_limit].astype(np.int64)
            whole = clipped + np.sign(clipped) * excess
            if np.abs(whole).max() > MAX_VALUE:
                raise ValueError(f"expected coefficients of at most ±{MAX_VALUE}")
            values[at_limit] = whole
        halves = values[: self.num_raw_bits]
        if halves.size and (halves.max() > MAX_VALUE >> 1 or halves.min() < -MAX_VALUE >> 1):
            raise ValueError(f"expected coefficients of at most ±{MAX_VALUE}")
        halves *= 2
        halves += raw.reshape(halves.shape).astype(np.int16)
        if halves.size and halves.min() < -MAX_VALUE:
            raise ValueError(f"expected coefficients of at most ±{MAX_VALUE}")
        return np.ascontiguousarray(values.T)


def split(values: NDArray[_Integer], num_raw_bits: int) -> tuple[NDArray[_Integer], bytes]:
    """[J, P] with the halves of the first components, and their lowest bits."""
    halved = values.copy("C")
    halved[:num_raw_bits] >>= 1
    raw = (values[:num_raw_bits] & 1).astype(np.uint8)
    return halved, np.packbits(raw, bitorder="little").tobytes()


def _excess_bits(excess: NDArray[np.integer]) -> NDArray[np.float64]:
    """About what an excess takes: raw bits, and a class of about as many; see ``bits``."""
    num_bits: NDArray[np.float64] = 1.0 + 2.0 * np.ceil(np.log2(np.maximum(excess, 0) + 1.0))
    return num_bits


def groups_of(limits: NDArray[np.uint8]) -> list[Group]:
    """As many neighbors of one limit as have no more than 256 values together, again and again."""
    groups: list[Group] = []
    first = 0
    while first < len(limits):
        limit = int(limits[first])
        base = size = 2 * limit + 1
        last = first + 1
        while last < len(limits) and limits[last] == limit and size * base <= rans.NUM_SYMBOLS:
            size *= base
            last += 1
        groups.append(Group(first, last, limit))
        first = last
    return groups


def runs_of(groups: tuple[Group, ...]) -> Iterator[Run]:
    """The groups, those together that are as large and have the same limit."""
    first = 0
    for (limit, num_digits), same in groupby(groups, lambda g: (g.limit, g.last - g.first)):
        members = list(same)
        yield Run(
            slice(first, first + len(members)),
            slice(members[0].first, members[-1].last),
            limit,
            num_digits,
        )
        first += len(members)


def symbols_of(values: NDArray[np.integer], groups: tuple[Group, ...]) -> rans.Symbols:
    """[S, P] of [J, P], the first component being the most significant digit."""
    symbols = np.empty((len(groups), values.shape[1]), np.uint8)
    for run in runs_of(groups):
        limit = values.dtype.type(run.limit)
        clipped = np.clip(values[run.components], -limit, limit)
        clipped += limit
        digits, out = run.by_digit(clipped.astype(np.uint8)), symbols[run.symbols]
        out[:] = digits[:, 0]
        for digit in range(1, run.num_digits):
            out *= np.uint8(2 * run.limit + 1)
            out += digits[:, digit]
    return symbols


@cache
def _digits(limit: int, num_digits: int) -> Coefficients:
    """Of each of 256 symbols the values of its components, [number of digits, 256]."""
    base = 2 * limit + 1
    symbols = np.arange(rans.NUM_SYMBOLS)
    powers = base ** np.arange(num_digits - 1, -1, -1)
    values: Coefficients = (symbols // powers[:, None] % base - limit).astype(np.int16)
    return values
