"""Build script: metadata lives in pyproject.toml; native sources under csrc/ will be built from here."""

from setuptools import setup

setup()
