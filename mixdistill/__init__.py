"""Mix Distillation and the small model learnability gap (arXiv 2502.12143), from training to figures."""

# ruff: noqa: F401 (the public names)
import gc

# Nothing of what is imported is garbage, and looking through it takes a fifth of the seconds that this takes.
_collects = gc.isenabled()
gc.disable()
try:
    from mixdistill.arguments import check_parameters
    from mixdistill.data.mix import mix
    from mixdistill.data.problems import Problem, load_problems
    from mixdistill.data.students import load_student
    from mixdistill.data.traces import load_traces
    from mixdistill.finetuning.finetune import LoRA, finetune
    from mixdistill.finetuning.memory import Placement
    from mixdistill.generation.sampling import Sampling
    from mixdistill.grading.grade import Grade, equal, grade, grade_all
    from mixdistill.results.evaluate import Scores, evaluate
    from mixdistill.results.judge import judge
    from mixdistill.runs import Run, open_run
    from mixdistill.study.collect import collect_traces
    from mixdistill.study.scales import get_scale
    from mixdistill.study.sweep import sweep
finally:
    if _collects:
        gc.enable()
    del gc, _collects
