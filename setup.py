"""The packages, and the configs, which a wheel holds inside of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["harmonic_jax", "harmonic_jax.*"]), "harmonic_jax.configs"],
    package_dir={"harmonic_jax.configs": "configs"},
)
