"""What can be skipped, and at what risk: exit policies and the decoding that follows them, drafts, and guarantees.

The names load what they need on first use: a policy is read and checked without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exitlens.lazy import lazy_names

if TYPE_CHECKING:
    from exitlens.exits.adapter import AdaptReport as AdaptReport
    from exitlens.exits.adapter import adapt as adapt
    from exitlens.exits.draft import Clasp as Clasp
    from exitlens.exits.draft import Draft as Draft
    from exitlens.exits.draft import parse_draft as parse_draft
    from exitlens.exits.draft_search import best_draft as best_draft
    from exitlens.exits.heads import ExitHeads as ExitHeads
    from exitlens.exits.heads import train_heads as train_heads
    from exitlens.exits.policies import ExitPolicy as ExitPolicy
    from exitlens.exits.policies import parse_policy as parse_policy
    from exitlens.exits.replay_policies import Cost as Cost
    from exitlens.exits.replay_policies import Outcome as Outcome
    from exitlens.exits.replay_policies import Signals as Signals
    from exitlens.exits.replay_policies import apply_policy as apply_policy
    from exitlens.exits.replay_policies import oracle as oracle
    from exitlens.exits.replay_policies import signals_of as signals_of
    from exitlens.exits.risk_control import AnytimeControl as AnytimeControl
    from exitlens.exits.risk_control import Calibrated as Calibrated
    from exitlens.exits.risk_control import calibrate as calibrate
    from exitlens.exits.risk_control import calibrate_anytime as calibrate_anytime
    from exitlens.exits.risk_control import risk_upper_bound as risk_upper_bound
    from exitlens.exits.rounds import SpeculationTally as SpeculationTally
    from exitlens.exits.session import ExitPrefix as ExitPrefix
    from exitlens.exits.session import Tally as Tally
    from exitlens.exits.shortlist import ExitReader as ExitReader
    from exitlens.exits.speculation import speculate as speculate
    from exitlens.exits.timing import TimeModel as TimeModel
    from exitlens.exits.timing import measure_times as measure_times

_HOME = {
    "AdaptReport": "adapter",
    "AnytimeControl": "risk_control",
    "Calibrated": "risk_control",
    "Clasp": "draft",
    "Cost": "replay_policies",
    "Draft": "draft",
    "ExitHeads": "heads",
    "ExitPolicy": "policies",
    "ExitPrefix": "session",
    "ExitReader": "shortlist",
    "Outcome": "replay_policies",
    "Signals": "replay_policies",
    "SpeculationTally": "rounds",
    "Tally": "session",
    "TimeModel": "timing",
    "adapt": "adapter",
    "apply_policy": "replay_policies",
    "best_draft": "draft_search",
    "calibrate": "risk_control",
    "calibrate_anytime": "risk_control",
    "measure_times": "timing",
    "oracle": "replay_policies",
    "parse_draft": "draft",
    "parse_policy": "policies",
    "risk_upper_bound": "risk_control",
    "signals_of": "replay_policies",
    "speculate": "speculation",
    "train_heads": "heads",
}

__all__ = list(_HOME)

__getattr__ = lazy_names(__name__, _HOME)
