"""The stages from Python: the same work, settings and files as the commands of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytomil.api.cells import Bags
from cytomil.api.models import Encoder, Model, configured, listener_for
from cytomil.errors import SettingsError
from cytomil.locks import output_folder
from cytomil.registry import METHODS

if TYPE_CHECKING:
    from cytomil.evaluation.run import Evaluated
    from cytomil.features.embed import Embedded
    from cytomil.mil.aggregators.base import Aggregator
    from cytomil.training.methods import Method
    from cytomil.triage.worklist import Worklist


def methods() -> tuple[str, ...]:
    """The names of the pretraining methods: cytomil's own, then those of other installed packages.

    >>> import cytomil
    >>> "slam-ags" in cytomil.methods()
    True
    """
    return METHODS.names()


def aggregators() -> tuple[str, ...]:
    """The names of the aggregators and one-class scorers: cytomil's own, then those of other installed packages.

    >>> import cytomil
    >>> "self-paced" in cytomil.aggregators()
    True
    """
    from cytomil.mil.aggregators.registry import AGGREGATORS

    return AGGREGATORS.names()


def get_method(name: str) -> type[Method]:
    """The class of a pretraining method, to use it or to derive another from it.

    Raises:
        SettingsError: there is no such method, or the package that brings it does not load.

    >>> import cytomil
    >>> cytomil.get_method("simclr").__name__
    'SimCLR'
    """
    from cytomil.training.methods import load_method

    return load_method(name)


def get_aggregator(name: str) -> type[Aggregator]:
    """The class of an aggregator.

    Raises:
        SettingsError: there is no such aggregator, or the package that brings it does not load.

    >>> import cytomil
    >>> cytomil.get_aggregator("pamil").__name__
    'PAMIL'
    """
    from cytomil.mil.aggregators.registry import find_aggregator

    return find_aggregator(name)


def make_bags(source: str | Path, out: str | Path, *, progress: bool = False, **settings: Any) -> Bags:
    """Make bags of cells, and bags.csv.

    Args:
        source: "synthetic", or a folder of class folders, slide folders or whole slides.
        out: the folder for the bags; it is replaced whole.
        progress: whether to print to standard error how far the work has come.
        **settings: further fields of `cytomil.bags.config.MakeBagsConfig`, such as bag_size or labels.

    Returns:
        The bags, opened. `Bags.left_out` lists what could not be used.

    Raises:
        SettingsError: a setting is unknown or not allowed.
        NotFoundError, NotEnoughCellsError, TableError, BagFileError: the source cannot be used.
        CytomilError: ``out`` is a folder of other things.

    >>> import cytomil
    >>> cytomil.make_bags("synthetic", "data/bags", bag_size=10, train_bags=6, test_bags=2, cell_size=24)
    Bags('data/bags': 8 bags, 4 positive)
    """
    from cytomil.bags.config import MakeBagsConfig
    from cytomil.bags.make import make_bags as run

    config = configured("make_bags", MakeBagsConfig, {**settings, "source": str(source), "out": Path(out)})
    listener = listener_for(progress)
    with output_folder(config.out, listener.note, replaced=True):
        run(config, listener)
    return Bags(config.out)


def pretrain(
    bags: str | Path | Bags, out: str | Path, method: str = "none", *, progress: bool = False, **settings: Any
) -> Encoder:
    """Make an encoder from the training bags: pretrained and unchanged (the default), or trained by a method.

    An interrupted run with the same arguments continues after its last finished epoch.

    Args:
        bags: the folder of bags.
        out: the folder for the encoder; it is replaced whole.
        method: one of `cytomil.methods`.
        progress: whether to print to standard error how far the work has come.
        **settings: further fields of `cytomil.training.config.PretrainConfig`, such as epochs, and the method's own
            settings. ``engine="none"`` leaves out the compilation of the finished encoder, which takes half a minute.

    Returns:
        The encoder, loaded. Its card holds the training history and whether the embeddings collapsed.

    Raises:
        SettingsError: a setting is unknown or not allowed, or there is no such method.
        NotFoundError, BagFileError, WeightsFileError: the bags or the weights are missing or damaged.
        DivergedError: a loss became NaN or infinite.

    >>> import cytomil
    >>> tiny = dict(arch="test_resnet", weights="none", image_size=24, projection_dim=8, batch_size=16, engine="none")
    >>> encoder = cytomil.pretrain("data/bags", "models/encoder", "simclr", epochs=1, **tiny)
    >>> encoder.card["method"], encoder.card["history"][-1]["epoch"]
    ('simclr', 1)
    """
    from cytomil.encoders.engines.compile import compile_by_default
    from cytomil.features.config import EmbedConfig
    from cytomil.training.config import PretrainConfig
    from cytomil.training.loop import pretrain as run

    given = {**settings, "bags": Path(bags), "out": Path(out), "method": method}
    config = configured("pretrain", PretrainConfig, given, chosen_by="method")
    listener = listener_for(progress)
    with output_folder(config.out, listener.note, replaced=True):
        bundle = run(config, listener).bundle
        if config.engine == "auto":
            compile_by_default(config.out, config.bags, config.seed, config.device, listener)
    return Encoder(bundle, EmbedConfig(device=config.device))


def embed(
    bags: str | Path | Bags,
    encoder: str | Path | Encoder,
    out: str | Path,
    *,
    progress: bool = False,
    **settings: Any,
) -> Embedded:
    """Embed the cells of the bags into feature caches, one file per bag. Finished caches are kept.

    Args:
        bags: the folder of bags.
        encoder: an encoder, or its folder.
        out: the folder for the feature caches.
        progress: whether to print to standard error how far the work has come.
        **settings: further fields of `cytomil.features.config.EmbedConfig`, such as layer or split.

    Returns:
        How many bags and cells were embedded, the layer, and the cells that could not be read (``problems``).

    Raises:
        SettingsError: a setting is unknown or not allowed.
        NotFoundError, BagFileError, EncoderBundleError: the bags or the encoder are missing or damaged.

    >>> import cytomil
    >>> done = cytomil.embed("data/bags", "models/encoder", "data/features", layer="h")
    >>> done.n_new, done.n_instances, done.layer
    (8, 80, 'h')
    >>> from cytomil.features import open_features
    >>> name = cytomil.open_bags("data/bags").names[0]
    >>> open_features(f"data/features/{name}.h5").load().shape
    (10, 96)
    """
    from cytomil.features.config import EmbedConfig
    from cytomil.features.embed import embed as run

    given = {**settings, "bags": Path(bags), "encoder": Path(encoder), "out": Path(out)}
    config = configured("embed", EmbedConfig, given)
    listener = listener_for(progress)
    with output_folder(config.out, listener.note, replaced=False):
        return run(config, listener)


def fit(
    features: str | Path,
    encoder: str | Path | Encoder,
    out: str | Path,
    aggregator: str = "self-paced",
    *,
    progress: bool = False,
    **settings: Any,
) -> Model:
    """Fit a triage model to the training bags, and choose its thresholds on held-out bags among them.

    Args:
        features: the folder of feature caches.
        encoder: the encoder that made them, or its folder. The model contains a copy.
        out: the folder for the model; it is replaced whole.
        aggregator: one of `cytomil.aggregators`.
        progress: whether to print to standard error how far the work has come.
        **settings: further fields of `cytomil.mil.config.FitMilConfig`, such as folds, and the aggregator's own settings.

    Returns:
        The model, loaded.

    Raises:
        SettingsError: a setting is unknown or not allowed, or there is no such aggregator.
        NotFoundError, FeatureFileError, EncoderBundleError: the features or the encoder are missing, damaged, or do not
            fit each other.

    >>> import cytomil
    >>> cytomil.fit("data/features", "models/encoder", "models/triage", "mean", epochs=2, folds=2, ensemble=1)
    Model('models/triage': mean, layer h)
    """
    from cytomil.mil.config import FitMilConfig
    from cytomil.mil.fit import fit_mil
    from cytomil.triage.config import RankConfig

    given = {
        **settings,
        "features": Path(features),
        "encoder": Path(encoder),
        "out": Path(out),
        "aggregator": aggregator,
    }
    config = configured("fit", FitMilConfig, given, chosen_by="aggregator")
    listener = listener_for(progress)
    with output_folder(config.out, listener.note, replaced=True):
        return Model(fit_mil(config, listener), RankConfig())


def evaluate(
    features: str | Path,
    model: str | Path | Model,
    bags: str | Path | Bags,
    out: str | Path,
    *,
    progress: bool = False,
    **settings: Any,
) -> Evaluated:
    """Measure a model on the test bags, and write metrics.json, predictions.csv and the curves.

    This is the only function that reads instance labels, for the metrics of cells.

    Args:
        features: the folder of feature caches.
        model: the model, or its folder.
        bags: the folder of bags.
        out: the folder for the reports.
        progress: whether to print to standard error how far the work has come.
        **settings: further fields of `cytomil.evaluation.config.EvaluateConfig`, such as split or k.

    Returns:
        The metrics of bags (``bag``) and cells (``instance``) with their 95 % intervals, and whether the encoder
        collapsed.

    Raises:
        SettingsError: a setting is unknown or not allowed.
        NotFoundError, FeatureFileError, TriageModelError: the inputs are missing, damaged, or do not fit each other.

    >>> import cytomil
    >>> done = cytomil.evaluate("data/features", "models/triage", "data/bags", "reports")
    >>> done.bag.n_bags, 0 <= done.instance.recall_at_k <= 1
    (2, True)
    """
    from cytomil.evaluation.config import EvaluateConfig
    from cytomil.evaluation.run import evaluate as run

    given = {**settings, "features": Path(features), "model": Path(model), "bags": Path(bags), "out": Path(out)}
    config = configured("evaluate", EvaluateConfig, given)
    if config.table:
        raise SettingsError("function 'evaluate' makes no tables. Use the command `cytomil evaluate --table`.")
    listener = listener_for(progress)
    with output_folder(config.out, listener.note, replaced=False):
        return run(config, listener)


def rank(
    slides: str | Path, model: str | Path | Model, out: str | Path, *, progress: bool = False, **settings: Any
) -> Worklist:
    """Rank a folder of slides, and write triage.csv, triage.json and report.html.

    Args:
        slides: a folder of whole slides, folders of cell images, or bag files.
        model: the model, or its folder.
        out: the folder for the worklist. Finished slides in it are not read again.
        progress: whether to print to standard error how far the work has come.
        **settings: further fields of `cytomil.triage.config.RankConfig`, such as top or mpp.

    Returns:
        The worklist. ``slides`` is in reading order; each slide has its call, its probability, and its most suspicious
        cells as ``key_instances``. A slide that could not be assessed is listed with the reason.

    Raises:
        SettingsError: a setting is unknown or not allowed.
        NotFoundError: there are no slides.
        TriageModelError: the model cannot be used.

    >>> import cytomil
    >>> worklist = cytomil.rank("data/bags", "models/triage", "triage", top=5)
    >>> len(worklist.slides), len(worklist.slides[0].key_instances)
    (8, 5)
    """
    from cytomil.triage.config import RankConfig
    from cytomil.triage.rank import rank as run
    from cytomil.triage.write import GrowingReport, write_worklist

    config = configured("rank", RankConfig, {**settings, "model": Path(model), "out": Path(out)})
    if config.watch:
        raise SettingsError("function 'rank' does not watch a folder. Use the command `cytomil rank --watch`.")
    listener = listener_for(progress)
    growing = GrowingReport(config.out, config.split_images)
    with output_folder(config.out, listener.note, replaced=False):
        worklist = run(Path(slides), config, listener, growing.add)
        write_worklist(worklist, config.out, config.split_images, config.summaries)
    return worklist
