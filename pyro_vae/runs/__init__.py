"""Runs: one class for a run that was trained just now and for one that is read from its folder."""

from pyro_vae.runs.build import build_model, record_of
from pyro_vae.runs.run import Run, load_run

__all__ = ["Run", "build_model", "load_run", "record_of"]
