"""The student: its sLSTM beside the package's, the mLSTM in chunks, its blocks, and generation.

Contenders alternate and medians or their ratios are printed, because machines are noisy. Peaks are
what PyTorch has allocated within one forward and backward pass.
"""

from typing import Any

import click

from benchmarks.quick import quick_option, show


@click.command("student", help=__doc__)
@quick_option(
    positions=128,
    batch=4,
    mlstm_lengths="128,512",
    stack_widths="512",
    stack_positions=256,
    contexts="128,512",
    repeats=1,
)
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
    from benchmarks.progress import Progress

    lengths, widths, contexts = (
        _numbers(sizes[name]) for name in ("mlstm_lengths", "stack_widths", "contexts")
    )
    # One of sLSTM, one of each length, width and context.
    num_parts = 1 + len(lengths) + len(widths) + len(contexts)
    with Progress("student", num_parts, unit=" parts") as progress:
        figures: dict[str, Any] = {
            **slstm_beside_vanilla(sizes["width"], sizes["positions"], sizes["batch"], repeats)
        }
        progress.done("sLSTM")
        figures["mlstm_over_one_chunk"] = mlstm_beside_one_chunk(
            sizes["head_width"], lengths, repeats, progress.done
        )
        stack = (sizes["stack_positions"], sizes["stack_batch"])
        figures["tokens_per_s"] = {}
        for width in widths:
            rates = blocks_tokens_per_second(width, *stack, repeats)
            figures["tokens_per_s"][str(width)] = rates
            progress.done(f"blocks of width {width}")
        figures |= generation(sizes["generation_width"], contexts, repeats, progress.done)
    show(figures, as_json)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
