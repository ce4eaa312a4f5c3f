"""The settings of a run: frozen values, the YAML that they are read from, and recipes."""

from pipeline.config.load import load_config
from pipeline.config.settings import Config

__all__ = ["Config", "load_config"]
