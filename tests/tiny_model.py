"""A random two-layer model with a byte-level BPE tokenizer and a chat template, made in a second."""

from collections import Counter

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as kinds
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lib import spm

LINES = [
    "Поезд остановился посреди поля, правильно? Да, Нет, Так.",
    "На столе лежат старые письма. Какая планета ближе всех к Солнцу?",
    "Вопрос. A. B. C. D. E. F. G. H. I. J. Ответ: A",
    "The old letters are on the table.",
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def words(lines):
    """Words and their counts, what spm.train takes."""
    counts = Counter()
    for line in lines:
        spm.count_words(counts, line)
    return counts


def tokenizer(special=("<|im_start|>", "<|im_end|>"), chat=CHAT, size=400):
    raw = Tokenizer(kinds.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(LINES * 5, trainer)
    names = dict(zip(("bos_token", "eos_token"), special, strict=False))
    made = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    made.chat_template = chat
    return made


def model(rows, **settings):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=rows, max_position_embeddings=2048, initializer_range=0.3, pad_token_id=None, **shape, **settings
    )
    return LlamaForCausalLM(config).eval()


def save(folder, scale=1.0):
    made = tokenizer()
    saved = model(len(made), bos_token_id=made.bos_token_id, eos_token_id=made.eos_token_id)
    with torch.no_grad():
        for weight in saved.parameters():
            weight.mul_(scale)
    saved.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
