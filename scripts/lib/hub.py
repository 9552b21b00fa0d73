"""What a folder has to hold to be uploaded as it is and loaded by any tool: transformers, and vLLM, whose loader is the strictest.

vLLM (sources of late 2026 read, nothing run) asks of a local folder: `architectures` names a class of its registry (models/registry.py); all
*.safetensors of the top level are weights, but for shards their index does not name, and a consolidated*.safetensors or
params.json would be read as Mistral's own format (default_loader.py); the embedding and an untied head have config.vocab_size rows
exactly (VocabParallelEmbedding.weight_loader asserts it); no id beyond them. It pads the vocabulary to multiples of 64 by itself and
masks what it padded, so a checkpoint need not be padded; rows padded here would count as tokens there, as it ignores suppress_tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from lib import models, spm
from lib.errors import UserError

# Of vLLM's registry, those that this project makes.
VLLM_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
VLLM_PADDING = 64
NEEDED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
MISTRAL_FORMAT = ("consolidated*.safetensors", "params.json", "tekken.json")


def problems(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, ends: set[int]) -> list[str]:
    """What is wrong with an exported folder, a line each; nothing is what it should be.

    It is loaded anew, by transformers' own classes, and compared with what it was made of: every weight, and the ids of hostile lines.

    Args:
        folder: the exported one.
        model: the model that was saved there, in the dtype it was saved in.
        tokenizer: the tokenizer that was.
        ends: ids that end an answer.
    """
    lacking = [f"{name} is missing" for name in NEEDED if not (folder / name).is_file()]
    return lacking or [
        *_about_files(folder),
        *_about_model(folder, model, len(tokenizer)),
        *_about_tokens(folder, tokenizer, ends),
    ]


def tensor_parallel(config: dict[str, object], most: int = 16) -> list[int]:
    """Numbers of GPUs that vLLM can share a model over: heads, MLP and padded vocabulary divide, key heads divide or repeat."""
    rows = -(-config["vocab_size"] // VLLM_PADDING) * VLLM_PADDING
    divided = (config["num_attention_heads"], config["intermediate_size"], rows)
    keys = config["num_key_value_heads"]
    return [n for n in range(1, most + 1) if not any(size % n for size in divided) and not (keys % n and n % keys)]


def read_card(path: Path) -> ModelCard:
    """A model card; its metadata are `.data`.

    Raises:
        UserError: there is no metadata block that the Hub can read.
    """
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: the Hub can't read its metadata block ({' '.join(str(error).split())})") from None
    if not card.data.to_dict():
        raise UserError(f"{path}: it has no metadata block (licence, language, base model) between '---' lines")
    return card


def _about_files(folder: Path) -> Iterator[str]:
    for pattern in (*PICKLES, *MISTRAL_FORMAT):
        for path in sorted(folder.rglob(pattern)):
            yield f"{path.name}: pickled weights, or another format's, that some loader would take instead"
    shards = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    named = (
        set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if index.is_file()
        else {"model.safetensors"}
    )
    if shards != named:
        yield f"shards {sorted(shards)} where {sorted(named)} belong"


def _about_model(folder: Path, model: PreTrainedModel, tokens: int) -> Iterator[str]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not set(config.get("architectures") or []) & set(VLLM_ARCHITECTURES):
        yield f"config.json: architectures is {config.get('architectures')}; vLLM takes {', '.join(VLLM_ARCHITECTURES)}"
    loaded, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=model.dtype, output_loading_info=True, use_safetensors=True, trust_remote_code=False
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loading[kind]:
            yield f"transformers finds {kind}: {sorted(map(str, loading[kind]))[:3]}"
    saved = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        if not torch.equal(parameter, saved[name]):
            yield f"{name} is not what was saved"
    for name, layer in (("embedding", loaded.get_input_embeddings()), ("head", loaded.get_output_embeddings())):
        if layer.weight.shape[0] != config["vocab_size"]:
            yield f"the {name} has {layer.weight.shape[0]} rows, config.json's vocab_size is {config['vocab_size']}"
        if layer.weight[tokens:].any():
            yield f"rows of the {name} beyond the vocabulary are not zero"
    padded = list(range(tokens, config["vocab_size"]))
    if (loaded.generation_config.suppress_tokens or []) != padded:
        yield f"generation_config.json: suppress_tokens is not the {len(padded)} rows beyond the vocabulary"
    if not config.get("use_cache", True):
        yield "config.json: use_cache is off, so answers take many times as long"


def _about_tokens(folder: Path, tokenizer: PreTrainedTokenizerFast, ends: set[int]) -> Iterator[str]:
    config, generation = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "generation_config.json")
    )
    if max(tokenizer.get_vocab().values()) >= config["vocab_size"]:
        yield f"the tokenizer has ids from config.json's vocab_size ({config['vocab_size']}) on"
    for loaded in (AutoTokenizer.from_pretrained(folder, trust_remote_code=False), models.load_tokenizer(folder)):
        if not loaded.is_fast:
            yield "the tokenizer does not load as a fast one"
        if loaded(list(spm.HOSTILE))["input_ids"] != tokenizer(list(spm.HOSTILE))["input_ids"]:
            yield f"{type(loaded).__name__} gives other ids than the tokenizer that was saved"
        if not loaded.chat_template or loaded.chat_template != tokenizer.chat_template:
            yield "the chat template is missing or another one"
    found = generation.get("eos_token_id")
    if set(found if isinstance(found, list) else [found]) != ends:
        yield f"generation_config.json: eos_token_id is {found}, answers end with {sorted(ends)}"
