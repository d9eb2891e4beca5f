"""A chat-completions server that plays a script. The model's name picks it:

    words    streams "Hello! How can I help?" in eight tokens, with usage
    slow     200 tokens, one every 50 ms (10 s)
    steady   40 tokens, one every 50 ms (2 s)
    repeat   answers with the messages that it was asked with, as JSON
    length   three tokens, then stops at its token limit
    cut      two tokens, then the connection breaks
    fail     status 500
    limit    status 429 with retry-after-ms

    upstream.py PORT_FILE

listens on a free port of 127.0.0.1 and writes its number to PORT_FILE once it answers. Python's standard library is
enough for it.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = ["Hello", "!", " How", " can", " I", " hel", "p", "?"]
SLOW = [f"word{number} " for number in range(200)]
STEADY = [f"word{number} " for number in range(40)]
LENGTH = ["This", " is", " long"]
CUT = ["Half", " an"]
MODELS = ["words", "slow", "steady", "repeat", "length", "cut", "fail", "limit"]
PROMPT_TOKENS = 11


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path != "/v1/models":
            return self.refuse(404, "not here")
        rows = [{"id": name, "object": "model", "created": 1, "owned_by": "script"} for name in MODELS]
        self.reply(200, {"object": "list", "data": rows})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        if self.path != "/v1/chat/completions":
            return self.refuse(404, "not here")
        model = request["model"]
        if model == "fail":
            return self.refuse(500, "the script says no")
        if model == "limit":
            return self.refuse(429, "too many requests, says the script", {"retry-after-ms": "20"})
        if model not in MODELS:
            return self.refuse(404, f"the script knows no model {model}")

        tokens = {"words": WORDS, "slow": SLOW, "steady": STEADY, "length": LENGTH, "cut": CUT}.get(model)
        tokens = tokens or [json.dumps(request["messages"])]
        pause_s = {"words": 0.01, "slow": 0.05, "steady": 0.05}.get(model, 0)
        finish = "length" if model == "length" else "stop"
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": len(tokens),
            "total_tokens": PROMPT_TOKENS + len(tokens),
        }
        try:
            if request.get("stream"):
                self.stream(request, tokens, pause_s, finish, usage)
            else:
                time.sleep(pause_s * len(tokens))
                message = {"role": "assistant", "content": "".join(tokens), "refusal": None}
                choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
                self.reply(200, self.completion(request, "chat.completion", [choice], usage))
        except OSError:
            self.close_connection = True  # whoever asked has left

    def stream(self, request, tokens, pause_s, finish, usage):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        counted = (request.get("stream_options") or {}).get("include_usage")

        def send(choices, usage=None):
            body = self.completion(request, "chat.completion.chunk", choices, usage)
            if not counted:
                del body["usage"]
            self.chunk(f"data: {json.dumps(body)}\n\n")

        def choice(delta, finish=None):
            return [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]

        send(choice({"role": "assistant", "content": ""}))
        for token in tokens:
            time.sleep(pause_s)
            send(choice({"content": token}))
        if request["model"] == "cut":
            self.close_connection = True
            return
        send(choice({}, finish))
        if counted:
            send([], usage)
        self.chunk("data: [DONE]\n\n")
        self.chunk("")

    def completion(self, request, kind, choices, usage):
        return {
            "id": "chatcmpl-script",
            "object": kind,
            "created": 1,
            "model": request["model"],
            "choices": choices,
            "usage": usage,
        }

    def chunk(self, text):
        body = text.encode()
        self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n")

    def refuse(self, status, message, headers=None):
        kind = "requests" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
        code = "rate_limit_exceeded" if status == 429 else None
        error = {"message": message, "type": kind, "param": None, "code": code}
        self.reply(status, {"error": error}, headers)

    def reply(self, status, body, headers=None):
        body = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port_file = sys.argv[1]
    with open(port_file + ".new", "w") as file:
        file.write(str(server.server_address[1]))
    os.rename(port_file + ".new", port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
