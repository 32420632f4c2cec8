"""The command `medbench quantise`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.table import Table

from medbench.harness.cli.streams import clean_stdout, say
from medbench.harness.cli.tables import rendered, shown


@click.command("quantise")
@click.argument("model", required=False)
@click.option("--scheme", type=click.Choice(["w8a8", "w4a16", "fp8"]), help="How weights and activations are kept.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.  [default: ./MODEL-SCHEME]")
@click.option(
    "--python",
    metavar="PATH",
    help="Python interpreter that has llm-compressor.  [default: MEDBENCH_QUANTISE_PYTHON, else this one]",
)
@click.option(
    "--rows",
    metavar="FILE",
    multiple=True,
    help="Training rows to calibrate GPTQ with; repeat for more files.  [default: none, round to nearest]",
)
@click.option("--samples", type=click.IntRange(min=1), default=256, show_default=True, help="At most N of these rows.")
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Tokens of a row; more are cut off.",
)
@click.option(
    "--group-size", type=click.IntRange(min=1), help="Weights with one scale, for w4a16.  [default: 128 to 32]"
)
@click.option("--schemes", is_flag=True, help="Ask the installed vLLM which schemes it serves on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output and nothing else.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def quantise_command(
    model: str | None,
    scheme: str | None,
    output: Path | None,
    python: str | None,
    rows: tuple[str, ...],
    samples: int,
    max_length: int,
    group_size: int | None,
    schemes: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Quantise MODEL by llm-compressor, into a checkpoint that vLLM serves.

    \b
    w8a8   weights and activations in 8-bit integers
    w4a16  weights in 4-bit integers, activations in 16 bit
    fp8    weights and activations in 8-bit floating point

    llm-compressor has an environment of its own, because it and vLLM pin different versions of a package. The result is
    judged like any checkpoint: medbench gate OUT --gates gates.yaml --baseline RUN-OF-MODEL, with a `margin`.

    --schemes loads a tiny model of each scheme in vLLM, and exits with 1 where it serves none of them.
    """
    tell = (lambda _: None) if quiet else say
    with clean_stdout() as stdout:
        if schemes:
            if model or scheme:
                raise click.UsageError("--schemes stands alone: leave out MODEL and --scheme")
            from medbench.harness.quantise.served import served_schemes

            found = served_schemes(tell)
            if as_json:
                stdout.write(json.dumps({name: one.as_json() for name, one in found.items()}) + "\n")
            else:
                table = Table(show_edge=False)
                for heading in ("scheme", "served here", "what vLLM says"):
                    table.add_column(heading)
                for name, one in found.items():
                    table.add_row(name, "yes" if one.served else "no", shown(one.said))
                stdout.write(rendered(table))
            return 0 if any(one.served for one in found.values()) else 1
        if model is None or scheme is None:
            raise click.UsageError("name MODEL and --scheme, or --schemes")
        from medbench.harness.quantise.quantise import QuantiseOptions, quantise

        options = QuantiseOptions(model, scheme, output, python, rows, samples, max_length, group_size)
        folder, record = quantise(options, tell)
        if as_json:
            stdout.write(json.dumps({"folder": str(folder), **record.model_dump(mode="json")}) + "\n")
            return 0
        before, after = record.parent.weight_bytes, record.weight_bytes
        share = f" ({100 * (after - before) / before:+.0f} %)" if before else ""
        stdout.write(
            f"{folder}: {record.scheme} by {record.method}, {after / 2**20:.1f} MiB of weights, "
            f"{before / 2**20:.1f} before{share}, {record.seconds:.0f} s\n"
        )
    return 0
