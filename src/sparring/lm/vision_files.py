"""The image processor that belongs to a vision model: loaded, and saved with everything else that its users need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sparring.lm.hub import PROCESSOR_FILES, LoadError, adapter_base, find_folder, is_adapter

VIDEO_FILE = "video_preprocessor_config.json"


@dataclass(frozen=True)
class Processor:
    """Tokenizer and image processor, saved so that `AutoProcessor` and other engines find both.

    others: file names and contents that are carried along unread (how videos are prepared).
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: Qwen2VLImageProcessorPil
    others: Mapping[str, str] = field(default_factory=dict[str, str])

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write the files into a folder."""
        folder = Path(save_directory)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        for name, content in self.others.items():
            (folder / name).write_text(content, encoding="utf-8")


def load_processor(
    path_or_id: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    revision: str | None = None,
) -> Processor:
    """The image processor in a folder or at a hub id, beside a tokenizer that is already loaded.

    It runs on Pillow, whether or not torchvision is installed: the two resize to different pixels. min_pixels and
    max_pixels bound the size of a resized image; None: as the files have it. Raises LoadError where there is none.
    """
    folder = find_folder(path_or_id, revision, weights=False)
    if is_adapter(folder) and not any((folder / name).is_file() for name in PROCESSOR_FILES):
        base, revision = adapter_base(folder)
        return load_processor(base, tokenizer, min_pixels=min_pixels, max_pixels=max_pixels, revision=revision)
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        raise LoadError(f"{folder}: no {' or '.join(PROCESSOR_FILES)}: copy it from the vision model's own folder")
    try:
        found = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{folder}: its image processor can't be loaded ({error})") from error
    bounds = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    given = {edge: pixels for edge, pixels in bounds.items() if pixels is not None}
    setattr(found, "size", SizeDict(**{**dict(found.size), **given}))  # noqa: B010 - declared as a dict, made as this
    video = folder / VIDEO_FILE
    others = {VIDEO_FILE: video.read_text(encoding="utf-8")} if video.is_file() else {}
    return Processor(tokenizer, found, others)
