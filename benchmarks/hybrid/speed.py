"""A hybrid student beside the teacher that it was converted from: prompts, generation, training.

The teacher is a Hugging Face model of random weights with its usual cache of keys and values, or
one read from --teacher; the student is what conversion makes of it. Neither speed nor
memory depends on what the weights are. Contenders alternate and medians are printed, because
machines are noisy. A ratio is the teacher's time over the student's: above 1 the student is
faster. Bytes of the training are the most that PyTorch has allocated within one step beyond
weights, their gradients and the optimizer's state, so what is saved for the backward pass and all
that lives beside it.
"""

from pathlib import Path
from typing import Any

import click

from benchmarks.quick import quick_option, show

FAMILIES = ("llama", "mistral", "olmo2", "qwen2", "qwen3")


@click.command("hybrid", help=__doc__)
@quick_option(
    width=128,
    layers=4,
    vocabulary=2048,
    contexts="512,2048",
    train_lengths="512,1024",
    repeats=1,
)
@click.option(
    "--teacher",
    type=click.Path(file_okay=False, path_type=Path),
    help="A model directory; replaces the sizes of a random one.",
)
@click.option("--family", type=click.Choice(FAMILIES), default="llama", show_default=True)
@click.option("--width", type=int, default=256, show_default=True)
@click.option("--layers", type=int, default=8, show_default=True)
@click.option("--heads", type=int, default=8, show_default=True, help="Of queries.")
@click.option("--groups", type=int, default=2, show_default=True, help="Heads of keys and values.")
@click.option("--vocabulary", type=int, default=8192, show_default=True)
@click.option("--pattern", default="hybrid", show_default=True, help="Of the student's layers.")
@click.option("--window", type=int, default=512, show_default=True)
@click.option("--contexts", default="512,2048,8192", show_default=True)
@click.option("--train-lengths", default="1024,2048", show_default=True, help="Positions of a row.")
@click.option("--repeats", type=int, default=3, show_default=True, help="16 tokens in each.")
@click.option("--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="fp32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def hybrid(as_json: bool, teacher: Path | None, device: str, precision: str, **sizes: Any) -> None:
    import torch

    from benchmarks.hybrid.generation import TOKENS_PER_REPEAT, generation
    from benchmarks.hybrid.models import Place, make_teacher, read_teacher
    from benchmarks.hybrid.training import training
    from benchmarks.progress import Progress
    from stages.compute.device import choose_device
    from stages.train_student.modeling.hybrid_xlstm.settings import HybridXLSTMSettings

    contexts, lengths = (_numbers(sizes[key]) for key in ("contexts", "train_lengths"))
    repeats = sizes["repeats"]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    place = Place(choose_device(device), dtype)
    model = make_teacher(sizes) if teacher is None else read_teacher(teacher)
    settings = HybridXLSTMSettings(pattern=sizes["pattern"], window=sizes["window"], trained="all")
    # What a token costs to train or to generate, in tokens of a prompt.
    num_tokens = (
        2 * (repeats + 1) * sum(contexts)
        + 16 * 2 * (TOKENS_PER_REPEAT * repeats + 1) * len(contexts)
        + 4 * 2 * (sum(lengths) + (repeats + 1) * max(lengths))
    )
    figures: dict[str, Any] = {"threads": torch.get_num_threads()}
    with Progress("hybrid", num_tokens, unit=" tok") as progress:
        progress.say("prompts and generated tokens, student and teacher in turn")
        figures |= generation(model, settings, place, contexts, repeats, progress.done)
        progress.say("training: alignment, and all weights")
        figures |= training(model, settings, place, lengths, repeats, progress.done)
    show(figures, as_json, _table)


def _table(figures: dict[str, Any]) -> str:
    """What there is for each context as rows of a table, the rest as lines."""
    of_contexts = {
        f"{name} {who}": values
        for name, both in figures.items()
        if isinstance(both, dict)
        for who, values in both.items()
    }
    columns = list(next(iter(of_contexts.values())))
    lines = ["".join([" " * 32, *(f"{int(context):>14,}" for context in columns)])]
    for name, values in of_contexts.items():
        cells = [f"{values[context]:>14,.{2 if 'ms' in name else 0}f}" for context in columns]
        lines.append("".join([f"{name:32}", *cells]))
    lines += [
        f"{name:32}{value:>14}" for name, value in figures.items() if not isinstance(value, dict)
    ]
    return "\n".join(lines)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
