"""The command line, `python -m mixdistill COMMAND` or `mixdistill COMMAND`: the study from plan to figures."""

import argparse
import logging
import sys


def main() -> None:
    """Run one command. Bad input and a machine that can not run it end in one sentence and exit code 1."""
    parser = argparse.ArgumentParser(prog="mixdistill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("reproduce", "run every notebook headless, redraw the figures, print the gaps"),
        ("plan", "print what a scale would run and what it costs; downloads nothing"),
        ("figures", "draw the figures again from their CSV files"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("scale", nargs="?", default=argparse.SUPPRESS, help="the same as --scale")
        command.add_argument("--scale", default="pocket", help="smoke, pocket, ...: a key of SCALES (default: pocket)")
        command.add_argument("--seeds", type=int, default=0, help="number of seeds (default: the scale's own)")
        if name == "reproduce":
            command.add_argument("--publish", action="store_true", help="replace the committed notebooks and tables")
    args = parser.parse_args()
    try:
        run(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        # The task of the stopped notebook would print its traceback once more when it is collected.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        sys.exit("\nstopped: what was finished is stored, the same command goes on from there")


def run(args: argparse.Namespace) -> None:
    # Imported here, as these take seconds, which --help and a mistyped command need not wait for.
    import matplotlib
    from papermill import PapermillExecutionError

    from mixdistill.results.figures import redraw
    from mixdistill.study.plan import plan
    from mixdistill.study.reproduce import reproduce
    from mixdistill.study.scales import get_scale

    scale = get_scale(args.scale, args.seeds)
    if args.command == "plan":
        made = plan(scale)
        print(made)
        sys.exit(1 if made.obstacles else 0)
    if args.command == "figures":
        matplotlib.use("agg")
        print("\n".join(redraw(scale.figures_dir())))
        return
    try:
        reproduce(args.scale, args.seeds, args.publish)
    except PapermillExecutionError as error:
        sys.exit(
            f"\nerror: cell {error.exec_count} of a notebook failed: {error.ename}: {error.evalue}\n"
            "What was finished before is stored: mend the cause and run the same command again"
        )


if __name__ == "__main__":
    main()
