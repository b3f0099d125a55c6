"""What a model is made of, and which of its layers take an edit."""

from rome_fast.probe.anatomy import Anatomy
from rome_fast.probe.layers import LayerAnatomy
from rome_fast.probe.trials import Probe, TriedLayer, probe

__all__ = ["Anatomy", "LayerAnatomy", "Probe", "TriedLayer", "probe"]
