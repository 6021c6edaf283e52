"""Everything that is measured on a GPU, within one budget of time: prints and writes one JSON.

In: a device and a directory. Out: ``DIR/gpu.json`` with hardware, driver, versions, commit, and the
figures of each part; ``DIR/NAME.log`` has what each part said besides. A part that fails does not
end the others. Teacher and text are made of random numbers; figures do not depend on what they are.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu.part_process import run_part
from benchmarks.gpu.parts import INPUTS, Part, Scale, all_parts

_RESERVE_SECONDS = 5  # to end what runs, and to write


@click.command("gpu", help=__doc__)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Directory."
)
@click.option("--seconds", type=float, default=540, show_default=True, help="Of all parts.")
@click.option("--device", default="cuda", show_default=True, help="cuda, or cpu to try it out.")
@click.option("--tiny", "is_tiny", is_flag=True, help="Small sizes, whose figures say nothing.")
@click.option("--only", multiple=True, help="A part by its name; may be given several times.")
def gpu(out: Path, seconds: float, device: str, is_tiny: bool, only: tuple[str, ...]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds - _RESERVE_SECONDS
    with tempfile.TemporaryDirectory() as work:
        scale = Scale(device=device, is_tiny=is_tiny, work=Path(work))
        parts = _chosen(list(all_parts(scale)), only)
        where = Part(
            name="environment",
            arguments=("environment", "--device", device),
            expected_seconds=30,
        )
        found = run_part(where, where.limit_seconds, out / "environment.log")
        if "failed" in found:
            raise click.ClickException(f"{device}: {found['failed']}")
        document = {"environment": found["figures"], "is_tiny": is_tiny, "parts": {}}
        has_all = _run(parts, end, out, document)
    click.echo(json.dumps(document))
    if not has_all:
        sys.exit(1)


def _run(parts: Iterable[Part], end: float, out: Path, document: dict[str, Any]) -> bool:
    """Run ``parts`` and write what is found after each; returns whether each has its figures."""
    failed: list[str] = []
    skipped: list[str] = []
    for part in parts:
        found = _of_part(part, end - time.monotonic(), INPUTS in failed, out)
        document["parts"][part.name] = found
        _write(out / "gpu.json", document)
        state = next(key for key in ("figures", "failed", "skipped") if key in found)
        detail = "" if state == "figures" else f": {found[state]}"
        click.echo(f"{part.name:28}{found['seconds']:7.1f} s  {state}{detail}", err=True)
        failed += [part.name] * (state == "failed")
        skipped += [part.name] * (state == "skipped")
    for what, names in (("failed", failed), ("skipped", skipped)):
        if names:
            click.echo(f"{len(names)} parts {what}: {', '.join(names)}", err=True)
    return not failed


def _of_part(part: Part, seconds_left: float, lacks_inputs: bool, out: Path) -> dict[str, Any]:
    skipped = ""
    if lacks_inputs and part.needs_inputs:
        skipped = "there is no teacher"
    elif seconds_left < part.expected_seconds:
        skipped = f"{max(0.0, seconds_left):.0f} s are left, and it takes {part.expected_seconds}"
    if skipped:
        return {"arguments": " ".join(part.arguments), "seconds": 0.0, "skipped": skipped}
    limit = min(seconds_left, part.limit_seconds)
    return run_part(part, limit, out / f"{part.name}.log")


def _chosen(parts: list[Part], only: tuple[str, ...]) -> list[Part]:
    """Those named, and the inputs that most need; all of them if none is named."""
    unknown = set(only) - {part.name for part in parts}
    if unknown:
        names = ", ".join(part.name for part in parts)
        raise click.UsageError(f"--only {', '.join(sorted(unknown))}: the parts are {names}")
    return [part for part in parts if not only or part.name in (INPUTS, *only)]


def _write(target: Path, document: dict[str, Any]) -> None:
    """The file is whole at any moment."""
    new = target.with_suffix(".new")
    new.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    os.replace(new, target)
