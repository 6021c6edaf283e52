"""The sLSTM scan beside the package's vanilla one: the same weights, forward and backward.

Runs alternate and the ratio of their medians is printed, because machines are noisy.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import click


@click.command("student", help=__doc__)
@click.option("--width", type=int, default=512, show_default=True)
@click.option("--positions", type=int, default=256, show_default=True)
@click.option("--batch", type=int, default=8, show_default=True)
@click.option("--repeats", type=int, default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def student(width: int, positions: int, batch: int, repeats: int, as_json: bool) -> None:
    ours, vanilla = _contenders(width, positions, batch)
    seconds: dict[str, list[float]] = {"ours": [], "vanilla": []}
    for _ in range(repeats + 1):
        for name, run in (("ours", ours), ("vanilla", vanilla)):
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    figures = {
        "slstm_speedup_over_vanilla": round(median["vanilla"] / median["ours"], 2),
        "ours_tokens_per_s": round(batch * positions / median["ours"]),
        "vanilla_tokens_per_s": round(batch * positions / median["vanilla"]),
    }
    lines = [f"{name:32}{value}" for name, value in figures.items()]
    click.echo(json.dumps(figures) if as_json else "\n".join(lines))


def _contenders(
    width: int, positions: int, batch: int
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward and backward of one sLSTM layer, ours and the package's."""
    import torch

    from stages.train_student.student.document_layout import lay_out_documents
    from stages.train_student.student.isolated_stack import slstm_layer_forward
    from stages.train_student.student.package_stack import StackSettings, make_stack

    stack: Any = make_stack(
        StackSettings(
            hidden_size=width,
            num_blocks=1,
            slstm_at=(0,),
            num_heads=4,
            conv_kernel=4,
            qkv_block_size=4,
            feedforward_factor=1.7,
            mlstm_factor=2.0,
            dropout=0.0,
        )
    )
    layer = stack.blocks[0].xlstm
    parameters = list(layer.parameters())
    x_BTD = torch.randn(batch, positions, width)
    layout = lay_out_documents(None, x_BTD, conv_kernel=4, has_state=False)

    def ours() -> None:
        y_BTD, _ = slstm_layer_forward(layer, x_BTD, layout, None)
        torch.autograd.grad(y_BTD.square().sum(), parameters)

    def vanilla() -> None:
        torch.autograd.grad(layer(x_BTD).square().sum(), parameters)

    return ours, vanilla
