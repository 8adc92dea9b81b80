"""Mix Distillation and the small model learnability gap (arXiv 2502.12143): data, LoRA fine-tuning, evaluation, statistics."""

from mixdistill.collect import collect_traces
from mixdistill.evaluate import Scores, evaluate
from mixdistill.finetune import LoRA, finetune
from mixdistill.generate import Sampling
from mixdistill.grade import Grade, grade, grade_all
from mixdistill.judge import judge
from mixdistill.mix import mix
from mixdistill.problems import Problem, load_problems
from mixdistill.runs import Run, open_run
from mixdistill.scales import check_parameters, get_scale
from mixdistill.students import load_student
from mixdistill.sweep import sweep
from mixdistill.traces import load_traces

__all__ = [
    "Grade",
    "LoRA",
    "Problem",
    "Run",
    "Sampling",
    "Scores",
    "check_parameters",
    "collect_traces",
    "evaluate",
    "finetune",
    "get_scale",
    "grade",
    "grade_all",
    "judge",
    "load_problems",
    "load_student",
    "load_traces",
    "mix",
    "open_run",
    "sweep",
]
