"""Token ids by llama.cpp: a job as JSON on stdin, a list of ids for each line on stdout. Runs in the peers' environment.

The job: `file` (GGUF), `lines`, `add_special` (bos and eos as the file says), `parse_special` (spellings of special tokens
are those tokens). xllamacpp's Python interface has no tokenizer apart from its HTTP server, but its library exports llama.cpp's
C interface. The structure below is that of the pinned version (b11549); the defaults read back through it are checked.
"""

import ctypes
import json
import sys
from ctypes import POINTER, c_bool, c_char_p, c_int32, c_void_p

import xllamacpp.xllamacpp as library


class ModelParams(ctypes.Structure):
    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


llama = ctypes.CDLL(library.__file__)
llama.llama_model_default_params.restype = ModelParams
llama.llama_model_load_from_file.restype = c_void_p
llama.llama_model_load_from_file.argtypes = [c_char_p, ModelParams]
llama.llama_model_get_vocab.restype = c_void_p
llama.llama_model_get_vocab.argtypes = [c_void_p]
llama.llama_tokenize.argtypes = [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]

params = llama.llama_model_default_params()
defaults = (params.n_gpu_layers, params.split_mode, params.main_gpu, params.vocab_only, params.use_extra_bufts)
assert defaults == (-1, 1, 0, False, True), f"another llama.cpp than this structure is for: {defaults}"
params.vocab_only = True

job = json.load(sys.stdin)
model = llama.llama_model_load_from_file(job["file"].encode(), params)
assert model, f"llama.cpp does not load {job['file']}"
vocabulary = llama.llama_model_get_vocab(model)
answer = []
for line in job["lines"]:
    text = line.encode()
    room = (c_int32 * (len(text) + 2))()  # a token is a byte at least; bos and eos
    count = llama.llama_tokenize(vocabulary, text, len(text), room, len(room), job["add_special"], job["parse_special"])
    assert count >= 0, f"llama.cpp wants room for {-count} tokens for {line!r}"
    answer.append(room[:count])
json.dump(answer, sys.stdout)
