"""The benchmarks' command line.

Each measures what a claim rests on, shows on stderr how far it is, and prints its figures, with
``--json`` as one object. With ``--quick`` it takes smaller sizes, ends within two minutes on two
slow cores, and its output says that the figures are rough. Without ``--quick`` are the GPU's
benchmark and its parts but ``slstm``, and ``break-even`` and ``results``, which measure nothing.
"""

import click

from benchmarks.break_even import break_even
from benchmarks.bytes import bytes_against_students
from benchmarks.codec import codec
from benchmarks.experts import experts
from benchmarks.gpu.command import gpu
from benchmarks.gpu.environment import environment
from benchmarks.gpu.inputs import inputs
from benchmarks.gpu.kernels import kernels
from benchmarks.gpu.report import gpu_report
from benchmarks.gpu.slstm import slstm
from benchmarks.hybrid.speed import hybrid
from benchmarks.hybrid.students import hybrid_students
from benchmarks.kept_ids import kept_ids
from benchmarks.loader import loader
from benchmarks.loss import loss
from benchmarks.online import online
from benchmarks.recall.command import recall
from benchmarks.results_in_pages import results
from benchmarks.sampled_softmax import sampled_softmax
from benchmarks.stage_one import stage_one
from benchmarks.stage_two import stage_two
from benchmarks.student import student
from benchmarks.targets import targets


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Measure; every speed in the README is printed by one of these. Without a name: `student`.

    With --quick, rough figures within two minutes; see --help of each for its sizes.
    """
    if context.invoked_subcommand is None:
        context.invoke(student)


main.add_command(break_even)
main.add_command(bytes_against_students)
main.add_command(codec)
main.add_command(environment)
main.add_command(experts)
main.add_command(gpu)
main.add_command(gpu_report)
main.add_command(kernels)
main.add_command(inputs)
main.add_command(sampled_softmax)
main.add_command(hybrid)
main.add_command(hybrid_students)
main.add_command(kept_ids)
main.add_command(slstm)
main.add_command(loader)
main.add_command(loss)
main.add_command(online)
main.add_command(results)
main.add_command(recall)
main.add_command(stage_one)
main.add_command(stage_two)
main.add_command(student)
main.add_command(targets)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
