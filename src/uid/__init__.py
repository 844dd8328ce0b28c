"""UID runtime: diffusion deblurring on the edge and on servers.

Data flows through the subpackages in this order:

``uid.families.uid_diff``  PyTorch modules: the oracle, and what is exported
``uid.export``     PyTorch components -> a bundle (ONNX + manifest); ``uid-export``
``uid.engines``    the engine contract and one file per backend
``uid.runtime``    bundle + engine -> sharp pixels, without torch; ``uid-run``
"""

from uid.telemetry import switch_off

__version__ = "0.1.0"

switch_off()  # here, since nothing of this project is imported before this file
