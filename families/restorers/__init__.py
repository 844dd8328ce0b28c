"""Restorers: networks that give the sharp image in one go, without a denoising loop.

``nafnet``    NAFNet (Chen et al., 2022), written here
``family``    files of weights to models: NAFNet's, and those of every architecture that the spandrel library loads
"""
