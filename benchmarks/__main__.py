"""The benchmarks' command line."""

import click

from benchmarks.full_vocabulary import full_vocabulary
from benchmarks.student import student


@click.group(help="Measure; every figure in the README is printed by one of these.")
def main() -> None:
    pass


main.add_command(full_vocabulary)
main.add_command(student)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
