"""No library that this project uses tells anyone what runs here, or keeps an identity of the machine.

ONNX Runtime 1.32 keeps a device id and its events under the home folder, and looks up the host that they go to.
OpenVINO's tools, which ``import openvino`` loads, send an event to an analytics host. Both begin at their import.
"""

import os
import sys

# By name, what turns it off; who set one of them otherwise keeps that.
SETTINGS = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, for diffusers and transformers too
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray
}
# It has no setting but a file in the home folder. OpenVINO goes on without it: a stand-in of its own does nothing.
UNWANTED = "openvino_telemetry"


def switch_off() -> None:
    """Turn telemetry off in this process. Call it before the libraries are imported.

    Other processes that it starts have the settings too; OpenVINO's is off in those that import ``uid`` first.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # Python's own way to say that a module is not there: importing it raises ImportError.
    sys.modules.setdefault(UNWANTED, None)  # type: ignore[arg-type]  # typeshed leaves None out
