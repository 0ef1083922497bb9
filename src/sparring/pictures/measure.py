"""What a model sees, says and reads on held-out pictures: the figures that `pictures.json` records.

python -m sparring.pictures.measure MODEL --seed 1 --n 1000
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sparring.pictures.descriptions import Fidelity, split_fidelity, sufficient
from sparring.pictures.domain import Item, questions, rule_match
from sparring.pictures.network import expand
from sparring.pictures.questions import KINDS
from sparring.pictures.response import Response, parse_response, reader_prompt
from sparring.pictures.tokenizer import USUALLY
from sparring.pictures.world import DEV_SEED, ROWS

MAX_NEW_TOKENS = 32
"""Enough for the longest response: nine things, the counts of three rows and the answer take 23."""
ROWS_AT_ONCE = 250


class Speaker:
    """A model that answers prompts, with a picture each or none.

    Args:
        model, tokenizer, processor: of one folder; see `load`.
        sampling_seed: None answers greedily; else draws at temperature 1.
    """

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        processor: Qwen2VLImageProcessorPil,
        sampling_seed: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer, self.processor, self.sampling_seed = tokenizer, processor, sampling_seed

    def __call__(self, texts: Sequence[str], pictures: Sequence[Image.Image] | None = None) -> list[str]:
        """One completion of each text, the picture (where there are any) before it; no special tokens."""
        if self.sampling_seed is not None:
            torch.manual_seed(self.sampling_seed)
        said: list[str] = []
        for at in range(0, len(texts), ROWS_AT_ONCE):
            rows = slice(at, at + ROWS_AT_ONCE)
            said += self._batch(texts[rows], None if pictures is None else pictures[rows])
        return said

    @torch.inference_mode()
    def _batch(self, texts: Sequence[str], pictures: Sequence[Image.Image] | None) -> list[str]:
        image = [] if pictures is None else [{"type": "image"}]
        messages: list[Any] = [
            [{"role": "user", "content": [*image, {"type": "text", "text": text}]}] for text in texts
        ]
        rendered = [
            self.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            for message in messages
        ]
        batch = dict(
            self.tokenizer(
                [expand(str(text)) for text in rendered],
                return_tensors="pt",
                padding=True,
                return_token_type_ids=False,
            )
        )
        if pictures is not None:
            batch |= dict(self.processor(list(pictures), return_tensors="pt"))
            batch["mm_token_type_ids"] = (batch["input_ids"] == self.model.config.image_token_id).int()
        sampling = {"do_sample": False} if self.sampling_seed is None else {"do_sample": True, "top_k": 0}
        ids_BT = cast(Any, self.model).generate(**batch, max_new_tokens=MAX_NEW_TOKENS, **sampling)
        return self.tokenizer.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def load(folder: str | Path) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerBase, Any]:
    """Model, tokenizer and image processor of a folder."""
    return (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        Qwen2VLImageProcessorPil.from_pretrained(folder),
    )


def _share(values: Sequence[Any] | np.ndarray) -> float | None:
    """The mean; None of nothing."""
    return round(float(np.mean(values)), 4) if len(values) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _fidelity(items: Sequence[Item], responses: Sequence[Response]) -> dict[str, Any]:
    halves = [
        split_fidelity(response.description, item.scene, item.asked)
        for item, response in zip(items, responses, strict=True)
    ]
    asked = sum((half for half, _ in halves), Fidelity())
    unasked = sum((half for _, half in halves), Fidelity())
    parts = {"all": asked + unasked, "asked": asked, "unasked": unasked}
    return {
        name: {"precision": _rounded(part.precision), "recall": _rounded(part.recall)} for name, part in parts.items()
    }


def summary(items: Sequence[Item], texts: Sequence[str], replies: Sequence[str]) -> dict[str, Any]:
    """All figures of responses to items and a reader's replies to their descriptions.

    accuracy: the boxed answer is right. sufficient: by the grader, the answer follows from the description. lsr: right
    though not sufficient, of all. reader: its accuracy, in all and by whether the description sufficed; without a
    description it is wrong. usual: a thought says that the answer is the usual one.
    """
    responses = [parse_response(text) for text in texts]
    right = np.array([rule_match(r.answer, item.answer) for item, r in zip(items, responses, strict=True)])
    enough = np.array(
        [sufficient(r.description, item.asked, item.answer) for item, r in zip(items, responses, strict=True)]
    )
    read = np.array(
        [
            r.description is not None and rule_match(parse_response(reply).answer, item.answer)
            for item, r, reply in zip(items, responses, replies, strict=True)
        ]
    )
    cuts = {"kind": [item.kind for item in items], "row": [item.row or "all" for item in items]}
    return {
        "accuracy": _share(right),
        "lsr": _share(right & ~enough),
        "sufficient": _share(enough),
        "in_form": _share([response.in_form for response in responses]),
        "usual": _share([f"<think>{USUALLY}<" in text for text in texts]),
        "reader": {"all": _share(read), "sufficient": _share(read[enough]), "insufficient": _share(read[~enough])},
        "description": _fidelity(items, responses),
        **{
            f"by_{cut}": {
                name: {
                    "n": int(np.sum(chosen)),
                    "accuracy": _share(right[chosen]),
                    "lsr": _share((right & ~enough)[chosen]),
                    "sufficient": _share(enough[chosen]),
                    "reader_sufficient": _share(read[chosen & enough]),
                }
                for name in names
                if (chosen := np.array([value == name for value in cuts[cut]])).any()
            }
            for cut, names in {"kind": KINDS, "row": (*ROWS, "all")}.items()
        },
    }


def measure(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    processor: Qwen2VLImageProcessorPil,
    *,
    seed: int = DEV_SEED,
    n: int = 1000,
) -> dict[str, Any]:
    """Greedy, and at temperature 1, on n held-out items of the seed; the reader is greedy in both."""
    items = questions("held-out", seed, n)
    asked, pictures = [item.question for item in items], [item.picture for item in items]
    reader = Speaker(model, tokenizer, processor)
    figures: dict[str, Any] = {"seed": seed, "n": n}
    for name, sampling_seed in {"greedy": None, "sampled": seed}.items():
        texts = Speaker(model, tokenizer, processor, sampling_seed)(asked, pictures)
        described = [parse_response(text).description or "" for text in texts]
        replies = reader([reader_prompt(*pair) for pair in zip(asked, described, strict=True)])
        figures[name] = summary(items, texts, replies)
    return figures


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure a model on held-out pictures.")
    parser.add_argument("model", type=Path, help="folder with model, tokenizer and image processor")
    parser.add_argument("--seed", type=int, default=DEV_SEED, help="of items and sampling")
    parser.add_argument("--n", type=int, default=1000, help="items")
    parser.add_argument("--threads", type=int, default=1, help="torch's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sys.stdout.write(json.dumps(measure(*load(options.model), seed=options.seed, n=options.n), indent=2) + "\n")


if __name__ == "__main__":
    main()
