"""What a model is on disk, with no library but numpy and safetensors.

``tensors``   names, dtypes and symbolic shapes of tensors
``names``     which names a manifest may use
``manifest``  the manifest's schema: components, modes, presets; read and written here alone
``hashes``    sha256 of files
``files``     files and folders that appear whole or not at all
``cache``     where engines are stored, the lock, and "reuse or make"
``models/``   the built-in bundle
"""
