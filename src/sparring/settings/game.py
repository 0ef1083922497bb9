"""Settings of the game: roles, the Challenger's side, rewards."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sparring.settings.base import Count, NotNegative, Positive, Section, Share, known_device


class RoleConfig(Section):
    """How one role speaks."""

    prompt: str | None = Field(default=None, description="file with the role's prompt (Jinja); empty: the domain's own")
    system: str | None = Field(default=None, description="system message before the prompt; empty: none")
    max_new_tokens: Count = Field(default=256, description="longest completion, tokens")
    temperature: NotNegative = Field(default=1.0, description="sampling temperature; 0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="nucleus share; 1 is off")
    top_k: Annotated[int, Field(ge=0)] = Field(default=0, description="tokens kept by rank; 0 is off")


class ChallengeConfig(Section):
    """What the Challenger is asked for and paid."""

    payoff: Literal["adversarial", "frontier"] = Field(
        default="adversarial",
        description="for V(q): adversarial is the paper's -V; frontier is highest at `frontier_target`",
    )
    frontier_target: Share = Field(default=0.5, description="share solved that the frontier payoff likes best")
    invalid_payoff: float | None = Field(
        default=None, description="payoff of a query that can't be read (never answered); null: the worst valid one's"
    )
    frozen_share: Share = Field(default=0.0, description="share of the queries drawn from the frozen Challenger")
    repetition_weight: NotNegative = Field(
        default=0.0, description="penalty of a query equal to all others of its batch"
    )
    repetition_measure: Literal["exact", "ngrams"] = Field(
        default="exact", description="how alike two queries are: equal or not, or by their word 3-grams"
    )
    repetition_archive: Annotated[int, Field(ge=0)] = Field(default=0, description="past queries the penalty remembers")
    compare_by_task: bool = Field(
        default=False, description="centre the Challenger's payoffs within a task, not the batch"
    )
    tasks: str | None = Field(default=None, description="YAML file of (task, template) pairs; empty: the domain's own")
    refuse_copies: bool | None = Field(
        default=None,
        description="a query that repeats another of its batch is invalid; null: the domain's (text yes, arena no)",
    )
    shortest: Count = Field(default=8, description="text domain: a shorter query is invalid, characters")
    longest: Count = Field(default=8000, description="text domain: a longer query is invalid, characters")


class RewardConfig(Section):
    """R(q, a): the domain's verifier, a function of yours, or a reward model, loaded here or served."""

    function: str | None = Field(
        default=None,
        description="package.module:function or file.py:function, ours or TRL's form; null: the domain's",
    )
    model: str | None = Field(
        default=None, description="sequence-classification reward model, folder or hub id; its chat template is used"
    )
    url: str | None = Field(
        default=None,
        description="vLLM server of that model (http://host:port); the model is then not loaded, only its tokenizer",
    )
    scale: Literal["raw", "sigmoid", "standardised"] = Field(
        default="raw",
        description="raw scores, 1/(1+e^-score), or minus mean over std of every score of the run so far",
    )
    revision: str | None = Field(default=None, description="hub revision of the reward model")
    template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="passed to the reward model's chat template (date_string, say)",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="the reward model's precision")
    device: str = Field(default="auto", description="the reward model's torch device; auto: model.device")
    token_budget: Annotated[int, Field(ge=0)] = Field(
        default=0, description="most padded tokens in one of its forward passes; 0: 2048 on a CPU, else 32768"
    )
    max_tokens: Count | None = Field(
        default=None, description="a longer conversation is not scored; null: the reward model's own bound"
    )
    timeout: Positive = Field(default=60.0, description="url: seconds a request may take")
    retries: Annotated[int, Field(ge=0)] = Field(
        default=5, description="url: times a failed request is tried again, with growing pauses"
    )

    @field_validator("device")
    @classmethod
    def _device_has_a_form(cls, name: str) -> str:
        return known_device(name)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.function is not None and self.model is not None:
            raise ValueError("function and model are two sources of one reward: leave one of them null")
        if self.url is not None and self.model is None:
            raise ValueError("url needs model too: its tokenizer and chat template write what the server scores")
        if self.scale != "raw" and self.model is None:
            raise ValueError(f"scale is {self.scale}, which is for a reward model: give model, or leave it raw")
        return self


class QualityConfig(Section):
    """Where R_Q comes from (LSP only)."""

    source: Literal["reference", "program"] = Field(
        default="reference",
        description="reference: the frozen model grades, as in the paper; program: the domain's own rubric",
    )
    weight: NotNegative = Field(default=1.0, description="what R_Q is multiplied by against R")
    scale: Literal["points", "share"] = Field(
        default="points", description="R_Q's unit: points of the rubric (0 to 7, the paper's) or their share (0 to 1)"
    )
    criteria: Count = Field(
        default=7, description="text domain: yes-or-no criteria of the rubric in game.grader.prompt"
    )
    samples: Count = Field(default=1, description="grades averaged an exchange (with grader.temperature above 0)")


class PerceptionConfig(Section):
    """What a perceiver is paid for (Vision-SR1)."""

    accuracy_weight: NotNegative = Field(default=0.9, description="weight of the answer")
    visual_weight: NotNegative = Field(
        default=1.0, description="weight of the answer that a reader gets from the description; 0: nobody reads"
    )
    format_weight: NotNegative = Field(default=0.1, description="weight of the form")
    combine: Literal["summed", "decoupled"] = Field(
        default="summed", description="summed: one z-score of the weighted sum; decoupled: one a part, then summed"
    )
    extra_questions: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="at most so many further questions of a picture that the reader is asked about each description, "
        "from the row's column `also` (a list of {question, answer}); the visual part is then the share it gets right",
    )
    reader_weight: NotNegative = Field(
        default=0.0, description="weight of the reader's loss; above 0 it is trained too, and not greedy"
    )


class GameConfig(Section):
    """The game that is played."""

    kind: Literal["lsp", "lsp_zero", "grpo", "vision", "custom"] = Field(default="lsp", description="which game")
    domain: Literal["arena", "pictures", "text"] = Field(
        default="arena",
        description="arena: the toy language; pictures: coloured shapes, for kind vision; text: natural language",
    )
    custom: str | None = Field(default=None, description="kind custom: package.module:function or file.py:function")
    options: dict[str, Any] = Field(default_factory=dict, description="kind custom: passed to that function")
    n_queries: Count = Field(default=8, description="N, queries a step")
    n_answers: Count = Field(default=8, description="G, answers a query")
    advantage: Literal["centred", "standardised"] = Field(
        default="centred",
        description="centred: minus the siblings' mean; standardised: also divided by their std (GRPO)",
    )
    alpha: NotNegative = Field(default=1.0, description="weight of the Challenger's loss")
    prompts: str | None = Field(
        default=None,
        description="kinds grpo and vision: prompt file (.jsonl, .json, .parquet), pattern of files, folder or hub id, "
        "or arena:easy, arena:hard, pictures:train",
    )
    prompt_split: str = Field(default="train", description="split of a hub data set")
    prompt_subset: str | None = Field(default=None, description="configuration of a hub data set")
    prompt_column: str | None = Field(
        default=None,
        description="column with the prompt; null: messages, prompt, instruction (and input), question ...",
    )
    prompt_revision: str | None = Field(default=None, description="revision of a hub data set")
    prompt_pixels: Annotated[int, Field(ge=1, le=100_000_000)] = Field(
        default=100_000_000, description="rows with a larger picture are left out, pixels"
    )
    reward: RewardConfig = Field(default_factory=RewardConfig, description="R(q, a)")
    challenge: ChallengeConfig = Field(default_factory=ChallengeConfig, description="the Challenger's side")
    quality: QualityConfig = Field(default_factory=QualityConfig, description="R_Q (LSP only)")
    perception: PerceptionConfig = Field(
        default_factory=PerceptionConfig, description="kind vision: who is paid for what"
    )
    challenger: RoleConfig = Field(default_factory=RoleConfig, description="the Challenger's prompt and sampling")
    solver: RoleConfig = Field(
        default_factory=RoleConfig, description="the Solver's prompt and sampling; the perceiver's in kind vision"
    )
    reader: RoleConfig = Field(
        default_factory=lambda: RoleConfig(temperature=0.0), description="the reader's prompt and sampling"
    )
    grader: RoleConfig = Field(
        default_factory=lambda: RoleConfig(temperature=0.0), description="the grader's prompt and sampling"
    )

    @model_validator(mode="after")
    def _a_trained_reader_is_sampled(self) -> Self:
        if self.kind == "vision" and (self.perception.reader_weight > 0) == (self.reader.temperature == 0):
            wanted = "game.solver.temperature" if self.perception.reader_weight else "0: it is asked once, greedily"
            raise ValueError(
                f"perception.reader_weight is {self.perception.reader_weight:g} and reader.temperature "
                f"{self.reader.temperature:g}: set reader.temperature to {wanted}"
            )
        return self

    @model_validator(mode="after")
    def _grades_differ(self) -> Self:
        if self.quality.samples > 1 and self.grader.temperature == 0:
            raise ValueError(
                f"quality.samples = {self.quality.samples} does nothing with grader.temperature = 0, where every grade "
                "is the same: raise the temperature, or leave the samples at 1"
            )
        return self
