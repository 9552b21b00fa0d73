"""`make chat` and `make serve`: a conversation by pipe, on a terminal, interrupted; the server by the openai client."""

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest
import torch
from conftest import ROOT
from tiny_model import save as save_tiny

import chat
from lib import generation, models
from lib.errors import UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with the project's chat template."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    save_tiny(folder)
    tokenizer = models.load_tokenizer(folder)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = (ROOT / "configs" / "chat.jinja").read_text(encoding="utf-8")
        models.save_tokenizer(tokenizer, folder)
    return folder


def talk(model, said, *flags):
    command = [sys.executable, "scripts/chat.py", f"--model={model}", "--max_new_tokens=5", *flags]
    return subprocess.run(command, input=said, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_each_line_gets_the_models_answer_and_the_conversation_is_remembered(model):
    done = talk(model, "вода\n\nогонь\n/new\nвода\n/quit\nне это\n")
    assert done.returncode == 0, done.stderr
    loaded, tokenizer = models.load(model)
    expected = []
    for messages in (["вода"], ["вода", None, "огонь"], ["вода"]):
        turns = [
            {"role": ("user", "assistant")[place % 2], "content": expected[0] if text is None else text}
            for place, text in enumerate(messages)
        ]
        ids = generation.encode_turns(tokenizer, turns)
        given = torch.tensor([ids])
        made = loaded.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=5, do_sample=False
        )
        expected.append(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
    assert done.stdout == "".join(f"{answer}\n" for answer in expected)


def test_what_no_longer_fits_is_forgotten_oldest_first_and_said(model, capsys):
    tokenizer = models.load_tokenizer(model)
    turns = [("user", "вода"), ("assistant", "огонь"), ("user", "земля"), ("assistant", "воздух"), ("user", "камень")]
    messages = [{"role": "system", "content": "да"}, *({"role": role, "content": text} for role, text in turns)]
    whole = len(generation.encode_turns(tokenizer, messages))
    given = list(messages)
    ids = chat._fit(tokenizer, given, 1, whole - 1)
    assert given == [messages[0], *messages[3:]]
    assert ids == generation.encode_turns(tokenizer, given)
    assert "1 of the oldest turns" in capsys.readouterr().err
    last = [messages[-1]]
    assert chat._fit(tokenizer, last, 0, 3) == generation.encode_turns(tokenizer, last)[-3:]
    assert "beginning of this turn" in capsys.readouterr().err


def test_ctrl_c_stops_an_answer_and_ctrl_d_the_talk(model):
    """On a real terminal: the prompt, an answer cut short, another turn, the end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        slow = (
            "import sys, time; sys.path.insert(0, 'scripts'); import chat; from lib import cli;"
            "put = chat._Spoken.put; chat._Spoken.put = lambda self, ids: (time.sleep(0.2), put(self, ids))[1]; cli.run(chat.main)"
        )
        os.execv(sys.executable, [sys.executable, "-c", slow, f"--model={model}", "--max_new_tokens=40"])
    seen = b""

    def until(wanted, count=1):
        nonlocal seen
        end = time.time() + 60
        while seen.count(wanted) < count and time.time() < end:
            with contextlib.suppress(OSError):
                seen += os.read(terminal, 4096)
        assert seen.count(wanted) >= count, seen

    until(b"> ")
    os.write(terminal, "вода\n".encode())
    time.sleep(1.5)
    os.kill(pid, signal.SIGINT)
    until(b"> ", 2)
    os.write(terminal, b"\x04")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert b"Traceback" not in seen


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--temperature=-1", "temperature from 0"),
        ("--top_p=0", "top_p above 0"),
        ("--max_new_tokens=9999", "the model's context is"),
    ],
)
def test_wrong_settings_are_named(model, flag, said):
    refused = talk(model, "", flag)
    assert refused.returncode == 2
    assert said in refused.stderr


def test_a_system_message_needs_a_template(tmp_path):
    save_tiny(tmp_path / "bare")
    tokenizer = models.load_tokenizer(tmp_path / "bare")
    tokenizer.chat_template = None
    models.save_tokenizer(tokenizer, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no chat template"):
        chat.main(model=tmp_path / "bare", system="да", max_new_tokens=4)


def test_the_server_answers_as_the_model_does(model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = f"PYTHON={sys.executable}"
    server = subprocess.Popen(
        ["make", "serve", "PROFILE=test", f"MODEL={model}", f"PORT={port}", python],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        client = openai.OpenAI(base_url=f"http://localhost:{port}/v1", api_key="none", max_retries=0)
        asked = {
            "model": str(model),
            "messages": [{"role": "user", "content": "вода"}],
            "max_tokens": 5,
            "temperature": 0,
        }
        end = time.time() + 120
        while True:
            try:
                answer = client.chat.completions.create(**asked)
                break
            except openai.APIConnectionError:
                assert server.poll() is None, server.stdout.read().decode()
                assert time.time() < end
                time.sleep(0.5)
        assert answer.choices[0].message.content.strip() == talk(model, "вода\n").stdout.strip()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
