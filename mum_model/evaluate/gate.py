"""The gate: rules that decide whether the first encoder may take the place of another."""

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mum_model.errors import UserError
from mum_model.evaluate.columns import COLUMNS
from mum_model.evaluate.parts import BenchmarkCard, Part, TaskCard, differences
from mum_model.files import write_json

CANDIDATE = "candidate.json"
SERVED = "served"
"""The name under which rules know the encoder that is served: one judged beside the candidate, else `paths.served`."""

_FLOAT = r"[0-9]+(?:\.[0-9]*)?(?:e-?[0-9]+)?"
_RULE = re.compile(
    rf"\s*(?P<number>[\w.-]+)\s*(?P<sign><=|>=|<|>)\s*"
    rf"(?:(?P<bound>{_FLOAT})|(?:(?P<factor>{_FLOAT})\s*\*\s*)?(?P<other>[A-Za-z][\w.-]*)"
    rf"(?:\s+(?P<shift>[+-]\s*{_FLOAT}))?)\s*"
)
_SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


class NotPromotedError(UserError):
    """The first encoder broke a rule of the gate; the evaluation itself is whole and written."""

    status = 3


@dataclass(frozen=True)
class Decision:
    """What the gate decided.

    Attributes:
        promoted: Whether the candidate may be promoted: no rule is broken.
        candidate: Name of the first encoder.
        reasons: A line for each rule.
    """

    promoted: bool
    candidate: str
    reasons: Sequence[str]


@dataclass(frozen=True)
class Record:
    """What was found of an encoder, and on what: `candidate.json`, kept with an encoder when it is promoted.

    Attributes:
        name: Of the encoder.
        description: Where it came from.
        identity: SHA-256 of everything that decides its tokens, of each seed.
        benchmarks: What it was judged on, by name.
        numbers: By `BENCHMARK.TASK.NUMBER`.
    """

    name: str
    description: str
    identity: Sequence[str]
    benchmarks: Mapping[str, BenchmarkCard]
    numbers: Mapping[str, float]


def write_record(folder: Path, parts: Sequence[Part]) -> None:
    """Write `candidate.json`.

    Args:
        folder: The folder of the report.
        parts: Of the candidate alone.
    """
    encoder = parts[0].encoder
    benchmarks = {part.benchmark.name: part.benchmark for part in parts}
    numbers = {f"{part.benchmark.name}.{key}": value for part in parts for key, value in part.numbers.items()}
    record = Record(encoder.name, encoder.description, encoder.identity, benchmarks, numbers)
    write_json(folder / CANDIDATE, asdict(record))


def read_record(path: Path) -> Record:
    """Read what was found of an encoder.

    Args:
        path: A `candidate.json`.

    Returns:
        The record.

    Raises:
        UserError: The file is missing or is no such record.
    """
    try:
        content = json.loads(path.read_text())
        benchmarks = {
            name: BenchmarkCard(name, card["basis"], [TaskCard(**task) for task in card["tasks"]])
            for name, card in content.pop("benchmarks").items()
        }
        return Record(**content, benchmarks=benchmarks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"paths.served: {path} is missing or no {CANDIDATE} of a report ({error!r}); null while nothing is served"
        ) from error


@dataclass(frozen=True)
class Rule:
    """One rule, for instance `dataset.matching.probe_epe <= 1.01 * served`.

    Attributes:
        text: As it was written.
        number: `BENCHMARK.TASK.NUMBER` of the first encoder.
        sign: `<=`, `>=`, `<` or `>`.
        other: The encoder it is compared with, or None for a fixed bound.
        factor: What the other's number is multiplied by; 0 for a fixed bound.
        shift: What is added then; the bound itself for a fixed one.
    """

    text: str
    number: str
    sign: str
    other: str | None
    factor: float
    shift: float

    def verdict(self, candidate: Record, others: Mapping[str, Record]) -> tuple[bool, str]:
        """Whether the rule holds, and why in one line.

        Args:
            candidate: The first encoder.
            others: The others by name, and what is served if anything is.

        Returns:
            The decision and its reason. What cannot be compared is broken; nothing to compare with holds.
        """
        if self.number not in candidate.numbers:
            return False, f"{self.text}: {_lacks(candidate, self.number)}, broken"
        value = candidate.numbers[self.number]
        if self.other is None:
            return self._compared(value, self.shift, "")
        if self.other not in others:
            return True, f"{self.text}: {value:.4g}, nothing is served yet, holds"
        other = others[self.other]
        if self.number not in other.numbers:
            return False, f"{self.text}: {_lacks(other, self.number)}, broken"
        benchmark = self.number.partition(".")[0]
        found = differences(candidate.benchmarks[benchmark], other.benchmarks[benchmark])
        if found:
            return False, (
                f"{self.text}: not comparable, {self.other} was judged on another {benchmark}: {found}, broken. Judge "
                f"both in one evaluation, encoder=[...,{{{self.other}: ...}}]"
            )
        theirs = other.numbers[self.number]
        return self._compared(value, self.shift + self.factor * theirs, f" ({self.other}: {theirs:.4g})")

    def _compared(self, value: float, bound: float, theirs: str) -> tuple[bool, str]:
        holds = _SIGNS[self.sign](value, bound)
        return holds, f"{self.text}: {value:.4g} against {bound:.4g}{theirs}, {'holds' if holds else 'broken'}"


def _lacks(record: Record, number: str) -> str:
    given = ", ".join(key for key in record.numbers if not key.endswith(("_low", "_high")))
    return f"{record.name} has no {number}; it has {given or 'no number at all'}"


def parse_rules(texts: Sequence[str], candidate: str, others: Iterable[str]) -> list[Rule]:
    """Read the rules before anything is computed.

    Args:
        texts: `NUMBER <= FACTOR * ENCODER + SHIFT`, factor and shift left out where they are 1 and 0; or
            `NUMBER <= BOUND`. The sign is one of <=, >=, <, >.
        candidate: Name of the first encoder.
        others: Names of the others; `served` need not be among them.

    Returns:
        The rules.

    Raises:
        UserError: A rule cannot be read, or names a number or encoder that there is not.
    """
    known = list(others)
    return [_parse(text, candidate, known) for text in texts]


def _parse(text: str, candidate: str, others: Sequence[str]) -> Rule:
    found = _RULE.fullmatch(text)
    if found is None:
        raise UserError(
            f"gate: '{text}' is no rule; expected for instance 'dataset.matching.probe_epe <= 1.01 * served' "
            "or 'dataset.pose.auc5 >= 0.2'"
        )
    number, other = found["number"], found["other"]
    if number.partition(".")[2] not in COLUMNS:
        raise UserError(f"gate: '{number}' in '{text}' is no BENCHMARK.NUMBER; the numbers are {', '.join(COLUMNS)}")
    if other is not None and other not in (*others, SERVED):
        raise UserError(
            f"gate: '{text}' compares {candidate} with '{other}'; the other encoders are {', '.join(others)}"
        )
    if other is None:
        return Rule(text, number, found["sign"], None, 0.0, float(found["bound"]))
    shift = float((found["shift"] or "0").replace(" ", ""))
    return Rule(text, number, found["sign"], other, float(found["factor"] or 1), shift)


def decide_gate(folder: Path, rules: Sequence[str], served: Path | None) -> Decision:
    """Decide on the first encoder of a report.

    Args:
        folder: What `mum report` or `mum evaluate` wrote: reads `metrics.json` and `candidate.json`.
        rules: All must hold, see `parse_rules`.
        served: The `candidate.json` of the encoder that is served, kept from when it was promoted, for rules that name
            `served`; None while nothing is served: then they hold. An encoder of that name in the report goes before.

    Returns:
        The decision. Numbers of what is served that were judged on other data or settings are not compared: the rule
        is broken, and its reason names the difference.

    Raises:
        UserError: A rule cannot be read or names another encoder than there is, or `served` is no such file.
    """
    candidate = read_record(folder / CANDIDATE)
    metrics = json.loads((folder / "metrics.json").read_text())
    others = {
        name: replace(candidate, name=name, numbers=numbers)
        for name, numbers in metrics.items()
        if name not in (candidate.name, "ratio")
    }
    known = ({} if served is None else {SERVED: read_record(served)}) | others
    verdicts = [rule.verdict(candidate, known) for rule in parse_rules(rules, candidate.name, others)]
    return Decision(all(holds for holds, _ in verdicts), candidate.name, [reason for _, reason in verdicts])
