"""The `evaluate` modules: each loads from its local path with no network and gives the number of the pure function."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("evaluate", reason="the extra `metrics` (the package evaluate) is not installed")

METRICS = Path(__file__).resolve().parents[3] / "evals" / "metrics"
NAMES = sorted(path.name for path in METRICS.iterdir() if (path / f"{path.name}.py").is_file())
COMPUTED = """
import json, socket, sys
def refused(*arguments, **options):
    raise AssertionError("a metric asked for the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
import evaluate
path, calls = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps([evaluate.load(f"{path}/{name}").compute(**arguments) for name, arguments in calls]))
"""
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("hypervolume", {"predictions": [[0.9, 0.2], [0.7, 0.6], [0.3, 0.9], [0.2, 0.2]], "ref_point": [0, 0]}),
    ("attack_success_rate", {"predictions": ["BAD", "GOOD", "UNCLEAR", "BAD"]}),
    ("attack_success_rate", {"predictions": ["BAD", "BAD", "GOOD", "GOOD"], "clusters": ["a", "a", "b", "b"]}),
    ("over_refusal", {"predictions": ["BAD", "GOOD", "UNCLEAR", "GOOD"]}),
    ("attack_success_rate", {"predictions": ["UNCLEAR", "GOOD", "UNCLEAR", "GOOD"]}),
    ("attack_success_rate", {"predictions": ["UNCLEAR", "GOOD", "UNCLEAR", "GOOD"], "can_fail": True}),
    (
        "expected_calibration_error",
        {"predictions": [0.95, 0.9, 0.85, 0.6, 0.55, 0.3], "references": [1, 1, 0, 1, 0, 0], "bins": 10},
    ),
    ("rm_pairwise_accuracy", {"predictions": [1.0, 0.5, 2.0, 0.0], "references": [0.0, 0.5, 3.0, -1.0]}),
    (
        "rm_pairwise_accuracy",
        {"predictions": [1.0, 1.0, 1.0], "references": [0.0, 0.0, 2.0], "subsets": ["chat", "chat", "code"]},
    ),
]


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """All calls in one fresh process, offline, whose sockets raise."""
    home = str(tmp_path_factory.mktemp("home"))
    environment = {"HF_HOME": home, "HF_MODULES_CACHE": home, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    found = subprocess.run(
        [sys.executable, "-c", COMPUTED, str(METRICS), json.dumps(CALLS)],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, cwd=home,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout)


def test_every_module_is_tried() -> None:
    assert sorted({name for name, _ in CALLS}) == NAMES and len(NAMES) == 5


def test_hypervolume(computed: list[dict[str, Any]]) -> None:
    assert computed[0]["hypervolume"] == pytest.approx(0.55)
    assert computed[0]["nondominated"] == [True, True, True, False]


def test_attack_success_and_over_refusal(computed: list[dict[str, Any]]) -> None:
    plain, clustered, refusal = computed[1:4]
    assert plain["attack_success_rate"] == 0.5 and plain["unclear_rate"] == 0.25 and "4 base items" in plain["over"]
    assert clustered["attack_success_rate"] == 0.5 and "2 base items" in clustered["over"]
    assert clustered["ci"][1] - clustered["ci"][0] > plain["ci"][1] - plain["ci"][0]
    assert refusal["over_refusal"] == 0.25 and refusal["unclear_rate"] == 0.25


def test_verdicts_without_a_bad_one_have_bounds_unless_the_judge_could_say_so(computed: list[dict[str, Any]]) -> None:
    bounded, able = computed[4:6]
    assert bounded["attack_success_rate"] is None and bounded["bounds"] == [0.0, 0.5]
    assert bounded["ci"][0] == 0 and bounded["ci"][1] > 0.8, "up to the upper end of half"
    assert able["attack_success_rate"] == 0 and able["bounds"] is None


def test_calibration_golden(computed: list[dict[str, Any]]) -> None:
    assert computed[6]["expected_calibration_error"] == pytest.approx(0.2083, abs=5e-5)
    assert computed[6]["brier"] == pytest.approx(0.2146, abs=5e-5)


def test_pairwise_accuracy(computed: list[dict[str, Any]]) -> None:
    """Margins 1, 0, -1, 1: (1 + 1/2 + 0 + 1) / 4. Subsets 1 and 0: 2/3 over comparisons, 1/2 over subsets."""
    assert computed[7]["rm_pairwise_accuracy"] == 0.625
    assert computed[8]["rm_pairwise_accuracy"] == pytest.approx(2 / 3) and computed[8]["macro"] == 0.5


def test_a_word_that_is_no_verdict_is_refused() -> None:
    from evals.tables.outcomes import verdict_rates

    with pytest.raises(ValueError, match="FINE"):
        verdict_rates(["BAD", "FINE"])
    with pytest.raises(ValueError, match="one each"):
        verdict_rates(["BAD"], clusters=["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        verdict_rates([])
