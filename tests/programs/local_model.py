"""A stand-in for llama_cpp.server: its flags, its environment, its HTTP, and the rule of ModelServer.

`--behave`: "die" (at once, with a word), "broken" and "large" (as the real one does with a broken file and
with a context that does not fit), "vanish" (killed by the first question), "hang" (at the first
question), "deaf" (never listens).
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from tests.helpers.model_server import ModelServer, _Handler, _Quiet

parser = argparse.ArgumentParser()
for name in ("host", "port", "model", "model_alias", "n_ctx", "n_threads", "n_threads_batch", "logits_all"):
    parser.add_argument(f"--{name}", required=True)
for name in ("seed", "chat_format", "behave", "notes"):
    parser.add_argument(f"--{name}", default="")
arguments = parser.parse_args()
if arguments.notes:
    with Path(arguments.notes).open("a") as notes:
        told = {"pid": os.getpid(), "environment": sorted(os.environ)} | vars(arguments)
        notes.write(json.dumps(told) + "\n")
if arguments.behave == "die":
    print("llama_model_load: error loading model: \x1b[31mno such architecture", file=sys.stderr)
    sys.exit(3)
if arguments.behave in ("broken", "large"):
    reason, error = {
        "broken": ("load: error loading model: not within the bounds", "Failed to load model from file: m"),
        "large": ("model: failed to initialize the context: no kv cache", "Failed to create llama_context"),
    }[arguments.behave]
    print(f"llama_model_{reason}", file=sys.stderr)
    raise ValueError(error)


def behave(body: dict, n: int) -> str:
    if arguments.behave == "vanish":
        os.kill(os.getpid(), signal.SIGKILL)
    return "hang" if arguments.behave == "hang" else "schema_in_object"


class Handler(_Handler):
    model = ModelServer(behave)

    def _known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {os.environ['API_KEY']}":
            return True
        self._send(401, {"detail": "Invalid API key"})
        return False

    def do_GET(self) -> None:
        if self._known():
            self._send(200, {"object": "list", "data": []})

    def do_POST(self) -> None:
        if self._known():
            super().do_POST()


Handler.model.hang_seconds = 600
if arguments.behave == "deaf":
    time.sleep(600)
_Quiet((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever(poll_interval=0.05)
