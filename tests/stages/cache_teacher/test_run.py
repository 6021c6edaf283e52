"""What a cache holds after a run of stage one: every token once, and the teacher's true targets.

T positions, V vocabulary.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_format.codec.row_codec import Row
from cache_format.tables.random_projection import sketch_signs
from cache_format.tools.verify import verify
from tests.support.stage_one_runs import TEXTS, Bench, rows_by_unit
from tests.support.tiny import write_fineweb_parquet


def independent_stream(teacher: Path, texts: list[str]) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    return [i for text in texts for i in [*tokenizer.encode(text).ids, 0]]


def test_no_row_is_lost_or_repeated(bench: Bench) -> None:
    manifest = bench.run()
    assert [entry.unit for entry in manifest.shards] == list(range(8))
    rows = rows_by_unit(bench.open())
    for entry in manifest.shards:
        texts = TEXTS[10 * entry.unit : 10 * entry.unit + 10]
        stream = independent_stream(bench.teacher, texts)
        ids = [row.token_ids for unit, row in rows if unit == entry.unit]
        joined = [*np.concatenate([row[:-1] for row in ids]).tolist(), int(ids[-1][-1])]
        assert joined == stream[: len(joined)]
        assert all(one[-1] == other[0] for one, other in pairwise(ids))
        assert entry.num_dropped_tokens == len(stream) - len(joined) < 32
        assert entry.num_documents == 10


def test_targets_of_a_packed_document_equal_those_of_the_document_alone(bench: Bench) -> None:
    from transformers import AutoModelForCausalLM

    bench.run()
    model = AutoModelForCausalLM.from_pretrained(bench.teacher, dtype=torch.float32)
    num_checked = 0
    for _, row in rows_by_unit(bench.open())[::7]:
        bounds = [0, *row.document_starts.tolist(), 33]
        ends_T = np.cumsum(row.kept.num_ids, dtype=int)
        for low, high in pairwise(bounds):
            document = torch.from_numpy(row.token_ids[low:high]).long()
            with torch.no_grad():
                z_TV = model(document[None]).logits[0, :, :320].double()
            for t in range(low, min(high - 1, 32)):
                kept = slice(ends_T[t] - row.kept.num_ids[t], ends_T[t])
                check_position(row, t, kept, z_TV[t - low])
                num_checked += 1
            if high <= 32:  # the label belongs to the next document
                assert row.kept.num_ids[high - 1] == 0
    assert num_checked > 400


def check_position(row: Row, t: int, kept: slice, z_V: torch.Tensor) -> None:
    """Within what the codec rounds, plus 1e-4: near ties may fall either way."""
    assert row.kept.num_ids[t] == 12
    ids = torch.from_numpy(row.kept.ids[kept]).long()
    values = z_V.topk(12).values
    torch.testing.assert_close(z_V[ids].sort(descending=True).values, values, atol=1e-4, rtol=0)
    # Fourth roots are stored in steps of 1/128; a gap tells one of them relative to the largest.
    half_step = 1 / 256
    roots = (torch.log_softmax(z_V, 0)[ids] / 4).exp().numpy()
    largest = roots.max()
    np.testing.assert_allclose(
        largest * np.exp(-row.kept.gaps[kept] / 4), roots, atol=2 * half_step
    )
    rest = z_V - values[0]
    rest[ids] = -torch.inf
    of_largest = 4 * half_step / float(largest - half_step)
    for at, node in enumerate((0.5, 0.625, 0.75, 0.875, 1.0)):
        expected = float(torch.logsumexp(rest * node, 0))
        error = 1 / 128 + node * of_largest + 1e-4
        assert row.kept.tail_log_mass[t, at] == pytest.approx(expected, abs=error)
    expected = float(torch.log_softmax(z_V, 0)[row.token_ids[t + 1]])
    assert row.kept.next_logprob[t] == pytest.approx(expected, abs=1 / 128 + 1e-4)


@pytest.mark.parametrize("hidden_states", ["mean_over_layers", "each:1,2"])
def test_the_sketch_is_of_the_mean_over_hidden_layers_or_of_each(
    bench: Bench, hidden_states: str
) -> None:
    from transformers import AutoModelForCausalLM

    bench.run(documents_per_unit=80, hidden_states=hidden_states)
    unit, row = next(pair for pair in rows_by_unit(bench.open()) if len(pair[1].document_starts))
    assert row.sketch is not None
    end = int(row.document_starts[0])
    model = AutoModelForCausalLM.from_pretrained(bench.teacher, dtype=torch.float32)
    with torch.no_grad():
        document = torch.from_numpy(row.token_ids[:end]).long()[None]
        layers = model(document, output_hidden_states=True).hidden_states[1:]
    states_TLD = torch.stack([layer[0] for layer in layers], 1)
    if hidden_states == "mean_over_layers":
        states_TLD = states_TLD.mean(1, keepdim=True)
    expected = (states_TLD.numpy() @ sketch_signs(0, unit, 32, 8) / np.sqrt(8))[: end - 1]
    assert row.sketch.shape == (32, *expected.shape[1:])
    step = np.abs(expected).max(2, keepdims=True) / 127
    assert (np.abs(row.sketch[: end - 1] - expected) <= step).all()


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_any_kind_of_corpus_gives_the_same_rows(bench: Bench, suffix: str) -> None:
    bench.run("parquet", documents_per_unit=25)
    lines = [json.dumps({"text": text}) if suffix == ".jsonl" else text for text in TEXTS]
    bench.corpus = bench.root / f"corpus{suffix}"
    bench.corpus.write_text("\n".join(lines), encoding="utf-8")
    bench.run("lines", documents_per_unit=25)
    pairs = [rows_by_unit(bench.open(out)) for out in ("parquet", "lines")]
    assert len(pairs[0]) == len(pairs[1])
    for (unit, row), (other_unit, other) in zip(*pairs, strict=True):
        assert unit == other_unit
        for name in ("token_ids", "document_starts"):
            assert getattr(row, name).tolist() == getattr(other, name).tolist()
        for name in ("ids", "gaps", "tail_log_mass"):
            assert getattr(row.kept, name).tolist() == getattr(other.kept, name).tolist()


def test_special_tokens_written_out_in_a_document_are_text(bench: Bench) -> None:
    """No document ends where it only says so, and nothing of it is lost."""
    from tokenizers import Tokenizer

    texts = [text.replace(" ", " <|endoftext|>", 1) for text in TEXTS]
    bench.corpus = write_fineweb_parquet(bench.root / "corpus.parquet", texts)
    bench.run(documents_per_unit=80)
    cache = bench.open()
    rows = [row for _, row in rows_by_unit(cache)]
    stream = [*(id for row in rows for id in row.token_ids[:-1]), rows[-1].token_ids[-1]]
    ends = [place for place, id in enumerate(stream, 1) if id == cache.spec.teacher.eos_token_id]
    starts = [32 * number + at for number, row in enumerate(rows) for at in row.document_starts]
    assert len(ends) >= 70
    assert starts == [end for end in ends if end < len(stream)]
    tokenizer = Tokenizer.from_file(str(bench.teacher / "tokenizer.json"))
    decoded = tokenizer.decode(stream, skip_special_tokens=False)
    assert "<|endoftext|>".join([*texts, ""]).startswith(decoded)


def test_a_teacher_with_its_own_head_is_cached_with_fewer_kept_ids(
    untied_teacher: Path, tmp_path: Path
) -> None:
    bench = Bench(untied_teacher, tmp_path)
    bench.run(top_p=0.5, hidden_projection="none", inverse_temperatures=(0.5, 1.0))
    rows = rows_by_unit(bench.open())
    assert len({int(n) for _, row in rows for n in row.kept.num_ids}) > 5
    assert all(row.sketch is None and row.kept.tail_log_mass.shape == (32, 2) for _, row in rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision_targets_are_close_to_float32(
    bench: Bench, dtype: str, attention: str
) -> None:
    bench.run("full", num_tokens=1)
    bench.run("half", num_tokens=1, teacher_dtype=dtype, attention=attention)
    full, half = (rows_by_unit(bench.open(out)) for out in ("full", "half"))
    errors = [
        np.abs(row.kept.next_logprob - other.kept.next_logprob).mean()
        for (_, row), (_, other) in zip(full, half, strict=True)
    ]
    assert np.mean(errors) < 0.3
    assert bench.open("half").spec.teacher.dtype == dtype


def test_the_recipe_is_kept_beside_the_cache(bench: Bench) -> None:
    bench.run()
    assert (bench.root / "cache" / "recipe.toml").read_text().startswith("# a recipe\n# seal ")


def test_units_without_rows_and_documents_beyond_a_unit_are_cached(bench: Bench) -> None:
    texts: list[str | None] = ["", None, "a", "b", *TEXTS[:2], " ".join(TEXTS), "c"]
    bench.corpus = write_fineweb_parquet(bench.root / "odd.parquet", texts)
    manifest = bench.run(documents_per_unit=2)
    rows = [entry.num_rows for entry in manifest.shards]
    assert rows[:2] == [0, 0]
    assert rows[3] > 100
    assert [entry.num_documents for entry in manifest.shards] == [0, 2, 2, 2]
    assert [entry.num_skipped_documents for entry in manifest.shards] == [2, 0, 0, 0]
    assert [entry.num_dropped_tokens for entry in manifest.shards][:2] == [0, 4]
    assert verify(bench.open(), lambda *_: None) == []
