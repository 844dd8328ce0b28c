"""What a model is on disk, with no library but numpy and safetensors.

``tensors``   names, dtypes and symbolic shapes of tensors
``names``     which names a manifest may use
``manifest``  the manifest's schema: components, modes, presets; read and written here alone
``schema``    its parts, each field checked; ``values``, ``schedules`` and ``wiring`` have the rules
``reading``   files from strangers, within limits; ``hashes`` checks those that a manifest lists
``onnx_data`` what a graph refers to outside itself; ``sources`` private, hashed copies for libraries
``files``     files and folders that appear whole or not at all
``cache``     in the user's own folder (``user_cache``): where engines are stored, the lock, and "reuse or make"
``models/``   the built-in bundle
"""
