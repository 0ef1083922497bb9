"""The rules that a run starts with. docs/health.md says where each threshold comes from."""

from __future__ import annotations

from sparring.health.rules import Difference, Direction, Ratio, Rule

ABOVE, BELOW = Direction.ABOVE, Direction.BELOW
_TABLE = "look at them in the turns table"

RULES: tuple[Rule, ...] = (
    Rule(
        "valid_fall", "game/valid_share", BELOW, -0.2, -0.35, 10, Difference(),
        "the Challenger gives up the form it is asked for: raise learner.beta, lower game.alpha, or play lsp",
    ),
    Rule(
        "valid", "game/valid_share", BELOW, 0.5, 0.2, 10,
        advice="hardly a query can be answered: look at game/problem/* and at game.challenger.prompt",
    ),
    Rule(
        "distinct", "health/queries/distinct", BELOW, 0.8, 0.5, 10,
        advice="the Challenger repeats itself: set game.challenge.repetition_weight, or give it more tasks",
    ),
    Rule(
        "ngrams", "health/queries/ngrams", BELOW, 0.6, 0.35, 10, Ratio(),
        f"queries are ever more of one phrase: {_TABLE}",
    ),
    Rule(
        "cluster", "health/queries/cluster", ABOVE, 0.25, 0.5, 10, Difference(),
        "many queries are variants of one: set game.challenge.repetition_weight with repetition_measure=ngrams",
    ),
    Rule(
        "seen", "health/queries/seen", ABOVE, 0.4, 0.7, 10,
        advice="queries of earlier steps come back: set game.challenge.repetition_archive",
    ),
    Rule(
        "seen_near", "health/queries/seen_near", ABOVE, 0.6, 0.9, 10,
        advice="variants of earlier queries come back: set game.challenge.repetition_archive",
    ),
    # No alarm: reasoning may grow for good; what runs to the limit is cut_off's.
    Rule("longer", "length/*", ABOVE, 2.0, None, 10, Ratio(), f"turns grow: {_TABLE}"),
    Rule("shorter", "length/*", BELOW, 0.5, 0.25, 10, Ratio(), f"turns shrink: {_TABLE}"),
    Rule(
        "cut_off", "truncated/*", ABOVE, 0.2, 0.4, 10, Difference(),
        "turns run to max_new_tokens: the role rambles, or needs more room",
    ),
    Rule(
        "dead_groups", "dead_groups/*", ABOVE, 0.95, 0.99, 20,
        advice="payoffs within groups are equal and teach nothing: queries are too easy, too hard or unanswerable",
    ),
    Rule(
        "entropy_low", "entropy/*", BELOW, 0.35, 0.15, 10, Ratio(),
        "the policy says ever the same: raise learner.beta or lower learner.lr",
    ),
    Rule(
        "entropy_high", "entropy/*", ABOVE, 3.0, 6.0, 10, Ratio(),
        "the policy dissolves into noise: raise learner.beta or lower learner.lr",
    ),
    Rule(
        "kl", "kl/*", ABOVE, 0.75, 1.5, 10,
        advice="a role has gone far from the start: raise learner.beta or lower learner.lr",
    ),
    Rule(
        "sampler_gap", "sampler_gap/*", ABOVE, 0.1, 0.3, 5,
        advice="sampler and learner are not the same policy: see model.engine, model.dtype and rollout.overlap",
    ),
    Rule(
        "code", "health/answers/code", ABOVE, 0.1, 0.3, 10, Difference(),
        "answers turn to code that nobody asked for, which some reward models like: read them in the turns table",
    ),
    Rule(
        "language", "health/*/language", ABOVE, 0.2, 0.4, 10,
        advice=f"script or wording is not that of the run's start: {_TABLE}",
    ),
    Rule(
        "reward_fall", "health/answers/reward", BELOW, -1.25, None, 10,
        advice="answers are paid far less than at the start: queries are too hard or unanswerable, or answers bad",
    ),
    Rule(
        "divergence", "health/answers/divergence", ABOVE, 1.0, 2.0, 10,
        advice="the reward rises and the judge does not follow: the reward model is being gamed",
    ),
    Rule(
        "anchor", "health/anchor/high", BELOW, 0.5, 0.48, 1,
        advice="on held-out prompts the policy now loses to the run's start",
    ),
    Rule(
        "anchor_fall", "health/anchor/fall", ABOVE, 0.0, 0.02, 1,
        advice="on held-out prompts the policy has fallen surely under its best",
    ),
)  # fmt: skip
