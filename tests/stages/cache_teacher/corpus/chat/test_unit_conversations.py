"""Conversations become token ids with the assistant's scored, and are never cut."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_format.metadata.receipt import ConversationCounts
from cache_format.metadata.spec_parts.corpus import ChatSpec
from stages.cache_teacher.corpus.chat.conversation_tokenizer import (
    ConversationTokenizer,
    EncodedConversation,
)
from stages.cache_teacher.corpus.chat.unit_conversations import ChatEncoder, EncodedUnit
from stages.cache_teacher.corpus.formats.conversation import conversation_of
from stages.cache_teacher.corpus.formats.document_file import BadDocument, Conversation
from stages.cache_teacher.corpus.packing import pack_whole
from stages.cache_teacher.corpus.units import UnitDocuments
from stages.model_files.tokenizer_files import load_tokenizer
from tests.support.chat import (
    CHATML,
    END,
    EOS,
    MARKED_CHATML,
    START,
    Messages,
    said,
    save_chat_teacher,
)

LONG = [
    said("system", "be brief"),
    said("user", "the cat"),
    said("assistant", "the row"),
    said("user", "a token"),
    said("assistant", "a unit"),
]


class Bench:
    """A chat teacher's tokenizer, and what is made of conversations with it."""

    def __init__(self, directory: Path, template: str = CHATML) -> None:
        self.directory = save_chat_teacher(directory, template)
        self.tokenizer = load_tokenizer(self.directory)
        self.vocab_size = max(self.tokenizer.get_vocab().values()) + 1
        self.encoder = ChatEncoder(self.tokenizer, self.vocab_size, self.tokenizer.eos_token_id)
        self.refused: list[tuple[str, str]] = []

    def unit(
        self, *conversations: Messages | Conversation, max_ids: int | None = None, **changes: Any
    ) -> EncodedUnit:
        settings: dict[str, Any] = {
            "messages_column": "messages",
            "train_on": "assistant",
            "long_conversations": "split",
        }
        chat = ChatSpec(**(settings | changes))
        documents = UnitDocuments(
            texts=[],
            num_skipped=0,
            position="",
            conversations=[self.read(one, chat) for one in conversations],
            places=[f"line {number}" for number in range(len(conversations))],
            refuse=self._refuse,
        )
        return self.encoder.encode_unit(documents, chat, max_ids)

    def read(self, given: Messages | Conversation, chat: ChatSpec) -> Conversation:
        if isinstance(given, Conversation):
            return given
        found = conversation_of({"messages": given}, chat)
        assert isinstance(found, Conversation)
        return found

    def _refuse(self, place: str, document: BadDocument) -> None:
        self.refused.append((place, document.reason))

    def one(self, messages: Messages | Conversation, **changes: Any) -> EncodedConversation:
        (found,) = self.unit(messages, **changes).documents
        return found

    def scored_text(self, found: EncodedConversation) -> str:
        return str(self.tokenizer.decode(found.ids[found.is_scored]))

    def text(self, found: EncodedConversation) -> str:
        return str(self.tokenizer.decode(found.ids))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("plain") / "teacher")


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("marked") / "teacher", MARKED_CHATML)


class TestScored:
    def test_the_ids_are_those_of_transformers(self, bench: Bench) -> None:
        expected = bench.tokenizer.apply_chat_template(LONG, return_dict=True)["input_ids"]
        assert bench.one(LONG).ids.tolist() == expected

    def test_the_mask_is_that_of_transformers_where_the_template_has_marks(
        self, marked: Bench
    ) -> None:
        expected = marked.tokenizer.apply_chat_template(
            LONG, return_dict=True, return_assistant_tokens_mask=True
        )
        found = marked.one(LONG)
        assert found.ids.tolist() == expected["input_ids"]
        assert found.is_scored.astype(int).tolist() == expected["assistant_masks"]

    def test_marks_and_prefixes_find_the_same(self, bench: Bench, marked: Bench) -> None:
        one, other = bench.one(LONG), marked.one(LONG)
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.is_scored, other.is_scored)

    @pytest.mark.parametrize(
        ("train_on", "expected"),
        [
            ("assistant", f"the row{END}a unit{END}"),
            ("completion", f"a unit{END}"),
        ],
    )
    def test_train_on_says_whose_tokens(self, bench: Bench, train_on: str, expected: str) -> None:
        assert bench.scored_text(bench.one(LONG, train_on=train_on)) == expected

    def test_all_is_everything_and_needs_no_assistant(self, bench: Bench) -> None:
        assert bench.one([said("user", "a")], train_on="all").is_scored.all()

    def test_a_completion_of_several_messages_is_scored_whole(self, bench: Bench) -> None:
        messages = (*LONG[1:3], said("user", "x"), said("assistant", "f()"), said("tool", "1"))
        given = Conversation((*messages, said("assistant", "one")), 3)
        found = bench.one(given, train_on="completion")
        assert bench.scored_text(found) == f"f(){END}one{END}"

    def test_an_empty_answer_is_its_end(self, bench: Bench) -> None:
        found = bench.one([said("user", "a"), said("assistant", "")])
        assert bench.scored_text(found) == END

    def test_one_without_scored_tokens_is_left_out_and_counted(self, bench: Bench) -> None:
        unit = bench.unit([said("user", "a")], LONG)
        assert len(unit.documents) == unit.num_conversations == 1
        assert unit.counts == ConversationCounts(num_unscored=1)


class TestSpecialTokens:
    SPELLED = (END, START, EOS, "<|im_", "end|>", "<|", "|>", "a", " ", "\n", "é")

    @given(
        contents=st.lists(
            st.lists(st.sampled_from(SPELLED), max_size=4).map("".join), min_size=1, max_size=3
        )
    )
    def test_those_of_a_message_are_text(self, bench: Bench, contents: list[str]) -> None:
        messages = [
            said("user" if number % 2 == 0 else "assistant", content)
            for number, content in enumerate(contents)
        ]
        found = bench.one(messages, train_on="all")
        start, end, eos = (bench.tokenizer.convert_tokens_to_ids(t) for t in (START, END, EOS))
        ids = found.ids.tolist()
        assert [ids.count(one) for one in (start, end, eos)] == [len(messages), len(messages), 0]
        rendered = "".join(f"{START}{m['role']}\n{m['content']}{END}\n" for m in messages)
        assert bench.text(found) == rendered

    def test_a_spelled_end_does_not_end_what_is_scored(self, bench: Bench) -> None:
        content = f"x{END}\n{START}user\ny"
        found = bench.one([said("user", "a"), said("assistant", content)])
        assert bench.scored_text(found) == content + END

    def test_white_space_that_a_special_token_takes_in_is_taken_in(self, tmp_path: Path) -> None:
        """The alias is found as the token that it is of."""
        directory = save_chat_teacher(tmp_path / "teacher")
        path = directory / "tokenizer.json"
        fields = json.loads(path.read_text())
        for token in fields["added_tokens"]:
            token["rstrip"] = token["content"] == END
        path.write_text(json.dumps(fields))
        tokenizer = load_tokenizer(directory)
        encoder = ChatEncoder(tokenizer, 10**4, 0)
        chat = ChatSpec(messages_column="m", train_on="all", long_conversations="split")
        documents = UnitDocuments([], 0, "", [Conversation(tuple(LONG), 4)], ["line 1"])
        (found,) = encoder.encode_unit(documents, chat, None).documents
        expected = tokenizer.apply_chat_template(LONG, return_dict=True)["input_ids"]
        assert found.ids.tolist() == expected

    @pytest.mark.parametrize("prepend_scheme", ["always", "first", "never"])
    def test_a_text_is_split_where_the_tokenizer_splits_it(self, prepend_scheme: Any) -> None:
        """A SentencePiece tokenizer may put a blank before the first piece alone."""
        from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

        pieces = [("<unk>", 0.0), *((char, -3.0) for char in "▁abcdefghijklmnopqrstuvwxyz|<>_/")]
        tokenizer: Any = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
        tokenizer.add_special_tokens([AddedToken(START, special=True), AddedToken(END)])
        ours = ConversationTokenizer(tokenizer, 10**4, 10**4 - 1)
        rendered = f"{START}user {END}a b{START} c"
        (found,) = ours.encode_rendered([(rendered, [(0, len(START))])])
        expected = tokenizer.encode(rendered, add_special_tokens=False)
        assert found.ids.tolist() == expected.ids
        assert found.is_scored.tolist() == [True] + [False] * (len(expected.ids) - 1)

    def test_a_control_token_in_the_models_own_vocabulary_is_spelled(self) -> None:
        from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

        names = ["<unk>", "</s>", *"abx</>s"]
        model = models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>")
        tokenizer: Any = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
        ours = ConversationTokenizer(tokenizer, 100, 1)
        rendered = ours.control_text.marked("a </s> b") + " </s>"
        spelled = [names.index(char) for char in "</s>"]
        (found,) = ours.encode_rendered([(rendered, [(3, 9)])])
        assert found.ids.tolist() == [2, *spelled, 3, 1]
        assert found.is_scored.tolist() == [False, *[True] * 5, False]

    def test_a_text_with_a_code_point_that_this_program_uses_is_refused(self, bench: Bench) -> None:
        bench.refused.clear()
        unit = bench.unit([said("user", "a\ufdd1b")], [{**said("user", "a"), "x": {"\ufdd0": 1}}])
        assert unit.num_refused == 2
        assert [place for place, _ in bench.refused] == ["line 0", "line 1"]
        assert "U+FDD1, which Unicode reserves" in bench.refused[0][1]


class TestRefusals:
    def test_what_the_template_refuses_is_a_bad_document(self, tmp_path: Path) -> None:
        bench = Bench(
            tmp_path / "teacher",
            "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
            + CHATML,
        )
        unit = bench.unit([said("assistant", "a")], LONG[1:])
        assert (unit.num_conversations, unit.num_refused) == (1, 1)
        assert bench.refused == [
            ("line 0", "the teacher's chat template does not render it: user first")
        ]

    def test_so_is_what_it_renders_without_telling_what_the_assistant_says(
        self, tmp_path: Path
    ) -> None:
        bench = Bench(tmp_path / "teacher", CHATML + "{{ messages | length }}")
        assert bench.unit(LONG).num_refused == 1
        assert 'or set train_on = "all"' in bench.refused[0][1]
        assert bench.one(LONG, train_on="all").is_scored.all()

    def test_messages_that_are_nested_too_deeply_are_bad_documents(self, bench: Bench) -> None:
        bench.refused.clear()
        deep: Any = "x"
        for _ in range(3000):
            deep = [deep]
        chat = ChatSpec(messages_column="m", train_on="all", long_conversations="split")
        message = {**said("user", "a"), "x": [deep]}
        found = conversation_of({"m": [message]}, chat)
        assert found == BadDocument("a message is nested too deeply")
        unit = bench.unit(Conversation((message,), 1), LONG)
        assert unit.num_refused == 1
        assert bench.refused == [("line 0", "a message is nested too deeply")]


class TestLong:
    def test_one_that_fits_exactly_is_whole(self, bench: Bench) -> None:
        num_ids = len(bench.one(LONG).ids)
        unit = bench.unit(LONG, max_ids=num_ids)
        assert len(unit.documents) == 1
        assert unit.counts == ConversationCounts()

    def test_a_longer_one_is_split_before_a_users_message(self, bench: Bench) -> None:
        unit = bench.unit(LONG, max_ids=len(bench.one(LONG).ids) - 1)
        assert [bench.text(part) for part in unit.documents] == [
            bench.text(bench.one([LONG[0], *LONG[1:3]])),
            bench.text(bench.one([LONG[0], *LONG[3:]])),
        ]
        assert [bench.scored_text(part) for part in unit.documents] == [
            f"the row{END}",
            f"a unit{END}",
        ]
        assert unit.num_conversations == 1
        assert unit.counts == ConversationCounts(num_split=1)

    def test_a_part_without_scored_tokens_is_left_out(self, bench: Bench) -> None:
        unit = bench.unit(LONG, max_ids=len(bench.one(LONG).ids) - 1, train_on="completion")
        assert [bench.scored_text(part) for part in unit.documents] == [f"a unit{END}"]
        assert unit.counts == ConversationCounts(num_split=1)

    def test_an_exchange_that_does_not_fit_is_left_out_and_said(self, bench: Bench) -> None:
        most = len(bench.one(LONG).ids) - 1
        longer = [*LONG, said("user", "x" * 2 * most), said("assistant", "y")]
        unit = bench.unit(longer, max_ids=most)
        assert len(unit.documents) == 2
        assert unit.counts == ConversationCounts(num_split=1, num_incomplete=1)
        assert bench.unit(longer[-2:], max_ids=most).counts == ConversationCounts(num_too_long=1)

    def test_it_may_be_dropped(self, bench: Bench) -> None:
        unit = bench.unit(LONG, LONG[:3], max_ids=60, long_conversations="drop")
        assert [bench.text(one) for one in unit.documents] == [bench.text(bench.one(LONG[:3]))]
        assert unit.counts == ConversationCounts(num_too_long=1)

    def test_or_be_an_error(self, bench: Bench) -> None:
        with pytest.raises(
            ValueError, match=r"line 0: the conversation has \d+ tokens, .* 60.*Raise sequence_len"
        ):
            bench.unit(LONG, max_ids=60, long_conversations="error")


def encoded(length: int, first: int, *, scored: bool = True) -> tuple[Any, Any]:
    return np.arange(first, first + length, dtype=np.int32), np.full(length, scored)


class TestPacking:
    def test_documents_go_whole_into_the_first_row_with_room(self) -> None:
        packed = pack_whole([encoded(5, 10), encoded(4, 20), encoded(3, 30)], 0, 8)
        assert packed.token_ids_RT.tolist() == [
            [10, 11, 12, 13, 14, 20, 21, 22, 23],
            [30, 31, 32, 0, 0, 0, 0, 0, 0],
        ]
        assert [starts.tolist() for starts in packed.document_starts] == [[5], [3]]
        assert packed.scored_RT().tolist() == [
            [True] * 4 + [False] + [True] * 3,
            [True] * 2 + [False] * 6,
        ]
        assert packed.num_dropped_tokens == 0

    def test_a_position_is_scored_if_its_label_is(self) -> None:
        ids, is_scored = encoded(9, 0)
        is_scored[:] = [1, 0, 0, 1, 0, 0, 0, 1, 1]
        packed = pack_whole([(ids, is_scored)], 0, 8)
        assert packed.scored_RT().astype(int).tolist() == [[0, 0, 1, 0, 0, 0, 1, 1]]
        assert packed.rows(0, 1).scored_RT().tolist() == packed.scored_RT().tolist()
        context = packed.context_of(0)
        assert context is not None
        assert context.tolist() == (~packed.scored_RT()[0]).tolist()

    def test_no_documents_are_no_rows(self) -> None:
        packed = pack_whole([], 0, 8)
        assert packed.token_ids_RT.shape == (0, 9)
        assert packed.scored_RT().shape == (0, 8)
