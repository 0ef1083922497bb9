"""A judge behind an endpoint, by a scripted one on loopback: what is sent, what goes wrong, what is never lost."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripted_chat import ChatServer, Handler, Reply, answers, completion, drops, slow, status, weighted
from scripted_http import PROXIES
from sparring.evaluation.judges.base import Cost, JudgeError, Pair, Verdict
from sparring.evaluation.judges.cache import VerdictCache
from sparring.evaluation.judges.endpoint import LONGEST_WAIT, OPENAI, EndpointJudge
from sparring.evaluation.judges.frugal import BudgetError, FrugalJudge
from sparring.evaluation.judges.styles import Ranked, Weighted
from sparring.evaluation.judges.templates import Template

KEY, SECRET = "JUDGE_TEST_KEY", "sk-a-secret-that-is-nobodys-business"
PAIR = Pair("Which planet is the largest?", "Jupiter", "Jupiter it is", key="17")
PLAIN = Template.parse("{instruction}|{output_1}|{output_2}", "plain")
FIRST = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", KEY, *PROXIES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    running = ChatServer()
    yield running
    running.stop()


Make = Callable[..., EndpointJudge]


@pytest.fixture
def judge_of() -> Iterator[Make]:
    """Makes judges, and closes them."""
    made: list[EndpointJudge] = []

    def make(server: ChatServer | str, style: Any = None, **given: Any) -> EndpointJudge:
        url = server if isinstance(server, str) else server.url
        made.append(EndpointJudge("gpt-x", style or Weighted(), **{"url": url, "backoff": 0.001, **given}))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


@pytest.fixture
def hasty(server: ChatServer, judge_of: Make) -> EndpointJudge:
    """Asks once and no more."""
    return judge_of(server, Ranked(), retries=0)


def pairs(count: int) -> list[Pair]:
    """Different pairs whose verdicts differ as well."""
    return [Pair(f"question {n}", "word " * (n + 1), "word " * (2 * n + 2), key=f"{n}") for n in range(count)]


def shares(asked: list[Pair]) -> list[float]:
    """What the scripted server prefers."""
    counts = [(len(pair.first.split()), len(pair.second.split())) for pair in asked]
    return [second / (first + second) for first, second in counts]


def preferences(verdicts: list[Verdict]) -> list[float | None]:
    return [verdict.preference for verdict in verdicts]


# What is sent and read


def test_weighted_asks_for_one_token_and_its_alternatives(server: ChatServer, judge_of: Make) -> None:
    (verdict,) = judge_of(server).judge([PAIR])
    assert verdict.preference == pytest.approx(0.75)
    assert (verdict.text, verdict.prompt_tokens, verdict.completion_tokens) == ("M", 7, 1)
    (request,) = server.requests
    (message,) = request.pop("messages")
    assert request == {"model": "gpt-x", "max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": 5}
    assert message["role"] == "user"
    assert all(text in message["content"] for text in (PAIR.instruction, PAIR.first, PAIR.second))
    ((path, headers),) = server.seen
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers


def test_ranked_asks_for_a_list(server: ChatServer, judge_of: Make) -> None:
    server.script = [answers(completion(FIRST)), answers(completion("the first")), answers(completion(None))]
    verdicts = judge_of(server, Ranked(), concurrency=1).judge(pairs(3))
    assert verdicts == [Verdict(0.0, FIRST, 7, 1), Verdict(None, "the first", 7, 1), Verdict(None, "", 7, 1)]
    assert {name: server.requests[0][name] for name in ("max_tokens", "temperature")} == {
        "max_tokens": 100,
        "temperature": 0.0,
    }
    assert "logprobs" not in server.requests[0]


def test_more_fields_replace_and_remove(server: ChatServer, judge_of: Make) -> None:
    server.usual = answers(completion(FIRST))
    extra = {"max_tokens": None, "max_completion_tokens": 50, "chat_template_kwargs": {"enable_thinking": False}}
    judge_of(server, Ranked(), extra=extra, template=PLAIN).judge([Pair("i {x}", "a", "\ud800")])
    assert server.requests == [
        {
            "model": "gpt-x",
            "messages": [{"role": "user", "content": "i {x}|a|\ud800"}],
            "temperature": 0.0,
            "max_completion_tokens": 50,
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ]


def test_a_name_that_is_not_listed_has_probability_0(server: ChatServer, judge_of: Make) -> None:
    replies = [weighted(M=0.2, x=0.5), weighted(m=0.2, x=0.5), weighted(x=0.9)]
    server.script = [answers(reply) for reply in replies]
    assert preferences(judge_of(server, concurrency=1).judge(pairs(3))) == [1.0, 0.0, None]


@pytest.mark.parametrize("text", [None, ""])
def test_a_refusal_without_a_token_is_unparsed(server: ChatServer, judge_of: Make, text: str | None) -> None:
    server.script = [answers(completion(text, logprobs)) for logprobs in (None, {"content": None}, {"content": []})]
    assert preferences(judge_of(server, concurrency=1).judge(pairs(3))) == [None] * 3


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"content": [{"token": "M", "top_logprobs": []}]}])
def test_an_endpoint_without_log_probabilities_is_named(server: ChatServer, judge_of: Make, logprobs: Any) -> None:
    server.script = [answers(completion("M", logprobs))]
    with pytest.raises(JudgeError, match=r"gives no log-probabilities.*--judge-style ranked") as raised:
        judge_of(server).judge([PAIR])
    assert server.url in str(raised.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("/api/v1", "/api/v1/chat/completions"),
    ],
)
def test_addresses_as_they_are_pasted(server: ChatServer, judge_of: Make, suffix: str, path: str) -> None:
    judge_of(server.url + suffix).judge([PAIR])
    assert server.seen[0][0] == path


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "--judge-url reads http://host:port"),
        ("ftp://host", "--judge-url reads http://host:port"),
        ("http://me:secret@host", "--judge-url names a user"),
        ("https://host/v1?api-version=1", "--judge-url is an address alone"),
    ],
)
def test_what_is_no_address_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        EndpointJudge("m", Weighted(), url=url)
    assert "secret" not in str(raised.value)


# Many at once


def test_many_pairs_come_back_in_order(server: ChatServer, judge_of: Make) -> None:
    asked = pairs(60)
    told: dict[int, Verdict] = {}
    verdicts = judge_of(server, concurrency=7).judge(asked, lambda place, verdict: told.update({place: verdict}))
    assert preferences(verdicts) == pytest.approx(shares(asked))
    assert told == dict(enumerate(verdicts))
    assert len(server.requests) == 60


def test_so_many_requests_at_once_and_no_more(server: ChatServer, judge_of: Make) -> None:
    both = threading.Barrier(2)
    under_way: list[int] = []
    most: list[int] = []

    def counted(handler: Handler, request: dict[str, Any]) -> None:
        with handler.server.lock:
            under_way.append(1)
            most.append(len(under_way))
        both.wait(30)
        handler.server.released.wait(0.2)  # time for a third to come
        with handler.server.lock:
            under_way.pop()
        handler.send(200, weighted(m=1.0))

    server.usual = counted
    judge_of(server, concurrency=2).judge(pairs(8))
    assert max(most) == 2


# What passes, and what doesn't


@pytest.mark.parametrize(
    "failure",
    [
        status(500),
        status(503, b"starting"),
        status(429),
        status(408),
        drops,
        slow,
        answers(b"<html>"),
        answers(b'{"choices": [{"mess'),
        answers({"choices": []}),
    ],
    ids=["500", "503", "429", "408", "dropped", "hung", "html", "cut-off", "empty"],
)
def test_what_passes_is_tried_again(server: ChatServer, judge_of: Make, failure: Reply) -> None:
    server.script = [failure] * 2
    timeout = 0.5 if failure is slow else 60.0
    assert preferences(judge_of(server, timeout=timeout).judge([PAIR])) == [pytest.approx(0.75)]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (status(500, b"engine died"), "status 500: engine died"),
        (status(429), "status 429: no"),
        (slow, "no answer within 0.5 s"),
        (drops, "no connection (RemoteProtocolError: Server disconnected"),
        (answers(b"<html>"), "an answer that is no chat completion: '<html>'"),
        (status(200, b"xx", Content_Encoding="gzip"), "no connection (DecodingError"),
    ],
    ids=["500", "429", "hung", "dropped", "html", "gzip"],
)
def test_what_does_not_pass_ends_with_all_that_helps(
    server: ChatServer, judge_of: Make, failure: Reply, cause: str
) -> None:
    server.script = [failure] * 9
    with pytest.raises(JudgeError) as raised:
        judge_of(server, timeout=0.5, retries=1).judge([PAIR])
    assert len(server.requests) == 2
    for part in (server.url, "pair 17", cause, "2 attempts", "--judge-url"):
        assert part in str(raised.value)


def test_a_server_that_drips_is_too_slow_as_well(server: ChatServer, judge_of: Make) -> None:
    def drips(handler: Handler, request: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            while not handler.server.released.wait(0.02):
                handler.wfile.write(b" ")
        except OSError:
            pass

    server.script = [drips]
    with pytest.raises(JudgeError, match=r"no answer within 0\.5 s; 1 attempts"):
        judge_of(server, timeout=0.5, retries=0).judge([PAIR])


def test_nobody_there(judge_of: Make) -> None:
    server = ChatServer()
    judge = judge_of(server, retries=1)
    server.stop()
    with pytest.raises(JudgeError, match=r"no connection \(ConnectError.*2 attempts were made; check --judge-url"):
        judge.judge([PAIR])


@pytest.mark.parametrize(
    ("told", "least", "most"),
    [
        ("7", 7, 7),
        ("86400", LONGEST_WAIT, LONGEST_WAIT),
        (format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), LONGEST_WAIT, LONGEST_WAIT),
        ("soon", 0, 0.001),
    ],
    ids=["7", "86400", "tomorrow", "soon"],
)
def test_retry_after_is_kept_to(
    server: ChatServer, judge_of: Make, pauses: list[float], told: str, least: float, most: float
) -> None:
    server.script = [status(429, Retry_After=told)]
    judge_of(server).judge([PAIR])
    (pause,) = pauses
    assert least <= pause <= most


def test_pauses_grow_and_are_drawn(server: ChatServer, judge_of: Make, pauses: list[float]) -> None:
    server.script = [status(500)] * 5
    judge_of(server, backoff=4.0).judge([PAIR])
    assert len(set(pauses)) == 5
    assert all(0 <= pause <= 4 * 2**n for n, pause in enumerate(pauses))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (status(400, {"error": {"message": "bad field"}}), r"status 400: .*bad field.*check --judge-url"),
        (status(400, {"error": {"message": "logprobs is not supported"}}), "take --judge-style ranked"),
        (status(401, {"error": {"message": "Incorrect API key: sk-a***ess"}}), "wants a key.*with --judge-key"),
        (status(403), "status 403: no"),
        (
            status(404, {"error": {"message": "The model `gpt-x` does not exist"}}),
            "'gpt-x' is not there.*--judge",
        ),
        (status(404, {"detail": "Not Found"}), "status 404.*check --judge-url"),
        (status(301, Location="http://elsewhere.invalid"), "status 301"),
        (status(429, {"error": {"code": "insufficient_quota"}}), "no credit left, status 429"),
    ],
    ids=["400", "logprobs", "401", "403", "model", "path", "301", "quota"],
)
def test_a_refusal_is_final(server: ChatServer, judge_of: Make, reply: Reply, message: str) -> None:
    server.script = [reply]
    with pytest.raises(JudgeError, match=message) as raised:
        judge_of(server).judge([PAIR])
    assert server.url in str(raised.value)
    assert "sk-a***" not in str(raised.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "message",
    ["This model's maximum context length is 64 tokens. However, ...", "context_length_exceeded", "content_filter"],
)
def test_a_pair_that_can_not_be_judged_is_unparsed(server: ChatServer, judge_of: Make, message: str) -> None:
    server.script = [status(400, {"error": {"message": message}})]
    first, second = judge_of(server, concurrency=1).judge(pairs(2))
    assert first.preference is None
    assert message in first.text
    assert second.preference == pytest.approx(shares(pairs(2))[1])


def test_one_refusal_ends_what_else_is_under_way(server: ChatServer, judge_of: Make) -> None:
    server.script = [slow, status(400), slow]
    with pytest.raises(JudgeError, match="status 400"):
        judge_of(server, concurrency=3).judge(pairs(40))
    assert len(server.requests) <= 4


COMPLETION = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "usage", "prompt_tokens", "logprobs"]), inner
        )
    ),
    max_leaves=10,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=40)
    | COMPLETION.map(lambda value: json.dumps(value).encode())
    | COMPLETION.map(lambda value: json.dumps({"choices": [{"message": value}]}).encode())
    | COMPLETION.map(lambda value: json.dumps({**completion(FIRST), "usage": value}).encode())
)
def test_whatever_an_endpoint_answers_is_a_verdict_or_a_named_error(
    server: ChatServer, hasty: EndpointJudge, body: bytes
) -> None:
    server.script = [answers(body)]
    try:
        (verdict,) = hasty.judge([PAIR])
    except JudgeError as error:
        assert "--judge-url" in str(error)
    else:
        assert verdict.preference in {None, 0.0}


# The key


@pytest.fixture
def leaks(caplog: pytest.LogCaptureFixture) -> Callable[..., bool]:
    """Whether the key is in the log, in an error and its causes, or in files."""
    caplog.set_level(logging.DEBUG)

    def told(error: BaseException | None = None, *files: Path) -> bool:
        texts = [caplog.text]
        while error is not None:
            texts.append(f"{error!s} {error!r}")
            error = error.__cause__ or error.__context__
        return any(SECRET in text for text in texts) or any(SECRET.encode() in file.read_bytes() for file in files)

    return told


def test_the_key_is_sent_and_told_nowhere(
    server: ChatServer,
    judge_of: Make,
    monkeypatch: pytest.MonkeyPatch,
    leaks: Callable[..., bool],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(KEY, f"{SECRET}\n")
    judge = judge_of(server, Ranked(), key=KEY, retries=0)
    frugal = FrugalJudge(judge, VerdictCache(tmp_path / "c"))
    server.script = [answers(completion(f"your key is {SECRET}"))]
    (verdict,) = frugal.judge([PAIR])
    assert server.seen[0][1]["Authorization"] == f"Bearer {SECRET}"
    assert verdict.text == f"your key is [{KEY}]"
    assert SECRET not in f"{verdict} {judge.identity} {judge.__dict__}"
    assert not leaks(None, *tmp_path.iterdir())
    echoes = [status(code, f"{'x' * 290}{SECRET}".encode()) for code in (400, 401, 403, 404, 500)]
    for reply in [*echoes, answers(SECRET.encode()), answers({"choices": SECRET})]:
        server.script = [reply]
        with pytest.raises(JudgeError) as raised:
            judge.judge([PAIR])
        assert not leaks(raised.value)
        assert SECRET[:8] not in str(raised.value)
    frugal._cache.close()  # pyright: ignore


def test_401_names_the_variable(server: ChatServer, judge_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)
    server.script = [status(401)]
    with pytest.raises(JudgeError, match=f"doesn't take the key in the environment variable {KEY}"):
        judge_of(server, key=KEY).judge([PAIR])


def test_a_variable_without_a_key_is_named_before_anything_is_asked(server: ChatServer, judge_of: Make) -> None:
    with pytest.raises(JudgeError, match=f"the environment variable {KEY} is empty; --judge-key names another"):
        judge_of(server, key=KEY).judge([PAIR])
    with pytest.raises(JudgeError, match="the environment variable OPENAI_API_KEY is empty"):
        judge_of(OPENAI).judge([PAIR])
    assert server.requests == []
    assert judge_of(OPENAI).estimate([PAIR]).calls == 1, "what it costs is known without a key"


@pytest.mark.parametrize(
    "url", ["http://api.openai.com/v1", "https://api.openai.com.evil.invalid/v1", "http://[::1]:1"]
)
def test_openais_key_is_for_openai_alone(url: str, judge_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert "Authorization" not in judge_of(url)._client.headers
    for own in (OPENAI, "https://api.openai.com", f"{OPENAI}/"):
        assert judge_of(own)._client.headers["Authorization"] == f"Bearer {SECRET}"


def test_a_key_that_is_none_is_not_told(judge_of: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-\x07ä")
    with pytest.raises(ValueError, match=f"{KEY} holds characters that no key has") as raised:
        judge_of("http://127.0.0.1:1", key=KEY)
    assert "sk-" not in str(raised.value)


# Cost, and what is lost


def test_the_cost_is_known_before_and_bounded(server: ChatServer, judge_of: Make, tmp_path: Path) -> None:
    server.usual = answers(weighted(m=1.0))
    judge = FrugalJudge(judge_of(server, template=PLAIN), VerdictCache(tmp_path / "c"), max_calls=3)
    asked = [Pair("i" * 40, "a" * 20, "b" * n) for n in range(1, 5)]
    assert judge.estimate(asked) == Cost(4, sum(4 + -(-(62 + n) // 4) for n in range(1, 5)), 4)
    with pytest.raises(BudgetError, match="4 calls would be made"):
        judge.judge(asked)
    assert server.requests == []
    judge.judge(asked[:3])
    judge.judge(asked)
    assert len(server.requests) == 4, "what is kept costs nothing"
    judge.close()


def test_identity_is_all_that_shapes_a_verdict_and_no_address(judge_of: Make) -> None:
    url = "http://127.0.0.1:1"
    judges = [
        judge_of(url),
        judge_of(url, Ranked()),
        judge_of(url, Ranked(max_tokens=200)),
        judge_of(url, template=PLAIN),
        judge_of(url, extra={"seed": 1}),
    ]
    assert len({judge.identity for judge in judges}) == 5
    assert judge_of("http://127.0.0.2:2/other", timeout=1.0, key=KEY).identity == judges[0].identity


SCRIPT = """
import sys
from sparring.evaluation.judges.base import Pair
from sparring.evaluation.judges.cache import VerdictCache
from sparring.evaluation.judges.endpoint import EndpointJudge
from sparring.evaluation.judges.frugal import FrugalJudge
from sparring.evaluation.judges.styles import Weighted
from test_judges_endpoint import pairs

judge = EndpointJudge("gpt-x", Weighted(), url=sys.argv[1], concurrency=int(sys.argv[3]), backoff=0.001)
FrugalJudge(judge, VerdictCache(sys.argv[2])).judge(pairs(12))
"""


def test_killed_half_way_and_asked_nothing_twice(server: ChatServer, judge_of: Make, tmp_path: Path) -> None:
    at_once, answered = 2, 5
    usual = server.usual
    held = threading.Semaphore(0)

    def then_hangs(handler: Handler, request: dict[str, Any]) -> None:
        held.release()
        slow(handler, request)

    server.script = [usual] * answered + [then_hangs] * at_once
    # Under two at once, the last request is made only after the verdicts before it are kept.
    cache = tmp_path / "verdicts.sqlite"
    command = [sys.executable, "-c", SCRIPT, server.url, str(cache), str(at_once)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent)
    assert all(held.acquire(timeout=60) for _ in range(at_once))
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    interrupted = server.asked()[answered:]
    assert len(interrupted) == at_once
    judge = FrugalJudge(judge_of(server), VerdictCache(cache))
    assert judge.estimate(pairs(12)) == Cost(7, judge.estimate(pairs(12)).prompt_tokens, 7, saved=answered)
    assert preferences(judge.judge(pairs(12))) == pytest.approx(shares(pairs(12)))
    times = Counter(server.asked())
    assert len(times) == 12
    assert {text: count for text, count in times.items() if count > 1} == dict.fromkeys(interrupted, 2)
    judge.judge(pairs(12))
    assert len(server.requests) == 12 + at_once
    judge.close()


def test_a_failure_half_way_keeps_what_was_answered(server: ChatServer, judge_of: Make, tmp_path: Path) -> None:
    server.script = [server.usual] * 5 + [status(400)]
    judge = FrugalJudge(judge_of(server, concurrency=1), VerdictCache(tmp_path / "c"))
    with pytest.raises(JudgeError, match="pair 5"):
        judge.judge(pairs(12))
    assert judge.estimate(pairs(12)).calls == 7
    assert preferences(judge.judge(pairs(12))) == pytest.approx(shares(pairs(12)))
    assert len(server.requests) == 13
    judge.close()


def test_a_cache_that_can_not_be_written_ends_the_judging(server: ChatServer, judge_of: Make, tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "c")
    judge = FrugalJudge(judge_of(server, concurrency=1), cache)
    cache._file.execute("DROP TABLE verdicts")
    cache._file.execute("CREATE TABLE verdicts (x)")
    with pytest.raises(JudgeError, match="--judge-cache"):
        judge.judge(pairs(12))
    assert len(server.requests) <= 1
    judge.close()


def test_a_model_that_is_not_there_is_told_by_its_option(server: ChatServer, judge_of: Make) -> None:
    for more, option in (({}, "--judge"), ({"option": "--grader"}, "--grader")):
        server.script = [status(404, {"error": {"message": "The model `gpt-x` does not exist"}})]
        with pytest.raises(JudgeError, match=rf"the model 'gpt-x' is not there .*; check {option};"):
            judge_of(server, Ranked(), **more).judge(pairs(1))
