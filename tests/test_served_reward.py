"""A reward model behind a server, by a scripted one on loopback: what is sent, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripted import turn_of
from scripted_http import PROXIES, Answering, Listening
from sparring.http import is_loopback
from sparring.lm.base import SamplingParams
from sparring.rewards.base import Reward, RewardError
from sparring.rewards.preference import Reader
from sparring.rewards.served import API_KEY, LONGEST_WAIT, ServedPreference
from sparring.roles import Role
from sparring.types import Turn
from tiny_models import chat_tokenizer, save_tiny_reward

TOKENIZER = chat_tokenizer("llama3")
ROLE = Role("solver", "{{ query }}", SamplingParams(8))
Reply = Callable[["Handler", dict[str, Any]], None]


def score_of(ids: list[int]) -> float:
    """What the scripted server gives: a number that tells conversations apart."""
    return sum(ids) / 100 - len(ids)


class Handler(Answering):
    """Answers /v1/models, and /classify by the server's script, once that is used up with scores."""

    server: Server

    def answer(self, request: Any) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        if request is None:
            self.send(*self.server.models)
            return
        with self.server.lock:
            self.server.requests.append(request)
            reply = self.server.script.pop(0) if self.server.script else good
        reply(self, request)


class Server(Listening):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        self.models: tuple[int, Any] = (200, {"data": [{"id": "rm", "max_model_len": 64}]})
        self.script: list[Reply] = []
        self.requests: list[dict[str, Any]] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        super().__init__(Handler)


def good(handler: Handler, request: dict[str, Any]) -> None:
    handler.send(200, {"data": [item(i, score_of(ids)) for i, ids in enumerate(request["input"])]})


def item(index: int, *scores: float) -> dict[str, Any]:
    return {"index": index, "label": "LABEL_0", "probs": list(scores), "num_classes": len(scores)}


def status(code: int, body: Any = b"no", **headers: str) -> Reply:
    return lambda handler, request: handler.send(code, body, **headers)


def slow(handler: Handler, request: dict[str, Any]) -> None:
    handler.server.released.wait(30)
    good(handler, request)


def drops(handler: Handler, request: dict[str, Any]) -> None:
    handler.connection.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (API_KEY, *PROXIES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def reward_of() -> Iterator[Callable[..., Reward]]:
    """Makes a Reward over a server, and closes it."""
    made: list[Reward] = []

    def make(server: Server, **given: Any) -> Reward:
        made.append(Reward(ServedPreference(server.url, TOKENIZER, **{"backoff": 0.001, **given}), "served"))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


@pytest.fixture
def reward(server: Server, reward_of: Callable[..., Reward]) -> Reward:
    return reward_of(server)


def turns(*texts: str) -> list[Turn]:
    return [turn_of(ROLE, ROLE.prompt(query="q", info={"query_text": "Which?"}), text) for text in texts]


def ids_of(*texts: str) -> list[list[int]]:
    chats = [[{"role": "user", "content": "Which?"}, {"role": "assistant", "content": text}] for text in texts]
    return [list(ids) for ids in Reader(TOKENIZER, None).rows(chats).ids]


def scored(reward: Reward, *texts: str) -> list[float | None]:
    return reward(["q"] * len(texts), turns(*texts))


def test_ids_are_sent_and_logits_asked_for(server: Server, reward_of: Callable[..., Reward]) -> None:
    got = scored(reward_of(server), "a", "", "Jupiter is the largest")
    sent = ids_of("a", "", "Jupiter is the largest")
    assert server.requests == [{"model": "rm", "input": sent, "use_activation": False}]
    assert [path for path, _ in server.seen] == ["/v1/models", "/classify"]
    assert all(ids.count(TOKENIZER.bos_token_id) == 1 for ids in sent)
    assert got == [score_of(ids) for ids in sent]


def test_equal_conversations_are_sent_once(server: Server, reward_of: Callable[..., Reward]) -> None:
    got = scored(reward_of(server), "a", "b", "a", "a")
    assert [request["input"] for request in server.requests] == [ids_of("a", "b")]
    a, b = map(score_of, ids_of("a", "b"))
    assert got == [a, b, a, a]


def test_many_conversations_go_in_pieces_and_come_back_in_order(
    server: Server, reward_of: Callable[..., Reward]
) -> None:
    texts = [f"{i} {i * i}" for i in range(50)]
    assert scored(reward_of(server, concurrency=3), *texts) == [score_of(ids) for ids in ids_of(*texts)]
    assert sorted(len(request["input"]) for request in server.requests) == [2, 16, 16, 16]


def test_so_many_requests_at_once_and_no_more(server: Server, reward_of: Callable[..., Reward]) -> None:
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
        good(handler, request)

    server.script = [counted] * 4
    scored(reward_of(server, concurrency=2), *(f"{i}" for i in range(64)))
    assert max(most) == 2


def test_scores_out_of_order_are_put_in_order(server: Server, reward_of: Callable[..., Reward]) -> None:
    server.script = [status(200, {"data": [item(1, 1.0), item(0, 0.0), item(2, 2.0)]})]
    assert scored(reward_of(server), "a", "b", "c") == [0.0, 1.0, 2.0]


def test_over_long_conversations_are_not_sent(server: Server, reward_of: Callable[..., Reward]) -> None:
    exact, longer = "a " * 8, "a " * 9
    server.models = (200, {"data": [{"id": "rm", "max_model_len": len(ids_of(exact)[0])}]})
    reward = reward_of(server, max_tokens=1000)
    got = scored(reward, longer, exact, longer, "a")
    assert [score is None for score in got] == [True, False, True, False]
    assert [request["input"] for request in server.requests] == [ids_of(exact, "a")]
    assert reward.drain() == {"over_long": 0.5}
    assert scored(reward, longer) == [None]
    assert len(server.requests) == 1, "nothing to send, nothing sent"
    assert scored(reward_of(server, max_tokens=5), "a") == [None]


def test_what_the_model_takes_for_padding_is_not_sent_at_the_end(
    server: Server, reward_of: Callable[..., Reward]
) -> None:
    """transformers scores before it, vLLM would score at it."""
    eos = TOKENIZER.eos_token_id
    scored(reward_of(server, pad_token_id=eos), "a")
    (ids,) = ids_of("a")
    assert ids[-1] == eos
    assert server.requests[0]["input"] == [ids[:-1]]
    assert eos in ids[:-1], "only at the end"


def test_tokenizer_and_padding_come_from_the_models_folder(server: Server, tmp_path: Path) -> None:
    folder = save_tiny_reward(tmp_path / "rm", pad_token_id=TOKENIZER.eos_token_id)
    reward = Reward(ServedPreference.load(server.url, folder, model="rm"))
    scored(reward, "a")
    assert server.requests[0]["input"] == [ids_of("a")[0][:-1]]
    reward.close()


@pytest.mark.parametrize(
    "failure",
    [status(500), status(503, b"starting"), status(429), drops, slow],
    ids=["500", "503", "429", "dropped", "slow"],
)
def test_what_passes_is_tried_again(server: Server, reward_of: Callable[..., Reward], failure: Reply) -> None:
    server.script = [failure] * 2
    timeout = 0.5 if failure is slow else 60.0
    assert scored(reward_of(server, timeout=timeout), "a") == [score_of(ids_of("a")[0])]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (status(500, b"engine died"), "status 500: engine died"),
        (status(429), "status 429: no"),
        (slow, "no answer within 0.5 s"),
        (drops, "no connection (RemoteProtocolError: Server disconnected"),
    ],
    ids=["500", "429", "slow", "dropped"],
)
def test_what_does_not_pass_ends_with_all_that_helps(
    server: Server, reward_of: Callable[..., Reward], failure: Reply, cause: str
) -> None:
    server.script = [failure] * 9
    with pytest.raises(RewardError) as raised:
        scored(reward_of(server, timeout=0.5, retries=1), "a")
    assert len(server.requests) == 2
    for part in (server.url, cause, "2 attempts", "game.reward.url"):
        assert part in str(raised.value)


def test_a_server_that_drips_is_too_slow_as_well(server: Server, reward_of: Callable[..., Reward]) -> None:
    """Each byte comes in time, all of them don't."""

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
    with pytest.raises(RewardError, match=r"no answer within 0\.5 s; 1 attempts"):
        scored(reward_of(server, timeout=0.5, retries=0), "a")


def test_a_server_that_has_gone(reward_of: Callable[..., Reward]) -> None:
    server = Server()
    reward = reward_of(server, retries=1)
    server.stop()
    with pytest.raises(RewardError, match=r"no connection \(ConnectError: .*2 attempts") as raised:
        scored(reward, "a")
    assert isinstance(raised.value.__cause__.__cause__, httpx.ConnectError)


def test_pauses_grow_and_are_drawn(server: Server, reward_of: Callable[..., Reward], pauses: list[float]) -> None:
    server.script = [status(500)] * 5
    scored(reward_of(server, backoff=4.0), "a")
    assert len(set(pauses)) == 5
    assert all(0 <= pause <= 4 * 2**n for n, pause in enumerate(pauses))


@pytest.mark.parametrize(
    ("told", "least", "most"),
    [
        ("7", 7, 7),
        ("2.5", 2.5, 2.5),
        ("86400", LONGEST_WAIT, LONGEST_WAIT),
        (format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), LONGEST_WAIT, LONGEST_WAIT),
        (format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0, 0.001),
        ("soon", 0, 0.001),
        ("-5", 0, 0.001),
        ("nan", 0, 0.001),
    ],
    # Named here: a date in a test's name would be another one in every process.
    ids=["7", "2.5", "86400", "tomorrow", "yesterday", "soon", "-5", "nan"],
)
def test_retry_after_is_kept_to(
    server: Server, reward_of: Callable[..., Reward], pauses: list[float], told: str, least: float, most: float
) -> None:
    server.script = [status(429, Retry_After=told)]
    assert scored(reward_of(server), "a") == [score_of(ids_of("a")[0])]
    assert len(pauses) == 1
    assert least <= pauses[0] <= most


@pytest.mark.parametrize("code", [400, 401, 404, 422, 301])
def test_a_refusal_is_final(server: Server, reward_of: Callable[..., Reward], code: int) -> None:
    server.script = [status(code, {"error": {"message": "Token id 600 is out of vocabulary"}})]
    with pytest.raises(RewardError, match=f"status {code}.*out of vocabulary.*game.reward.url"):
        scored(reward_of(server), "a")
    assert len(server.requests) == 1


def test_a_server_of_another_kind_of_model_is_hinted_at(server: Server, reward_of: Callable[..., Reward]) -> None:
    server.script = [status(404, {"detail": "Not Found"})]
    with pytest.raises(RewardError, match=r"does it run with --runner pooling\?"):
        scored(reward_of(server), "a")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "an answer without one score a conversation: '<html>'"),
        (b"", "an answer without one score"),
        (b"\xff\xfe{", "an answer without one score"),
        ([1], "an answer without one score"),
        ({"error": "x"}, "an answer without one score"),
        ({"data": [{"index": 0, "probs": None}]}, "an answer without one score"),
        ({"data": [item(0, 0.1, 0.9), item(1, 0.5, 0.5)]}, "an answer without one score"),
        ({"data": [item(0, 10**400), item(1, 1.0)]}, "an answer without one score"),
        ({"data": [item(0, 1.0)]}, "1 scores for 2 conversations"),
        ({"data": [item(0, 1.0), item(0, 2.0)]}, "2 scores for 2 conversations"),
        ({"data": [item(i, 1.0) for i in range(3)]}, "3 scores for 2 conversations"),
    ],
)
def test_an_answer_without_scores_is_named(
    server: Server, reward_of: Callable[..., Reward], body: Any, message: str
) -> None:
    server.script = [status(200, body)]
    with pytest.raises(RewardError) as raised:
        scored(reward_of(server), "a", "b")
    assert message in str(raised.value)
    assert server.url in str(raised.value)
    assert len(server.requests) == 1


def test_a_score_that_is_not_finite_is_named_by_the_reward(server: Server, reward_of: Callable[..., Reward]) -> None:
    server.script = [status(200, b'{"data": [{"index": 0, "probs": [NaN]}]}')]
    with pytest.raises(RewardError, match=r"'served' returned nan for answer 0 \('a'\)"):
        scored(reward_of(server), "a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["index", "probs", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.lists(JSON, max_size=3).map(lambda value: json.dumps({"data": value}).encode())
    | JSON.map(lambda value: json.dumps({"data": [{"index": 0, "probs": value}]}).encode())
)
def test_whatever_a_server_answers_is_a_score_or_a_named_error(server: Server, reward: Reward, body: bytes) -> None:
    server.script = [status(200, body)]
    try:
        (score,) = scored(reward, "a")
    except RewardError as error:
        assert "served" in str(error) or "game.reward.url" in str(error)
    else:
        assert isinstance(score, float)


def test_one_refusal_ends_what_else_is_under_way(server: Server) -> None:
    server.script = [slow, status(400), slow]
    served = ServedPreference(server.url, TOKENIZER)
    chats = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": f"{i}"}] for i in range(40)]

    async def ask() -> int:
        with pytest.raises(RewardError, match="status 400"):
            await served([""] * 40, [""] * 40, chats)
        left = len(asyncio.all_tasks())
        await served.close()
        return left

    assert asyncio.run(ask()) == 1, "this one"


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((404, {"detail": "Not Found"}), "status 404"),
        ((401, {"error": "Unauthorized"}), "status 401 (its key is read from SPARRING_REWARD_API_KEY)"),
        ((503, b"starting"), "status 503: starting"),
        ((200, b"<html>It works!</html>"), "no vLLM server: /v1/models gave '<html>It works!"),
        ((200, {"data": "x"}), "no vLLM server"),
        ((200, [1]), "no vLLM server"),
        ((200, {"data": [{"id": "chat"}, {"id": "lora"}]}), "'rm' is not served there; served: chat, lora"),
        ((200, {"data": []}), "'rm' is not served there; served: nothing"),
    ],
)
def test_a_wrong_server_is_named_at_once(server: Server, models: tuple[int, Any], message: str) -> None:
    server.models = models
    with pytest.raises(RewardError) as raised:
        ServedPreference(server.url, TOKENIZER, model="rm")
    assert message in str(raised.value)
    assert f"the reward model's server at {server.url}" in str(raised.value)
    assert "check game.reward.url" in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "served"),
    [
        (None, "judge"),
        ("judge", "judge"),
        ("/here/reward-3b", "judge"),
        ("owner/reward-3b", "judge"),
        ("reward-3b/", "judge"),
        ("owner/reward-8b", "owner/reward-8b"),
        ("/here/reward-8b", "owner/reward-8b"),
    ],
)
def test_a_model_is_known_by_its_name_or_where_it_is_from(
    server: Server, reward_of: Callable[..., Reward], asked: str | None, served: str
) -> None:
    server.models = (200, {"data": [{"id": "judge", "root": "/there/reward-3b"}, {"id": "owner/reward-8b"}]})
    scored(reward_of(server, model=asked), "a")
    assert server.requests[0]["model"] == served


def test_no_model_at_all_is_named(server: Server) -> None:
    server.models = (200, {"data": []})
    with pytest.raises(RewardError, match=r"'a model' is not served there; served: nothing"):
        ServedPreference(server.url, TOKENIZER)


def test_no_server_is_named_at_once() -> None:
    server = Server()
    server.stop()
    with pytest.raises(
        RewardError, match=r"server at http://127.0.0.1:\d+: no connection \(ConnectError.*game.reward.url"
    ):
        ServedPreference(server.url, TOKENIZER)


def test_a_server_that_hangs_is_named_at_the_start(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.server.released.wait(30))
    with pytest.raises(RewardError, match="no connection \\(ReadTimeout"):
        ServedPreference(server.url, TOKENIZER, timeout=0.1)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "reads http://host:port, not 'localhost:8000'"),
        ("ftp://host", "reads http://host:port"),
        ("http://", "reads http://host:port"),
        ("http://host:port", "game.reward.url is no address"),
        ("http://me:secret@host:8000", "names a user; put the server's key into the environment as SPARRING"),
    ],
)
def test_an_address_that_is_none_is_named(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"game\.reward\.url") as raised:
        ServedPreference(url, TOKENIZER)
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("ending", ["/", "/v1", "/v1/", "/prefix"])
def test_addresses_as_they_are_pasted(server: Server, ending: str) -> None:
    served = ServedPreference(server.url + ending, TOKENIZER)
    prefix = "/prefix" if ending == "/prefix" else ""
    assert server.seen[-1][0] == f"{prefix}/v1/models"
    reward = Reward(served)
    scored(reward, "a")
    assert server.seen[-1][0] == f"{prefix}/classify"
    reward.close()


def test_the_environments_proxy_is_not_for_this_machine(
    server: Server, reward_of: Callable[..., Reward], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert scored(reward_of(server), "a") == [score_of(ids_of("a")[0])]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", True),
        ("rm.localhost", True),
        ("10.0.0.7", False),
        ("example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_which_hosts_are_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_the_key_is_sent_and_told_nowhere(
    server: Server,
    reward_of: Callable[..., Reward],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(API_KEY, " s3cret\n")
    server.script = [status(500), status(401)]
    reward = reward_of(server)
    with caplog.at_level(logging.DEBUG), pytest.raises(RewardError) as raised:
        scored(reward, "a")
    assert [headers["Authorization"] for _, headers in server.seen] == ["Bearer s3cret"] * 3
    assert caplog.records
    told = [caplog.text, str(raised.value), repr(raised.value.__cause__), repr(reward.state())]
    told.append(repr(vars(reward._function)))
    assert not [text for text in told if "s3cret" in text]


def test_no_key_no_header(server: Server, reward_of: Callable[..., Reward]) -> None:
    scored(reward_of(server), "a")
    assert all("Authorization" not in headers for _, headers in server.seen)


@pytest.mark.parametrize("key", ["s3cr\net", "s3crét"])
def test_a_key_that_cannot_be_sent_is_named_but_not_told(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(API_KEY, key)
    with pytest.raises(ValueError, match=API_KEY) as raised:
        ServedPreference("http://127.0.0.1:1", TOKENIZER)
    assert "s3cr" not in str(raised.value)
