"""Run folders: what a finished training left, and how to get its pair back."""

from pyro_vae.runs.folder import (
    BEST,
    CONFIG,
    EVALUATION,
    FIGURES,
    LAST,
    METRICS,
    REPORT,
    RUN_FILES,
    StoredRun,
    build_model,
    load_run,
    load_weights,
    new_folder,
    read_config,
    read_settings,
    run_files,
)

__all__ = [
    "BEST",
    "CONFIG",
    "EVALUATION",
    "FIGURES",
    "LAST",
    "METRICS",
    "REPORT",
    "RUN_FILES",
    "StoredRun",
    "build_model",
    "load_run",
    "load_weights",
    "new_folder",
    "read_config",
    "read_settings",
    "run_files",
]
