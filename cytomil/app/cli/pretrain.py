"""cytomil pretrain, and its training curves for DVC."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cytomil.app.cli.console import RichListener, console, finish, plain_errors, print_table, print_warning
from cytomil.app.cli.options import AcceptLeftOut, AsJson, Given, OwnSettings, ParamsFile, Profile, generated
from cytomil.app.settings import load
from cytomil.config import Config
from cytomil.full_disk import naming_full_disk
from cytomil.locks import output_folder
from cytomil.progress import Silent
from cytomil.registry import METHODS

if TYPE_CHECKING:
    from cytomil.encoders.bundle import EncoderCard


def has_dvclive() -> bool:
    """Whether DVCLive is installed. Its extra is ``cytomil[dvc]``."""
    return find_spec("dvclive") is not None


class Curves:
    """A DVCLive run in ``folder``.

    It replaces an earlier one. It also works outside a DVC or git repository. Without DVCLive, nothing is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._live: Any = None

    def __enter__(self) -> Curves:
        return self

    def log(self, record: dict[str, Any]) -> None:
        """Log one epoch's numbers. ``record`` is the training loop's record of the epoch."""
        if not has_dvclive():
            return
        with naming_full_disk(self._folder):
            live = self._live or self._start()
            live.step = record["epoch"]
            for name, value in record.items():
                if name != "epoch":
                    live.log_metric(name, value)
            live.make_summary()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            with naming_full_disk(self._folder):
                self._live.end()

    def _start(self) -> Any:
        # DVCLive warns about a missing repository. Users without DVC need no repository.
        logging.getLogger("dvclive").setLevel(logging.ERROR)
        from dvclive.live import Live

        self._live = Live(str(self._folder), save_dvc_exp=False, dvcyaml=None)
        return self._live


_CURES = {
    False: "Try a lower --similarity-scale, a lower --learning-rate or --method simclr.",
    True: "Try other --weights, another --image-size or a --method that trains.",
}
_LOSSES = {"nt_xent": "NT-Xent", "info_nce": "InfoNCE", "supcon": "SupCon"}


class PretrainCommand(OwnSettings):
    """`pretrain`, with the method's own settings in its help."""

    chosen_by = "--method"

    def configuration(self, name: str) -> type[Config]:
        """See `OwnSettings`."""
        from cytomil.training.methods import load_method

        return load_method(name).Config


@generated("pretrain", checks={"method": METHODS.known}, chosen_by="method")
def pretrain(
    options: Given,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="insist on going on with the interrupted run; refused if settings or bags differ"
        ),
    ] = False,
    params: ParamsFile = None,
    profile: Profile = None,
    accept_left_out: AcceptLeftOut = False,
    as_json: AsJson = False,
) -> None:
    """Train an encoder on the training bags, from slide labels alone."""
    with plain_errors(
        kept="Epochs that were finished are kept in a checkpoint. Run the same command again to continue."
    ):
        settings = load(options, params, profile).pretrain
        from cytomil.encoders.engines.compile import compile_by_default
        from cytomil.training.loop import pretrain as run
        from cytomil.training.processes import training_processes

        listener = RichListener()
        with training_processes(settings.device) as processes, ExitStack() as stack:
            if not processes.is_first:
                run(settings, Silent(), None, resume, processes)
                return
            stack.enter_context(output_folder(settings.out, listener.note, replaced=True))
            if not has_dvclive():
                listener.note(
                    "no training curves for DVC: pip install 'cytomil[dvc]'. The encoder's card has the figures."
                )
            curves = stack.enter_context(Curves(settings.out.parent / "dvclive" / settings.out.name))

            def on_epoch(record: dict[str, Any]) -> None:
                curves.log(record)
                if "images_per_second" in record:
                    console.print(_line(record, settings.epochs), soft_wrap=True)

            done = run(settings, listener, on_epoch, resume, processes)
            if settings.engine == "auto":
                compile_by_default(settings.out, settings.bags, settings.seed, settings.device, listener)
        card = done.bundle.card
        if done.already_done:
            console.print(f"{settings.out} is finished already: same settings, same bags.")
        print_table(f"encoder in {settings.out}", ("figure", "value", "meaning"), _summary(card))
        for caveat in card.caveats:
            print_warning("MIND THE START", caveat)
        if card.uses_instance_labels:
            print_warning(
                "CEILING", "This encoder was shown instance labels: compare with it, never rank slides with it."
            )
        if card.collapsed:
            print_warning(
                "COLLAPSED",
                f"{card.collapse_reason}.\nThis encoder hardly distinguishes cells. Do not trust models built on it. "
                + _CURES[card.method == "none"],
            )
    finish({"encoder": settings.out, **card.to_json()}, done.problems, as_json, accept_left_out)


def _line(record: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {record['epoch']:>{len(str(epochs))}}/{epochs}"]
    losses = {key.removeprefix("loss_"): value for key, value in record.items() if key.startswith("loss_")}
    parts += [f"{_LOSSES.get(name, name)} {value:.3f}" for name, value in losses.items()]
    if "chance" in record:
        parts[-1] += f" (chance {record['chance']:.3f})"
    parts.append(f"cos− {record['negatives_mean_cosine']:.2f}")
    parts.append(f"rank {record['effective_rank']:.0f}")
    parts.append(f"{record['images_per_second']:.0f} img/s")
    if skipped := record.get("skipped_steps"):
        parts.append(f"{skipped} steps skipped")
    return "  ".join(parts)


def _summary(card: EncoderCard) -> list[tuple[str, str, str]]:
    last = {name: value or 0.0 for name, value in card.history[-1].items()}
    margin, rank = card.nt_xent_margin, card.effective_rank
    return [
        ("architecture", card.architecture.name, _start_of(card)),
        ("method", card.method, f"{card.data.n_cells:,} cells of {card.data.n_bags} training bags"),
        (
            "collapsed",
            "YES" if card.collapsed else "no",
            card.collapse_reason or "the embeddings distinguish cells",
        ),
        ("contrastive margin", "–" if margin is None else f"{margin:.2f} nats", "under chance; 0 is no better"),
        ("effective rank", "–" if rank is None else f"{rank:.0f}", "directions that h makes use of"),
        ("spread", f"{last['spread']:.2f}", "of z: 1 all over the sphere, 0 a point"),
        ("negatives' cosine", f"{last['negatives_mean_cosine']:.2f}", "of z: 1 where they are one point"),
    ]


def _start_of(card: EncoderCard) -> str:
    weights = card.start_weights
    if not weights:
        return "started from random weights"
    return f"started from {weights.name or weights.file} ({weights.tensors} tensors)"
