"""The local sampler on the shipped model: whose draws, which prompts, how many tokens at once."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from sparring.lm.base import Completion, Finish, LanguageModel, SamplingParams
from sparring.models import build_models
from sparring.recipes import recipe
from sparring.records import turn_rows
from sparring.rendering import Renderer
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.sampling.local import LocalSampler
from sparring.sampling.seeds import Draws
from sparring.types import Turn
from tiny_models import chat_tokenizer


@pytest.fixture(scope="module")
def models():
    return build_models(recipe("lsp"))


def sampler(models, **settings) -> LocalSampler:
    given = {"stop_ids": models.stop_ids, "seed": 3, **settings}
    return LocalSampler(models.policy, models.reference, models.renderer, **given)


def solver(tokens: int = 12, temperature: float = 1.0) -> Role:
    return Role("solver", "Solver:{{ query }}", SamplingParams(tokens, temperature))


def ask(role: Role, *queries: str):
    return [role.prompt(query=query, info={"query_text": query}) for query in queries]


def ids(turns: list[Turn]) -> list[tuple[int, ...]]:
    return [turn.completion_ids for turn in turns]


def test_turns_come_prompt_by_prompt_and_remember_their_prompt(models) -> None:
    role = solver()
    prompts = ask(role, "reverse:bead", "sort:bead")
    turns = sampler(models).at(1).sample(role, prompts, n=3)
    assert [turn.prompt for turn in turns] == [prompts[0]] * 3 + [prompts[1]] * 3
    assert all(len(turn.logprobs) == len(turn.completion_ids) for turn in turns)
    assert all(turn.model == "policy" and turn.info["query_text"] == turn.prompt.info["query_text"] for turn in turns)


def test_draws_follow_seed_step_role_and_call(models) -> None:
    role, other = solver(), Role("other", "Solver:{{ query }}", SamplingParams(12))
    prompts = ask(role, "reverse:beadbead")

    def draw(seed: int, step: int, played: Role) -> list[tuple[int, ...]]:
        return ids(sampler(models, seed=seed).at(step).sample(played, prompts, n=16))

    first = draw(3, 1, role)
    assert first == draw(3, 1, role)
    assert all(first != changed for changed in (draw(4, 1, role), draw(3, 2, role), draw(3, 1, other)))
    one = sampler(models).at(1)
    assert ids(one.sample(role, prompts, n=16)) == first
    assert ids(one.sample(role, prompts, n=16)) != first
    assert ids(one.at(1).sample(role, prompts, n=16)) == first


def test_batches_of_any_size_draw_the_same(models) -> None:
    role = solver()
    prompts = ask(role, *(f"sort:{word}" for word in ("bead", "cab", "face", "ad", "beef")))
    whole = ids(sampler(models).at(1).sample(role, prompts, n=4))
    for batch_tokens in (1, 60, 150):
        assert ids(sampler(models, batch_tokens=batch_tokens).at(1).sample(role, prompts, n=4)) == whole


def test_equal_greedy_prompts_are_answered_alike(models) -> None:
    role = solver(temperature=0.0)
    turns = sampler(models).at(1).sample(role, ask(role, "sort:bead", "sort:cab", "sort:bead"), n=2)
    assert [turn.text for turn in turns] == ["abde", "abde", "abc", "abc", "abde", "abde"]


def test_a_prompt_without_room_is_answered_by_nothing_and_moves_no_other_draw(models) -> None:
    role = solver()
    short = ask(role, "sort:bead", "sort:cab")
    free = sampler(models).at(1).sample(role, [short[0], *ask(role, "sort:" + "abcdef" * 5), short[1]], n=2)
    tight = (
        sampler(models, context=30).at(1).sample(role, [short[0], *ask(role, "sort:" + "abcdef" * 5), short[1]], n=2)
    )
    assert [bool(turn.info.get("too_long")) for turn in tight] == [False, False, True, True, False, False]
    assert [(turn.text, turn.completion_ids, turn.finish) for turn in tight[2:4]] == [("", (), "length")] * 2
    assert ids(tight[:2] + tight[4:]) == ids(free[:2] + free[4:])


def test_where_no_prompt_fits_all_are_answered_by_nothing(models) -> None:
    for temperature in (0.0, 1.0):
        role = solver(40, temperature)
        turns = sampler(models, context=30).at(1).sample(role, ask(role, "sort:bead"), n=2)
        assert [(turn.text, turn.info["too_long"]) for turn in turns] == [("", True)] * 2


def test_a_reference_that_is_not_held_is_missed_by_name(models) -> None:
    role = solver()
    alone = LocalSampler(models.policy, None, models.renderer, stop_ids=models.stop_ids)
    with pytest.raises(ValueError, match="asks for the reference model"):
        alone.sample(role, ask(role, "sort:bead"), model="reference")
    assert np.array_equal(alone.at(2).rng("tasks").random(3), alone.at(2).rng("tasks").random(3))


class Speaker:
    """A language model that says what it is told, whatever it is asked."""

    shares_prompts = True

    def __init__(self, ids: tuple[int, ...], finish: Finish) -> None:
        self.said = Completion(ids, np.zeros(len(ids), np.float32), finish)

    def generate(self, prompts: Sequence[Sequence[int]], n: int, *_: object) -> list[list[Completion]]:
        return [[self.said] * n for _ in prompts]


@pytest.mark.parametrize(
    ("switches", "says", "thought", "text"),
    [
        ({}, "<think>\nIt is big.\n</think>\n\nJupiter.<|im_end|>", "It is big.", "Jupiter."),
        ({"prefill_thinking": True}, "It is big.\n</think>\n\nJupiter.<|im_end|>", "It is big.", "Jupiter."),
        ({"prefill_thinking": True}, "It is big, it is", "It is big, it is", ""),
        ({"enable_thinking": False}, "Jupiter.<|im_end|>", None, "Jupiter."),
    ],
)
def test_a_thinking_model_s_turn_says_what_follows_its_thought(
    switches: dict[str, bool], says: str, thought: str | None, text: str
) -> None:
    tokenizer = chat_tokenizer("qwen3")
    ids = tuple(tokenizer.encode(says))
    speaker = cast(LanguageModel, Speaker(ids, "stop" if says.endswith("<|im_end|>") else "length"))
    thinking = LocalSampler(speaker, None, Renderer(tokenizer, switches), stop_ids=[tokenizer.eos_token_id])
    role = solver()
    (turn,) = thinking.at(1).sample(role, ask(role, "Which planet is the largest?"))
    assert (turn.thought, turn.text, turn.completion_ids) == (thought, text, ids)  # all of it is trained
    heard: list[str] = []
    Reward(lambda queries, answers: heard.extend(answers) or [0.0])(["q"], [turn])  # a reward reads what is said
    assert heard == [text]
    (row,) = turn_rows([turn], {}, {}, set())
    assert (row["thought"], row["text"], row["completion_tokens"]) == (thought, text, len(ids))


def test_a_prompt_draws_by_its_place_whoever_writes_it() -> None:
    draws = Draws(3, 7, "sample/solver/policy", 0, 5, (0, 1, 3, 4))
    whole = draws.uniforms(2, 6)
    assert whole.shape == (8, 6)
    part = draws.take([1, 3])
    assert part.places == (1, 4)
    assert (part.uniforms(2, 6) == whole[[2, 3, 6, 7]]).all()
    assert part.seeds() == [draws.seeds()[1], draws.seeds()[3]]
    assert len(set(draws.seeds())) == 4
    assert (Draws(3, 7, "sample/solver/policy", 1, 5, (0, 1, 3, 4)).uniforms(2, 6) != whole).any()
