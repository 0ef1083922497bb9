"""Which ids of a conversation are trained: each answer as the model would have to write it when asked.

An answer's prompt is what the sampler would ask with: the conversation before it, rendered up to where the model
speaks. Its ids are what the chat template adds when the answer is there, up to the token that ends the turn. Where the
next prompt goes on from the ids so far, the turns share a row; where a template writes earlier turns anew (Qwen3 takes
thoughts out of them), or an image is shown in between, a row of its own begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparring.rendering import CLOSE, OPEN, Renderer
from sparring.sft.formats import BadRowError
from sparring.types import Message

_STAND_IN = "answer0stands0here"


@dataclass(frozen=True, eq=False)
class Lesson:
    """One row of ids. trained [T] bool says of each completion id whether it is learned; the first one and the last
    one are."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    trained: NDArray[np.bool_]

    @property
    def length(self) -> int:
        """Ids in all."""
        return len(self.prompt_ids) + len(self.completion_ids)

    def cut(self, length: int) -> Lesson | None:
        """The first ids alone; None where no answer is among them."""
        keep = length - len(self.prompt_ids)
        if keep < 1:
            return None
        last = int(np.flatnonzero(self.trained[:keep])[-1]) + 1
        return replace(self, completion_ids=self.completion_ids[:last], trained=self.trained[:last])


@dataclass
class Speller:
    """Makes lessons of conversations.

    Args:
        stop_ids: every id that ends a reply.
        last_only: train a conversation's last answer alone.

    `verbatim` counts the answers that the chat template would have written with a part left out.
    """

    renderer: Renderer
    stop_ids: Sequence[int]
    last_only: bool = False
    verbatim: int = 0

    def lessons(self, messages: Sequence[Message]) -> list[Lesson]:
        """The rows that teach a conversation's answers.

        A message with "weight": 0 (OpenAI's form) is not trained.

        Raises:
            BadRowError: the chat template can't write it so that an answer's ids are known, or nothing is trained.
        """
        said = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        asked = [at for at in (said[-1:] if self.last_only else said) if messages[at].get("weight") != 0]
        if not asked:
            raise BadRowError("each of its answers has weight 0")
        try:
            answers = [self._answer(messages[:at], messages[at]) for at in asked]
        except (ValueError, TypeError) as error:  # TypeError: a column's value that chat templates don't know
            raise BadRowError(str(error)) from error
        return list(_rows(answers))

    def _answer(self, before: Sequence[Message], message: Message) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """An answer's prompt, and the ids to be learned."""
        prompt_ids = self.renderer.encode(before)
        whole_ids = self.renderer.encode([*before, message], ended=True)
        goes_on = whole_ids[: len(prompt_ids)] == prompt_ids
        if goes_on and self._keeps(whole_ids[len(prompt_ids) :], message):
            return prompt_ids, self._ended(whole_ids[len(prompt_ids) :])
        opened = self._text(prompt_ids[-16:]).rstrip().endswith(OPEN)
        if not goes_on and not opened:
            raise BadRowError(self._broken(prompt_ids, whole_ids))
        completion_ids = self._verbatim(before, message, prompt_ids, opened=opened)
        self.verbatim += 1
        return prompt_ids, completion_ids

    def _keeps(self, completion_ids: Sequence[int], message: Message) -> bool:
        """Whether the template wrote all of an answer; some take thoughts out, or what is said before them."""
        written = _bare(self._text(completion_ids))
        for text in (str(message["content"]), str(message.get("reasoning_content", ""))):
            # Some tokenizers change letters: then the text as they give it back is looked for.
            if _bare(text) not in written and _bare(self._text(self.renderer.write(text))) not in written:
                return False
        return True

    def _verbatim(
        self, before: Sequence[Message], message: Message, prompt_ids: tuple[int, ...], *, opened: bool
    ) -> tuple[int, ...]:
        """The answer as it stands, and after it what the template writes after any answer."""
        content = str(message["content"])
        if message.get("reasoning_content"):
            raise BadRowError("the chat template leaves its reasoning_content out: put it into the content")
        if opened:
            if CLOSE not in content:
                raise BadRowError(
                    f"the chat template begins each answer with {OPEN}, and this one has no thought: see whether "
                    "model.template_kwargs={enable_thinking: false} is known to it"
                )
            content = content.removeprefix(OPEN).lstrip("\n")
        ids = self.renderer.encode([*before, {"role": "assistant", "content": _STAND_IN}], ended=True)
        same = next((at for at, (a, b) in enumerate(zip(ids, prompt_ids, strict=False)) if a != b), len(prompt_ids))
        _, found, after = self._text(ids[same:]).rpartition(_STAND_IN)
        if not found:
            raise BadRowError("the chat template writes something else than the answer that it is given")
        return self._ended(self.renderer.write(content + after))

    def _ended(self, completion_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Up to the first of the tokens at the end that end a turn; templates write more behind it."""
        stops = [at for at, token in enumerate(completion_ids) if token in self.stop_ids]
        if not stops:
            names = ", ".join(repr(self._text([token])) for token in self.stop_ids)
            raise BadRowError(f"the chat template ends an answer with none of the model's end tokens ({names})")
        end = stops.pop()
        while stops and not self._text(completion_ids[stops[-1] + 1 : end]).strip():
            end = stops.pop()
        if stops:
            raise BadRowError(f"an answer has the end token {self._text([completion_ids[stops[0]]])!r} in it")
        return completion_ids[: end + 1]

    def _broken(self, prompt_ids: Sequence[int], whole_ids: Sequence[int]) -> str:
        at = next((at for at, (a, b) in enumerate(zip(prompt_ids, whole_ids, strict=False)) if a != b), len(whole_ids))
        asked, written = (self._text(ids[at : at + 8]) for ids in (prompt_ids, whole_ids))
        return (
            f"the chat template writes a conversation with its answer otherwise than it asks for the answer (from "
            f"token {at}: {asked!r}, with the answer {written!r}), so what is to be learned can't be told from the "
            "prompt: give another template (model.chat_template)"
        )

    def _text(self, ids: Sequence[int]) -> str:
        """With special tokens, without images (their handles are negative)."""
        shown = [token for token in ids if token >= 0]
        return str(self.renderer.tokenizer.decode(shown, skip_special_tokens=False))


def _bare(text: str) -> str:
    return "".join(text.split())


def _rows(answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Iterator[Lesson]:
    """Answers whose prompts go on from each other share a row."""
    ids: tuple[int, ...] = ()
    spans: list[tuple[int, int]] = []
    for prompt_ids, completion_ids in answers:
        goes_on = prompt_ids[: len(ids)] == ids and min(prompt_ids[len(ids) :], default=0) >= 0
        if spans and not goes_on:
            yield _lesson(ids, spans)
            spans = []
        ids = prompt_ids + completion_ids
        spans.append((len(prompt_ids), len(ids)))
    yield _lesson(ids, spans)


def _lesson(ids: tuple[int, ...], spans: Sequence[tuple[int, int]]) -> Lesson:
    start = spans[0][0]
    trained = np.zeros(len(ids) - start, dtype=np.bool_)
    for first, end in spans:
        trained[first - start : end - start] = True
    return Lesson(ids[:start], ids[start:], trained)
