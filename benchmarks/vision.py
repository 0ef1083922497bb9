"""Vision-SR1's costs: what the second pass takes of a step, how often images are encoded, what shared prompts save.

    python benchmarks/vision.py --json vision.json

1. Steps of the demo (recipe vision-sr1, preset pictures, and the same without the second pass), one thread: the second
   pass's share of a step, and images encoded a step by who encodes them, beside the distinct images of the step.
2. 8 answers to one picture of 289 tokens, a random Qwen2.5-VL of 6 M parameters, fp32: ours, where answers share their
   prompt, beside transformers with a row an answer, as TRL has it: generation, and log-probabilities with their
   backward pass. The two take turns within one process, and agree on the log-probabilities.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import logging

from sparring.config import resolve
from sparring.images import ImageStore, Picture
from sparring.lm.base import PromptGroup, SamplingParams
from sparring.lm.vision import VisionLM
from sparring.lm.vision_encoder import VisionEncoder
from sparring.pictures.tokenizer import IMAGE, VIDEO, VISION_END, VISION_START, build_tokenizer
from sparring.recipes import recipe
from sparring.run import train
from sparring.sampling.turns import TurnSampler

SIDE, ANSWERS, TOKENS, ROUNDS = 476, 8, 24, 5
WARMUP = 3


class Watch:
    """Seconds of the reader's sampling, and images through a tower: by the frozen start, by the policy while it
    samples (its old log-probabilities come with the samples), and in the update, where gradients are wanted."""

    def __init__(self) -> None:
        self.reader, self.encoded, self.shown = 0.0, Counter[str](), set[int]()
        self._sample, self._together, self._encode = TurnSampler.sample, VisionEncoder.together, VisionEncoder.encode

    def __enter__(self) -> Watch:
        watch, sample, together, encode = self, self._sample, self._together, self._encode

        def timed(sampler: TurnSampler, role: Any, *args: Any, **named: Any) -> Any:
            began = time.perf_counter()
            turns = sample(sampler, role, *args, **named)
            if role.name == "reader":
                watch.reader += time.perf_counter() - began
            return turns

        def counted(encoder: VisionEncoder, patches: Sequence[Any]) -> Any:
            trained = any(p.requires_grad for p in encoder._model.visual.parameters())
            who = "update" if torch.is_grad_enabled() and trained else "policy" if trained else "frozen"
            watch.encoded[who] += len(patches)
            return together(encoder, patches)

        def noted(encoder: VisionEncoder, handles: Any) -> Any:
            wanted = list(handles)
            watch.shown.update(wanted)
            return encode(encoder, wanted)

        TurnSampler.sample, VisionEncoder.together, VisionEncoder.encode = timed, counted, noted
        return self

    def __exit__(self, *_: object) -> None:
        TurnSampler.sample, VisionEncoder.together, VisionEncoder.encode = self._sample, self._together, self._encode

    def drain(self) -> dict[str, Any]:
        """What there was since the last call."""
        found = {"reader": self.reader, "images": len(self.shown), "encoded": dict(self.encoded)}
        self.reader, self.encoded, self.shown = 0.0, Counter[str](), set[int]()
        return found


class Steps:
    """An observer: what each step took."""

    training = False

    def __init__(self, watch: Watch) -> None:
        self.found: list[dict[str, Any]] = []
        self._watch = watch

    def said(self, message: str) -> None:
        """Nothing is shown."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **named: None

    def stepped(self, step: int, *args: Any, **named: Any) -> None:
        """A step is done."""
        self.found.append(self._watch.drain())


def demo_steps(preset: str, steps: int) -> dict[str, Any]:
    """Medians over a run's steps after the first few."""
    given = (f"steps={WARMUP + steps}", "threads=1", "trackers=none", "evaluation.every=0", "evaluation.final_n=1")
    with tempfile.TemporaryDirectory() as folder, Watch() as watch:
        steps_seen = Steps(watch)
        train(resolve(recipe("vision-sr1", preset), None, given), Path(folder) / "run", observer=steps_seen)
        rows = [json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()]
    seconds = [row["seconds/step"] for row in rows if "seconds/step" in row][WARMUP:]
    found = steps_seen.found[-len(seconds) :]
    return {
        "step": median(seconds),
        "reader": median(one["reader"] for one in found),
        "reader_share": median(one["reader"] / took for one, took in zip(found, seconds, strict=True)),
        "images": median(one["images"] for one in found),
        **{
            f"encoded_{who}": median(one["encoded"].get(who, 0) for one in found)
            for who in ("policy", "update", "frozen")
        },
    }


def random_model() -> tuple[Qwen2_5_VLForConditionalGeneration, Any, ImageStore]:
    """Model, tokenizer and the store of its images; patches of 14 pixels, merged two by two."""
    tokenizer = build_tokenizer()
    ids = tokenizer.get_vocab()
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "bos_token_id": None,
            "eos_token_id": None, "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [8, 12, 12]},
        },
        vision_config={
            "depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": 256,
            "patch_size": 14, "fullatt_block_indexes": [0, 1, 2, 3],
        },
        image_token_id=ids[IMAGE], video_token_id=ids[VIDEO],
        vision_start_token_id=ids[VISION_START], vision_end_token_id=ids[VISION_END],
    )  # fmt: skip
    torch.manual_seed(0)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": SIDE**2, "longest_edge": SIDE**2})
    return Qwen2_5_VLForConditionalGeneration(config), tokenizer, ImageStore(processor)


class Ours:
    """Answers that share their prompt."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, images: ImageStore, prompt: list[int]) -> None:
        self._lm = VisionLM(model, torch.float32, True, images)
        self._prompt, self._model = prompt, model

    def generate(self) -> Any:
        """ANSWERS answers of TOKENS tokens."""
        self._lm.refresh()  # as after an update: nothing is remembered
        uniforms = np.random.default_rng(0).random((ANSWERS, TOKENS), dtype=np.float32)
        return self._lm.generate([self._prompt], ANSWERS, SamplingParams(TOKENS, stop_ids=()), uniforms)[0]

    def learn(self, answers: list[list[int]]) -> torch.Tensor:
        """Log-probabilities [ANSWERS * TOKENS] and the gradients of their sum."""
        self._model.zero_grad()
        scores = self._lm.score([PromptGroup(tuple(self._prompt), tuple(map(tuple, answers)))])
        scores.logprobs_S.sum().backward()
        return scores.logprobs_S.detach()


class Theirs:
    """transformers with a row an answer."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, images: ImageStore, prompt: list[int]) -> None:
        self._model, token = model, model.config.image_token_id
        (handle,) = {i for i in prompt if i < 0}
        made = images.patches(handle)
        self._ids = torch.tensor([[token if i < 0 else i for i in prompt]]).repeat(ANSWERS, 1)
        self._pixels = made.pixel_values.repeat(ANSWERS, 1)
        self._grid = torch.tensor([made.grid_thw]).repeat(ANSWERS, 1)
        self._never = [token, model.config.video_token_id, model.config.vision_start_token_id]
        self._never.append(model.config.vision_end_token_id)

    def generate(self) -> Any:
        """ANSWERS answers of TOKENS tokens."""
        with torch.inference_mode():
            return self._model.generate(
                input_ids=self._ids, attention_mask=torch.ones_like(self._ids), do_sample=True, top_k=0,
                max_new_tokens=TOKENS, min_new_tokens=TOKENS, suppress_tokens=self._never, eos_token_id=None,
                pad_token_id=0, **self._images(self._ids),
            )  # fmt: skip

    def learn(self, answers: list[list[int]]) -> torch.Tensor:
        """Log-probabilities [ANSWERS * TOKENS] and the gradients of their sum."""
        self._model.zero_grad()
        ids = torch.cat([self._ids, torch.tensor(answers)], 1)
        logits = self._model(input_ids=ids, use_cache=False, **self._images(ids)).logits[:, -TOKENS - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(2, ids[:, -TOKENS:, None]).squeeze(-1)
        logprobs.sum().backward()
        return logprobs.detach().flatten()

    def _images(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = (ids == self._model.config.image_token_id).int()
        return {"pixel_values": self._pixels, "image_grid_thw": self._grid, "mm_token_type_ids": seen}


def shared_prompts() -> dict[str, Any]:
    """Medians of CPU seconds, and their ratio: theirs over ours."""
    model, tokenizer, images = random_model()
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    handle, tokens = images.add(Picture.open(Image.fromarray(noise)))
    text = tokenizer.encode("What colour is at top-left?")
    ids = tokenizer.get_vocab()
    prompt = [ids[VISION_START], *[handle] * tokens, ids[VISION_END], *text]
    sides = {"ours": Ours(model, images, prompt), "transformers": Theirs(model, images, prompt)}
    answers = np.random.default_rng(1).choice(text, (ANSWERS, TOKENS)).tolist()
    first, second = (side.learn(answers) for side in sides.values())
    torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    took: dict[str, dict[str, list[float]]] = {name: {"generate": [], "learn": []} for name in sides}
    for _ in range(ROUNDS + 1):
        for name, side in sides.items():
            for phase, work in {"generate": side.generate, "learn": lambda side=side: side.learn(answers)}.items():
                began = time.process_time()
                work()
                took[name][phase].append(time.process_time() - began)
    medians = {name: {phase: median(times[1:]) for phase, times in of.items()} for name, of in took.items()}
    ratios = {phase: medians["transformers"][phase] / medians["ours"][phase] for phase in ("generate", "learn")}
    return {"image_tokens": tokens, **medians, "ratio": ratios}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="What Vision-SR1 costs.")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each run")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    figures: dict[str, Any] = {
        preset: demo_steps(preset, options.steps) for preset in ("pictures", "pictures-answer-only")
    }
    for preset, one in figures.items():
        print(
            f"{preset:21} step {one['step']:.3f} s, second pass {one['reader']:.3f} s ({one['reader_share']:.1%}); "
            f"{one['images']:.0f} images, encoded {one['encoded_policy']:.0f} times to sample, "
            f"{one['encoded_update']:.0f} with gradients, {one['encoded_frozen']:.0f} by the frozen start"
        )
    figures["shared_prompts"] = shared = shared_prompts()
    for phase, ratio in shared["ratio"].items():
        ours, theirs = shared["ours"][phase], shared["transformers"][phase]
        print(f"{phase:9} ours {ours:.3f} s, transformers {theirs:.3f} s, transformers / ours {ratio:.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
