"""Where a fact lies: causal tracing, and the layer that trial edits recommend."""

from rome_fast.locate.plan import LayerTrial, Plan
from rome_fast.locate.suggest import suggest_layer
from rome_fast.locate.trace import Trace
from rome_fast.locate.tracing import locate

__all__ = ["LayerTrial", "Plan", "Trace", "locate", "suggest_layer"]
