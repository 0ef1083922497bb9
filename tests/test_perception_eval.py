"""LSR: by hand from scripted answers and verdicts, in every degenerate case; graders; the command on a tiny model."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripted import ScriptedSampler
from scripted_chat import ChatServer, completion
from sparring.cli import main
from sparring.cli_evaluated import subject
from sparring.config import resolve
from sparring.domains import Described, SufficiencyGrader, TestItem
from sparring.evaluation import kept
from sparring.evaluation.answers import Answerer, answering
from sparring.evaluation.document import read_document
from sparring.evaluation.graders import CANNOT_TELL, SUFFICIENT, FunctionGrader, ModelGrader, Replies, template
from sparring.evaluation.judges.base import Cost, JudgeError, Pair, Verdict
from sparring.evaluation.kept import items_of
from sparring.evaluation.matched import Answered, by_judge, by_rule, by_rule_then_judge, read_verdict
from sparring.evaluation.methods import Methods
from sparring.evaluation.perception import Perception, Seen, look
from sparring.evaluation.statistics import wilson_interval
from sparring.games.perception import description_of
from sparring.images import Picture, PictureError
from sparring.lm.base import SamplingParams
from sparring.recipes import recipe
from sparring.report.seen import read_looked
from sparring.rewards.base import Reward
from sparring.roles import Role
from sparring.types import Prompt
from tiny_models import save_tiny_llama
from tiny_vision import save_tiny_qwen25vl

PERCEIVER = Role("perceiver", "{{ query }}", SamplingParams(16))
READER = Role("reader", "{{ description }} {{ query }}", SamplingParams(16))


def png(seed: int = 0, side: int = 28) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def item(name: str, answer: str = "red", subset: tuple[str, ...] = (), **columns: Any) -> TestItem:
    return TestItem(name, subset, f"{name}?", {"answer": answer, **columns}, (png(),))


def boxed_answers(queries: Sequence[str], answers: Sequence[str], answer: Sequence[str]) -> list[float | None]:
    """1 for the box with the answer; a text with "unknown" can't be scored."""
    return [
        None if "unknown" in text else float(f"\\boxed{{{gold}}}" in text)
        for text, gold in zip(answers, answer, strict=True)
    ]


def seen_by(
    texts: Sequence[str], replies: Sequence[str], items: Sequence[TestItem], grader: SufficiencyGrader, **more: Any
) -> list[Seen]:
    sampler = ScriptedSampler({"perceiver": texts, "reader": replies})
    return look(sampler, PERCEIVER, READER, items, reward=Reward(boxed_answers), grader=grader, **more)


class Grader:
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self, *verdicts: bool | None) -> None:
        self.verdicts, self.asked = list(verdicts), []

    def __call__(self, asked: Sequence[Described]) -> list[bool | None]:
        self.asked += asked
        return self.verdicts


RIGHT, WRONG = r"\boxed{red}", r"\boxed{blue}"


def described(text: str, answer: str) -> str:
    return f"<description>{text}</description><think>so</think>{answer}"


# --- the rate, by hand -------------------------------------------------------------------------------


def six() -> tuple[list[Seen], Grader]:
    """Right and seen; right by a shortcut; wrong and not seen; right without a description; right, verdict unread;
    wrong though seen."""
    texts = [
        described("a", RIGHT),
        described("b", RIGHT),
        described("c", WRONG),
        RIGHT,
        described("e", RIGHT),
        described("f", WRONG),
    ]
    grader = Grader(True, False, False, None, True)
    items = [item(name, subset=("half", name) if name in "ab" else ("rest",)) for name in "abcdef"]
    return seen_by(texts, [RIGHT, WRONG, WRONG, RIGHT, RIGHT], items, grader), grader


def test_the_rate_is_the_right_ones_that_were_not_seen_over_all_with_a_verdict() -> None:
    seen, grader = six()
    assert [one.sufficient for one in seen] == [True, False, False, False, None, True]
    assert [one.shortcut for one in seen] == [False, True, False, True, None, False]
    assert [one.read for one in seen] == [True, False, False, None, True, True]
    assert [one.description for one in grader.asked] == ["a", "b", "c", "e", "f"]  # not the missing one
    figures = Perception.of(seen)
    assert figures is not None
    assert (figures.n, figures.unread) == (6, 1)
    assert (figures.lsr.value, figures.lsr.n) == (2 / 5, 5)
    assert figures.lsr.ci95 == wilson_interval(2, 5)
    assert figures.bounds == (2 / 6, 3 / 6)
    assert (figures.accuracy.value, figures.accuracy.ci95) == (4 / 6, wilson_interval(4, 6))
    assert (figures.sufficient.value, figures.described.value) == (2 / 5, 5 / 6)
    readers = {name: (share.value, share.n) for name, share in figures.reader.items() if share is not None}
    assert readers == {"all": (3 / 6, 6), "sufficient": (1.0, 2), "insufficient": (0.0, 3)}


def test_subsets_have_figures_of_their_own() -> None:
    from sparring.evaluation.perception import by_subset

    found = by_subset(six()[0])
    assert sorted(found) == ["half", "half/a", "half/b", "rest"]
    assert (found["half"].lsr.value, found["half/b"].lsr.value) == (0.5, 1.0)
    assert (found["rest"].n, found["rest"].lsr.n, found["rest"].lsr.value) == (4, 3, 1 / 3)


def test_the_interval_of_none_at_all_has_a_width() -> None:
    seen = [Seen("a", (), "", "d", True, True, True, "") for _ in range(10)]
    figures = Perception.of(seen)
    assert figures is not None
    assert figures.lsr.value == 0.0
    assert figures.lsr.ci95 == wilson_interval(0, 10)
    assert figures.reader["insufficient"] is None


def test_without_any_verdict_there_is_no_rate() -> None:
    assert Perception.of([Seen("a", (), "", "d", True, None, True, "")]) is None
    assert Perception.of([]) is None


def test_without_any_description_every_right_answer_is_a_shortcut_and_nobody_is_asked() -> None:
    def asked(_: Sequence[Described]) -> list[bool | None]:
        raise AssertionError("nothing is there to grade")

    seen = seen_by([RIGHT, WRONG, "<description></description>" + RIGHT], [], [item(n) for n in "abc"], asked)
    figures = Perception.of(seen)
    assert figures is not None
    assert (figures.lsr.value, figures.described.value, figures.unread) == (2 / 3, 0.0, 0)


def test_an_answer_that_can_not_be_scored_is_not_right() -> None:
    (one,) = seen_by([described("a", "unknown")], ["unknown"], [item("a")], Grader(False))
    assert (one.right, one.read, one.shortcut) == (False, False, False)


def test_a_regression_is_right_within_five_percent() -> None:
    near = Reward(lambda queries, answers, **_: [0.95, 0.94])
    sampler = ScriptedSampler({"perceiver": ["x", "y"], "reader": []})
    seen = look(sampler, PERCEIVER, READER, [item("a"), item("b")], reward=near, grader=Grader())
    assert [one.right for one in seen] == [True, False]


def test_the_perceiver_sees_the_picture_and_the_reader_reads_without_it() -> None:
    class Watching(ScriptedSampler):
        def sample(self, role: Role, prompts: Sequence[Prompt], n: int = 1, model: Any = "policy") -> Any:
            self.roles = [*getattr(self, "roles", []), (role, [prompt.messages for prompt in prompts])]
            return super().sample(role, prompts, n, model)

    sampler = Watching({"perceiver": [described("so it is", RIGHT)], "reader": [RIGHT]})
    roles = (PERCEIVER, Role("reader", READER.template, SamplingParams(16, temperature=1.0), weight=1.0))
    look(sampler, *roles, [item("a")], reward=Reward(boxed_answers), grader=Grader(True), temperature=0.5)
    (looking, (asked,)), (reading, (read,)) = sampler.roles
    assert [part["type"] for part in asked[0]["content"]] == ["image", "text"]
    assert read[0]["content"] == "so it is a?"
    assert (looking.sampling.temperature, looking.weight) == (0.5, 0)
    assert (reading.sampling.temperature, reading.weight) == (0, 0)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "the test set is empty"),
        ([TestItem("a/1", (), "q", {"answer": "x"})], "a/1: there is no picture"),
        ([TestItem("a/2", (), "q", {}, (png(),))], "a/2: its row has no answer"),
    ],
)
def test_items_that_can_not_be_used_are_named(items: list[TestItem], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seen_by([], [], items, Grader())


def test_a_broken_picture_is_named() -> None:
    with pytest.raises(PictureError, match="a/3"):
        seen_by([], [], [TestItem("a/3", (), "q", {"answer": "x"}, (b"no image",))], Grader())


# --- graders -----------------------------------------------------------------------------------------


class Scripted:
    """A judge whose replies are a script."""

    name, identity = "scripted", None

    def __init__(self, *replies: str, tokens: int = 5) -> None:
        self.replies, self.tokens, self.asked = list(replies), tokens, []

    def estimate(self, pairs: Sequence[Pair]) -> Cost:
        return Cost(len(pairs), 0, 0)

    def judge(self, pairs: Sequence[Pair], arrived: Any = None) -> list[Verdict]:
        self.asked += pairs
        return [Verdict(None, self.replies.pop(0), 1, self.tokens) for _ in pairs]

    def close(self) -> None:
        pass


def writer(*replies: str, tokens: int = 5) -> tuple[Replies, Scripted]:
    judge = Scripted(*replies, tokens=tokens)
    return Replies(judge, 10), judge


def asked(gold: str, kind: str = "") -> Described:
    return Described("which?", "a red cat", gold, {"answer": gold, "problem_type": kind})


def test_a_grader_that_comes_to_the_gold_answer_from_the_description_has_seen_enough() -> None:
    answering, judge = writer(
        r"so \boxed{B. cat}", r"\boxed{cannot tell}", "it is red", r"\boxed{blue}", r"\boxed{2.55}", "", r"\boxed{Red}."
    )
    described = [
        asked("B", "multiple choice"),
        asked("red"),
        asked("red"),
        asked("red"),
        asked("2.5", "regression"),
        asked("x"),
        asked("red"),
    ]
    assert ModelGrader(answering)(described) == [True, False, None, False, True, None, True]
    assert all(pair.second == "" and "gold" not in str(pair) for pair in judge.asked)
    shown = template(SUFFICIENT).fill(judge.asked[1])[0]["content"]
    assert "a red cat" in shown and "which?" in shown and CANNOT_TELL in shown


def test_what_the_grader_is_shown_does_not_hold_the_gold_answer() -> None:
    answering, judge = writer(r"\boxed{secret gold}")
    assert ModelGrader(answering)([Described("q", "d", "secret gold")]) == [True]
    assert "secret gold" not in template(SUFFICIENT).fill(judge.asked[0])[0]["content"]


def test_a_judge_may_say_what_no_rule_calls_right() -> None:
    answering, _ = writer(r"\boxed{crimson}", r"\boxed{red}", r"\boxed{cannot tell}", r"\boxed{navy}", r"\boxed{wine}")
    judging, judge = writer("correct", "Incorrect.", "perhaps")
    assert ModelGrader(answering, judging)([asked("red")] * 5) == [True, True, False, False, None]
    assert [pair.second for pair in judge.asked] == [r"\boxed{crimson}", r"\boxed{navy}", r"\boxed{wine}"]


def test_a_reply_that_was_cut_off_is_no_verdict() -> None:
    answering, _ = writer(r"\boxed{red} or", tokens=10)
    assert ModelGrader(answering)([asked("red")]) == [None]


@given(st.text(), st.booleans())
def test_replies_are_read_whatever_the_text(text: str, box: bool) -> None:
    answering, _ = writer(f"\\boxed{{{text}}}" if box else text)
    (verdict,) = ModelGrader(answering)([asked("B", "multiple choice")])
    assert verdict in (True, False, None)
    if "boxed" not in text and not box:
        assert verdict is None


def test_a_function_grades_like_a_reward() -> None:
    def mentions(queries: Sequence[str], answers: Sequence[str], answer: Sequence[str]) -> list[float | None]:
        return [None if not gold else float(gold in text) for text, gold in zip(answers, answer, strict=True)]

    assert FunctionGrader(Reward(mentions))([asked("red"), asked("blue"), asked("")]) == [True, False, None]
    with pytest.raises(JudgeError, match=r"must return 1, 0 or None, not 0\.5"):
        FunctionGrader(Reward(lambda queries, answers: [0.5]))([asked("red")])


# --- answers, by rule and by a judge -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "gold", "text", "right"),
    [
        ("multiple choice", "B", r"\boxed{(b)}", True),
        ("Multiple-Choice", "B", "B. cat", True),
        ("multiple choice", "B", r"\boxed{C}", False),
        ("multiple choice", "the cat", r"\boxed{Cat}", True),  # no letter: as words
        ("regression", "2.5", r"\boxed{2.6}", True),
        ("regression", "2.5", r"\boxed{2.7}", False),
        ("regression", "about two", r"\boxed{about two}", True),
        ("numerical", "12", r"\boxed{12 cm}", True),
        ("numerical", "1/2", r"\boxed{0.5}", True),
        ("", "Yes", r"\boxed{yes}", True),
        ("", "Yes", "no", False),
        ("", "Yes", "", False),
        (None, "red", r"\boxed{", False),
        *((None, "A", text, True) for text in (r"\boxed{A.}", r"\boxed{A)}", r"\boxed{A:}", r"\boxed{**A**}", "A")),
        (None, "B", "Option B", True),
        ("free-form", "B", "B. cat", True),
        (None, "B", r"\boxed{A, B}", False),
        (None, "left", r"\boxed{felt}", False),
        (None, "Paris", r"\boxed{pairs}", False),
        (None, "2x+1", r"\boxed{2x-1}", False),
        (None, "x", r"\boxed{-x}", False),
        (None, "10 km", r"\boxed{10 m}", False),
        (None, "black-and-white", "Black and white.", True),
    ],
)
def test_the_rule(kind: str | None, gold: str, text: str, right: bool) -> None:
    assert by_rule([Answered("q", gold, text, {"problem_type": kind})]) == [right]


def test_of_no_answers_there_is_nothing_to_say() -> None:
    assert by_rule([]) == []
    assert by_rule_then_judge([], writer()[0]) == []


def test_an_unparsed_verdict_is_never_right() -> None:
    judging, judge = writer("I would say it is correct", "correct", "")
    answers = [Answered("q", "x", text, {}) for text in ("a", "b", "c", "  ")]
    assert by_judge(answers, judging) == [None, True, None, False]
    assert len(judge.asked) == 3  # nobody is asked about an empty answer


@given(st.text())
def test_verdicts_are_read_whatever_the_text(text: str) -> None:
    assert read_verdict(text) in (True, False, None)
    assert read_verdict(f"{text} x correct") is None


# --- data sets ---------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four questions: two pictures, one without, one broken."""
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(png(2))
    (tmp_path / "broken.png").write_bytes(png(3)[:400])  # its header is sound
    kinds = ["multiple choice", "numerical", "numerical", "numerical"]
    images = [["a.png"], ["b.png"], [], ["broken.png"]]
    lines = [
        json.dumps(
            {"problem": f"<image>what {i}?", "answer": "A" if i == 0 else str(i), "images": image, "problem_type": kind}
        )
        for i, (image, kind) in enumerate(zip(images, kinds, strict=True))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("answer", ["", "  ", None])
def test_a_blank_answer_is_a_missing_one(tmp_path: Path, answer: str | None) -> None:
    from sparring.data import load_prompts

    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "what?", "answer": answer, "images": ["a.png"]}))
    with pytest.raises(ValueError, match=r"rows\.jsonl/1: the row has no answer"):
        items_of(load_prompts(str(tmp_path / "rows.jsonl")), print)


def test_rows_without_a_readable_picture_are_named_and_left_out(rows: Path) -> None:
    from sparring.data import load_prompts

    said: list[str] = []
    items = items_of(load_prompts(str(rows)), said.append, subset="problem_type")
    assert [(one.query, one.subset, one.columns["answer"]) for one in items] == [
        ("what 0?", ("multiple choice",), "A"),
        ("what 1?", ("numerical",), "1"),
    ]
    assert "broken.png" in said[0]
    assert said[1].endswith("1 rows without a picture and 1 with an unreadable one are left out")
    assert len(items_of(load_prompts(str(rows)), said.append, n=1)) == 1
    with pytest.raises(ValueError, match=r"--subset: rows\.jsonl has no column 'kind'"):
        items_of(load_prompts(str(rows)), said.append, subset="kind")


# --- the command -------------------------------------------------------------------------------------

SMALL = (
    "model.dtype=float32",
    "model.device=cpu",
    "model.vision.min_pixels=784",
    "model.vision.max_pixels=784",
    "game.reader.max_new_tokens=6",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny vision models, a run of the picture world from one of them, and a text model that grades."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_qwen25vl(folder / "one")
    save_tiny_qwen25vl(folder / "two", seed=3)
    save_tiny_llama(folder / "grader", max_position_embeddings=1024)
    given = (f"model.path={folder / 'one'}", *SMALL, "game.solver.max_new_tokens=8")
    for name, domain in {"run": "pictures", "text-run": "text"}.items():
        more = (
            ()
            if domain == "pictures"
            else (
                "game.domain=text",
                "game.prompts=x.jsonl",
                "game.reward.function=sparring.rewards.verifiable:by_type",
            )
        )
        settings = resolve(recipe("vision-sr1"), None, (*given, *more))
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(settings.to_yaml())
        shutil.copytree(folder / "two", folder / name / "model")
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("one", "two", "grader"):
        (tmp_path / name).symlink_to(models / name)
    for name in ("run", "text-run"):
        shutil.copytree(models / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # A random model writes no tags: what it says counts as a description, so that there is something to grade.
    monkeypatch.setattr("sparring.evaluation.perception.description_of", lambda text: text.strip() or None)
    return tmp_path


@pytest.fixture
def server() -> Iterator[ChatServer]:
    server = ChatServer()
    server.usual = lambda handler, request: handler.send(200, completion(r"It is \boxed{A}"))
    yield server
    server.stop()


def call(*words: object) -> Result:
    with warnings.catch_warnings():
        return CliRunner().invoke(main, ["eval", "lsr", *map(str, words)])


def done(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: object) -> str:
    result = call(*words)
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.partition("Error: ")[2].split())


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_runs_and_models_side_by_side_on_the_domains_own_test(here: Path) -> None:
    out = done("run", "one", "--n", 5, "--temperature", 0, "--temperature", 1, "--seed", 9)
    mine, base = here / "run" / "evaluations", here / "evaluations" / "one"
    for folder, model in ((mine, "run"), (base, "one")):
        record = read(folder / "lsr.json")
        head = {"kind": "lsr", "name": "lsr", "metric": "lsr", "model": model, "base": None}
        assert head.items() <= record.items()
        assert {"n": 5, "seed": 9, "temperature": 0.0, "grader": "pictures domain's program"}.items() <= record[
            "settings"
        ].items()
        assert record["settings"]["max_new_tokens"] == 8
        overall = record["overall"]
        looks = [json.loads(line) for line in (folder / "lsr-looks.jsonl").read_text().splitlines()]
        assert overall["lsr"] == sum(row["right"] and not row["sufficient"] for row in looks) / 5
        assert overall["sufficient"]["value"] == sum(row["sufficient"] for row in looks) / 5
        assert set(looks[0]) >= {
            "id",
            "question",
            "gold",
            "text",
            "description",
            "reply",
            "right",
            "sufficient",
            "read",
        }
        assert set(record["fidelity"]) == {"all", "asked", "unasked"}
        document = read_document(folder / "lsr.json")
        assert (document.metric, document.overall.n, document.overall.value) == ("lsr", 5, overall["lsr"])
        assert set(document.subsets) == {row["subset"] for row in looks}
        assert read(folder / "lsr-t1.json")["settings"]["temperature"] == 1.0
    assert "Language Shortcut Rate" in out
    texts = [
        [json.loads(line)["text"] for line in (f / "lsr-looks.jsonl").read_text().splitlines()] for f in (mine, base)
    ]
    assert texts[0] != texts[1]  # the run's own model, not its start


def test_the_shipped_models_figures_are_those_of_another_implementation(here: Path) -> None:
    """transformers' own generate, and figures by NumPy: what the picture world's model is measured with."""
    from sparring.pictures import model_path
    from sparring.pictures.domain import questions
    from sparring.pictures.measure import Speaker, load, summary
    from sparring.pictures.response import parse_response, reader_prompt

    speaker = Speaker(*load(model_path()))
    items = questions("held-out", 5, 40)
    texts = speaker([one.question for one in items], [one.picture for one in items])
    said = [parse_response(text).description or "" for text in texts]
    replies = speaker([reader_prompt(one.question, text) for one, text in zip(items, said, strict=True)])
    wanted = summary(items, texts, replies)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparring.evaluation.perception.description_of", description_of)
        done("pictures", "--n", 40, "--seed", 5, "threads=1")
    record = read(here / "evaluations" / "pictures" / "lsr.json")
    overall = record["overall"]
    assert 0 < overall["lsr"] == pytest.approx(wanted["lsr"], abs=1e-4)
    for name in ("accuracy", "sufficient"):
        assert overall[name]["value"] == pytest.approx(wanted[name], abs=1e-4)
    for name, share in wanted["reader"].items():
        assert overall["reader"][name]["value"] == pytest.approx(share, abs=1e-4)
    for kind, figures in wanted["by_kind"].items():
        assert record["subsets"][kind]["lsr"] == pytest.approx(figures["lsr"], abs=1e-4)
    for part, figures in wanted["description"].items():
        assert record["fidelity"][part] == pytest.approx(figures, abs=1e-4)


def test_one_folder_for_several_models(here: Path) -> None:
    done("run", "two", "--n", 2, "--out", "both", "--name", "mine")
    assert {read(file)["model"] for file in (here / "both").glob("mine-*.json")} == {"run", "two"}


def test_runs_compare_by_their_own_results_though_the_starts_lie_beside_them(here: Path) -> None:
    shutil.copytree(here / "run", here / "another")
    done("run", "another", "--n", 3)
    for other in ("a", "z"):
        record = read(here / "run/evaluations/lsr.json") | {"model": "start"}
        record["overall"]["lsr"] = 0.123
        (here / f"run/evaluations/lsr-{other}.json").write_text(json.dumps(record))
    methods = Methods.of([here / "run", here / "another"], "lsr")
    assert methods.metric == "lsr"
    own = read(here / "run/evaluations/lsr.json")["overall"]["lsr"]
    assert [figures["overall"].value for _, figures in methods.rows] == [own, own]
    with warnings.catch_warnings():
        result = CliRunner().invoke(main, ["compare", "run", "another", "--name", "lsr", "--plot", "lsr.svg"])
    assert result.exit_code == 0, result.output
    assert "lsr: lsr [95 % interval]" in result.output
    assert (here / "lsr.svg").is_file()


@pytest.mark.parametrize(("where", "name"), [("run", "."), ("text-run", "../run"), (".", "link"), ("run/model", "../")])
def test_a_runs_own_result_is_known_however_the_run_was_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str
) -> None:
    (here / "link").symlink_to("run")
    monkeypatch.chdir(here / where)
    done(name, "--n", 1, "--max-new-tokens", 2)
    monkeypatch.chdir(here.parent)
    file = here / "run/evaluations/lsr.json"
    assert read(file)["model"] == f"{here.name}/run"
    assert read_looked(file, here / "run").own
    (file.parent / "lsr-z.json").write_text(json.dumps(read(file) | {"model": "start", "settings": {"of": "start"}}))
    ((_, figures),) = Methods.of([here / "run"], "lsr").rows
    assert figures["overall"].value == read(file)["overall"]["lsr"]


def test_a_file_for_the_folder_of_results_is_told_before_anything_is_asked(here: Path) -> None:
    (here / "afile").touch()
    for out in ("afile", "afile/within"):
        message = refused("run", "--n", 1, "--out", out)
        assert message == f"--out: {out} is a file or within one, and results need a folder"
    assert not (here / "run/evaluations").exists()


def test_nothing_is_answered_twice_and_an_interrupted_call_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    from sparring.evaluation import answers

    build = kept.build_models

    def counted(config: Any, **more: Any) -> Any:
        loads.append(config.model.path)
        return build(config, **more)

    monkeypatch.setattr(kept, "build_models", counted)
    monkeypatch.setattr(answers, "AT_ONCE", 2)
    monkeypatch.setattr(kept, "AT_ONCE", 2)
    done("run", "--n", 5, "--temperature", 1)
    whole = (
        (here / "run/evaluations/lsr-t1.json").read_text(),
        (here / "run/evaluations/lsr-t1-looks.jsonl").read_text(),
    )
    assert len(loads) == 1  # perceiver and reader are one
    done("run", "--n", 5, "--temperature", 1)
    assert len(loads) == 1
    for file in (here / "run/evaluations").glob("outputs-*.json"):
        kept_rows = read(file)
        file.write_text(json.dumps(kept_rows[:2]))  # as after a kill between two parts
    done("run", "--n", 5, "--temperature", 1)
    assert len(loads) == 2
    again = (
        (here / "run/evaluations/lsr-t1.json").read_text(),
        (here / "run/evaluations/lsr-t1-looks.jsonl").read_text(),
    )
    assert again == whole


def test_another_picture_is_another_file_of_answers(here: Path, rows: Path) -> None:
    words = ("text-run", "--prompts", rows, "--grader", "function:grade.py:grade", "--n", 2, "--max-new-tokens", 6)
    (here / "grade.py").write_text("def grade(queries, answers, **_):\n    return [1.0 for _ in answers]\n")
    done(*words)
    before = {file.name for file in (here / "text-run/evaluations").glob("outputs-*.json")}
    (here / "a.png").write_bytes(png(7))
    done(*words)
    after = {file.name for file in (here / "text-run/evaluations").glob("outputs-*.json")}
    assert len(before) == 2
    assert len(after - before) >= 1


def test_pictures_of_another_size_are_another_file_of_answers_wherever_they_came_from(here: Path) -> None:
    done("run", "--n", 2)
    folder = here / "run/evaluations"
    before = {file.name for file in folder.glob("outputs-*.json")}
    done("run", "--n", 2, "model.vision.min_pixels=3136", "model.vision.max_pixels=3136")
    assert len({file.name for file in folder.glob("outputs-*.json")} - before) >= 1
    config, role = answering(subject("run", ()).config, temperature=0, tokens=8, seed=0), PERCEIVER
    (here / "same.png").write_bytes((here / "a.png").read_bytes())
    files = {
        Answerer(
            config,
            role,
            [role.prompt(query="q", images=(Picture.open(path),), info={"query_text": "q"})],
            folder=folder,
            say=print,
        ).file
        for path in (here / "a.png", here / "same.png")
    }
    assert len(files) == 1


def test_a_served_grader_sees_question_and_description_only_and_is_asked_once(
    here: Path, rows: Path, server: ChatServer
) -> None:
    words = ("text-run", "--prompts", rows, "--max-new-tokens", 6, "--subset", "problem_type")
    grader = ("--grader", "g", "--judge-url", server.url)
    done(*words, *grader)
    record = read(here / "text-run/evaluations/lsr-rows.json")
    looks = [json.loads(line) for line in (here / "text-run/evaluations/lsr-rows-looks.jsonl").read_text().splitlines()]
    assert [row["sufficient"] for row in looks] == [True, False]  # it always says A
    assert record["overall"]["n"] == 2
    assert set(record["subsets"]) == {"multiple choice", "numerical"}
    assert record["settings"]["grader"] == "g"
    assert "fidelity" not in record
    shown = server.asked()
    assert len(shown) == 2
    assert all(
        row["description"] in text for row, text in zip(looks, sorted(shown, key=lambda t: "what 1?" in t), strict=True)
    )
    done(*words, *grader)
    assert len(server.requests) == 2  # replies are kept


def test_verdicts_that_can_not_be_read_are_counted_and_bounded(here: Path, rows: Path, server: ChatServer) -> None:
    server.script = [lambda handler, request: handler.send(200, completion("no idea"))]
    words = ("text-run", "--prompts", rows, "--max-new-tokens", 6, "--grader", "g", "--judge-url", server.url)
    out = done(*words, "--concurrency", 1)
    overall = read(here / "text-run/evaluations/lsr-rows.json")["overall"]
    assert (overall["unread"], overall["n"]) == (1, 2)
    assert overall["bounds"][0] <= overall["lsr"]
    assert "without a verdict" in out
    server.usual = lambda handler, request: handler.send(200, completion("no idea"))
    said = refused(*words, "--judge-cache", "other.sqlite")
    assert "gave no verdict that can be read" in said


def test_models_without_any_verdict_leave_the_others_their_results(here: Path, rows: Path, server: ChatServer) -> None:
    server.script = [lambda handler, request: handler.send(200, completion("no idea"))] * 2
    words = ("--prompts", rows, "--max-new-tokens", 6, "--grader", "g", "--judge-url", server.url, "--concurrency", 1)
    result = call("text-run", "one", *words)
    assert result.exit_code == 1
    said = " ".join(result.stderr.partition("Error: ")[2].split())
    assert said == "the grader gave no verdict that can be read for text-run (of 2): check --grader, --judge-tokens"
    assert "Written to evaluations/one/lsr-rows.json" in result.output
    assert read(here / "evaluations/one/lsr-rows.json")["overall"]["unread"] == 0
    assert not (here / "text-run/evaluations/lsr-rows.json").exists()


def test_a_local_grader(here: Path, rows: Path) -> None:
    said = refused(
        "text-run", "--prompts", rows, "--max-new-tokens", 6, "--grader", "local:grader", "--judge-tokens", 8
    )
    assert "gave no verdict that can be read" in said  # a random model boxes nothing
    assert (here / "text-run/evaluations/verdicts.sqlite").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("text-run",), "the text domain has no grader by program: give --grader"),
        (("text-run", "--grader", "function:g.py:g"), "the text domain has no held-out test: give --prompts"),
        (("run", "--prompts", "rows.jsonl"), "--prompts needs a --grader"),
        (("run", "--grader", "local:run"), "--grader local:run is run itself"),
        (("run", "--grader", "local:run/model"), "is run itself"),
        (("run", "--grader", "run", "--judge-url", "http://127.0.0.1:9"), "is run itself"),
        (("run", "--grader", "reward:x"), "it must be a model that writes"),
        (("run", "--grader", "local:./nowhere"), "--grader: "),
        (("run", "--grader", "local:two"), "--grader local:two is a vision model"),
        (("run", "--grader", "gpt"), "--grader gpt needs a key"),
        (("run", "--grader", "local:grader", "--judge-url", "http://x"), "are for a served model"),
        (("run", "--judge-answers"), "--judge-answers is for a --grader that is a model"),
        (("run", "--split", "test"), "are for --prompts"),
        (("run", "run"), "named twice"),
        (("game.domain=text",), "name at least one RUN_OR_MODEL"),
        (("run", "text-run"), "evaluate them one by one"),
        (("run", "--name", "a/b"), "can't be a file's name"),
        (("run", "seed=3"), "seed is given as --seed"),
    ],
)
def test_what_does_not_go_together_is_refused(here: Path, words: tuple[str, ...], message: str) -> None:
    (here / "g.py").write_text("def g(queries, answers):\n    return [1.0 for _ in answers]\n")
    assert message in refused(*words)


def test_a_game_without_pictures_is_refused(here: Path) -> None:
    settings = resolve(recipe("lsp"), None, ("model.path=grader",))
    (here / "lsp").mkdir()
    (here / "lsp" / "config.yaml").write_text(settings.to_yaml())
    assert "plays lsp, and this is for game.kind=vision" in refused("lsp")


def test_the_self_grader_is_allowed_where_it_is_wanted(here: Path, rows: Path, server: ChatServer) -> None:
    words = ("text-run", "--prompts", rows, "--max-new-tokens", 6, "--judge-url", server.url, "--grader", "text-run")
    assert "no independent grader" in refused(*words)
    done(*words, "--self-grader")
