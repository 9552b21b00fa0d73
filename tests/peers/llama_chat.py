"""Conversations as llama.cpp's server writes them: a job as JSON on stdin, a text for each conversation on stdout. Runs in the peers' environment.

The job: `file` (GGUF with weights), `conversations` (lists of messages). Each is closed by the opening of the next answer.
"""

import json
import sys
import urllib.request

import xllamacpp

job = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path = job["file"]
params.n_ctx = 256
params.cpuparams.n_threads = 1
params.port = 0
server = xllamacpp.Server(params)
answer = []
for messages in job["conversations"]:
    asked = urllib.request.Request(
        f"{server.listening_address}/apply-template",
        json.dumps({"messages": messages}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=60) as told:
        answer.append(json.load(told)["prompt"])
json.dump(answer, sys.stdout)
