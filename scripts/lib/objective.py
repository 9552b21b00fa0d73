"""What a model is trained for: this project's loss put inside its forward pass."""

import functools

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lib import losses, models


def attach_loss(
    model: PreTrainedModel,
    vocabulary: int,
    *,
    reference: PreTrainedModel | None = None,
    kl_weight: float = 0.0,
    chunk: int = 512,
) -> None:
    """Make `model(..., labels=...)` return this project's loss, its logits never materialised; other calls stay as they
    are. Patching `forward` keeps it right under DDP's and DeepSpeed's wrappers, which hook exactly that call.

    Args:
        model: trained.
        vocabulary: real tokens; padded rows beyond take no part.
        reference: frozen model of the same vocabulary for the KL term.
        kl_weight: lambda.
        chunk: positions at a time in the head.
    """
    plain_forward = model.forward
    body = model.get_decoder()
    if reference is not None:
        reference.requires_grad_(False)

    @functools.wraps(plain_forward)
    def forward(
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        if labels is None:
            return plain_forward(input_ids=input_ids, position_ids=position_ids, **kwargs)
        # No mask and no cache: either would let packed documents see each other.
        context = {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
        hidden = body(**context).last_hidden_state[:, :-1]
        targets = labels[:, 1:].flatten()
        ref_hidden = ref_weight = None
        if reference is not None:
            with torch.no_grad():
                ref_hidden = reference.get_decoder()(**context).last_hidden_state[:, :-1].flatten(0, 1)
            ref_weight = models.head_weight(reference)[:vocabulary]
        total = losses.head_loss(
            hidden.flatten(0, 1),
            models.head_weight(model)[:vocabulary],
            targets,
            ref_hidden=ref_hidden,
            ref_weight=ref_weight,
            kl_weight=kl_weight,
            chunk=chunk,
        )
        count = (targets != losses.IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total.loss / count
        return CausalLMOutputWithPast(loss=loss, logits=torch.stack([total.ce, total.kl]))

    model.forward = forward
