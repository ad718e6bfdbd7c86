"""Evaluation: what is told of a trained pair, datum by datum. `evaluate` runs evaluators; each of these is a file."""

from pyro_vae.evaluation.blocks import Block, Blocks
from pyro_vae.evaluation.evaluate import evaluate, evaluate_each
from pyro_vae.evaluation.evaluator import Evaluator
from pyro_vae.evaluation.result import Estimate, Result

__all__ = ["Block", "Blocks", "Estimate", "Evaluator", "Result", "evaluate", "evaluate_each"]
