"""Pictures: opened once and checked, kept small, and turned into the patches that a vision model reads.

A picture in a prompt is its handle, a negative int made from its pixels, once for each token that it takes. So equal
prompts are equal ids in every process, and whoever needs the pixels asks the `ImageStore` for the handle.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparring.data_held import Held, Spool

if TYPE_CHECKING:  # loading data and writing a report look at pictures without a model
    from torch import Tensor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

# No vector formats: Pillow gives those to other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 100_000_000
MAX_RATIO = 200  # of the sides: the image processor's own bound
_WHITE = (255, 255, 255, 255)

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class PictureError(ValueError):
    """A picture that can't be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that has been opened and found sound: upright, 8-bit RGB, `width` by `height` pixels.

    `handle` is a negative int made from those pixels: equal pixels have equal handles, whatever file they came from.
    The pixels themselves are not kept, only the path, the encoded bytes, or where these lie.
    """

    handle: int
    width: int
    height: int
    name: str = field(compare=False)
    source: Path | bytes | Held = field(compare=False, repr=False)
    max_pixels: int = field(default=MAX_PIXELS, compare=False, repr=False)

    @classmethod
    def open(
        cls, source: str | Path | bytes | Held | Image.Image, *, name: str | None = None, max_pixels: int = MAX_PIXELS
    ) -> Picture:
        """Decode a file, encoded bytes or a Pillow image once, to see that it can be.

        name: what errors call it (a file and row, say); by default a path. max_pixels: a larger image is refused by its
        header, before anything is decoded. Transparency is laid on white; 16-bit greys are scaled down.

        Raises:
            PictureError: missing, corrupt, too large, too long a strip, or in a format that isn't read (see FORMATS).
        """
        if isinstance(source, Image.Image):
            called, image = name or "a picture", source
            _check(called, image, max_pixels)
            source = _png(_decoded(called, lambda: _upright(image)))
        else:
            source = Path(source) if isinstance(source, str) else source
            called = name or _called(source)
        rgb = _read(source, called, max_pixels)
        return cls(_handle(rgb), rgb.width, rgb.height, called, source, max_pixels)

    def rgb(self) -> Image.Image:
        """The pixels, decoded anew. Raises PictureError where the file is no longer what it was."""
        rgb = _read(self.source, self.name, self.max_pixels)
        if _handle(rgb) != self.handle:
            raise PictureError(f"{self.name}: has changed since it was opened; leave pictures as they are during a run")
        return rgb


@dataclass(frozen=True)
class Patches:
    """What a vision tower reads of one image: pixel_values [patches, dim] float32, grid_thw its patches in time, height
    and width."""

    pixel_values: Tensor
    grid_thw: tuple[int, int, int]


class ByteLRU(Generic[Key, Value]):
    """What was used last, up to a number of bytes. For several threads."""

    def __init__(self, most: int, size: Callable[[Value], int]) -> None:
        self._most, self._size = most, size
        self._held: OrderedDict[Key, Value] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        """What is held under a key."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key]

    def put(self, key: Key, value: Value) -> None:
        """Hold a value, and let go of the oldest. One that is larger than the bound is not held."""
        size = self._size(value)
        with self._lock:
            if key in self._held or size > self._most:
                return
            self._held[key] = value
            self._bytes += size
            while self._bytes > self._most:
                self._bytes -= self._size(self._held.popitem(last=False)[1])

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._held.clear()
            self._bytes = 0


class ImageStore:
    """The pictures of a run's prompts, and what a model's image processor makes of them.

    Every picture is resized once, to a size within the processor's bounds with sides that are whole tokens; sampler
    and trainer read those same pixels. A picture is found as long as the store lives, whoever still holds its ids: what
    is kept of it is where it can be read again (path, data set), and encoded bytes go into a temporary file. Processed
    patches, which are large, are kept in a memory of at most `patch_bytes`.

    processor: of the Qwen2-VL type, on Pillow (`lm.vision_files.load_processor`). Raises ValueError where its bounds
    (min_pixels, max_pixels) leave no image.
    """

    def __init__(self, processor: Qwen2VLImageProcessorPil, *, patch_bytes: int = 2**28) -> None:
        self.processor = processor
        size: Any = processor.size
        self.min_pixels, self.max_pixels = int(size["shortest_edge"]), int(size["longest_edge"])
        if not 0 < self.min_pixels <= self.max_pixels or self.max_pixels < self.factor**2:
            raise ValueError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels} leave no image: an image has at least "
                f"{self.factor**2} pixels, one token of {self.factor} x {self.factor}"
            )
        self._pictures: dict[int, Picture] = {}
        self._spool = Spool()
        self._patches: ByteLRU[int, Patches] = ByteLRU(patch_bytes, lambda made: made.pixel_values.nbytes)

    @property
    def factor(self) -> int:
        """Pixels of a side of one token."""
        return self.processor.patch_size * self.processor.merge_size

    def add(self, picture: Picture) -> tuple[int, int]:
        """Keep a picture; gives its handle and how many tokens it takes. Nothing is decoded."""
        height, width = self._resized_to(picture)
        if picture.handle not in self._pictures:
            if isinstance(picture.source, bytes):
                picture = replace(picture, source=self._spool.keep(picture.source, picture.name))
            self._pictures[picture.handle] = picture
        return picture.handle, height * width // self.factor**2

    def grid(self, handle: int) -> tuple[int, int, int]:
        """Patches in time, height and width."""
        height, width = self._resized_to(self._picture(handle))
        return 1, height // self.processor.patch_size, width // self.processor.patch_size

    def tokens(self, handle: int) -> int:
        """Placeholder tokens of an image."""
        _, height, width = self.grid(handle)
        return height * width // self.processor.merge_size**2

    def resized(self, handle: int) -> Image.Image:
        """The very pixels that the model reads, for another engine; that one resizes no more, given the same bounds
        (unless these are nearly equal)."""
        picture = self._picture(handle)
        height, width = self._resized_to(picture)
        return picture.rgb().resize((width, height), self.processor.resample)

    def patches(self, handle: int) -> Patches:
        """What the vision tower reads. Raises ValueError for a handle that no prompt of this run has."""
        found = self._patches.get(handle)
        if found is None:
            made = self.processor(images=[self.resized(handle)], do_resize=False, return_tensors="np")
            import torch

            values = torch.from_numpy(np.ascontiguousarray(made["pixel_values"], dtype=np.float32))
            found = Patches(values, self.grid(handle))
            assert tuple(made["image_grid_thw"][0]) == found.grid_thw
            self._patches.put(handle, found)
        return found

    def _picture(self, handle: int) -> Picture:
        try:
            return self._pictures[handle]
        except KeyError:
            raise ValueError(
                f"no picture with the handle {handle} was rendered in this process: render the prompt here too"
            ) from None

    def _resized_to(self, picture: Picture) -> tuple[int, int]:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        return smart_resize(picture.height, picture.width, self.factor, self.min_pixels, self.max_pixels)


def header(source: Path | bytes | Held, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of a picture as it is stored, by its header alone.

    Raises:
        PictureError: what `Picture.open` would refuse before it decodes anything.
    """
    called = name or _called(source)
    with _opened(source, called, max_pixels) as image:
        return image.width, image.height


def _called(source: Path | bytes | Held) -> str:
    if isinstance(source, bytes):
        return f"a picture of {len(source)} bytes"
    return str(source) if isinstance(source, Path) else source.name


def _read(source: Path | bytes | Held, name: str, max_pixels: int) -> Image.Image:
    with _opened(source, name, max_pixels) as image:
        return _decoded(name, lambda: _upright(image))


@contextmanager
def _opened(source: Path | bytes | Held, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """A picture whose header has been read and found good."""
    if isinstance(source, Path) and not _decoded(name, source.is_file):  # a name may be too long for the disk
        raise PictureError(f"{name}: no such file")
    with _decoded(name, lambda: _begun(source)) as image:
        _check(name, image, max_pixels)
        yield image


def _begun(source: Path | bytes | Held) -> Image.Image:
    """As Image.open, without its bound: that is one for the whole process, and a warning in parts, which threads can't
    silence each for itself. `_check` stands in for it."""
    Image.init()
    if isinstance(source, Path):
        with source.open("rb") as file:
            start = file.read(16)
    else:
        source = source if isinstance(source, bytes) else source.read()
        start = source[:16]
    for kind in FORMATS:
        opener: Any
        opener, accepts = Image.OPEN[kind]
        accepted = accepts is None or accepts(start)
        if accepted and not isinstance(accepted, str):  # a text says why this Pillow can't
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # what Pillow takes for another format
                return opener(str(source)) if isinstance(source, Path) else opener(io.BytesIO(source))
    raise UnidentifiedImageError("no image of a known format")


def _decoded(name: str, decode: Callable[[], Value]) -> Value:
    try:
        return decode()
    except Exception as error:  # decoders of broken files raise anything
        raise PictureError(f"{name}: can't be read as an image ({type(error).__name__}: {error})") from error


def _check(name: str, image: Image.Image, max_pixels: int) -> None:
    """What a header tells."""
    width, height = image.size
    if width < 1 or height < 1 or width * height > max_pixels:
        raise PictureError(f"{name}: {width} x {height} pixels; an image must have from 1 to {max_pixels}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise PictureError(f"{name}: {width} x {height} pixels; a side may be {MAX_RATIO} times the other at most")
    if image.mode == "F":
        raise PictureError(f"{name}: floating-point pixels, whose range nobody told; save it with 8 or 16 bits")


def _upright(image: Image.Image) -> Image.Image:
    """The first frame as 8-bit RGB, turned as its EXIF says."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        if image.mode == "I":
            levels = levels.clip(0, 65535)
        grey = np.empty(levels.shape, np.uint8)
        # In place: a hundred million pixels are a gigabyte at eight bytes each.
        np.right_shift(levels, 8, out=grey, casting="unsafe")
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _handle(rgb: Image.Image) -> int:
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode())
    digest.update(rgb.tobytes())
    return -(int.from_bytes(digest.digest()[:8]) >> 2 | 1)
