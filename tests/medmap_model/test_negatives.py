"""Hard negatives contradict the report in one point, in grammatical English, or do not exist."""

from __future__ import annotations

import pytest

from medmap_model.text.negatives import hard_negatives, negation_negative, side_negative

TURNED = [
    ("No contrast enhancement.", "Contrast enhancement."),
    ("It does not enhance.", "It enhances."),
    ("It washes out in the delayed phase.", "It does not wash out in the delayed phase."),
    ("There is no uptake of contrast agent.", "There is uptake of contrast agent."),
    ("Lesion without washout.", "Lesion with washout."),
    ("The lesion is not enhancing.", "The lesion is enhancing."),
    ("No washout in the portal venous phase.", "Washout in the portal venous phase."),
    ("No surrounding vasogenic oedema.", "Surrounding vasogenic oedema."),
    ("Peripheral edema.", "No peripheral edema."),
    ("No T2 signal drop.", "T2 signal drop."),
    ("The adjacent structures are not displaced.", "The adjacent structures are displaced."),
    ("Diffusion does not appear restricted.", "Diffusion appears restricted."),
    ("This suggests restricted diffusion.", "This does not suggest restricted diffusion."),
    ("In the arterial phase an enhancing rim.", "In the arterial phase a non-enhancing rim."),
    ("Midline shift is absent.", "Midline shift is present."),
]


@pytest.mark.parametrize(("text", "opposite"), TURNED)
def test_a_negation_is_turned_either_way(text, opposite):
    assert negation_negative(text) == opposite
    assert negation_negative(opposite) == text


@pytest.mark.parametrize(
    ("text", "opposite"),
    [
        ("There is no space-occupying lesion.", "There is a space-occupying lesion."),
        ("Impression: no evidence of a brain tumour.", "Impression: evidence of a brain tumour."),
        ("Unremarkable brain MRI without tumour.", "Unremarkable brain MRI with a tumour."),
        ("No focal mass. The midline is central.", "Focal mass. The midline is central."),
    ],
)
def test_an_absent_mass_becomes_one(text, opposite):
    assert negation_negative(text) == opposite


def test_of_several_statements_one_is_turned_and_over_reports_each_is():
    texts = [f"A {n} mm mass. It enhances. Surrounding oedema. No washout." for n in range(30)]
    turned = [negation_negative(t) for t in texts]
    changes = {t.split("mass. ")[1] for t in turned}
    assert changes == {
        "It does not enhance. Surrounding oedema. No washout.",
        "It enhances. No surrounding oedema. No washout.",
        "It enhances. Surrounding oedema. Washout.",
    }
    assert turned == [negation_negative(t) for t in texts]


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("Mass in the left frontal lobe.", "Mass in the right frontal lobe."),
        ("Left-sided lesion, RIGHT side free.", "Right-sided lesion, LEFT side free."),
        ("Segment II of the left lobe", "Segment II of the right lobe"),
        ("Foci in the left and right lobes.", None),
        (
            "Foci in the right and the left lobe; mass on the left.",
            "Foci in the right and the left lobe; mass on the right.",
        ),
        ("Bilateral upright foci, copyright.", None),
    ],
)
def test_sides_are_swapped_unless_both_are_meant(text, turned):
    assert side_negative(text) == turned


@pytest.mark.parametrize(
    "text", ["", "Hepatic cyst.", "Keine Anreicherung links.", "A 4 cm mass is seen.", "No change."]
)
def test_where_nothing_applies_there_is_none(text):
    assert hard_negatives(text) == ()


def test_reports_of_the_phantom_nearly_all_have_both_and_none_is_its_own():
    from configs.schema import PhantomConfig
    from simulation.phantom.kinds import KINDS
    from simulation.phantom.plan import single_case
    from simulation.phantom.study import make_study

    config = PhantomConfig(size=16)
    reports = [
        make_study(single_case(organ, kind, f"{organ}-{kind}-{i}"), config, seed=1).report
        for organ in KINDS
        for kind in KINDS[organ]
        for i in range(4)
    ]
    negatives = [hard_negatives(r) for r in reports]
    assert all(r not in n and len(set(n)) == len(n) for r, n in zip(reports, negatives, strict=True))
    assert sum(negation_negative(r) is not None for r in reports) >= 0.85 * len(reports)
    assert sum(side_negative(r) is not None for r in reports) >= 0.75 * len(reports)
    for report, found in zip(reports, negatives, strict=True):
        for negative in found:  # one statement, or the sides, and no more
            assert abs(len(negative.split()) - len(report.split())) <= 2
