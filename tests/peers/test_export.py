"""llama.cpp on exported models: the ids of the fast tokenizer, and greedy continuations token for token as transformers has them."""

import json
from itertools import islice

import peer
import pytest
import torch
from conftest import ROOT
from test_llama_cpp import as_its_json_says, differing, lines
from tiny_model import model as tiny_model
from tiny_model import tokenizer as tiny_tokenizer
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from lib import documents, generation, models

pytestmark = peer.needs_peers

# Nats between the likeliest token and another that llama.cpp may take instead: sums in another order, in fp32.
TIE = 1e-3
PROMPT_TOKENS = 64
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES = {"llama": None, "llama3": LLAMA3 | {"original_max_position_embeddings": 64}}
ROPES |= {"linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}


def mistral(folder, tmp_path):
    """Untied, heads that are not hidden / heads wide, fewer key heads, and SentencePiece's real vocabulary."""
    tokenizer = models.load_tokenizer(as_its_json_says(peer.mistral(tmp_path / "tokenizer"), tmp_path / "plain"))
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.3, "sliding_window": 512}
    model = MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **shape))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    models.save(model, tokenizer, folder)


def make(name, folder, tmp_path):
    if name == "demo":
        return peer.demo("sft")
    if name == "mistral":
        mistral(folder, tmp_path)
        return folder
    tokenizer = tiny_tokenizer()
    rope = {"rope_parameters": ROPES[name]} if ROPES[name] else {}
    model = tiny_model(len(tokenizer), tie_word_embeddings=name == "llama", num_key_value_heads=2, **rope)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    models.save(model, tokenizer, folder)
    return folder


def prompts(tokenizer, count):
    """Turns of a chat, then real and made-up lines, by ids."""
    asked = documents.read_json_lines(ROOT / "data" / "builtin" / "demo" / "qualitative_prompts.jsonl")
    encoded = [generation.encode_prompt(tokenizer, line["prompt"]) for _, line in islice(asked, count // 2)]
    texts = [line for line in [*peer.text_lines(), *lines()] if len(line) > 3]
    step = len(texts) // (count - len(encoded))
    encoded += tokenizer(texts[::step], add_special_tokens=False)["input_ids"]
    return [ids[:PROMPT_TOKENS] for ids in encoded if ids][:count]


@torch.no_grad()
def gaps(model, prompt, continuation):
    """How far each token of a continuation is below the likeliest one there, in nats; 0 is that one."""
    logits = model(torch.tensor([prompt + continuation]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits.max(-1).values - logits[range(len(continuation)), continuation]).tolist()


@pytest.mark.parametrize("name", ["llama", "llama3", "linear", "mistral", "demo"])
def test_llama_cpp_reads_and_goes_on_as_transformers_does(tmp_path, name):
    folder, out = make(name, tmp_path / "model", tmp_path), tmp_path / "out"
    peer.script("export", f"--model={folder}", "--name=it", f"--out={out}", "--dtype=float32", "--gguf=f32")
    tokenizer = models.load_tokenizer(out / "hub")
    texts = lines()
    assert len(texts) >= 1000
    for parse_special in (False, True):
        assert [
            texts[place] for place in differing(out / "it-F32.gguf", tokenizer, texts, parse_special=parse_special)
        ] == []
    given, tokens = prompts(tokenizer, 60), 24
    job = {"file": str(out / "it-F32.gguf"), "prompts": given, "tokens": tokens, "end": tokenizer.eos_token_id}
    printed = peer.run("python", ROOT / "tests" / "peers" / "llama_greedy.py", stdin=json.dumps(job))
    made = json.loads(printed)
    assert all(len(found) == tokens or found[-1] == tokenizer.eos_token_id for found in made)
    model = AutoModelForCausalLM.from_pretrained(out / "hub")
    apart = [gaps(model, *pair) for pair in zip(given, made, strict=True)]
    every = [gap for found in apart for gap in found]
    same = sum(not any(found) for found in apart)
    print(
        f"{name}: {same} of {len(given)} continuations the same, {every.count(0)} of {len(every)} tokens, largest gap {max(every):.1e}"
    )
    assert max(every) <= TIE
    assert every.count(0) > 0.98 * len(every)
    assert len({tuple(found) for found in made}) > len(made) / 2
