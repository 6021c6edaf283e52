"""Stage one as a whole: what a cache holds, what a second run does, and what is refused.

T positions, V vocabulary.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cache_format
from cache_format.codec import Row
from cache_format.errors import ForeignDirectoryError, SpecMismatchError
from cache_format.manifest import Manifest
from cache_format.reader import Cache
from stages.cache_teacher import run as module
from stages.cache_teacher.run import CacheProgress, cache_teacher
from stages.cache_teacher.teacher import Teacher
from tests.tiny import tiny_config, tiny_texts, write_fineweb_parquet

TEXTS = tiny_texts(80)


class Bench:
    """One teacher, one corpus, and any number of runs over them."""

    def __init__(self, teacher: Path, root: Path) -> None:
        self.teacher, self.root = teacher, root
        self.corpus = write_fineweb_parquet(root / "corpus.parquet", TEXTS)
        self.reports: list[CacheProgress] = []

    def run(self, out: str = "cache", **changes: Any) -> Manifest:
        config = tiny_config(changes.pop("teacher", self.teacher), self.corpus, **changes)
        self.reports = []
        return cache_teacher(
            config, self.root / out, recipe_toml="# a recipe\n", report=self.reports.append
        )

    def open(self, out: str = "cache") -> Cache:
        return cache_format.open(self.root / out)


@pytest.fixture
def bench(tiny_teacher: Path, tmp_path: Path) -> Bench:
    return Bench(tiny_teacher, tmp_path)


def rows_by_unit(cache: Cache) -> list[tuple[int, Row]]:
    pairs = [*cache.iter_rows("train"), *cache.iter_rows("validation")]
    return sorted(pairs, key=lambda pair: pair[0])  # stable: rows of a unit keep their order


def shard_bytes(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "shards").iterdir()}


def independent_stream(teacher: Path, texts: list[str]) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    return [i for text in texts for i in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]


def test_no_row_is_lost_or_doubled(bench: Bench) -> None:
    manifest = bench.run()
    assert [entry.unit for entry in manifest.shards] == list(range(8))
    rows = rows_by_unit(bench.open())
    for entry in manifest.shards:
        texts = TEXTS[10 * entry.unit : 10 * entry.unit + 10]
        stream = independent_stream(bench.teacher, texts)
        ids = [row.token_ids for unit, row in rows if unit == entry.unit]
        joined = [*np.concatenate([row[:-1] for row in ids]).tolist(), int(ids[-1][-1])]
        assert joined == stream[: len(joined)]
        assert all(one[-1] == other[0] for one, other in zip(ids, ids[1:], strict=False))
        assert entry.num_dropped_tokens == len(stream) - len(joined) < 32
        assert entry.num_documents == 10


def test_targets_of_a_packed_document_equal_those_of_the_document_alone(bench: Bench) -> None:
    from transformers import AutoModelForCausalLM

    bench.run()
    model = AutoModelForCausalLM.from_pretrained(bench.teacher, dtype=torch.float32)
    num_checked = 0
    for _, row in rows_by_unit(bench.open())[::7]:
        bounds = [0, *row.document_starts.tolist(), 33]
        ends_T = np.cumsum(row.num_kept, dtype=int)
        for low, high in zip(bounds, bounds[1:], strict=False):
            document = torch.from_numpy(row.token_ids[low:high]).long()
            with torch.no_grad():
                z_TV = model(document[None]).logits[0, :, :320].double()
            for t in range(low, min(high - 1, 32)):
                kept = slice(ends_T[t] - row.num_kept[t], ends_T[t])
                check_position(row, t, kept, z_TV[t - low])
                num_checked += 1
            if high <= 32:  # the label belongs to the next document
                assert row.num_kept[high - 1] == 0
    assert num_checked > 400


def check_position(row: Row, t: int, kept: slice, z_V: torch.Tensor) -> None:
    """Within what the codec rounds, plus 1e-4: near ties may fall either way."""
    assert row.num_kept[t] == 12
    ids = torch.from_numpy(row.kept_ids[kept]).long()
    values = z_V.topk(12).values
    torch.testing.assert_close(z_V[ids], values, atol=1e-4, rtol=0)
    np.testing.assert_allclose(row.gaps[kept], values[0] - values, atol=1 / 32 + 1e-4)
    rest = z_V - values[0]
    rest[ids] = -torch.inf
    for at, node in enumerate((0.5, 0.625, 0.75, 0.875, 1.0)):
        expected = float(torch.logsumexp(rest * node, 0))
        assert row.tail_log_mass[t, at] == pytest.approx(expected, abs=1 / 512 + 1e-4)
    expected = float(torch.log_softmax(z_V, 0)[row.token_ids[t + 1]])
    assert row.next_logprob[t] == pytest.approx(expected, abs=1e-2)


def test_the_sketch_is_of_the_mean_over_layers(bench: Bench) -> None:
    from transformers import AutoModelForCausalLM

    bench.run(documents_per_unit=80)
    unit, row = next(pair for pair in rows_by_unit(bench.open()) if len(pair[1].document_starts))
    assert row.sketch is not None
    end = int(row.document_starts[0])
    model = AutoModelForCausalLM.from_pretrained(bench.teacher, dtype=torch.float32)
    with torch.no_grad():
        document = torch.from_numpy(row.token_ids[:end]).long()[None]
        layers = model(document, output_hidden_states=True).hidden_states[1:]
    signs = cache_format.sketch.sketch_signs(0, unit, 32, 8)
    expected = torch.stack(layers).mean(0)[0].numpy() @ signs / np.sqrt(8)
    step = np.abs(expected).max(1, keepdims=True) / 127
    assert (np.abs(row.sketch[: end - 1] - expected[: end - 1]) <= step[: end - 1]).all()


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
        for name in ("token_ids", "document_starts", "kept_ids", "gaps", "tail_log_mass"):
            assert getattr(row, name).tolist() == getattr(other, name).tolist()


def test_a_teacher_of_its_own_head_and_fewer_kept(untied_teacher: Path, tmp_path: Path) -> None:
    bench = Bench(untied_teacher, tmp_path)
    bench.run(keep_mass=0.5, sketch="none", inverse_temperatures=(0.5, 1.0))
    rows = rows_by_unit(bench.open())
    assert len({int(n) for _, row in rows for n in row.num_kept}) > 5
    assert all(row.sketch is None and row.tail_log_mass.shape == (32, 2) for _, row in rows)


class Watch:
    """Counts the documents tokenised and the teachers loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.documents = self.teachers = 0
        tokenize, teacher_class = module.tokenize, module.Teacher

        def tokenize_counted(tokenizer: Any, texts: list[str], vocab_size: int) -> Any:
            self.documents += len(texts)
            return tokenize(tokenizer, texts, vocab_size)

        def teacher_counted(*arguments: Any) -> Any:
            self.teachers += 1
            return teacher_class(*arguments)

        monkeypatch.setattr(module, "tokenize", tokenize_counted)
        monkeypatch.setattr(module, "Teacher", teacher_counted)

    def since(self) -> tuple[int, int]:
        """Documents and teachers since the last call."""
        counts = self.documents, self.teachers
        self.documents = self.teachers = 0
        return counts


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def test_a_budget_overshoots_by_less_than_a_unit_and_can_grow_and_shrink(
    bench: Bench, watch: Watch
) -> None:
    whole = bench.run("whole")
    sizes = [entry.num_tokens for entry in whole.shards]
    assert watch.since() == (80, 1)

    budget = sum(sizes[:2]) + 1
    first = bench.run(num_tokens=budget)
    assert first.complete
    assert (len(first.shards), first.num_tokens_requested) == (3, budget)
    assert watch.since() == (30, 1)

    extended = bench.run(num_tokens=sum(sizes[:5]))
    assert len(extended.shards) == 5
    assert watch.since() == (20, 1)  # only what was missing

    again = bench.run(num_tokens=sum(sizes[:5]))
    assert again == extended
    assert watch.since() == (0, 0)

    shorter = bench.run(num_tokens=1)
    assert shorter.complete
    assert shorter.shards == extended.shards
    assert watch.since() == (0, 0)

    bench.run()
    assert watch.since() == (30, 1)
    assert shard_bytes(bench.root / "cache") == shard_bytes(bench.root / "whole")

    bench.run()  # the corpus has ended: nothing is left to do
    assert watch.since() == (0, 0)
    assert bench.reports[-1].phase == "corpus ended"
    assert bench.open().verify(lambda *_: None) == []


def test_only_missing_units_are_made_again(bench: Bench, watch: Watch) -> None:
    manifest = bench.run()
    before = shard_bytes(bench.root / "cache")
    watch.since()
    (bench.root / "cache" / manifest.shards[3].file).unlink()
    assert bench.run() == manifest
    assert watch.since() == (10, 1)
    assert shard_bytes(bench.root / "cache") == before


def test_a_run_cut_short_is_gone_on_with(
    bench: Bench, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run("whole")
    watch.since()
    forward = Teacher.forward
    num_calls = 0

    def failing(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 15:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "forward", failing)
        with pytest.raises(torch.OutOfMemoryError):  # as it is: the command line explains it
            bench.run()
    documents, _ = watch.since()
    cut_short = cache_format.open(bench.root / "cache", allow_incomplete=True).manifest
    assert 0 < len(cut_short.shards) < 8
    assert documents == 10 * len(cut_short.shards) + 10
    bench.run()
    assert watch.since() == (80 - 10 * len(cut_short.shards), 1)
    assert shard_bytes(bench.root / "cache") == shard_bytes(bench.root / "whole")


def test_progress_counts_what_the_cache_holds(bench: Bench) -> None:
    manifest = bench.run(num_tokens=1000)
    phases = [report.phase for report in bench.reports]
    assert list(dict.fromkeys(phases)) == ["resolving", "loading teacher", "caching", "done"]
    done = [report.tokens_done for report in bench.reports]
    assert done == sorted(done)
    last = bench.reports[-1]
    assert last.tokens_total == 1000
    assert last.tokens_done == last.tokens_cached_this_run
    assert last.tokens_done == sum(entry.num_tokens for entry in manifest.shards)
    assert last.bytes_written == sum(entry.num_bytes for entry in manifest.shards)
    assert last.documents == sum(entry.num_documents for entry in manifest.shards)
    assert last.corpus_position == manifest.shards[-1].corpus_position
    assert {report.unit for report in bench.reports} == {entry.unit for entry in manifest.shards}
    assert len(done) > sum(entry.num_rows for entry in manifest.shards)

    bench.run(num_tokens=2000)
    assert bench.reports[-1].tokens_cached_this_run < bench.reports[-1].tokens_done


def test_the_manifest_is_published_while_the_run_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[int] = []
    publish = module.CacheWriter.publish_manifest

    def recording(self: Any, num_tokens: int, complete: bool) -> Manifest:
        manifest = publish(self, num_tokens, complete)
        published.append(len(manifest.shards))
        assert manifest.complete == (len(published) == 9)
        return manifest

    monkeypatch.setattr(module.CacheWriter, "publish_manifest", recording)
    monkeypatch.setattr(module, "_MANIFEST_SECONDS", 0.0)
    bench.run()
    assert published == [1, 2, 3, 4, 5, 6, 7, 8, 8]


def test_the_recipe_is_kept_beside_the_cache(bench: Bench) -> None:
    bench.run()
    assert (bench.root / "cache" / "recipe.toml").read_text() == "# a recipe\n"


def test_units_without_rows_and_documents_larger_than_a_unit(bench: Bench) -> None:
    texts: list[str | None] = ["", None, "a", "b"] + TEXTS[:2] + [" ".join(TEXTS), "c"]
    bench.corpus = write_fineweb_parquet(bench.root / "odd.parquet", texts)
    manifest = bench.run(documents_per_unit=2)
    rows = [entry.num_rows for entry in manifest.shards]
    assert rows[:2] == [0, 0]
    assert rows[3] > 100
    assert [entry.num_documents for entry in manifest.shards] == [0, 2, 2, 2]
    assert [entry.num_skipped_documents for entry in manifest.shards] == [2, 0, 0, 0]
    assert [entry.num_dropped_tokens for entry in manifest.shards][:2] == [0, 4]
    assert bench.open().verify(lambda *_: None) == []


OTHER_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "top_k": ({"top_k": 13}, "targets.top_k"),
    "seed": ({"seed": 1}, "seed"),
    "dtype": ({"teacher_dtype": "bfloat16"}, "teacher.dtype"),
    "sketch": ({"sketch": "none"}, "sketch.kind"),
    "units": ({"documents_per_unit": 9}, "corpus.documents_per_unit"),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_cache_of_another_recipe_is_refused(bench: Bench, watch: Watch, name: str) -> None:
    bench.run(num_tokens=1)
    before = shard_bytes(bench.root / "cache")
    watch.since()
    changes, field = OTHER_SETTINGS[name]
    with pytest.raises(SpecMismatchError, match=field):
        bench.run(**changes)
    assert watch.since() == (0, 0)  # before any weights are loaded
    assert shard_bytes(bench.root / "cache") == before


def test_a_corpus_that_has_changed_is_refused(bench: Bench) -> None:
    bench.run(num_tokens=1)
    write_fineweb_parquet(bench.corpus, TEXTS[1:])
    with pytest.raises(SpecMismatchError, match=r"corpus\.files"):
        bench.run()


def test_a_directory_that_holds_something_else_is_left_alone(bench: Bench, watch: Watch) -> None:
    foreign = bench.root / "cache" / "thesis.tex"
    foreign.parent.mkdir()
    foreign.write_text("precious")
    with pytest.raises(ForeignDirectoryError, match=r"thesis\.tex"):
        bench.run()
    assert [path.name for path in foreign.parent.iterdir()] == ["thesis.tex"]
    assert watch.since() == (0, 0)


def spoil(teacher: Path, tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    copy = Path(shutil.copytree(teacher, tmp_path / "spoilt"))
    weights = load_file(copy / "model.safetensors")
    edit(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("sketch", ["rademacher", "none"])
def test_a_teacher_that_makes_nan_is_named_by_place(bench: Bench, sketch: str) -> None:
    """One token's embedding is NaN, and attention spreads that over its whole row."""
    bench.run("whole", sketch="none")
    rows = rows_by_unit(bench.open("whole"))
    ids_of_unit = [
        np.stack([row.token_ids for unit, row in rows if unit == wanted]) for wanted in range(8)
    ]
    first = int(np.setdiff1d(ids_of_unit[1][:, :-1], ids_of_unit[0])[0])
    row = np.argwhere(ids_of_unit[1][:, :-1] == first)[0][0]

    def edit(weights: dict[str, torch.Tensor]) -> None:
        # A head of its own stays clean, so that only what the token touches is not finite.
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.embed_tokens.weight"][first] = torch.nan

    teacher = spoil(bench.teacher, bench.root, edit)
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    place = f"unit 1, row {row}, position 0: the teacher produced NaN .*teacher_dtype"
    with pytest.raises(ValueError, match=place):
        bench.run(teacher=teacher, sketch=sketch)
    finished = cache_format.open(bench.root / "cache", allow_incomplete=True).manifest.shards
    assert [entry.unit for entry in finished] == [0]  # what was finished is not lost


def test_a_corpus_without_documents(bench: Bench) -> None:
    bench.corpus = write_fineweb_parquet(bench.root / "empty.parquet", [])
    with pytest.raises(ValueError, match="holds no documents"):
        bench.run()
    assert not (bench.root / "cache").exists()


def test_a_corpus_too_short_for_a_row(bench: Bench) -> None:
    bench.corpus = write_fineweb_parquet(bench.root / "short.parquet", ["a", "b"])
    with pytest.raises(ValueError, match="no unit fills a row of 32 tokens"):
        bench.run()


def test_a_document_that_is_not_text(bench: Bench) -> None:
    bench.corpus = bench.root / "corpus.jsonl"
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[25] = '{"text": ["a", "list"]}'
    bench.corpus.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"corpus\.jsonl, line 26: 'text' is a JSON list"):
        bench.run()
    manifest = bench.run("other", on_bad_document="skip")
    assert [entry.num_skipped_documents for entry in manifest.shards] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_a_missing_column_is_refused_before_anything_is_made(bench: Bench, watch: Watch) -> None:
    with pytest.raises(ValueError, match="no column 'body'"):
        bench.run(text_column="body")
    assert not (bench.root / "cache").exists()
    assert watch.since() == (0, 0)


def test_a_tokenizer_that_makes_ids_beyond_the_vocabulary(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    call = PreTrainedTokenizerFast.__call__

    def beyond(self: Any, *arguments: Any, **options: Any) -> Any:
        batch = call(self, *arguments, **options)
        batch["input_ids"][-1][-1] = 320
        return batch

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", beyond)
    with pytest.raises(ValueError, match="token id 320, but the vocabulary ends at 319"):
        bench.run()
