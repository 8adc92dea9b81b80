"""The command line, `python -m mixdistill COMMAND` or `mixdistill COMMAND`: the study from plan to figures."""

import argparse
import logging
import signal
import sys

COMMANDS = {
    "reproduce": "run the notebooks headless, draw the figures, print the gaps",
    "plan": "print what a scale would run and what it costs; downloads nothing",
    "figures": "draw the figures again from their CSV files: those of the run store; where it has none, the published",
    "sweep": "run a grid of arms, or of a notebook, here or in a Ray cluster; print one table of all",
}
BENCHMARKS = "names or files, as svamp,own.csv:Body+Question:Answer[:drop], in the place of the scale's own"
STUDENTS = "Hub ids, folders or .gguf files, from small to large, in the place of the scale's own"
GRID = "STUDENT, RECIPE or ALPHA, SEED, LR, EPOCHS, N_TRAIN of arms (none: the scale's), or a notebook's parameters"


def main() -> None:
    """Run one command. Bad input and a machine that can not run it end in one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="mixdistill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        command.add_argument("named", nargs="?", metavar="scale", help="the same as --scale")
        command.add_argument("--scale", help="smoke, pocket, ...: a key of SCALES (default: pocket)")
        command.add_argument("--seeds", type=int, default=0, help="number of seeds (default: the scale's own)")
        command.add_argument("--students", default="", metavar="NAME,NAME", help=STUDENTS)
        command.add_argument("--benchmarks", default="", metavar="NAME,NAME", help=BENCHMARKS)
        if name == "sweep":
            command.add_argument(
                "--grid", nargs="+", action="extend", default=[], metavar="NAME=VALUE,VALUE", help=GRID
            )
            command.add_argument("--notebook", help="run this notebook for every combination, in the place of arms")
            command.add_argument("--on", default="local", help="local (default), ray or ray://HEAD:10001")
        if name == "reproduce":
            command.add_argument("--notebooks", default="first", help="all: the further ones too (default: first)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler that takes the machine back, as Ctrl-C
    try:
        given = parser.parse_args()
        if given.named and given.scale:
            raise ValueError(f"the scale is {given.named!r} and --scale {given.scale!r}: give one of the two")
        given.scale = given.scale or given.named or "pocket"
        sys.exit(run(given))
    except (ValueError, OSError) as error:  # OSError: the store can not be read or written
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stop:
        # The task of the stopped notebook would print its traceback once more when it is collected.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        said = "\nstopped: what was finished is stored, the same command goes on from there"
        sys.exit(1 if stop.args else said)  # a sweep has said so itself


def run(args: argparse.Namespace) -> str | int:
    """Run a command; returns its exit code, or what to say before code 1."""
    # Imported here, as these take seconds (on a busy machine many), and --help and a mistyped command need none.
    if args.command != "figures":
        print(f"{args.command}, scale {args.scale}: loading libraries", flush=True)
    from mixdistill.results.redraw import redraw
    from mixdistill.runs import REPO, shown
    from mixdistill.study import grid, plan, reproduce, scales

    which = args.scale, args.seeds, args.students, args.benchmarks
    scale = scales.get_scale(*which)
    if args.command == "plan":
        made = plan.plan(scale)
        print(made)
        return bool(made.obstacles)
    if args.command == "figures":
        folder, published = scale.figures_dir(), REPO / "figures" / ("" if args.scale == "pocket" else args.scale)
        as_defined = scale == scales.SCALES[args.scale] and (published / "data").is_dir()
        source = published if as_defined and not (folder / "data").is_dir() else folder
        drawn = redraw(source)
        kept = "" if source == published else "; the published ones, in figures/, stay as they are"
        print(f"{len(drawn)} figures, of the tables in {shown(source / 'data')}{kept}:", *drawn, sep="\n")
    elif args.command == "sweep":
        table = grid.sweep_grid(*which, args.grid, args.notebook, args.on)
        if n_failed := table["cause"].notna().sum():
            return f"error: {n_failed} of {len(table)} runs failed (column cause); the same command runs these again"
    else:
        try:
            reproduce.reproduce(*which, args.notebooks)
        except RuntimeError as error:  # arms or a cell failed
            return f"\nerror: {error}"
    return 0


if __name__ == "__main__":
    main()
