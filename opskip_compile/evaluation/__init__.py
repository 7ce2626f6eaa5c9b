"""Evaluation: what a model's answers keep when operators are skipped, beside other ways to save as many FLOPs."""

from opskip_compile.evaluation.config import EvaluationConfig
from opskip_compile.evaluation.evaluate import evaluate
from opskip_compile.evaluation.result import Evaluation

__all__ = ["Evaluation", "EvaluationConfig", "evaluate"]
