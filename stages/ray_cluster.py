"""Ray, as stages use it: a connection to a cluster, and how many workers it has room for.

In: an address, and the number of workers that is wanted. Out: the module ``ray``, connected. Ray is
an extra that need not be installed; nothing else imports it.
"""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cache_format.errors import AdvisedError, NextStep
from stages.next_steps import StageAction


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """The module ``ray``, connected to the cluster at ``address``; by default $RAY_ADDRESS, or one
    that is started for the block. One that was connected before stays so.

    Raises ValueError where Ray is not installed, or the cluster cannot be reached.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent unless one says so
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
    except ImportError as error:
        raise ValueError(
            "Ray is not installed here. Install it: pip install 'xlstm-distill[ray]'"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    own: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        _require_reachable(address or "")
        with _signals_kept():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        what = f"the cluster at {address} cannot be reached" if address else "cannot be started"
        raise AdvisedError(
            f"Ray: {what}: {error}.",
            NextStep(
                "Check that `ray status` works there, or give no address (nor $RAY_ADDRESS) to use "
                "a local cluster.",
                StageAction.RAY_ADDRESS,
            ),
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and would end the program without a word of what is kept."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _require_reachable(address: str) -> None:
    """Raise OSError where nobody listens at ``host:port``; Ray itself would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^:/]+):([0-9]+)", address)
    if match is not None:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


def num_workers_with_room(
    nodes: Sequence[Mapping[str, Any]], has_gpus: bool, wanted: int | None
) -> int:
    """How many workers there are to be, each with a processor and, if there are any, a GPU.

    Raises ValueError where that is more than the cluster, as it is now, can ever have room for: Ray
    would wait for the others without a word. What is in use by others counts as room, for they end.
    """
    needs = ("CPU", "GPU") if has_gpus else ("CPU",)
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    room = sum(min(int(resources.get(name, 0)) for name in needs) for resources in alive)
    num_workers = wanted or max(1, room if has_gpus else 1)
    if num_workers > room:
        has = " and ".join(
            f"{sum(node.get(name, 0) for node in alive):g} {name}s" for name in needs
        )
        use = f"use {room} workers, or " if room else ""
        raise AdvisedError(
            f"Ray: {num_workers} workers need 1 {' and 1 '.join(needs)} each, on one "
            f"machine; the cluster has {has}, enough for {room}.",
            NextStep(
                f"To continue, {use}add machines to the cluster first (`ray status` shows them).",
                StageAction.RAY_WORKERS,
            ),
        )
    return num_workers
