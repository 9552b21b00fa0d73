"""What a model is trained for: this project's loss, put inside its forward pass."""

import dataclasses
import functools
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lib import attention, losses, models
from lib.reference import Reference

Combine = Literal["sum", "lerp", "slerp"]
# What `logits` of the patched forward holds: sums over a pass, in nats and in UTF-8 bytes of the predicted tokens.
PARTS = (
    "ce_target", "positions_target", "bytes_target", "ce_replay", "positions_replay", "bytes_replay", "kl", "kl_positions",
)  # fmt: skip


@dataclasses.dataclass
class Objective:
    """How CE and KL, each a mean over a step's positions, make one loss. `kl_weight` may change between steps."""

    kl_weight: float = 1.0  # lambda of `sum`: CE + kl_weight * KL, the paper's equation 1
    combine: Combine = "sum"  # 'lerp': (1 - t) CE + t KL; 'slerp': their gradients at the hidden states, on the sphere
    t: float = 0.5  # of lerp and slerp
    z_weight: float = 0.0
    chunk: int = 512  # positions at a time in the head

    def weights(self, positions: torch.Tensor, kl_positions: torch.Tensor) -> dict[str, torch.Tensor | float | None]:
        """head_loss's arguments that make means of its sums."""
        ce, kl = {"sum": (1.0, self.kl_weight), "lerp": (1 - self.t, self.t), "slerp": (1.0, 1.0)}[self.combine]
        return {
            "ce_weight": ce / positions,
            "kl_weight": kl / kl_positions.clamp_min(1),
            "z_weight": self.z_weight,
            "slerp": self.t if self.combine == "slerp" else None,
            "chunk": self.chunk,
        }


def attach_loss(
    model: PreTrainedModel,
    token_bytes: torch.Tensor,
    objective: Objective | None = None,
    reference: Reference | None = None,
) -> Objective:
    """Make `model(..., labels=...)` return this project's loss, its logits never materialised; other calls stay as they
    are. Patching `forward` keeps it right under DDP's and DeepSpeed's wrappers, which hook exactly that call.

    Args:
        model: trained.
        token_bytes: UTF-8 bytes of each real token; padded rows beyond take no part.
        objective: how CE and KL are combined; plain CE if not given.
        reference: what the KL is taken from, told of each batch by its `inputs`.

    Returns:
        The objective, whose kl_weight may be changed while training goes on.
    """
    objective = objective or Objective()
    plain_forward = model.forward
    body = model.get_decoder()

    @functools.wraps(plain_forward)
    def forward(
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        replay: torch.Tensor | None = None,
        kl_items: torch.Tensor | None = None,
        kl_items_in_batch: torch.Tensor | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        if labels is None:
            return plain_forward(input_ids=input_ids, position_ids=position_ids, **kwargs)
        asked = None if reference is None else reference.ask(**kwargs, chunk=objective.chunk)
        # No mask and no cache: either would let packed documents see each other.
        packed = {"position_ids": position_ids, **attention.inside_documents(model, position_ids)}
        hidden = body(input_ids=input_ids, use_cache=False, **packed).last_hidden_state.flatten(0, 1)
        # A row's last token predicts nothing: what follows in the next row is another document, or the same one begun anew.
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=losses.IGNORED).flatten()
        counted = targets != losses.IGNORED
        positions = counted.sum()
        kl_items = positions.new_zeros(()) if kl_items is None else kl_items
        total = losses.head_loss(
            hidden,
            models.head_weight(model)[: len(token_bytes)],
            targets,
            reference=asked,
            **objective.weights(
                positions if num_items_in_batch is None else num_items_in_batch,
                kl_items if kl_items_in_batch is None else kl_items_in_batch,
            ),
        )
        sums = torch.stack([total.ce, torch.ones_like(total.ce), token_bytes.to(targets.device)[targets[counted]]])
        of_replay = _by_position(replay, targets)[counted]
        parts = [*(sums * ~of_replay).sum(1), *(sums * of_replay).sum(1), total.kl, kl_items.float()]
        return CausalLMOutputWithPast(loss=total.loss, logits=torch.stack(parts).detach())

    model.forward = forward
    return objective


def _by_position(replay: torch.Tensor | None, targets: torch.Tensor) -> torch.Tensor:
    """Whether each position is of a replay row."""
    if replay is None:
        return torch.zeros_like(targets, dtype=torch.bool)
    return replay.repeat_interleave(len(targets) // len(replay))
