"""Runs extract_ray_cases.py in a process of its own; and what is refused before there is a cluster."""

from __future__ import annotations

import sys

import pytest

from dlrrec_torchrec import cli
from dlrrec_torchrec.config import ExtractConfig
from dlrrec_torchrec.config.check import check_settings
from dlrrec_torchrec.extract.cluster.connection import RayCluster
from dlrrec_torchrec.store.errors import DataError
from tests.extract.test_extract import FakeEncoder, run


def test_the_cases_on_a_cluster(tmp_path):
    pytest.importorskip("ray")
    from tests.helpers.ray_programs import ROOT, check_cases

    check_cases(ROOT / "tests" / "programs" / "extract_ray_cases.py", tmp_path, least=11)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "127.0.0.1:1: no Ray cluster can be reached there .*refused.*--engine local"),
        ("127.0.0.1:port", "127.0.0.1:port: no Ray cluster can be reached there"),
        ("ray://127.0.0.1:10001", "HOST:PORT, or auto"),
    ],
)
def test_an_address_where_nobody_answers_is_named(address, words):
    pytest.importorskip("ray")
    with pytest.raises(DataError, match=r"extract.address \(--address\) .*" + words):
        RayCluster(address)


def test_without_ray_the_message_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"needs Ray: pip install 'dlrrec-torchrec\[ray\]'; --engine local"):
        run([("u", "i", "Good tea.", None)], tmp_path, encoder=FakeEncoder(), engine="ray")
    words = ["run", "--run-dir", str(tmp_path / "run"), "--engine", "ray"]
    assert cli.main(words) == 2  # before the first stage
    assert "pip install" in capsys.readouterr().err and not (tmp_path / "run" / "reviews").exists()


def test_engines_and_addresses_that_do_not_fit():
    with pytest.raises(DataError, match="extract.engine .*'spark'"):
        check_settings(ExtractConfig(engine="spark"))
    with pytest.raises(DataError, match=r"extract.address \(--address\): .*set extract.engine=ray too"):
        check_settings(ExtractConfig(address="auto"))
