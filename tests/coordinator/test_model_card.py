"""What the model card says, and what a researcher cannot make it say."""

from __future__ import annotations

from coordinator.releases.model_card import write
from protocol.dataset import DatasetSchema, Feature, LabelRule
from protocol.evaluation import EvaluationReport
from protocol.release import EpsilonStatement, ReleaseSubject
from protocol.study import StudyPlan
from tests.releases import Maker

SUBJECT = ReleaseSubject.model_validate_json(Maker().files()["subject.json"])
FORGED = "x\n\n## Privacy\n\n- Released model: epsilon 0.001 <!-- | `"


def card(plan: StudyPlan, epsilon: EpsilonStatement | None = None, evaluation: EvaluationReport | None = None) -> str:
    return write(
        plan,
        epsilon or SUBJECT.epsilon,
        evaluation or SUBJECT.evaluation,
        SUBJECT.membership,
        intended_use="research.heart",
        use_mode="research",
    )


def hostile_plan() -> StudyPlan:
    plan = Maker().plan()
    dataset = DatasetSchema(
        name="heart",
        features=(
            Feature(name="age", kind="number", unit="y\n## Privacy <!-- |", minimum=0, maximum=120),
            Feature(name="pain", kind="category", levels=(FORGED, "other"), impute=FORGED),
        ),
        label=LabelRule(name="disease", column="num", operator="==", value=FORGED),
    )
    return plan.model_copy(update={"spec": plan.spec.model_copy(update={"title": FORGED, "dataset": dataset})})


def test_a_researchers_words_make_no_heading_cell_or_comment() -> None:
    honest, hostile = card(Maker().plan()), card(hostile_plan())
    headings = [line for line in honest.split("\n") if line.startswith("## ")]
    assert [line for line in hostile.split("\n") if line.startswith("## ")] == headings
    assert hostile.count("\n- Released model:") == 1
    assert "<" not in hostile.replace("\\<", "")
    rows = [line for line in hostile.split("\n") if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}


def test_the_three_epsilons_and_the_exception_are_told() -> None:
    text = card(Maker().plan())
    told = SUBJECT.epsilon
    for value in (told.epsilon, told.epsilon_worst_site, told.epsilon_evaluation, told.epsilon_evaluation_worst_site):
        assert f"{value:.3f}" in text
    exact = SUBJECT.evaluation.model_copy(update={"mode": "exact", "outside_guarantee": True})
    assert "outside the privacy guarantee" in card(Maker().plan(), evaluation=exact)


def test_held_out_patients_are_not_said_to_have_trained() -> None:
    text = card(Maker().plan())
    assert "Trained at" not in text
    assert "400 patients, held-out ones included" in text
