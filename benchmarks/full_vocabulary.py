"""Both stages at the real vocabulary: a randomly initialised Qwen2 over real text.

Weights cannot be worse for compression than random ones, and neither speed nor memory depends on
them. Each stage is the ordinary command in a process of its own, so that peak memory is that
stage's alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click


@click.command("full-vocabulary", help=__doc__)
@click.option("--tokenizer", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--corpus", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--width", type=int, default=256, show_default=True)
@click.option("--layers", type=int, default=4, show_default=True)
@click.option("--tokens", default="60K", show_default=True, help="Budget of the cache.")
@click.option("--steps", type=int, default=6, show_default=True, help="Optimizer steps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def full_vocabulary(
    tokenizer: Path,
    corpus: Path,
    width: int,
    layers: int,
    tokens: str,
    steps: int,
    as_json: bool,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        make_random_teacher(work / "teacher", tokenizer, width, layers)
        cache_seconds, cache_peak = _run(
            *("cache-teacher", "--recipe", "distil-xlstm", "--out", str(work / "cache")),
            *("--tokens", tokens),
            *_settings(
                "cache_teacher",
                teacher=json.dumps(str(work / "teacher")),
                corpus=json.dumps(str(corpus)),
                documents_per_unit=32,
                validation_every=4,
                rows_per_forward=4,
                head_chunk=256,
            ),
        )
        train_seconds, train_peak = _run(
            *("train-student", "--recipe", "distil-xlstm", "--cache", str(work / "cache")),
            *("--out", str(work / "run")),
            *_settings(
                "train_student",
                precision="fp32",
                batch_size=2,
                accumulation=2,
                max_steps=steps,
                log_every=1,
                validation_rows=4,
            ),
        )
        manifest = json.loads((work / "cache" / "manifest.json").read_text())
        speeds = [
            row["speed/tokens_per_second"]
            for row in map(json.loads, (work / "run" / "metrics.jsonl").open())
            if "speed/tokens_per_second" in row
        ]
    num_tokens = sum(shard["num_tokens"] for shard in manifest["shards"])
    num_bytes = sum(shard["num_bytes"] for shard in manifest["shards"])
    figures = {
        "tokens": num_tokens,
        "bytes_per_token": round(num_bytes / num_tokens, 1),
        "stage_one_tokens_per_s_start_included": round(num_tokens / cache_seconds, 1),
        "stage_one_peak_mib": cache_peak,
        "stage_two_tokens_per_s": round(sorted(speeds)[len(speeds) // 2], 1),
        "stage_two_seconds": round(train_seconds, 1),
        "stage_two_peak_mib": train_peak,
    }
    if as_json:
        click.echo(json.dumps(figures))
    else:
        for name, value in figures.items():
            click.echo(f"{name:40}{value:>12,}")


def make_random_teacher(target: Path, tokenizer: Path, width: int, layers: int) -> None:
    """A ``Qwen2ForCausalLM`` with the full 151,936-row head and the tokenizer beside it."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 128),
        tie_word_embeddings=True,
    )
    model: Any = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(target)


def _settings(table: str, **values: object) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{table}.{key}={value}")]


def _run(*arguments: str) -> tuple[float, int]:
    """Wall seconds and peak resident MiB of one command of the pipeline."""
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise click.ClickException(f"pipeline {arguments[0]} failed")
    return time.monotonic() - begin, usage.ru_maxrss // 1024
