"""When is drafting worth it? An account in seconds: trying may cost a stated share of the time, gains pay for more.

No model is needed here. The account begins empty. Every second of plain decoding adds ``allowance`` seconds; a choice
of sub-layers costs what it took; a drafted round adds what plain decoding would have taken for its tokens, less what
the round took. Nothing is tried that the account cannot pay, and drafting ends when it is empty or the last rounds were
slower than plain steps, so the whole is never much slower than plain decoding, whatever the model.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from exitlens.exits.draft import Clasp, Draft

__all__ = ["ClaspReport", "Plan", "Switch", "expected_gain"]

_KNOWN = 4  # plain steps that are timed before anything is tried
_WINDOW = 6  # drafted rounds that are judged together
_CHECK = 24  # drafted rounds after which a plain step is timed again: its cost grows with the text
_WORTH = 1.03  # expected speed below which a draft is not tried
_WIDER = 0.04  # of a plain step: what one more token costs verification, until rounds were timed


@dataclass(frozen=True, slots=True)
class Plan:
    """A way to draft: ``skipped`` pieces left out, ``share`` of a plain step's time taken by a drafted token.

    ``overlap``: probability that a token drawn from it is accepted, on the token it was chosen on. ``cosine``: of its
    last state to the full stack's.
    """

    draft: Draft
    skipped: int
    share: float
    overlap: float
    cosine: float


@dataclass(slots=True)
class ClaspReport:
    """What the switch did: choices made and their seconds, steps and rounds, the fastest draft found.

    ``best`` and ``best_speed``: of the draft whose rounds were fastest, relative to plain steps; ``expected``: the
    highest speed expected of any plan, where none was tried.
    """

    choices: int = 0
    choosing_seconds: float = 0.0
    plain_steps: int = 0
    drafted_rounds: int = 0
    switched_off: int = 0
    best: str = ""
    best_speed: float = 0.0
    expected: float = 0.0

    @property
    def text(self) -> str:
        """One sentence for the terminal."""
        if not self.choices:
            return "clasp: too few tokens to pay for a choice of sub-layers: decoded plainly"
        told = f"clasp: {self.choices} choices of sub-layers ({self.choosing_seconds:.1f} s)"
        if not self.drafted_rounds:
            return f"{told}, none worth a draft (at best {self.expected:.2f} times as fast expected): decoded plainly"
        ended = f", switched off {self.switched_off} times" if self.switched_off else ""
        best = f"; fastest {self.best}: {self.best_speed:.2f} times as fast as plain steps" if self.best else ""
        return f"{told}, {self.drafted_rounds} drafted rounds beside {self.plain_steps} plain steps{ended}{best}"


def expected_gain(acceptance: float, length: int, share: float, wider: float = _WIDER) -> float:
    """Tokens a round over its cost in plain steps: ``(1 − a^{L+1}) / (1 − a) / (L·share + 1 + L·wider)``.

    Source: Leviathan et al. 2023, theorem 3.8, with the cost of verifying L + 1 tokens.
    """
    tokens = length + 1.0 if acceptance >= 1.0 else (1.0 - acceptance ** (length + 1)) / (1.0 - acceptance)
    return tokens / (length * share + 1.0 + length * wider)


@dataclass(slots=True)
class Switch:
    """Says what the next round is: ``plain``, ``choose`` (then :meth:`offer`) or ``draft``; told what each took."""

    given: Clasp
    first_choice: float = 3.0  # plain steps that the first choice is expected to take
    report: ClaspReport = field(default_factory=ClaspReport)
    credit: float = 0.0
    draft: Draft | None = None
    _plain: dict[int, deque[float]] = field(default_factory=dict)  # seconds of the last plain steps, by rows
    _overlap: dict[int, float] = field(default_factory=dict)  # by skipped pieces, over the choices so far
    _recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    _all: list[float] = field(default_factory=lambda: [0.0, 0.0])  # plain seconds saved up, seconds taken: this draft
    _rounds: int = 0  # with this draft
    _unchecked: int = 0  # drafted rounds since the last plain step
    _since: float = 0.0  # seconds drafted since the last choice
    _choice: float | None = None  # seconds of a choice
    _fails: int = 0
    _rested: int = 0  # plain steps since drafting was given up
    _trust: float = 1.0  # measured acceptance over the expected one
    _slower: float = 1.0  # a round's measured seconds over the expected ones
    _expected: float = 1.0  # acceptance of the draft in use, as its choices showed it
    _share: float = 1.0  # of a plain step's time that a drafted token takes

    def idle(self, seconds: float) -> None:
        """Seconds that plain decoding spends as well (the prompts' pass)."""
        self.credit += self.given.allowance * seconds

    def next(self, rows: int) -> Literal["plain", "choose", "draft"]:
        """What to do with ``rows`` rows now."""
        plain = self.plain(rows)
        if plain is None:
            return "plain"
        if self.draft is not None:
            if self._unchecked >= _CHECK:
                return "plain"
            due = self._choice is not None and self._since * self.given.refresh >= self._choice
            return "choose" if due and self.credit >= (self._choice or 0.0) else "draft"
        choice = self.first_choice * plain if self._choice is None else self._choice
        # Each failure doubles what the next trial must have saved up and how long it waits, whatever earlier drafts
        # gained: a model that cannot gain is hardly bothered.
        more = 2 ** min(self._fails, 4)
        rested = self._fails == 0 or self._rested >= 8 * more
        return "choose" if rested and self.credit >= (choice + 3 * plain) * more else "plain"

    def plain(self, rows: int) -> float | None:
        """Seconds of a plain step of so many rows, or None before enough were timed."""
        known = self._plain.get(rows)
        return statistics.median(known) if known is not None and len(known) >= _KNOWN else None

    def stepped(self, rows: int, seconds: float) -> None:
        """A plain step was made."""
        self._plain.setdefault(rows, deque(maxlen=15)).append(seconds)
        self.credit += self.given.allowance * seconds
        self.report.plain_steps += 1
        self._unchecked = 0
        self._rested += 1

    def offer(self, plans: Sequence[Plan], seconds: float) -> None:
        """A choice was made in ``seconds``: take the plan that is expected to be fastest, if any is worth it."""
        self._choice = seconds
        self.credit -= seconds
        self.report.choices += 1
        self.report.choosing_seconds += seconds
        self._since = 0.0
        best = 0.0
        taken: Plan | None = None
        for i, plan in enumerate(plans):
            # One token tells little: neighbouring numbers of skips and earlier choices are taken into account.
            near = plans[max(0, i - 2) : i + 3]
            now = sum(each.overlap for each in near) / len(near)
            self._overlap[plan.skipped] = seen = 0.5 * self._overlap.get(plan.skipped, now) + 0.5 * now
            accepted = min(0.99, seen * self._trust)
            for length in range(1, self.given.length + 1):
                gain = expected_gain(accepted, length, plan.share) / self._slower
                if gain > best:
                    best, taken, self._expected, self._share = gain, plan, seen, plan.share
        self.report.expected = max(self.report.expected, best)
        if taken is None or best < _WORTH:
            self._off()
            return
        if taken.draft != self.draft:
            self._close()
            self.draft = taken.draft

    def drafted(self, rows: int, length: int, held: float, seconds: float) -> None:
        """A round that drafted ``length`` tokens a row took ``seconds``; ``held``: drafts accepted, mean over rows."""
        plain = self.plain(rows)
        if plain is None or self.draft is None:
            return
        # A pause of the whole machine is not the draft's fault: no round costs more than so many plain steps.
        seconds = min(seconds, 4.0 * (length + 1) * plain)
        worth = (held + 1.0) * plain
        self.credit += worth - seconds
        self._recent.append((worth, seconds))
        self._all = [self._all[0] + worth, self._all[1] + seconds]
        self._rounds += 1
        self._unchecked += 1
        self._since += seconds
        self.report.drafted_rounds += 1
        if length:
            accepted = expected_held(length, min(0.99, self._expected * self._trust))
            self._trust = min(1.3, max(0.2, self._trust * (1.0 + 0.1 * (held - accepted) / (accepted + 0.1))))
            cost = (length * self._share + 1.0 + length * _WIDER) * plain
            self._slower += 0.1 * (min(2.0, seconds / cost) - self._slower)
        slow = len(self._recent) >= _WINDOW // 2 and sum(w for w, _ in self._recent) < sum(s for _, s in self._recent)
        if slow or self.credit < 0:
            self._off()
        elif len(self._recent) == _WINDOW:
            self._fails = 0

    def close(self) -> ClaspReport:
        """The report, the draft in use included."""
        self._close()
        return self.report

    def _off(self) -> None:
        if self.draft is not None:
            self.report.switched_off += 1
        self._close()
        self.draft = None
        self._fails += 1
        self._rested = 0
        # What was learned of one draft fades, so that another may be tried when the text has changed.
        self._slower, self._trust = 0.5 + 0.5 * self._slower, 0.5 + 0.5 * self._trust

    def _close(self) -> None:
        """Note how fast the draft in use was, and begin anew."""
        if self.draft is not None and self._rounds >= 2 and self._all[0] / self._all[1] > self.report.best_speed:
            self.report.best, self.report.best_speed = self.draft.name, self._all[0] / self._all[1]
        self._all, self._rounds = [0.0, 0.0], 0
        self._recent.clear()


def expected_held(length: int, acceptance: float) -> float:
    """Mean number of ``length`` drafts that hold: ``a + a² + … + a^L``."""
    return float(sum(acceptance**k for k in range(1, length + 1)))
