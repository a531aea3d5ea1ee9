"""Errors that place the fault. The command line turns each into one line and its exit code."""

from __future__ import annotations


class LabError(Exception):
    """Any failure this laboratory can explain in one line.

    ``exit_code`` is 2 where the user can mend the input, 1 where a run failed.
    The text of an error that may leave a party never holds that party's values.
    """

    exit_code = 1
    #: The rule by which something was refused; what no rule of its own forbids, the gate does.
    rule = "gate"


class ConfigurationError(LabError):
    """An experiment, an option or a combination of them is not usable."""

    exit_code = 2


class ContractError(LabError):
    """A table does not keep its contract. ``violations`` holds every one found."""

    exit_code = 2

    def __init__(self, message: str, violations: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join([message, *violations]))
        self.violations = violations


class ModelError(LabError):
    """The model asked for has no answer on these rows: collinear, separated, not converged."""


class PolicyError(LabError):
    """A party or a key holder refuses to release something, by a rule it names.

    rule: its name in logs; people read it in brackets before the text.
    """

    def __init__(self, message: str, rule: str = "gate") -> None:
        super().__init__(message if rule == "gate" else f"[{rule}] {message}")
        self.rule = rule


class BudgetError(LabError):
    """A party's privacy budget does not cover what is asked of it."""


class LogError(LabError):
    """A party's log can't be written or does not hold together; nothing leaves without a log."""


class PeerError(LabError):
    """Another party failed, or sent something that cannot be used.

    culprits: names of who did it, where it is known
    """

    def __init__(self, message: str, *culprits: str) -> None:
        super().__init__(message)
        self.culprits = culprits


#: How a typed refusal travels: by name, so that the other side can raise the same type.
TRAVELLING: dict[str, type[LabError]] = {
    kind.__name__: kind
    for kind in (
        ConfigurationError,
        ContractError,
        ModelError,
        PolicyError,
        BudgetError,
        LogError,
        PeerError,
    )
}
