"""``--engine``, ``--ray-workers`` and ``--ray-address``, for commands that can use a cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def ray_options(*, engine_help: str, workers_help: str) -> Callable[[_Command], _Command]:
    """The three options; the texts say what runs, and how much of it at a time."""
    engine = click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help=engine_help,
    )
    workers = click.option(
        "--ray-workers",
        type=click.IntRange(min=1, max=65_536),
        metavar="N",
        help=workers_help,
    )
    address = click.option(
        "--ray-address",
        help="Address of the cluster; by default $RAY_ADDRESS, or a new local cluster.",
    )
    return lambda command: engine(workers(address(command)))


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """The three, as the command line has them."""

    engine: str = "local"
    ray_workers: int | None = None
    ray_address: str | None = None

    @property
    def is_ray(self) -> bool:
        """Whether a cluster is asked for."""
        return self.engine == "ray"

    def require_consistent(self) -> None:
        """Raise UsageError where one is given that means nothing."""
        if not self.is_ray and (self.ray_workers or self.ray_address):
            raise click.UsageError("--ray-workers and --ray-address go with --engine ray")
