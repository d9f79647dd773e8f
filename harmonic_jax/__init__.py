"""Object detection in JAX and Flax around the losses of HarmonicDet (ICCV 2021).

Importing this package imports nothing else: `import harmonic_jax.losses` needs jax alone.
"""

__version__ = "0.1.0"
