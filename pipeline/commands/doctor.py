"""``pipeline doctor``: what this machine can do."""

import click


@click.command()
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(device: str, as_json: bool) -> None:
    """Show what this machine can do, and what would run on it.

    \b
      pipeline doctor

    Prints versions, processor, memory, GPUs and installed extras; the precision and the kernels
    that `auto` stands for in a recipe, after trying them; what the shipped recipes need; and
    problems, each with what to do. Reads no cache, downloads nothing and changes nothing.

    Paste the output into a report of a bug.
    """
    import json

    from pipeline.diagnosis.diagnosis import Diagnosis, diagnosis_json, diagnosis_text
    from pipeline.reporting.printable import printable
    from pipeline.runtime.silence_libraries import silence_libraries

    silence_libraries()
    from pipeline.diagnosis.kernels import compile_problem, kernel_problems, kernels_section
    from pipeline.diagnosis.machine import machine_problems, machine_sections
    from pipeline.diagnosis.recipes_here import recipes_section
    from stages.compute.device import choose_device

    place = choose_device(device)
    obstacle = compile_problem(place)
    found = Diagnosis(
        sections=[*machine_sections(place), kernels_section(place, obstacle), recipes_section()],
        problems=[*machine_problems(place), *kernel_problems(place, obstacle)],
    )
    if as_json:
        click.echo(json.dumps(diagnosis_json(found), indent=1))
    else:
        click.echo(printable(diagnosis_text(found)))
