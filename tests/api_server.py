"""A server on 127.0.0.1 that speaks OpenAI's chat-completions protocol, with faults on demand, for tests of its clients."""

import contextlib
import hashlib
import http.server
import json
import threading
import time

KEY = "sk-test-5f2a9d1c7b3e"
MODEL = "judge-1"


class Server(http.server.ThreadingHTTPServer):
    """Answers each request as `reply` says; keeps every request in `asked`.

    `answer(body)` makes an answer's text. `fault(text, nth)` names what goes wrong with the nth request (from 1) whose last
    document or user message is `text`, or None: a method of `Handler`. `seconds` is how long each answer takes.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer, fault=None, seconds=0.0, usage=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.fault, self.seconds, self.usage = answer, fault or (lambda text, nth: None), seconds, usage
        self.asked = []  # {"text", "body", "time", "fault"}
        self.answered = []  # texts whose whole answer was sent
        self.most_at_once = self.at_once = 0
        self.scale = 1  # reported tokens for each real one
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def environment(self):
        return {"OPENAI_BASE_URL": self.url, "OPENAI_MODEL": MODEL, "OPENAI_API_KEY": KEY}

    def count(self, text):
        return sum(request["text"] == text for request in self.asked)

    def handle_error(self, request, client_address):
        """A client that was killed leaves broken pipes, which are none of the test's business."""


@contextlib.contextmanager
def serving(answer, **options):
    server = Server(answer, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def asked_text(body):
    """What a request is about: the text between its two marker lines, else the first user message."""
    message = next(m["content"] for m in body["messages"] if m["role"] == "user")
    lines = message.split("\n")
    return "\n".join(lines[1:-1]) if lines[0].startswith("-----") else message


def tokens(text):
    """As many as its bytes have quarters; any fixed rule will do."""
    return -(-len(text.encode()) // 4)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        if self.path != "/v1/chat/completions":
            return self.error(404, f"no such path: {self.path}", "not_found")
        if (given := self.headers.get("Authorization")) != f"Bearer {KEY}":
            # OpenAI quotes the key too, though shortened.
            return self.error(401, f"Incorrect API key provided: {given.removeprefix('Bearer ')}.", "invalid_api_key")
        if body["model"] != MODEL:
            return self.error(404, f"The model `{body['model']}` does not exist.", "model_not_found")
        text = asked_text(body)
        with server.lock:
            nth = server.count(text) + 1
            fault = server.fault(text, nth)
            server.asked.append({"text": text, "body": body, "time": time.monotonic(), "fault": fault})
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.seconds)
        finally:
            with server.lock:
                server.at_once -= 1
        getattr(self, fault or "good")(body)
        if not fault:
            server.answered.append(text)

    def good(self, body):
        self.completion(body, self.server.answer(body))

    def rate_limit(self, body):
        self.error(429, "Rate limit reached for requests", "rate_limit_exceeded", {"Retry-After": "1"})

    def no_quota(self, body):
        self.error(429, "You exceeded your current quota", "insufficient_quota")

    def long_rest(self, body):
        self.error(429, "Daily limit reached", "rate_limit_exceeded", {"Retry-After": "86400"})

    def broken(self, body):
        self.error(500, "The server had an error", "server_error")

    def unavailable(self, body):
        self.send(503, b"<html>upstream</html>", {"Content-Type": "text/html"})

    def no_temperature(self, body):
        self.error(400, "Unsupported value: 'temperature'", "unsupported_value", param="temperature")

    def filtered(self, body):
        self.error(400, "The prompt was filtered by the content policy", "content_filter")

    def too_long(self, body):
        self.error(400, "This model's maximum context length is 4096 tokens", "context_length_exceeded")

    def no_schema(self, body):
        """Servers without structured output; the same request without it is answered."""
        if "response_format" in body:
            return self.error(400, "Unknown parameter: 'response_format'", "unknown_parameter")
        return self.good(body)

    def old_limit(self, body):
        if "max_completion_tokens" in body:
            return self.error(422, "max_completion_tokens: extra inputs are not permitted", None)
        return self.good(body)

    def no_json(self, body):
        self.send(200, b'{"id": "chatcmpl-1", "choices": [{"mess', {"Content-Type": "application/json"})

    def empty(self, body):
        self.send(200, b'{"choices": []}', {"Content-Type": "application/json"})

    def surrogate(self, body):
        """JSON can spell half a character, which is no Unicode; here in an answer, and below in a complaint."""
        self.send(200, b'{"choices": [{"message": {"content": "\\ud800"}}]}', {"Content-Type": "application/json"})

    def rejected(self, body):
        self.error(400, "Not this \ud800 one", "bad_request")

    def fenced(self, body):
        self.completion(body, f"Sure! Here are the scores:\n```json\n{self.server.answer(body)}\n```\nAnything else?")

    def chatty(self, body):
        self.completion(body, "I would say it is rather good.")

    def out_of_range(self, body):
        self.completion(body, json.dumps(dict.fromkeys(json.loads(self.server.answer(body)), 9)))

    def refusal(self, body):
        self.completion(body, None, refusal="I can't help with that.")

    def cut_off(self, body):
        self.completion(body, '{"informativeness": 4, "use', finish_reason="length")

    def cut(self, body):
        """The connection ends in the middle of the reply."""
        whole = self.packed(body, self.server.answer(body))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        self.wfile.write(whole[: len(whole) // 2])
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def silence(self, body):
        time.sleep(3)
        self.good(body)

    def completion(self, body, content, **choice):
        self.send(200, self.packed(body, content, **choice), {"Content-Type": "application/json"})

    def packed(self, body, content, refusal=None, finish_reason="stop"):
        prompt = self.server.scale * sum(tokens(message["content"]) for message in body["messages"])
        completion = tokens(content or refusal)
        reply = {
            "id": "chatcmpl-" + hashlib.sha256(json.dumps(body).encode()).hexdigest()[:12],
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": content, "refusal": refusal},
                    "finish_reason": finish_reason,
                }
            ],
        }
        if self.server.usage:
            usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
            reply["usage"] = usage
        return json.dumps(reply, ensure_ascii=False).encode()

    def error(self, status, message, code, headers=None, param=None):
        told = {"error": {"message": message, "type": "error", "param": param, "code": code}}
        self.send(status, json.dumps(told).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def send(self, status, content, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
