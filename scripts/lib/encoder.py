"""A trained filter's forward pass, as little of it as the scores need: by torch, and as an ONNX graph for onnxruntime.

The word embeddings stay outside the graph: rows of a table on disk, shared by all processes that read it.
"""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers
from onnxruntime import quantization
from torch.nn import functional

from lib import processor

processor.multiply_by_onednn()
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
LONGEST_TRACED = 512  # a bound that the exporter wants; shapes are dynamic


class Scores(torch.nn.Module):
    """Word embeddings to scores (1 to 5) by a `BertForSequenceClassification` and its `config.cuts`.

    Equal to the model's own forward pass. The heads read the first position only, so the last layer is computed for no
    other: a quarter of the work of a three-layer encoder. Queries, keys and values are one product.
    """

    def __init__(self, model: transformers.BertForSequenceClassification):
        super().__init__()
        bert, config = model.bert, model.config
        self.heads = config.num_attention_heads
        self.layers = bert.encoder.layer
        self.norm, self.pooler, self.classifier = bert.embeddings.LayerNorm, bert.pooler.dense, model.classifier
        with torch.no_grad():
            places = bert.embeddings.position_embeddings.weight + bert.embeddings.token_type_embeddings.weight[0]
            self.places = torch.nn.Parameter(places.clone())
            self.cuts = torch.nn.Parameter(torch.tensor(config.cuts))
            self.projections = torch.nn.ModuleList(_joined(layer.attention.self) for layer in self.layers)

    def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Scores [texts, heads] from word embeddings [texts, tokens, hidden] and mask [texts, tokens] (True: a token)."""
        hidden = self.norm(words + self.places[: words.shape[1]])
        low = self.projections[0].weight.dtype
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min).to(low)[:, None, None, :]
        for layer, projection in zip(self.layers, self.projections, strict=True):
            queries, keys, values = self._divide(projection(hidden.to(low)))
            if layer is self.layers[-1]:
                queries, hidden = queries[:, :, :1], hidden[:, :1]
            mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            mixed = _product(layer.attention.output.dense, mixed.transpose(1, 2).flatten(2))
            attended = layer.attention.output.LayerNorm(mixed.float() + hidden)
            inner = functional.gelu(_product(layer.intermediate.dense, attended))
            hidden = layer.output.LayerNorm(layer.output.dense(inner).float() + attended)
        latent = self.classifier(torch.tanh(self.pooler(hidden[:, 0])))
        return expected(latent, self.cuts)

    def halve(self) -> "Scores":
        """Make the layers' products bf16; sums, norms, heads and the last layer's products of one position stay fp32."""
        for layer in self.layers[:-1]:
            for linear in (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense):
                linear.bfloat16()
        self.projections.bfloat16()
        return self

    def _divide(self, joined: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys, values [texts, heads, tokens, head size] from [texts, tokens, 3 x hidden]."""
        size = joined.shape[-1] // 3
        parts = joined.split(size, dim=-1)
        return tuple(part.unflatten(-1, (self.heads, size // self.heads)).transpose(1, 2) for part in parts)


def _product(linear: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
    return linear(values.to(linear.weight.dtype))


def expected(latent: torch.Tensor, cuts: torch.Tensor) -> torch.Tensor:
    """Expected scores [texts, heads]: one and the probabilities of being above each cut, cuts [heads, 4]."""
    return 1 + torch.sigmoid(latent[..., None] - cuts).sum(-1)


def runner(folder: Path, *, half: bool, device: str) -> Run:
    """Scores [texts, heads] of token ids and their mask [texts, tokens], by torch on a device."""
    transformers.utils.logging.disable_progress_bar()
    if device == "cpu":
        torch.set_num_threads(1)  # there is a process for each core
    model = (
        transformers.BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        .to(device)
        .eval()
    )
    words, scores = model.bert.embeddings.word_embeddings, Scores(model).eval()
    scores = scores.halve() if half else scores

    @torch.inference_mode()
    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        found = scores(words(torch.from_numpy(ids).to(device)), torch.from_numpy(mask).to(device))
        return found.float().cpu().numpy()

    return run


def export(model: transformers.BertForSequenceClassification, path: Path) -> None:
    """Write the graph from word embeddings and mask to scores, its products in int8 with a scale for each column.

    The last layer's products and the heads read one position: they cost nothing, so they stay fp32.
    """
    scores = Scores(model).eval()
    words, mask = torch.zeros(2, 3, model.config.hidden_size), torch.ones(2, 3, dtype=torch.bool)
    longest = min(LONGEST_TRACED, model.config.max_position_embeddings)
    shape = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=longest)}
    with tempfile.TemporaryDirectory() as name, _quiet():
        whole = Path(name) / "whole.onnx"
        torch.onnx.export(
            scores,
            (words, mask),
            whole,
            input_names=["words", "mask"],
            output_names=["scores"],
            dynamic_shapes={"words": shape, "mask": shape},
            external_data=False,
            opset_version=20,
            verbose=False,
        )
        graph = onnx.load(whole).graph
        constants = {constant.name for constant in graph.initializer}
        products = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]
        quantization.quantize_dynamic(
            whole,
            path,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_quantize=products[: len(products) - 3],
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantiser speak of packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _joined(attention: torch.nn.Module) -> torch.nn.Linear:
    parts = [attention.query, attention.key, attention.value]
    joined = torch.nn.Linear(parts[0].in_features, 3 * parts[0].out_features)
    joined.weight.copy_(torch.cat([part.weight for part in parts]))
    joined.bias.copy_(torch.cat([part.bias for part in parts]))
    return joined
