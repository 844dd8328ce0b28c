"""Restorers: networks that give the sharp image in one go, without a denoising loop.

``nafnet``     NAFNet (Chen et al., 2022), written here
``restormer``  Restormer (Zamir et al., 2022), written here
``fftformer``  FFTformer (Kong et al., 2023), written here
``layers``     what these share
``family``     files of weights to models: of these, and of every architecture that the spandrel library loads
"""
