"""Make of a checkpoint what others load: a folder to upload to the Hub, and a file for llama.cpp.

    python scripts/export.py --model=checkpoints/demo/sft --name=demo-sft --out=checkpoints/demo/export/sft

Reads:  a Hugging Face model folder of this project; a model card (Markdown with the Hub's metadata block), where there is one.
Writes: hub/ (safetensors, configuration, tokenizer, chat template, generation config, README.md), <name>-<kind>.gguf. Nothing is uploaded:
        the commands for it are printed. hub/ is loaded anew and compared before the folder gets its name.
"""

import shutil
from pathlib import Path
from typing import Literal

import gguf as llama_cpp
import torch
from transformers import AutoConfig, PreTrainedModel

from lib import cli, generation, gguf_model, hub, models, progress, stage
from lib.errors import UserError

HUB = "hub"


def main(
    *,
    model: Path,
    name: str,
    out: Path,
    card: Path | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16",
    gguf: Literal["f32", "f16", "bf16", "q8_0", "none"] = "f16",
    pad_to_multiple: int = 1,
    shard_gb: float = 5.0,
) -> None:
    """Write a checkpoint as a Hub-ready folder and as a GGUF file.

    Args:
        model: folder of the checkpoint; its tokenizer needs a chat template.
        name: of the model, in the GGUF file and the commands to upload.
        out: folder to write.
        card: the model card; the folder has none if not given.
        dtype: of the folder's weights.
        gguf: of the GGUF file's matrices, made of the checkpoint's own weights; none leaves the file out.
        pad_to_multiple: rows of the vocabulary are padded with zeros to a multiple of this. 1 has no row that is no token: vLLM pads by
            itself, and neither it nor llama.cpp keeps padded rows from being drawn.
        shard_gb: the largest safetensors file, 10^9 bytes; larger models are several.
    """
    settings = dict(locals())
    if pad_to_multiple < 1 or shard_gb <= 0:
        raise UserError("pad_to_multiple from 1, shard_gb above 0")
    if "/" in name or not name.strip():
        raise UserError(f"--name={name}: the model's name without its owner, such as demo-sft")
    with stage.output(out, inputs={"model": model, "card": card}, settings=settings) as building:
        data = hub.read_card(card).data if card else None
        source, tokenizer = models.load(model, dtype=_stored_dtype(model))
        if not tokenizer.chat_template:
            raise UserError(
                f"{model}: no chat template, so nobody could talk to it; export a checkpoint of init or later"
            )
        if not (ends := generation.end_tokens(source, tokenizer)):
            raise UserError(f"{model}: neither its tokenizer nor its generation config has a token that ends an answer")
        _set_rows(source, len(tokenizer), pad_to_multiple)
        _complete_settings(source, ends)
        tokenizer.model_max_length = source.config.max_position_embeddings
        folder = building.folder / HUB
        folder.mkdir()
        models.save_tokenizer(tokenizer, folder)
        files = [folder]
        limits = []
        if gguf != "none":
            gguf_model.check(source)
            limits = gguf_model.limits(source)
            file = building.folder / f"{name}-{gguf.upper()}.gguf"
            gguf_model.write(source, folder, file, gguf, _metadata(name, source, data))
            files.append(file)
        source.to(getattr(torch, dtype))
        if not all(parameter.isfinite().all() for parameter in source.parameters()):
            raise UserError(f"--dtype={dtype}: a weight is too large for it; take bfloat16")
        source.save_pretrained(folder, max_shard_size=int(shard_gb * 1e9))
        if card:
            shutil.copyfile(card, folder / "README.md")
        if wrong := hub.problems(folder, source, tokenizer, ends):
            raise UserError(f"{folder}: not fit to be uploaded: {'; '.join(wrong)}")
        config = source.config.to_dict()
        building.record(
            architectures=config["architectures"],
            parameters=source.num_parameters(),
            dtype=dtype,
            vocabulary=len(tokenizer),
            rows=config["vocab_size"],
            shards=len(list(folder.glob("*.safetensors"))),
            ends=tokenizer.convert_ids_to_tokens(sorted(ends)),
            vllm_tensor_parallel=hub.tensor_parallel(config),
            limits=limits,
        )
    for limit in limits:
        progress.say(f"export: {limit}")
    if not card:
        progress.say("export: no model card (README.md); the report stage writes one, or give --card")
    print(
        f"{source.num_parameters() / 1e6:,.1f} M parameters in {dtype}, {config['vocab_size']:,} rows; hub/ loads and is what was saved"
    )
    print(
        f"vLLM takes it on {', '.join(map(str, hub.tensor_parallel(config)))} GPUs (tensor parallel; checked by its loader's rules, not run)"
    )
    print("to upload (after `hf auth login`):")
    for path in files:
        repository = name if path.name == HUB else f"{name}-GGUF"
        print(f"  hf upload {repository} {out / path.name}")


def _stored_dtype(folder: Path) -> torch.dtype:
    """What the checkpoint's weights are stored in, so that nothing is rounded twice."""
    return getattr(AutoConfig.from_pretrained(folder, trust_remote_code=False), "dtype", None) or torch.float32


def _set_rows(model: PreTrainedModel, tokens: int, multiple: int) -> None:
    """Give embedding and head a row for each token, and rows of zeros up to a multiple, which generation suppresses."""
    rows = -(-tokens // multiple) * multiple
    if model.get_input_embeddings().num_embeddings != rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.data[tokens:] = 0
    model.generation_config.suppress_tokens = list(range(tokens, rows)) or None


def _complete_settings(model: PreTrainedModel, ends: set[int]) -> None:
    """What training turned off, and what the base's file left behind: the cache, another model's name, ids that end an answer."""
    model.config.use_cache = True
    model.config.__dict__.pop("_model_name_or_path", None)
    listed = sorted(ends)
    model.generation_config.eos_token_id = listed if len(listed) > 1 else listed[0]


def _metadata(name: str, model: PreTrainedModel, card: object) -> llama_cpp.Metadata:
    """What the GGUF file says of itself: the name, and what the model card's block does."""
    size = llama_cpp.size_label(model.num_parameters(), model.num_parameters(), 0, 0)
    languages = getattr(card, "language", None)
    return llama_cpp.Metadata(
        name=name,
        size_label=size,
        license=getattr(card, "license", None),
        tags=getattr(card, "tags", None),
        languages=[languages] if isinstance(languages, str) else languages,
    )


if __name__ == "__main__":
    cli.run(main)
