"""IFEval: every check with a response that follows and one that doesn't, strict and loose, rows that can't be used."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malformed import malformed
from sparring.verify.ifeval import language
from sparring.verify.ifeval.counting import count_capital_words, count_sentences, count_words
from sparring.verify.ifeval.follow import Instructions, follow, follow_loosely
from sparring.verify.ifeval.instructions import CHECKS

ENGLISH = "the quick brown fox jumps over the lazy dog and then it sleeps under the old tree"
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund und schläft dann unter dem Baum."
LANGUAGES = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["sun", "Moon"]}, ["SUNNY moon"], ["the sun", "mo on sun"]),
    (
        "keywords:frequency",
        {"keyword": "cat ", "frequency": 2, "relation": "at least"},
        ["Cat, cats", "concatenate cat"],
        ["cat"],
    ),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, ["a cat", "no"], ["cat cat"]),
    ("keywords:forbidden_words", {"forbidden_words": ["rain"]}, ["raining", "sun"], ["Rain!", "no rain."]),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        ["Eee", "tree here"],
        ["tree"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "less than"},
        ["# one", "no"],
        ["# #"],
    ),
    ("language:response_language", {"language": "de"}, [GERMAN, "12345"], [ENGLISH]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["Ab it. Cd so."],
        ["Ab it, c."],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, ["One."], ["One. Two!"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b c", "don't go"], ["a b"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["a b"], ["a b c"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb\n***", "a***b"],
        ["a", "a\n***\n\n***\nb", "a\n\nb"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Well"},
        ["a\n\nwell, b", 'a\n\n\'"Well" b', "a\n\n'well b", "a\n\nwell b\n\n "],
        ["well\n\na", "a\n\nb\n\nwell", "a", "a\n\nwellness b", "a\n\n\n\nwell b"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b c]", "[[a] b] [c]"], ["[a] [b\n]"]),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["x\nP.S. bye", "p. s. x", "cap.s. y"],
        ["PS", "p.s bye"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P.P.S bye", "p. p. s"], ["P.S. bye", "PPS"]),
    ("detectable_content:postscript", {"postscript_marker": "NB"}, ["nb: x"], ["note"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  * b", "\n\n* a\n\n- b", "text\n-a\n*b"],
        ["* a", "** a\n** b", "* a\n* b\n* c", "+ a\n+ b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well: My answer is maybe. Ok"],
        ["yes", "my answer is yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*", "**a** **b**"],
        ["*a*", "**a**", "** ** * *", "*a\nb* *c*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section ", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section2"],
        ["Section 1\na", "Section one Section two", "SECTION 1 SECTION 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```', "```\n3\n```", ' "text" '],
        ["{'a': 1}", 'Here: {"a": 1}', "[" * 100_000],
    ),
    ("detectable_format:title", {}, ["<<A title>>\ntext", "x <<a>> y", "<<<a>>>"], ["<a>", "<<>>", "<< >>", "<<a\n>>"]),
    ("combination:two_responses", {}, ["a\n******\nb", "******a******b******"], ["a", "a******a", "a************b"]),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say it. "},
        ["say it. I do", "\n Say it."],
        ["I say it.", "Say  it."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": " The End."},
        ["It is the end.", '"So. THE END."', "the end. "],
        ["The end"],
    ),
    ("startend:quotation", {}, ['"a"', ' "a "b" c" ', '""'], ["a", '"a', '"', "“a”", "'a'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA I go", "WE'LL see", "A-B C"],
        ["Nasa", "I go", "A-b C3p"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "less than"},
        ["none here"],
        ["ONE"],
    ),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, ENGLISH.title(), GERMAN.upper(), "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.upper(), ENGLISH.title(), GERMAN.lower(), "123"]),
    ("punctuation:no_comma", {}, ["a; b، c"], ["a, b"]),
]


def read(*pairs: tuple[str, dict[str, Any]]) -> Instructions:
    return Instructions.read([name for name, _ in pairs], [arguments for _, arguments in pairs], "row 1")


def needs_langdetect(name: str) -> None:
    if name in LANGUAGES:
        pytest.importorskip("langdetect", reason="langdetect is not installed (the extra `verify`)")


@pytest.mark.parametrize(("name", "arguments", "following", "violating"), CASES)
def test_every_check(name: str, arguments: dict[str, Any], following: list[str], violating: list[str]) -> None:
    needs_langdetect(name)
    instructions = read((name, arguments))
    assert [follow(instructions, text) for text in following] == [[True]] * len(following)
    assert [follow(instructions, text) for text in violating] == [[False]] * len(violating)


def test_there_are_25_and_each_is_tested() -> None:
    assert len(CHECKS) == 25
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_an_empty_response_follows_nothing() -> None:
    instructions = read(("punctuation:no_comma", {}), ("keywords:forbidden_words", {"forbidden_words": ["a"]}))
    for text in ("", "  \n"):
        assert follow(instructions, text) == follow_loosely(instructions, text) == [False, False]


def test_instructions_are_judged_one_by_one() -> None:
    instructions = read(("punctuation:no_comma", {}), ("detectable_format:title", {}), ("startend:quotation", {}))
    assert follow(instructions, '"<<A>>, b"') == [False, True, True]


@pytest.mark.parametrize(
    ("response", "name"),
    [
        ("Sure, here:\nNo comma at all", "punctuation:no_comma"),
        ("No comma at all\nBye, then", "punctuation:no_comma"),
        ("Sure, here:\nNo comma at all\nBye, then", "punctuation:no_comma"),
        ('**"quoted"**', "startend:quotation"),
        ('Here:\n*"quoted"*', "startend:quotation"),
    ],
)
def test_a_preface_a_farewell_and_asterisks_are_loosely_ignored(response: str, name: str) -> None:
    instructions = read((name, {}))
    assert follow(instructions, response) == [False]
    assert follow_loosely(instructions, response) == [True]


def test_each_instruction_may_be_loosely_followed_by_another_variant() -> None:
    instructions = read(("punctuation:no_comma", {}), ("detectable_format:title", {}))
    assert follow_loosely(instructions, "<<A>>, b\nno comma") == [True, True]


# --- rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "arguments", "why"),
    [
        ([], [], "must be a list of instructions, not \\[\\]"),
        ("punctuation:no_comma", [{}], "must be a list of instructions"),
        (["punctuation:no_comma"], [], "one object for each of its instructions"),
        (["punctuation:no_commas"], [{}], "unknown instruction 'punctuation:no_commas'; did you mean"),
        (["punctuation:no_comma"], ["x"], "kwargs of punctuation:no_comma must be an object"),
        (["punctuation:no_comma"], [{"n": 1}], "takes the arguments none, but the row gives n"),
        (["keywords:existence"], [{}], "takes the arguments keywords, but the row gives none"),
        (["keywords:existence"], [{"keywords": "sun"}], "its keywords must be a list of texts, not 'sun'"),
        (["keywords:existence"], [{"keywords": ["("]}], r"keywords '\(' is no regular expression"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "about"}], "'less than' or 'at least'"),
        (["length_constraints:number_words"], [{"num_words": 3.5, "relation": "at least"}], "whole number from 0"),
        (["startend:end_checker"], [{"end_phrase": " "}], "its end_phrase must be text"),
        (
            ["length_constraints:nth_paragraph_first_word"],
            [{"num_paragraphs": 2, "nth_paragraph": 0, "first_word": "a"}],
            "nth_paragraph counts from 1",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(names: Any, arguments: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"^file, line 3: .*{why}"):
        Instructions.read(names, arguments, "file, line 3")


def test_null_arguments_are_left_out() -> None:
    row = {"num_words": 2, "relation": "at least", "keywords": None, "language": None}
    assert follow(read(("length_constraints:number_words", row)), "two words") == [True]


def test_without_langdetect_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    language._factory.cache_clear()
    monkeypatch.setitem(sys.modules, "langdetect.detector_factory", None)
    with pytest.raises(ValueError, match=r"pip install 'sparring\[verify\]'"):
        follow(read(("language:response_language", {"language": "de"})), GERMAN)


def test_a_language_is_told_alike_every_time() -> None:
    pytest.importorskip("langdetect", reason="langdetect is not installed (the extra `verify`)")
    assert len({language.detected("ok das fine sehr gut") for _ in range(20)}) == 1


# --- counting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two? Three!", 3),
        ("What?! No way", 2),
        ("No way!!!", 2),  # as NLTK has it: only before another word are they one sign
        ("Dr. Smith met J. K. Rowling, e.g. at 5 p.m. in Washington, D.C. with Mr. Poe.", 1),
        ("It cost $3.50. Fine.", 2),
        ('He said "Go." Then he went.', 2),
        ("(Really?) Yes.", 2),
        ("1. Do this.\n2. Do that.", 4),
        ("See no. 3. and go on", 2),
        ("A line\nand another\n\nand more", 1),
        ("Wait... what", 1),
        ("He came at 5 p.m. The show began.", 2),
        ("- one.\n- two.", 2),
        ("Plan B. The end", 2),
        ("Plan B. Smith", 1),
        ("www.example.com. Next", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert count_sentences(text) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [("I AM", 2), ("I'm", 1), ("DON'T", 2), ("CANNOT", 2), ("U.S.A. is", 1), ("A/B", 1), ("A-B", 1), ("A--B", 2),
     ("(ABC), [DEF]; 'GHI'", 3), ("X2 2X 22", 2), ("IBM's $US", 2), ("none", 0), ("“HI”", 1)],
)  # fmt: skip
def test_capital_words(text: str, count: int) -> None:
    assert count_capital_words(text) == count


def test_words() -> None:
    assert [count_words(text) for text in ("", "a b", "don't", "naïve café", "x_y 3.5", "你好 世界")] == [
        0,
        2,
        2,
        2,
        3,
        2,
    ]


# --- any text at all ---------------------------------------------------------------------------------


def test_a_thousand_malformed_responses() -> None:
    plain = read(*[(name, arguments) for name, arguments, *_ in CASES if name not in LANGUAGES])
    for text in malformed():
        verdicts = follow(plain, text)
        assert all(isinstance(verdict, bool) for verdict in verdicts)
        assert text.strip() or not any(verdicts)


def test_languages_of_malformed_responses() -> None:
    pytest.importorskip("langdetect", reason="langdetect is not installed (the extra `verify`)")
    instructions = read(*[(name, arguments) for name, arguments, *_ in CASES if name in LANGUAGES])
    for text in malformed()[::9]:
        follow(instructions, text)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=120))
def test_what_is_strictly_followed_is_loosely_followed(text: str) -> None:
    plain = read(*[(name, arguments) for name, arguments, *_ in CASES if name not in LANGUAGES])
    for strict, loose in zip(follow(plain, text), follow_loosely(plain, text), strict=True):
        assert loose or not strict
