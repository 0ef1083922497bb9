"""Lineages: where a run's earlier stages are found, what a finished one records, what the model's card says."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from sparring.card import facts, published, results, write_model_card
from sparring.config import resolve
from sparring.recipes import recipe
from sparring.settings import RunConfig
from sparring.stages import ends, finish_stage, lineage

Record = dict[str, Any]


def config(name: str, start: str | Path, *overrides: str) -> RunConfig:
    return resolve(recipe(name), None, (f"model.path={start}", *overrides))


def rows(steps: int, **figures: Any) -> list[Record]:
    """Metrics whose figures are functions of the step."""
    return [{"step": step, **{name: value(step) for name, value in figures.items()}} for step in range(steps + 1)]


def make_run(folder: Path, record: Record, steps: int = 4) -> Path:
    """A finished run's folder, as far as its successors look at it."""
    (folder / "model").mkdir(parents=True)
    (folder / "checkpoints" / "step-000002" / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    (folder / "lineage.json").write_text(json.dumps(record))
    lines = [json.dumps({"step": step, "game/V": step / 10}) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def grpo(tmp_path: Path) -> Path:
    begun = lineage(config("grpo", "meta-llama/Llama-3.2-1B", "steps=4"), "grpo")
    metrics = rows(4, **{"game/V": lambda step: step / 10})
    return make_run(tmp_path / "grpo", finish_stage(begun, steps_done=4, metrics=metrics, evaluation=None))


def test_a_stage_says_everything_that_repeats_it() -> None:
    settings = config("lsp", "owner/model", "seed=3", "model.reference=owner/other")
    (stage,) = lineage(settings, "lsp")["stages"]
    assert RunConfig.model_validate(stage["settings"]) == settings
    assert json.loads(json.dumps(stage)) == stage
    assert (stage["recipe"], stage["preset"], stage["game"], stage["seed"]) == ("lsp", "arena", "lsp", 3)
    assert (stage["start"], stage["reference"]) == ("owner/model", "owner/other")
    assert set(stage["versions"]) == {"sparring", "torch", "transformers", "python"}
    assert lineage(config("lsp", "arena"), "module.Own")["stages"][0]["game"] == "module.Own"


def test_the_earlier_stages_are_found_wherever_the_model_is_taken_from(
    grpo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latest").symlink_to(grpo / "model")
    exported = tmp_path / "exported"
    exported.mkdir()
    write_model_card(exported, json.loads((grpo / "lineage.json").read_text()))
    for start in (grpo, grpo / "model", "grpo/model", "grpo/model/", "./grpo", "latest", exported):
        stages = lineage(config("lsp", start), "lsp")["stages"]
        assert [stage["recipe"] for stage in stages] == ["grpo", "lsp"], start
        assert stages[0]["results"]["steps"] == 4
        assert "taken_at_step" not in stages[0]
        assert stages[1]["start"] == str(start)


def test_a_model_from_elsewhere_is_no_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lineage.json").write_text("not ours")  # beside it, but of no run
    (tmp_path / "llama").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arena").mkdir()
    (tmp_path / "arena" / "lineage.json").write_text("a folder that only has the shipped model's name")
    checkpoint = tmp_path / "loose" / "step-000002" / "model"
    checkpoint.mkdir(parents=True)
    for start in ("arena", "owner/model", "llama", tmp_path / "llama", "gone/model", checkpoint):
        (stage,) = lineage(config("lsp", start), "lsp")["stages"]
        assert stage["start"] == str(start)


def test_a_checkpoints_model_is_a_stage_that_had_not_ended(grpo: Path) -> None:
    checkpoint = grpo / "checkpoints" / "step-000002" / "model"
    first, _ = lineage(config("lsp", checkpoint), "lsp")["stages"]
    assert first["taken_at_step"] == 2
    assert first["results"] == {"steps": 2, "window": 1, "metrics": {"game/V": [0.1, 0.2]}}
    assert dict(facts(first))["steps"] == "2 of 4, from a checkpoint"


def test_stages_add_up(grpo: Path, tmp_path: Path) -> None:
    lsp = make_run(tmp_path / "lsp", lineage(config("lsp", grpo), "lsp"))
    stages = lineage(config("lsp-zero", lsp / "model"), "lsp_zero")["stages"]
    assert [stage["recipe"] for stage in stages] == ["grpo", "lsp", "lsp-zero"]
    assert "results" not in stages[1]
    assert results(stages[1]) == []


@pytest.mark.parametrize("damaged", ["{", "[]", "3", '{"stages": []}', '{"stages": {}}', '{"stages": [1]}', "{}"])
def test_a_damaged_record_is_named(grpo: Path, damaged: str) -> None:
    (grpo / "lineage.json").write_text(damaged)
    for start in (grpo, grpo / "model", grpo / "checkpoints" / "step-000002" / "model"):
        with pytest.raises(ValueError, match=r"grpo/lineage.json .*: restore it, or remove it"):
            lineage(config("lsp", start), "lsp")


# --- results -----------------------------------------------------------------------------------------


def finished(metrics: list[Record], evaluation: Record | None = None, steps: int = 25) -> Record:
    begun = lineage(config("lsp", "arena", f"steps={steps}"), "lsp")
    before = json.dumps(begun)
    done = finish_stage(begun, steps_done=len(metrics) - 1, metrics=metrics, evaluation=evaluation)
    assert json.dumps(begun) == before
    return done["stages"][-1]["results"]


def test_results_are_means_over_both_ends() -> None:
    metrics = rows(
        25,
        **{
            "game/V": float,  # steps 1..10: 5.5; steps 16..25: 20.5
            "payoff/solver/reward": lambda step: 0.0,
            "game/V_Q": lambda step: None if step < 13 else 1.0 * step,  # first known: 13
            "game/valid_share": lambda step: float("nan") if step % 2 else 0.5,
            "quality/parse_rate": lambda step: None,
            "kl/solver": lambda step: 0.01 * step,
            "loss": float,
        },
    )
    metrics[0] |= {"eval/easy": 0.5, "game/V": 99.0}
    metrics[20]["eval/easy"] = 0.75
    found = finished(metrics)
    assert (found["steps"], found["window"]) == (25, 10)
    assert found["metrics"]["kl/solver"] == pytest.approx([0.055, 0.205])
    del found["metrics"]["kl/solver"]
    assert found["metrics"] == {
        "game/V": [5.5, 20.5],
        "game/V_Q": [13.0, 20.5],
        "game/valid_share": [0.5, 0.5],
        "eval/easy": [0.5, 0.75],
    }


@pytest.mark.parametrize(("steps", "size", "pair"), [(1, 1, [1.0, 1.0]), (5, 2, [1.5, 4.5]), (20, 10, [5.5, 15.5])])
def test_the_ends_of_a_short_run_do_not_overlap(steps: int, size: int, pair: list[float]) -> None:
    found = finished(rows(steps, **{"payoff/solver/reward": float}))
    assert found["window"] == size
    assert found["metrics"] == {"payoff/solver/reward": pair}


def test_a_run_without_a_step_has_no_figures() -> None:
    assert finished([{"step": 0, "eval/easy": 0.5}])["metrics"] == {"eval/easy": [0.5, 0.5]}
    assert ends([], "game/V") is None


def comparison(win_rate: float, accuracy: float) -> Record:
    return {
        "n": 100, "wins": 30, "ties": 60, "losses": 10, "win_rate": win_rate, "sign_test_p": 0.002,
        "ci95": [win_rate - 0.0625, win_rate + 0.0625], "accuracy": accuracy, "base_accuracy": 0.5,
    }  # fmt: skip


def test_the_final_evaluation_is_kept_without_its_smallest_parts() -> None:
    subsets = {"easy": comparison(0.55, 0.9), "easy/sort": comparison(0.5, 1.0), "hard": comparison(0.65, 0.6)}
    evaluation = {"schema": 1, "overall": comparison(0.625, 0.75), "subsets": subsets, "base": "arena", "seed": 2}
    found = finished(rows(2, **{"game/V": float}), evaluation)
    assert set(found["evaluation"]["subsets"]) == {"easy", "hard"}
    assert found["evaluation"]["overall"]["ci95"] == [0.5625, 0.6875]
    assert dict(results({"results": found})) == {
        "V, mean reward": "1 → 2",
        "win rate against its start": "62.5% (95 % interval 56.2% to 68.8%, n = 100)",
        "final accuracy, easy": "50.0% → 90.0%",
        "final accuracy, hard": "50.0% → 60.0%",
    }


# --- the card ----------------------------------------------------------------------------------------


def story(home: Path) -> Record:
    """Three stages: GRPO on a hub data set from a hub model, LSP by an adapter, LSP-Zero cut short."""
    one = config("grpo", "owner/base", "game.prompts=tatsu-lab/alpaca", "game.reward.function=null")
    record = finish_stage(lineage(one, "grpo"), steps_done=300, metrics=rows(40, **{"game/V": float}), evaluation=None)
    target = f"{home}/project/score.py:reward"
    two = config(
        "lsp", f"{home}/runs/grpo", "model.tuning=lora", "model.lora.rank=8", f"game.reward.function={target}",
        "game.options={api_key: abc123, note: a|b}", "learner.lr=3e-6", "game.n_queries=5",
    )  # fmt: skip
    record = {"stages": [*record["stages"], *lineage(two, "lsp")["stages"]]}
    subsets = {"easy": comparison(0.55, 0.9)}
    evaluation = {"overall": comparison(0.625, 0.75), "subsets": subsets, "base": f"{home}/runs/grpo"}
    record = finish_stage(record, steps_done=300, metrics=rows(40, **{"game/V_Q": float}), evaluation=evaluation)
    three = config("lsp-zero", f"{home}/runs/lsp", "steps=50")
    record = {"stages": [*record["stages"], *lineage(three, "lsp_zero")["stages"]]}
    return finish_stage(record, steps_done=20, metrics=rows(20, **{"kl/solver": float}), evaluation=None)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("the card asked the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def test_the_card_tells_every_stage_in_order(tmp_path: Path, offline: None) -> None:
    write_model_card(tmp_path, story(Path("/home/ann")))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "base_model": "owner/base",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sparring", "self-play", "grpo", "lsp", "lsp-zero"],
        "datasets": ["tatsu-lab/alpaca"],
    }
    sections = card.text.split("\n## ")[2:]
    assert [section.splitlines()[0] for section in sections] == [
        "Stage 1: grpo · arena",
        "Stage 2: lsp · arena",
        "Stage 3: lsp-zero · arena",
    ]
    for line in (
        "| start | …/runs/grpo |", "| reference | its start |", "| reward | …/project/score.py:reward |",
        "| queries × answers | N 5 × G 8 |", "| α | 0.3 |", "| β | 0.02, KL exact |",
        "| learning rate | 3e-06, constant |", "| tuning | lora, rank 8, alpha 32 |", "| temperature | 1 |",
        "| quality | by the program, as share, weight 1 |", "| V_Q, mean quality | 5.5 → 35.5 |",
        "| win rate against its start | 62.5% (95 % interval 56.2% to 68.8%, n = 100) |",
        "| final accuracy, easy | 50.0% → 90.0% |",
    ):  # fmt: skip
        assert line in sections[1], line
    assert "| prompts | tatsu-lab/alpaca |" in sections[0]
    assert "| reward | the arena domain's verifier |" in sections[0]
    assert "α" not in sections[0]
    assert "| steps | 20 of 50 |" in sections[2]
    assert all("Made with sparring " in section for section in sections)
    assert "AutoModelForCausalLM.from_pretrained" in card.text
    blocks = card.text.split("```yaml\n")[1:]
    settings = [yaml.safe_load(block.split("```")[0]) for block in blocks]
    assert [block["recipe"] for block in settings] == ["grpo", "lsp", "lsp-zero"]
    assert settings[1]["game"]["options"] == {"api_key": "(left out)", "note": "a|b"}


def test_what_is_published_tells_nobodys_home(tmp_path: Path) -> None:
    write_model_card(tmp_path, story(Path("/home/ann")))
    for name in ("README.md", "lineage.json"):
        text = (tmp_path / name).read_text()
        assert "/home" not in text
        assert "ann/" not in text
        assert "abc123" not in text
    assert [stage["recipe"] for stage in json.loads(text)["stages"]] == ["grpo", "lsp", "lsp-zero"]


def test_the_folder_alone_tells_its_story(tmp_path: Path) -> None:
    """A model folder from elsewhere: its stages come before the next one, and its local start is no hub id."""
    moved = tmp_path / "moved"
    moved.mkdir()
    record = lineage(config("grpo", "/data/models/base"), "grpo")
    write_model_card(moved, finish_stage(record, steps_done=1, metrics=rows(1), evaluation=None))
    again = tmp_path / "again"
    again.mkdir()
    write_model_card(again, lineage(config("lsp", moved), "lsp"))
    card = ModelCard.load(again / "README.md")
    assert card.data.base_model is None
    assert "| 1 | grpo · arena | …/models/base |" in card.text
    assert "Stage 2: lsp · arena" in card.text


def test_a_kept_adapter_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base-instruct"}')
    write_model_card(tmp_path, lineage(config("lsp", "owner/base", "model.tuning=qlora"), "lsp"))
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", "owner/base-instruct")
    assert "A PEFT adapter" in card.text
    assert "pip install peft" in card.text
    assert "| tuning | qlora, rank 32, alpha 32 |" in card.text


def test_odd_texts_keep_the_cards_shape(tmp_path: Path) -> None:
    reward = "mod:a|b<script>`x`\n---"
    record = lineage(config("lsp", "arena"), "lsp")
    record["stages"][0]["settings"]["game"]["reward"]["function"] = reward
    record["stages"][0]["settings"]["game"]["options"] = {"note": "````\n</details>"}
    write_model_card(tmp_path, record)
    card = ModelCard.load(tmp_path / "README.md")
    assert r"| reward | mod:a\|b&lt;script>\`x\` --- |" in card.text
    assert "`````yaml\n" in card.text
    assert card.data.tags == ["sparring", "self-play", "lsp"]


def test_an_older_record_has_a_card_too(tmp_path: Path) -> None:
    write_model_card(tmp_path, {"stages": [{"recipe": "grpo"}, {"recipe": "lsp", "start": "runs/grpo", "steps": 3}]})
    text = ModelCard.load(tmp_path / "README.md").text
    assert "| 2 | lsp | runs/grpo |  | 3 |" in text
    assert "Complete settings" not in text
    assert "Results" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/big/models/llama", "…/models/llama"),
        ("/home/ann/score.py:reward", "…/score.py:reward"),
        ("/home/ann", "…"),
        ("/root/x", "…/x"),
        ("/Users/ann/runs/a/b", "…/a/b"),
        ("~/runs/a", "…/runs/a"),
        ("~ann/a", "…/a"),
        (r"C:\Users\ann\runs\a", "…/runs/a"),
        (r"D:\x", r"D:\x"),
        ("/data/x", "/data/x"),
        ("/", "/"),
        ("/no_think", "/no_think"),
        ("owner/name", "owner/name"),
        ("runs/a/b/c", "runs/a/b/c"),
        ("", ""),
        ("…/a/b", "…/a/b"),
        ("http://ann:pw@host:8000/v1/x?key=1#y", "http://host:8000/v1/x"),
        ("hf://owner/name", "hf://owner/name"),
        ("/one/two/three\nof a text", "/one/two/three\nof a text"),
    ],
)
def test_local_paths_are_cut(text: str, shown: str) -> None:
    assert published(text) == shown


PLAIN = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text() | st.text(alphabet="/~.:\\@?#home", max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_publishing_never_fails_and_changes_nothing_twice(value: Any) -> None:
    once = published(value)
    assert published(once) == once


@pytest.mark.parametrize("name", ["api_key", "HF_TOKEN", "password", "client-secret", "key"])
def test_what_is_named_a_secret_is_left_out(name: str) -> None:
    assert published({name: "x", "max_new_tokens": 3, "token_budget": 4}) == {
        name: "(left out)",
        "max_new_tokens": 3,
        "token_budget": 4,
    }
