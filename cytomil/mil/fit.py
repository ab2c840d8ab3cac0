"""fit-mil: from feature caches to the triage model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch

from cytomil.bags.bag_file import Draw
from cytomil.bags.manifest import FittedBag, patient_key
from cytomil.cards import now, versions
from cytomil.config import changed, note_unused
from cytomil.encoders.bundle import load_bundle
from cytomil.errors import FeatureFileError, SettingsError, require_replaceable
from cytomil.features.cache import Features
from cytomil.features.embed import preparation_sha256, stored_layer
from cytomil.features.index import IndexRow, read_index, require_agreement
from cytomil.files import relative_path
from cytomil.mil.aggregators.registry import find_aggregator, own_config, require_score
from cytomil.mil.bags import (
    ABNORMAL,
    NO_FEEDBACK,
    NOT_ABNORMAL,
    UNKNOWN,
    Feedback,
    Standardiser,
    TrainingBag,
    read_feedback,
)
from cytomil.mil.config import FitMilConfig
from cytomil.mil.cross_validate import (
    SCORE_BIN_EDGES,
    Ensemble,
    HeldOut,
    Member,
    fit_in_parallel,
    from_cross_fitted,
    member_seed,
    n_members,
    over_folds,
    reference_evidence,
    require_two_patients,
    score_shares,
    training_epochs,
)
from cytomil.mil.intervals import auroc_interval, n_independent
from cytomil.mil.novelty import UNLIKE_BELOW, Novelty, fit_novelty
from cytomil.mil.thresholds import Thresholds, choose_thresholds
from cytomil.mil.triage_model import (
    CARD_NAME,
    OWN_FILES,
    ChosenThresholds,
    FeedbackCard,
    HeldOutFigures,
    ModelDescription,
    TrainedOn,
    TriageModel,
    save_triage_model,
)
from cytomil.progress import Listener

_LIMITS = (
    "It is valid only for the kinds of cells, stains and scanners of its training slides.",
    "Thresholds come from held-out training slides. The encoder was trained on the cells and labels of these slides, so "
    "the thresholds may be optimistic.",
    "Its probability ranks slides. It is not the patient's risk.",
)


def fit_mil(settings: FitMilConfig, listener: Listener) -> TriageModel:
    """Cross-validate by patient, fit to all training bags, choose the thresholds, and write the triage model.

    Raises:
        SettingsError: the aggregator is unknown, or does not accept its options, the feedback or the instance score.
        NotFoundError: there are no features, no encoder or no feedback.
        TableError: the feedback is not a table of verdicts.
        FeatureFileError: features are damaged, of another encoder or of too few patients, or contradict their bags.csv.
        BagFileError: the bags.csv is damaged.
        EncoderBundleError: the encoder is damaged.
        TriageModelError: the model that was written cannot be read back.
    """
    require_score(settings.aggregator, settings.instance_score)
    own = own_config(settings.aggregator, settings.options)
    kind = find_aggregator(settings.aggregator)
    unused = [*kind.unused, *([] if kind.by_epochs else ["epochs"]), *([] if kind.averaged else ["ensemble"])]
    without_effect = [name for name in changed(settings) if name in unused]
    note_unused(without_effect, f"with aggregator '{settings.aggregator}'", listener.note)
    require_replaceable(settings.out, CARD_NAME, OWN_FILES)
    index = read_index(settings.features)
    require_agreement(index)
    opened = index.open("train")
    encoder = load_bundle(settings.encoder)
    key = opened[0][1].key
    made_with = preparation_sha256(stored_layer(key.layer), encoder.transform.sha256)
    if key.encoder_sha256 != encoder.sha256 or key.transform_sha256 != made_with:
        raise FeatureFileError(
            f"{settings.features} was made by another encoder than {settings.encoder}. Run `cytomil embed` again."
        )
    feedback = _feedback(settings)
    bags = training_bags(opened, settings, listener, feedback)
    feedback.note_unused((bag.bag_id for bag in bags), listener.note)
    labels = np.array([bag.label for bag in bags])
    held_out, ensemble = _fit(bags, settings, listener)
    learnt = _learnt_from(feedback, bags, settings, held_out, listener)
    thresholds = choose_thresholds(held_out, labels, ensemble.cross_fitted, settings.sensitivity, settings.seed)
    novelty = fit_novelty(bags, held_out.fold)
    description = ModelDescription(
        made=now(),
        synthetic=encoder.card.synthetic,
        collapsed=encoder.card.collapsed,
        uses_instance_labels=encoder.card.uses_instance_labels,
        trained_on=TrainedOn(
            bags=len(bags),
            positive_bags=int(labels.sum()),
            cells=sum(len(features) for _, features in opened),
            cells_drawn=sum(len(bag) for bag in bags),
            sources=encoder.card.data.sources,
        ),
        held_out=_held_out_figures(held_out, bags, thresholds),
        thresholds=ChosenThresholds(
            **asdict(thresholds),
            sensitivity_wanted=settings.sensitivity,
            chosen_by=f"{_chosen_by(ensemble, held_out)}, split by patient",
        ),
        epochs_chosen=held_out.n_epochs if kind.by_epochs else None,
        score_bin_edges=SCORE_BIN_EDGES,
        reference_shares=_reference_shares(ensemble, bags),
        versions=versions(),
        settings=settings.model_dump(mode="json") | {"options": {settings.aggregator: own.model_dump(mode="json")}},
        layer=key.layer,
        preparation_sha256=key.transform_sha256,
        orientations=int(key.orientations),
        engine=key.engine,
        cutting=encoder.card.data.cutting,
        limits=(*_LIMITS, *_feedback_limit(learnt), *encoder.caveats, _novelty_limit(novelty)),
        feedback=learnt,
        features=relative_path(settings.features, settings.out),
        fitted_to=tuple(FittedBag(sha256=row.bag_sha256, patient=patient_key(row.patient_id)) for row, _ in opened),
    )
    return save_triage_model(settings.out, encoder, ensemble, novelty, description)


def _feedback(settings: FitMilConfig) -> Feedback:
    if settings.feedback is None:
        return NO_FEEDBACK
    if not find_aggregator(settings.aggregator).takes_feedback:
        raise SettingsError(f"aggregator '{settings.aggregator}' does not use --feedback. Use --aggregator self-paced.")
    return read_feedback(settings.feedback)


def training_bags(
    opened: Sequence[tuple[IndexRow, Features]],
    settings: FitMilConfig,
    listener: Listener,
    feedback: Feedback = NO_FEEDBACK,
) -> list[TrainingBag]:
    """The drawn cells of each cache, and those with feedback. A bag of unknown patient counts as its own patient."""
    bags = []
    for row, features in listener.track(opened, "reading features", unit="bags"):
        indices, verdicts = draw_of(settings).indices(features.bag_id, len(features)), None
        if feedback.of_bag(row.bag_id):
            codes = feedback.codes(row.bag_id, features.instance_ids)
            indices = np.union1d(indices, np.flatnonzero(codes != UNKNOWN))
            verdicts = torch.from_numpy(codes[indices])
        values = torch.from_numpy(features.select(indices))
        patient = row.patient_id or f"bag:{row.bag_id}"
        bags.append(TrainingBag(row.bag_id, values, row.label, patient, features.groups, verdicts=verdicts))
    return bags


def _learnt_from(
    feedback: Feedback, bags: Sequence[TrainingBag], settings: FitMilConfig, held_out: HeldOut, listener: Listener
) -> FeedbackCard | None:
    """The number of verdicts used, and the AUROC on held-out bags with and without them."""
    if not feedback.cells:
        return None
    from sklearn.metrics import roc_auc_score

    labels = [bag.label for bag in bags]
    without, _ = _fit([replace(bag, verdicts=None) for bag in bags], settings, listener)
    given = sum(len(cells) for cells in feedback.cells.values())
    counts = {code: sum(int(bag.have_verdict(code).sum()) for bag in bags) for code in (ABNORMAL, NOT_ABNORMAL)}
    return FeedbackCard(
        confirmed=counts[ABNORMAL],
        rejected=counts[NOT_ABNORMAL],
        unused=given - sum(counts.values()),
        auroc=float(roc_auc_score(labels, held_out.probabilities)),
        auroc_without=float(roc_auc_score(labels, without.probabilities)),
    )


def _feedback_limit(learnt: FeedbackCard | None) -> list[str]:
    if learnt is None:
        return []
    n = learnt.confirmed + learnt.rejected
    return [f"It also learned from readers' verdicts on {n} cells of the training slides, which may be wrong."]


def draw_of(settings: FitMilConfig) -> Draw:
    """The draw of cells per bag that are used for fitting."""
    return Draw(settings.cells_per_bag, settings.seed)


def _fit(bags: Sequence[TrainingBag], settings: FitMilConfig, listener: Listener) -> tuple[HeldOut, Ensemble]:
    if find_aggregator(settings.aggregator).holds_out:
        require_two_patients(bags)
        ensemble = _refit(bags, settings, 1, listener)
        return from_cross_fitted(ensemble.cross_fitted) or over_folds(bags, settings, listener), ensemble
    held_out = over_folds(bags, settings, listener)
    return held_out, _refit(bags, settings, held_out.n_epochs, listener)


def _refit(bags: Sequence[TrainingBag], settings: FitMilConfig, epochs: int, listener: Listener) -> Ensemble:
    kind = find_aggregator(settings.aggregator)
    standardise = Standardiser.of(bags)

    def fit(member: int, check: Callable[[], None]) -> Member:
        states = training_epochs(bags, settings, epochs, member_seed(settings, member), standardise)
        for aggregator, _ in states:  # noqa: B007 only the last state is used
            check()
        return Member(aggregator, standardise, reference_evidence(aggregator, standardise, bags))

    jobs = range(n_members(kind, settings))
    members = fit_in_parallel(jobs, fit, settings.workers, listener, "fitting on all training bags")
    return Ensemble(settings.aggregator, tuple(members), settings.instance_score)


def _reference_shares(ensemble: Ensemble, bags: Sequence[TrainingBag]) -> tuple[float, ...]:
    """The mean over negative bags of the fraction of cells in each score bin, shape (number of `SCORE_BIN_EDGES` − 1,)."""
    negatives = [bag for bag in bags if bag.label == 0]
    shares = np.mean([score_shares(ensemble.assess(bag.values.numpy()).scores) for bag in negatives], axis=0)
    return tuple(shares.tolist())


def _chosen_by(ensemble: Ensemble, held_out: HeldOut) -> str:
    if ensemble.cross_fitted is not None:
        return "the training bags that the model's probability curve was fitted to, each held out"
    return f"{held_out.fold.max() + 1}-fold cross-validation over the training bags"


def _novelty_limit(novelty: Novelty) -> str:
    return (
        "A slide is flagged as unlike the training slides in two cases. Either its average cell differs more than that of "
        f"each of the {len(novelty.held_out)} training slides, each held out, and fewer than {UNLIKE_BELOW:.0%} of similar "
        "slides would differ as much. Or it is shifted by more than one standard deviation of a cell. A slide may differ in "
        "ways that this check does not detect."
    )


def _held_out_figures(held_out: HeldOut, bags: Sequence[TrainingBag], thresholds: Thresholds) -> HeldOutFigures:
    from sklearn.metrics import f1_score, roc_auc_score

    labels = np.array([bag.label for bag in bags])
    auroc = float(roc_auc_score(labels, held_out.probabilities))
    n_positive, n_negative = n_independent(labels.tolist(), [bag.patient for bag in bags])
    called = held_out.probabilities >= thresholds.decision
    return HeldOutFigures(
        auroc=auroc,
        auroc_interval=auroc_interval(auroc, n_positive, n_negative),
        n_positive_patients=n_positive,
        n_negative_patients=n_negative,
        f1=float(f1_score(labels, called)),
        sensitivity=float(called[labels == 1].mean()),
        specificity=float((~called[labels == 0]).mean()),
        log_loss=float(held_out.loss_by_epoch[held_out.n_epochs - 1]),
        probabilities=tuple(held_out.probabilities.tolist()),
        labels=tuple(labels.tolist()),
    )
