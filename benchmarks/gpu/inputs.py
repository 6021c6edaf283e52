"""What the parts share: a teacher of random weights, and random text.

In: a directory and a teacher's dimensions. Out: ``teacher-NAME`` and ``text.parquet`` in it. No
network is needed, and no data.
"""

import json
import random
import string
from itertools import accumulate
from pathlib import Path

import click

from benchmarks.stage_one import PRESETS, save_random_teacher, teacher_in, text_in

_NUM_WORDS = 4_000  # of the text's vocabulary, drawn by Zipf's law


@click.command("inputs", help=__doc__)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--teacher", "preset", type=click.Choice(sorted(PRESETS)), required=True)
@click.option("--documents", type=int, default=1_500, show_default=True)
@click.option("--words", type=int, default=500, show_default=True, help="Of a document.")
@click.option("--device", default="cpu", show_default=True, help="Where weights are drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inputs(out: Path, preset: str, documents: int, words: int, device: str, as_json: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_random_teacher(teacher_in(out, preset), preset, device)
    write_random_text(text_in(out), documents, words)
    num_bytes = sum(path.stat().st_size for path in teacher_in(out, preset).iterdir())
    figures = {"teacher": preset, "teacher_bytes": num_bytes, "documents": documents}
    click.echo(json.dumps(figures) if as_json else figures)


def write_random_text(path: Path, num_documents: int, num_words: int) -> None:
    """The same words every time, none of which means anything."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(0)
    words = [
        "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 7))) for _ in range(_NUM_WORDS)
    ]
    weights = list(accumulate(1 / (3 + rank) for rank in range(_NUM_WORDS)))
    texts = [
        " ".join(rng.choices(words, cum_weights=weights, k=num_words)) for _ in range(num_documents)
    ]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=16)
