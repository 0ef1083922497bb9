"""The report served while a run trains: a real server on loopback, asked over HTTP and by a real browser."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from chromium import chromium_fixture  # noqa: F401 - the fixture "chromium"
from sparring.cli_report import report
from sparring.console import Commands
from sparring.report import live
from sparring.report.live import fingerprint, followed, open_server, serve
from sparring.report.page import write_report

main = Commands(name="sparring", commands=[report])
PLAIN = (
    "<!doctype html><html><head>"
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:">'
    "</head><body><p>{}</p></body></html>"
)

# A background shell hands on an ignored SIGINT, which Python then leaves ignored.
SERVE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from sparring.cli_report import report; report()"
)


@pytest.fixture(autouse=True)
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are made as often as they are asked for."""
    monkeypatch.setattr(live, "REST", 0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two steps that goes on."""
    folder = tmp_path / "lsp"
    (folder / "turns").mkdir(parents=True)
    (folder / "config.yaml").write_text("recipe: lsp\n")
    for number in (1, 2):
        step(folder, number)
    return folder


def step(run: Path, number: int) -> None:
    """One more step, its turns first, as a trainer leaves it."""
    rows = [
        {"step": number, "index": 0, "parent": -1, "role": "challenger", "prompt": "ask", "text": f"query {number}",
         "payoff": 0.5, "parts": '{"value": 0.5}', "info": '{"query": {}}'},
        {"step": number, "index": 1, "parent": 0, "role": "solver", "prompt": "answer", "text": f"answer {number}",
         "payoff": 1.0, "parts": '{"reward": 1.0}', "info": "{}"},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), run / "turns" / f"step-{number:06d}.parquet")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": number, "game/V": 0.5, "kl/solver": 0.1, "seconds/step": 1.0}) + "\n")


@dataclass
class Served:
    """A server under test: what it said, and how to ask it."""

    server: live.Server
    said: list[str]

    def get(self, path: str = "/", **headers: str) -> httpx.Response:
        return self.ask("GET", path, **headers)

    def ask(self, method: str, path: str, **headers: str) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.request(method, self.server.address.rstrip("/") + path, headers=headers)

    def news(self) -> dict[str, Any]:
        return self.get("/version").json()


@contextmanager
def served(*runs: Path, make: Callable[[Sequence[Path]], str] | None = None, every: float = 0.2) -> Iterator[Served]:
    said: list[str] = []
    with open_server(runs, host="127.0.0.1", port=0, every=every, say=said.append, make=make) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Served(server, said)
        finally:
            server.shutdown()
            thread.join()


def shown(html: str) -> dict[str, Any]:
    """What the script of a served page begins with."""
    found = re.search(r'<meta name="sparring-live" content="([^"]*)">', html)
    assert found
    return json.loads(unescape(found[1]))


def policy(html: str) -> dict[str, str]:
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert found
    return {name: rest.strip() for name, _, rest in (rule.strip().partition(" ") for rule in found[1].split(";"))}


# --- the page ----------------------------------------------------------------------------------------


def test_a_new_step_changes_the_version_and_the_page(run: Path) -> None:
    with served(run) as site:
        first = site.get()
        assert first.status_code == 200
        assert "up to step 2" in first.text
        before = site.news()
        assert shown(first.text)["version"] == before["version"]
        step(run, 3)
        assert site.news()["version"] != before["version"]
        assert "up to step 3" in site.get().text


def test_a_page_is_made_only_where_a_file_changed(run: Path) -> None:
    made: list[int] = []

    def make(runs: Sequence[Path]) -> str:
        made.append(1)
        return PLAIN.format(len(made))

    with served(run, make=make) as site:
        assert ["<p>1</p>" in site.get().text for _ in range(3)] == [True] * 3
        (run / "model").mkdir()
        (run / "model" / "model.safetensors").write_bytes(b"weights")
        (run / "report.html").write_text("a page")
        (run / ".metrics.jsonl.tmp-1").write_text("half")
        assert "<p>1</p>" in site.get().text
        (run / "evaluations").mkdir()
        (run / "evaluations" / "gsm8k.json").write_text("{}")
        assert "<p>2</p>" in site.get().text


def test_a_slow_page_leaves_the_processor_to_the_trainer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "REST", 1e9)
    with served(run, make=lambda _: PLAIN.format(sum(range(1_000_000)))) as site:
        version = shown(site.get().text)["version"]
        step(run, 3)
        assert site.news()["version"] == version
        assert shown(site.get().text)["version"] != version  # who asks for it has it at once


def test_the_fingerprint_sees_files_written_and_gone(run: Path) -> None:
    seen = {fingerprint([run])}
    step(run, 3)
    seen.add(fingerprint([run]))
    (run / "turns" / "step-000003.parquet").unlink()
    seen.add(fingerprint([run]))
    (run / "lineage.json").write_text("{}")
    seen.add(fingerprint([run]))
    assert len(seen) == 4
    assert fingerprint([run, run.parent / "none"]) == fingerprint([run])


def test_only_the_served_page_may_ask_its_server(run: Path) -> None:
    written = write_report([run], run.parent / "page.html").read_text()
    assert "sparring-live" not in written
    assert "connect-src" not in policy(written)
    with served(run) as site:
        html = site.get().text
    rules = policy(html)
    assert rules["connect-src"] == "'self'"
    assert rules["default-src"] == "'none'"
    assert set(policy(written).get("script-src", "").split()) < set(rules["script-src"].split())
    assert "unsafe-inline" not in rules["script-src"]
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    assert script == live._SCRIPT
    assert html.count(live._SCRIPT_HASH) == 1


def test_what_the_script_begins_with_can_not_leave_its_attribute() -> None:
    attack = {"problem": "\"'><script>alert(1)</script>\\1"}
    html = followed(PLAIN.format("page"), attack)
    assert "<script>alert" not in html
    assert shown(html) == attack


def test_the_end_of_all_runs_is_told(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with served(run, other, make=lambda _: PLAIN.format("")) as site:
        assert not site.news()["ended"]
        for folder in (run, other):
            assert not site.news()["ended"]
            (folder / "lineage.json").write_text(json.dumps({"stages": [{"results": {"steps": 2}}]}))
        assert site.news()["ended"]
        assert 0 <= site.news()["quiet"] < 600
        for damaged in ("", "[]", '{"stages": []}', '{"stages": [3]}'):
            (run / "lineage.json").write_text(damaged)
            assert not site.news()["ended"]


# --- what goes wrong ---------------------------------------------------------------------------------


def test_a_page_that_can_not_be_made_is_told_and_tried_again(run: Path) -> None:
    trouble: list[Exception | None] = [ValueError("<b>torn</b>"), ValueError("<b>torn</b>"), None, KeyError("x"), None]

    def make(runs: Sequence[Path]) -> str:
        if error := trouble.pop(0):
            raise error
        return PLAIN.format("whole")

    with served(run, make=make) as site:
        for _ in range(2):
            html = site.get().text
            assert "<p>&lt;b&gt;torn&lt;/b&gt;</p>" in html
            assert shown(html)["problem"] == "<b>torn</b>"
            assert shown(html)["version"] != site.news()["version"]  # an open page asks again
        assert "whole" in site.get().text
        assert site.news()["problem"] is None
        step(run, 3)
        html = site.get().text
        assert "whole" in html  # the last page, and what happened
        assert shown(html)["problem"] == "KeyError: 'x'"
        assert shown(site.get().text)["problem"] is None
    assert site.said == [
        "the page could not be made: <b>torn</b>; it is tried again",
        "the page could be made again",
        "the page could not be made: KeyError: 'x'; it is tried again",
        "the page could be made again",
    ]


def test_a_half_written_run_is_served(tmp_path: Path) -> None:
    run = tmp_path / "new"
    run.mkdir()
    with served(run) as site:
        assert "is no run folder" in site.get().text
        (run / "metrics.jsonl").write_text('{"step": 1, "game/V": 0.5}\n{"step": 2, "ga')
        (run / "turns").mkdir()
        (run / "turns" / "step-000001.parquet").write_bytes(b"PAR1 and no more")
        (run / "lineage.json").write_text("{")
        html = site.get().text
        assert "up to step 1" in html
        assert "step-000001.parquet could not be read" in html
        assert shown(html)["problem"] is None
        (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
        assert site.get().status_code == 200


def test_somebody_who_hangs_up_ends_nothing(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(run, make=lambda _: PLAIN.format("x" * 10_000_000)) as site:
        for _ in range(3):
            with socket.create_connection(site.server.server_address[:2]) as caller:  # pyright: ignore
                caller.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{site.server.server_port}\r\n\r\n".encode())
                caller.recv(10)
        assert site.get().status_code == 200
    assert site.said == []
    assert "Traceback" not in capfd.readouterr().err


# --- who may ask, and for what -----------------------------------------------------------------------


def test_other_names_are_refused(run: Path) -> None:
    with served(run, make=lambda _: PLAIN.format("secret")) as site:
        port = site.server.server_port
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}", f"[::1]:{port}"):
            assert site.get(Host=host).status_code == 200
        others = ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", f"192.168.1.2:{port}")
        for host in (*others, "127.0.0.1", f"127.0.0.1:{port + 1}", "", f":{port}", f"127.0.0.1:{port}@x", "[::1"):
            for path in ("/", "/version"):
                answer = site.get(path, Host=host)
                assert answer.status_code == 421, host
                assert "secret" not in answer.text


def test_only_the_page_and_its_version_are_there(run: Path) -> None:
    with served(run, make=lambda _: PLAIN.format("page")) as site:
        for path in ("/config.yaml", "/turns/", "/../lsp/config.yaml", "/?x", "/version/", "/%2e%2e/"):
            assert site.get(path).status_code == 404
        for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
            answer = site.ask(method, "/")
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
        assert site.ask("BREW", "/").status_code == 501
        for path in ("/", "/version"):
            headers = site.get(path, Origin="http://evil.example").headers
            assert headers["cache-control"] == "no-store"
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"] == "frame-ancestors 'none'"
            assert "access-control-allow-origin" not in headers
            assert headers["server"].strip() == "sparring"


def test_a_server_for_others_goes_by_addresses_and_its_own_name(run: Path) -> None:
    with open_server([run], host="0.0.0.0", port=0, every=1, say=print, make=lambda _: "") as server:
        port = server.server_port
        assert server.address == f"http://127.0.0.1:{port}/"
        for host in ("192.168.1.2", "127.0.0.1", "localhost", "[fe80::1]", socket.gethostname()):
            assert server.knows(f"{host}:{port}"), host
        assert not server.knows(f"evil.example:{port}")
        assert not server.knows(None)


def test_an_address_that_others_reach_is_warned_of(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: live.Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live.Server, "serve_forever", interrupted)
    for host, warned in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)):
        said: list[str] = []
        serve([run], host=host, port=0, every=1, say=said.append)
        assert any("whoever reaches" in line for line in said) == warned
        assert said[-1].startswith("stopped")


# --- the command -------------------------------------------------------------------------------------


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_writes_pages(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert call("report", run).output == str(Path("lsp", "report.html")) + "\n"
    assert "up to step 2" in (run / "report.html").read_text()
    result = call("report", run, run, "--out", "both.html")
    assert result.exit_code == 0, result.output
    assert result.output == "both.html\n"
    assert (run.parent / "both.html").is_file()


def test_mistakes_are_named(run: Path) -> None:
    for words, told in (
        (("--port", 1), "--port is for a page that is served: add --live"),
        (("--host", "::1"), "--host is for a page that is served: add --live"),
        (("--every", 1), "--every is for a page that is served: add --live"),
        (("--live", "--out", "x.html"), "--out names a file"),
        (("--live", "--port", 70000), "70000 is not in the range"),
        (("--live", "--every", 0), "not in the range"),
    ):
        result = call("report", run, *words)
        assert result.exit_code == 2
        assert told in result.stderr
    assert call("report").exit_code == 2
    result = call("report", run.parent / "absent", "--live", "--port", 0)
    assert (result.exit_code, result.stderr.count("there is no such folder")) == (1, 1)


def test_a_busy_port_is_told(run: Path) -> None:
    with served(run, make=lambda _: "") as site:
        result = call("report", run, "--live", "--port", site.server.server_port)
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: port {site.server.server_port} is in use: give another with --port, or --port 0 for any that is free\n"
    )


def test_an_address_of_nobody_is_told(run: Path) -> None:
    result = call("report", run, "--live", "--host", "192.0.2.1", "--port", 0)
    assert result.exit_code == 1
    assert "--host 192.0.2.1: nothing can be served there" in result.stderr


def test_ctrl_c_ends_it_cleanly(run: Path) -> None:
    code = SERVE
    words = [sys.executable, "-c", code, str(run), "--live", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.match(r"http://127\.0\.0\.1:\d+/", line)
        assert address, line
        assert "up to step 2" in httpx.get(address[0], trust_env=False, timeout=60).text
        process.send_signal(signal.SIGINT)
        left = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert left == "stopped; `sparring report` writes the page to a file\n"


# --- in a browser ------------------------------------------------------------------------------------


@contextmanager
def open_page(browser: Any, address: str) -> Iterator[Any]:
    """An open page, which must tell the console no error and ask only this server."""
    context = browser.new_context(viewport={"width": 900, "height": 500}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(30_000)
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda told: wrong.append(told.text) if told.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    try:
        yield page
        assert wrong == []
        assert [url for url in asked if not url.startswith((address, "blob:"))] == []
    finally:
        context.close()


def test_an_open_page_follows_and_keeps_its_place(run: Path, chromium: Any) -> None:
    for number in range(3, 40):
        step(run, number)
    with served(run) as site, open_page(chromium, site.server.address) as page:
        assert page.locator("#sparring-live").inner_text().startswith("Live. Last change")
        page.locator("#browser[data-ready]").wait_for()
        page.locator('#browser input[name="text"]').fill("answer 7")
        page.get_by_text("answer 7", exact=True).first.wait_for()
        page.locator("details summary", has_text="Settings").click()
        heading = page.locator("#browser-title")
        heading.scroll_into_view_if_needed()
        page.mouse.wheel(0, 0)
        page.evaluate("document.getElementById('browser-title').scrollIntoView(); scrollBy(0, 60)")
        page.wait_for_function("scrollY > 100")
        before = heading.bounding_box()["y"]
        step(run, 40)
        page.get_by_text("up to step 40").wait_for(state="attached")
        page.locator("#browser[data-ready]").wait_for()
        page.get_by_text("answer 7", exact=True).first.wait_for()
        page.wait_for_function(
            "before => Math.abs(document.getElementById('browser-title').getBoundingClientRect().top - before) < 3",
            arg=before,
        )
        assert page.locator('#browser input[name="text"]').input_value() == "answer 7"
        assert page.locator("details[open] > summary", has_text="Settings").count() == 1
        (run / "lineage.json").write_text(json.dumps({"stages": [{"recipe": "lsp", "results": {}}]}))
        page.get_by_text("The run has ended.").wait_for()


def test_a_page_that_is_in_use_waits(run: Path, chromium: Any) -> None:
    with served(run) as site, open_page(chromium, site.server.address) as page:
        page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
        with page.expect_response(lambda answer: answer.url.endswith("/version")):
            step(run, 3)
        for _ in range(3):
            with page.expect_response(lambda answer: answer.url.endswith("/version")):
                pass
        assert page.get_by_text("up to step 3").count() == 0
        page.evaluate("getSelection().removeAllRanges()")
        page.get_by_text("up to step 3").first.wait_for(state="attached")


def test_an_open_page_tells_of_trouble_and_of_the_end(run: Path, chromium: Any) -> None:
    trouble = [False]

    def make(runs: Sequence[Path]) -> str:
        if trouble[0]:
            raise ValueError("<i>no</i> luck")
        return PLAIN.format("page")

    with served(run, make=make) as site:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(site.server.address)
        trouble[0] = True
        step(run, 3)
        page.get_by_text("The page could not be made: <i>no</i> luck (tried again)").wait_for()
        trouble[0] = False
        page.get_by_text("Live. Last change").wait_for()
    page.get_by_text("No longer live: the server has stopped.").wait_for()
    context.close()
