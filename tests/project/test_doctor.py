"""The verdict on every combination of the trio, and the real installation."""

import hashlib

import pytest

from dlrrec_torchrec import doctor


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        (("2.13.0+cpu", "1.8.0", None, "1.8.0"), None),
        (("2.11.0+cu130", None, "1.6.0", "1.6.1"), None),
        (("2.13.0", "1.8.0", "1.6.0", "1.8.0"), ["own the same import name", "pip uninstall"]),
        (("2.13.0", None, None, "1.8.0"), ["fbgemm not installed", "--no-deps torchrec"]),
        ((None, None, "1.6.0", None), ["torch, torchrec not installed", "[gpu]"]),
        (("2.12.1", "1.8.0", None, "1.8.0"), ["torch 2.12 + fbgemm 1.8", "not a tested set"]),
    ],
)
def test_verdicts(versions, words):
    problems = doctor.judge(*versions)
    if words is None:
        assert problems == []
    else:
        assert len(problems) == 1
        for word in words:
            assert word in problems[0]


def test_this_installation_fits(capsys):
    assert doctor.doctor() == 0
    printed = capsys.readouterr().out
    assert "embedding lookup     works" in printed and "All is well" in printed


def test_wrong_weights_are_seen(tmp_path, monkeypatch):
    from dlrrec_torchrec.extract import encoder

    monkeypatch.setattr(encoder, "_packaged_folder", lambda: tmp_path)
    assert "weights are missing" in doctor.encoder_weights()[1][0]
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert "SHA-256 is" in doctor.encoder_weights()[1][0]
    monkeypatch.setattr(encoder, "DEFAULT_WEIGHTS_SHA256", hashlib.sha256(b"other").hexdigest())
    assert doctor.encoder_weights()[1] == []
