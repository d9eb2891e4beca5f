"""Records the responses of a server, and checks them against the contract in ../shared, beside the project.

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

# The contract does not cover a turn with text and function calls, whose message stays open until the outputs are submitted.
# These are the rules that such a stream violates, by whether it is the stream of a submission.
TEXT_AND_CALLS = {
    False: {"message_open"},
    True: {"message_open", "message_not_empty", "accumulation", "first_delta"},
}


@dataclasses.dataclass
class Exchange:
    """A request and its response; `text` grows while a stream is read."""

    method: str
    path: str
    status: int
    type: str
    text: str = ""

    @property
    def is_stream(self):
        return self.type.startswith("text/event-stream")


class Recorder(httpx2.BaseTransport):
    """Forwards requests and records every exchange."""

    def __init__(self):
        self.inner = httpx2.HTTPTransport()
        self.exchanges = []

    def handle_request(self, request):
        response = self.inner.handle_request(request)
        response.stream = Tee(response.stream, self.record(request, response))
        return response

    def record(self, request, response):
        kind = response.headers.get("content-type", "")
        exchange = Exchange(request.method, request.url.path, response.status_code, kind)
        self.exchanges.append(exchange)
        return exchange

    def close(self):
        self.inner.close()


class AsyncRecorder(httpx2.AsyncBaseTransport):
    """The same for an asynchronous client; adds its exchanges to another recorder."""

    def __init__(self, recorder):
        self.inner = httpx2.AsyncHTTPTransport()
        self.recorder = recorder

    async def handle_async_request(self, request):
        response = await self.inner.handle_async_request(request)
        response.stream = AsyncTee(response.stream, self.recorder.record(request, response))
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
        self.exchange.text = self.bytes.decode(errors="replace")
        self.inner.close()


class AsyncTee(httpx2.AsyncByteStream):
    def __init__(self, inner, exchange):
        self.inner, self.exchange, self.bytes = inner, exchange, b""

    async def __aiter__(self):
        async for part in self.inner:
            self.bytes += part
            yield part

    async def aclose(self):
        self.exchange.text = self.bytes.decode(errors="replace")
        await self.inner.aclose()


def missing():
    """Returns why the contract cannot be checked, or None. In CI the contract is required."""
    if (VALIDATOR / "validate.py").exists():
        return None
    reason = "../shared/tools/conformance/validate.py is not here: the answers are not checked against the contract"
    if os.environ.get("CI") == "true":
        raise SystemExit(f"contract: {reason}")
    return reason


def is_text_and_calls(text):
    """Returns whether the stream requires outputs while a message is open, or starts with a message that has text."""
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


UNNAMED = "[null_refused_by_clients]"


def violations(exchanges):
    """Returns the violations of the contract, including warnings, as lines of text."""
    sys.path.insert(0, str(VALIDATOR))
    from validate import Contract, loads

    contract = Contract()
    found = []
    for exchange in exchanges:
        path = exchange.path.removeprefix("/v1")
        if exchange.is_stream and path == "/chat/completions":
            continue
        if exchange.type == "application/octet-stream":
            continue  # the bytes of a file
        if exchange.is_stream:
            if DONE not in exchange.text:
                continue  # the client disconnected before the end; the tests check the end of complete streams
            resumed = path.endswith("/submit_tool_outputs")
            report = contract.check_stream(exchange.text, submit=resumed)
            text_and_calls = TEXT_AND_CALLS[resumed] if is_text_and_calls(exchange.text) else set()
            report.errors[:] = [finding for finding in report.errors if finding.code not in text_and_calls]
            report.warnings[:] = [finding for finding in report.warnings if finding.code not in text_and_calls]
        elif contract.operation(exchange.method, path) is None:
            if exchange.status < 400:
                continue  # an operation that only assistd has
            report = contract.check_named("ErrorResponse", loads(exchange.text))
        else:
            report = contract.check_response(exchange.method, path, exchange.status, loads(exchange.text))
        what = f"{exchange.method} {path} -> {exchange.status}"
        found += [f"{what}: {finding}" for finding in (*report.errors, *report.warnings) if finding.code != "comment"]
    # The service sent null for the name of a vector store without one, as recorded.
    return [line for line in found if not ("vector_stores" in line and "$" in line and line.endswith(UNNAMED))]


def main():
    reason = missing()
    if reason:
        print(f"skipped: {reason}")
        return 0
    with open(sys.argv[1]) as file:
        exchanges = [Exchange(**json.loads(line)) for line in file]
    found = violations(exchanges)
    for line in found:
        print(line)
    streams = sum(exchange.is_stream for exchange in exchanges)
    print(f"contract: {len(exchanges)} responses checked, {streams} of them streams, {len(found)} violations")
    return 1 if found or not exchanges else 0


if __name__ == "__main__":
    sys.exit(main())
