"""vLLM's image path by scripted engines: what is asked, and what is refused. `rollout.images` and both engines."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import scripted_vllm as vllm
from scripted_vllm import ScriptedVllm
from sparring.cli import main
from sparring.images import ImageStore
from sparring.lm.base import SamplingParams
from sparring.lm.load import load_model
from sparring.models import build_models
from sparring.rollout.base import EngineError, serve_command
from sparring.rollout.folders import check_folder, prepare_folder, tensor_shapes
from sparring.rollout.images import PromptImages, shown
from sparring.rollout.process import ProcessEngine
from sparring.rollout.server import ServerEngine
from sparring.sampling.vllm import PartedError
from sparring.settings import RunConfig
from sparring.writers import build_sampler
from test_vision_training import config
from tiny_vision import picture, save_tiny_qwen3vl, save_tiny_qwen25vl, tiny_store, vision_tokenizer

GENERATE = "/inference/v1/generate"


def token_id(name: str) -> int:
    found = vision_tokenizer().convert_tokens_to_ids(f"<|{name}|>")
    assert isinstance(found, int)
    return found


PAD, VIDEO, START, END = map(token_id, ("image_pad", "video_pad", "vision_start", "vision_end"))
NEVER = tuple(sorted((PAD, VIDEO, START, END)))
SEEDS = [10, 11, 12]


@pytest.fixture
def store() -> ImageStore:
    return tiny_store(max_pixels=32 * 32)


@pytest.fixture
def images(store: ImageStore) -> PromptImages:
    return PromptImages(store, PAD, NEVER)


def image_ids(store: ImageStore, width: int, height: int, seed: int = 0) -> list[int]:
    handle, tokens = store.add(picture(width, height, seed))
    return [START, *[handle] * tokens, END]


def prompts_of(store: ImageStore) -> list[list[int]]:
    """An image that is resized, text alone, and two images of which one is the first one again."""
    large, small = image_ids(store, 100, 60), image_ids(store, 16, 16, 1)
    return [[10, *large, 11], [10, 11, 12], [9, *small, *large, 8]]


def pixels(image: Image.Image) -> list[int]:
    return np.asarray(image).tolist()


# Prompts


@given(st.lists(st.one_of(st.lists(st.integers(0, 90), max_size=4), st.tuples(st.integers(1, 9), st.integers(1, 6)))))
def test_a_prompt_has_one_placeholder_for_each_image_until_it_is_expanded(
    parts: list[list[int] | tuple[int, int]],
) -> None:
    images = PromptImages(tiny_store(), 95, ())
    ids: list[int] = []
    short: list[int] = []
    for part in parts:
        text = part if isinstance(part, list) else []
        run = [] if isinstance(part, list) else [-part[0]] * part[1]
        ids += [94, *text, *run]
        short += [94, *text, *([95] if run else [])]
    assert images.unexpanded(ids) == short
    assert [token for token in images.expanded(ids) if token != 95] == [token for token in ids if token >= 0]
    assert len(images.expanded(ids)) == len(ids)
    assert len(shown(ids)) == short.count(95)


def test_in_process_a_prompt_has_the_resized_images_under_names_of_their_own(images: PromptImages) -> None:
    one, _, two = prompts_of(images.store)
    assert images.in_process(one)["prompt_token_ids"] == [10, START, PAD, END, 11]
    prompt = images.in_process(two)
    assert prompt["prompt_token_ids"] == [9, START, PAD, END, START, PAD, END, 8]
    small, large = prompt["multi_modal_data"]["image"]
    assert small.size == (16, 16)
    assert large.size == (40, 24)  # 100 x 60 has more than 32 * 32 pixels
    assert pixels(large) == pixels(images.store.resized(one[2]))
    names = prompt["multi_modal_uuids"]["image"]
    assert len(set(names)) == 2
    assert images.in_process(one)["multi_modal_uuids"]["image"] == [names[1]]


def test_an_image_of_another_size_has_another_name() -> None:
    names = set[str]()
    for most in (32 * 32, 16 * 16):
        store = tiny_store(max_pixels=most)
        (name,) = PromptImages(store, PAD, NEVER).in_process(prompts_of(store)[0])["multi_modal_uuids"]["image"]
        names.add(name)
    assert len(names) == 2


def test_over_http_the_pixels_are_the_same_to_the_bit(images: PromptImages) -> None:
    one = prompts_of(images.store)[0]
    request = images.over_http(one)
    assert request["token_ids"] == [10, START, PAD, END, 11]
    assert request["return_token_ids"] is True
    (part,) = request["content_parts"]
    assert part["type"] == "image_url"
    assert part["uuid"] == images.in_process(one)["multi_modal_uuids"]["image"][0]
    assert pixels(sent_image(part)) == pixels(images.store.resized(one[2]))


def test_bounds_that_are_too_close_to_keep_a_size_are_refused() -> None:
    """40 x 24 is enlarged to 48 x 32, which is above the upper bound again."""
    store = tiny_store(min_pixels=1024, max_pixels=1024)
    handle, _ = store.add(picture(40, 24))
    images = PromptImages(store, PAD, NEVER)
    for told in (images.in_process, images.over_http):
        with pytest.raises(ValueError, match=r"resized again by vLLM: set the two further apart"):
            told([handle])


def sent_image(part: Mapping[str, Any]) -> Image.Image:
    head, _, data = part["url"].partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_no_completion_may_have_tokens_that_stand_for_images(images: PromptImages) -> None:
    assert images.params(SamplingParams(3, banned_ids=(7, PAD))).banned_ids == (7, PAD, *(i for i in NEVER if i != PAD))


# A scripted server


def expanding(handler: vllm.Handler, body: Any) -> None:
    """As vLLM would: an image has a token for every 8 x 8 pixels of it."""
    waiting = iter(body.get("content_parts", ()))
    made: list[int] = []
    for token in body["token_ids"]:
        width, height = sent_image(next(waiting)).size if token == PAD else (8, 8)
        made += [token] * (width * height // 64)
    answer = vllm.completions(handler.server, body)
    handler.send(200, answer | ({"prompt_token_ids": made} if body.get("return_token_ids") else {}))


def seeing(**more: Any) -> vllm.Reply:
    """What a vision model's server says of itself."""
    told = {"language_model_only": False, "limit_per_prompt": {"video": {"count": 0}}, "mm_processor_kwargs": None}

    def reply(handler: vllm.Handler, body: Any) -> None:
        settings = vllm.settings(handler.server)
        settings["model_config"]["multimodal_config"] = told | more
        handler.send(200, {"vllm_config": settings})

    return reply


Opener = Callable[..., ServerEngine]


@pytest.fixture
def server() -> Iterator[ScriptedVllm]:
    running = ScriptedVllm()
    running.always = {
        "/server_info": seeing(),
        GENERATE: expanding,
        "/reset_mm_cache": vllm.status(200, b""),
        "/reset_encoder_cache": vllm.status(200, b""),
    }
    yield running
    running.stop()


@pytest.fixture
def opened(server: ScriptedVllm) -> Iterator[Opener]:
    engines: list[ServerEngine] = []

    def open_engine(images: PromptImages | None, **settings: Any) -> ServerEngine:
        given = {"timeout": 20.0, "connect_timeout": 20.0, "silence": 20.0, "images": images, **settings}
        engine = ServerEngine(server.url, **given)
        engines.append(engine)
        server.seen.clear()
        return engine

    yield open_engine
    server.released.set()
    for engine in engines:
        engine.close()


def test_a_server_is_asked_once_for_all_answers_to_a_picture(
    server: ScriptedVllm, opened: Opener, images: PromptImages
) -> None:
    engine = opened(images)
    assert engine.info.images == 999
    prompts = prompts_of(images.store)
    written = engine.generate(prompts, 3, SamplingParams(8, stop_ids=(2,), banned_ids=(4,)), SEEDS, adapter=False)
    assert [len(row) for row in written] == [3, 3, 3]
    asked = {len(request.get("content_parts", ())): request for request in server.asked(GENERATE)}
    assert len(server.asked(GENERATE)) == 3
    for count, ids in zip((1, 0, 2), prompts, strict=True):
        request = asked[count]
        assert request["token_ids"] == images.unexpanded(ids)
        assert request["sampling_params"]["n"] == 3
        assert request["sampling_params"]["logit_bias"] == dict.fromkeys(map(str, (4, *NEVER)), -1e9)
        assert ("return_token_ids" in request) == (count > 0)
    assert asked[1]["content_parts"] == images.over_http(prompts[0])["content_parts"]


def test_more_answers_than_a_request_takes_share_their_image(
    server: ScriptedVllm, opened: Opener, images: PromptImages
) -> None:
    engine = opened(images)
    (row,) = engine.generate(prompts_of(images.store)[:1], 6, SamplingParams(8, stop_ids=(2,)), SEEDS[:1], adapter=True)
    assert len(row) == 6
    first, second = server.asked(GENERATE)
    assert {first["sampling_params"]["n"], second["sampling_params"]["n"]} == {4, 2}
    assert first["content_parts"] == second["content_parts"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda ids: ids[:-1], r"of a prompt of 19 tokens with 1 images it made one of 18"),
        (lambda ids: [*ids[:-1], 99], r"of a prompt of 19 tokens with 1 images it made one of 19"),
        (lambda _: None, "it made none that it tells"),
    ],
)
def test_another_prompt_than_ours_ends_the_run(
    made: Callable[[list[int]], Any], message: str, server: ScriptedVllm, opened: Opener, images: PromptImages
) -> None:
    engine = opened(images)
    ids = prompts_of(images.store)[0]

    def resizing(handler: vllm.Handler, body: Any) -> None:
        answer = vllm.completions(handler.server, body)
        handler.send(200, answer | {"prompt_token_ids": made(images.expanded(ids))})

    server.always[GENERATE] = resizing
    with pytest.raises(EngineError, match=message) as caught:
        engine.generate([ids], 2, SamplingParams(8), SEEDS[:1], adapter=False)
    assert """--mm-processor-kwargs '{"min_pixels": 64, "max_pixels": 1024}'""" in str(caught.value)


def test_new_weights_clear_what_is_kept_of_images(
    server: ScriptedVllm, opened: Opener, images: PromptImages, tmp_path: Path
) -> None:
    resets = ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"]
    engine = opened(images)
    engine.update(save_tiny_qwen25vl(tmp_path / "model"), 1)
    assert [path for path, _ in server.seen if "reset" in path] == resets
    server.seen.clear()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    engine.update(tmp_path / "adapter", 2)
    assert [path for path, _ in server.seen if "reset" in path] == resets


def test_a_text_model_keeps_nothing_of_images(server: ScriptedVllm, opened: Opener, tmp_path: Path) -> None:
    engine = opened(None)
    assert engine.info.images == 0
    engine.update(save_tiny_qwen25vl(tmp_path / "model"), 1)
    assert [path for path, _ in server.seen if "reset" in path] == ["/reset_prefix_cache"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (vllm.usual, "reads no images, and prompts show some; serve the vision model"),
        (seeing(language_model_only=True), "reads no images"),
        (seeing(limit_per_prompt={"image": {"count": 0}}), "reads no images"),
        (seeing(mm_processor_kwargs={"max_pixels": 999}), r"resizes images within \{'max_pixels': 999\}, the run with"),
    ],
)
def test_a_server_that_sees_otherwise_is_refused(
    told: vllm.Reply, message: str, server: ScriptedVllm, opened: Opener, images: PromptImages
) -> None:
    server.always["/server_info"] = told
    with pytest.raises(EngineError, match=message) as caught:
        opened(images)
    assert """--limit-mm-per-prompt '{"video": 0}' --mm-processor-kwargs '{"min_pixels": 64""" in str(caught.value)


def test_the_same_bounds_are_taken(server: ScriptedVllm, opened: Opener, images: PromptImages) -> None:
    server.always["/server_info"] = seeing(mm_processor_kwargs={**images.pixels, "do_convert_rgb": True})
    assert opened(images).info.images == 999


def test_more_images_than_the_server_takes_are_refused(
    server: ScriptedVllm, opened: Opener, images: PromptImages
) -> None:
    server.always["/server_info"] = seeing(limit_per_prompt={"image": {"count": 1}})
    engine = opened(images)
    with pytest.raises(ValueError, match=r"shows 2 images, and served takes 1 a prompt.*--limit-mm-per-prompt"):
        engine.generate(prompts_of(images.store), 1, SamplingParams(8), SEEDS, adapter=False)
    with pytest.raises(ValueError, match=r"shows 2 images, and served takes 0 a prompt: serve a vision model"):
        opened(None).generate(prompts_of(images.store), 1, SamplingParams(8), SEEDS, adapter=False)
    assert not server.asked(GENERATE)


# A scripted vLLM in this process


class ScriptedLLM:
    """Keeps what it is asked; a prompt's answer says so little that it can be told apart."""

    made: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[tuple[list[Any], list[Any]]]] = []
    calls: ClassVar[list[Any]] = []
    extra = 0

    def __init__(self, model: str, **settings: Any) -> None:
        ScriptedLLM.made.append(settings)
        config = SimpleNamespace(
            max_model_len=256,
            get_multimodal_config=lambda: SimpleNamespace(get_limit_per_prompt={"image": 2}.__getitem__),
        )
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(model_config=config),
            reset_encoder_cache=lambda: self.calls.append("encoder"),
        )

    def generate(self, prompts: list[Any], params: list[Any], **_: Any) -> list[Any]:
        self.asked.append((prompts, params))
        return [self.output(prompt, fields) for prompt, fields in zip(prompts, params, strict=True)]

    def output(self, prompt: Any, fields: Any) -> Any:
        sizes = iter(image.size for image in prompt.get("multi_modal_data", {}).get("image", ()))
        made: list[int] = []
        for token in prompt["prompt_token_ids"]:
            width, height = next(sizes) if token == PAD else (8, 8)
            made += [token] * (width * height // 64 + (token == PAD) * self.extra)
        row = SimpleNamespace(token_ids=[5], logprobs=[{5: SimpleNamespace(logprob=-1.0)}], finish_reason="length")
        return SimpleNamespace(prompt_token_ids=made, outputs=[row] * fields.n)

    def collective_rpc(self, method: str, kwargs: Mapping[str, str]) -> None:
        self.calls.append((method, kwargs["weights_path"]))

    def reset_prefix_cache(self) -> None:
        self.calls.append("prefix")

    def reset_mm_cache(self) -> None:
        self.calls.append("mm")


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedLLM]:
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": ScriptedLLM, "SamplingParams": SimpleNamespace, "__version__": "0.32.0"},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: False)},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY=2)},
        "vllm.exceptions": {"VLLMError": RuntimeError},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    for kept in (ScriptedLLM.made, ScriptedLLM.asked, ScriptedLLM.calls):
        kept.clear()
    monkeypatch.setattr(ScriptedLLM, "extra", 0)
    return ScriptedLLM


def test_in_process_images_go_beside_the_ids(llm: type[ScriptedLLM], images: PromptImages, tmp_path: Path) -> None:
    folder = save_tiny_qwen25vl(tmp_path / "model")
    engine = ProcessEngine(folder, images=images)
    assert engine.info.images == 2
    assert llm.made[0]["mm_processor_kwargs"] == {"min_pixels": 64, "max_pixels": 1024}
    assert llm.made[0]["limit_mm_per_prompt"] == {"video": 0}
    prompts = prompts_of(images.store)
    written = engine.generate(prompts, 3, SamplingParams(8), SEEDS, adapter=False)
    assert [len(row) for row in written] == [3, 3, 3]
    ((told, fields),) = llm.asked
    assert told[1] == {"prompt_token_ids": [10, 11, 12]}
    assert told[0]["prompt_token_ids"] == [10, START, PAD, END, 11]
    assert set(told[0]) == {"prompt_token_ids", "multi_modal_data", "multi_modal_uuids"}
    assert [field.n for field in fields] == [3, 3, 3]
    assert all(set(field.logit_bias) == set(NEVER) for field in fields)
    engine.update(folder, 1)
    assert llm.calls == [("reload_weights", str(folder.resolve())), "prefix", "mm", "encoder"]


def test_in_process_another_prompt_and_too_many_images_are_refused(
    llm: type[ScriptedLLM], images: PromptImages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = ProcessEngine("org/model", images=images)
    (one, _, two), params = prompts_of(images.store), SamplingParams(8)
    with pytest.raises(ValueError, match="shows 3 images, and org/model takes 2 a prompt"):
        engine.generate([[*two, *two[1:7]]], 1, params, [0], adapter=False)
    monkeypatch.setattr(llm, "extra", 1)
    with pytest.raises(EngineError, match=r"with 1 images it made one of 20.*--mm-processor-kwargs"):
        engine.generate([one], 1, params, [0], adapter=False)


def test_in_process_a_text_model_is_told_nothing_of_images(llm: type[ScriptedLLM]) -> None:
    engine = ProcessEngine("org/model")
    engine.generate([[1, 2]], 1, SamplingParams(8), [0], adapter=False)
    assert not {"mm_processor_kwargs", "limit_mm_per_prompt"} & llm.made[0].keys()
    assert not hasattr(llm.asked[0][1][0], "logit_bias")
    with pytest.raises(ValueError, match="takes 0 a prompt"):
        engine.generate([[1, -5, -5]], 1, SamplingParams(8), [0], adapter=False)


# Folders and commands


def test_a_vision_models_files_may_have_names_from_before_and_after_transformers_5(tmp_path: Path) -> None:
    old = save_tiny_qwen25vl(tmp_path / "old")
    new = save_tiny_qwen25vl(tmp_path / "new")
    tensors = load_file(new / "model.safetensors")
    assert any(name.startswith("visual.") for name in tensors)
    shapes = tensor_shapes(old)
    assert any(name.startswith("model.visual.") for name in shapes)
    renamed = {f"model.{name}" if name.startswith("visual.") else name: tensor for name, tensor in tensors.items()}
    renamed = {
        name.replace("model.", "model.language_model.", 1)
        if name.startswith(("model.layers", "model.embed", "model.norm"))
        else name: tensor
        for name, tensor in renamed.items()
    }
    assert renamed.keys() == shapes.keys() != tensors.keys()
    save_file(renamed, new / "model.safetensors", {"format": "pt"})
    assert check_folder(new, shapes) == shapes
    del renamed["model.visual.merger.ln_q.weight"]
    save_file(renamed, new / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match=r"missing: model\.visual\.merger\.ln_q\.weight"):
        check_folder(new, shapes)


def loaded(folder: Path) -> Any:
    return load_model(folder)


@pytest.mark.parametrize("save", [save_tiny_qwen25vl, save_tiny_qwen3vl])
def test_a_tied_vision_model_is_untied_for_a_cpu(save: Callable[..., Path], tmp_path: Path) -> None:
    tied = save(tmp_path / "tied")
    config = json.loads((tied / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (tied / "config.json").write_text(json.dumps(config))
    tensors = load_file(tied / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tied / "model.safetensors", {"format": "pt"})
    made = prepare_folder(tied, tmp_path / "made")
    assert set(tensor_shapes(made)) == {*tensor_shapes(tied), "lm_head.weight"}
    one, other = map(loaded, (tied, made))
    assert one.get_output_embeddings().weight is one.get_input_embeddings().weight
    assert other.get_output_embeddings().weight is not other.get_input_embeddings().weight
    assert torch.equal(one.get_output_embeddings().weight, other.get_output_embeddings().weight)


def test_the_command_of_a_vision_model_has_the_bounds_of_its_images() -> None:
    options = dict(pairwise(serve_command("folder", pixels={"min_pixels": 1, "max_pixels": 2})[0]))
    assert json.loads(options["--limit-mm-per-prompt"]) == {"video": 0}
    assert json.loads(options["--mm-processor-kwargs"]) == {"min_pixels": 1, "max_pixels": 2}
    unbounded = serve_command("folder", pixels={})[0]
    assert "--limit-mm-per-prompt" in unbounded
    assert "--mm-processor-kwargs" not in unbounded
    assert "--limit-mm-per-prompt" not in serve_command("folder")[0]


def test_serve_command_knows_a_vision_run() -> None:
    def printed(*words: str) -> str:
        result = CliRunner().invoke(main, ["serve-command", *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    line = printed("vision-sr1", "--preset", "paper", "--init", "org/model", "model.vision.max_pixels=1000000")
    assert """--limit-mm-per-prompt '{"video": 0}'""" in line
    assert """--mm-processor-kwargs '{"min_pixels": 262144, "max_pixels": 1000000}'""" in line
    assert "-mm-" not in printed("lsp", "--init", "org/model")


# A run's sampler


def vision_run(folder: Path, *more: str) -> RunConfig:
    """A vision run's settings; its data are never read here."""
    bounds = ("model.vision.min_pixels=64", "model.vision.max_pixels=1024")
    return config(save_tiny_qwen25vl(folder / "model"), folder, *bounds, "rollout.engine=vllm", *more)


def test_a_runs_sampler_shows_pictures_and_begins_with_one(server: ScriptedVllm, tmp_path: Path) -> None:
    def writes(handler: vllm.Handler, body: Any) -> None:
        sampling = body["sampling_params"]
        choices = [vllm.choice(server.label, j, [5, 6], sampling) for j in range(sampling["n"])]
        sizes = iter(sent_image(part).size for part in body.get("content_parts", ()))
        made = [t for t in body["token_ids"] for _ in range(np.prod(next(sizes)) // 64 if t == PAD else 1)]
        handler.send(200, {"model": body["model"], "choices": choices, "prompt_token_ids": made})

    card = {"id": "served", "root": "org/model", "parent": None, "max_model_len": 512}
    server.always |= {"/v1/models": lambda handler, _: handler.send(200, {"data": [card]}), GENERATE: writes}
    given = vision_run(tmp_path, f"rollout.url={server.url}")
    sampler = build_sampler(build_models(given), given, tmp_path / "run")
    try:
        server.seen.clear()
        with pytest.raises(PartedError):  # a scripted server computes nothing
            sampler.updated(0)
        (request,) = server.asked(GENERATE)
        assert [sent_image(part).size for part in request["content_parts"]] == [(32, 32)]
        assert set(map(int, request["sampling_params"]["logit_bias"])) == set(NEVER)
    finally:
        sampler.close()


def test_a_runs_engine_in_process_has_the_bounds_of_its_images(llm: type[ScriptedLLM], tmp_path: Path) -> None:
    given = vision_run(tmp_path)
    build_sampler(build_models(given), given, tmp_path / "run")
    assert llm.made[0]["mm_processor_kwargs"] == {"min_pixels": 64, "max_pixels": 1024}
