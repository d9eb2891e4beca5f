"""A scripted chat-completions server. The model name selects the script:

    words    streams "Hello! How can I help?" in eight tokens, with usage
    slow     200 tokens, one every 50 ms (10 s)
    steady   40 tokens, one every 50 ms (2 s)
    repeat   returns the messages of the request, as JSON
    length   three tokens, then the token limit
    cut      two tokens, then a broken connection
    fail     status 500
    limit    status 429 with retry-after-ms
    tool     calls the first function; then returns the tool outputs
    tools    calls the first two functions in parallel; then returns the tool outputs
    talk     returns text and a call of the first function in one turn; then returns the tool outputs
    talk-twice  returns text and a call in each of two turns; then returns the tool outputs
    talk-call, call-talk  like talk-twice, but one of the turns has no text
    search, talk-search  like tool and talk, but call the first function with the user's words as the query, and then cite it
    tool-fail, talk-fail, talk-slow, talk-steady  start like tool and talk, and end like fail, slow and steady

Calls are streamed in fragments. Like real servers, it rejects messages in which a call has no output or an output has no
call, with status 400.

    upstream.py PORT_FILE [ADDRESS]

listens on a free port of ADDRESS, or of 127.0.0.1, and writes the port to PORT_FILE when it is ready. Requires only the
standard library.
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
# Text tokens and indexes of the called functions, for each turn.
TURNS = {
    "tool": [([], [0])],
    "tools": [([], [0, 1])],
    "talk": [(["Let", " me", " see."], [0])],
    "talk-twice": [(["Let", " me", " see."], [0]), (["And", " once", " more."], [1])],
    "talk-call": [(["Let", " me", " see."], [0]), ([], [1])],
    "call-talk": [([], [0]), (["Let", " me", " see."], [1])],
    "search": [([], [0])],
    # Runs the user's message as code.
    "code": [([], [0])],
    "talk-search": [(["Let", " me", " see."], [0])],
    "tool-fail": [([], [0])],
    "talk-fail": [(["Let", " me", " see."], [0])],
    "talk-slow": [(["Let", " me", " see."], [0])],
    "talk-steady": [(["Let", " me", " see."], [0])],
}
ARGUMENTS = [["{\"city", "\": \"Ro", "me\"}"], ["{\"zone", "\": \"CE", "T\"}"]]
MODELS = ["words", "slow", "steady", "repeat", "length", "cut", "fail", "limit", *TURNS]
LINKING = ["Here", " it is: [", "out", "](sand", "box:/mnt/data/", "out.csv", ")."]
CITING = ["It", " is", " cake", " [", "1", "]", "."]
PROMPT_TOKENS = 11


def turn_of(model, request):
    """Returns the next tokens of a model with tools, and its calls as (id, name, fragments)."""
    offered = [tool["function"]["name"] for tool in request.get("tools", []) if tool["type"] == "function"]
    rounds, outputs = 0, []
    for message in request["messages"]:
        if message["role"] == "user":
            rounds, outputs = 0, []
        rounds += bool(message.get("tool_calls"))
        if message["role"] == "tool":
            outputs.append(message["content"])
    if rounds == len(TURNS[model]):
        last = {"slow": SLOW, "steady": STEADY}.get(model.rpartition("-")[2])
        if last:
            return last, []
        if model.endswith("search"):
            return CITING, []
        if model == "code":
            return LINKING, []
        return ["The", " tools", " say:", " " + ", ".join(outputs)], []
    tokens, called = TURNS[model][rounds]
    if len(offered) <= max(called):
        return ["I have no tools."], []
    arguments = ARGUMENTS
    if model.endswith("search"):
        question = [message["content"] for message in request["messages"] if message["role"] == "user"][-1]
        arguments = [[json.dumps({"query": question})]]
    if model == "code":
        question = [message["content"] for message in request["messages"] if message["role"] == "user"][-1]
        code = json.dumps({"code": question})
        arguments = [[code[start : start + 7] for start in range(0, len(code), 7)]]
    return tokens, [(f"{model}/{rounds}/{index}", offered[index], arguments[index]) for index in called]


def call_error(messages):
    """Returns an error for calls without outputs or outputs without calls, or None."""
    due = []
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in due:
                return f"no call has the id {message['tool_call_id']}"
            due.remove(message["tool_call_id"])
        elif due:
            return f"no output for the calls {due}"
        due += [call["id"] for call in message.get("tool_calls") or []]
    return f"no output for the calls {due}" if due else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path != "/v1/models":
            return self.fail(404, "not found")
        rows = [{"id": name, "object": "model", "created": 1, "owned_by": "script"} for name in MODELS]
        self.reply(200, {"object": "list", "data": rows})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
        if self.path != "/v1/chat/completions":
            return self.fail(404, "not found")
        model, messages = request["model"], request.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            return self.fail(400, "the request has no messages")
        if model == "fail":
            return self.fail(500, "scripted failure")
        if model == "limit":
            return self.fail(429, "too many requests in this script", {"retry-after-ms": "20"})
        if model not in MODELS:
            return self.fail(404, f"the script has no model {model}")

        tokens = {"words": WORDS, "slow": SLOW, "steady": STEADY, "length": LENGTH, "cut": CUT}.get(model)
        error, calls = call_error(request["messages"]), []
        if error:
            return self.fail(400, error)
        if model in TURNS:
            tokens, calls = turn_of(model, request)
            if model.endswith("-fail") and not calls:
                return self.fail(500, "scripted failure")
        elif not tokens:
            tokens = [json.dumps(request["messages"])]
        pause_s = 0.05 if tokens in (SLOW, STEADY) else 0.01 if tokens is WORDS else 0
        finish = "length" if model == "length" else "tool_calls" if calls else "stop"
        counted = len(tokens) + sum(len(fragments) for _, _, fragments in calls)
        usage = {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": counted,
            "total_tokens": PROMPT_TOKENS + counted,
        }
        try:
            if request.get("stream"):
                self.stream(request, tokens, calls, pause_s, finish, usage)
            else:
                time.sleep(pause_s * len(tokens))
                message = {"role": "assistant", "content": "".join(tokens) or None, "refusal": None}
                if calls:
                    message["tool_calls"] = [
                        {"id": id, "type": "function", "function": {"name": name, "arguments": "".join(fragments)}}
                        for id, name, fragments in calls
                    ]
                choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
                self.reply(200, self.completion(request, "chat.completion", [choice], usage))
        except OSError:
            self.close_connection = True  # the client has disconnected

    def stream(self, request, tokens, calls, pause_s, finish, usage):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        include_usage = (request.get("stream_options") or {}).get("include_usage")

        def send(choices, usage=None):
            body = self.completion(request, "chat.completion.chunk", choices, usage)
            if not include_usage:
                del body["usage"]
            self.chunk(f"data: {json.dumps(body)}\n\n")

        def choice(delta, finish=None):
            return [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]

        send(choice({"role": "assistant", "content": ""}))
        for token in tokens:
            time.sleep(pause_s)
            send(choice({"content": token}))
        for index, (id, name, fragments) in enumerate(calls):
            first = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
            send(choice({"tool_calls": [first]}))
            for fragment in fragments:
                send(choice({"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}))
        if request["model"] == "cut":
            self.close_connection = True
            return
        send(choice({}, finish))
        if include_usage:
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

    def fail(self, status, message, headers=None):
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
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    server = ThreadingHTTPServer((address, 0), Handler)
    server.daemon_threads = True
    port_file = sys.argv[1]
    with open(port_file + ".new", "w") as file:
        file.write(str(server.server_address[1]))
    os.rename(port_file + ".new", port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
