"""Chat templates of the shapes seen in public, and a small tokenizer that encodes by them."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fm.data import Chat, Example
from fm.request import TaskType
from fm_local.models.tokenizer import PRESET_TEMPLATE, ChatTemplate, chat_template_of
from fm_local.prepare.encoding import Encoded, Encoder
from fm_local.prepare.rendering import Renderer

CHAT, INSTRUCTION, TEXT = TaskType.CHAT_COMPLETION, TaskType.INSTRUCTION_FINETUNE, TaskType.CONTINUED_PRETRAIN
CORPUS = ["hello world\n\nhow are you? I am fine.\n", "user\nassistant\nsystem\n The answer is 42. 日本語 ✓ naïve"] * 20
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('no system message') }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.last %}{{ m.content }}{% else %}{{ m.content.split('</think>')[-1] }}{% endif %}<|im_end|>\n"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BARE = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
BARE += "{% if add_generation_prompt %}assistant: {% endif %}"
TEMPLATES = {"preset": PRESET_TEMPLATE, "fallback": None, "llama2": LLAMA2, "llama3": LLAMA3, "bare": BARE}


def small_tokenizer(
    template: str | None = PRESET_TEMPLATE, *, bos: bool = False, metaspace: bool = False, eos: bool = True
) -> Any:
    """A small BPE tokenizer; `bos` adds one as Llama's do; `metaspace` is of SentencePiece's kind."""
    inner = Tokenizer(models.BPE(unk_token="<unk>" if metaspace else None))
    if metaspace:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        alphabet: list[str] = []
    else:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<unk>"]
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>" if eos else None,
        pad_token="</s>" if eos else None,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def encode(
    tokenizer: Any,
    example: Example | dict[str, Any],
    task_type: TaskType = CHAT,
    *,
    train_on: Any = "last",
    length: int = 4096,
) -> Encoded:
    """An example as the check writes it, of `length` tokens at most."""
    if isinstance(example, dict):
        example = Chat(example["messages"])
    template = chat_template_of(tokenizer) if task_type is CHAT else None
    rendered = Renderer(ChatTemplate(template or "", tokenizer.special_tokens_map), train_on).render([example])
    encoder = Encoder(tokenizer, task_type, template=template, context_length=length)
    return encoder.finish(rendered[0], encoder.encode(rendered)[0])


def spans(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The decoded trained stretches of a single row."""
    [(ids, mask)] = encoded.rows
    texts, current = [], []
    for token, trained in zip([*ids.tolist(), None], [*mask, 0], strict=True):
        if trained:
            current.append(token)
        elif current:
            texts.append(tokenizer.decode(current))
            current = []
    return texts
