"""Tiny random models that look like the real ones: tokenizer, chat template, folder. Made here, as no hub is needed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sparring.lm.load import save_model
from sparring.prompts import read

Style = Literal["llama3", "qwen3"]

# The shape of Llama 3's: the text begins with bos, which the tokenizer would add a second time.
LLAMA3_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
<|start_header_id|>{{ message['role'] }}<|end_header_id|>

{{ message['content'] | trim }}<|eot_id|>
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
"""

# The shape of Qwen3's: enable_thinking=false writes an empty, closed thought; prefill_thinking stands for the
# models whose template opens the thought itself.
QWEN3_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['role'] == 'assistant' and '</think>' in message['content'] -%}
{{ message['content'].split('</think>')[-1].lstrip('\\n') }}
{%- else -%}
{{ message['content'] }}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false -%}
<think>

</think>

{% elif prefill_thinking is defined and prefill_thinking -%}
<think>
{% endif -%}
{%- endif -%}
"""

_SPECIAL: dict[Style, list[str]] = {
    "llama3": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
_TEXTS = (
    "The quick brown fox jumps over the lazy dog. Which planet is the largest? Jupiter. 0 1 2 3 4 5 6 7 8 9",
    "<input> </input> <calculation>1 + 1 + 0 + 1 + 1 + 0 + 1 = 5</calculation> <score>5</score> user assistant system",
)


@cache
def _bpe(style: Style) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=_SPECIAL[style],
    )
    tokenizer.train_from_iterator([*_TEXTS, read("challenger"), read("grader")], trainer)
    if style == "llama3":
        bos = _SPECIAL["llama3"][0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer.to_str()


def chat_tokenizer(style: Style = "llama3") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 600 tokens with a chat template. llama3 adds bos itself; qwen3 has no bos
    and knows <think> and </think> as tokens that are not special."""
    names = {
        "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"},
        "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    }[style]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_bpe(style)), **names)
    if style == "qwen3":
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = LLAMA3_TEMPLATE if style == "llama3" else QWEN3_TEMPLATE
    return tokenizer


def sizes(tokenizer: PreTrainedTokenizerFast, **config: Any) -> dict[str, Any]:
    """A tiny configuration for this tokenizer; keyword arguments replace parts of it."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config,
    }


def save_tiny_llama(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A random Llama with the llama3 tokenizer, in a folder."""
    tokenizer = chat_tokenizer("llama3")
    torch.manual_seed(seed)
    save_model(LlamaForCausalLM(LlamaConfig(**sizes(tokenizer, tie_word_embeddings=True, **config))), tokenizer, folder)
    return folder


def save_tiny_qwen3(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A random Qwen3 with the qwen3 tokenizer, in a folder."""
    tokenizer = chat_tokenizer("qwen3")
    torch.manual_seed(seed)
    settings = sizes(tokenizer, **{"head_dim": 8, "tie_word_embeddings": False, **config})
    save_model(Qwen3ForCausalLM(Qwen3Config(**settings)), tokenizer, folder)
    return folder


def save_tiny_reward(folder: Path, seed: int = 1, spread: float = 1.0, **config: Any) -> Path:
    """A random Llama reward model (one label) with the llama3 tokenizer; spread multiplies its scores."""
    tokenizer = chat_tokenizer("llama3")
    torch.manual_seed(seed)
    model = LlamaForSequenceClassification(LlamaConfig(**sizes(tokenizer, num_labels=1, **config)))
    with torch.no_grad():
        model.score.weight.mul_(spread)
    save_model(model, tokenizer, folder)
    return folder
