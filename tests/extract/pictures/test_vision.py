"""Captions by a vision model: real HTTP, the real client, a server that misbehaves by plan."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from dlrrec_torchrec.config import LlmConfig
from dlrrec_torchrec.extract.pictures.caption_store import CaptionStore
from dlrrec_torchrec.extract.pictures.captions import SAYS_NOTHING, caption_pictures
from dlrrec_torchrec.extract.pictures.opening import Opener
from dlrrec_torchrec.extract.pictures.vision import VisionCaptioner
from dlrrec_torchrec.store.errors import DataError, Unfinished


class Looking:
    """Says the red of a picture's first point, in tens; what else it does is by that number."""

    def __init__(self):
        self.requests, self.lock = [], threading.Lock()

    def answer(self, body):
        """Status and message of a request."""
        text, image = body["messages"][0]["content"]
        data = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/jpeg;base64,"))
        with Image.open(io.BytesIO(data)) as picture:
            red, size = round(picture.getpixel((0, 0))[0] / 10), picture.size
        with self.lock:
            self.requests.append((red, size, text["text"]))
            times = sum(1 for other, *_ in self.requests if other == red)
        if red == 3 and times < 3:
            return (429 if times == 1 else 500), {}
        if red == 4:
            return 200, {"refusal": "I cannot look at that."}
        if red == 5:
            return 400, {}
        if red == 6:
            return 500, {}
        if red == 7 and "main thing" not in text["text"]:
            return 200, {"content": "a photo of a"}
        return 200, {"content": f"a photo of red {red}"}


@pytest.fixture
def server():
    looking = Looking()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, message = looking.answer(body)
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": ""} | message,
            }
            told = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            raw = json.dumps(told if status == 200 else {"error": {"message": "no", "code": "no"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.send_header("retry-after-ms", "5")
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    looking.settings = LlmConfig(
        model="eyes", base_url=f"http://127.0.0.1:{http.server_port}/v1", retries=2, timeout=5
    )
    yield looking
    http.shutdown()
    http.server_close()


def write(folder, *reds):
    folder.mkdir(exist_ok=True)
    for red in reds:
        Image.new("RGB", (1500, 300), (10 * red, 0, 0)).save(folder / f"{red}.png")
    return [f"{red}.png" for red in reds]


def test_captions_of_a_server_that_misbehaves(server, tmp_path):
    names = write(tmp_path / "p", 9, 3, 4, 5, 6, 7)
    opener, store = Opener(tmp_path / "p"), CaptionStore(tmp_path)
    found = caption_pictures(names, opener, VisionCaptioner(server.settings), store, batch=4)
    assert {name: picture.caption for name, picture in found.items()} == {
        "9.png": "red 9",
        "3.png": "red 3",
        "4.png": "",
        "5.png": "",
        "6.png": "",
        "7.png": "red 7",
    }
    assert found["4.png"].problem == SAYS_NOTHING and found["5.png"].problem.endswith("no")
    assert "no answer of the model" in found["6.png"].problem
    assert {size for _, size, _ in server.requests} == {(768, 154)}  # scaled down
    server.requests.clear()
    caption_pictures(names, opener, VisionCaptioner(server.settings), store, batch=4)
    assert {red for red, *_ in server.requests} == {5, 6}  # the others are known


def test_a_budget_stops_it_and_what_was_described_is_kept(server, tmp_path):
    server.settings.budget_calls = 3
    names = write(tmp_path / "p", 8, 9, 10, 11, 12)
    opener, store = Opener(tmp_path / "p"), CaptionStore(tmp_path)
    with pytest.raises(Unfinished, match="budget of 3 calls"):
        caption_pictures(names, opener, VisionCaptioner(server.settings), store, batch=1)
    assert len(server.requests) == 3
    found = caption_pictures(names, opener, VisionCaptioner(server.settings), store, batch=1)
    assert [picture.caption for picture in found.values()] == [f"red {n}" for n in (8, 9, 10, 11, 12)]
    assert len(server.requests) == 5


def test_no_key_is_a_clear_error(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(DataError, match="OPENAI_API_KEY is not set"):
        VisionCaptioner(LlmConfig())


def test_the_identity_follows_the_model_and_the_settings(server):
    first = VisionCaptioner(server.settings).identity
    assert VisionCaptioner(server.settings).identity == first
    server.settings.model = "other eyes"
    assert VisionCaptioner(server.settings).identity != first


def test_a_server_that_is_down_ends_the_work_soon(server, tmp_path):
    """The failures of all batches count together."""
    server.settings.breaker, server.settings.retries = 5, 0
    server.answer = lambda body: (server.requests.append(0), (500, {}))[1]
    names = write(tmp_path / "p", *range(8, 20))
    with pytest.raises(Unfinished, match="5 calls in a row failed"):
        caption_pictures(
            names, Opener(tmp_path / "p"), VisionCaptioner(server.settings), CaptionStore(tmp_path), batch=2
        )
    assert len(server.requests) <= 6


def test_it_works_again_after_it_was_closed(server, tmp_path):
    captioner = VisionCaptioner(server.settings)
    with Image.new("RGB", (8, 8), (90, 0, 0)) as picture:
        for _ in range(2):
            assert captioner.captions([picture]) == ["a photo of red 9"]
            captioner.close()


def test_captions_are_fit_for_a_terminal(server, tmp_path):
    server.answer = lambda body: (200, {"content": "a red\x1b[31m \u202ewall\x07 of bricks"})
    names = write(tmp_path / "p", 9)
    found = caption_pictures(
        names, Opener(tmp_path / "p"), VisionCaptioner(server.settings), CaptionStore(tmp_path), batch=4
    )
    assert found["9.png"].caption == "a red [31m wall of bricks"
