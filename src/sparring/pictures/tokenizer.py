"""The picture world's tokenizer and chat template: one token a word, blanks left out and put back.

Special tokens and the template's treatment of images are those of Qwen2.5-VL, so that what handles its prompts
handles these.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse, Replace
from tokenizers.decoders import Sequence as Decoders
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from sparring.pictures.world import CELLS, COLOURS, ROWS, SHAPES

PAD, UNKNOWN, START, END = "<|endoftext|>", "<unk>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE, VIDEO = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
SPECIAL = (PAD, UNKNOWN, START, END, VISION_START, VISION_END, IMAGE, VIDEO)
NEVER_WRITTEN = (PAD, UNKNOWN, START, VISION_START, VISION_END, IMAGE, VIDEO)
"""What a model may not sample: an image token without an image breaks its next pass."""
MARKS = ("<description>", "</description>", "<think>", "</think>", "\\boxed{", "}", "?")
USUALLY = "usually"
"""How a thought says that the answer is the commonest one, not one seen or read."""
SPEAKERS = ("system", "user", "assistant")
COUNTS = ("0", "1", "2", "3")
_ASKING = ("what", "colour", "shape", "is", "at", "which", "row", "has", "most", "how", "many", "are", "in", "the")
# Cell, colour and shape are one word together: where they are two or three, so small a model reads descriptions badly
# (it has to learn to find a word by the words before it, and takes too long).
THINGS = tuple(f"{cell}:{colour}-{shape}" for cell in CELLS for colour in COLOURS for shape in SHAPES)
WORDS = (*SPEAKERS, *_ASKING, *ROWS, *CELLS, *THINGS, *COLOURS, *SHAPES, *COUNTS, USUALLY)
VOCABULARY = (*SPECIAL, *MARKS, *WORDS)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, ready to be saved beside the model."""
    core = Tokenizer(WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    core.normalizer = Lowercase()
    core.pre_tokenizer = Sequence([Split(Regex(r"</?[a-z]+>|\\boxed\{|[}?]"), behavior="isolated"), WhitespaceSplit()])
    blank_before_words = Replace(Regex(r"^(?=[a-z0-9])"), " ")
    none_after_marks = Replace(Regex(r"(?<=[>{]) |^ "), "")
    core.decoder = Decoders([blank_before_words, Fuse(), none_after_marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[START, VISION_START, VISION_END, IMAGE, VIDEO],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=256,
    )
