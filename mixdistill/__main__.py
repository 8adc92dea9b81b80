"""`python -m mixdistill plan SCALE [--seeds n] [--gpus n]`: what a scale would run and what it costs."""

import argparse
import sys

from mixdistill.study.plan import plan
from mixdistill.study.scales import SCALES, get_scale


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mixdistill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("plan", help="print what a scale would run and what it costs; downloads nothing")
    command.add_argument("scale", help=", ".join(SCALES))
    command.add_argument("--seeds", type=int, default=0, help="number of seeds (default: the scale's own)")
    command.add_argument("--gpus", type=int, help="plan for so many GPUs (default: those found)")
    args = parser.parse_args()
    try:
        print(plan(get_scale(args.scale, args.seeds), args.gpus))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
