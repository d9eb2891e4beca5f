"""Tests a running assistd with openai-python, like an application. The model server is ../upstream.py.

    OPENAI_BASE_URL=http://127.0.0.1:8484/v1 OPENAI_API_KEY=key OPENAI_ADMIN_KEY=admin drive.py [TEST...]

The server must have API keys configured, of which one is for administrators. The tests are in cases/. Every response is checked against the contract, if it
is present.
"""

import sys
import warnings

warnings.simplefilter("ignore", DeprecationWarning)

import contract  # noqa: E402
import suite  # noqa: E402
from cases.assistants import AssistantTest  # noqa: E402, F401
from cases.asynchronous import AsynchronousClient  # noqa: E402, F401
from cases.code_interpreter import CodeInterpreter  # noqa: E402, F401
from cases.common import Case, recorder  # noqa: E402
from cases.early_replies import EarlyReply  # noqa: E402, F401
from cases.file_search import FileSearch, VectorStore  # noqa: E402, F401
from cases.files import FileTest, UploadTest  # noqa: E402, F401
from cases.invalid_requests import InvalidRequest  # noqa: E402, F401
from cases.model_failures import FailingModelServer  # noqa: E402, F401
from cases.models import ModelTest  # noqa: E402, F401
from cases.organization import OrganizationTest  # noqa: E402, F401
from cases.runs import PolledRun  # noqa: E402, F401
from cases.streamed_tool_calls import StreamedFunctionCall  # noqa: E402, F401
from cases.streaming import StreamedRun  # noqa: E402, F401
from cases.threads import MessageTest, ThreadTest  # noqa: E402, F401
from cases.tool_calls import PolledFunctionCall  # noqa: E402, F401
from cases.vector_stores import VectorStoreTest  # noqa: E402, F401


class ZContract(Case):
    """Checks the recorded responses of all other tests; the name sorts it last."""

    def test_every_response_matches_the_contract(self):
        reason = contract.missing()
        if reason:
            self.skipTest(reason)

        self.assertGreater(len(recorder.exchanges), 0)
        self.assertEqual(contract.violations(recorder.exchanges), [])


if __name__ == "__main__":
    sys.exit(suite.run(sys.modules["__main__"]))
