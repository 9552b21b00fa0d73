"""Two checkpoints of one model interpolated tensor by tensor, by the conventions of mergekit's `slerp` (0.1.5).

t = 0 is the first model, t = 1 the other. Tensors are read, merged and written one by one, never a whole model or shard.
"""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from lib import cli, models
from lib.errors import UserError

Value = float | list[float]
Setting = Value | list[dict[str, Value | str]]

DOT_THRESHOLD = 0.9995  # mergekit's: vectors nearer than 1.8 degrees to one line are interpolated linearly
EPSILON = 1e-8  # mergekit's: a vector not longer than that counts as zero
CHUNK = 2**20  # elements at a time in fp32, so that scratch memory does not grow with the tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
HEAD = "lm_head.weight"
RECOMPUTED = "rotary_emb.inv_freq"  # a buffer that old checkpoints store and no model reads
# Fields of a configuration that do not change what the weights compute; rows are compared with the tensors themselves.
BOOKKEEPING = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "vocab_size"}
BOOKKEEPING |= {"initializer_range", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id"}
# Beside config.json, all that a model folder holds besides weights.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
COMPANIONS += ("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json")


class Stored(NamedTuple):
    """Where a tensor lies on disk, and what it is."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


class Pair(NamedTuple):
    """A tensor in both checkpoints, its t, and the dtype of the result."""

    first: Stored
    other: Stored
    t: float
    dtype: torch.dtype


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The cosine of the angle between two tensors taken as vectors: a scalar, fp64 for fp64 tensors, else fp32.

    0 if either is zero (not longer than EPSILON), as mergekit has it.
    """
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    length_a, length_b = (_length(tensor, dtype) for tensor in (a, b))
    chunks = zip(_chunks(a, dtype), _chunks(b, dtype), strict=True)
    return torch.stack([(x / length_a * (y / length_b)).sum() for x, y in chunks]).sum().clamp(-1, 1)


def is_linear(cosine: torch.Tensor) -> bool:
    """Whether vectors of that cosine are so near to one line that they are interpolated linearly."""
    return abs(cosine.item()) > DOT_THRESHOLD


def coefficients(t: float, cosine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the two vectors are multiplied by: on the sphere, or (1 - t, t) where that is not defined or not worth it.

    Args:
        t: 0 for the first, 1 for the second.
        cosine: of the angle between them, from `cosine`.
    """
    t = torch.tensor(t, dtype=cosine.dtype)
    if is_linear(cosine):
        return 1 - t, t
    angle = torch.acos(cosine)
    return torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)


def slerp(t: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Spherical linear interpolation of two tensors of one shape, taken as vectors (Shoemake 1985).

    Directions are compared after normalising, but the tensors themselves are combined, so lengths are interpolated too. Near
    parallel and opposite tensors are interpolated linearly. A zero tensor counts as orthogonal to any other, so half-way
    to it is 0.71 of the other.

    Args:
        t: 0 gives `a`, 1 gives `b`, exactly.
        a: any shape.
        b: the same shape.

    Returns:
        their shape, in the wider dtype of both; the arithmetic is in fp32, or in fp64 if that is fp64.
    """
    return combine(*coefficients(t, cosine(a, b)), a, b)


def combine(of_a: torch.Tensor, of_b: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """of_a * a + of_b * b in the coefficients' dtype, chunk by chunk; the result is in the wider dtype of a and b."""
    result = torch.empty(a.shape, dtype=torch.promote_types(a.dtype, b.dtype))
    chunks = zip(result.view(-1).split(CHUNK), _chunks(a, of_a.dtype), _chunks(b, of_b.dtype), strict=True)
    for target, x, y in chunks:
        target.copy_(of_a * x + of_b * y)
    return result


def check_setting(setting: Setting) -> None:
    """Refuse a t that is no share, gradient or list of rules.

    Raises:
        UserError: it is empty, a number outside 0 to 1, or a rule with an unknown or a missing key.
    """
    rules = _rules(setting)
    if not rules:
        _check_value(setting, "t")
    for number, rule in enumerate(rules):
        where = f"t[{number}]"
        for key in rule.keys() - {"filter", "value"}:
            raise UserError(f"{where}: unknown key '{key}'{cli.closest(key, ['filter', 'value'])}")
        if "value" not in rule:
            raise UserError(f"{where}: no value; a rule is {{filter: part of a tensor's name, value: t}}")
        if not isinstance(rule.get("filter", ""), str):
            raise UserError(f"{where}: filter: expected part of a tensor's name, got {rule['filter']!r}")
        _check_value(rule["value"], f"{where}: value")


def t_of(name: str, setting: Setting, depth: float) -> float:
    """A tensor's t by mergekit's rules.

    A number is t itself; a list of numbers is a gradient, spread evenly from the first layer to the last; of a list of
    rules, the first whose filter is part of the name counts (no filter, or '*', is part of any).

    Args:
        name: of the tensor.
        setting: checked by `check_setting`.
        depth: from `depths`.

    Raises:
        UserError: no rule is for this tensor.
    """
    if rules := _rules(setting):
        for rule in rules:
            if _fits(rule, name):
                return t_of(name, rule["value"], depth)
        raise UserError(f"t: no rule is for {name}; end the list with a rule without a filter")
    if not isinstance(setting, list):
        return float(setting)
    place = depth * (len(setting) - 1)
    below = int(place)
    above = min(below + 1, len(setting) - 1)
    return (1 - (place - below)) * setting[below] + (place - below) * setting[above]


def depths(names: Collection[str]) -> dict[str, float]:
    """Each tensor's place in a gradient: 0 for the first layer to 1 for the last.

    A layer's number is the first one in the name. Tensors of no layer (embeddings, last norm, head) are at 0, and the layer
    of a model that has only one is at 1: mergekit has it so.
    """
    layers = {name: int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}
    last = max(layers.values(), default=0)
    return {name: (layers[name] / last if last else 1.0) if name in layers else 0.0 for name in names}


def check_same_model(model: Path, other: Path) -> bool:
    """Refuse checkpoints whose tensors do not mean the same; returns whether embedding and head are tied.

    Raises:
        UserError: tokenizers or configurations differ, or a folder is no model.
    """
    first, second = (models.load_tokenizer(folder) for folder in (model, other))
    if models.fingerprint(first) != models.fingerprint(second):
        raise UserError(
            f"{model} and {other} have different vocabularies ({len(first):,} and {len(second):,} tokens), so their rows mean "
            f"different things; in place of the base take what the init stage made of it, checkpoints/<profile>/init"
        )
    one, two = (configuration(folder) for folder in (model, other))
    for key in sorted(one.keys() | two.keys()):
        if key not in BOOKKEEPING and not key.startswith("_") and one.get(key) != two.get(key):
            raise UserError(
                f"{model} and {other} are not two checkpoints of one model: {key} is {one.get(key)} and {two.get(key)}"
            )
    return bool(one.get("tie_word_embeddings"))


def configuration(folder: Path) -> dict[str, object]:
    """A model's configuration with transformers' defaults.

    Raises:
        UserError: there is none that transformers can load.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: no configuration that transformers can load ({str(error).splitlines()[0]})"
        ) from None


def pairs(model: Path, other: Path, setting: Setting, *, tied: bool) -> dict[str, Pair]:
    """The tensors of two checkpoints side by side, with the t of each.

    Left out are a stored copy of a tied head, which is no weight of its own, and what models recompute.

    Raises:
        UserError: a tensor is missing on one side, has other rows or another shape, or is quantised; or a rule is for no
            tensor, or a tensor has no rule.
    """
    first, second = (
        {name: tensor for name, tensor in stored(folder).items() if not is_left_out(name, tied=tied)}
        for folder in (model, other)
    )
    for here, there, folder, missing_in in ((first, second, model, other), (second, first, other, model)):
        if lacking := sorted(here.keys() - there.keys()):
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise UserError(
                f"{lacking[0]}{more}: in {folder}, but not in {missing_in}: not two checkpoints of one model"
            )
    for number, rule in enumerate(_rules(setting)):
        if not any(_fits(rule, name) for name in first):
            words = {word for name in first for word in name.split(".")}
            raise UserError(
                f"t[{number}]: filter: '{rule['filter']}' is in no tensor's name{cli.closest(rule['filter'], words)}"
            )
    found = {}
    depth = depths(first)
    for name, a in first.items():
        b = second[name]
        if a.shape != b.shape:
            padded = len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[1]
            why = (
                "rows padded to another multiple? Make both from one run of the init stage" if padded else "other sizes"
            )
            raise UserError(f"{name}: {list(a.shape)} in {model}, {list(b.shape)} in {other}: {why}")
        if a.dtype != b.dtype and not (a.dtype.is_floating_point and b.dtype.is_floating_point):
            raise UserError(f"{name}: {a.dtype} in {model}, {b.dtype} in {other}")
        found[name] = Pair(a, b, t_of(name, setting, depth[name]), torch.promote_types(a.dtype, b.dtype))
    return found


def stored(folder: Path) -> dict[str, Stored]:
    """The tensors of a model folder by name, from the headers of its safetensors files.

    Raises:
        UserError: there are none, one is missing or damaged, or holds quantised weights.
    """
    if (folder / INDEX).is_file():
        files = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    elif (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    else:
        raise UserError(f"{folder}: neither {WEIGHTS} nor {INDEX}; only whole models in safetensors are merged")
    found = {}
    for path in (folder / file for file in files):
        if not path.is_file():
            raise UserError(f"{path}: named in {INDEX}, but not there")
        try:
            with safe_open(path, framework="pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
                described = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
        except SafetensorError as error:
            raise UserError(f"{path}: damaged ({error})") from None
        for name, (code, shape) in described.items():
            if code not in DTYPES:
                raise UserError(f"{path}: {name} is stored as {code}; quantised weights can't be merged")
            found[name] = Stored(path, DTYPES[code], shape)
    return found


def is_left_out(name: str, *, tied: bool) -> bool:
    """Whether a stored tensor is no weight of its own: the copy of a tied head, or what models recompute."""
    return name.endswith(RECOMPUTED) or (tied and name == HEAD)


def read(name: str, tensor: Stored) -> torch.Tensor:
    """A tensor from disk. The file is opened for it alone: a file kept open keeps all its pages in memory."""
    with safe_open(tensor.file, framework="pt") as opened:
        return opened.get_tensor(name)


def main_dtype(tensors: Mapping[str, Stored]) -> torch.dtype:
    """The dtype that most of a model's weights are in."""
    elements: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        elements[tensor.dtype] += math.prod(tensor.shape)
    return elements.most_common(1)[0][0]


def write_shard(
    path: Path, layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], tensor_of: Callable[[str], torch.Tensor]
) -> int:
    """A safetensors file whose tensors are asked for one by one, as they are written; returns their bytes.

    Args:
        path: the file.
        layout: dtype and shape of each tensor. They are the file's header, so they come before the tensors.
        tensor_of: the tensor of a name, of just that dtype and shape.
    """
    # Wide elements first, as safetensors itself does, so that each tensor starts at a multiple of its element's size.
    names = sorted(layout, key=lambda name: (-layout[name][0].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = layout[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensor_of(name).contiguous().view(-1).view(torch.uint8).numpy())
    return end


def copy_companions(model: Path, folder: Path, dtype: torch.dtype) -> None:
    """Tokenizer, chat template and configuration of a model, which is now stored in `dtype`."""
    for name in COMPANIONS:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    config = json.loads((model / CONFIG).read_text(encoding="utf-8"))
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(dtype).removeprefix("torch.")
    (folder / CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _length(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The Euclidean norm, or 1 for a vector that counts as zero."""
    parts = [torch.linalg.vector_norm(chunk) for chunk in _chunks(tensor, dtype)]
    length = torch.linalg.vector_norm(torch.stack(parts))
    return torch.where(length > EPSILON, length, 1)


def _chunks(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    return (chunk.to(dtype) for chunk in tensor.reshape(-1).split(CHUNK))


def _rules(setting: Setting) -> list[dict[str, Value | str]]:
    """The rules of a t that is a list of rules, else none."""
    return setting if isinstance(setting, list) and setting and isinstance(setting[0], dict) else []


def _fits(rule: Mapping[str, object], name: str) -> bool:
    return rule.get("filter", "*") == "*" or rule["filter"] in name


def _check_value(value: object, where: str) -> None:
    numbers = value if isinstance(value, list) else [value]
    if not numbers:
        raise UserError(f"{where}: an empty list; give a number or a gradient over the layers")
    for number in numbers:
        if isinstance(number, str):
            raise UserError(f"{where}: expected a number, got the text {number!r} (to YAML 1e-1 is text; write 1.0e-1)")
        if not 0 <= number <= 1:
            raise UserError(f"{where}: {number} is not from 0 (--model) to 1 (--other)")
