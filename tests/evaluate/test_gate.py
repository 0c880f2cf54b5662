"""The gate: rules, what is served, and comparisons that would say nothing."""

import json

import pytest

from mum_model.errors import UserError
from mum_model.evaluate import decide_gate

EPE, AUC = "rooms.matching.probe_epe", "rooms.pose.auc5"
BASIS = {"content": "0123456789abcdef", "seed": 0, "evaluate.size": 64}


def record(path, numbers, **basis):
    """A `candidate.json`."""
    benchmark = {"name": "rooms", "basis": {**BASIS, **basis}, "tasks": []}
    content = {"name": "mum", "description": "a run", "identity": ["abc"], "benchmarks": {"rooms": benchmark}}
    path.write_text(json.dumps({**content, "numbers": numbers}))
    return path


@pytest.fixture
def folder(tmp_path):
    """A report on two encoders."""
    numbers = {EPE: 10.05, AUC: 0.30}
    (tmp_path / "metrics.json").write_text(json.dumps({"mum": numbers, "teacher": {EPE: 10.0, AUC: 0.31}}))
    record(tmp_path / "candidate.json", numbers)
    return tmp_path


@pytest.fixture
def served(tmp_path):
    return record(tmp_path / "served.json", {EPE: 10.0, AUC: 0.31})


@pytest.mark.parametrize("other", ["teacher", "served"])
@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (f"{EPE} <= 1.01 * OTHER", True),
        (f"{EPE} <= 1.001 * OTHER", False),
        (f"{EPE} < OTHER", False),
        (f"{EPE} < OTHER + 0.1", True),
        (f"{AUC} >= OTHER", False),
        (f"{AUC} >= OTHER - 0.02", True),
        (f"{AUC}>=1.0*OTHER -0.02", True),
        (f"{AUC} > 0.25", True),
        (f"{EPE} < 1e1", False),
    ],
)
def test_rules_say_what_they_mean(folder, served, rule, holds, other):
    decision = decide_gate(folder, [rule.replace("OTHER", other)], served)
    assert decision.promoted is holds
    assert decision.candidate == "mum"
    assert ("holds" if holds else "broken") in decision.reasons[0]


def test_one_broken_rule_is_enough(folder):
    decision = decide_gate(folder, [f"{AUC} > 0.25", f"{AUC} > 0.35"], None)
    assert not decision.promoted
    assert len(decision.reasons) == 2


def test_without_rules_everything_is_promoted(folder):
    assert decide_gate(folder, [], None).promoted


def test_a_number_that_was_not_measured_breaks_its_rule(folder, served):
    decision = decide_gate(folder, ["halls.matching.probe_epe < 3", f"{EPE} < 2 * served"], served)
    assert not decision.promoted
    assert f"mum has no halls.matching.probe_epe; it has {EPE}, {AUC}, broken" in decision.reasons[0]
    assert "holds" in decision.reasons[1]


def test_nothing_is_served_yet_and_the_rule_holds(folder):
    decision = decide_gate(folder, [f"{EPE} < served", f"{EPE} < 3"], None)
    assert "nothing is served yet, holds" in decision.reasons[0]
    assert "broken" in decision.reasons[1]
    assert not decide_gate(folder, ["halls.pose.auc5 > served"], None).promoted, "the candidate was not measured"


@pytest.mark.parametrize(
    ("basis", "difference"),
    [
        ({"content": "fedcba9876543210"}, "content 0123456789ab against fedcba987654"),
        ({"evaluate.size": 448}, "evaluate.size 64 against 448"),
        ({"evaluate.linear.batch": 8}, "evaluate.linear.batch None against 8"),
    ],
)
def test_what_was_judged_on_something_else_is_not_compared(folder, tmp_path, basis, difference):
    served = record(tmp_path / "served.json", {EPE: 99.0, AUC: 0.01}, **basis)
    decision = decide_gate(folder, [f"{EPE} < served"], served)
    assert not decision.promoted
    assert f"not comparable, served was judged on another rooms: {difference}, broken" in decision.reasons[0]


def test_served_that_lacks_the_number_is_not_compared(folder, tmp_path):
    decision = decide_gate(folder, [f"{AUC} > served"], record(tmp_path / "served.json", {EPE: 9.0}))
    assert not decision.promoted
    assert f"has no {AUC}; it has {EPE}, broken" in decision.reasons[0]


def test_served_that_was_judged_beside_the_candidate_goes_before_what_is_kept(folder, served):
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**metrics, "served": {EPE: 20.0}}))
    (reason,) = decide_gate(folder, [f"{EPE} < served"], served).reasons
    assert "(served: 20), holds" in reason


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("the best", "is no rule"),
        ("rooms.epe < 3", "is no BENCHMARK.NUMBER"),
        (f"{EPE} < x", "other encoders are teacher"),
    ],
)
def test_a_rule_that_cannot_be_read_is_named(folder, rule, message):
    with pytest.raises(UserError, match=message):
        decide_gate(folder, [rule], None)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"benchmarks": {"rooms": {}}}', '{"benchmarks": {}}'])
def test_a_file_that_is_no_record_is_named(folder, tmp_path, content):
    if content is not None:
        (tmp_path / "served.json").write_text(content)
    with pytest.raises(UserError, match=r"paths.served: .*served.json is missing or no candidate.json"):
        decide_gate(folder, [], tmp_path / "served.json")
