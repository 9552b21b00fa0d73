"""Causal language models on disk: plain Hugging Face folders, loaded with their padded vocabulary rows masked."""

import hashlib
import json
import math
import os
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, processors
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lib import processor
from lib.errors import UserError

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # an installed DeepSpeed, which accelerate imports, would warn of it
processor.multiply_by_onednn()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    attention: str = "sdpa",
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model, in eval mode, and its tokenizer.

    Logits of rows beyond the tokenizer's vocabulary (padding) are -inf, so they never take part in a softmax.

    Args:
        folder: a Hugging Face folder with config.json, safetensors and tokenizer.json.
        dtype: of the weights in memory.
        device: where to put it; the CPU if not given.
        attention: transformers' attention implementation.

    Raises:
        UserError: the folder is no such model, or its tokenizer is another model's.
    """
    tokenizer = load_tokenizer(folder)
    refuse_code(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a model that transformers can load ({str(error).splitlines()[0]})") from None
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {rows} rows: not its tokenizer"
        )
    mask_padded_rows(model, len(tokenizer))
    model.eval()
    return (model.to(device) if device is not None else model), tokenizer


def refuse_code(folder: Path) -> None:
    """Stop at a model that is to be run by Python code which comes with it: asked, transformers would run it.

    Where transformers has an architecture itself, its own code is taken, and what lies beside the weights does not matter.

    Raises:
        UserError: transformers has none for it.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # which transformers tells better
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise UserError(
            f"{folder}: this model needs code of its own (auto_map in config.json), which is never run; take one of an "
            "architecture that transformers has"
        )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a folder, as its tokenizer.json has it.

    Not by AutoTokenizer: for some classes that tokenizer_config.json names, transformers 5 puts a pre-tokenizer of its own in
    place of the file's (GPT-4o's became GPT-2's, and one line in five got other ids).

    Raises:
        UserError: the folder has no tokenizer.json that loads.
    """
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: no tokenizer.json, so no fast tokenizer to load")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: the tokenizer does not load ({str(error).splitlines()[0]})") from None


def head_weight(model: PreTrainedModel) -> torch.nn.Parameter:
    """The LM head's matrix (rows x hidden); the input embedding's where they are tied."""
    return model.get_output_embeddings().weight


def mask_padded_rows(model: PreTrainedModel, tokens: int) -> None:
    """Make the logits of rows from `tokens` on -inf, for every caller of the model."""
    head = model.get_output_embeddings()
    # Not the weight's shape, which is empty where DeepSpeed partitions it (ZeRO-3).
    if model.get_input_embeddings().num_embeddings <= tokens:
        return

    def mask(_: torch.nn.Module, __: tuple, logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([logits[..., :tokens], torch.full_like(logits[..., tokens:], -math.inf)], dim=-1)

    head.register_forward_hook(mask)


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A digest of the vocabulary: equal for two folders whose token ids mean the same."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def check_same_tokenizer(tokenizer: PreTrainedTokenizerFast, expected: str, folder: Path, other: Path) -> None:
    """Refuse a checkpoint whose token ids mean something else than those of `other`.

    Raises:
        UserError: the vocabularies differ.
    """
    if fingerprint(tokenizer) != expected:
        raise UserError(f"{folder} has another tokenizer than {other} was made with; run make on both again")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A plain Hugging Face folder; padded rows are suppressed in generation for tools that don't mask them."""
    padded = list(range(len(tokenizer), model.get_input_embeddings().num_embeddings))
    if model.generation_config is not None:
        model.generation_config.suppress_tokens = padded or None
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def dress(fast: Tokenizer, base: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that plays the base's part: its special tokens by role, its context length, and a chat template.

    A base without an unknown token gets `<unk>` if the new vocabulary has it; without a padding token, its end token.
    """
    roles = {f"{role}_token": getattr(base, f"{role}_token") for role in ("bos", "eos", "unk", "pad")}
    if roles["unk_token"] is None and fast.token_to_id("<unk>") is not None:
        roles["unk_token"] = "<unk>"
    roles["pad_token"] = roles["pad_token"] or roles["eos_token"]
    named = {token for token in roles.values() if token}
    added = base.backend_tokenizer.get_added_tokens_decoder()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        **{role: token for role, token in roles.items() if token},
        extra_special_tokens=[t.content for _, t in sorted(added.items()) if t.special and t.content not in named],
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=base.model_max_length,
    )


def begin_and_end_like(base: PreTrainedTokenizerFast, fast: Tokenizer) -> processors.PostProcessor | None:
    """The post-processor that puts bos before and eos behind a text where the base does."""
    ids = base("x")["input_ids"]
    begins, ends = ids[0] == base.bos_token_id, ids[-1] == base.eos_token_id
    if not (begins or ends):
        return None
    before = f"{base.bos_token} " if begins else ""
    after = f" {base.eos_token}" if ends else ""
    used = [token for token, there in ((base.bos_token, begins), (base.eos_token, ends)) if there]
    return processors.TemplateProcessing(
        single=f"{before}$A{after}",
        pair=f"{before}$A{after} {before}$B{after}",
        special_tokens=[(token, fast.token_to_id(token)) for token in dict.fromkeys(used)],
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """tokenizer.json, its config and the chat template, under a class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def context_length(folder: Path) -> int:
    """The longest sequence the model was made for, in tokens."""
    return AutoConfig.from_pretrained(folder, trust_remote_code=False).max_position_embeddings
