"""What a model can do besides its edits: tasks of lm-evaluation-harness, before and after."""

from rome_fast.evaluate.capability.measure import measure_capability
from rome_fast.evaluate.capability.result import Capability

__all__ = ["Capability", "measure_capability"]
