"""The command line: the group, and every command in the order in which it is used.

A command reads its options, calls what does the work and says what came of it. Nothing heavy is
imported before it runs, and nothing before its recipe has been checked. Only the commands and
``session.py`` print and exit.
"""

import click

from pipeline.commands.cache_teacher import cache_teacher
from pipeline.commands.caches.export import export
from pipeline.commands.caches.extend import extend
from pipeline.commands.caches.inspect_cache import inspect_cache
from pipeline.commands.caches.merge import merge
from pipeline.commands.caches.pack import pack, unpack
from pipeline.commands.caches.verify import verify
from pipeline.commands.demo import demo
from pipeline.commands.doctor import doctor
from pipeline.commands.estimate import estimate
from pipeline.commands.evaluate import evaluate
from pipeline.commands.generate import generate
from pipeline.commands.push import push
from pipeline.commands.recipes import recipes
from pipeline.commands.students.ablate import ablate
from pipeline.commands.students.compare import compare
from pipeline.commands.students.convert import convert
from pipeline.commands.students.merge_students import merge_students
from pipeline.commands.students.report import report
from pipeline.commands.students.watch import watch
from pipeline.commands.students.win_and_tie import win_and_tie
from pipeline.commands.train_student import train_student
from pipeline.runtime.session import PipelineGroup


@click.group(cls=PipelineGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xlstm-distill", prog_name="pipeline")
@click.option("--debug", is_flag=True, envvar="PIPELINE_DEBUG", help="Show error tracebacks.")
def main(debug: bool) -> None:
    """Distill a Transformer into an xLSTM, running the teacher only once.

    \b
      pipeline cache-teacher --recipe distil-xlstm --out cache
      pipeline train-student --recipe distil-xlstm --cache cache --out run
      pipeline generate run --prompt "The cell"

    The first command runs the teacher over the corpus and writes its predictions to a cache; any
    number of students can then be trained without the teacher. `pipeline demo` runs a small example
    in minutes.
    """


for command in (
    *(cache_teacher, estimate, convert, train_student, ablate, watch, recipes, inspect_cache),
    *(generate, evaluate, report, compare, win_and_tie, merge_students, push, verify),
    *(pack, unpack, merge, extend, export, demo, doctor),
):
    main.add_command(command)
