"""``lorafusion launch FILE --for TOOL``: the file that starts a run on a cluster."""

from __future__ import annotations

import shlex
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from lorafusion.errors import LaunchError, OutputError
from lorafusion.files import write_text_atomic
from lorafusion.jobs.loading import load_run_file
from lorafusion.launch.files.asked import Asked, check_words, grid_of, host_names
from lorafusion.launch.files.tools import TOOLS, Tool, check_options, find_tool


def command(  # noqa: PLR0913 - one argument an option
    file: Annotated[Path, typer.Argument(help="The job file (YAML).")],
    tool: Annotated[str, typer.Option("--for", help=f"{', '.join(TOOLS)}.", metavar="TOOL")],
    nodes: Annotated[int, typer.Option(min=1, help="Hosts.")],
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each host, and so ranks.")],
    stages: Annotated[
        int | None, typer.Option(min=1, help="Pipeline stages.", show_default="one a GPU")
    ] = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Pipelines side by side, each with all of the base.")
    ] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder the launch file goes to.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the launch file, and write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier launch file.")
    ] = False,
    run_output: Annotated[
        str,
        typer.Option(help="Folder of the run: else output_dir of the file, else runs/FILE."),
    ] = "",
    workdir: Annotated[
        str,
        typer.Option(
            help="Folder that all hosts share and start in. Default: this one (slurm, ssh), "
            "/shared (skypilot, kubeflow), where the volume is."
        ),
    ] = "",
    python: Annotated[
        str, typer.Option(help="Python with lorafusion on the hosts. Default: this one, or python.")
    ] = "",
    max_restarts: Annotated[
        int, typer.Option(min=0, help="How often to go on when a rank is lost or hangs.")
    ] = 3,
    interface: Annotated[
        str, typer.Option(help="Network that the hosts use, as in `ip link`, if they have several.")
    ] = "",
    hosts: Annotated[str, typer.Option(help="ssh: their names, as in node1,me@node2.")] = "",
    time: Annotated[
        str, typer.Option(help="slurm: limit of one start; the job goes on in a next one.")
    ] = "",
    volume: Annotated[str, typer.Option(help="skypilot, kubeflow: name of the volume.")] = "",
    image: Annotated[str, typer.Option(help="kubeflow: with lorafusion and torch.")] = "",
    gpu_type: Annotated[str, typer.Option(help="skypilot: kind of GPU, such as H100.")] = "",
) -> None:
    """Write the file that starts a run on a cluster: torchrun on each host, restarts, resume.

    Hosts must share the folder they start in, with the job file, its data and the run's output.
    docs/clusters.md says what each tool needs.
    """
    chosen = find_tool(tool)
    options = check_options(
        tool,
        {"hosts": hosts, "time": time, "volume": volume, "image": image, "gpu-type": gpu_type},
    )
    load_run_file(file)
    asked = Asked(
        file=_on_hosts(file),
        workdir=workdir or chosen.workdir or str(Path.cwd()),
        nodes=nodes,
        gpus=gpus,
        grid=grid_of(nodes, gpus, stages, replicas),
        output=run_output or None,
        python=python or chosen.python,
        max_restarts=max_restarts,
        interface=interface,
        hosts=host_names(options.pop("hosts", ""), nodes),
        tool=options,
    )
    check_words(
        {
            "FILE": asked.file,
            "--workdir": asked.workdir,
            "--run-output": run_output,
            "--python": asked.python,
            "--interface": interface,
        }
    )
    if not PurePosixPath(asked.workdir).is_absolute():
        raise LaunchError(
            f"--workdir is {workdir!r}; allowed: a path from / on, the same on all hosts."
        )
    text = chosen.write(asked)
    if dry_run:
        typer.echo(text, nl=False)
        return
    path = (output or Path()) / f"{file.stem}{chosen.suffix}"
    _write(path, text, chosen, overwrite=overwrite)
    typer.echo(f"{path}\nto start: {chosen.command.format(shlex.quote(str(path)))}")


def _on_hosts(file: Path) -> str:
    """The job file's path from the folder that hosts start in, as it is from this one."""
    whole = file.absolute()
    here = Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


def _write(path: Path, text: str, tool: Tool, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} is there already. Replace it with --overwrite, or choose another folder with "
            "--output."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(path, text)
        if tool.executable:
            path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        raise OutputError(f"the launch file {path} cannot be written: {error}") from error
