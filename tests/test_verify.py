"""Results read from answers: where they stand, numbers, options, normalised text; every reader survives any text."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from malformed import malformed
from sparring.verify.choices import chosen_option
from sparring.verify.extract import LONGEST, boxed, final_answer, hashed, last_number, stated, unwrapped
from sparring.verify.matching import ByFunction, Choice, Exact, Expression, Normalised, Numeric, Regression, normalised
from sparring.verify.numbers import Number, close, read_number

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)


# --- where a result stands ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{a \\{b}}", r"a \\{b}"),
        (r"\boxed {3}", "3"),
        (r"\fbox{3}", "3"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{2} and \boxed{3", "2"),
        (r"{ \boxed{5}", "5"),
        (r"} \boxed{6}", "6"),
        (r"so \boxed 9.", "9"),
        (r"\boxed{}", None),
        (r"\boxedx{3}", None),
        (r"\\boxed{3}", None),
        ("boxed{3}", None),
    ],
)
def test_boxes(text: str, found: str | None) -> None:
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#### 72", "72"),
        ("so\n#### -1,080", "-1,080"),
        ("#### 5\n#### 6.", "6"),
        ("#### $12", "$12"),
        ("#### 12 dollars", "12 dollars"),
        ("#### 3/4", "3/4"),
        ("#### Step 3", None),
        ("#### 3. Add up", None),
        ("see #### 3", None),
        ("### 3", None),
    ],
)
def test_hashes(text: str, found: str | None) -> None:
    assert hashed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 18.", "18"),
        ("The final answer is: **3.5**. Thus", "3.5"),
        ("**Answer: 42**", "42"),
        ("**Answer:** $x^2$", "x^2"),
        ("Answer:\n\n  42\nmore", "42"),
        ("answer is 1. No, the answer is 2", "2"),
        ("The answers are 1 and 2", "1 and 2"),
        (r"The answer is \(x + 1\).", "x + 1"),
        ("The answer is:", None),
        ("Answering this is hard", None),
    ],
)
def test_statements(text: str, found: str | None) -> None:
    assert stated(text) == found


def test_a_final_answer_is_the_box_then_hashes_then_a_statement_then_the_last_number() -> None:
    everything = "1 is it. The answer is 2.\n#### 3\n"
    assert final_answer(everything + r"\boxed{4}") == "4"
    assert final_answer(everything) == "3"
    assert final_answer("1 is it. The answer is 2. I had 5") == "2"
    assert final_answer("first 1, then 2.5") == "2.5"
    assert final_answer("no idea") is None


def test_an_answer_cut_off_inside_its_box_is_none() -> None:
    assert final_answer(r"3 + 4 = \boxed{12") is None  # 12 may have been 123
    assert final_answer(r"\boxed{7} or \boxed{12") == "7"


def test_prose_is_no_result() -> None:
    assert final_answer(rf"\boxed{{{'x' * (LONGEST + 1)}}}") is None


def test_last_numbers_keep_sign_currency_and_percent() -> None:
    assert [
        last_number(text) for text in ("is -3/4", "it's $1,234.50!", "12 %", "2e-3", "2 million", "a1", "3.1.2")
    ] == [
        "-3/4",
        "$1,234.50",
        "12 %",
        "2e-3",
        "2 million",
        None,
        None,
    ]


# --- numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.5", "2469/2"), (r"\$32,\!348", "32348"), ("10{,}080", "10080"), ("3/4", "3/4"), ("1 1/2", "3/2"),
        (r"137 \frac{1}{2}", "275/2"), (r"-\frac43", "-4/3"), ("½", "1/2"), ("3½", "7/2"), ("2.5e-3", "1/400"),
        (r"1.2 \times 10^{3}", "1200"), ("1.2*10^3", "1200"), ("−5", "-5"), ("-$3", "-3"), ("$-3", "-3"),
        ("x = 5", "5"),
        ("3 + 15 = 18", "18"), ("5 cm^2", "5"), (r"15\mbox{ cm}^2", "15"), (r"90^\circ", "90"), ("18 per day", "18"),
        ("2 million", "2000000"), ("5.", "5"), (".5", "1/2"), ("**7**", "7"), ("+4", "4"), ("\\textbf{8}", "8"),
    ],
)  # fmt: skip
def test_numbers(text: str, value: str) -> None:
    assert read_number(text) == Number(Fraction(value))


@pytest.mark.parametrize(
    "text",
    ["", "five", "1,2", "(1, 2)", "3 or 4", "3-4", "1 234", "1,23", "5.0.0", "10²", r"2\pi", "2k", "5i", "x - 5",
     "5:30",
     "1/0", "1e999", "1e99999", "52_8", r"11\sqrt2", "6+9i", "10^5", "7" * 300, "١٢"],
)  # fmt: skip
def test_what_is_not_one_number_is_none(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("reference", "given", "tolerances", "same"),
    [
        ("100", "101", {}, False),
        ("100", "102", {"relative": 0.02}, True),
        ("100", "102.1", {"relative": 0.02}, False),
        ("0", "0.3", {"absolute": 0.3}, True),
        ("0", "0.3", {"relative": 0.3}, False),
        ("50 %", "0.5", {}, True),
        ("50", "50%", {}, True),
        ("50%", "5000%", {}, False),
        ("1/3", "0.333333", {}, False),
    ],
)
def test_closeness(reference: str, given: str, tolerances: dict[str, float], same: bool) -> None:
    wanted, got = read_number(reference), read_number(given)
    assert wanted is not None
    assert got is not None
    assert close(wanted, got, **tolerances) is same


# --- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"), ("a", "A"), ("A.", "A"), ("(A)", "A"), ("(b)", "B"), ("A. cat", "A"), ("C) blue", "C"), ("D: x",
        "D"),
        (r"\boxed{A}", "A"), (r"\boxed{\text{(C)}}", "C"), (r"\boxed{\textbf{(B) } 5}", "B"), ("answer: A", "A"),
        ("The answer is B.", "B"), ("The answer is **(D)**.", "D"), ("Answer: option E", "E"), ("Thus\nF", "F"),
        ("The answer is B because it fits", "B"), ("$G$", "G"), ("[H]", "H"),
        ("A cat", None), ("I think so", None), ("A or B", None), ("A, B", None), ("(A) or (B)", None), ("A/B", None),
        ("The answer is a dog", None), (r"\boxed{AB}", None), ("K", None), ("", None), ("AB", None),
    ],
)  # fmt: skip
def test_options(text: str, letter: str | None) -> None:
    assert chosen_option(text) == letter


# --- normalised text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The Beatles", "beatles!", True),
        ("O'Brien", "obrien", True),
        ("U.S.", "us", True),
        ("ﬁve", "FIVE", True),
        ("cat-dog", "cat dog", True),
        ("1,000", "1000.0", True),
        ("-5", "5", False),
        ("3.5", "35", False),
        ("3 cats", "3 dogs", False),
        ("the", "a", False),
        ("A.", "A", True),
        ("**A**", "A:", True),
        ("A, B", "B", False),
        ("vitamin A", "vitamin", False),
        ("a cat", "cat", True),
        ("!!", "??", False),
    ],
)
def test_normalised_matching(one: str, other: str, same: bool) -> None:
    assert Normalised().grade([(one, other)]) == [float(same)]


@given(ANY_TEXT)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


# --- any text at all ---------------------------------------------------------------------------------

READERS = (boxed, hashed, stated, last_number, final_answer, chosen_option)
MATCHERS = (Exact(), Normalised(), Choice(), Numeric(), Regression(), Expression(), ByFunction(lambda a, b: a == b))


def test_a_thousand_malformed_texts() -> None:
    texts = malformed()
    assert len(texts) == 1_000
    for text in texts:
        _survives(text)


@settings(max_examples=300)
@given(ANY_TEXT)
def test_any_text(text: str) -> None:
    _survives(text)


def _survives(text: str) -> None:
    for read in READERS:
        found = read(text)
        assert found is None or (found and found == found.strip())
    read_number(text)
    unwrapped(text)
    for matcher in MATCHERS:
        result = matcher.extract(text)
        if result is not None and not isinstance(matcher, Expression):
            assert matcher.grade([(result, result)]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no result here",
        r"\boxed{",
        r"\boxed{}",
        "####",
        "The answer is:",
        "x86 and a1b2",
        "\0",
        "\ud800",
        "\u202e",
        "{" * 99,
    ],
)
def test_where_there_is_no_result_none_is_guessed(text: str) -> None:
    assert final_answer(text) is None
    assert Numeric().extract(text) is None
    assert chosen_option(text) is None


@given(st.from_regex(r"[A-Za-z+\-= ]{1,20}", fullmatch=True).filter(str.strip))
def test_a_boxed_result_is_found_behind_any_words(result: str) -> None:
    assert boxed(f"First {{a}} and \\{{. Then \\boxed{{{result}}} ends it. }}") == result.strip()


@given(st.integers(-(10**12), 10**12), st.integers(0, 99))
def test_a_number_reads_back_in_every_spelling(whole: int, hundredths: int) -> None:
    value = Fraction(whole) + Fraction(hundredths, 100) * (-1 if whole < 0 else 1)
    plain = f"{abs(whole)}.{hundredths:02d}"
    sign = "-" if whole < 0 else ""
    spellings = [
        f"{sign}{plain}",
        f"{sign}${abs(whole):,}.{hundredths:02d}",
        f"x = {sign}{plain} dollars",
        f"{sign}{plain}e0",
    ]
    assert {read_number(text) for text in spellings} == {Number(value)}
