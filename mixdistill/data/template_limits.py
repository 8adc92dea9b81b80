"""Whether a stranger's chat template renders within limits of time and memory; run as a script of its own by `chat`.

A template is a program. The sandbox of Jinja keeps it from files and processes, but not from loops without end, so one
rendering is tried here, in a process that the operating system stops. It imports Jinja only: 0.1 s a template.
"""

import contextlib
import datetime
import json
import resource
import sys

from jinja2 import ext, nodes, parser, sandbox
from jinja2.exceptions import TemplateError

SECONDS = 2  # of CPU; the longest templates of the Hub take a hundredth of one
MEMORY = 2**29  # bytes
LONGEST = 100_000  # characters; a tool-calling preamble has some thousands


class Generation(ext.Extension):
    """The tag `generation`, which transformers adds to Jinja: it marks what it encloses and changes nothing."""

    tags = frozenset({"generation"})

    def parse(self, stream: parser.Parser) -> list[nodes.Node]:
        next(stream.stream)
        return stream.parse_statements(["name:endgeneration"], drop_needle=True)


def stop(message: str) -> None:
    raise TemplateError(message)


def main() -> None:
    """Render {"template", "variables": [...]} from standard input; end with another code than 0 if that is too much."""
    job = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    with contextlib.suppress(ValueError):  # macOS has no limit of memory
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **choice: json.dumps(value, **choice)
    environment.globals |= {"raise_exception": stop, "strftime_now": datetime.datetime(2024, 7, 26).strftime}
    try:
        template = environment.from_string(job["template"])
        too_long = any(len(template.render(variables)) > LONGEST for variables in job["variables"])
    except MemoryError:
        sys.exit(1)
    except Exception:  # what is wrong with the template is said where it is rendered for use
        return
    sys.exit(too_long)


if __name__ == "__main__":
    main()
