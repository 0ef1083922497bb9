"""What a transformers model turns out to be when tried: its cache, its head, a copy in another dtype."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache


def cast_copy(model: PreTrainedModel, dtype: torch.dtype, trainable: bool) -> PreTrainedModel:
    """A copy with parameters in `dtype`. Buffers keep theirs: rotary frequencies need float32."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(trainable and parameter.requires_grad)
    return copied


@torch.no_grad()
def check_cache(module: PreTrainedModel) -> None:
    """Raise ValueError unless the model is decoder-only and keeps its state in a transformers `Cache`."""
    name = type(module).__name__
    if module.config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder; use a decoder-only causal language model")
    cache = None
    if "past_key_values" in inspect.signature(module.forward).parameters:
        ids_BT = torch.zeros(1, 2, dtype=torch.long, device=module.device)
        cache = module(input_ids=ids_BT, use_cache=True).past_key_values
    if not isinstance(cache, Cache):
        raise ValueError(  # noqa: TRY004 - the model chosen is wrong, not the call
            f"{name} keeps its state in {type(cache).__name__}, not in a transformers Cache; "
            "use an attention or hybrid model that does"
        )


@torch.no_grad()
def has_plain_head(module: PreTrainedModel) -> bool:
    """Whether logits are exactly W · (the base model's last hidden state), so `head_scores` may stand in.

    The head's output is replaced by large random numbers: a softcap or scaling after it shows at any size
    of the weights, where comparing real logits would miss a softcap on small ones.
    """
    head = module.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return False
    ids_BT = torch.arange(4, device=module.device).remainder(head.out_features).unsqueeze(0)
    marks_BTV = torch.linspace(-90, 90, 4 * head.out_features, device=module.device, dtype=head.weight.dtype)
    marks_BTV = marks_BTV.view(1, 4, -1)
    seen: list[Tensor] = []

    def replace(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        seen.append(inputs[0])
        return marks_BTV

    handle = head.register_forward_hook(replace)
    try:
        logits_BTV = module(input_ids=ids_BT, use_cache=False).logits
    finally:
        handle.remove()
    hidden_BTD = module.base_model(input_ids=ids_BT, use_cache=False)[0]
    same_input = len(seen) == 1 and seen[0].shape == hidden_BTD.shape and torch.allclose(seen[0], hidden_BTD)
    return same_input and torch.equal(logits_BTV.to(marks_BTV.dtype), marks_BTV)
