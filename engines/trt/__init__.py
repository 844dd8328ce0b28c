"""TensorRT and TensorRT-RTX, through one code path.

``library``         which of the two is installed, and what it can target
``profiles``        the image sizes that an engine is built for
``build``           an ONNX graph to an engine; ``isolated_build`` does so in a process of its own
``cache``           built engines on disk, reused or built
``engine``          a loaded engine: contexts, scratch memory, launches
``backend``         the backend: chooses an engine for a size, captures the loop
"""
