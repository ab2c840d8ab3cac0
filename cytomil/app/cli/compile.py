"""cytomil compile."""

from __future__ import annotations

from typing import ClassVar

from cytomil.app.cli.console import RichListener, console, finish, plain_errors, print_table
from cytomil.app.cli.options import AsJson, Given, OwnSettings, ParamsFile, Profile, generated
from cytomil.app.settings import load
from cytomil.config import Config
from cytomil.encoders.engines.registry import ENGINES, find_backend
from cytomil.errors import require_folder
from cytomil.layer import known_layers
from cytomil.locks import output_folder


class CompileCommand(OwnSettings):
    """`compile`, with the engine's own settings in its help."""

    chosen_by = "--engine"
    names: ClassVar = {"engine": ENGINES.names}

    def configuration(self, name: str) -> type[Config]:
        """See `OwnSettings`."""
        return find_backend(name).Config


@generated("compile", checks={"engine": ENGINES.known, "layer": known_layers}, chosen_by="engine")
def compile_(
    options: Given,
    params: ParamsFile = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Compile the encoder for this machine to make embed and rank faster. It is kept only if it agrees with eager."""
    with plain_errors(kept="No engine was stored."):
        settings = load(options, params, profile).compile
        from cytomil.encoders.engines.compile import compile_engine

        require_folder(settings.encoder, "cytomil pretrain")
        listener = RichListener()
        with output_folder(settings.encoder, listener.note, replaced=False):
            record = compile_engine(settings, listener)
        rows = [
            (
                name,
                f"{figures['min_cosine']:.6f}",
                f"{figures['mean_cosine']:.6f}",
                f"{figures['top_overlap']:.3f}",
            )
            for name, figures in record.agreement.items()
        ]
        n = next(iter(record.agreement.values()))["cells"]
        columns = ("layer", "min cosine", "mean cosine", "top-5 % overlap")
        print_table(f"{record.name} against eager, {n:.0f} training cells", columns, rows, right=columns[1:])
        console.print(
            f"{record.images_per_second:,.0f} images/s, eager {record.eager_images_per_second:,.0f} ({record.gain:.2f}×). "
            f"Stored in {settings.encoder / 'engines' / record.name}; embed and rank take the fastest one.",
            soft_wrap=True,
        )
    finish({"gain": record.gain, **record.to_json()}, (), as_json)
