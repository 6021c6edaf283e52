"""What the cache's benchmarks print has the fields that are promised, and plausible values."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from benchmarks.__main__ import main


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


def test_the_codec_benchmark_reports_sizes_divergence_and_speed(logits_file: Path) -> None:
    arguments = ["codec", "--json", "--repeats", "1", "--logits", str(logits_file)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    figures = json.loads(result.output)
    for top_k, most_bytes in ((32, 70), (64, 130), (128, 250)):
        assert 10 < figures[f"bytes_per_token_k{top_k}"] < most_bytes
        assert 0 < figures[f"kl_nats_t1_k{top_k}"] < 3e-4
        assert 0 < figures[f"kl_nats_t2_k{top_k}"] < 3e-4
    assert figures["encode_tokens_per_s_k64"] > 0
    assert figures["decode_tokens_per_s_k64"] > 0


def test_the_loader_benchmark_compares_speed_and_size_with_arrow_and_parquet(
    logits_file: Path,
) -> None:
    arguments = ["loader", "--json", "--repeats", "1", "--logits", str(logits_file)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    figures = json.loads(result.output)
    assert figures["sequential_tokens_per_s"] > 0
    assert figures["random_tokens_per_s"] > 0
    assert figures["bytes_per_token"] < figures["arrow_bytes_per_token"]
    assert figures["bytes_per_token"] < figures["parquet_bytes_per_token"]
    assert {"sequential_speed_over_arrow", "random_speed_over_parquet"} <= figures.keys()
