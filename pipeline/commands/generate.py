"""``pipeline generate``: text from a trained student."""

from pathlib import Path

import click

from pipeline.options.cache_location import RUN, CacheLocation
from pipeline.options.finite_range import FiniteRange
from pipeline.runtime.silence_libraries import silence_libraries

_SMALLEST_TEMPERATURE = 1e-6  # logits divided by less than this may not fit a float32


@click.command()
@click.argument("run", type=RUN)
@click.option("--prompt", required=True, help="The text to continue.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1, max=2**31 - 1),
    default=128,
    show_default=True,
    metavar="N",
)
@click.option(
    "--temperature",
    type=FiniteRange(min=0.0, max=1e6),
    default=0.8,
    show_default=True,
    help="Sampling temperature; 0 is greedy decoding.",
)
@click.option(
    "--top-k", type=click.IntRange(min=1, max=2**31 - 1), default=50, show_default=True, metavar="K"
)
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True)
@click.option(
    "--cache",
    type=CacheLocation(exists=True),
    help="The cache that an unfinished run was trained from, if it has moved.",
)
def generate(
    run: Path,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    cache: Path | str | None,
) -> None:
    """Generate text with a trained student.

    \b
      pipeline generate run --prompt "The cell" --max-new-tokens 64

    RUN is what train-student wrote with --out, or a model directory. For an unfinished run, the
    newest checkpoint is used; RUN/checkpoints/step-0000500 names one. Embedding, head and tokenizer
    then come from the run's cache. Text is printed as it is generated.
    """
    if 0 < temperature < _SMALLEST_TEMPERATURE:
        raise click.BadParameter(
            f"expected 0, or {_SMALLEST_TEMPERATURE:g} and more, found {temperature:g}.",
            param_hint="'--temperature'",
        )
    from pipeline.students.student_files import require_student

    require_student(run)  # or a refusal, before what takes long to import
    silence_libraries()
    from pipeline.reporting.printable import printable
    from pipeline.students.generation import Sampling, require_text, stream_text
    from pipeline.students.student_files import student_files

    sampling = Sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, seed=seed
    )
    require_text(prompt)
    with student_files(run, cache, lambda line: click.echo(printable(line), err=True)) as student:
        stream_text(
            student.directory,
            prompt,
            sampling,
            lambda text: click.echo(printable(text), nl=False),
        )
