"""The traps of tokens and labels, by which fine-tuning goes quietly wrong. Each test bears its trap's name."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from fm.data import Instruction, Text
from fm.errors import RequestError, Unsupported
from fm_local.models.tokenizer import PRESET_TEMPLATE, ChatTemplate, chat_template_of, load_tokenizer, stop_token_ids
from fm_local.prepare.encoding import PIECE
from fm_local.prepare.offsets import ByteWidths, bounds_by_offsets
from fm_local.prepare.rendering import Rendered
from support.data import chat
from support.templates import (
    BARE,
    CHAT,
    INSTRUCTION,
    LLAMA2,
    LLAMA3,
    QWEN3,
    TEMPLATES,
    TEXT,
    encode,
    small_tokenizer,
    spans,
)


def test_trap_8_an_end_that_is_also_the_padding_is_still_trained() -> None:
    tokenizer = small_tokenizer(None)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    [(ids, mask)] = encode(tokenizer, chat("hello", "world")).rows
    assert ids[-1] == tokenizer.eos_token_id and mask[-1] == 1


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("bos", [False, True])
def test_trap_9_every_finished_example_ends_in_a_trained_terminator(template: str | None, bos: bool) -> None:
    tokenizer = small_tokenizer(template, bos=bos)
    stops = stop_token_ids(tokenizer, chat_template_of(tokenizer))
    examples = [
        (CHAT, chat("hello", "world")),
        (INSTRUCTION, Instruction("hello ", "world")),
        (TEXT, Text("hello")),
        (INSTRUCTION, Instruction("hello ", "world</s>")),
    ]
    for task_type, example in examples:
        [(ids, mask)] = encode(tokenizer, example, task_type).rows
        assert ids[-1] in stops and mask[-1] == 1
        assert ids[-2] not in stops


def test_trap_10_a_truncated_row_is_counted_and_not_given_an_end() -> None:
    tokenizer = small_tokenizer()
    whole = encode(tokenizer, chat("hello", "how are you? " * 20))
    cut = encode(tokenizer, chat("hello", "how are you? " * 20), length=20)
    assert cut.truncated and not whole.truncated
    assert cut.rows[0][0].tolist() == whole.rows[0][0].tolist()[:20]
    exact = len(whole.rows[0][0])
    assert not encode(tokenizer, chat("hello", "how are you? " * 20), length=exact).truncated


def test_trap_11_what_ends_a_turn_of_the_template_stops_generation() -> None:
    tokenizer = small_tokenizer()
    sequence, turn = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_token_ids(tokenizer, PRESET_TEMPLATE) == [sequence, turn]
    assert stop_token_ids(small_tokenizer(LLAMA3), LLAMA3) == [sequence, turn]
    # The fallback ends a turn with the tokenizer's own end of sequence.
    assert stop_token_ids(small_tokenizer(None), chat_template_of(small_tokenizer(None))) == [sequence]
    assert stop_token_ids(small_tokenizer(BARE), BARE) == [sequence]


@pytest.mark.parametrize("template", [None, LLAMA2, LLAMA3], ids=["fallback", "llama2", "llama3"])
def test_trap_12_exactly_one_beginning_of_sequence_in_training_and_generation(template: str | None) -> None:
    tokenizer = small_tokenizer(template, bos=True)
    [(ids, _)] = encode(tokenizer, chat("hello", "world", "how", "fine"), train_on="all").rows
    assert ids.tolist().count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    text = ChatTemplate(chat_template_of(tokenizer), tokenizer.special_tokens_map).render(
        chat("hello", "x")["messages"][:1], prompt=True
    )
    assert ids.tolist()[:3] == tokenizer.encode(text, add_special_tokens=False)[:3]
    for task_type, example in ((INSTRUCTION, Instruction("hello", " world")), (TEXT, Text("hello"))):
        [(ids, _)] = encode(tokenizer, example, task_type).rows
        assert ids.tolist().count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_trap_13_a_template_without_generation_markers_still_trains_each_turn(template: str | None) -> None:
    tokenizer = small_tokenizer(template)
    assert "generation %}" not in chat_template_of(tokenizer)
    assert len(spans(tokenizer, encode(tokenizer, chat("a", "b", "c", "d", "e", "f"), train_on="all"))) == 3
    assert len(spans(tokenizer, encode(tokenizer, chat("a", "b", "c", "d", "e", "f")))) == 1


CONTENT = st.text(st.sampled_from("ab 日é✓\n.?<|im_end>"), min_size=1, max_size=12).filter(
    lambda text: text.strip() and "<|im_" not in text
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    contents=st.lists(CONTENT, min_size=4, max_size=4),
    system=st.none() | CONTENT,
    train_on=st.sampled_from(["last", "all"]),
)
def test_trap_14_trained_spans_are_the_answers_and_their_terminators(
    contents: list[str], system: str | None, train_on: str
) -> None:
    tokenizer = PRESET
    got = spans(tokenizer, encode(tokenizer, chat(*contents, system=system), train_on=train_on))
    answers = [contents[1], contents[3]] if train_on == "all" else [contents[3]]
    # Only line ends at an answer's very beginning may join the template's own line end into one token.
    wanted = [answer + "<|im_end|>" for answer in answers]
    assert len(got) == len(wanted)
    for text, want in zip(got, wanted, strict=True):
        assert text == want or (want[0].isspace() and text == "\n" + want)


PRESET = small_tokenizer()


def test_trap_14_spans_are_right_with_a_tokenizer_of_sentencepiece_kind() -> None:
    tokenizer = small_tokenizer(LLAMA2, bos=True, metaspace=True)
    got = spans(tokenizer, encode(tokenizer, chat("hello", "world is fine", "you", "answer"), train_on="all"))
    assert [text.replace("▁", " ").replace(" ", "") for text in got] == ["worldisfine</s>", "answer</s>"]


@pytest.mark.parametrize("template", [LLAMA2, LLAMA3, BARE], ids=["llama2", "llama3", "bare"])
@pytest.mark.parametrize("answer", ["plain", "  outer space  ", "日本語 ✓"])
def test_trap_14_spans_are_right_for_templates_that_trim(template: str, answer: str) -> None:
    tokenizer = small_tokenizer(template)
    got = spans(tokenizer, encode(tokenizer, chat("hello", answer, "you", answer), train_on="all"))
    assert len(got) == 2 and all(answer.strip() in text and "you" not in text for text in got)


def test_trap_15_a_template_that_rewrites_earlier_turns_is_refused_where_it_matters() -> None:
    tokenizer = small_tokenizer(QWEN3)
    thoughts = chat("hello", "<think>x</think>world", "you", "<think>y</think>fine")
    with pytest.raises(Unsupported, match="rewrites earlier turns"):
        encode(tokenizer, thoughts, train_on="all")
    assert spans(tokenizer, encode(tokenizer, thoughts)) == ["<think>y</think>fine<|im_end|>"]
    # What is not rewritten is trained as usual.
    assert len(spans(tokenizer, encode(tokenizer, chat("a", "b", "c", "d"), train_on="all"))) == 2


@settings(max_examples=80, deadline=None)
@given(
    prompt=st.text(st.sampled_from("ab \n日é.helo"), min_size=1),
    response=st.text(st.sampled_from("ab \n日é.wrld"), min_size=1),
)
def test_trap_16_an_instruction_is_tokenised_whole_and_split_where_the_prompts_own_tokens_end(
    prompt: str, response: str
) -> None:
    tokenizer = PRESET
    whole = tokenizer.encode(prompt + response, add_special_tokens=False)
    encoded = encode(tokenizer, Instruction(prompt, response), INSTRUCTION)
    [(ids, mask)] = encoded.rows
    assert ids.tolist() == [*whole, tokenizer.eos_token_id]
    first = mask.index(1)
    assert first <= _characters(tokenizer, whole, prompt)
    assert tokenizer.decode(whole[first:]).endswith(response)
    assert prompt.encode().startswith(_bytes(tokenizer, whole[:first]))


def _bytes(tokenizer: Any, ids: list[int]) -> bytes:
    table = {symbol: byte for byte, symbol in _byte_symbols().items()}
    return bytes(table[symbol] for token in tokenizer.convert_ids_to_tokens(ids) for symbol in token)


def _byte_symbols() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return dict(bytes_to_unicode())


def _characters(tokenizer: Any, ids: list[int], prompt: str) -> int:
    """How many of `ids` lie within the bytes of `prompt`."""
    size, wanted = 0, len(prompt.encode())
    for count, token in enumerate(ids):
        size += len(_bytes(tokenizer, [token]))
        if size > wanted:
            return count
    return len(ids)


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab \n日é.helo\u0301"), min_size=2), edges=st.tuples(st.integers(0), st.integers(0))
)
@pytest.mark.parametrize("nfc", [False, True])
def test_widths_of_tokens_say_the_same_as_the_tokenizers_own_offsets(
    nfc: bool, text: str, edges: tuple[int, int]
) -> None:
    tokenizer = COMPOSING if nfc else PRESET
    start, end = sorted(edge % len(text) for edge in edges)
    item = Rendered(text, [(start, end + 1)])
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    widths = ByteWidths.of(tokenizer)
    assert widths
    quick = widths.bounds(item, np.array(encoding.ids))
    if quick is None:
        assert nfc and not unicodedata.is_normalized("NFC", text)
    else:
        # A character's later bytes: the tokenizer counts a token by characters, and the widths by bytes.
        slow = bounds_by_offsets(item, encoding)
        held = tokenizer.decode(encoding.ids[quick[0][0] : quick[0][1]], clean_up_tokenization_spaces=False)
        assert text[start : end + 1] in held
        assert slow[0][0] <= quick[0][0] and quick[0][1] <= slow[0][1]
        if text.isascii():
            assert slow == quick


def test_tokens_that_are_not_bytes_of_the_text_have_no_widths() -> None:
    assert ByteWidths.of(small_tokenizer(metaspace=True)) is None
    spaced = small_tokenizer()
    spaced.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert ByteWidths.of(spaced) is None


def test_trap_17_a_row_whose_labels_were_all_cut_away_is_dropped() -> None:
    tokenizer = small_tokenizer()
    assert encode(tokenizer, chat("how are you? " * 20, "fine"), length=16).rows == []
    assert encode(tokenizer, Instruction("how are you? " * 20, "fine"), INSTRUCTION, length=16).rows == []


def test_a_long_document_is_split_without_losing_a_token_and_no_piece_is_untrainable() -> None:
    tokenizer = small_tokenizer()
    for length, text in [(16, "hello world " * 30), (16, "a" * 15), (16, "a" * 16), (8, "x y z\n" * 40_000)]:
        encoded = encode(tokenizer, Text(text), TEXT, length=length)
        ids = np.concatenate([row[0] for row in encoded.rows]).tolist()
        assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[:-1]) == text
        assert all(2 <= len(row[0]) <= length and set(row[1]) == {1} for row in encoded.rows)


def test_a_document_cut_for_the_tokenizer_has_the_tokens_of_the_whole() -> None:
    tokenizer = small_tokenizer()
    text = "how are you?\nI am fine.\n" * (PIECE // 8)
    [(ids, _)] = encode(tokenizer, Text(text), TEXT, length=10**7).rows
    assert ids.tolist()[:-1] == tokenizer.encode(text, add_special_tokens=False)


def test_a_tokenizer_without_an_end_of_sequence_is_refused(tmp_path: Path) -> None:
    small_tokenizer(eos=False).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="no end-of-sequence token"):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no tokenizer"):
        load_tokenizer(tmp_path)


@settings(max_examples=100, deadline=None)
@given(
    contents=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=6),
    system=st.none() | st.text(),
)
@pytest.mark.parametrize("bos", [False, True])
def test_a_composed_text_is_what_jinja_would_render(bos: bool, contents: list[str], system: str | None) -> None:
    messages = chat(*contents, system=system)["messages"]
    for source in (PRESET_TEMPLATE, chat_template_of(BOS if bos else PLAIN)):
        template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
        assert template.joints
        if messages[-1]["role"] == "assistant":
            assert template.writes(messages)
            composed = template.joints.compose(messages)
            assert composed and composed[0] == template.render(messages)


COMPOSING = small_tokenizer()
COMPOSING.backend_tokenizer.normalizer = normalizers.NFC()
PLAIN, BOS = small_tokenizer(None), small_tokenizer(None, bos=True)
