"""What the cache's benchmarks print has the fields that are promised, and plausible values."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from benchmarks.__main__ import main
from benchmarks.hidden_codec import entropy_bits
from pipeline.demo.run import TEACHER


@pytest.fixture(scope="module")
def logits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,096 positions over 4,000 ids, with a Zipf-like prior."""
    random = np.random.default_rng(0)
    prior = -1.1 * np.log(np.arange(1, 4001))
    logits_PV = (prior + 2 * random.normal(size=(4096, 4000))).astype(np.float32)
    order = np.argsort(-logits_PV, 1)
    fields = {
        "logits": np.take_along_axis(logits_PV, order, 1)[:, :256],
        "ids": order[:, :256].astype(np.int32),
        "log_z_t1": np.log(np.exp(logits_PV).sum(1)),
        "log_z_t2": np.log(np.exp(logits_PV / 2).sum(1)),
        "label": order[:, 1].astype(np.int32),
    }
    path = tmp_path_factory.mktemp("logits") / "logits.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in fields.items()}, path)
    return path


def test_the_codec_benchmark_reports_sizes_divergence_and_speed(
    logits_file: Path, text_corpus: Path
) -> None:
    arguments = ["codec", "--json", "--repeats", "1", "--rows", "4", "--logits", str(logits_file)]
    arguments += ["--teacher", str(TEACHER), "--corpus", str(text_corpus)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    figures = json.loads(result.stdout)
    for top_k, most_bytes in ((32, 70), (64, 130), (128, 250)):
        assert 10 < figures[f"bytes_per_token_k{top_k}"] < most_bytes
        assert 0 < figures[f"kl_nats_t1_k{top_k}"] < 3e-4
        assert 0 < figures[f"kl_nats_t2_k{top_k}"] < 3e-4
    assert figures["encode_tokens_per_s_k64"] > 0
    assert figures["decode_tokens_per_s_k64"] > 0
    # Each row has coding states of its own, and frequencies are those of other rows.
    entropy = figures["hidden_entropy_bytes_per_token"]
    assert 30 < entropy < figures["hidden_bytes_per_token"] < 1.25 * entropy
    assert 0 < figures["hidden_kl_nats_t2"] < figures["hidden_kl_nats_t1"] < 0.06
    assert figures["hidden_encode_tokens_per_s"] > 0
    assert figures["hidden_decode_tokens_per_s"] > 0


def test_the_entropy_of_coefficients_is_summed_over_components() -> None:
    coefficients = np.array([[0, 1, 5], [0, -1, 5], [3, 1, 5], [2, -1, 5]], np.int16)
    assert entropy_bits(coefficients) == pytest.approx(1.5 + 1 + 0)


def test_the_codec_benchmark_asks_for_a_tokenizer_of_a_corpus_without_a_teacher(
    logits_file: Path,
) -> None:
    arguments = ["codec", "--logits", str(logits_file), "--corpus", str(logits_file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--corpus and --tokenizer belong together" in result.output


def test_the_loader_benchmark_compares_speed_and_size_with_arrow_and_parquet(
    logits_file: Path,
) -> None:
    arguments = ["loader", "--json", "--repeats", "1", "--logits", str(logits_file)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    figures = json.loads(result.stdout)
    assert figures["sequential_tokens_per_s"] > 0
    assert figures["random_tokens_per_s"] > 0
    assert figures["bytes_per_token"] < figures["arrow_bytes_per_token"]
    assert figures["bytes_per_token"] < figures["parquet_bytes_per_token"]
    assert {"sequential_speed_over_arrow", "random_speed_over_parquet"} <= figures.keys()
