"""Which packages there are: those of the package, and the configs, which a wheel holds inside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["harmonic_jax", "harmonic_jax.*"]), "harmonic_jax.configs"],
    package_dir={"harmonic_jax.configs": "configs"},
)
