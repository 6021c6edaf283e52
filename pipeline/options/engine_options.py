"""Who makes the units of a cache: this process, a worker's share of them, or a Ray cluster."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from pipeline.options.ray_options import RayOptions
from stages.cache_teacher.config import ALL_UNITS, UnitRange
from stages.cache_teacher.worker_share import WorkerShare

if TYPE_CHECKING:
    from stages.cache_teacher.engine.engine import Engine


@dataclass(frozen=True, kw_only=True)
class EngineOptions(RayOptions):
    """Who makes the units, as the command line has it."""

    units: str | None = None
    worker: str | None = None

    def checked(self) -> "EngineOptions":
        """Itself. Raises UsageError where options do not go together, or mean nothing."""
        self.share()
        if self.units is not None and self.worker is not None:
            raise click.UsageError("--units and --worker: each selects the units; give only one")
        if self.is_ray and (self.units is not None or self.worker is not None):
            raise click.UsageError("--engine ray caches all units: leave out --units and --worker")
        self.require_consistent()
        return self

    def share(self) -> UnitRange | WorkerShare:
        """The units to make."""
        hint = "--units" if self.worker is None else "--worker"
        try:
            if self.worker is not None:
                return WorkerShare.parse(self.worker, os.environ)
            return ALL_UNITS if self.units is None else UnitRange.parse(self.units)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=hint) from error

    def cluster(self) -> "Engine | None":
        """The cluster, if one is asked for."""
        from stages.cache_teacher.engine.ray_engine import RayEngine

        if not self.is_ray:
            return None
        return RayEngine(num_workers=self.ray_workers, address=self.ray_address)
