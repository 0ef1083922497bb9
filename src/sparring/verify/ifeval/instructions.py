"""The 25 checks: (response, arguments of the row) → followed or not. Time grows with the response's length alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from sparring.verify.ifeval.counting import count_capital_words, count_sentences, count_words
from sparring.verify.ifeval.language import detected

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _holds(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


# --- keywords ----------------------------------------------------------------------------------------


def existence(response: str, keywords: Sequence[str]) -> bool:
    """Every keyword is there, in any case, inside words too; a keyword is a regular expression, as in the original."""
    return all(re.search(keyword, response, re.IGNORECASE) for keyword in keywords)


def frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    """The keyword is there at least, or less than, so many times."""
    return _holds(len(re.findall(keyword.strip(), response, re.IGNORECASE)), relation, frequency)


def forbidden_words(response: str, forbidden_words: Sequence[str]) -> bool:
    """None of these is there as a word."""
    return not any(re.search(rf"\b{word}\b", response, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """The letter is there at least, or less than, so many times, in either case."""
    return _holds(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


# --- language and length -----------------------------------------------------------------------------


def response_language(response: str, language: str) -> bool:
    """The language is this one; where none can be told the instruction counts as followed."""
    return detected(response) in (language, None)


def number_sentences(response: str, num_sentences: int, relation: str) -> bool:
    """At least, or less than, so many sentences."""
    return _holds(count_sentences(response), relation, num_sentences)


def number_words(response: str, num_words: int, relation: str) -> bool:
    """At least, or less than, so many words."""
    return _holds(count_words(response), relation, num_words)


def number_paragraphs(response: str, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs between ***; an empty one may only be the first or the last."""
    paragraphs = re.split(r"\s?\*\*\*\s?", response)
    if any(not paragraph.strip() for paragraph in paragraphs[1:-1]):
        return False
    empty = sum(not paragraphs[index].strip() for index in {0, len(paragraphs) - 1})
    return len(paragraphs) - empty == num_paragraphs


def nth_paragraph_first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs between blank lines, and the n-th begins with this word.

    As in the original, empty paragraphs don't count towards the number but do towards n.
    """
    paragraphs = response.split("\n\n")
    filled = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if nth_paragraph > filled or not paragraphs[nth_paragraph - 1].strip():
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return filled == num_paragraphs and re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


# --- content and format ------------------------------------------------------------------------------


def number_placeholders(response: str, num_placeholders: int) -> bool:
    """At least so many [placeholders], each on one line."""
    return sum(map(_bracketed, response.split("\n"))) >= num_placeholders


def _bracketed(line: str) -> int:
    count, position = 0, 0
    while (opening := line.find("[", position)) >= 0 and (closing := line.find("]", opening)) >= 0:
        count, position = count + 1, closing + 1
    return count


def postscript(response: str, postscript_marker: str) -> bool:
    """There is a postscript: "P.S." or "P.P.S" with or without a space, or another marker as it stands."""
    marker = postscript_marker.strip()
    pattern = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, marker.lower())
    return re.search(pattern, response.lower()) is not None


def number_bullet_lists(response: str, num_bullets: int) -> bool:
    """Exactly so many lines that begin with * (but not **) or -."""
    # [^\S\n] where the original has \s: the same lines, without trying each of many blank ones again.
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", response, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", response, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def constrained_response(response: str) -> bool:
    """One of the three answers is in it."""
    return any(option in response for option in OPTIONS)


def number_highlighted_sections(response: str, num_highlights: int) -> bool:
    """At least so many *highlighted* or **highlighted** pieces; as in the original, both patterns are counted."""
    single = sum(bool(piece.strip("*").strip()) for piece in re.findall(r"\*[^\n*]*\*", response))
    double = sum(bool(piece[2:-2].strip()) for piece in re.findall(r"\*\*[^\n*]*\*\*", response))
    return single + double >= num_highlights


def multiple_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, each begun by the splitter and a number: "Section 1"."""
    return len(re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", response)) - 1 >= num_sections


def json_format(response: str) -> bool:
    """The whole response is JSON, in a fenced block or not."""
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(response: str) -> bool:
    """A title in <<double angular brackets>>."""
    for line in response.split("\n"):
        opening, closing = line.find("<<"), line.rfind(">>")
        if 0 <= opening < closing - 2 and line[opening : closing + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


# --- combinations, start and end, case and punctuation -----------------------------------------------


def two_responses(response: str) -> bool:
    """Two different responses, with ****** between them."""
    responses = response.split("******")
    if any(not given.strip() for given in responses[1:-1]):
        return False
    given = [piece.strip() for piece in responses if piece.strip()]
    return len(given) == 2 and given[0] != given[1]


def repeat_prompt(response: str, prompt_to_repeat: str) -> bool:
    """It begins with the request, in any case."""
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(response: str, end_phrase: str) -> bool:
    """It ends with this phrase, in any case, quotation marks aside."""
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    """All of it stands between double quotation marks."""
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(response: str, capital_frequency: int, capital_relation: str) -> bool:
    """At least, or less than, so many words in capitals."""
    return _holds(count_capital_words(response), capital_relation, capital_frequency)


def english_capital(response: str) -> bool:
    """English, and all in capitals."""
    return response.isupper() and detected(response) in ("en", None)


def english_lowercase(response: str) -> bool:
    """English, and no capital letters."""
    return response.islower() and detected(response) in ("en", None)


def no_comma(response: str) -> bool:
    """Not one comma."""
    return "," not in response


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
"""IFEval's names for them."""
