"""The arena's tokenizer and chat template: word-level, 58 tokens, nothing lost.

Every keyword ends in a sign that is no token of its own (`:`, `>`, `{}`), so letters can never add up to a
keyword: ids → text → ids and text → ids → text are both the identity on the arena's tokens.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from sparring.arena.language import (
    ANSWER_SEPARATOR,
    BLANK,
    CHALLENGER,
    FAMILIES,
    GRADER,
    LETTERS,
    OPERATIONS,
    SOLVER,
    TASK_SEPARATOR,
)

PAD, EOS, GO, UNKNOWN = "<pad>", "<eos>", "<go>", "<unk>"
SPECIAL = (PAD, EOS, GO, UNKNOWN)
KEYWORDS = (
    CHALLENGER,
    SOLVER,
    GRADER,
    *(family + ":" for family in FAMILIES),
    *(family.capitalize() + TASK_SEPARATOR for family in FAMILIES),
    BLANK,
)
DIGITS = "01234567"  # of grades
SYMBOLS = (*LETTERS, *DIGITS, *OPERATIONS, "=", ANSWER_SEPARATOR)
VOCABULARY = (*SPECIAL, *KEYWORDS, *SYMBOLS)

# A user's message stands bare; the model speaks between <go> and <eos>.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    + GO
    + "{% generation %}{{ message['content'] }}"
    + EOS
    + "{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + GO + "{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, ready to be saved beside the model."""
    core = Tokenizer(WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    pattern = "|".join([*KEYWORDS, r"[\s\S]"]).replace(BLANK, r"\{\}")
    core.pre_tokenizer = Split(Regex(pattern), behavior="isolated")
    core.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[GO],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=128,
    )
