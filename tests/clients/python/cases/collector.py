"""An event handler that records its callbacks."""

import openai


class Collector(openai.AssistantEventHandler):
    """Records every callback in order; calls `act` with each event."""

    def __init__(self, act=lambda _: None):
        super().__init__()
        self.calls, self.events, self.deltas, self.completed_calls, self.act = [], [], [], [], act

    def on_event(self, event):
        self.events.append(event.event)
        self.act(event)

    def on_run_step_created(self, run_step):
        self.calls.append("run_step_created")

    def on_run_step_delta(self, delta, snapshot):
        self.calls.append("run_step_delta")

    def on_run_step_done(self, run_step):
        self.calls.append("run_step_done")

    def on_message_created(self, message):
        self.calls.append("message_created")

    def on_message_delta(self, delta, snapshot):
        self.calls.append("message_delta")

    def on_message_done(self, message):
        self.calls.append("message_done")

    def on_text_created(self, text):
        self.calls.append("text_created")

    def on_text_delta(self, delta, snapshot):
        self.calls.append("text_delta")
        self.deltas.append(delta.value)

    def on_text_done(self, text):
        self.calls.append("text_done")

    def on_tool_call_created(self, tool_call):
        self.calls.append("tool_call_created")

    def on_tool_call_delta(self, delta, snapshot):
        self.calls.append("tool_call_delta")

    def on_tool_call_done(self, tool_call):
        self.calls.append("tool_call_done")
        self.completed_calls.append((tool_call.function.name, tool_call.function.arguments))

    def on_exception(self, exception):
        self.calls.append("exception")

    def on_timeout(self):
        self.calls.append("timeout")

    def on_end(self):
        self.calls.append("end")
