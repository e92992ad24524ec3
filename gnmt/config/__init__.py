"""Configs: what keys there are, whether a config is right, and the objects that it describes.

The only part of gnmt that knows Hydra and OmegaConf.
"""

from gnmt.config.assembly import build, check_config, decoding_node, resolve
from gnmt.config.check import check_component
from gnmt.config.entry import entry
from gnmt.config.logs import configure_logging, note_in_run_file
from gnmt.config.recipes import recipe
from gnmt.config.runs import changed_settings, compared_settings, current_run_folder, run_folder
from gnmt.config.schemas import (
    AverageConfig,
    BenchmarkConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    PrepareConfig,
    ScoreConfig,
    TrainConfig,
    TranslateConfig,
)
from gnmt.config.values import shown

__all__ = [
    "AverageConfig",
    "BenchmarkConfig",
    "CompareConfig",
    "EvaluateConfig",
    "ExportConfig",
    "ImportConfig",
    "InspectConfig",
    "PrepareConfig",
    "ScoreConfig",
    "TrainConfig",
    "TranslateConfig",
    "build",
    "changed_settings",
    "check_component",
    "check_config",
    "compared_settings",
    "configure_logging",
    "current_run_folder",
    "decoding_node",
    "entry",
    "note_in_run_file",
    "recipe",
    "resolve",
    "run_folder",
    "shown",
]
