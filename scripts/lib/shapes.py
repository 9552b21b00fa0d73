"""A base model known by its shape alone: its config.json, and a model without weights made from it."""

import copy
import json
import os
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lib import cli
from lib.errors import UserError

KEPT = Path(__file__).parents[2] / "configs" / "shapes"


def read(base: Path, model: Path | None = None, given: Path | None = None) -> tuple[PreTrainedConfig, str]:
    """The base's configuration, and where it was found: in `given`, with the fetched model, among those that the project keeps
    (configs/shapes), or on the hub, which is asked for this one file.

    Args:
        base: the source's YAML.
        model: folder of the fetched model.
        given: a config.json, or a YAML of its keys.

    Raises:
        UserError: it is nowhere, or transformers knows no such model.
    """
    kept = KEPT / base.name
    if given is not None:
        found = given
    elif model is not None and (model / "config.json").is_file():
        found = model / "config.json"
    else:
        found = kept if kept.is_file() else _from_hub(base)
    try:
        values = cli.load_yaml(found) if found.suffix in (".yaml", ".yml") else json.loads(found.read_text("utf-8"))
        return AutoConfig.for_model(**values), Path(os.path.relpath(found)).as_posix()
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise UserError(f"{found}: not a model's config.json ({' '.join(str(error).split())[:200]})") from None


def without_weights(config: PreTrainedConfig, rows: int, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model with so many vocabulary rows, all of its weights on torch's meta device, where they take no memory.

    Raises:
        UserError: it is no causal language model.
    """
    config = copy.deepcopy(config)
    config.vocab_size, config.pad_token_id = rows, None
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except ValueError as error:
        raise UserError(
            f"{config.model_type}: not a causal language model to transformers ({str(error).splitlines()[0]})"
        ) from None


def _from_hub(base: Path) -> Path:
    source = cli.load_yaml(base)
    advice = "fetch the model, or name a config.json of its shape with --model_config"
    if source.get("type") != "hub":
        raise UserError(f"{base}: the model's shape is not known before it is fetched; {advice}")
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(source["package"], "config.json", revision=source.get("version")))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{source['package']}: the hub gives no config.json ({reason[:160]}); {advice}") from None
