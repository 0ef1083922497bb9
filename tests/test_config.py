import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparring.config import ConfigError, describe, resolve
from sparring.recipes import RECIPES, recipe
from sparring.settings import RunConfig

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "steps": st.integers(1, 10**6),
    "seed": st.integers(0, 2**40),
    "learner.lr": st.floats(1e-12, 10.0),
    "learner.beta": st.floats(0, 1e3),
    "learner.kl": st.sampled_from(["exact", "k1", "k2", "k3"]),
    "learner.max_grad_norm": st.none() | st.floats(1e-6, 100.0),
    "learner.skip_dead_groups": st.booleans(),
    "game.challenge.invalid_payoff": st.floats(-1e6, 1e6),
    "game.solver.temperature": st.floats(0, 5.0),
    "trackers": st.lists(st.sampled_from(["tensorboard", "wandb"]), max_size=2),
    "model.path": TEXT,
    "model.revision": st.none() | TEXT,
    "game.options": st.dictionaries(TEXT, st.integers() | st.booleans() | TEXT, max_size=3),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(RECIPES)),
    st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=6).flatmap(
        lambda names: st.fixed_dictionaries({name: VALUES[name] for name in names})
    ),
)
def test_the_resolved_file_repeats_the_configuration(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: dict[str, Any]
) -> None:
    texts = {key: yaml.safe_dump(value).removesuffix("...\n") for key, value in changes.items()}
    overrides = tuple(f"{key}={text}" for key, text in texts.items())
    config = resolve(recipe(name), None, overrides)
    data = config.model_dump(mode="json")
    for key, value in changes.items():
        found: Any = data
        for part in key.split("."):
            found = found[part]
        assert found == value, key
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert resolve(RunConfig(), file) == config
    assert resolve(recipe(name), file).to_yaml() == config.to_yaml()


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("learner.lr=1e-5", "lr", 1e-5),
        (" learner.lr = .5", "lr", 0.5),
        ("learner.max_grad_norm=null", "max_grad_norm", None),
        ("learner.token_budget=1e4", "token_budget", 10_000),
    ],
)
def test_numbers_read_as_people_write_them(override: str, key: str, value: Any) -> None:
    assert getattr(resolve(RunConfig(), None, (override,)).learner, key) == value


@pytest.mark.parametrize(
    ("text", "trackers"),
    [
        ("wandb", ("wandb",)),
        ("wandb, tensorboard", ("wandb", "tensorboard")),
        ("[trackio]", ("trackio",)),
        ("none", ("none",)),
        ("[]", ()),
    ],
)
def test_one_tracker_needs_no_list(text: str, trackers: tuple[str, ...]) -> None:
    assert resolve(RunConfig(), None, (f"trackers={text}",)).trackers == trackers


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps", "xpu", "xpu:1"])
def test_a_device_is_checked_by_its_form_alone(device: str) -> None:
    assert resolve(RunConfig(), None, (f"model.device={device}",)).model.device == device


@pytest.mark.parametrize(
    "overrides",
    [
        ("learner.clip_low=0.2", "learner.clip_high=0.3", "learner.minibatches=2"),
        ("learner.clip_high=0.3", "learner.epochs=2"),
        ("game.quality.samples=4", "game.grader.temperature=0.7"),
    ],
)
def test_settings_that_do_something_together_are_taken(overrides: tuple[str, ...]) -> None:
    config = resolve(RunConfig(), None, overrides)
    assert resolve(RunConfig(), None, tuple(reversed(overrides))) == config != RunConfig()


def test_a_configuration_needs_no_torch() -> None:
    code = (
        "import sys\nfrom sparring.config import RunConfig, resolve\n"
        "resolve(RunConfig(), None, ('model.device=cuda:0', 'trackers=wandb'))\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("text", ["1234567", "12e4567", "true", "2026-01-01", "0x10"])
def test_a_text_setting_stays_as_typed(text: str) -> None:
    assert resolve(RunConfig(), None, (f"model.revision={text}",)).model.revision == text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lrr=1", "did you mean 'learner.lr'"),
        ("lr=1", "did you mean 'learner.lr'"),
        ("learner.temperature=1", "did you mean 'game.challenger.temperature'"),
        ("zzzzzz=1", "recipes --settings"),
        ("learner=3", "learner is a group of settings"),
        ("learner.lr.x=3", "learner.lr: Input should be a valid number"),
        ("learner.lr", "an override reads setting=value"),
        ("=3", "an override reads setting=value"),
        ("learner.lr=-1", "learner.lr: Input should be greater than 0"),
        ("learner.lr=inf", "learner.lr"),
        ("learner.lr=nan", "learner.lr"),
        ("steps=2.5", "steps"),
        ("learner.kl=k4", "learner.kl"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("evaluation.seed=-1", "evaluation.seed: Input should be greater than or equal to 0"),
        ("learner.adam_beta1=1", "learner.adam_beta1: Input should be less than 1"),
        ("learner.adam_beta2=1.0", "learner.adam_beta2: Input should be less than 1"),
        ("trackers=wanbd", "trackers: unknown tracker 'wanbd': did you mean 'wandb'?"),
        ("trackers=[wandb, tensorbord]", "did you mean 'tensorboard'?"),
        ("model.device=gpu", "model.device: there is no torch device 'gpu'; it reads auto, cpu, cuda, cuda:1"),
        ("model.device=cuda:", "model.device: there is no torch device"),
        ("model.device=auto:1", "model.device: there is no torch device"),
        ("model.cache_tokens=0", "model.cache_tokens: Input should be greater than or equal to 1"),
        ("learner.clip_low=0.2", "learner: clip_low does nothing with minibatches = epochs = 1"),
        ("learner.clip_high=0.2", "learner: clip_high does nothing with minibatches = epochs = 1"),
        ("game.quality.samples=4", "game: quality.samples = 4 does nothing with grader.temperature = 0"),
        ("steps=[1", "the value of steps is not YAML"),
    ],
)
def test_a_wrong_override_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(RunConfig(), None, (override,))
    assert message in str(caught.value)


def test_a_file_may_nest_or_dot_its_settings(tmp_path: Path) -> None:
    nested, dotted = tmp_path / "nested.yaml", tmp_path / "dotted.yaml"
    nested.write_text("learner: {lr: 1e-5}\ngame: {solver: {max_new_tokens: 9}}\n")
    dotted.write_text("learner.lr: 1e-5\ngame:\n  solver.max_new_tokens: 9\n")
    assert resolve(RunConfig(), nested) == resolve(RunConfig(), dotted)
    assert resolve(RunConfig(), dotted).game.solver.max_new_tokens == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n", "must hold settings"),
        (b"a: [1\n", "is not YAML"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"learner: {lrr: 1}\n", "did you mean 'learner.lr'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(RunConfig(), file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        resolve(RunConfig(), tmp_path / "none.yaml")


def test_every_setting_has_a_meaning_and_is_known_to_resolve() -> None:
    rows = describe()
    assert len(rows) == len({name for name, _, _ in rows}) > 50
    assert [name for name, _, meaning in rows if len(meaning) < 5] == []
    data = RunConfig().model_dump(mode="json")
    for name, _, _ in rows:
        value: Any = data
        for key in name.split("."):
            value = value[key]


def test_an_unknown_recipe_or_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        recipe("grop")
    with pytest.raises(ConfigError, match="it has: arena, arena-paper, paper"):
        recipe("lsp", "papr")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("game.reward.url=http://localhost:1",), "url needs model too"),
        (("game.reward.model=m", "game.reward.function=a:b"), "leave one of them null"),
        (("game.reward.scale=sigmoid",), "scale is sigmoid, which is for a reward model"),
        (("game.reward.device=gpu",), "there is no torch device 'gpu'"),
        (("model.remote_code=other/model",), "remote_code names 'other/model', but the model is 'arena'"),
        (("model.tuning=loar",), "model.tuning"),
    ],
)
def test_settings_of_models_and_rewards_that_contradict_each_other_are_refused(
    overrides: tuple[str, ...], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        resolve(recipe("lsp"), None, overrides)


def test_the_presets_of_the_paper_have_its_settings() -> None:
    for name, lr in (("lsp", 3e-6), ("lsp-zero", 3e-6), ("grpo", 1e-6)):
        paper, card = recipe(name, "paper"), recipe(name, "paper-lora")
        assert (paper.game.n_queries, paper.learner.beta, paper.learner.lr) == (8, 0.05, lr)
        assert paper.model.path == "meta-llama/Llama-3.2-3B-Instruct"
        assert paper.game.reward.model == "Skywork/Skywork-Reward-V2-Llama-3.2-3B"
        assert (paper.game.advantage, paper.learner.aggregation) == ("centred", "sum")
        assert paper.evaluation.temperature == 0.01
        assert (card.model.tuning, card.learner.lr) == ("lora", 10 * lr)
        assert card.game.model_dump(exclude={"reward"}) == paper.game.model_dump(exclude={"reward"})
