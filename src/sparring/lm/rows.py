"""Rows of token ids as padded tensors, drawn tensors as completions: what goes around a forward of the generic path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from sparring.lm.base import Completion

Row = tuple[tuple[int, ...], tuple[int, ...]]  # prompt, completion


def score_batches(rows: Sequence[Row], budget: int) -> Iterator[list[int]]:
    """Row indices by length, rows times longest within the budget (a longer row goes alone)."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1])):
        if batch and (len(batch) + 1) * (len(rows[i][0]) + len(rows[i][1])) > budget:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids [Q, T] and mask [Q, T], padding (id 0) on the left."""
    longest = max(map(len, prompts))
    ids_QT = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts])
    lengths_Q1 = torch.tensor([[len(ids)] for ids in prompts])
    return ids_QT, (torch.arange(longest) >= longest - lengths_Q1).long()


def right_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Ids [B, T], padding (id 0) on the right."""
    longest = max(map(len, rows))
    return torch.tensor([list(ids) + [0] * (longest - len(ids)) for ids in rows])


def completions(
    rows_R: list[int], chosen_RT: Tensor, logprobs_RT: Tensor, length_R: Tensor, stop_ids: Sequence[int]
) -> dict[int, Completion]:
    """What was drawn, up to each row's length, under the rows' numbers."""
    ids, logprobs, lengths = chosen_RT.tolist(), logprobs_RT.cpu().numpy(), length_R.tolist()
    done: dict[int, Completion] = {}
    for r, (row, length) in enumerate(zip(rows_R, lengths, strict=True)):
        finish: Literal["stop", "length"] = "stop" if ids[r][length - 1] in stop_ids else "length"
        done[row] = Completion(tuple(ids[r][:length]), logprobs[r, :length].copy(), finish)
    return done
