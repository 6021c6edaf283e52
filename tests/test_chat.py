"""Conversations from a file to a student: what is scored is learned, and nothing else."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cache_format
from cache_format.codec.row import Row
from cache_format.errors import SpecMismatchError
from cache_format.metadata.manifest import Manifest
from cache_format.metadata.receipt import ConversationCounts
from cache_format.reader import Cache
from cache_format.tools.impossible_numbers import impossible_numbers
from pipeline.reports.cache_report import Outcome, cached_text
from pipeline.reports.inspection import summarise, summary_text
from pipeline.reports.row_view import decode_row, row_text
from pipeline.students.online_teacher import load_online_teacher
from stages.cache_teacher.preflight import check_early
from stages.cache_teacher.reporting.progress import CacheProgress
from stages.cache_teacher.reporting.summary import summarise_run
from stages.cache_teacher.run import cache_teacher
from stages.train_student.data.batch import read_batch
from stages.train_student.data.scored import scored
from stages.train_student.losses.loss_term import LossNormalizer
from stages.train_student.losses.objective import make_objective
from stages.train_student.losses.terms import LossWeights
from stages.train_student.new_student import load_student
from tests.support import ROOT, train_runs
from tests.support.chat import (
    MARKED_CHATML,
    Messages,
    said,
    save_chat_teacher,
    tiny_conversations,
    write_chat_jsonl,
    write_chat_parquet,
)
from tests.support.command_line import done
from tests.support.tiny import tiny_cache_config, tiny_texts
from tests.support.train_configs import tiny_train_config

CONVERSATIONS = tiny_conversations(24)


class Bench:
    """A chat teacher, and caches of conversations by it."""

    def __init__(self, root: Path) -> None:
        self.root, self.teacher = root, save_chat_teacher(root / "teacher")
        self.progress: list[CacheProgress] = []

    def cache(
        self, name: str, conversations: Sequence[Messages | None], **changes: Any
    ) -> Manifest:
        corpus = write_chat_parquet(self.root / "corpus.parquet", conversations)
        settings: dict[str, Any] = {
            "messages_column": "messages",
            "sequence_length": 256,
            "documents_per_unit": 8,
        }
        config = tiny_cache_config(self.teacher, corpus, **(settings | changes))
        return cache_teacher(config, self.root / name, report=self.progress.append)

    def open(self, name: str) -> Cache:
        return cache_format.open(self.root / name)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("chat"))
    bench.cache("cache", CONVERSATIONS)
    return bench


def rows_of(cache: Cache) -> list[Row]:
    splits: Any = ("train", "validation")
    return [row for split in splits for _, row in cache.iter_rows(split)]


def scored_positions(cache: Cache) -> dict[tuple[int, ...], tuple[Any, ...]]:
    """What the cache holds of each scored position, by the ids of its document before it."""
    found: dict[tuple[int, ...], tuple[Any, ...]] = {}
    for row in rows_of(cache):
        starts = np.array([0, *row.document_starts.tolist()])
        ends = np.cumsum(row.kept.num_ids)
        for t in np.flatnonzero(row.scored()).tolist():
            begin = int(starts[starts <= t].max())
            kept = slice(int(ends[t] - row.kept.num_ids[t]), int(ends[t]))
            key = tuple(row.token_ids[begin : t + 2].tolist())
            order = np.argsort(row.kept.ids[kept])
            found[key] = (
                row.kept.ids[kept][order].tolist(),
                row.kept.gaps[kept][order].tolist(),
                row.kept.tail_log_mass[t].tolist(),
                float(row.kept.next_logprob[t]),
            )
    return found


class TestCache:
    def test_only_what_the_assistant_says_has_targets(self, bench: Bench) -> None:
        answers = sum(m["role"] == "assistant" for c in CONVERSATIONS for m in c)
        end = 321
        cache = bench.open("cache")
        rows = rows_of(cache)
        ended = sum(int((row.token_ids[1:][row.scored()] == end).sum()) for row in rows)
        assert ended == answers
        num_scored = sum(shard.statistics.num_scored for shard in cache.manifest.shards)
        assert num_scored == sum(int(row.scored().sum()) for row in rows)
        assert 0 < num_scored < cache.manifest.num_tokens / 2
        assert all(impossible_numbers(shard, cache.spec) == [] for shard in cache.manifest.shards)

    def test_counts_that_no_unit_can_have_are_noticed(self, bench: Bench) -> None:
        cache = bench.open("cache")
        entry = replace(cache.manifest.shards[0], conversations=ConversationCounts(num_split=9))
        assert impossible_numbers(entry, cache.spec) == [
            "conversations.num_split is 9, expected 0 to 8"
        ]

    @pytest.mark.parametrize(
        "targets", ["top_k", "sampled", "top_k+sampled", "hidden", "top_k+hidden"]
    )
    def test_every_kind_of_target_has_the_same_context(self, bench: Bench, targets: str) -> None:
        name = f"kind-{targets}"
        changes: dict[str, Any] = {"hidden_kl": 1.0} if "hidden" in targets else {}
        bench.cache(name, CONVERSATIONS, targets=targets, hidden_projection="pca", **changes)
        pairs = zip(rows_of(bench.open(name)), rows_of(bench.open("cache")), strict=True)
        for row, other in pairs:
            assert row.is_context is not None
            assert other.is_context is not None
            assert np.array_equal(row.token_ids, other.token_ids)
            assert np.array_equal(row.is_context, other.is_context)

    def test_messages_that_are_not_learned_change_no_target(self, bench: Bench) -> None:
        """Another question at the end changes nothing that comes before it."""
        asked = [[*c, said("user", "and then?")] for c in CONVERSATIONS]
        bench.cache("asked", asked)
        one, other = (scored_positions(bench.open(name)) for name in ("cache", "asked"))
        assert one.keys() == other.keys()
        for key, (ids, *numbers) in one.items():
            assert other[key][0] == ids
            for number, same in zip(numbers, other[key][1:], strict=True):
                np.testing.assert_allclose(number, same, atol=0.02)  # a step of the codec

    def test_a_cache_goes_on_where_it_was(self, bench: Bench) -> None:
        bench.cache("again", CONVERSATIONS, num_tokens=300)
        bench.cache("again", CONVERSATIONS)
        again, cache = bench.open("again"), bench.open("cache")
        assert again.cache_id == cache.cache_id
        assert [shard.sha256 for shard in again.manifest.shards] == [
            shard.sha256 for shard in cache.manifest.shards
        ]

    def test_what_is_left_out_is_counted_and_said(self, bench: Bench) -> None:
        long = [said("user", "x"), said("assistant", "token " * 300)]
        several = [m for c in CONVERSATIONS for m in c if m["role"] != "system"]
        conversations = [*CONVERSATIONS[:8], None, CONVERSATIONS[9][-2:-1], long, several]
        manifest = bench.cache("counted", conversations, validation_split="rows")
        counts = [shard.conversations for shard in manifest.shards]
        assert [vars(count) for count in counts if count is not None] == [
            {"num_split": 0, "num_incomplete": 0, "num_too_long": 0, "num_unscored": 0},
            {"num_split": 1, "num_incomplete": 0, "num_too_long": 1, "num_unscored": 1},
        ]
        assert [shard.num_documents for shard in manifest.shards] == [8, 1]
        assert [shard.num_skipped_documents for shard in manifest.shards] == [0, 1]
        outcome = Outcome(manifest=manifest, progress=bench.progress[-1])
        said_of = "1 split at their messages to fit in rows; 1 left out because they do not fit"
        assert said_of in cached_text(outcome, "x", "y")
        assert "9 conversations, 1 skipped, " in cached_text(outcome, "x", "y")
        assert said_of in summary_text(summarise(bench.root / "counted"))
        figures = summarise_run(manifest, bench.progress[-1])["cache"]
        assert figures["conversations"]["num_unscored"] == 1
        assert figures["skipped_documents"] == 1
        assert figures["scored_tokens"] == sum(s.statistics.num_scored for s in manifest.shards)

    def test_a_cache_in_which_nothing_is_scored_is_an_error(self, bench: Bench) -> None:
        silent = [[said("user", text)] for text in tiny_texts(12)]
        with pytest.raises(
            ValueError,
            match=r"no position is scored. Of its conversations, 12 .*'assistant'.*roles",
        ):
            bench.cache("silent", silent)
        with pytest.raises(ValueError, match="4 do not fit in a row of 16 tokens"):
            bench.cache("short", CONVERSATIONS[:4], sequence_length=16)


class TestIdentity:
    @pytest.mark.parametrize(
        "changes",
        [
            {"train_on": "completion"},
            {"train_on": "all"},
            {"long_conversations": "drop"},
            {"messages_column": None},
            {"messages_column": "chat"},
        ],
    )
    def test_another_way_to_read_conversations_is_another_cache(
        self, bench: Bench, changes: dict[str, Any]
    ) -> None:
        settings: dict[str, Any] = {
            "messages_column": "messages",
            "sequence_length": 256,
            "documents_per_unit": 8,
        }
        config = tiny_cache_config(
            bench.teacher, bench.root / "corpus.parquet", **(settings | changes)
        )
        with pytest.raises(SpecMismatchError, match=rf"cache_teacher\.{next(iter(changes))}: "):
            check_early(config, bench.root / "cache")

    def test_another_template_is_another_cache(self, bench: Bench, tmp_path: Path) -> None:
        write_chat_parquet(bench.root / "corpus.parquet", CONVERSATIONS)
        other = save_chat_teacher(tmp_path / "teacher", MARKED_CHATML)
        config = tiny_cache_config(
            other,
            bench.root / "corpus.parquet",
            messages_column="messages",
            sequence_length=256,
            documents_per_unit=8,
        )
        check_early(config, bench.root / "cache")  # which does not look at the teacher's files
        with pytest.raises(SpecMismatchError, match=r"teacher\.chat_template_sha256"):
            cache_teacher(config, bench.root / "cache")

    def test_plain_text_has_neither(self, bench: Bench, tmp_path: Path) -> None:
        corpus = tmp_path / "a.txt"
        corpus.write_text("\n".join(tiny_texts(20)))
        config = tiny_cache_config(bench.teacher, corpus, sequence_length=32)
        spec = cache_teacher(config, tmp_path / "cache").spec.to_json()
        assert "chat" not in spec["corpus"]
        assert "chat_template_sha256" not in spec["teacher"]

    def test_a_teacher_without_a_template_is_refused(self, bench: Bench, tmp_path: Path) -> None:
        teacher = save_chat_teacher(tmp_path / "teacher", None)
        config = tiny_cache_config(
            teacher, bench.root / "corpus.parquet", messages_column="messages"
        )
        with pytest.raises(ValueError, match="its tokenizer has no chat template"):
            cache_teacher(config, tmp_path / "cache")


class TestReports:
    def test_inspect_shows_the_share_of_scored_positions(self, bench: Bench) -> None:
        summary = summarise(bench.root / "cache")
        share = summary["teacher"]["num_scored"] / sum(summary["num_tokens"].values())
        assert f"scored positions ({share:.1%})" in summary_text(summary)
        assert summary["conversations"]["num_split"] == 0

    def test_inspect_marks_context_in_a_row(self, bench: Bench) -> None:
        decoded = decode_row(bench.root / "cache", "train", 0)
        by_scored = {True: 0, False: 0}
        for position in decoded["positions"]:
            assert position["is_scored"] != position["is_context"] or not position["is_scored"]
            by_scored[position["is_scored"]] += 1
        marked = row_text(decoded).count("the next token is context, not to be learned")
        assert by_scored[True] > 0
        assert marked == sum(position["is_context"] for position in decoded["positions"])


def loss_and_gradients(cache: Cache) -> tuple[float, dict[str, torch.Tensor]]:
    """Those of all training rows as one step."""
    config = tiny_train_config(dropout=0.0, seed=3)
    torch.manual_seed(0)
    model = load_student(config, cache)
    objective = make_objective(model, cache, config, torch.device("cpu"))
    batch = read_batch(cache, "train", range(cache.num_rows("train")), with_sketch=True)
    weights, normalizer = (
        LossWeights(0.5, 0.2, 1.5),
        LossNormalizer(batch.num_scored, batch.num_rows),
    )
    loss, _ = objective.micro_batch_loss(model, batch, weights, normalizer)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


class TestTraining:
    def test_masked_messages_change_neither_loss_nor_gradient(self, bench: Bench) -> None:
        """Every conversation goes on with a question and a tool's output that nobody answers."""
        more = [said("user", "which " * 3), said("tool", "42 " * 4)]
        longest = {"sequence_length": 320, "documents_per_unit": 4}
        bench.cache("short-ones", CONVERSATIONS, **longest)
        bench.cache("longer-ones", [[*c, *more] for c in CONVERSATIONS], **longest)
        (loss, gradients), (other, others) = (
            loss_and_gradients(bench.open(name)) for name in ("short-ones", "longer-ones")
        )
        assert loss == pytest.approx(other, rel=1e-6)
        assert gradients.keys() == others.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, others[name], rtol=1e-4, atol=1e-6, msg=name)

    def test_a_student_learns_from_conversations(self, bench: Bench, tmp_path: Path) -> None:
        cache = bench.root / "cache"
        losses = train_runs.run(tiny_train_config(max_steps=4), cache, tmp_path / "run")
        assert losses["validation/loss"] > 0
        tokenizer = json.loads((tmp_path / "run" / "model" / "tokenizer.json").read_text())
        assert "<|im_end|>" in {token["content"] for token in tokenizer["added_tokens"]}
        template = (tmp_path / "run" / "model" / "chat_template.jinja").read_text()
        assert template == (bench.teacher / "chat_template.jinja").read_text()


def test_a_teacher_in_the_loop_reads_the_rows_of_conversations(bench: Bench) -> None:
    """They are rendered: what its tokenizer has for a template does not matter any more."""
    cache = bench.open("cache")
    teacher = load_online_teacher(
        cache, torch.device("cpu"), with_mean=False, place=str(bench.teacher)
    )
    batch = read_batch(cache, "train", [0], with_sketch=False)
    states = teacher.states(batch.input_ids, batch.is_document_start)
    logprobs = (scored(states.last_BTD, batch) @ teacher.head_VD.T).log_softmax(1)
    labels = scored(batch.labels, batch)
    found = logprobs.gather(1, labels[:, None])[:, 0]
    assert batch.next_logprob is not None
    expected = scored(batch.next_logprob, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1 / 64)


def test_the_page_on_instruction_models_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_chat_teacher(Path("my-model"))
    conversations = tiny_conversations(100, max_turns=1)
    write_chat_jsonl(Path("conversations.jsonl"), [{"messages": c} for c in conversations])
    page = (ROOT / "docs" / "instruction-models.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^pipeline (.*)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [
        "cache-teacher",
        "inspect",
        "inspect",
        "train-student",
        "generate",
    ]
    uncompiled = {  # to compile takes a minute
        "cache-teacher": ("--set", "cache_teacher.compile=off"),
        "train-student": ("--set", "train_student.compile=off"),
    }
    for command in commands:
        words = shlex.split(command)
        done(*words, *uncompiled.get(words[0], ()))
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
