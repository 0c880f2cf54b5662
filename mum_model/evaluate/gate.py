"""The gate: rules that decide whether the first encoder may take the place of another."""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mum_model.errors import UserError
from mum_model.evaluate.columns import COLUMNS

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

    def verdict(self, metrics: Mapping[str, Mapping[str, float]], candidate: str) -> tuple[bool, str]:
        """Whether the rule holds, and why in one line.

        Args:
            metrics: Of every encoder by name, as in `metrics.json`.
            candidate: Name of the first encoder.

        Returns:
            The decision and its reason.
        """
        value = metrics[candidate][self.number]
        bound = self.shift + (self.factor * metrics[self.other][self.number] if self.other else 0.0)
        holds = _SIGNS[self.sign](value, bound)
        theirs = "" if self.other is None else f" ({self.other}: {metrics[self.other][self.number]:.4g})"
        return holds, f"{self.text}: {value:.4g} against {bound:.4g}{theirs}, {'holds' if holds else 'broken'}"


def parse_rules(texts: Sequence[str], candidate: str, others: Sequence[str]) -> list[Rule]:
    """Read the rules before anything is computed.

    Args:
        texts: `NUMBER <= FACTOR * ENCODER + SHIFT`, factor and shift left out where they are 1 and 0; or
            `NUMBER <= BOUND`. The sign is one of <=, >=, <, >.
        candidate: Name of the first encoder.
        others: Names of the others.

    Returns:
        The rules.

    Raises:
        UserError: A rule cannot be read, or names a number or encoder that there is not.
    """
    return [_parse(text, candidate, others) for text in texts]


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
    if other is not None and other not in others:
        raise UserError(
            f"gate: '{text}' compares {candidate} with '{other}'; the other encoders are {', '.join(others)}"
        )
    if other is None:
        return Rule(text, number, found["sign"], None, 0.0, float(found["bound"]))
    shift = float((found["shift"] or "0").replace(" ", ""))
    return Rule(text, number, found["sign"], other, float(found["factor"] or 1), shift)


def decide(rules: Sequence[Rule], metrics: Mapping[str, Mapping[str, float]], candidate: str) -> tuple[bool, list[str]]:
    """Decide on the first encoder.

    Args:
        rules: All must hold.
        metrics: Of every encoder by name.
        candidate: Name of the first encoder.

    Returns:
        Whether it may be promoted, and a reason for each rule.

    Raises:
        UserError: A rule asks for a number that this evaluation did not give.
    """
    for rule in rules:
        for name in filter(None, (candidate, rule.other)):
            if rule.number not in metrics[name]:
                given = ", ".join(key for key in metrics[name] if not key.endswith(("_low", "_high")))
                raise UserError(f"gate: '{rule.text}': {name} has no {rule.number}; this evaluation gives {given}")
    verdicts = [rule.verdict(metrics, candidate) for rule in rules]
    return all(holds for holds, _ in verdicts), [reason for _, reason in verdicts]
