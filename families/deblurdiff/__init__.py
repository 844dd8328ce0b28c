"""DeblurDiff (Kong et al., 2025): Stable Diffusion 2.1 with a latent kernel prediction network and a ControlNet.

``configs``      model sizes as data
``windows``      transformers on overlapping windows of a feature map, and tiles of a latent
``networks``     the U-Net, the ControlNet, the kernel prediction network and the element-wise adaptive convolution
``model``        the whole model: encode, denoise, decode
``checkpoint``   the published file's keys, checked and loaded
"""
