"""What a preflight found: values that `fm.preflight` returns, JSON-able."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from fm.display import html_table, human_seconds, plain, text_table

Verdict = Literal[
    "learns", "learning rate too small", "learning rate too large", "target modules too few", "rank too small",
    "adapter too small", "does not learn",
]
Outcome = Literal["ok", "fail", "skipped"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), defer_build=True)


class Trial(_Value):
    """One training on one small batch, until it should be known by heart."""

    name: str
    """What it differs in from the request."""
    learning_rate: float | None
    """None where the training did not come so far as to choose one."""
    loss_before: float | None = None
    """Nats for each trained token, before the first step."""
    loss_after: float | None = None
    """Of the last steps; None if the loss was no number, or the training failed."""
    least_loss: float = 0.0
    """What remains when the batch is known by heart: of texts that begin alike, nobody can tell how they go on."""
    learnt: bool = False
    problem: str = ""
    """Why it failed, if it did."""


class Check(_Value):
    """One thing that a rung looked at."""

    name: str
    passed: bool
    found: str
    remedy: str = ""
    """What to change; empty where it passed."""


class Rung(_Value):
    """One rung of the ladder: the trial on one batch, or short trainings with so many processes."""

    name: str
    outcome: Outcome
    found: str
    """The verdict, what was seen, what failed, or why it was skipped."""
    remedy: str = ""
    """What to change; empty where it passed."""
    verdict: Verdict | None = None
    """Of the first rung."""
    trials: tuple[Trial, ...] = ()
    """Of the first rung, in the order in which they were made."""
    processes: int = 1
    device: str = ""
    precision: str = ""
    """ "bf16" or "fp32"; empty where no model was loaded, as is `device`."""
    checks: tuple[Check, ...] = ()
    loss: tuple[float, float] | None = None
    """Before and after, nats for each trained token."""
    tokens_per_second: float | None = None
    """Non-padding tokens, over all processes."""
    efficiency: float | None = None
    """Of each process, as a share of what one process alone reaches."""
    seconds: float = 0.0


class Preflight(_Value):
    """What each rung of the ladder found. It is climbed up to the first rung that fails."""

    model: str
    rungs: tuple[Rung, ...]

    @property
    def passed(self) -> bool:
        """Whether no rung failed."""
        return self.failed is None

    @property
    def failed(self) -> Rung | None:
        """The first rung that failed."""
        return next((rung for rung in self.rungs if rung.outcome == "fail"), None)

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows, one for each rung."""
        columns = ("", "RUNG", "LOSS", "TOKENS/S", "EFFICIENCY", "TIME", "FOUND")
        return columns, [
            (
                rung.outcome,
                rung.name,
                "{:.3f} → {:.3f}".format(*rung.loss) if rung.loss else "",
                f"{rung.tokens_per_second:,.0f}" if rung.tokens_per_second else "",
                f"{rung.efficiency:.0%}" if rung.efficiency else "",
                human_seconds(rung.seconds) if rung.seconds else "",
                rung.found,
            )
            for rung in self.rungs
        ]

    def trials(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows of the trials on one batch."""
        columns = ("TRIAL", "LEARNING RATE", "LOSS", "LEARNT")
        return columns, [
            (
                trial.name,
                f"{trial.learning_rate:.3g}" if trial.learning_rate else "",
                trial.problem or f"{_loss(trial.loss_before)} → {_loss(trial.loss_after)}",
                "yes" if trial.learnt else "no",
            )
            for rung in self.rungs
            for trial in rung.trials
        ]

    def conclusion(self) -> str:
        """The last line: passed, or the first failing rung with what to change."""
        if self.failed is None:
            return f"passed on {self.rungs[0].device} in {self.rungs[0].precision}"
        return f"failed at {self.failed.name}: {self.failed.found}\n  → {self.failed.remedy}"

    def __str__(self) -> str:
        return plain("\n\n".join([text_table(*self.table()), text_table(*self.trials()), self.conclusion()]))

    def _repr_html_(self) -> str:
        import html

        return html_table(*self.table()) + html_table(*self.trials()) + f"<p>{html.escape(self.conclusion())}</p>"


def _loss(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3f}"
