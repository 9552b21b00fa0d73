"""Training runs side by side: the same number of tokens for each, scored on the same documents."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lib import metrics, stage
from lib.errors import UserError


def trained(runs: Sequence[Path], inside: str = "") -> dict[str, dict]:
    """The manifests of finished training runs, by the names of their folders.

    Args:
        runs: folders, named after what was tried.
        inside: where in such a folder cpt.py's output lies, if it isn't the folder itself.

    Raises:
        UserError: two runs have one name, one is not finished or no training, or they saw different numbers of tokens.
    """
    found: dict[str, dict] = {}
    for run in runs:
        if run.name in found:
            raise UserError(f"--runs: two folders are named {run.name}; results go by that name, so rename one")
        manifest = found[run.name] = stage.read_manifest(run / inside)
        if "tokens" not in manifest["results"] or "steps" not in manifest["results"]:
            raise UserError(
                f"{run / inside}: its manifest counts no tokens and steps, so cpt.py did not write this folder"
            )
        if manifest["results"]["tokens"] != found[runs[0].name]["results"]["tokens"]:
            raise UserError(
                f"{run.name} was trained on another number of tokens than {runs[0].name}; run make on both again"
            )
    return found


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Sequence[str]],
    *,
    window: int,
    batch_tokens: int,
) -> dict[str, list[metrics.Score]]:
    """What a model spends on each document of each kind of text."""
    return {
        kind: metrics.bits_per_byte(model, tokenizer, found, window=window, batch_tokens=batch_tokens)
        for kind, found in texts.items()
    }
