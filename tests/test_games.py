"""Games by hand: who is paid for what, with scripted replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripted import ScriptedSampler
from sparring.advantages import standardised
from sparring.data import PromptSet, Row
from sparring.domains import Query, Task
from sparring.games.challenge import Adversarial, Equality, Frontier, NGrams, RepetitionPenalty, own_queries
from sparring.games.dataset import Dataset
from sparring.games.lsp import LSP, LSPZero, query_of
from sparring.games.quality import ProgramQuality, ReferenceQuality
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.types import Payoffs, Turn, of_role

PARAMS = SamplingParams(32)
CHALLENGER = Role("challenger", "ask {{ task }}", PARAMS, weight=0.5)
SOLVER = Role("solver", "{{ query }}", PARAMS)
GRADER = Role("grader", "{{ query }} | {{ answer }}", PARAMS, weight=0.0)


def by_number(queries: Sequence[str], answers: Sequence[str]) -> list[float | None]:
    """The answer is its own reward; "?" can't be scored."""
    return [None if answer == "?" else float(answer) for answer in answers]


def read(text: str, task: Task, complete: bool) -> Query:
    """ "bad ..." is invalid, "held ..." belongs to a test set."""
    return Query(text, problem="bad" if text.startswith("bad") else None, reserved=text.startswith("held"))


def settings(n_queries: int, n_answers: int, **more: Any) -> dict[str, Any]:
    return {
        "challenger": CHALLENGER,
        "solver": SOLVER,
        "tasks": (Task(name="one"),),
        "read_query": read,
        "reward": Reward(by_number),
        "n_queries": n_queries,
        "n_answers": n_answers,
        **more,
    }


def played(game: LSPZero, replies: Mapping[str, Sequence[str]]) -> tuple[list[Turn], Payoffs, dict[Turn, float]]:
    turns = game.play(ScriptedSampler(replies))
    payoffs = game.payoffs(turns)
    return turns, payoffs, dict(game.baseline(turns, payoffs))


def numbers(turns: Sequence[Turn], of: Mapping[Turn, float]) -> list[float | None]:
    return [of.get(turn) for turn in turns]


def test_lsp_zero_by_hand() -> None:
    game = LSPZero(**settings(3, 4))
    replies = {"challenger": list("abc"), "solver": list("110011110001")}
    turns, payoffs, advantages = played(game, replies)
    queries, answers = of_role(turns, CHALLENGER), of_role(turns, SOLVER)
    # V = ½, 1, ¼; V̄ = 7/12
    assert [payoffs[q].total for q in queries] == [-0.5, -1.0, -0.25]
    assert numbers(queries, advantages) == pytest.approx([7 / 12 - 1 / 2, 7 / 12 - 1, 7 / 12 - 1 / 4])
    want = [0.5, 0.5, -0.5, -0.5, 0, 0, 0, 0, -0.25, -0.25, -0.25, 0.75]
    assert numbers(answers, advantages) == pytest.approx(want)
    figures = game.metrics(turns, payoffs)
    assert figures["game/V"] == pytest.approx(7 / 12)
    assert figures["game/dead_groups"] == pytest.approx(1 / 3)
    assert figures["payoff/challenger/value"] == pytest.approx(-7 / 12)


def test_lsp_by_hand_with_quality_from_a_program() -> None:
    table = {"2": 0.5, "1": 1.0, "0": 0.0, "-1": 0.75}
    quality = ProgramQuality(lambda queries, answers: [table[answer] for answer in answers])
    game = LSP(**settings(2, 2), quality=quality, quality_weight=2.0)
    turns, payoffs, advantages = played(game, {"challenger": ["a", "b"], "solver": ["2", "1", "0", "-1"]})
    queries, answers = of_role(turns, CHALLENGER), of_role(turns, SOLVER)
    # R + 2 R_Q: 2 + 1, 1 + 2, 0 + 0, −1 + 1.5. V = 1.5, −.5 over R alone; 2 V_Q = 1.5, .75
    assert [payoffs[a].total for a in answers] == [3.0, 3.0, 0.0, 0.5]
    assert numbers(answers, advantages) == pytest.approx([0, 0, -0.25, 0.25])
    assert [payoffs[q].total for q in queries] == [0.0, 1.25]
    assert numbers(queries, advantages) == pytest.approx([-0.625, 0.625])
    assert payoffs[queries[1]].parts == {"value": 0.5, "quality": 0.75}
    assert game.metrics(turns, payoffs)["game/V_Q"] == pytest.approx(1.125)


def test_the_reference_grades_and_unreadable_grades_are_left_out() -> None:
    quality = ReferenceQuality(GRADER, lambda text: float(text) if text != "??" else None)
    game = LSP(**settings(2, 3), quality=quality)
    sampler = ScriptedSampler(
        {
            "challenger": ["a", "b"],
            "solver": ["1", "0", "0", "1", "1", "1"],
            "grader/reference": [".5", "??", "1", "??", "??", "??"],
        }
    )
    turns = game.play(sampler)
    payoffs = game.payoffs(turns)
    advantages = game.baseline(turns, payoffs)
    queries, answers = of_role(turns, CHALLENGER), of_role(turns, SOLVER)
    assert sampler.asked[-1] == ("grader", 6, "reference")
    assert [t.prompt.messages[-1]["content"] for t in of_role(turns, GRADER)][:2] == ["a | 1", "a | 0"]
    # The unreadable grade counts as its siblings' mean, ¾: it moves no advantage by itself.
    assert [payoffs[a].total for a in answers] == pytest.approx([1.5, 0.75, 1.0, 1, 1, 1])
    assert [payoffs[a].parts["quality"] for a in answers] == [0.5, None, 1.0, None, None, None]
    assert numbers(answers, advantages)[:3] == pytest.approx([1.5 - 13 / 12, 0.75 - 13 / 12, 1 - 13 / 12])
    # A query without a readable grade is paid the others' mean V_Q, ¾: never 0.
    assert [payoffs[q].total for q in queries] == pytest.approx([-1 / 3 + 0.75, -1.0 + 0.75])
    assert [payoffs[q].parts["quality"] for q in queries] == [0.75, None]
    assert not any(turn in advantages for turn in of_role(turns, GRADER))
    assert game.metrics(turns, payoffs)["quality/parse_rate"] == pytest.approx(2 / 6)
    with pytest.raises(ValueError, match="grader is the frozen reference"):
        ReferenceQuality(SOLVER, float)


def test_several_grades_an_answer_are_averaged() -> None:
    quality = ReferenceQuality(GRADER, lambda text: None if text == "?" else float(text), samples=2)
    game = LSP(**settings(1, 2), quality=quality)
    replies = {"challenger": ["a"], "solver": ["1", "0"], "grader/reference": ["1", "0", "?", ".25"]}
    turns, payoffs, _ = played(game, replies)
    assert [payoffs[a].parts["quality"] for a in of_role(turns, SOLVER)] == [0.5, 0.25]
    with pytest.raises(ValueError, match="at least 1"):
        ReferenceQuality(GRADER, float, samples=0)


def test_the_parse_rate_counts_replies() -> None:
    quality = ReferenceQuality(GRADER, lambda text: None if text == "?" else float(text), samples=2)
    game = LSP(**settings(1, 2), quality=quality)
    replies = {"challenger": ["a"], "solver": ["1", "0"], "grader/reference": ["1", "0", "?", ".25"]}
    turns = game.play(ScriptedSampler(replies))
    assert game.metrics(turns, game.payoffs(turns))["quality/parse_rate"] == 3 / 4
    # A reply that was cut off counts as unread, whatever it says so far.
    turns = [replace(turn, finish="length") if turn.text == "0" and turn.role is GRADER else turn for turn in turns]
    payoffs = game.payoffs(turns)
    assert [payoffs[a].parts["quality"] for a in of_role(turns, SOLVER)] == [1.0, 0.25]
    assert game.metrics(turns, payoffs)["quality/parse_rate"] == 2 / 4
    # Nothing was asked, nothing was graded.
    turns, payoffs, _ = played(game, {"challenger": ["bad"], "solver": [], "grader/reference": []})
    assert "quality/parse_rate" not in game.metrics(turns, payoffs)


def test_the_parse_rate_of_a_program_is_the_share_of_scores_it_knows() -> None:
    quality = ProgramQuality(lambda queries, answers: [None if answer == "0" else 0.5 for answer in answers])
    game = LSP(**settings(1, 4), quality=quality)
    turns, payoffs, _ = played(game, {"challenger": ["a"], "solver": ["1", "1", "0", "1"]})
    assert game.metrics(turns, payoffs)["quality/parse_rate"] == 3 / 4


def test_copies_are_refused_where_asked() -> None:
    replies = {
        "challenger": ["Tell me", "bad", "tell  ME ", "bad"],
        "challenger/reference": ["\ttell me", "other", "held", "held"],
        "solver": ["1", "0", "1", "1"],
    }
    game = LSPZero(**settings(8, 2, frozen_share=0.5, refuse_copies=True, invalid_payoff=-9.0))
    turns, payoffs, _ = played(game, replies)
    queries = of_role(turns, CHALLENGER)
    copy = "copy of another query"
    assert [query_of(q).problem for q in queries] == [None, "bad", copy, "bad", copy, None, None, None]
    assert [a.parent for a in of_role(turns, SOLVER)] == [queries[0]] * 2 + [queries[5]] * 2
    assert numbers(queries, {q: p.total for q, p in payoffs.items()})[:5] == [-0.5, -9, -9, -9, None]
    figures = game.metrics(turns, payoffs)
    assert figures["game/valid_share"] == 0.25  # of the policy's own four
    assert (figures["game/copies"], figures["game/problem/copy_of_another_query"]) == (0.25, 0.25)
    assert figures["game/problem/bad"] == 0.5


def test_copies_stay_valid_unless_refused() -> None:
    game = LSPZero(**settings(2, 1))
    turns, payoffs, _ = played(game, {"challenger": ["same", "same"], "solver": ["1", "0"]})
    figures = game.metrics(turns, payoffs)
    assert figures["game/valid_share"] == 1.0
    assert not any(name.startswith("game/problem") or name == "game/copies" for name in figures)


def test_an_invalid_query_is_paid_as_the_worst_valid_one_unless_told_otherwise() -> None:
    replies = {"challenger": ["a", "bad b", "c"], "solver": ["9", "7", "1", "1"]}
    for game in (
        LSPZero(**settings(3, 2)),
        LSP(**settings(3, 2), quality=ProgramQuality(lambda queries, answers: [0.0] * len(answers))),
    ):
        turns, payoffs, _ = played(game, replies)
        assert [payoffs[q].total for q in of_role(turns, CHALLENGER)] == [-8.0, -8.0, -1.0]
    turns, payoffs, advantages = played(LSPZero(**settings(2, 2)), {"challenger": ["bad", "bad b"], "solver": []})
    assert [payoffs[q].total for q in turns] == [0.0, 0.0]
    assert set(advantages.values()) == {0.0}


def test_invalid_and_reserved_queries() -> None:
    game = LSPZero(**settings(4, 2, invalid_payoff=-1.5))
    replies = {"challenger": ["a", "bad b", "held c", "d"], "solver": ["1", "0", "1", "1"]}
    turns, payoffs, advantages = played(game, replies)
    valid, bad, held, last = of_role(turns, CHALLENGER)
    assert [turn.parent for turn in of_role(turns, SOLVER)] == [valid, valid, last, last]
    assert payoffs[bad].total == -1.5 and payoffs[bad].parts == {"invalid": -1.5}
    assert held not in payoffs and held not in advantages
    # −½, −1.5, −1 among three: their mean is −1
    assert numbers([valid, bad, last], advantages) == pytest.approx([0.5, -0.5, 0])
    figures = game.metrics(turns, payoffs)
    assert (figures["game/valid_share"], figures["game/reserved_share"]) == (0.75, 0.25)


def test_nothing_valid_leaves_only_the_challenger() -> None:
    turns, payoffs, advantages = played(LSPZero(**settings(2, 2)), {"challenger": ["bad a", "bad b"], "solver": []})
    assert len(turns) == 2 and [payoffs[turn].total for turn in turns] == [0, 0]
    assert list(advantages.values()) == [0, 0]


def test_an_answer_that_cannot_be_scored_is_neither_paid_nor_counted() -> None:
    turns, payoffs, advantages = played(
        LSPZero(**settings(2, 3)), {"challenger": ["a", "b"], "solver": ["1", "?", "0", "?", "?", "?"]}
    )
    first, second = of_role(turns, CHALLENGER)
    answers = of_role(turns, SOLVER)
    assert payoffs[first].total == -0.5  # V over the two that could be scored
    assert second not in payoffs
    assert numbers(answers, advantages) == [0.5, None, -0.5, None, None, None]


def test_frozen_queries_are_answered_but_never_move_the_challenger() -> None:
    game = LSPZero(**settings(4, 2, frozen_share=0.5))
    replies = {
        "challenger": ["a", "b"],
        "challenger/reference": ["c", "d"],
        "solver": ["1", "0", "1", "1", "0", "0", "1", "0"],
    }
    turns, _, advantages = played(game, replies)
    a, b, c, d = of_role(turns, CHALLENGER)
    assert [turn.model for turn in (a, b, c, d)] == ["policy", "policy", "reference", "reference"]
    assert numbers([a, b, c, d], advantages) == pytest.approx([0.25, -0.25, None, None])
    answered = [turn.parent for turn in of_role(turns, SOLVER) if turn in advantages]
    assert answered == [a, a, b, b, c, c, d, d]


def test_two_equal_questions_stay_two_groups() -> None:
    turns, _, advantages = played(
        LSPZero(**settings(2, 2)), {"challenger": ["same", "same"], "solver": ["1", "0", "3", "1"]}
    )
    assert numbers(of_role(turns, SOLVER), advantages) == pytest.approx([0.5, -0.5, 1, -1])


def test_payoffs_can_be_compared_within_a_task() -> None:
    tasks = (Task(name="one"), Task(name="two"))
    game = LSPZero(**settings(6, 1, tasks=tasks, compare_by_task=True))
    replies = {"challenger": list("abcdef"), "solver": ["0", "1", "2", "3", "4", "5"]}
    turns = game.play(ScriptedSampler(replies, seed=3))
    payoffs = game.payoffs(turns)
    advantages = game.baseline(turns, payoffs)
    groups: dict[str, list[Turn]] = {}
    for turn in of_role(turns, CHALLENGER):
        groups.setdefault(turn.info["task"].name, []).append(turn)
    assert len(groups) == 2
    for group in groups.values():
        mean = sum(payoffs[turn].total for turn in group) / len(group)
        assert numbers(group, advantages) == pytest.approx([payoffs[turn].total - mean for turn in group])


def test_standardised_scale() -> None:
    game = LSPZero(**settings(2, 2, scale=standardised))
    turns, _, advantages = played(game, {"challenger": ["a", "b"], "solver": ["1", "0", "4", "4"]})
    std = 0.5**0.5  # of [1, 0], unbiased
    assert numbers(of_role(turns, SOLVER), advantages) == pytest.approx([0.5 / (std + 1e-4), -0.5 / (std + 1e-4), 0, 0])


def test_frontier_by_hand() -> None:
    assert [Frontier(0.25)(v) for v in (0.0, 0.25, 0.625, 1.0)] == pytest.approx([2 / 3, 1, 0.5, 0])
    assert [Frontier()(v) for v in (0, 0.25, 0.5, 0.75, 1)] == [0, 0.5, 1, 0.5, 0]
    assert Adversarial()(0.25) == -0.25
    with pytest.raises(ValueError, match="frontier target"):
        Frontier(1.5)
    for value in (-0.01, 1.01, 7.5):
        with pytest.raises(ValueError, match=r"rewards in \[0, 1\].*game\.reward\.scale=sigmoid"):
            Frontier()(value)
    game = LSPZero(**settings(3, 2, payoff=Frontier()))
    turns, payoffs, _ = played(game, {"challenger": list("abc"), "solver": list("111000")})
    assert [payoffs[q].total for q in of_role(turns, CHALLENGER)] == [0, 1, 0]


def test_repetition_by_hand() -> None:
    penalty = RepetitionPenalty(0.6, archive=4)
    # Three of "a" among four: each equals two of the three others.
    assert penalty(["a", "a", "b", "a"]) == pytest.approx([-0.4, -0.4, 0, -0.4])
    # Now the archive holds a, a, b, a: "b" is a quarter of it, "a" three quarters.
    assert penalty(["b", "c", "a"]) == pytest.approx([-0.15, 0, -0.45])
    assert penalty(["x"]) == [0]
    # The archive keeps the last four, and the share is capped at the whole weight.
    again = RepetitionPenalty(0.6, archive=4)
    again.restore(json.loads(json.dumps(penalty.state())))
    assert penalty.state() == {"past": ["b", "c", "a", "x"]}
    assert again(["x", "x"]) == penalty(["x", "x"]) == pytest.approx([-0.6, -0.6])
    with pytest.raises(ValueError, match="0 or more"):
        RepetitionPenalty(-1)


def test_similarity_by_word_trigrams_by_hand() -> None:
    texts = [
        "Write a poem about the sea",
        "write a poem about the SEA!",
        "write a poem about a town",
        "Hello",
        "hello.",
    ]
    # {write a poem, a poem about, poem about the, about the sea} and {…, …, poem about a, about a town}: 2 of 6.
    third = 1 / 3
    want = [[1, 1, third, 0, 0], [1, 1, third, 0, 0], [third, third, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert NGrams()(texts, texts).tolist() == want
    assert Equality()(texts[:2], texts[:3]).tolist() == [[1, 0, 0], [0, 1, 0]]
    penalty = RepetitionPenalty(0.6, archive=4, similarity=NGrams())
    # Mean over the two others: (1 + 1/3) / 2, the same, 1/3.
    assert penalty(texts[:3]) == pytest.approx([-0.4, -0.4, -0.2])
    # To the archive of three: 1 + 1 + 1/3 over three; alone in its batch.
    assert penalty([texts[0]]) == pytest.approx([-0.6 * 7 / 9])
    assert penalty(["Something else entirely, for once"]) == [0]


WORDS = st.lists(st.sampled_from(["a", "b", "c", "A,", "b-c", ""]), max_size=7).map(" ".join)


@given(st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=5), st.integers(1, 4))
def test_similarity_is_jaccards_index(texts: list[str], others: list[str], n: int) -> None:
    def grams(text: str) -> set[tuple[str, ...]]:
        words = text.lower().replace(",", "").replace("-", " ").split()
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}

    pairs = [[(grams(text), grams(other)) for other in others] for text in texts]
    found = NGrams(n)(texts, others)
    assert found.shape == (len(texts), len(others))
    assert found.tolist() == [[len(a & b) / len(a | b) for a, b in row] for row in pairs]


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=6), max_size=4))
def test_repetition_by_equality_is_the_limit_of_repetition_by_phrases(batches: list[list[str]]) -> None:
    exact, phrases = (RepetitionPenalty(0.7, archive=5, similarity=similarity) for similarity in (Equality(), NGrams()))
    for batch in batches:
        assert exact(batch) == phrases(batch)


def test_repetition_goes_on_from_its_state_bit_for_bit() -> None:
    batches = [[f"ask about number {i * j % 7} and {i} again" for i in range(9)] for j in range(6)]
    whole = RepetitionPenalty(0.3, archive=20, similarity=NGrams())
    want = [whole(batch) for batch in batches]
    first = RepetitionPenalty(0.3, archive=20, similarity=NGrams())
    assert [first(batch) for batch in batches[:3]] == want[:3]
    second = RepetitionPenalty(0.3, archive=20, similarity=NGrams())
    second.restore(json.loads(json.dumps(first.state())))
    assert [second(batch) for batch in batches[3:]] == want[3:]
    assert second.state() == whole.state()


def test_repetition_is_part_of_the_payoff_and_of_the_state() -> None:
    game = LSPZero(**settings(3, 1, repetition=RepetitionPenalty(1.0, archive=8)))
    turns, payoffs, _ = played(game, {"challenger": ["a", "a", "bad"], "solver": ["1", "0"]})
    first, second, bad = of_role(turns, CHALLENGER)
    assert [payoffs[turn].total for turn in (first, second, bad)] == pytest.approx([-1.5, -0.5, -1.0])
    assert payoffs[first].parts == {"value": -1, "repetition": -0.5}
    assert game.state() == {"repetition": {"past": ["a", "a", "bad"]}}
    other = LSPZero(**settings(3, 1, repetition=RepetitionPenalty(1.0, archive=8)))
    other.restore(game.state())
    assert other.state() == game.state()
    assert LSPZero(**settings(1, 1)).state() == {}


class Counting:
    """A reward that remembers how many answers it has scored."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, queries: Sequence[str], answers: Sequence[str]) -> list[float]:
        self.seen += len(answers)
        return [0.0] * len(answers)

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


def test_a_game_s_state_carries_what_its_reward_remembers() -> None:
    def lsp(reward: Counting) -> LSPZero:
        return LSPZero(**settings(2, 3, reward=Reward(reward), repetition=RepetitionPenalty(1.0, archive=2)))

    def grpo(reward: Counting) -> Dataset:
        return Dataset(SOLVER, PromptSet([Row("q")], "one"), Reward(reward), n_queries=2, n_answers=3)

    for make, kept in ((lsp, {"repetition": {"past": ["a", "b"]}}), (grpo, {})):
        game = make(Counting())
        turns = game.play(ScriptedSampler({"challenger": "ab", "solver": "111111"}))
        game.payoffs(turns)
        state = json.loads(json.dumps(game.state()))
        assert state == {**kept, "reward": {"seen": 6}}
        reward = Counting()
        other = make(reward)
        other.restore(state)
        assert reward.seen == 6 and other.state() == state
    # A reward that remembers nothing leaves nothing, and takes nothing.
    plain = Dataset(SOLVER, PromptSet([Row("q")], "one"), Reward(by_number), n_queries=1, n_answers=1)
    plain.restore(plain.state())
    assert plain.state() == {}


@pytest.mark.parametrize(("n", "share", "want"), [(8, 0.0, 8), (8, 1.0, 0), (5, 0.5, 2), (3, 0.2, 2)])
def test_own_queries(n: int, share: float, want: int) -> None:
    assert own_queries(n, share) == want


def test_own_queries_refuses_other_shares() -> None:
    with pytest.raises(ValueError, match="frozen_share"):
        own_queries(4, 1.1)


def test_a_game_without_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        LSPZero(**settings(1, 1, tasks=()))


def test_every_query_frozen_trains_the_solver_alone() -> None:
    game = LSPZero(**settings(2, 2, frozen_share=1.0))
    turns, payoffs, advantages = played(
        game, {"challenger/reference": ["a", "b"], "challenger": [], "solver": ["1", "0", "1", "1"]}
    )
    assert {turn.role.name for turn in advantages} == {"solver"}
    assert game.metrics(turns, payoffs)["game/valid_share"] == 1.0
    assert all(query_of(turn).answerable for turn in of_role(turns, CHALLENGER))


def test_grpo_by_hand() -> None:
    rows = [Row("first", None, {"answer": "x"}), Row("second", None, {"answer": "y"})]
    seen: dict[str, Any] = {}

    def reward(queries: Sequence[str], answers: Sequence[str], answer: Sequence[str]) -> list[float | None]:
        seen.update(zip(queries, answer, strict=True))
        return by_number(queries, answers)

    game = Dataset(SOLVER, PromptSet(rows, "rows"), Reward(reward), n_queries=2, n_answers=3)
    turns = game.play(ScriptedSampler({"solver": ["1", "1", "0", "4", "?", "2"]}))
    payoffs = game.payoffs(turns)
    advantages = game.baseline(turns, payoffs)
    assert numbers(turns, advantages) == pytest.approx([1 / 3, 1 / 3, -2 / 3, 1, None, -1])
    assert seen == {"first": "x", "second": "y"}
    assert game.metrics(turns, payoffs)["game/V"] == pytest.approx(8 / 5)


def test_grpo_keeps_a_prompt_drawn_twice_apart_and_takes_messages_as_they_are() -> None:
    messages = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "q"})
    game = Dataset(SOLVER, PromptSet([Row("q", messages)], "one"), Reward(by_number), n_queries=2, n_answers=2)
    turns = game.play(ScriptedSampler({"solver": ["1", "0", "3", "1"]}))
    assert all(turn.prompt.messages == messages for turn in turns)
    assert numbers(turns, game.baseline(turns, game.payoffs(turns))) == pytest.approx([0.5, -0.5, 1, -1])
