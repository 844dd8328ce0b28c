"""Run a bundle on images and video, without torch.

from uid.runtime import load

sharp = load()(image).image
"""

from uid.runtime.pipeline import Options, Pipeline, Result, load

__all__ = ["Options", "Pipeline", "Result", "load"]
