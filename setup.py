"""Packaging entry for tools that still want one; everything is in setup.cfg."""

from setuptools import setup

setup()
