"""The model card: what a practitioner and a regulator read first. Every figure comes from the candidate.

After Mitchell et al. 2019, "Model Cards for Model Reporting", with the privacy statement that the design asks for.
"""

from __future__ import annotations

from protocol.dataset import DatasetSchema, Feature, MaskLabel, NumberLabel, SurvivalLabel
from protocol.evaluation import EvaluationReport, figures
from protocol.graph import ExportedGraph
from protocol.media import ImageInput, SequenceInput
from protocol.membership import MembershipReport, audit_figures
from protocol.model import loss_of
from protocol.release import EpsilonStatement, Selection
from protocol.study import StudyPlan

_FIELDS = {
    "purpose": "What it predicts",
    "input": "Inputs",
    "accuracy": "How well it does",
    "limits": "Limits",
    "oversight": "Oversight",
}


def write(
    plan: StudyPlan,
    epsilon: EpsilonStatement,
    evaluation: EvaluationReport,
    membership: MembershipReport | None,
    *,
    intended_use: str,
    use_mode: str,
    claim_anonymous: bool = False,
) -> str:
    """Markdown. Deterministic: the same candidate gives the same bytes, so the card can be signed."""
    spec = plan.spec
    model = spec.model
    if isinstance(model, ExportedGraph):
        operators = len({node.operator for node in model.nodes})
        sizes = f"{len(model.nodes)} operations of {operators} kinds, brought by the researcher as data"
    else:
        kept = {"architecture", "loss", "intervals"} if loss_of(model) == "logistic" else {"architecture"}
        dumped = model.model_dump(exclude=kept)
        sizes = ", ".join(f"{name} {_size(value)}" for name, value in dumped.items())
    layers = f" ({sizes})" if sizes else ""
    sections = [
        f"# {_words(spec.title)}",
        f"Model of study `{spec.study}`. Intended use: `{intended_use}`. Mode: **{use_mode}**.",
        "## What it predicts",
        f"{_outcome(spec.dataset)} Architecture: {model.architecture}{layers}.",
        "## Inputs",
        _inputs(spec.dataset),
        *(
            [
                "A value outside its range is refused. "
                "In the ONNX file a category is given as the index of its level and a missing value as NaN."
            ]
            if spec.dataset.media is None
            else []
        ),
        "## Where it comes from",
        f"The plan names {len(plan.sites)} hospitals with {sum(site.patients for site in plan.sites)} patients, "
        f"held-out ones included ({', '.join(site.name for site in plan.sites)}); a hospital that refused took no "
        f"part. Trained in {epsilon.rounds_executed} rounds. No patient's record left a hospital; updates met only "
        "under secure aggregation.",
        "## How well it does",
        _evaluation(evaluation),
        *_selection(epsilon.selection),
        "## Privacy",
        _privacy(epsilon),
        "## Can it be told who trained it?",
        _membership(membership),
        *([_CLAIM] if claim_anonymous else []),
        "## Limits",
        f"The model was not tested on hospitals outside the study{_untested(evaluation)}. Differential privacy alone "
        "is neither anonymity nor HIPAA "
        "de-identification. A site that takes part can still poison the model within its clipping bound; secure "
        "aggregation hides a single contribution by design.",
        "## Oversight",
        "The model supports a decision and does not make one: a person who can judge its inputs stays responsible, and "
        "may disregard it at any time.",
    ]
    return "\n\n".join(sections) + "\n"


def missing_fields(card: str) -> list[str]:
    """Which of the fields of Art. 13(3) of the AI Act a card lacks or leaves empty, by the names that policy uses."""
    texts = dict(part.partition("\n")[::2] for part in card.split("\n## ")[1:])
    return [name for name, heading in _FIELDS.items() if not texts.get(heading, "").strip()]


def _outcome(schema: DatasetSchema) -> str:
    label = schema.label
    if isinstance(label, NumberLabel):
        return (
            f"The number `{label.name}` (column `{label.column}`, unit {_words(label.unit) or '-'}, from "
            f"{label.minimum:g} to {label.maximum:g}), learned about {label.center:g} in steps of {label.scale:g}."
        )
    if isinstance(label, MaskLabel):
        return (
            f"For each pixel the probability that it shows `{label.name}` (in training: a mask whose value is "
            f"{label.operator} {label.value:g})."
        )
    rule = f"`{label.column} {label.operator} {_words(str(label.value))}`"
    if not isinstance(label, SurvivalLabel):
        return f"The probability that `{label.name}` holds ({rule})."
    edges = ", ".join(f"{edge:g}" for edge in label.edges)
    return (
        f"The probability of `{label.name}` ({rule}) before `{label.time}` reaches {label.edges[-1]:g}: one minus the "
        f"product of the chances to live through each interval (ends: {edges})."
    )


def _size(value: object) -> str:
    return "-".join(str(part) for part in value) or "none" if isinstance(value, tuple) else str(value)


def _inputs(schema: DatasetSchema) -> str:
    if schema.image is not None:
        return _image(schema.image)
    if schema.sequence is not None:
        return _sequence(schema.sequence)
    rows = ["| column | kind | unit | allowed | if missing |", "|---|---|---|---|---|"]
    for feature in schema.features:
        rows.append(
            f"| {feature.name} | {feature.kind} | {_words(feature.unit) or '-'} | {_allowed(feature)} | "
            f"{'refused' if feature.impute is None else _words(str(feature.impute))} |"
        )
    return "\n".join(rows)


def _image(image: ImageInput) -> str:
    modality = f" of modality {image.modality}" if image.modality else ""
    size = "scaled to that size" if image.fit == "resize" else "of exactly that size"
    return (
        f"One image{modality}, {image.channels} x {image.height} x {image.width} (channels, height, width), {size}. "
        f"Values are clipped to {image.low:g} to {image.high:g}. In the ONNX file they are given before that."
    )


def _sequence(sequence: SequenceInput) -> str:
    rows = [
        f"Measurements over {sequence.length} steps of {sequence.interval:g} seconds each. An empty step carries the "
        "last value forward; in the ONNX file every step has a value.",
        "",
        "| channel | unit | allowed | before the first value |",
        "|---|---|---|---|",
    ]
    for channel in sequence.channels:
        first = "refused" if channel.impute is None else f"{channel.impute:g}"
        allowed = f"{channel.minimum:g} to {channel.maximum:g}"
        rows.append(f"| {channel.name} | {_words(channel.unit) or '-'} | {allowed} | {first} |")
    return "\n".join(rows)


def _words(text: str) -> str:
    """What a researcher wrote, as words on one line: no heading, table cell, link, code or comment of its own."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return "".join(f"\\{character}" if character in "\\|<>`*_[]!#" else character for character in line)


def _allowed(feature: Feature) -> str:
    if feature.kind == "category":
        return ", ".join(_words(str(level)) for level in feature.levels)
    return f"{feature.minimum:g} to {feature.maximum:g}"


_CLAIM = (
    "The submitter claims that this model is **anonymous** (GDPR Rec. 26; EDPB Opinion 28/2024), by an evaluation of "
    "attacks on it that the release gate asked for. The claim stands for as long as that evaluation does; from then "
    "on, and wherever it is not shared, the model is handled as personal data."
)

_CAUTIONS = {
    "classification": "",
    "survival": "Patients who were lost from sight before the horizon have no known outcome: they are counted apart, "
    "and the figures say how far they could move the answer.",
    "regression": "A patient's error is the mean over the patient's records, known to the width of a bin; one beyond "
    "the limit counts as the limit.",
    "segmentation": "A patient's score is known to the width of a bin.",
}


def _evaluation(report: EvaluationReport) -> str:
    how = (
        "an exact histogram, a declared exception **outside the privacy guarantee**"
        if report.outside_guarantee
        else "one noised histogram, charged to the held-out patients"
    )
    caution = _CAUTIONS[report.kind]
    return "\n".join(
        [
            f"On {report.held_out} held-out patients, never trained on, from {how}:",
            "",
            *([caution, ""] if caution else []),
            *(f"- {_words(name)}: {figure.told}" for name, figure in figures(report)),
        ]
    )


def _untested(report: EvaluationReport) -> str:
    """Of subgroups."""
    if not report.subgroups:
        return ", nor per subgroup"
    few = [_words(one.group) for one in report.subgroups if one.patients is None]
    return f", nor for these subgroups, which had too few patients: {', '.join(few)}" if few else ""


def _membership(report: MembershipReport | None) -> str:
    if report is None:
        return "The study planned no membership audit: nobody tried. The bound above is all that is known."
    if not report.ran:
        return f"The membership audit that was planned **did not run**: {_words(report.reason or '')}."
    return "\n".join(
        [
            f"Each hospital attacked the model with its own patients ({report.members} members, {report.non_members} "
            "held out): a small loss speaks for a member. One noised histogram of scores for each, charged to both:",
            "",
            *(f"- {name}: {figure.told}" for name, figure in audit_figures(report)),
            "",
            "Other attacks may find more. Hospitals count their own patients and could count wrongly.",
        ]
    )


def _selection(selection: Selection | None) -> list[str]:
    if selection is None:
        return []
    scores = ", ".join("undefined" if score is None else f"{score:.3f}" for score in selection.scores)
    return [
        f"Chosen as the best of {len(selection.runs)} runs over a declared grid of {selection.entries} entries (entry "
        f"{selection.chosen}), by noised scores on these same held-out patients ({scores}). The figures above are from "
        "one more noised evaluation; they still lean upwards, since the choice was made on the same patients."
    ]


def _all_runs(selection: Selection | None) -> list[str]:
    if selection is None:
        return []
    return [
        f"- These count all {len(selection.runs)} runs and all their scores together, those of models that are not "
        "released too."
    ]


def _privacy(epsilon: EpsilonStatement) -> str:
    evaluation = (
        "none was charged for the evaluation (declared exception)"
        if epsilon.epsilon_evaluation is None
        else f"{epsilon.epsilon_evaluation:.3f} for held-out patients (evaluation)"
    )
    held_out = (
        "its counts of held-out patients would be seen exactly"
        if epsilon.epsilon_evaluation_worst_site is None
        else f"{epsilon.epsilon_evaluation_worst_site:.3f} for held-out patients"
    )
    audit = (
        []
        if epsilon.epsilon_membership is None or epsilon.epsilon_membership_worst_site is None
        else [
            f"- Membership audit, beside the above: epsilon {epsilon.epsilon_membership:.3f} for patients trained on "
            f"and held out alike; {epsilon.epsilon_membership_worst_site:.3f} in the worst case for one site."
        ]
    )
    checks = (
        []
        if epsilon.epsilon_checks is None or epsilon.epsilon_checks_worst_site is None
        else [
            f"- Checks between rounds: epsilon {epsilon.epsilon_checks:.3f} more for held-out patients; "
            f"{epsilon.epsilon_checks_worst_site:.3f} in the worst case for one site. {epsilon.rounds_undone} of the "
            "rounds were given up after a check."
        ]
    )
    to_date = ", ".join(f"{site} {value:.3f}" for site, value in sorted(epsilon.epsilon_cohort_to_date.items()))
    return "\n".join(
        [
            f"- Unit: one {epsilon.unit} at one site, {epsilon.adjacency} adjacency. "
            "A patient present in m sites has group privacy m.",
            f"- Released model: epsilon {epsilon.epsilon:.3f} at delta {epsilon.delta:g} for patients trained on; "
            f"{evaluation}.",
            *_all_runs(epsilon.selection),
            f"- Worst case for one site (all others collude, or secure aggregation fails): "
            f"epsilon {epsilon.epsilon_worst_site:.3f} for patients trained on; {held_out}.",
            *audit,
            *checks,
            f"- Promised to each hospital's patients so far, over all studies that trained at this coordinator: "
            f"{to_date or 'not reported'}. A hospital's own ledger goes by patient and knows of others too.",
            f"- Accounted for {epsilon.steps_charged} steps; {epsilon.rounds_executed} rounds were executed in "
            f"{epsilon.attempts} attempts. {epsilon.accountant}",
            f"- Sampling assumption: {epsilon.sampling}",
            f"- Trust assumption: {epsilon.trust}",
        ]
    )
