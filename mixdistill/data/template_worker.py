"""Renders a stranger's chat template; run as a script of its own, in a process that the operating system stops.

A template is a program. The sandbox of Jinja keeps it from files and processes, but not from loops without end. The
script imports Jinja only, and so takes 0.1 s. On Windows, which has no such limits, it runs without them.
"""

import contextlib
import datetime
import json
import re
import sys
from typing import Any

from jinja2 import TemplateError, ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2  # of CPU; the longest templates of the Hub take a hundredth of one
MEMORY = 2**29  # bytes
LONGEST = 100_000  # characters; a tool-calling preamble has some thousands
# Llama 3.2 and SmolLM3 write today's date into every prompt, and no run may depend on its day. It is the date that
# Llama's own template falls back to.
TODAY = datetime.datetime(2024, 7, 26)


def render(template: str, conversations: list[dict[str, Any]]) -> list[str]:
    """The text of each conversation, given as the template's variables, in the environment that transformers gives."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols])
    environment.filters["tojson"] = lambda value, **how: json.dumps(value, **{"ensure_ascii": False} | how)
    environment.globals |= {"raise_exception": _stop, "strftime_now": TODAY.strftime}
    # The tag `generation` marks what it encloses, for transformers, and changes nothing.
    template = re.sub(r"(\{%[-+]?\s*)generation\b", r"\1if true", template)
    compiled = environment.from_string(re.sub(r"(\{%[-+]?\s*)endgeneration\b", r"\1endif", template))
    texts = [compiled.render(variables) for variables in conversations]
    if max(map(len, texts)) > LONGEST:
        raise MemoryError
    return texts


def _stop(message: str) -> None:
    raise TemplateError(message)


if __name__ == "__main__":  # standard input has the arguments of `render`
    given = json.load(sys.stdin)
    with contextlib.suppress(ImportError, ValueError):  # Windows has no limits, macOS none of memory
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    json.dump(render(**given), sys.stdout)
