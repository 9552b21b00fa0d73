"""Greedy continuations by llama.cpp's server: a job as JSON on stdin, a list of ids for each prompt on stdout. Runs in the peers' environment.

The job: `file` (GGUF with weights), `prompts` (lists of ids), `tokens` (how many to go on for), `end` (the id that the file says ends a
text; it is in the list where the server stopped at it).
"""

import json
import sys
import urllib.request

import xllamacpp

job = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path = job["file"]
params.n_ctx = 512
params.n_parallel = 1
# Keys and values are kept in fp16 by default: half the digits of what they are compared with.
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cpuparams.n_threads = 1
params.port = 0
server = xllamacpp.Server(params)
answer = []
for prompt in job["prompts"]:
    wish = {"prompt": prompt, "n_predict": job["tokens"], "temperature": 0, "top_k": 1, "return_tokens": True}
    asked = urllib.request.Request(
        f"{server.listening_address}/completion",
        json.dumps(wish | {"cache_prompt": False, "repeat_penalty": 1.0}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=120) as told:
        made = json.load(told)
    ended = made["stop_type"] == "eos" and made["tokens"][-1:] != [job["end"]]
    answer.append(made["tokens"] + [job["end"]] * ended)
json.dump(answer, sys.stdout)
