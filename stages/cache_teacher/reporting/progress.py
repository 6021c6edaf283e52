"""How far stage one is: what has been made, how fast, and how much the device waited.

In: what the units' makers tell, from any thread. Out: a ``CacheProgress`` for whoever shows it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cache_format.metadata.receipt import ShardEntry
from stages.cache_teacher.config import ALL_UNITS, UnitRange
from stages.cache_teacher.reporting.device_use import DeviceUse
from stages.cache_teacher.worker_share import WorkerShare

Phase = Literal[
    "resolving",
    "waiting for workers",
    "loading teacher",
    "fitting",
    "caching",
    "done",
    "corpus ended",
]


@dataclass(frozen=True, kw_only=True)
class CacheProgress:
    """How far stage one is. Tokens are positions."""

    phase: Phase
    tokens_done: int
    """Positions of the budget that the cache holds, those of the open units included."""
    tokens_total: int
    """The budget; of a part of the units what they will hold, as far as can be told."""
    tokens_cached_this_run: int
    bytes_written: int
    """Bytes of the shards finished by this run."""
    bytes_held: int = 0
    """Bytes of the shards that this run has finished or found finished."""
    unit: int
    """The unit that the device was last given."""
    corpus_position: str
    """File and documents of that unit."""
    documents: int
    """Documents cached by this run."""
    units_made: int = 0
    """Units finished by this run."""
    seconds: float = 0.0
    """Since the first unit was begun."""
    device_wait_share: float | None = None
    """The share of that time in which the devices were at no forward pass; None before there is
    any. Gaps within a pass are not in it."""
    mfu: float | None = None
    """Operations that the model needs, over those the devices could have done; None where not
    known."""
    missing_units: tuple[int, ...] = ()
    """Needed units that were not finished when this run ended: other workers', or a part's."""
    message: str = ""
    """What is to be said once, at this moment; mostly nothing."""


class Progress:
    """What has been done so far, told to ``report`` at every row and change of phase."""

    def __init__(
        self,
        num_tokens: int,
        units: UnitRange | WorkerShare,
        report: Callable[[CacheProgress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_tokens, self._units = num_tokens, units
        self._report, self._clock = report, clock
        self._lock = threading.RLock()
        self._begin: float | None = None
        self._use = DeviceUse()
        self._peak: float | None = None
        self._num_devices = 1
        self._num_units, self._closed_tokens = 0, 0
        self._counted: dict[int, int] = {}
        self._now = CacheProgress(
            phase="resolving",
            tokens_done=0,
            tokens_total=num_tokens,
            tokens_cached_this_run=0,
            bytes_written=0,
            unit=0,
            corpus_position="",
            documents=0,
        )
        self._show_total()

    @property
    def use(self) -> DeviceUse:
        """What the devices have done so far."""
        return self._use

    @property
    def peak_operations(self) -> float | None:
        """The devices' peak, operations a second of each; None where it is not known."""
        return self._peak

    def show(self, phase: Phase, missing_units: tuple[int, ...] = ()) -> None:
        """Tell that a phase has begun."""
        with self._lock:
            if phase == "caching" and self._begin is None:
                self._begin = self._clock()
            self._tell(phase=phase, missing_units=missing_units)

    def say(self, message: str) -> None:
        """Tell something once."""
        with self._lock:
            self._report(replace(self._now, message=message))

    def know_device(self, peak_operations: float | None, num_devices: int = 1) -> None:
        """The devices' peak, operations a second of each; None where it is not known."""
        with self._lock:
            self._peak, self._num_devices = peak_operations, num_devices

    def begin_unit(self, unit: int, corpus_position: str) -> None:
        """The device is given ``unit``."""
        with self._lock:
            self._now = replace(self._now, unit=unit, corpus_position=corpus_position)
            self.show("caching")

    def used(self, use: DeviceUse) -> None:
        """A device has done this much more."""
        with self._lock:
            self._use += use

    def count_row(self, unit: int, num_tokens: int) -> None:
        """A row of ``unit`` has been made."""
        with self._lock:
            self._counted[unit] = self._counted.get(unit, 0) + num_tokens
            self._count(num_tokens)

    def found_unit(self, entry: ShardEntry) -> None:
        """The unit was finished before this run."""
        with self._lock:
            self._close(entry)
            self._now = replace(self._now, tokens_done=self._now.tokens_done + entry.num_tokens)

    def made_unit(self, entry: ShardEntry) -> None:
        """This run has finished a unit, of which some rows may have been counted."""
        with self._lock:
            rest = entry.num_tokens - self._counted.pop(entry.unit, 0)
            if rest:
                self._count(rest)
            self._close(entry)
            self._now = replace(
                self._now,
                bytes_written=self._now.bytes_written + entry.num_bytes,
                documents=self._now.documents + entry.num_documents,
                units_made=self._now.units_made + 1,
            )

    def _count(self, num_tokens: int) -> None:
        self._tell(
            phase="caching",
            tokens_done=self._now.tokens_done + num_tokens,
            tokens_cached_this_run=self._now.tokens_cached_this_run + num_tokens,
        )

    def _tell(self, **changes: object) -> None:
        if self._begin is not None:
            seconds = self._clock() - self._begin
            device_seconds = seconds * self._num_devices
            changes |= {
                "seconds": seconds,
                "device_wait_share": self._use.wait_share(device_seconds),
                "mfu": self._mfu(device_seconds),
            }
        self._now = replace(self._now, **changes)  # type: ignore[arg-type]
        self._report(self._now)

    def _mfu(self, device_seconds: float) -> float | None:
        if self._peak is None or self._use.num_operations == 0 or device_seconds <= 0:
            return None
        return self._use.num_operations / (device_seconds * self._peak)

    def _close(self, entry: ShardEntry) -> None:
        self._num_units += 1
        self._closed_tokens += entry.num_tokens
        self._now = replace(self._now, bytes_held=self._now.bytes_held + entry.num_bytes)
        self._show_total()

    def _show_total(self) -> None:
        """What a part will hold, if all units are like those so far."""
        units = self._units
        if isinstance(units, WorkerShare):
            total = max(self._closed_tokens, -(-self._num_tokens // units.num_workers))
        elif units != ALL_UNITS and self._num_units:
            mean = self._closed_tokens / self._num_units
            last = self._num_tokens / max(1.0, mean)
            last = last if units.end is None else units.end
            total = max(self._closed_tokens, round(mean * (last - units.first)))
        else:
            return
        self._now = replace(self._now, tokens_total=total)
