"""Attention over packed rows document by document: no mask, and no product for pairs that a mask would throw away.

For CPUs, where torch's own attention computes every pair of a masked row; on GPUs flash attention does the same in one kernel.
"""

import itertools

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_document"
SHORT = 256  # tokens of a document up to which two plain products are faster than torch's kernel, which asks MKL for many small ones


def inside_documents(model: PreTrainedModel, position_ids: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What a model with this attention is told beside `position_ids` (rows x length); nothing for another one."""
    if position_ids is None or model.config._attn_implementation != NAME:
        return {}
    return {"cu_seq_lens_q": boundaries(position_ids)}


def boundaries(position_ids: torch.Tensor) -> torch.Tensor:
    """Where documents begin in rows laid end to end, and the end: positions restart at 0, and a row's end ends a document."""
    begins = position_ids == 0
    begins[:, 0] = True
    return F.pad(begins.flatten().nonzero()[:, 0], (0, 1), value=begins.numel())


def by_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """One layer's attention, rows x heads x length x d to rows x length x heads x d, by transformers' interface.

    Without boundaries, and where a document is longer than the model's sliding window, it is transformers' own sdpa.
    """
    ends = None if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    window = kwargs.get("sliding_window")
    if ends is None or (window and max(b - a for a, b in itertools.pairwise(ends)) > window):
        more = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    rows, _, length, _ = query.shape
    found = []
    for begin, end in itertools.pairwise(ends):
        row, start = divmod(begin, length)
        part = slice(row, row + 1), slice(None), slice(start, start + end - begin)
        attend = _plain if end - begin <= SHORT and not query.is_cuda else F.scaled_dot_product_attention
        of_document = attend(
            query[part], key[part], value[part], dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=True
        )
        found.append(of_document.transpose(1, 2))
    return torch.cat(found, dim=1).view(rows, length, *found[0].shape[2:]), None


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, dropout_p: float, scale: float | None, **_: bool
) -> torch.Tensor:
    """Causal `scaled_dot_product_attention` by the formula; the queries of all heads that share keys are one matrix."""
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    scale = width**-0.5 if scale is None else scale
    query = (query * scale).reshape(rows * groups, -1, width)
    scores = (query @ key.reshape(rows * groups, length, width).mT).view(rows, heads, length, length)
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    shares = scores.masked_fill(later, -torch.inf).softmax(-1, dtype=torch.float32).to(value.dtype)
    shares = F.dropout(shares, dropout_p).view(rows * groups, -1, length)
    return (shares @ value.reshape(rows * groups, length, -1)).view(rows, heads, length, -1)


AttentionInterface.register(NAME, by_document)
AttentionMaskInterface.register(NAME, sdpa_mask)
