"""The student: its sLSTM beside the package's, the mLSTM in chunks, its blocks, and generation.

Contenders alternate and medians or their ratios are printed, because machines are noisy. Peaks are
what PyTorch has allocated within one forward and backward pass.
"""

import json
from typing import Any

import click


@click.command("student", help=__doc__)
@click.option("--width", type=int, default=512, show_default=True, help="Of the sLSTM layer.")
@click.option("--positions", type=int, default=256, show_default=True, help="Of the sLSTM layer.")
@click.option("--batch", type=int, default=8, show_default=True, help="Of the sLSTM layer.")
@click.option("--head-width", type=int, default=192, show_default=True, help="Of the mLSTM.")
@click.option("--mlstm-lengths", default="128,256,512,1024,2048", show_default=True)
@click.option(
    "--stack-widths",
    default="512,1536",
    show_default=True,
    help="1536: the paper's.",
)
@click.option("--stack-positions", type=int, default=512, show_default=True)
@click.option("--stack-batch", type=int, default=2, show_default=True)
@click.option("--generation-width", type=int, default=256, show_default=True)
@click.option("--contexts", default="128,512,2048,8192", show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def student(as_json: bool, repeats: int, **sizes: Any) -> None:
    from benchmarks.generation import generation
    from benchmarks.layers import (
        blocks_tokens_per_second,
        mlstm_beside_one_chunk,
        slstm_beside_vanilla,
    )

    figures: dict[str, Any] = {
        **slstm_beside_vanilla(sizes["width"], sizes["positions"], sizes["batch"], repeats),
        "mlstm_over_one_chunk": mlstm_beside_one_chunk(
            sizes["head_width"], _numbers(sizes["mlstm_lengths"]), repeats
        ),
        "tokens_per_s": {
            str(width): blocks_tokens_per_second(
                width, sizes["stack_positions"], sizes["stack_batch"], repeats
            )
            for width in _numbers(sizes["stack_widths"])
        },
        **generation(sizes["generation_width"], _numbers(sizes["contexts"]), repeats),
    }
    lines = [f"{name:40}{value}" for name, value in figures.items()]
    click.echo(json.dumps(figures) if as_json else "\n".join(lines))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
