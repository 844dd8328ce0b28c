"""UID-Diff in PyTorch, for inference: the oracle for parity, and what is exported.

``configs``      model sizes as data
``checkpoint``   folders in the diffusers layout: load, save, seeded random
``published``    Stable Diffusion, CLIP and BLIP-Diffusion as they are published
``assembly``     a checkpoint to train, from those
``conditioning`` image -> CLIP tokens -> f_s, f_b (image encoder and Q-Formers)
``adapter``      f_s -> residuals for the U-Net
``blur_attention``  the second cross-attention of eq. 5, on f_b
``unet``         the U-Net with residuals and a feature cache
``vae``          the refined VAE with its skips (appendix A)
``ddim``         guidance and the DDIM update
``model``        all of it, image to image
``components``   its parts as a bundle declares them
``family``       what the registry knows: loading, modes, the oracle
"""
