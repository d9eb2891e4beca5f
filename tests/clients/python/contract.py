"""Keeps what a server answered, and holds it against the contract that lies beside the project, in ../shared.

    contract.py TRANSCRIPT

checks a file of JSON lines, each an exchange: {"method", "path", "status", "type", "text"}.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import httpx2

VALIDATOR = Path(__file__).resolve().parents[4] / "shared" / "tools" / "conformance"
DONE = "event: done\ndata: [DONE]\n\n"

# What the contract does not know: a turn of text and function calls, whose message stays open while the client answers.
# By whether it is the stream of a submit, the rules that such a stream does not keep.
MIXED = {
    False: {"message_open"},
    True: {"message_open", "message_not_empty", "accumulation", "first_delta"},
}


@dataclasses.dataclass
class Exchange:
    """One request and what was answered; `text` grows while a stream is being read."""

    method: str
    path: str
    status: int
    type: str
    text: str = ""

    @property
    def is_stream(self):
        return self.type.startswith("text/event-stream")


class Recorder(httpx2.BaseTransport):
    """Passes requests on and keeps every exchange."""

    def __init__(self):
        self.inner = httpx2.HTTPTransport()
        self.exchanges = []

    def handle_request(self, request):
        response = self.inner.handle_request(request)
        response.stream = Tee(response.stream, self.keep(request, response))
        return response

    def keep(self, request, response):
        kind = response.headers.get("content-type", "")
        exchange = Exchange(request.method, request.url.path, response.status_code, kind)
        self.exchanges.append(exchange)
        return exchange

    def close(self):
        self.inner.close()


class AsyncRecorder(httpx2.AsyncBaseTransport):
    """The same for an asynchronous client; its exchanges are those of another recorder."""

    def __init__(self, recorder):
        self.inner = httpx2.AsyncHTTPTransport()
        self.recorder = recorder

    async def handle_async_request(self, request):
        response = await self.inner.handle_async_request(request)
        response.stream = AsyncTee(response.stream, self.recorder.keep(request, response))
        return response

    async def aclose(self):
        await self.inner.aclose()


class Tee(httpx2.SyncByteStream):
    def __init__(self, inner, exchange):
        self.inner, self.exchange, self.bytes = inner, exchange, b""

    def __iter__(self):
        for part in self.inner:
            self.bytes += part
            yield part

    def close(self):
        self.exchange.text = self.bytes.decode()
        self.inner.close()


class AsyncTee(httpx2.AsyncByteStream):
    def __init__(self, inner, exchange):
        self.inner, self.exchange, self.bytes = inner, exchange, b""

    async def __aiter__(self):
        async for part in self.inner:
            self.bytes += part
            yield part

    async def aclose(self):
        self.exchange.text = self.bytes.decode()
        await self.inner.aclose()


def absent():
    """Why nothing can be checked, or None. In CI the contract must be there."""
    if (VALIDATOR / "validate.py").exists():
        return None
    reason = "../shared/tools/conformance/validate.py is not here: the answers are not checked against the contract"
    if os.environ.get("CI") == "true":
        raise SystemExit(f"contract: {reason}")
    return reason


def is_mixed(text):
    """Whether the stream asks for outputs with a message open, or begins with a message that has text."""
    is_open = False
    for frame in text.split("\n\n"):
        name, _, data = frame.removeprefix("event: ").partition("\ndata: ")
        if name == "thread.message.created":
            is_open = True
            if json.loads(data)["content"]:
                return True
        elif name in ("thread.message.completed", "thread.message.incomplete"):
            is_open = False
        elif name == "thread.run.requires_action":
            return is_open
    return False


def faults(exchanges):
    """What is wrong with these, as lines of text; warnings count."""
    sys.path.insert(0, str(VALIDATOR))
    from validate import Contract, loads

    contract = Contract()
    found = []
    for exchange in exchanges:
        path = exchange.path.removeprefix("/v1")
        if exchange.is_stream and path == "/chat/completions":
            continue
        if exchange.is_stream:
            if DONE not in exchange.text:
                continue  # the client left before the end; the drives check that those who stay see it
            resumed = path.endswith("/submit_tool_outputs")
            report = contract.check_stream(exchange.text, submit=resumed)
            mixed = MIXED[resumed] if is_mixed(exchange.text) else set()
            report.errors[:] = [finding for finding in report.errors if finding.code not in mixed]
            report.warnings[:] = [finding for finding in report.warnings if finding.code not in mixed]
        elif contract.operation(exchange.method, path) is None:
            if exchange.status < 400:
                continue  # an operation of our own
            report = contract.check_named("ErrorResponse", loads(exchange.text))
        else:
            report = contract.check_response(exchange.method, path, exchange.status, loads(exchange.text))
        what = f"{exchange.method} {path} -> {exchange.status}"
        found += [f"{what}: {finding}" for finding in (*report.errors, *report.warnings) if finding.code != "comment"]
    return found


def main():
    reason = absent()
    if reason:
        print(f"skipped: {reason}")
        return 0
    with open(sys.argv[1]) as file:
        exchanges = [Exchange(**json.loads(line)) for line in file]
    found = faults(exchanges)
    for line in found:
        print(line)
    streams = sum(exchange.is_stream for exchange in exchanges)
    print(f"contract: {len(exchanges)} answers checked, {streams} of them streams, {len(found)} faults")
    return 1 if found or not exchanges else 0


if __name__ == "__main__":
    sys.exit(main())
