"""UID runtime: diffusion deblurring on the edge and on servers.

The subpackages, from the ground up; each imports only those before it:

``uid.bundles``    what a model is on disk: manifest, hashes, cache; the built-in model
``uid.engines``    the engine contract, and one file or folder per backend
``uid.runtime``    bundle + engine -> sharp images and video, without torch; ``uid-run``
``uid.serve``      a page and an HTTP service on one box; ``uid-serve``
``uid.families``   model families in PyTorch: the oracle, and what is exported
``uid.export``     PyTorch components -> a bundle; ``uid-export``
``uid.train``      training stages; ``uid-train``
``uid.bench``      speed, memory, parity and quality; ``uid-bench``
"""

from uid.telemetry import switch_off

__version__ = "0.1.0"

switch_off()  # here, since nothing of this project is imported before this file
