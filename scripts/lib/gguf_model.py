"""A model of Llama's architecture in llama.cpp's file format: hyperparameters and weights, and its tokenizer by gguf_vocabulary.

llama.cpp has one architecture, "llama", for Llama and Mistral; names of tensors are gguf's own table. Two things are not in the
table: llama.cpp rotates neighbouring dimensions where transformers rotates dimension i with i + d/2, so the rows of the query and
key projections are reordered; and scaled rotary frequencies go by a tensor of factors. Both as in llama.cpp's converter
(conversion/llama.py), which is in no package.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import PreTrainedModel

from lib import gguf_vocabulary, progress
from lib.errors import UserError

MODEL_TYPES = ("llama", "mistral")
# Rotary frequencies that are the same at every length, and so a factor for each; others depend on the length of the text.
ROPE_TYPES = ("default", "linear", "llama3")
KINDS = {
    "f32": (Type.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Type.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_ARCH = gguf.MODEL_ARCH.LLAMA
_ROPE_FACTORS = "rope_freqs.weight"


def check(model: PreTrainedModel) -> None:
    """Refuse a model that llama.cpp's "llama" would compute otherwise, or not at all.

    Raises:
        UserError: another architecture, activation or kind of rotary embedding, or weights that have no name there.
    """
    config = model.config
    rope = config.rope_parameters["rope_type"]
    for problem, found in (
        (
            config.model_type not in MODEL_TYPES,
            f"its model_type is {config.model_type}, not {' or '.join(MODEL_TYPES)}",
        ),
        (config.hidden_act != "silu", f"its activation is {config.hidden_act}, not silu"),
        (rope not in ROPE_TYPES, f"its rotary embedding is '{rope}', not {', '.join(ROPE_TYPES)}"),
        (_frequencies(model).numel() * 2 != config.head_dim, "it rotates a part of each head only"),
    ):
        if problem:
            raise UserError(f"llama.cpp can't run this model as it is: {found}; gguf: none leaves the file out")
    names = _names(config.num_hidden_layers)
    if unknown := [name for name in _weights(model) if names.get_name(name, (".weight",)) is None]:
        raise UserError(f"llama.cpp has no place for {unknown[0]}; gguf: none leaves the file out")


def limits(model: PreTrainedModel) -> list[str]:
    """What is other in llama.cpp though the file is right, a sentence each."""
    window = getattr(model.config, "sliding_window", None)
    if window is None or window >= model.config.max_position_embeddings:
        return []
    return [f"llama.cpp has no sliding window for this architecture: beyond {window:,} tokens it attends to all before"]


def write(model: PreTrainedModel, folder: Path, file: Path, kind: str, metadata: gguf.Metadata) -> None:
    """A GGUF file of a model and the tokenizer of a folder. Tensors are converted and written one by one.

    Vectors are kept in fp32, as llama.cpp wants, and so is in fp16 a matrix whose rows are no whole number of q8_0's blocks.

    Args:
        model: one that `check` lets pass.
        folder: of the tokenizer.
        file: to write.
        kind: one of KINDS, of the matrices.
        metadata: name, licence and the like.

    Raises:
        UserError: llama.cpp has no such tokenizer, or a weight is too large for fp16.
    """
    quantization, file_type = KINDS[kind]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[_ARCH])
    try:
        metadata.set_gguf_meta_model(writer)
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_hyperparameters(writer, model)
        gguf_vocabulary.add(writer, folder, rows=model.get_input_embeddings().num_embeddings)
        tensors = dict(_tensors(model))
        types = {name: _type(tensor, quantization) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            in_bytes = gguf.quant_shape_to_byte_shape(tensor.shape, types[name])
            # The writer takes the shape of anything that is stored as bytes in bytes.
            element = {Type.F32: np.float32, Type.F16: np.float16}.get(types[name], np.uint8)
            shape = in_bytes if element == np.uint8 else tensor.shape
            writer.add_tensor_info(name, shape, np.dtype(element), math.prod(in_bytes), raw_dtype=types[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in progress.bar(tensors, title="gguf", unit="tensors"):
            converted = gguf.quantize(tensors[name].float().numpy(), types[name])
            if types[name] == Type.F16 and not np.isfinite(converted).all():
                raise UserError(f"{name}: a weight is too large for fp16; take gguf: bf16 or f32")
            writer.write_tensor_data(converted)
    finally:
        writer.close()


def _add_hyperparameters(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_vocab_size(model.get_input_embeddings().num_embeddings)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """llama.cpp's tensors by its names."""
    config = model.config
    names = _names(config.num_hidden_layers)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for name, weight in _weights(model).items():
        count = next((count for end, count in heads.items() if name.endswith(end)), None)
        yield names.get_name(name, (".weight",)), weight if count is None else neighbours(weight, count)
    if config.rope_parameters["rope_type"] != "default":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        yield _ROPE_FACTORS, config.rope_parameters["rope_theta"] ** -exponents / _frequencies(model)


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """A projection's rows (heads x d, columns) in llama.cpp's order: of each head, row i next to row i + d/2."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's weights by transformers' names; of tied ones, the embedding."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _type(tensor: torch.Tensor, wanted: Type) -> Type:
    if tensor.ndim == 1:
        return Type.F32
    return Type.F16 if tensor.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] else wanted


def _frequencies(model: PreTrainedModel) -> torch.Tensor:
    return model.model.rotary_emb.inv_freq.float()


def _names(layers: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(_ARCH, layers)
