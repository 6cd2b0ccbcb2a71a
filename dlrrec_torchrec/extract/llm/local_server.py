"""The server of a local model: llama-cpp-python's, a child of this process while its model is asked.

It listens on a free port of 127.0.0.1, and answers only to a key that this process made. It ends when its
standard input does, which this process holds: however this one ends, by SIGKILL too, none stays behind.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dlrrec_torchrec.config.llm_section import LOCAL, LlmConfig
from dlrrec_torchrec.extract.llm.local_model import INSTALL, SETTING, has_chat_template
from dlrrec_torchrec.store.errors import DataError, how_it_ended

if TYPE_CHECKING:
    import openai

PROGRAM, _HOST = "llama_cpp.server", "127.0.0.1"
_NEEDED = ("llama_cpp", "uvicorn", "fastapi", "pydantic_settings", "sse_starlette", "starlette_context")
# What the child does: run the module that its first argument names, until the parent is gone.
_MAIN = """
import os, runpy, sys, threading
def watch():
    os.read(0, 1)
    os._exit(0)
threading.Thread(target=watch, daemon=True).start()
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
_START_SECONDS = 300.0  # to read a model of many GB from a slow disk
_LOOK_SECONDS = 0.1
_LOG_LINES = 8
_NO_TEMPLATE = "chatml"  # how to write a conversation for a model that was taught none
_SLACK = 1.3  # tokens of a model for one as they are counted here
_BESIDE = 2048  # tokens of the instruction, and of an unusable answer that is quoted
# What the server says before it ends, and what that means for whoever started the command.
_CAUSES = (
    (
        "Failed to load model from file",
        "llama.cpp cannot load this file: it is cut or damaged, or of a model that this llama-cpp-python "
        "does not know; fetch it again, install a newer llama-cpp-python, or name another file",
    ),
    (
        "Failed to create llama_context",
        "llama.cpp cannot make a context of {n_ctx} tokens for this file, most often for lack of memory; "
        "lower --input-tokens or --output-tokens, or name a smaller model",
    ),
    ("error: unrecognized arguments:", "its server does not take these llm.local_options (--local-options)"),
    ("error: argument --", "its server does not take these llm.local_options (--local-options)"),
    ("No module named", f"its server lacks a package: {INSTALL}"),
)
_REASONS = ("error loading model", "failed to initialize the context", "error: ", "No module named")
# Settings of the server that a shell has for other things; it would read them.
_AMBIGUOUS = ("CONFIG_FILE", "API_KEY", "SSL_KEYFILE", "SSL_CERTFILE", "ROOT_PATH", "CACHE", "SEED", "NUMA")
_AMBIGUOUS += ("VERBOSE", "EMBEDDING", "MODEL", "MODEL_ALIAS", "CHAT_FORMAT", "DRAFT_MODEL", "HOST", "PORT")


def check_server_packages() -> None:
    """Raise DataError where packages of the extra `local-llm` are missing."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise DataError(
            f"{SETTING}: a local model needs {', '.join(missing)}: {INSTALL}; or start any "
            "server of the OpenAI form yourself and give its address"
        )


def context_tokens(settings: LlmConfig) -> int:
    """Tokens that the longest call and its answer can have."""
    answer = settings.output_tokens * 2 ** (settings.attempts - 1)
    return -(-int(settings.input_tokens * _SLACK + answer + _BESIDE) // 256) * 256


def server_options(settings: LlmConfig) -> dict[str, str]:
    """The server's settings besides its address: what the section asks for, and `llm.local_options`."""
    file = Path(settings.base_url.removeprefix(LOCAL))
    threads = str(len(os.sched_getaffinity(0)))  # one a core
    options = {
        "model": str(file),
        "model_alias": settings.model,
        "n_ctx": str(context_tokens(settings)),
        "n_threads": threads,
        "n_threads_batch": threads,
        "logits_all": "false",  # or it keeps a number for each token and word of the vocabulary
        "seed": "1",
    }
    if "chat_format" not in settings.local_options and not has_chat_template(file):
        options["chat_format"] = _NO_TEMPLATE
    return options | {name: str(value) for name, value in settings.local_options.items()}


class LocalServer:
    """The server of the model that `settings` (`with_local_model`) name; it runs from `start` to `stop`."""

    def __init__(self, settings: LlmConfig):
        self._settings = settings
        self._options: dict[str, str] = {}
        self._process: subprocess.Popen | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> tuple[str, str]:
        """Begin; returns its base_url and key. It answers once `ready` returns."""
        with socket.socket() as free:
            free.bind((_HOST, 0))
            port = str(free.getsockname()[1])
        self._options = server_options(self._settings)
        options = {"host": _HOST, "port": port} | self._options
        key = secrets.token_hex(16)
        environment = {name: value for name, value in os.environ.items() if name.upper() not in _AMBIGUOUS}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "API_KEY": key}
        environment |= {"HOST": _HOST, "PORT": port}  # these win over its flags
        flags = [word for name, value in options.items() for word in ("--" + name, value)]
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, PROGRAM, *flags],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so Ctrl-C reaches this process alone, which then ends the child
        )
        return f"http://{_HOST}:{port}/v1", key

    async def ready(self, client: openai.AsyncOpenAI) -> None:
        """Return when the server answers. Raises DataError where it ends, or needs too long."""
        import openai

        client, clock = client.with_options(max_retries=0, timeout=5), asyncio.get_running_loop().time
        until = clock() + _START_SECONDS
        while clock() < until:
            if ended := self.ended():
                raise DataError(ended)
            try:
                await client.models.list()
                return
            except openai.OpenAIError:
                await asyncio.sleep(_LOOK_SECONDS)
        raise DataError(f"{self._name} does not answer after {_START_SECONDS:g} seconds{self._last_words()}")

    def ended(self) -> str:
        """How the server ended, and what to do where that is known; "" while it runs."""
        status = None if self._process is None else self._process.poll()
        if status is None:
            return ""
        lines = self._words()
        for sign, meaning in _CAUSES:
            if any(sign in line for line in lines):
                said = [line.strip() for line in lines if any(reason in line for reason in _REASONS)]
                told = f" ({said[0]})" if said else ""
                return f"{SETTING} {self._settings.base_url}: {meaning.format(**self._options)}{told}"
        return f"{self._name} ended {how_it_ended(status)}{self._last_words()}"

    def stop(self) -> None:
        """End the server, whatever it does."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.kill()
            self._process.wait()
        if self._log is not None:
            self._log.close()
        self._process = self._log = None

    @property
    def _name(self) -> str:
        return (
            f"{SETTING} {self._settings.base_url}: its server ({PROGRAM}, with llm.local_options "
            "(--local-options))"
        )

    def _words(self) -> list[str]:
        """The end of what the server said, line by line, fit for a terminal."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 10_000))
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        return ["".join(c for c in line if c.isprintable())[:200] for line in lines if line.strip()]

    def _last_words(self) -> str:
        lines = self._words()
        return ", without a word" if not lines else "; its last words:\n  " + "\n  ".join(lines[-_LOG_LINES:])
