"""Pictures as they come, what is refused, and the patches a model reads; pictures in prompts and their ids."""

from __future__ import annotations

import gc
import io
import os
import pickle
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sparring.data_held import Spool
from sparring.images import ByteLRU, ImageStore, Picture, PictureError, header
from sparring.lm.base import SamplingParams
from sparring.rendering import Renderer
from sparring.roles import Role
from sparring.types import text_of
from tiny_models import chat_tokenizer
from tiny_vision import VISION, image_processor, picture, tiny_store, vision_tokenizer

ROLE = Role("perceiver", "Look: {{ query }}", SamplingParams(4))


def encoded(image: Image.Image, kind: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def noise(width: int = 6, height: int = 4, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pixels(source: bytes | Image.Image) -> np.ndarray:
    return np.asarray(Picture.open(source).rgb())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")


# Pictures


def test_equal_pixels_have_equal_handles_wherever_they_come_from(tmp_path: Path) -> None:
    image = Image.fromarray(noise())
    (tmp_path / "a.png").write_bytes(encoded(image))
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image), encoded(image, "BMP"), image]
    made = [Picture.open(source) for source in sources]
    assert len({each.handle for each in made}) == len(set(made)) == 1
    assert -(2**62) < made[0].handle < 0 and (made[0].width, made[0].height) == (6, 4)
    assert Picture.open(Image.fromarray(noise(seed=1))) != made[0]
    assert Picture.open(Image.fromarray(noise().reshape(6, 4, 3))).handle != made[0].handle, "the shape counts"
    assert all((np.asarray(each.rgb()) == noise()).all() for each in made)
    kept = pickle.loads(pickle.dumps(made[0]))
    assert kept == made[0] and "PNG" not in repr(kept)


def test_every_mode_becomes_rgb() -> None:
    grey = noise(channels=1)[..., 0]
    as_rgb = np.repeat(grey[..., None], 3, 2)
    assert (pixels(Image.fromarray(grey)) == as_rgb).all()
    assert (pixels(Image.fromarray(grey > 127)) == 255 * (as_rgb > 127)).all()
    deep = grey.astype(np.uint16) * 257
    assert (pixels(encoded(Image.fromarray(deep))) == as_rgb).all(), "16 bits are scaled, not cut off"
    assert (pixels(encoded(Image.fromarray(deep.astype(np.int32)), "TIFF")) == as_rgb).all()
    palette = Image.fromarray(noise()).quantize(8)
    assert (pixels(encoded(palette)) == np.asarray(palette.convert("RGB"))).all()
    cmyk = Image.fromarray(noise(16, 16) // 64 * 64).convert("CMYK")
    error = pixels(encoded(cmyk, "JPEG", quality=100)).astype(int) - np.asarray(cmyk.convert("RGB"))
    assert abs(error).mean() < 25, "not inverted"


@pytest.mark.parametrize("levels", [np.uint16, np.int32])
def test_deep_greys_take_little_memory(levels: type) -> None:
    side = 1000
    grey = np.arange(side * side).reshape(side, side) % 65536
    data = encoded(Image.fromarray(grey.astype(levels)), "TIFF")
    Picture.open(data)
    tracemalloc.start()
    seen = pixels(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (seen == (grey >> 8)[..., None]).all()
    assert peak < 16 * side * side


def test_negative_and_larger_levels_are_the_nearest() -> None:
    grey = np.array([[-5, 0], [65535, 10**6]], dtype=np.int32)
    assert pixels(encoded(Image.fromarray(grey), "TIFF"))[..., 0].tolist() == [[0, 0], [255, 255]]


def test_pillows_own_bound_is_not_met_and_no_thread_touches_anothers_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    data, touched = bomb(9_500, 10_000), []
    assert (Image.MAX_IMAGE_PIXELS or 0) < 9_500 * 10_000
    with monkeypatch.context() as patch:
        patch.setattr(warnings, "simplefilter", lambda *how: touched.append(how))
        size = header(data, name="row 3")
    assert (size, touched) == ((9_500, 10_000), [])


def test_what_is_transparent_is_white() -> None:
    rgba = noise(channels=4)
    rgba[0, 0], rgba[0, 1] = (9, 9, 9, 0), (0, 0, 0, 128)
    seen = pixels(encoded(Image.fromarray(rgba)))
    assert seen[0, 0].tolist() == [255] * 3 and abs(seen[0, 1].astype(int) - 127).max() <= 1
    palette = Image.fromarray(noise()).quantize(8)
    through = palette.getpixel((0, 0))
    assert pixels(encoded(palette, transparency=through))[0, 0].tolist() == [255] * 3
    grey = Image.merge("LA", [Image.new("L", (2, 2))] * 2)
    assert (pixels(encoded(grey)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_turn_is_undone(orientation: int) -> None:
    upright = noise(8, 16)
    turn = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
    flipped = upright.transpose(1, 0, 2)
    turn |= {
        5: lambda _: flipped,
        6: lambda _: flipped[::-1],
        7: lambda _: flipped[::-1, ::-1],
        8: lambda _: flipped[:, ::-1],
    }
    stored = Image.fromarray(np.ascontiguousarray(turn[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = Picture.open(encoded(stored, exif=exif))
    assert (opened.width, opened.height) == (8, 16) and (np.asarray(opened.rgb()) == upright).all()


def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(noise(64, 64)))
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PictureError, match=r"cut\.png: can't be read as an image"):
        Picture.open(tmp_path / "cut.png")
    with pytest.raises(PictureError, match=r"empty\.jpg: can't be read"):
        Picture.open(tmp_path / "empty.jpg")
    for absent in ("no.png", "pipe", "."):
        with pytest.raises(PictureError, match="no such file"):
            Picture.open(tmp_path / absent)
    with pytest.raises(PictureError, match=r"data\.parquet, row 7: can't be read"):
        Picture.open(b"%!PS-Adobe-3.0 EPSF-3.0\n", name="data.parquet, row 7")
    with pytest.raises(PictureError, match="floating-point"):
        Picture.open(encoded(Image.new("F", (2, 2)), "TIFF"))


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (12_000, 12_000), (10_001, 10_000)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    with pytest.raises(PictureError, match=rf"row 3: ({width} x {height} pixels|.*DecompressionBomb)"):
        Picture.open(bomb(width, height), name="row 3")


def test_the_bound_on_pixels_can_be_set() -> None:
    data = encoded(Image.fromarray(noise(10, 10)))
    assert Picture.open(data, max_pixels=100).width == 10
    with pytest.raises(PictureError, match="10 x 10 pixels; an image must have from 1 to 99"):
        Picture.open(data, max_pixels=99)
    with pytest.raises(PictureError, match="from 1 to 99"):
        Picture.open(Image.open(io.BytesIO(data)), max_pixels=99)


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(Image.fromarray(noise())))
    opened = Picture.open(file)
    file.write_bytes(encoded(Image.fromarray(noise(seed=1))))
    with pytest.raises(PictureError, match=r"a\.png: has changed"):
        opened.rgb()
    file.unlink()
    with pytest.raises(PictureError, match="no such file"):
        opened.rgb()


def test_a_header_is_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(Image.fromarray(noise(64, 32)), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    spooled, floating = Spool().keep(whole, "row 3"), encoded(Image.new("F", (2, 2)), "TIFF")
    Image.init()
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    assert [header(source) for source in (tmp_path / "cut.jpg", whole, spooled)] == [(64, 32)] * 3
    for source, message in (
        (tmp_path / "none.jpg", r"none\.jpg: no such file"),
        (tmp_path / ("x" * 300), "can't be read as an image"),
        (b"no image", "a picture of 8 bytes: can't be read as an image"),
        (floating, "floating-point"),
        (bomb(12_000, 12_000), "12000 x 12000 pixels"),
    ):
        with pytest.raises(PictureError, match=message):
            header(source)
    with pytest.raises(PictureError, match="row 3: 64 x 32 pixels; an image must have from 1 to 2047"):
        header(spooled, max_pixels=2047)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_broken_files_raise_nothing_else(kind: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(Image.fromarray(noise(9, 7)), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        header(broken, max_pixels=10_000)
        opened = Picture.open(broken, max_pixels=10_000)
    except PictureError:
        return
    assert opened.rgb().mode == "RGB" and opened.handle < 0


# The store


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), seed=st.integers(0, 9))
def test_patches_are_those_of_transformers(width: int, height: int, seed: int) -> None:
    store, shown = tiny_store(), picture(width, height, seed)
    handle, tokens = store.add(shown)
    theirs = image_processor()(images=[shown.rgb()], return_tensors="pt")
    made = store.patches(handle)
    assert list(made.grid_thw) == theirs["image_grid_thw"][0].tolist() and made.pixel_values.dtype == torch.float32
    assert torch.equal(made.pixel_values, theirs["pixel_values"])
    assert tokens == store.tokens(handle) == len(made.pixel_values) // 4
    assert 64 <= 16 * len(made.pixel_values) <= 64 * 64
    resized = store.resized(handle)
    again = image_processor()(images=[resized], return_tensors="pt")["pixel_values"]
    assert torch.equal(again, made.pixel_values), "another engine given the resized image resizes no more"


def test_bounds_decide_the_tokens() -> None:
    shown = picture(160, 160)
    counts = [tiny_store(min_pixels=64, max_pixels=side**2).add(shown)[1] for side in (8, 16, 32, 64)]
    assert counts == [1, 4, 16, 64]
    assert tiny_store(min_pixels=64 * 64).add(picture(8, 8))[1] == 64
    for bounds in ({"min_pixels": 65, "max_pixels": 64}, {"max_pixels": 63}):
        with pytest.raises(ValueError, match="leave no image"):
            tiny_store(**bounds)


def test_a_strip_is_refused() -> None:
    assert tiny_store().add(picture(1, 200))[1] == 15
    for strip in ((1, 201), (403, 2)):
        with pytest.raises(PictureError, match=f"{strip[0]} x {strip[1]} pixels; a side may be 200 times"):
            picture(*strip)


def test_memory_is_bounded_and_what_was_used_last_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    rgb = Picture.rgb
    monkeypatch.setattr(Picture, "rgb", lambda self: decoded.append(self.handle) or rgb(self))
    one = tiny_store()
    size = one.patches(one.add(picture())[0]).pixel_values.nbytes
    store = ImageStore(image_processor(), patch_bytes=2 * size)
    a, b, c = (store.add(picture(seed=seed))[0] for seed in range(3))
    decoded.clear()
    for handle in (a, b, a, c, a):
        store.patches(handle)
    assert decoded == [a, b, c]
    store.patches(b)
    assert decoded == [a, b, c, b]
    small = ImageStore(image_processor(), patch_bytes=size - 1)
    assert small.patches(small.add(picture())[0]).pixel_values.nbytes == size, "too large to keep, not to use"


def test_a_cache_by_bytes() -> None:
    held: ByteLRU[str, bytes] = ByteLRU(4, len)
    for key, value in (("a", b"11"), ("b", b"22"), ("a", b"33"), ("c", b"4"), ("d", b"55555")):
        held.put(key, value)
    assert [held.get(key) for key in "abcd"] == [None, b"22", b"4", None]
    held.clear()
    held.put("e", b"6666")
    assert held.get("b") is None and held.get("e") == b"6666"


def test_a_picture_is_found_when_nobody_holds_it_any_more(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(Image.fromarray(noise(16, 16))))
    store = ImageStore(image_processor(), patch_bytes=0)
    handles = [store.add(Picture.open(file))[0], *(store.add(picture(seed=seed))[0] for seed in range(3))]
    expected = [picture(seed=seed).rgb() for seed in range(3)]
    gc.collect()
    for handle, image in zip(handles[1:], expected, strict=True):
        assert store.resized(handle).tobytes() == image.tobytes()
        assert store.patches(handle).grid_thw == (1, 4, 4)
    assert store.resized(handles[0]).tobytes() == Image.fromarray(noise(16, 16)).tobytes()
    kept = [store._picture(handle).source for handle in handles]
    assert kept[0] == file, "a file stays where it is"
    assert not any(isinstance(source, bytes) for source in kept), "and no other's bytes stay in memory"


def test_a_spool_gives_back_what_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool()
    pieces = [bytes([n]) * (n * 37 % 1000) for n in range(200)]
    kept = [spool.keep(piece, f"piece {n}") for n, piece in enumerate(pieces)]
    wrong: list[int] = []

    def look() -> None:
        for n in np.random.default_rng(threading.get_ident() % 1000).permutation(200):
            if kept[n].read() != pieces[n]:
                wrong.append(int(n))
            spool.keep(pieces[n], "again")

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and [each.read() for each in kept] == pieces and kept[7].name == "piece 7"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(OSError, match=r"temporary folder .*none \(No such file or directory\): .* TMPDIR"):
        Spool().keep(b"x", "x")


def test_an_unknown_handle() -> None:
    with pytest.raises(ValueError, match="no picture with the handle -5"):
        tiny_store().patches(-5)


# Prompts


def test_a_role_shows_images_before_its_text() -> None:
    a, b = picture(), picture(seed=1)
    (said,) = ROLE.prompt(query="what?", images=(a, b)).messages
    assert [part["type"] for part in said["content"]] == ["image", "image", "text"]
    assert said["content"][1]["image"] is b and text_of(said) == "[image]\n[image]\nLook: what?"
    assert ROLE.prompt(query="what?").messages == ({"role": "user", "content": "Look: what?"},)


def test_an_image_s_tokens_are_its_handle() -> None:
    store = tiny_store()
    renderer = Renderer(vision_tokenizer(), images=store)
    a, b = picture(24, 16), picture(8, 8, 1)
    ids = renderer.encode(ROLE.prompt(query="what?", images=(a, b)).messages)
    start, end = (vision_tokenizer().convert_tokens_to_ids(token) for token in VISION[:2])
    at = ids.index(start)
    assert ids[at : at + 11] == (start, *[a.handle] * 6, end, start, b.handle, end)
    written = vision_tokenizer().decode([token for token in ids if token >= 0], skip_special_tokens=False)
    bounds = "<|vision_start|><|vision_end|>"
    assert written == f"<|im_start|>user\n{bounds}{bounds}Look: what?<|im_end|>\n<|im_start|>assistant\n"
    same = ROLE.prompt(query="what?", images=(picture(24, 16), b)).messages
    assert renderer.encode(same) == ids != renderer.encode(ROLE.prompt(query="what?", images=(b, a)).messages)
    assert store.patches(a.handle).grid_thw == (1, 4, 6)


def test_a_text_prompt_is_as_it_was() -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which planet?"}]
    plain, seeing = Renderer(vision_tokenizer()), Renderer(vision_tokenizer(), images=tiny_store())
    assert plain.encode(asked) == seeing.encode(asked)


@pytest.mark.parametrize("token", VISION)
def test_a_text_that_spells_a_vision_token_is_a_text(token: str) -> None:
    renderer = Renderer(vision_tokenizer(), images=tiny_store())
    spelt = ROLE.prompt(query=f"a {token} b {token}", images=(picture(8, 8),)).messages
    plain = ROLE.prompt(query="a b", images=(picture(8, 8),)).messages
    found = vision_tokenizer().convert_tokens_to_ids(token)
    assert renderer.encode(spelt).count(found) == renderer.encode(plain).count(found)
    assert found not in renderer.encode([{"role": "user", "content": token}]) and found not in renderer.write(token)
    assert "image_pad" not in token or token[2:-2] in renderer.tokenizer.decode(list(renderer.write(token)))


def test_an_image_at_a_prompt_s_end_is_not_decoded() -> None:
    renderer = Renderer(vision_tokenizer(), images=tiny_store())
    shown = renderer.encode(ROLE.prompt(query="?", images=(picture(64, 64),)).messages, ended=True)
    prompt = (*shown, *[picture(64, 64).handle] * 30)
    assert renderer.read(prompt, renderer.write("It is big.")) == (None, "It is big.")
    assert renderer.read((*prompt, *renderer.write("<think>")), renderer.write("so</think>big")) == ("so", "big")


def test_who_cannot_see_says_so() -> None:
    messages = ROLE.prompt(query="?", images=(picture(),)).messages
    with pytest.raises(ValueError, match=r"shows a picture \(16x16 of seed 0\), and the model reads text only"):
        Renderer(vision_tokenizer()).encode(messages)
    with pytest.raises(ValueError, match=r"no <\|image_pad\|> token"):
        Renderer(chat_tokenizer("qwen3"), images=tiny_store())
    with pytest.raises(TypeError, match="holds a Image"):
        Renderer(vision_tokenizer(), images=tiny_store()).encode(
            [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (8, 8))}]}]
        )
    blind = chat_tokenizer("qwen3")
    blind.add_tokens(list(VISION), special_tokens=True)
    with pytest.raises(ValueError, match="0 image placeholders for 1 images"):
        Renderer(blind, images=tiny_store()).encode(messages)
