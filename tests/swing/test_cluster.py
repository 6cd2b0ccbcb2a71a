"""Runs ray_cases.py in a process of its own."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")
from tests.helpers.ray_programs import ROOT, check_cases  # noqa: E402


def test_the_cases_on_a_cluster(tmp_path):
    check_cases(ROOT / "tests" / "programs" / "ray_cases.py", tmp_path, least=17)
