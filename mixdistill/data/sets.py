"""Which traces teach and which problems test, with the columns that they stand in: a scale's fields."""

from dataclasses import dataclass

from mixdistill.arguments import choice, text, texts, whole
from mixdistill.data.final_answers import ANSWER_FORMATS
from mixdistill.data.problems import BENCHMARKS
from mixdistill.data.tables import of_pocket


@dataclass(frozen=True)
class TraceSet:
    """Where the traces of one part come from: arguments of `load_traces`. Raises ValueError for a bad one."""

    source: str
    question: str | tuple[str, ...] = "question"  # a column, or several whose texts are joined
    response: str = "response"
    answer_format: str = "math"
    revision: str | None = None  # commit of a Hub data set
    unusable: str = "error"

    def __post_init__(self) -> None:
        for name in ("source", "response"):
            object.__setattr__(self, name, text(name, getattr(self, name)))  # a Path as its text
        columns = _columns(self.question)
        object.__setattr__(self, "question", self.question if isinstance(self.question, str) else columns)
        choice("answer_format", self.answer_format, ANSWER_FORMATS)
        text("revision", self.revision, optional=True)
        choice("unusable", self.unusable, ("error", "drop"))

    @property
    def pocket(self) -> bool:
        return of_pocket(self.source) or self.answer_format == "pocket"


@dataclass(frozen=True)
class ProblemSet:
    """A test file whose columns have other names: arguments of `load_problems`. Raises ValueError for a bad one."""

    source: str
    question: str | tuple[str, ...] = ("question",)  # a column, or several whose texts are joined
    answer: str = "answer"
    unusable: str = "error"

    def __post_init__(self) -> None:
        for name in ("source", "answer"):
            object.__setattr__(self, name, text(name, getattr(self, name)))
        if self.source in BENCHMARKS or of_pocket(self.source):
            raise ValueError(f"source is {self.source!r}, a benchmark with columns of its own: give its name alone")
        object.__setattr__(self, "question", _columns(self.question))
        choice("unusable", self.unusable, ("error", "drop"))


def _columns(given: object) -> tuple[str, ...]:
    columns = texts("question", [given] if isinstance(given, str) else given)
    return columns[: whole("the number of columns of question", len(columns))]


def source_of(benchmark: str | ProblemSet) -> str:
    """The name or the file of a scale's benchmark."""
    return benchmark.source if isinstance(benchmark, ProblemSet) else benchmark
