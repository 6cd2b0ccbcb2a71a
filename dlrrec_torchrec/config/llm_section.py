"""Settings of the language model that writes content where extract.provider is llm."""

from __future__ import annotations

import dataclasses

from dlrrec_torchrec.config.table_section import option

OPENAI_URL = "https://api.openai.com/v1"
LOCAL = "local:"  # before the file of a model that the command runs by itself


@dataclasses.dataclass
class LlmConfig:
    """The language model of extract.provider=llm: who answers, what is asked, and what it may cost."""

    model: str = option(
        "gpt-6-luna", "name of the model, as its server knows it (that of a local file is its own)"
    )
    base_url: str = option(
        OPENAI_URL,
        "address of any OpenAI-compatible server, as http://localhost:8080/v1 of llama.cpp; or local:FILE, a "
        "GGUF file that this command serves by itself, without a key (local:gemma3-270m: that of the extra "
        "local-llm)",
    )
    local_options: dict = option(
        {}, "settings of a local model's server (llama_cpp.server), as n_gpu_layers=-1 or chat_format=gemma"
    )
    api_key_env: str = option(
        "",
        "environment variable that holds the key (default: OPENAI_API_KEY for OpenAI's own address, none for "
        "others); the key itself is no setting",
    )
    prompts: str = option(
        "joint",
        "joint: one call for all that is asked of a user or an item; papers: the papers' questions, a call "
        "each, none of likes and avoids; or a YAML file of your own",
    )
    language: str = option(
        "English", "language of the summaries; others than it are refused if it is English"
    )
    structured: str = option(
        "auto",
        "let the server hold answers to a JSON schema; auto: unless it refuses to",
        ("auto", "on", "off"),
    )
    reasoning_effort: str = option(
        "auto",
        "of models that think before they answer; unset: the server's; auto: none at OpenAI unless the model "
        "refuses that, unset at other servers",
        ("auto", "unset", "none", "minimal", "low", "medium", "high"),
    )
    temperature: float | None = option(None, "of the sampling (default: the server's)", least=0, most=2)
    output_tokens: int = option(
        700,
        "tokens of an answer, at most; twice as many where it is asked again because it was cut",
        least=16,
    )
    input_tokens: int = option(
        6000,
        "tokens of reviews in one call; longer histories are read in parts, whose answers are joined",
        least=200,
    )
    max_parts: int = option(8, "parts of a history, at most; the oldest reviews are left out", least=1)
    attempts: int = option(
        3, "times that a question is asked, as long as the answer cannot be used", least=1, most=10
    )
    retries: int = option(
        5, "times that a call is repeated after 429, 5xx, a time-out or a lost connection", least=0
    )
    timeout: float = option(60.0, "seconds that a call may take", above=0)
    concurrency: int = option(16, "calls at a time", least=1)
    requests_per_minute: int | None = option(None, "calls begun in a minute (default: any)", least=1)
    tokens_per_minute: int | None = option(
        None, "tokens of calls begun in a minute, answers included (default: any)", least=1000
    )
    breaker: int = option(20, "calls that fail in a row, with all their retries, and so end the run", least=1)
    max_failed: float = option(
        0.05, "stop if more than this share of the users' and items' versions gets no answer", least=0, most=1
    )
    redact: bool = option(
        False, "mask e-mail addresses, phone numbers and links before a text leaves this machine"
    )
    input_price: float | None = option(
        None, "US dollars for a million tokens of input (default: as genai-prices knows it)", least=0
    )
    output_price: float | None = option(
        None, "US dollars for a million tokens of output (default: as genai-prices knows it)", least=0
    )
    budget: float | None = option(
        None,
        "US dollars that this command may spend, on texts, pictures and vectors of all seeds together; it "
        "stops before it spends more",
        above=0,
    )
    budget_calls: int | None = option(None, "calls that this command may make, as for budget", least=1)
    budget_tokens: int | None = option(
        None, "tokens that this command may use, in and out, as for budget", least=1
    )
    batch: bool = option(
        False, "ask by the server's Batch API: half the price at OpenAI, an answer within 24 hours"
    )
    batch_poll: float = option(60.0, "seconds between two looks at a batch", above=0)
